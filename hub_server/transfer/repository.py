"""SQL of exports and imports. Returns rows; never commits."""

import datetime as dt
import functools
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.database import HotStatement
from hub_server.identity.models import users
from hub_server.rows import Row
from hub_server.spaces import spaces
from hub_server.transfer.models import BY_NAME, Kind

# What is read at a time, in rows and in bytes of their texts; one row more may be read.
_MOST_ROWS: Final = 200
_MOST_BYTES: Final = 4 << 20

# Of the rows that come next, as many as the bytes allow; what they do not is not even sent.
_SIZED: Final = """
SELECT {told}
FROM (SELECT found.*, sum(found.size) OVER (ORDER BY {order}) - found.size AS before
      FROM ({found}) found) t
WHERE t.before < {most_bytes}
ORDER BY {order}
"""
_ROWS: Final = """
SELECT t.*, {size} AS size FROM {table} t
WHERE t.tenant_id = :tenant_id ::uuid AND t.user_id = :user_id ::uuid
  AND {made_at} <= :until ::timestamptz AND {only} {after}
ORDER BY {order} LIMIT {most_rows}
"""
_CHILDREN: Final = """
SELECT t.*, {size} AS size, p.place
FROM unnest(:parents ::uuid[], :alike ::bigint[], :after ::bigint[], :last ::bigint[])
    WITH ORDINALITY AS p (id, alike, after, last, place)
CROSS JOIN LATERAL (
    SELECT * FROM {table} t
    WHERE t.tenant_id = :tenant_id ::uuid AND t.{parent} = p.id AND t.{number} > p.after
      AND t.{number} <= p.last {alike}
    ORDER BY t.{number} LIMIT {most_rows}) t
ORDER BY p.place, t.{number} LIMIT {most_rows}
"""


class TransferRepository:
    """Rows of one user of a tenant, of all kinds."""

    def __init__(self, connection: AsyncConnection, tenant_id: str, user_id: str) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._user = {"tenant_id": tenant_id, "user_id": user_id}

    async def state(self) -> Row | None:
        """Return ``now``, the time for Postgres, and ``models``: by what each kind is searched.

        None = there is no such user. A kind without a model is not told.
        """
        own = (spaces.c[name] == value for name, value in self._user.items())
        named = sa.func.jsonb_object_agg(spaces.c.kind, spaces.c.embedding_model)
        models = sa.select(sa.func.coalesce(named, sa.text("'{}'"))).where(
            *own, spaces.c.embedding_model.is_not(None)
        )
        now = sa.func.clock_timestamp().label("now")
        query = sa.select(now, models.scalar_subquery().label("models")).where(
            *(users.c[name] == value for name, value in self._user.items()),
            users.c.erasure_id.is_(None),
            users.c.import_id.is_(None),
        )
        return (await self._connection.execute(query)).mappings().first()

    async def rows(
        self, kind: Kind, until: dt.datetime, after: Sequence[Any] | None
    ) -> Sequence[Row]:
        """Return the next rows of a kind that were there at a time, after one; None = the first."""
        given = {f"after_{place}": value for place, value in enumerate(after or ())}
        statement = _rows(kind.name, is_first=after is None)
        return await statement.rows(self._connection, self._user | {"until": until, **given})

    async def children(self, kind: Kind, parents: Sequence[Row], after: int) -> Sequence[Row]:
        """Return the next children of rows of a kind, one parent's after the other's.

        ``after`` is the number of the last one read of the first parent.
        """
        assert kind.children is not None  # noqa: S101 - nobody asks otherwise
        given = {
            "parents": [parent[kind.key[0]] for parent in parents],
            "alike": [parent.get(kind.children.alike, 0) for parent in parents],
            "after": [after, *([-1] * (len(parents) - 1))],
            "last": [kind.children.last(parent) for parent in parents],
        }
        return await _children(kind.name).rows(self._connection, self._user | given)


@functools.cache
def _rows(name: str, *, is_first: bool) -> HotStatement:
    kind = BY_NAME[name]
    order = kind.order or kind.key
    given = (f":after_{at} ::{type_of(kind, column)}" for at, column in enumerate(order))
    after = "" if is_first else f"AND ({_named(order)}) > ({', '.join(given)})"
    found = _ROWS.format(
        size=_size(kind),
        table=kind.table.name,
        made_at=kind.made_at,
        only=kind.only,
        after=after,
        order=_named(order),
        most_rows=_MOST_ROWS,
    )
    return _sized(kind, found, _named(order))


@functools.cache
def _children(name: str) -> HotStatement:
    parent = BY_NAME[name]
    assert parent.children is not None  # noqa: S101 - nobody asks otherwise
    kind, number = BY_NAME[parent.children.kind], parent.children.number
    found = _CHILDREN.format(
        size=_size(kind),
        table=kind.table.name,
        parent=parent.key[0],
        alike=f"AND t.{parent.children.alike} = p.alike" if parent.children.alike else "",
        number=number,
        most_rows=_MOST_ROWS,
    )
    return _sized(kind, found, f"place, {number}")


def _sized(kind: Kind, found: str, order: str) -> HotStatement:
    told = ", ".join(told_columns(kind))
    return HotStatement(_SIZED.format(told=told, found=found, order=order, most_bytes=_MOST_BYTES))


def told_columns(kind: Kind) -> list[str]:
    """Return the columns of a row ``t`` as a record tells them: ids as texts."""
    is_id = {name: isinstance(kind.table.c[name].type, sa.Uuid) for name in kind.columns}
    own = [f"t.{name}::text" if is_id[name] else f"t.{name}" for name in kind.columns]
    made = {**kind.instead, **{name: sql for name, (_, sql) in kind.computed.items()}}
    kept = [sql for name, sql in zip(kind.columns, own, strict=True) if name not in made]
    return kept + [f"{sql} AS {name}" for name, sql in made.items()]


def _named(columns: Sequence[str]) -> str:
    return ", ".join(columns)


def _size(kind: Kind) -> str:
    """Return SQL for the bytes of what is long in a row."""
    sizes = {sa.Text: "octet_length(t.{})", sa.LargeBinary: "octet_length(t.{})"}
    sizes[postgresql.JSONB] = "octet_length(t.{}::text)"
    long = (column for column in kind.table.c if type(column.type) in sizes)
    return " + ".join(["0", *(f"coalesce({sizes[type(c.type)].format(c.name)}, 0)" for c in long)])


def type_of(kind: Kind, column: str) -> str:
    """Return what Postgres calls the type of a column."""
    return kind.table.c[column].type.compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]
