"""SQL that reads memory. Returns rows."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.database import any_id
from hub_server.identity.models import users
from hub_server.memory.models import memory_revisions, memory_store
from hub_server.memory.wanted import Wanted
from hub_server.paging import Page
from hub_server.retrieval.view import Change, IndexedRow
from hub_server.rows import Row
from hub_server.spaces import spaces

_SHARED: Final = (
    "memory_type",
    "memory_key",
    "memory_content",
    "confidence_score",
    "status",
    "expires_at",
    "source",
    "superseded_by",
    "reinforcement_count",
    "reinforced_at",
)
MEMORY: Final = (
    memory_store.c.memory_id,
    memory_store.c.user_id,
    *(memory_store.c[name] for name in _SHARED),
    memory_store.c.session_id,
    memory_store.c.message_id,
    memory_store.c.revision,
    memory_store.c.created_at,
    memory_store.c.updated_at,
)
# The same columns, of what a memory was after one change.
_REVISION: Final = (
    memory_revisions.c.memory_id,
    memory_revisions.c.user_id,
    *(memory_revisions.c[name] for name in _SHARED),
    memory_store.c.session_id,
    memory_store.c.message_id,
    memory_revisions.c.revision,
    memory_store.c.created_at,
    memory_revisions.c.recorded_at.label("updated_at"),
)
# Those of two models while its space moves, and for a while after.
VECTORS: Final = tuple(
    memory_store.c[name]
    for name in ("embedding", "embedding_model", "next_embedding", "next_model")
)
_MOST_CHANGES: Final = 1000


class MemoryRepository:
    """The memories of one tenant, as they are read."""

    def __init__(self, connection: AsyncConnection, tenant_id: str) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._tenant_id = tenant_id

    async def memory(self, memory_id: str) -> Row | None:
        """Return a memory with ``user_is_active``, or None."""
        query = (
            sa.select(*MEMORY, users.c.is_active.label("user_is_active"))
            .join(users, _owner(memory_store))
            .where(
                memory_store.c.tenant_id == self._tenant_id,
                memory_store.c.memory_id == memory_id,
                memory_store.c.deleted_at.is_(None),
                users.c.deleted_at.is_(None),
            )
        )
        return (await self._connection.execute(query)).mappings().first()

    async def list_memories(
        self, user_id: str, page: Page, wanted: Wanted, now: dt.datetime, as_of: dt.datetime | None
    ) -> Sequence[Row]:
        """Return a page of a user's memories and one more, newest first.

        One row with no memory_id stands for a user without memories; no row, for no user.
        """
        table: sa.FromClause = memory_store
        columns: Sequence[Any] = MEMORY
        if as_of is not None:
            table = self._states(user_id, as_of)
            columns = [table.c[column.name] for column in MEMORY]
        found = sa.select(*columns).where(
            table.c.user_id == users.c.user_id, *_conditions(wanted, table, as_of or now)
        )
        if as_of is None:
            found = found.where(
                memory_store.c.tenant_id == self._tenant_id, memory_store.c.deleted_at.is_(None)
            )
        if page.after:
            found = found.where(table.c.memory_id < page.after)
        found = found.order_by(table.c.memory_id.desc()).limit(page.size + 1)
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

    async def living(
        self, user_id: str, memory_ids: Sequence[str], now: dt.datetime
    ) -> tuple[Mapping[str, Row], int]:
        """Return those of a user's memories that may be recalled now, by id.

        With them comes the last seq of the user's space at the same moment.
        """
        own = {"tenant_id": self._tenant_id, "user_id": user_id}
        found = sa.select(*MEMORY, memory_store.c.last_recalled_at).where(
            *(memory_store.c[name] == value for name, value in own.items()),
            memory_store.c.memory_id == any_id(memory_ids),
            memory_store.c.deleted_at.is_(None),
            *is_recalled(memory_store, now),
        )
        living = found.subquery()
        query = (
            sa.select(spaces.c.last_seq, living)
            .select_from(spaces.outerjoin(living, sa.true()))
            .where(*(spaces.c[name] == value for name, value in own.items()))
            .where(spaces.c.kind == "memory")
        )
        rows = (await self._connection.execute(query)).mappings().all()
        by_id = {row["memory_id"]: row for row in rows if row["memory_id"] is not None}
        return by_id, max((row["last_seq"] for row in rows), default=0)

    async def states_at(self, user_id: str, as_of: dt.datetime) -> Sequence[Row]:
        """Return a user's memories that were recalled at a time, as they were, with vectors."""
        states = self._states(user_id, as_of)
        query = sa.select(states).where(*is_recalled(states, as_of))
        return (await self._connection.execute(query)).mappings().all()

    async def history(self, memory_id: str, most: int) -> Sequence[Row]:
        """Return the latest changes of a memory and of its chain, latest first.

        Each row bears ``user_is_active``, ``event`` and ``recorded_at``. No row = no memory.
        """
        chain = self._chain(memory_id)
        query = (
            sa.select(
                *_REVISION,
                memory_revisions.c.event,
                memory_revisions.c.recorded_at,
                memory_revisions.c.space_seq,
                users.c.is_active.label("user_is_active"),
            )
            .select_from(
                memory_revisions.join(memory_store, _same_memory()).join(
                    users, _owner(memory_store)
                )
            )
            .where(
                memory_revisions.c.tenant_id == self._tenant_id,
                memory_revisions.c.memory_id.in_(sa.select(chain.c.memory_id)),
                memory_store.c.deleted_at.is_(None),
                users.c.deleted_at.is_(None),
            )
            .order_by(memory_revisions.c.space_seq.desc())
            .limit(most)
        )
        return (await self._connection.execute(query)).mappings().all()

    async def at_revisions(self, pairs: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], Row]:
        """Return memories as they were after some of their changes; deleted ones as they are."""
        ids = [memory_id for memory_id, _ in pairs]
        were = (
            sa.select(*_REVISION)
            .join(memory_store, _same_memory())
            .where(
                memory_revisions.c.tenant_id == self._tenant_id,
                memory_revisions.c.memory_id == any_id(ids),
                memory_revisions.c.revision.in_({revision for _, revision in pairs}),
            )
        )
        gone = sa.select(*MEMORY).where(
            memory_store.c.tenant_id == self._tenant_id,
            memory_store.c.memory_id == any_id(ids),
            memory_store.c.deleted_at.is_not(None),
        )
        rows = (await self._connection.execute(sa.union_all(were, gone))).mappings().all()
        by_pair = {(row["memory_id"], row["revision"]): row for row in rows}
        by_id = {row["memory_id"]: row for row in rows}
        return {pair: by_pair.get(pair) or by_id[pair[0]] for pair in pairs}

    async def changes(self, user_id: str, model: str, after: int) -> Sequence[Change]:
        """Return the next changes of a user's memory space after a seq, in order."""
        is_shown = memory_store.c.is_active & memory_store.c.deleted_at.is_(None)
        query = (
            sa.select(
                memory_store.c.memory_id,
                memory_store.c.space_seq,
                memory_store.c.memory_content,
                *VECTORS,
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

    async def to_report(self, user_id: str, most: int, now: dt.datetime) -> Sequence[Row]:
        """Return a user's newest recalled memories and all proposals that last, with vectors."""
        kept = (
            *MEMORY,
            memory_store.c.content_hash,
            *VECTORS,
            memory_store.c.last_recalled_at,
        )
        own = (
            memory_store.c.tenant_id == self._tenant_id,
            memory_store.c.user_id == user_id,
            memory_store.c.deleted_at.is_(None),
        )
        recalled = (
            sa.select(*kept)
            .where(*own, *is_recalled(memory_store, now))
            .order_by(memory_store.c.memory_id.desc())
            .limit(most)
            .subquery()
        )
        proposed = sa.select(*kept).where(
            *own, memory_store.c.status == "proposed", _lasts(memory_store, now)
        )
        query = sa.union_all(sa.select(recalled), proposed)
        return (await self._connection.execute(query)).mappings().all()

    def _states(self, user_id: str, as_of: dt.datetime) -> sa.Subquery:
        """Return a user's memories as they were at a time, whatever their status.

        Those that say the same now have the vectors of now: only these move to other models.
        """
        is_said = memory_revisions.c.memory_content == memory_store.c.memory_content
        own = (memory_revisions.c.embedding, memory_revisions.c.embedding_model)
        then = (*map(self._vector, own), sa.null(), sa.null())
        latest = (
            sa.select(
                *_REVISION,
                memory_revisions.c.space_seq,
                *(
                    sa.case((is_said, now), else_=was).label(now.name)
                    for now, was in zip(VECTORS, then, strict=True)
                ),
            )
            .join(memory_store, _same_memory())
            .where(
                memory_revisions.c.tenant_id == self._tenant_id,
                # In here, or Postgres looks at all users' before it leaves out the others'.
                memory_revisions.c.user_id == user_id,
                memory_revisions.c.recorded_at <= as_of,
                memory_store.c.deleted_at.is_(None),
            )
            .ext(distinct_on(memory_revisions.c.memory_id))
            .order_by(memory_revisions.c.memory_id, memory_revisions.c.revision.desc())
        )
        return latest.subquery("states")

    def _vector(self, column: sa.ColumnElement[Any]) -> sa.ScalarSelect[Any]:
        """Return what a revision has in a column, or the last one before it that has anything."""
        earlier = memory_revisions.alias("earlier")
        return (
            sa.select(earlier.c[column.name])
            .where(
                earlier.c.tenant_id == memory_revisions.c.tenant_id,
                earlier.c.memory_id == memory_revisions.c.memory_id,
                earlier.c.revision <= memory_revisions.c.revision,
                earlier.c.embedding.is_not(None),
            )
            .order_by(earlier.c.revision.desc())
            .limit(1)
            .scalar_subquery()
        )

    def _chain(self, memory_id: str) -> sa.CTE:
        """Return a memory and all that are linked with it by supersession, either way."""
        link = sa.select(
            memory_store.c.user_id, memory_store.c.memory_id, memory_store.c.superseded_by
        )
        start = link.where(
            memory_store.c.tenant_id == self._tenant_id,
            memory_store.c.memory_id == memory_id,
            memory_store.c.deleted_at.is_(None),
        )
        chain = start.cte("chain", recursive=True)
        linked = link.where(
            memory_store.c.tenant_id == self._tenant_id,
            memory_store.c.user_id == chain.c.user_id,  # an import may name any id
            (memory_store.c.superseded_by == chain.c.memory_id)
            | (memory_store.c.memory_id == chain.c.superseded_by),
        )
        return chain.union(linked)


def is_recalled(table: sa.FromClause, now: dt.datetime) -> tuple[sa.ColumnElement[bool], ...]:
    """Match what may be recalled at a time: active, and not expired."""
    return (table.c.status == "active", _lasts(table, now))


def _lasts(table: sa.FromClause, now: dt.datetime) -> sa.ColumnElement[bool]:
    ends = table.c.expires_at
    return ends.is_(None) | (ends > now)


def _conditions(
    wanted: Wanted, table: sa.FromClause, now: dt.datetime
) -> list[sa.ColumnElement[bool]]:
    """Return what rows with the columns of a memory must meet at a time."""
    lists = (("memory_type", wanted.types), ("source", wanted.sources))
    found: list[sa.ColumnElement[bool]] = []
    found += [table.c[name].in_(values) for name, values in lists if values]
    if wanted.memory_key:
        found.append(table.c.memory_key == wanted.memory_key)
    if wanted.statuses:
        return [*found, table.c.status.in_(wanted.statuses)]
    return [*found, *is_recalled(table, now)]


def by_model(row: Row, model: str) -> Row:
    """Return a memory as if its second vector, if that is of the model, were the only one."""
    if row["next_model"] != model:
        return row
    return {**row, "embedding": row["next_embedding"], "embedding_model": model}


def indexed(row: Row, model: str) -> IndexedRow:
    """Return a memory as its view takes it; a vector of another model is left out."""
    row = by_model(row, model)
    vector = bytes(row["embedding"]) if row["embedding_model"] == model else b""
    return IndexedRow(row["memory_id"], row["memory_content"], vector)


def _change(row: Row, model: str) -> Change:
    rows = (indexed(row, model),) if row["is_shown"] else ()
    return Change(row["memory_id"], row["space_seq"], rows)


def _owner(table: sa.FromClause) -> sa.ColumnElement[bool]:
    return (users.c.tenant_id == table.c.tenant_id) & (users.c.user_id == table.c.user_id)


def _same_memory() -> sa.ColumnElement[bool]:
    return (memory_store.c.tenant_id == memory_revisions.c.tenant_id) & (
        memory_store.c.memory_id == memory_revisions.c.memory_id
    )
