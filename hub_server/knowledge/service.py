"""Rules of knowledge. Opens the transactions; knows no gRPC."""

import base64
import datetime as dt
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hub_server import spaces
from hub_server.caller import Caller
from hub_server.database import Connection, Database
from hub_server.errors import HubError, Reason
from hub_server.idempotency import Claims, Retry
from hub_server.knowledge.chunking import Chunking, chunking_of
from hub_server.knowledge.repository import KnowledgeRepository
from hub_server.knowledge.vectors import check_dimension
from hub_server.paging import Page, split
from hub_server.retrieval.view import Change
from hub_server.rows import Row, active_user, owned
from hub_server.search import DEFAULT_TOP_K, Hit, Pull, Query, Search, Source

KIND: Final = "knowledge"


@dataclass(frozen=True, slots=True)
class Asked:
    """What to look for, how, and in which documents (none = all)."""

    query: str
    top_k: int = 0
    session_id: str = ""
    mode: str = "hybrid"  # | semantic | lexical
    min_score: float = 0.0
    document_ids: Sequence[str] = ()
    max_per_document: int = 0
    vector: NDArray[np.float32] | None = None
    """What to look for in meaning, instead of the query's own; None = that."""
    embedding_model: str = ""
    """The model of the vector; empty = the hub's own."""

    def chosen(self, hits: Sequence[Hit]) -> Sequence[Hit]:
        """Return the hits that score enough, so many of each document at most."""
        seen: Counter[str] = Counter()
        found = []
        for hit in hits:
            document_id = hit.row["document_id"]
            seen[document_id] += 1
            is_one_too_many = 0 < self.max_per_document < seen[document_id]
            if hit.candidate.score >= self.min_score and not is_one_too_many:
                found.append(hit)
        return found


class KnowledgeService:
    """Documents of users, and the search over them."""

    def __init__(self, database: Database, search: Search, wake: Callable[[], None]) -> None:
        """``wake`` tells the ingestion workers of this process that a document waits."""
        self._database = database
        self._search = search
        self._wake = wake

    async def ingest(
        self,
        caller: Caller,
        retry: Retry,
        user_id: str,
        values: Mapping[str, Any],
        *,
        allow_duplicate: bool,
    ) -> Row:
        """Store a document to be processed; unless allowed, no text a second time.

        Raises NOT_FOUND, USER_DISABLED, REQUEST_ID_REUSED or INVALID_FIELD.
        """
        self._check_chunking(values)
        content_hash = _hash_of(values["text"])
        async with self._database.transaction(caller) as connection:
            active_user(await spaces.state(connection, caller.tenant_id, user_id, KIND))
            claims = Claims(connection, caller.tenant_id, user_id)
            if (answer := await claims.claim(retry)) is not None:
                return answer
            repository = KnowledgeRepository(connection, caller.tenant_id)
            document = None
            if not allow_duplicate:
                document = await repository.same_text(user_id, content_hash)
            if document is None:
                document = await repository.add_document(
                    user_id=user_id, content_hash=content_hash, **values
                )
            await claims.keep(retry, document)
        self._wake()
        return document

    async def get_document(self, caller: Caller, document_id: str) -> Row:
        """Return a document. Raises NOT_FOUND or USER_DISABLED."""
        async with self._database.statement(caller) as connection:
            repository = KnowledgeRepository(connection, caller.tenant_id)
            return owned(caller, await repository.document(document_id), "document")

    async def list_documents(
        self, caller: Caller, user_id: str, page: Page, *, show_deleted: bool
    ) -> tuple[Sequence[Row], str | None]:
        """Return a page of documents and the key of the next. Raises NOT_FOUND, USER_DISABLED."""
        async with self._database.statement(caller) as connection:
            repository = KnowledgeRepository(connection, caller.tenant_id)
            rows = await repository.list_documents(user_id, page, show_deleted=show_deleted)
        active_user(rows[0] if rows else None)
        documents = [row for row in rows if row["document_id"] is not None]
        return split(documents, page.size, lambda row: str(row["document_id"]))

    async def delete_document(self, caller: Caller, document_id: str) -> None:
        """Delete a document with its chunks. Raises NOT_FOUND or USER_DISABLED."""
        async with self._database.transaction(caller) as connection:
            document = _living(await self._held(connection, caller, document_id))
            seq = await spaces.next_seq(connection, caller.tenant_id, document["user_id"], KIND)
            repository = KnowledgeRepository(connection, caller.tenant_id)
            values = {"deleted_at": dt.datetime.now(dt.UTC), "space_seq": seq}
            await repository.set_document(document_id, values)
        await self._search.removed(caller.tenant_id, document["user_id"], KIND, seq)

    async def undelete_document(self, caller: Caller, document_id: str) -> Row:
        """Bring a deleted document back. Raises NOT_FOUND or USER_DISABLED."""
        async with self._database.transaction(caller) as connection:
            document = await self._held(connection, caller, document_id)
            if document["deleted_at"] is not None:
                user_id = document["user_id"]
                seq = await spaces.next_seq(connection, caller.tenant_id, user_id, KIND)
                repository = KnowledgeRepository(connection, caller.tenant_id)
                document = await repository.set_document(
                    document_id, {"deleted_at": None, "space_seq": seq}
                )
        self._wake()
        return document

    async def update_document(
        self, caller: Caller, document_id: str, values: Mapping[str, Any], etag: str
    ) -> Row:
        """Change a document; what its chunks are made of lets it be processed anew.

        Raises NOT_FOUND, USER_DISABLED, ETAG_MISMATCH or INVALID_FIELD.
        """
        self._check_chunking(values)
        changes = dict(values)
        if "text" in changes:
            changes["content_hash"] = _hash_of(changes["text"])
        async with self._database.transaction(caller) as connection:
            document = _living(await self._held(connection, caller, document_id))
            if etag not in ("", document_etag(document)):
                raise HubError(Reason.REASON_ETAG_MISMATCH)
            repository = KnowledgeRepository(connection, caller.tenant_id)
            if not _makes_other_chunks(document, changes):
                document = await repository.set_document(document_id, changes)
            elif document["own_model"]:
                document = await self._label(connection, caller, document, changes)
            else:
                document = await repository.process_anew(document_id, changes)
        self._wake()
        return document

    async def _label(
        self, connection: Connection, caller: Caller, document: Row, changes: Mapping[str, Any]
    ) -> Row:
        """Give another title or source to a document whose chunks have vectors of their own."""
        for name, field in (("text", "text"), ("max_tokens", "chunking")):
            if name in changes:
                raise HubError.invalid(field, "must not be set: AddChunks brought the chunks")
        document_id, user_id = document["document_id"], document["user_id"]
        seq = await spaces.next_seq(connection, caller.tenant_id, user_id, KIND)
        repository = KnowledgeRepository(connection, caller.tenant_id)
        document = await repository.set_document(document_id, {**changes, "space_seq": seq})
        labels = {"document_title": document["title"], "source": document["source_url"]}
        await repository.label_chunks(document_id, labels)
        return document

    async def retry_document(self, caller: Caller, document_id: str) -> Row:
        """Let a failed document be processed again. Raises NOT_FOUND or USER_DISABLED."""
        async with self._database.transaction(caller) as connection:
            document = _living(await self._held(connection, caller, document_id))
            if document["status"] == "failed":
                repository = KnowledgeRepository(connection, caller.tenant_id)
                document = await repository.process_anew(document_id, {})
        self._wake()
        return document

    async def list_chunks(
        self, caller: Caller, document_id: str, page: Page
    ) -> tuple[Sequence[Row], str | None]:
        """Return a page of a document's chunks and the key of the next.

        Raises NOT_FOUND or USER_DISABLED.
        """
        async with self._database.statement(caller) as connection:
            repository = KnowledgeRepository(connection, caller.tenant_id)
            rows = await repository.list_chunks(document_id, page)
        owned(caller, rows[0] if rows else None, "document")
        chunks = [row for row in rows if row["chunk_id"] is not None]
        return split(chunks, page.size, lambda row: str(row["chunk_index"]))

    async def list_retrievals(
        self, caller: Caller, session_id: str, page: Page
    ) -> tuple[Sequence[Row], str | None]:
        """Return a page of what searches returned to a session and the key of the next.

        Raises NOT_FOUND or USER_DISABLED.
        """
        async with self._database.statement(caller) as connection:
            repository = KnowledgeRepository(connection, caller.tenant_id)
            rows = await repository.list_retrievals(session_id, page)
        owned(caller, rows[0] if rows else None, "session")
        found = [row for row in rows if row["retrieval_id"] is not None]
        return split(found, page.size, lambda row: f"{row['retrieval_id']}|{row['rank']}")

    def _check_chunking(self, values: Mapping[str, Any]) -> None:
        if "max_tokens" in values:
            chunking = Chunking(values["max_tokens"], values["overlap_tokens"])
            chunking.check(self._search.window)

    async def _held(self, connection: Connection, caller: Caller, document_id: str) -> Row:
        """Return a document, deleted or not, that nobody else changes until the end."""
        repository = KnowledgeRepository(connection, caller.tenant_id)
        return owned(caller, await repository.lock_document(document_id), "document")

    async def search(self, caller: Caller, user_id: str, asked: Asked) -> Sequence[Hit]:
        """Return the chunks that fit a query, best first.

        Raises INVALID_FIELD, NOT_FOUND, USER_DISABLED or FEATURE_DISABLED.
        """
        state = await self._state(caller, user_id, asked.session_id)
        model = asked.embedding_model or self._search.model
        vector = await self._vector(caller, user_id, asked, model)
        text = "" if asked.mode == "semantic" else asked.query

        async def read(chunk_ids: Sequence[str]) -> Mapping[str, Row]:
            async with self._database.statement(caller) as connection:
                repository = KnowledgeRepository(connection, caller.tenant_id)
                return await repository.shown_chunks(user_id, chunk_ids, asked.document_ids)

        space = self._search.space(caller.tenant_id, user_id, KIND, model)
        top_k = asked.top_k or DEFAULT_TOP_K
        pull = self._pull(caller, user_id, model)
        hits = await self._search.hits(
            space, state, Query(text, vector), top_k, pull, read, asked.chosen
        )
        if asked.session_id and hits:
            await self._record(caller, user_id, asked, model, hits)
        return hits

    async def _vector(
        self, caller: Caller, user_id: str, asked: Asked, model: str
    ) -> NDArray[np.float32] | None:
        """Return the vector to look for; None = by words alone.

        Raises INVALID_FIELD where the user has no vectors of the model, or of another dimension.
        """
        if asked.vector is None:
            return None if asked.mode == "lexical" else await self._search.embed(asked.query)
        if (known := self._search.dimension_of(model)) is None:
            async with self._database.statement(caller) as connection:
                repository = KnowledgeRepository(connection, caller.tenant_id)
                known = await repository.dimension(user_id, model)
        if known is None:
            raise HubError.invalid("embedding_model", "must be a model of the user's chunks")
        check_dimension("vector", len(asked.vector), model, known)
        return asked.vector

    async def source(self, caller: Caller, user_id: str) -> Source:
        """Return what a view of a user's chunks is made of. Raises NOT_FOUND or USER_DISABLED."""
        async with self._database.statement(caller) as connection:
            state = active_user(await spaces.state(connection, caller.tenant_id, user_id, KIND))
        space = self._search.space(caller.tenant_id, user_id, KIND)
        return Source(space, state, self._pull(caller, user_id, self._search.model))

    def _pull(self, caller: Caller, user_id: str, model: str) -> Pull:
        async def pull(after: int) -> Sequence[Change]:
            async with self._database.statement(caller) as connection:
                repository = KnowledgeRepository(connection, caller.tenant_id)
                return await repository.changes(user_id, model, after)

        return pull

    async def _state(self, caller: Caller, user_id: str, session_id: str) -> Row:
        """Return the space's state, when the user may search it for this session."""
        async with self._database.statement(caller) as connection:
            state = active_user(await spaces.state(connection, caller.tenant_id, user_id, KIND))
        if not state["enable_rag"]:
            raise HubError(Reason.REASON_FEATURE_DISABLED, feature="enable_rag")
        if session_id:
            async with self._database.statement(caller) as connection:
                repository = KnowledgeRepository(connection, caller.tenant_id)
                if not await repository.has_session(user_id, session_id):
                    raise HubError(Reason.REASON_NOT_FOUND, resource="session")
        return state

    async def _record(
        self, caller: Caller, user_id: str, asked: Asked, model: str, hits: Sequence[Hit]
    ) -> None:
        rows = [{"chunk_id": hit.row["chunk_id"], "score": hit.candidate.score} for hit in hits]
        async with self._database.statement(caller) as connection:
            await KnowledgeRepository(connection, caller.tenant_id).record(
                rows,
                session_id=asked.session_id,
                user_id=user_id,
                query=asked.query,
                embedding_model=model,
            )


def document_etag(document: Row) -> str:
    """Return the version of a document: 22 characters that change with what callers set."""
    names = ("title", "content_hash", "source_url", "author", "metadata", "deleted_at")
    chunking = chunking_of(document)
    values = [document[name] for name in names]
    text = repr([*values, chunking.max_tokens, chunking.overlap_tokens])
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:16])[:22].decode()


def _makes_other_chunks(document: Row, changes: Mapping[str, Any]) -> bool:
    """Tell whether changes alter what chunks and their vectors are made of."""
    made_of = {**changes, "content_hash": changes.get("content_hash", b"").hex()}
    if not made_of["content_hash"]:
        del made_of["content_hash"]
    names = ("title", "source_url", "content_hash", "max_tokens", "overlap_tokens")
    return any(name in made_of and made_of[name] != document[name] for name in names)


def _hash_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _living(document: Row) -> Row:
    """Return a document that is not deleted. Raises NOT_FOUND."""
    if document["deleted_at"] is not None:
        raise HubError(Reason.REASON_NOT_FOUND, resource="document")
    return document
