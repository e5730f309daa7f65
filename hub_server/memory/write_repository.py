"""SQL that changes memory: every change of a memory adds a revision. Never commits.

Whoever changes a memory holds its user's space (``spaces.next_seq``) before reading what the change
depends on.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.chat.served import SERVED
from hub_server.database import any_id
from hub_server.memory.models import memory_revisions, memory_store
from hub_server.memory.repository import MEMORY, VECTORS
from hub_server.rows import Row

_KNOWN: Final = (
    *MEMORY,
    memory_store.c.content_hash,
    *VECTORS,
)
_NO_SECOND: Final = {"next_embedding": None, "next_model": None}
_STATE: Final = tuple(
    column.name
    for column in memory_revisions.c
    if column.name in memory_store.c
    and column.name not in ("created_at", "updated_at", "session_id", "message_id")
    and not column.name.startswith("embedding")
)
_DUE: Final = sa.text("SELECT tenant_id, user_id, memory_id FROM hub_due_memories(:most)").columns(
    **dict.fromkeys(("tenant_id", "user_id", "memory_id"), sa.Uuid(as_uuid=False))
)


async def due_memories(connection: AsyncConnection, most: int) -> Sequence[Row]:
    """Return memories of all tenants whose grace after their expiry is over, at most so many."""
    return (await connection.execute(_DUE, {"most": most})).mappings().all()


class MemoryWrites:
    """The memories of one user of a tenant, as they change."""

    def __init__(
        self, connection: AsyncConnection, tenant_id: str, user_id: str, now: dt.datetime
    ) -> None:
        """Work within the transaction of ``connection``; ``now`` is when all of it happens."""
        self._connection = connection
        self._own = {"tenant_id": tenant_id, "user_id": user_id}
        self._now = now

    async def known(
        self,
        *,
        hashes: Sequence[bytes],
        keys: Sequence[str],
        near: Sequence[str],
        after: int,
        message_ids: Sequence[str],
    ) -> Sequence[Row]:
        """Return what a decision may need: memories with one of these hashes, keys or ids.

        And all that changed after a seq. ``proofs`` of each are those of the given messages that
        said it before.
        """
        proofs = sa.select(sa.cast(memory_revisions.c.message_id, sa.Text)).where(
            memory_revisions.c.tenant_id == memory_store.c.tenant_id,
            memory_revisions.c.memory_id == memory_store.c.memory_id,
            memory_revisions.c.message_id == any_id(message_ids),
        )
        query = sa.select(
            *_KNOWN, sa.func.array(proofs.scalar_subquery(), type_=ARRAY(sa.Text)).label("proofs")
        ).where(
            *self._is_own(),
            sa.or_(
                memory_store.c.content_hash.in_(hashes),
                (memory_store.c.memory_key != "") & memory_store.c.memory_key.in_(keys),
                memory_store.c.memory_id == any_id(near),
                memory_store.c.space_seq > after,
            ),
        )
        return (await self._connection.execute(query)).mappings().all()

    async def memory(self, memory_id: str) -> Row | None:
        """Return one of the user's memories that is not deleted, or None."""
        query = sa.select(*_KNOWN).where(*self._is_own(), memory_store.c.memory_id == memory_id)
        return (await self._connection.execute(query)).mappings().first()

    async def active_of(self, memory_type: str, memory_key: str) -> Row | None:
        """Return the active memory of a type and key, expired or not; None = there is none."""
        query = sa.select(*_KNOWN).where(
            *self._is_own(),
            memory_store.c.memory_type == memory_type,
            memory_store.c.memory_key == memory_key,
            memory_store.c.memory_key != "",
            memory_store.c.status == "active",
        )
        return (await self._connection.execute(query)).mappings().first()

    async def add(self, event: str, seq: int, **values: Any) -> Row:
        """Add a memory with its first revision."""
        added = (
            sa.insert(memory_store)
            .values(
                **self._own,
                **values,
                space_seq=seq,
                created_at=self._now,
                updated_at=self._now,
            )
            .returning(memory_store)
            .cte("changed")
        )
        said = (values["session_id"], values["message_id"])
        return await self._noted(added, event, said, with_vector=True)

    async def change(
        self,
        memory_id: str,
        event: str,
        seq: int,
        values: Mapping[str, Any],
        said: tuple[str | None, str | None] = (None, None),
    ) -> Row:
        """Change a memory and add a revision; ``said`` are session and message that caused it."""
        with_vector = "embedding" in values
        changed = (
            sa.update(memory_store)
            .where(*self._is_own(), memory_store.c.memory_id == memory_id)
            .values(
                **values,
                **(_NO_SECOND if with_vector else {}),
                space_seq=seq,
                revision=memory_store.c.revision + 1,
                updated_at=self._now,
            )
            .returning(memory_store)
            .cte("changed")
        )
        return await self._noted(changed, event, said, with_vector=with_vector)

    async def delete(self, memory_id: str, seq: int) -> None:
        """Remove all that a memory ever said; views are told by what is left, a bare id."""
        revisions = sa.delete(memory_revisions).where(
            memory_revisions.c.tenant_id == self._own["tenant_id"],
            memory_revisions.c.memory_id == memory_id,
        )
        nothing = {"memory_key": "", "memory_content": "", "content_hash": b"", "embedding": b""}
        emptied = (
            sa.update(memory_store)
            .where(*self._is_own(), memory_store.c.memory_id == memory_id)
            .values(
                **nothing, **_NO_SECOND, deleted_at=self._now, space_seq=seq, updated_at=self._now
            )
        )
        await self._connection.execute(revisions)
        await self._connection.execute(emptied)

    async def touch(self, memory_ids: Sequence[str]) -> None:
        """Note that memories were recalled; those that others change right now are left out."""
        free = (
            sa.select(memory_store.c.memory_id)
            .where(*self._is_own(), memory_store.c.memory_id == any_id(memory_ids))
            .with_for_update(skip_locked=True)
        )
        ids = sa.func.array(free.scalar_subquery())
        await self._connection.execute(
            sa.update(memory_store)
            .where(*self._is_own(), memory_store.c.memory_id == sa.func.any(ids))
            .values(last_recalled_at=self._now)
        )

    async def count_since(self, since: dt.datetime) -> int:
        """Return how many changes of the user's memories were recorded after a time."""
        query = sa.select(sa.func.count()).where(
            memory_revisions.c.tenant_id == self._own["tenant_id"],
            memory_revisions.c.user_id == self._own["user_id"],
            memory_revisions.c.recorded_at > since,
            memory_revisions.c.event.in_(("created", "proposed", "reinforced")),
        )
        return int((await self._connection.execute(query)).scalar_one())

    async def served(self, session_id: str, message_id: str | None) -> Row:
        """Return ``has_session``, whether it is the user's, and ``has_message``, whether it has it.

        A fork has the messages that it shares, too. No message counts as one that is there.
        """
        asked = {**self._own, "session_id": session_id, "message_id": message_id}
        return (await SERVED.rows(self._connection, asked))[0]

    async def _noted(
        self,
        changed: sa.CTE,
        event: str,
        said: tuple[str | None, str | None],
        *,
        with_vector: bool,
    ) -> Row:
        """Run a change of one memory and note it as a revision; return the memory."""
        columns: dict[str, Any] = {name: changed.c[name] for name in _STATE}
        columns["tenant_id"] = changed.c.tenant_id
        columns["event"] = sa.literal(event)
        columns["recorded_at"] = changed.c.updated_at
        for name, value in zip(("session_id", "message_id"), said, strict=True):
            columns[name] = sa.literal(value, memory_revisions.c[name].type)
        if with_vector:
            columns |= {name: changed.c[name] for name in ("embedding", "embedding_model")}
        noted = (
            sa.insert(memory_revisions)
            .from_select(list(columns), sa.select(*columns.values()))
            .returning(memory_revisions.c.revision)
            .cte("noted")
        )
        query = sa.select(*(changed.c[column.name] for column in _KNOWN)).add_cte(noted)
        return (await self._connection.execute(query)).mappings().one()

    def _is_own(self) -> tuple[sa.ColumnElement[bool], ...]:
        own = (memory_store.c[name] == value for name, value in self._own.items())
        return (*own, memory_store.c.deleted_at.is_(None))
