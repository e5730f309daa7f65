"""SQL of memory. Returns rows; never commits."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.database import any_id
from hub_server.identity.models import users
from hub_server.ids import new_id
from hub_server.memory.models import memory_store
from hub_server.paging import Page
from hub_server.retrieval.view import Change, IndexedRow
from hub_server.rows import Row

_MEMORY: Final = (
    memory_store.c.memory_id,
    memory_store.c.user_id,
    memory_store.c.memory_type,
    memory_store.c.memory_content,
    memory_store.c.confidence_score,
    memory_store.c.is_active,
    memory_store.c.expires_at,
    memory_store.c.source,
    memory_store.c.created_at,
    memory_store.c.updated_at,
)
_MOST_CHANGES: Final = 1000


class MemoryRepository:
    """Memories of one tenant."""

    def __init__(self, connection: AsyncConnection, tenant_id: str) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._tenant_id = tenant_id

    async def add(self, **values: Any) -> Row:
        """Add a memory."""
        statement = (
            sa.insert(memory_store)
            .values(tenant_id=self._tenant_id, memory_id=new_id(), **values)
            .returning(*_MEMORY)
        )
        return (await self._connection.execute(statement)).mappings().one()

    async def memory(self, memory_id: str) -> Row | None:
        """Return a memory with ``user_is_active``, or None."""
        query = (
            sa.select(*_MEMORY, users.c.is_active.label("user_is_active"))
            .join(users, _owner())
            .where(
                memory_store.c.tenant_id == self._tenant_id,
                memory_store.c.memory_id == memory_id,
                memory_store.c.deleted_at.is_(None),
                users.c.deleted_at.is_(None),
            )
        )
        return (await self._connection.execute(query)).mappings().first()

    async def list_memories(self, user_id: str, page: Page) -> Sequence[Row]:
        """Return a page of a user's living memories and one more, newest first.

        One row with no memory_id stands for a user without memories; no row, for no user.
        """
        found = sa.select(*_MEMORY).where(
            memory_store.c.user_id == users.c.user_id, *self._living()
        )
        if page.after:
            found = found.where(memory_store.c.memory_id < page.after)
        found = found.order_by(memory_store.c.memory_id.desc()).limit(page.size + 1)
        rows = found.lateral("page")
        query = (
            sa.select(users.c.is_active.label("user_is_active"), rows)
            .select_from(users.outerjoin(rows, sa.true()))
            .where(
                users.c.tenant_id == self._tenant_id,
                users.c.user_id == user_id,
                users.c.deleted_at.is_(None),
            )
            .order_by(rows.c.memory_id.desc())
        )
        return (await self._connection.execute(query)).mappings().all()

    async def living(self, user_id: str, memory_ids: Sequence[str]) -> Mapping[str, Row]:
        """Return those of a user's memories that may be recalled now, by id."""
        query = sa.select(*_MEMORY).where(
            memory_store.c.user_id == user_id,
            memory_store.c.memory_id == any_id(memory_ids),
            *self._living(),
        )
        rows = (await self._connection.execute(query)).mappings().all()
        return {row["memory_id"]: row for row in rows}

    async def changes(self, user_id: str, model: str, after: int) -> Sequence[Change]:
        """Return the next changes of a user's memory space after a seq, in order."""
        is_shown = memory_store.c.is_active & memory_store.c.deleted_at.is_(None)
        query = (
            sa.select(
                memory_store.c.memory_id,
                memory_store.c.space_seq,
                memory_store.c.memory_content,
                memory_store.c.embedding,
                memory_store.c.embedding_model,
                is_shown.label("is_shown"),
            )
            .where(
                memory_store.c.tenant_id == self._tenant_id,
                memory_store.c.user_id == user_id,
                memory_store.c.space_seq > after,
            )
            .order_by(memory_store.c.space_seq)
            .limit(_MOST_CHANGES)
        )
        rows = (await self._connection.execute(query)).mappings().all()
        return [_change(row, model) for row in rows]

    def _living(self) -> tuple[sa.ColumnElement[bool], ...]:
        expires_at = memory_store.c.expires_at
        return (
            memory_store.c.tenant_id == self._tenant_id,
            memory_store.c.is_active,
            memory_store.c.deleted_at.is_(None),
            expires_at.is_(None) | (expires_at > sa.func.clock_timestamp()),
        )


def _owner() -> sa.ColumnElement[bool]:
    return sa.and_(
        users.c.tenant_id == memory_store.c.tenant_id, users.c.user_id == memory_store.c.user_id
    )


def _change(row: Row, model: str) -> Change:
    """Return a memory as its view takes it; a vector of another model is left out."""
    vector = bytes(row["embedding"]) if row["embedding_model"] == model else b""
    indexed = IndexedRow(row["memory_id"], row["memory_content"], vector)
    return Change(row["memory_id"], row["space_seq"], (indexed,) if row["is_shown"] else ())
