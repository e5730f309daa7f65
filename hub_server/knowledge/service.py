"""Rules of knowledge. Opens the transactions; knows no gRPC."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from hub_server import spaces
from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.errors import HubError, Reason
from hub_server.idempotency import Claims, Retry
from hub_server.knowledge.repository import KnowledgeRepository
from hub_server.paging import Page, split
from hub_server.retrieval.view import Change
from hub_server.rows import Row, active_user, owned
from hub_server.search import DEFAULT_TOP_K, Hit, Query, Search

KIND: Final = "knowledge"


class KnowledgeService:
    """Documents of users, and the search over them."""

    def __init__(self, database: Database, search: Search, wake: Callable[[], None]) -> None:
        """``wake`` tells the ingestion workers of this process that a document waits."""
        self._database = database
        self._search = search
        self._wake = wake

    async def ingest(
        self, caller: Caller, retry: Retry, user_id: str, values: Mapping[str, Any]
    ) -> Row:
        """Store a document to be processed. Raises NOT_FOUND, USER_DISABLED, REQUEST_ID_REUSED."""
        async with self._database.transaction(caller) as connection:
            active_user(await spaces.state(connection, caller.tenant_id, user_id, KIND))
            claims = Claims(connection, caller.tenant_id, user_id)
            if (answer := await claims.claim(retry)) is not None:
                return answer
            document = await KnowledgeRepository(connection, caller.tenant_id).add_document(
                user_id=user_id,
                content_hash=hashlib.sha256(values["text"].encode()).digest(),
                **values,
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
        self, caller: Caller, user_id: str, page: Page
    ) -> tuple[Sequence[Row], str | None]:
        """Return a page of documents and the key of the next. Raises NOT_FOUND, USER_DISABLED."""
        async with self._database.statement(caller) as connection:
            repository = KnowledgeRepository(connection, caller.tenant_id)
            rows = await repository.list_documents(user_id, page)
        active_user(rows[0] if rows else None)
        documents = [row for row in rows if row["document_id"] is not None]
        return split(documents, page.size, lambda row: str(row["document_id"]))

    async def delete_document(self, caller: Caller, document_id: str) -> None:
        """Delete a document with its chunks. Raises NOT_FOUND or USER_DISABLED."""
        async with self._database.transaction(caller) as connection:
            repository = KnowledgeRepository(connection, caller.tenant_id)
            document = owned(caller, await repository.document(document_id), "document")
            if await repository.lock_document(document_id) is None:
                raise HubError(Reason.REASON_NOT_FOUND, resource="document")
            user_id = document["user_id"]
            seq = await spaces.next_seq(connection, caller.tenant_id, user_id, KIND)
            await repository.delete_document(document_id, seq)

    async def search(
        self, caller: Caller, user_id: str, query: str, top_k: int, session_id: str
    ) -> Sequence[Hit]:
        """Return the chunks that fit a query, best first.

        Raises NOT_FOUND, USER_DISABLED or FEATURE_DISABLED.
        """
        state = await self._state(caller, user_id, session_id)
        vector = await self._search.embed(query)

        async def pull(after: int) -> Sequence[Change]:
            async with self._database.statement(caller) as connection:
                repository = KnowledgeRepository(connection, caller.tenant_id)
                return await repository.changes(user_id, self._search.model, after)

        async def read(chunk_ids: Sequence[str]) -> Mapping[str, Row]:
            async with self._database.statement(caller) as connection:
                repository = KnowledgeRepository(connection, caller.tenant_id)
                return await repository.shown_chunks(user_id, chunk_ids)

        space = self._search.space(caller.tenant_id, user_id, KIND)
        hits = await self._search.hits(
            space, state, Query(query, vector), top_k or DEFAULT_TOP_K, pull, read
        )
        if session_id and hits:
            await self._record(caller, user_id, session_id, query, hits)
        return hits

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
        self, caller: Caller, user_id: str, session_id: str, query: str, hits: Sequence[Hit]
    ) -> None:
        rows = [{"chunk_id": hit.row["chunk_id"], "score": hit.candidate.score} for hit in hits]
        async with self._database.statement(caller) as connection:
            await KnowledgeRepository(connection, caller.tenant_id).record(
                rows,
                session_id=session_id,
                user_id=user_id,
                query=query,
                embedding_model=self._search.model,
            )
