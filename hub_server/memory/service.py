"""Rules of memory. Opens the transactions; knows no gRPC."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final

from hub_server import spaces
from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.errors import HubError
from hub_server.idempotency import Claims, Retry
from hub_server.memory.repository import MemoryRepository
from hub_server.paging import Page, split
from hub_server.retrieval.view import Change
from hub_server.rows import Row, active_user, owned
from hub_server.search import DEFAULT_TOP_K, Hit, Pull, Query, Search, Source

KIND: Final = "memory"


class MemoryService:
    """What is remembered of users."""

    def __init__(self, database: Database, search: Search) -> None:
        """Keep everything in the given database and find it by the given search."""
        self._database = database
        self._search = search

    async def remember(
        self, caller: Caller, retry: Retry, user_id: str, values: Mapping[str, Any]
    ) -> Row:
        """Store a memory. Raises INVALID_FIELD, NOT_FOUND, USER_DISABLED or REQUEST_ID_REUSED."""
        vector = await self._search.embed(values["memory_content"])
        async with self._database.transaction(caller) as connection:
            active_user(await spaces.state(connection, caller.tenant_id, user_id, KIND))
            claims = Claims(connection, caller.tenant_id, user_id)
            if (answer := await claims.claim(retry)) is not None:
                return answer
            # Only now: a retry whose time to expire has passed meanwhile is still a retry.
            _check_expiry(values["expires_at"])
            memory = await MemoryRepository(connection, caller.tenant_id).add(
                user_id=user_id,
                embedding=vector.astype("<f4").tobytes(),
                embedding_model=self._search.model,
                space_seq=await spaces.next_seq(connection, caller.tenant_id, user_id, KIND),
                **values,
            )
            await claims.keep(retry, memory)
            return memory

    async def get_memory(self, caller: Caller, memory_id: str) -> Row:
        """Return a memory. Raises NOT_FOUND or USER_DISABLED."""
        async with self._database.statement(caller) as connection:
            memory = await MemoryRepository(connection, caller.tenant_id).memory(memory_id)
        return owned(caller, memory, "memory")

    async def list_memories(
        self, caller: Caller, user_id: str, page: Page
    ) -> tuple[Sequence[Row], str | None]:
        """Return a page of memories and the key of the next. Raises NOT_FOUND or USER_DISABLED."""
        async with self._database.statement(caller) as connection:
            repository = MemoryRepository(connection, caller.tenant_id)
            rows = await repository.list_memories(user_id, page)
        active_user(rows[0] if rows else None)
        memories = [row for row in rows if row["memory_id"] is not None]
        return split(memories, page.size, lambda row: str(row["memory_id"]))

    async def recall(self, caller: Caller, user_id: str, query: str, top_k: int) -> Sequence[Hit]:
        """Return the memories that fit a query, best first. Raises NOT_FOUND or USER_DISABLED."""
        state = await self._state(caller, user_id)
        vector = await self._search.embed(query)

        async def read(memory_ids: Sequence[str]) -> Mapping[str, Row]:
            async with self._database.statement(caller) as connection:
                repository = MemoryRepository(connection, caller.tenant_id)
                return await repository.living(user_id, memory_ids)

        space = self._search.space(caller.tenant_id, user_id, KIND)
        pull = self._pull(caller, user_id)
        return await self._search.hits(
            space, state, Query(query, vector), top_k or DEFAULT_TOP_K, pull, read
        )

    async def source(self, caller: Caller, user_id: str) -> Source:
        """Return what a view of a user's memories is made of. Raises NOT_FOUND or USER_DISABLED."""
        state = await self._state(caller, user_id)
        space = self._search.space(caller.tenant_id, user_id, KIND)
        return Source(space, state, self._pull(caller, user_id))

    def _pull(self, caller: Caller, user_id: str) -> Pull:
        async def pull(after: int) -> Sequence[Change]:
            async with self._database.statement(caller) as connection:
                repository = MemoryRepository(connection, caller.tenant_id)
                return await repository.changes(user_id, self._search.model, after)

        return pull

    async def _state(self, caller: Caller, user_id: str) -> Row:
        async with self._database.statement(caller) as connection:
            return active_user(await spaces.state(connection, caller.tenant_id, user_id, KIND))


def _check_expiry(expires_at: dt.datetime | None) -> None:
    if expires_at is not None and expires_at <= dt.datetime.now(dt.UTC):
        raise HubError.invalid("expires_at", "must lie in the future")
