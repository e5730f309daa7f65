"""SQL of imports. Returns rows; never commits."""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.chat.models import token_reservations
from hub_server.database import HotStatement, any_id
from hub_server.errors import HubError
from hub_server.identity.models import user_usage, users
from hub_server.knowledge.models import documents
from hub_server.rows import Row
from hub_server.spaces import spaces
from hub_server.transfer.models import BY_NAME, KINDS, Kind
from hub_server.transfer.repository import told_columns, type_of

_ADD: Final = """
INSERT INTO {table} AS t (tenant_id, {columns})
SELECT :tenant_id ::uuid, {values}
FROM unnest({given}) WITH ORDINALITY AS x ({names}, place)
WHERE {owned}
ON CONFLICT {otherwise}
RETURNING {key}
"""
_GONE: Final = """
WITH gone AS (DELETE FROM {table} t WHERE t.tenant_id = :tenant_id ::uuid AND {owned} RETURNING 1)
SELECT count(*) FROM gone
"""
_STORED: Final = """
SELECT {told} FROM {table} t
WHERE t.tenant_id = :tenant_id ::uuid AND {owned} AND {only} AND {named}
"""
_NAMED: Final = "({columns}) IN (SELECT * FROM unnest({given}))"
# Of each session the messages it shows, its own and those it shares, must be those it counts. A
# lineage is as in chat.repository, of all sessions of a user at once.
_SESSIONS_AMISS: Final = HotStatement("""
WITH RECURSIVE lineage (root, parent_session_id, session_id, after, last) AS (
    SELECT s.session_id, s.parent_session_id, s.session_id, s.parent_seq, s.last_seq
    FROM chat_sessions s WHERE s.tenant_id = :tenant_id ::uuid AND s.user_id = :user_id ::uuid
    UNION ALL
    SELECT l.root, p.parent_session_id, p.session_id, p.parent_seq, least(l.after, l.last)
    FROM lineage l
    JOIN chat_sessions p
        ON p.tenant_id = :tenant_id ::uuid AND p.session_id = l.parent_session_id
    WHERE least(l.after, l.last) > 0
),
shown AS (
    SELECT l.root, count(*) AS messages, sum(m.token_count) AS tokens
    FROM lineage l
    JOIN chat_messages m ON m.tenant_id = :tenant_id ::uuid AND m.session_id = l.session_id
        AND m.seq > l.after AND m.seq <= l.last
    GROUP BY l.root
)
SELECT s.session_id::text AS id FROM chat_sessions s
LEFT JOIN shown ON shown.root = s.session_id
WHERE s.tenant_id = :tenant_id ::uuid AND s.user_id = :user_id ::uuid
  AND (coalesce(shown.messages, 0) <> s.last_seq
       OR coalesce(shown.tokens, 0) <> s.total_tokens_used
       OR s.parent_seq > s.last_seq
       OR EXISTS (SELECT FROM chat_messages m
                  WHERE m.tenant_id = :tenant_id ::uuid AND m.session_id = s.session_id
                    AND NOT (m.seq > s.parent_seq AND m.seq <= s.last_seq)))
LIMIT 1
""")
_DOCUMENTS_AMISS: Final = HotStatement("""
SELECT d.document_id::text AS id FROM documents d
CROSS JOIN LATERAL (
    SELECT count(*) AS chunks, coalesce(max(k.chunk_index), -1) AS last,
           count(*) FILTER (WHERE k.revision <> d.revision) AS others
    FROM chunks k WHERE k.tenant_id = d.tenant_id AND k.document_id = d.document_id) found
CROSS JOIN LATERAL (
    SELECT sha256(string_agg(f.content, '' ORDER BY f.part)) AS hash FROM document_files f
    WHERE f.tenant_id = d.tenant_id AND f.document_id = d.document_id) file
WHERE d.tenant_id = :tenant_id ::uuid AND d.user_id = :user_id ::uuid
  AND (found.chunks <> d.chunk_count OR found.last <> d.chunk_count - 1 OR found.others > 0
       OR file.hash <> d.content_hash)
LIMIT 1
""")


_MEMORIES_AMISS: Final = HotStatement("""
SELECT m.memory_id::text AS id FROM memory_store m
CROSS JOIN LATERAL (
    SELECT count(*) AS revisions, max(r.revision) AS last
    FROM memory_revisions r
    WHERE r.tenant_id = m.tenant_id AND r.memory_id = m.memory_id) found
WHERE m.tenant_id = :tenant_id ::uuid AND m.user_id = :user_id ::uuid AND m.deleted_at IS NULL
  AND (found.revisions <> m.revision OR found.last <> m.revision)
LIMIT 1
""")
_AMISS: Final = {
    "session": _SESSIONS_AMISS,
    "document": _DOCUMENTS_AMISS,
    "memory": _MEMORIES_AMISS,
}
_COUNT: Final = """(SELECT count(*) FROM {table} t WHERE t.tenant_id = :tenant_id ::uuid
    AND t.user_id = :user_id ::uuid AND {only}) AS {name}"""
_COUNTS: Final = HotStatement(
    "SELECT "
    + ", ".join(
        _COUNT.format(table=kind.table.name, only=kind.only, name=f'"{kind.name}"')
        for kind in KINDS
        if kind.names_user
    )
)


class ImportRepository:
    """A user of a tenant who comes, or who is here already."""

    def __init__(self, connection: AsyncConnection, tenant_id: str, user_id: str) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._user = {"tenant_id": tenant_id, "user_id": user_id}

    async def hold(self) -> Row | None:
        """Return a user of that id as he is, with ``import_id``, and hold him; or None.

        ``import_id`` NULL = nobody is importing him. With it comes ``now``, the time for Postgres.
        """
        columns = (users.c[name] for name in BY_NAME["user"].columns)
        now = sa.func.clock_timestamp().label("now")
        query = sa.select(*columns, users.c.import_id, now).where(
            *self._is_he(), users.c.erasure_id.is_(None)
        )
        query = query.with_for_update(key_share=True)
        return (await self._connection.execute(query)).mappings().first()

    async def add_user(self, values: Mapping[str, Any], import_id: str) -> bool:
        """Add a user whom nobody sees; tell whether neither he nor his email was here."""
        hidden = {"import_id": import_id, "deleted_at": sa.func.now()}
        statement = insert(users).values({**self._user, **values, **hidden})
        added = statement.on_conflict_do_nothing().returning(users.c.user_id)
        return (await self._connection.execute(added)).first() is not None

    async def begin_anew(self, values: Mapping[str, Any], import_id: str) -> bool:
        """Remove what an import left that did not end; tell whether his email is free.

        He is held, and nobody has ever seen any of it.
        """
        for kind in reversed(KINDS[1:]):
            await _gone(kind.name).rows(self._connection, self._user)
        changed = {**values, "import_id": import_id, "deleted_at": sa.func.now()}
        try:
            async with self._connection.begin_nested():
                statement = sa.update(users).where(*self._is_he()).values(changed)
                await self._connection.execute(statement)
        except IntegrityError:
            return False
        return True

    async def add(self, kind: Kind, rows: Sequence[Row], space_seq: int) -> set[tuple[Any, ...]]:
        """Add rows of a kind; return the keys of those that were added.

        The others are here already, or belong to what is not the user's. ``space_seq`` is what
        the first one's comes after. Raises INVALID_FIELD.
        """
        try:
            added = await _add(kind.name).rows(
                self._connection, self._user | _arrays(kind, rows) | {"space_seq": space_seq}
            )
        except (psycopg.errors.CheckViolation, psycopg.errors.DataError) as error:
            raise HubError.invalid(f"export_record.{kind.name}", "is none of the hub") from error
        return {tuple(row[name] for name in kind.key) for row in added}

    async def stored(self, kind: Kind, rows: Sequence[Row]) -> Mapping[tuple[Any, ...], Row]:
        """Return what the user has under the keys of these rows, by key."""
        keys = {f"key_{name}": [row[name] for row in rows] for name in kind.key}
        found = await _stored(kind.name).rows(self._connection, self._user | keys)
        return {tuple(row[name] for name in kind.key): row for row in found}

    async def seqs(self, kind: str, count: int) -> int:
        """Take so many seqs of a space that begins with this import; return what is before them.

        They are those of no earlier user of this id, of whom a view may still be held somewhere:
        a space begins at the number of the millisecond.
        """
        begin = sa.cast(sa.extract("epoch", sa.func.clock_timestamp()) * 1000, sa.BigInteger)
        statement = insert(spaces).values(**self._user, kind=kind, last_seq=begin + count)
        statement = statement.on_conflict_do_update(
            index_elements=["tenant_id", "user_id", "kind"],
            set_={"last_seq": spaces.c.last_seq + count},
        )
        last = (await self._connection.execute(statement.returning(spaces.c.last_seq))).scalar_one()
        return int(last) - count

    async def counts(self) -> Mapping[str, int]:
        """Return how many rows of each kind that names its user he has."""
        (row,) = await _COUNTS.rows(self._connection, self._user)
        return row

    async def amiss(self) -> tuple[str, str] | None:
        """Return a kind and the id of a row whose children are not those it counts, or None."""
        for kind, statement in _AMISS.items():
            if found := await statement.rows(self._connection, self._user):
                return kind, found[0]["id"]
        return None

    async def publish(self, values: Mapping[str, Any], waiting: Sequence[str]) -> None:
        """Let everybody see a user, and the hub process these documents."""
        held = sa.select(sa.func.coalesce(sa.func.sum(token_reservations.c.held_tokens), 0)).where(
            *(token_reservations.c[name] == value for name, value in self._user.items())
        )
        usage = (user_usage.c[name] == value for name, value in self._user.items())
        await self._connection.execute(
            sa.update(user_usage).where(*usage).values(reserved_tokens=held.scalar_subquery())
        )
        await self._connection.execute(
            sa.update(documents)
            .where(
                documents.c.tenant_id == self._user["tenant_id"],
                documents.c.document_id == any_id(waiting),
            )
            .values(deleted_at=None)
        )
        shown = {"deleted_at": values["deleted_at"], "import_id": None}
        await self._connection.execute(sa.update(users).where(*self._is_he()).values(shown))

    def _is_he(self) -> Iterator[sa.ColumnElement[bool]]:
        return (users.c[name] == value for name, value in self._user.items())


@functools.cache
def _add(name: str) -> HotStatement:
    kind = BY_NAME[name]
    lists = _of_type(kind, postgresql.ARRAY)
    given = {column: type_of(kind, column) for column in kind.columns} | dict.fromkeys(
        lists, "jsonb"
    )
    given |= {column: type_name for column, (type_name, _) in kind.computed.items()}
    values = {column: f"x.{column}" for column in kind.columns}
    # An array of arrays would come apart.
    values |= {column: f"ARRAY(SELECT jsonb_array_elements_text(x.{column}))" for column in lists}
    values["user_id"] = ":user_id ::uuid"
    if kind.placed:
        values[kind.place] = kind.placed
    if not kind.names_user:
        values["user_id"] = f"CASE WHEN {kind.placed} IS NOT NULL THEN :user_id ::uuid END"
    return HotStatement(
        _ADD.format(
            table=kind.table.name,
            columns=", ".join(values),
            values=", ".join(values.values()),
            given=", ".join(f":{column} ::{type_name}[]" for column, type_name in given.items()),
            names=", ".join(given),
            owned=_owned(kind, "x"),
            otherwise=kind.otherwise,
            key=", ".join(_key(kind)) or "1",
        )
    )


@functools.cache
def _gone(name: str) -> HotStatement:
    kind = BY_NAME[name]
    return HotStatement(_GONE.format(table=kind.table.name, owned=_owner(kind)))


@functools.cache
def _stored(name: str) -> HotStatement:
    kind = BY_NAME[name]
    given = ", ".join(f":key_{column} ::{type_of(kind, column)}[]" for column in kind.key)
    columns = ", ".join(f"t.{column}" for column in kind.key)
    return HotStatement(
        _STORED.format(
            told=", ".join(told_columns(kind)),
            table=kind.table.name,
            owned=_owner(kind),
            only=kind.only,
            named=_NAMED.format(columns=columns, given=given) if kind.key else "true",
        )
    )


def _key(kind: Kind) -> list[str]:
    is_id = {name: isinstance(kind.table.c[name].type, sa.Uuid) for name in kind.key}
    return [f"t.{name}::text" if is_id[name] else f"t.{name}" for name in kind.key]


def _owner(kind: Kind) -> str:
    """Return SQL that a row ``t`` is the user's."""
    return "t.user_id = :user_id ::uuid" if kind.names_user else _owned(kind, "t")


def _owned(kind: Kind, row: str) -> str:
    """Return SQL that what a row names is the user's."""
    conditions = ["true"]
    for column, parent in kind.belongs.items():
        table, key = BY_NAME[parent].table.name, BY_NAME[parent].key[0]
        conditions.append(
            f"({row}.{column} IS NULL OR EXISTS (SELECT FROM {table} p"
            f" WHERE p.tenant_id = :tenant_id ::uuid AND p.{key} = {row}.{column}"
            f" AND p.user_id = :user_id ::uuid))"
        )
    return " AND ".join(conditions)


def _arrays(kind: Kind, rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return rows as columns; JSON as texts."""
    columns = {name: [row[name] for row in rows] for name in (*kind.columns, *kind.computed)}
    for name in (*_of_type(kind, postgresql.JSONB), *_of_type(kind, postgresql.ARRAY)):
        columns[name] = [None if value is None else json.dumps(value) for value in columns[name]]
    return columns


def _of_type(kind: Kind, column_type: type) -> list[str]:
    return [name for name in kind.columns if isinstance(kind.table.c[name].type, column_type)]
