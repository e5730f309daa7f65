"""Chunks whose vectors callers made: how they are stored. Knows no gRPC."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hub_server import spaces
from hub_server.caller import Caller
from hub_server.database import Connection, Database
from hub_server.errors import HubError, Reason
from hub_server.idempotency import Claims, Retry
from hub_server.ids import new_id
from hub_server.knowledge.repository import KnowledgeRepository
from hub_server.knowledge.service import KIND
from hub_server.knowledge.vectors import check_dimension, check_vectors
from hub_server.rows import Row, active_user, owned
from hub_server.search import Search

# A view reads a document as a whole.
_MOST_CHUNKS: Final = 10_000
_NO_TEXT: Final = hashlib.sha256(b"").digest()


@dataclass(frozen=True, slots=True)
class OwnChunk:
    """A chunk with its vector: float32, little-endian."""

    content: str
    embedding: bytes
    metadata: Mapping[str, Any]
    token_count: int  # 0 = not counted yet


@dataclass(frozen=True, slots=True)
class OwnChunks:
    """What to add, and to which document: a new one of ``values``, or the one of that id."""

    model: str
    chunks: Sequence[OwnChunk]
    document_id: str
    values: Mapping[str, Any]


class OwnVectors:
    """Adds chunks with vectors."""

    def __init__(self, database: Database, search: Search) -> None:
        """Store what the given search finds."""
        self._database = database
        self._search = search

    async def add(self, caller: Caller, retry: Retry, user_id: str, added: OwnChunks) -> Row:
        """Store chunks; return their document with ``chunk_ids``, in the order of the chunks.

        Raises INVALID_FIELD, NOT_FOUND, USER_DISABLED or REQUEST_ID_REUSED.
        """
        fields = [f"chunks[{place}].embedding" for place in range(len(added.chunks))]
        dimension = check_vectors(fields, [chunk.embedding for chunk in added.chunks])
        counts = await self._counts(added.chunks)
        of_hub = await self._search.dimension_of(added.model)
        async with self._database.transaction(caller) as connection:
            active_user(await spaces.state(connection, caller.tenant_id, user_id, KIND))
            claims = Claims(connection, caller.tenant_id, user_id)
            if (answer := await claims.claim(retry)) is not None:
                return answer
            document = await self._document(connection, caller, user_id, added)
            # From here on the space is held: nobody adds vectors of this model meanwhile.
            seq = await spaces.next_seq(connection, caller.tenant_id, user_id, KIND)
            repository = KnowledgeRepository(connection, caller.tenant_id)
            known = of_hub or await repository.dimension(user_id, added.model) or dimension
            check_dimension(fields[0], dimension, added.model, known)
            rows = _rows(document, added.chunks, counts)
            await repository.add_chunks(
                rows,
                document_id=document["document_id"],
                user_id=user_id,
                revision=document["revision"],
                embedding_model=added.model,
            )
            total = document["chunk_count"] + len(rows)
            document = await repository.set_document(
                document["document_id"], {"chunk_count": total, "space_seq": seq}
            )
            answer = {**document, "chunk_ids": [row["chunk_id"] for row in rows]}
            await claims.keep(retry, answer)
            return answer

    async def _counts(self, chunks: Sequence[OwnChunk]) -> Sequence[int]:
        """Return the tokens of chunks. Raises OVERLOADED."""
        texts = [chunk.content for chunk in chunks if not chunk.token_count]
        counted = iter(await self._search.count_tokens(texts) if texts else ())
        return [chunk.token_count or next(counted) for chunk in chunks]

    async def _document(
        self, connection: Connection, caller: Caller, user_id: str, added: OwnChunks
    ) -> Row:
        """Return the document to add to, held; a new one where none is named."""
        repository = KnowledgeRepository(connection, caller.tenant_id)
        if not added.document_id:
            return await repository.add_document(
                user_id=user_id,
                text="",
                content_hash=_NO_TEXT,
                status="ready",
                revision=1,
                own_model=added.model,
                **added.values,
            )
        document = owned(caller, await repository.lock_document(added.document_id), "document")
        if document["user_id"] != user_id or document["deleted_at"] is not None:
            raise HubError(Reason.REASON_NOT_FOUND, resource="document")
        if not document["own_model"]:
            raise HubError.invalid("document_id", "must be of a document that AddChunks made")
        if document["own_model"] != added.model:
            fault = f"must be {document['own_model']}, as of the document's other chunks"
            raise HubError.invalid("embedding_model", fault)
        room = _MOST_CHUNKS - document["chunk_count"]
        if room <= 0:
            fault = f"must be of another document: this one is full, with {_MOST_CHUNKS:,} chunks"
            raise HubError.invalid("document_id", fault)
        if len(added.chunks) > room:
            fault = f"must be at most {room} here: a document has at most {_MOST_CHUNKS:,}"
            raise HubError.invalid("chunks", fault)
        return document


def _rows(
    document: Row, chunks: Sequence[OwnChunk], counts: Sequence[int]
) -> Sequence[dict[str, Any]]:
    """Return chunks as rows, behind those that the document has."""
    first = document["chunk_count"]
    return [
        {
            "chunk_id": new_id(),
            "chunk_index": place,
            "content": chunk.content,
            "token_count": count,
            "embedding": chunk.embedding,
            "metadata": {
                **chunk.metadata,
                "source": document["source_url"],
                "chunk_index": place,
                "document_title": document["title"],
            },
        }
        for place, (chunk, count) in enumerate(zip(chunks, counts, strict=True), start=first)
    ]
