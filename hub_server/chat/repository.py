"""SQL of chat. Returns rows; never commits."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.chat.models import chat_sessions
from hub_server.chat.spans import LAST, Span
from hub_server.database import HotStatement
from hub_server.identity.models import user_configs, users
from hub_server.ids import new_id
from hub_server.paging import PAGE_BYTES, Page
from hub_server.rows import Row
from hub_server.wakeups import CHANNEL

_SESSION: Final = (
    chat_sessions.c.session_id,
    chat_sessions.c.user_id,
    chat_sessions.c.session_title,
    chat_sessions.c.model_name,
    chat_sessions.c.is_active,
    chat_sessions.c.is_archived,
    chat_sessions.c.ended_at,
    chat_sessions.c.last_message_at,
    chat_sessions.c.last_seq,
    chat_sessions.c.total_tokens_used,
    chat_sessions.c.metadata,
    chat_sessions.c.parent_session_id,
    chat_sessions.c.parent_seq,
    chat_sessions.c.redaction_count,
    chat_sessions.c.created_at,
    chat_sessions.c.updated_at,
    chat_sessions.c.deleted_at,
)
_ACTIVITY: Final = sa.func.greatest(chat_sessions.c.last_message_at, chat_sessions.c.created_at)
_TOLD: Final = sa.func.pg_notify(CHANNEL, sa.cast(chat_sessions.c.session_id, sa.Text))

# The sessions whose messages a session shows, each with the seqs it contributes: (after, last].
# A fork's own begin after parent_seq; what is before is its parent's, and so on.
LINEAGE: Final = """
WITH RECURSIVE lineage (session_id, parent_session_id, after, last) AS (
    SELECT s.session_id, s.parent_session_id, s.parent_seq, :last_seq ::bigint
    FROM chat_sessions s
    WHERE s.tenant_id = :tenant_id ::uuid AND s.session_id = :session_id ::uuid
    UNION ALL
    SELECT p.session_id, p.parent_session_id, p.parent_seq, least(l.after, l.last)
    FROM lineage l
    JOIN chat_sessions p
        ON p.tenant_id = :tenant_id ::uuid AND p.session_id = l.parent_session_id
    WHERE least(l.after, l.last) > 0
)"""

# A page of messages beside what decides whether it may be shown. Each session of the lineage is
# read by its index no further than the page goes. What `paging.split` would not take, since a
# thousand messages of a megabyte each are a gigabyte, is not even sent.
_PAGE: Final = """
{lineage}
SELECT u.user_id::text, u.is_active AS user_is_active, c.enable_chat_history, page.*
FROM chat_sessions s
JOIN users u ON u.tenant_id = s.tenant_id AND u.user_id = s.user_id
JOIN user_configs c ON c.tenant_id = s.tenant_id AND c.user_id = s.user_id
LEFT JOIN LATERAL (
    SELECT sized.*
    FROM (SELECT found.*, sum(found.size) OVER (ORDER BY found.seq {order}) - found.size AS before
          FROM (SELECT m.seq, m.message_id::text, m.role, m.message_type, m.content,
                       m.token_count, m.model_name, m.model_response_time, m.metadata,
                       m.created_at, m.redacted_at,
                       coalesce(octet_length(m.content), 0)
                           + coalesce(octet_length(m.metadata::text), 0) AS size
                FROM lineage CROSS JOIN LATERAL (
                    SELECT * FROM chat_messages m
                    WHERE m.tenant_id = :tenant_id ::uuid AND m.session_id = lineage.session_id
                      AND m.seq > greatest(lineage.after, :after_seq ::bigint)
                      AND m.seq <= least(lineage.last, :last_seq ::bigint)
                      AND (:roles ::text[] IS NULL OR m.role = ANY (:roles ::text[]))
                      AND (:types ::text[] IS NULL OR m.message_type = ANY (:types ::text[]))
                      AND (:since ::timestamptz IS NULL OR m.created_at >= :since ::timestamptz)
                      AND (:until ::timestamptz IS NULL OR m.created_at < :until ::timestamptz)
                    ORDER BY m.seq {order}
                    LIMIT :most ::int) m
                ORDER BY m.seq {order}
                LIMIT :most ::int) found) sized
    WHERE sized.before <= :most_bytes ::bigint) page ON true
WHERE s.tenant_id = :tenant_id ::uuid AND s.session_id = :session_id ::uuid
  AND s.deleted_at IS NULL AND u.deleted_at IS NULL
ORDER BY page.seq {order}
"""
_OLDEST_FIRST: Final = HotStatement(_PAGE, lineage=LINEAGE, order="ASC")
_NEWEST_FIRST: Final = HotStatement(_PAGE, lineage=LINEAGE, order="DESC")

_FORK: Final = HotStatement(
    """
{lineage},
shared AS (
    SELECT sum(m.token_count) AS tokens, max(m.created_at) AS last_message_at
    FROM lineage
    JOIN chat_messages m ON m.tenant_id = :tenant_id ::uuid AND m.session_id = lineage.session_id
        AND m.seq > lineage.after AND m.seq <= lineage.last
)
INSERT INTO chat_sessions
    (tenant_id, session_id, user_id, session_title, model_name, metadata, last_seq,
     total_tokens_used, last_message_at, parent_session_id, parent_seq)
SELECT s.tenant_id, :fork_id ::uuid, s.user_id, coalesce(:title ::text, s.session_title),
       s.model_name, s.metadata, :last_seq ::bigint, coalesce(shared.tokens, 0),
       shared.last_message_at, s.session_id, :last_seq ::bigint
FROM chat_sessions s CROSS JOIN shared
WHERE s.tenant_id = :tenant_id ::uuid AND s.session_id = :session_id ::uuid
RETURNING session_id
""",
    lineage=LINEAGE,
)
# Locks by id, as appends do: of two redactions neither can wait for the other.
_LOCK_ORIGIN: Final = HotStatement(
    """
{lineage}
SELECT s.session_id::text, s.session_id = origin.session_id AS is_origin
FROM chat_sessions s
CROSS JOIN (SELECT session_id FROM lineage
            WHERE :seq ::bigint > after AND :seq ::bigint <= last) origin
WHERE s.tenant_id = :tenant_id ::uuid
  AND s.session_id IN (:session_id ::uuid, origin.session_id)
ORDER BY s.session_id
FOR NO KEY UPDATE OF s
""",
    lineage=LINEAGE,
)
# Takes a seq of the user's space, so that views drop the message; the message is locked first, as
# the job that embeds does. Its vectors tell of its content, and go with it.
_REDACT: Final = HotStatement(
    """
WITH held AS (
    SELECT user_id, space_seq FROM chat_messages
    WHERE tenant_id = :tenant_id ::uuid AND session_id = :origin_id ::uuid AND seq = :seq ::bigint
      AND redacted_at IS NULL
    FOR NO KEY UPDATE
),
moved AS (
    UPDATE spaces s SET last_seq = s.last_seq + 1, updated_at = clock_timestamp()
    FROM held
    WHERE s.tenant_id = :tenant_id ::uuid AND s.user_id = held.user_id AND s.kind = 'messages'
    RETURNING s.last_seq
),
redacted AS (
    UPDATE chat_messages m
    SET content = NULL, metadata = NULL, embedding = NULL, embedding_model = NULL,
        next_embedding = NULL, next_model = NULL,
        space_seq = (SELECT last_seq FROM moved), redacted_at = clock_timestamp(),
        updated_at = clock_timestamp()
    FROM held
    WHERE m.tenant_id = :tenant_id ::uuid AND m.session_id = :origin_id ::uuid
      AND m.seq = :seq ::bigint
    RETURNING m.seq
)
UPDATE chat_sessions s
SET redaction_count = s.redaction_count + 1, updated_at = clock_timestamp()
FROM redacted
WHERE s.tenant_id = :tenant_id ::uuid
  AND s.session_id IN (:origin_id ::uuid, :session_id ::uuid)
RETURNING (SELECT last_seq FROM moved) AS space_seq, pg_notify('{channel}', s.session_id::text)
""",
    channel=CHANNEL,
)


class ChatRepository:
    """Sessions and messages of one tenant."""

    def __init__(self, connection: AsyncConnection, tenant_id: str) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._tenant_id = tenant_id

    async def lock_user(self, user_id: str) -> Row | None:
        """Return what bounds a user's sessions, and hold it against other new sessions."""
        query = (
            sa.select(
                users.c.is_active.label("user_is_active"),
                user_configs.c.enable_multichat,
                user_configs.c.max_sessions,
            )
            .join(user_configs, _same(users, user_configs, "tenant_id", "user_id"))
            .where(self._user(user_id))
            .with_for_update(of=user_configs, key_share=True)
        )
        return (await self._connection.execute(query)).mappings().first()

    async def count_active(self, user_id: str) -> int:
        """Return how many sessions of a user are active."""
        query = sa.select(sa.func.count()).where(
            chat_sessions.c.tenant_id == self._tenant_id,
            chat_sessions.c.user_id == user_id,
            chat_sessions.c.is_active,
            chat_sessions.c.deleted_at.is_(None),
        )
        return (await self._connection.execute(query)).scalar_one()

    async def add_session(self, **values: Any) -> Row:
        """Add a session."""
        statement = (
            sa.insert(chat_sessions)
            .values(tenant_id=self._tenant_id, session_id=new_id(), **values)
            .returning(*_SESSION)
        )
        return (await self._connection.execute(statement)).mappings().one()

    async def session(self, session_id: str) -> Row | None:
        """Return a session with ``user_is_active`` and ``enable_chat_history``, or None."""
        query = (
            sa.select(
                *_SESSION,
                users.c.is_active.label("user_is_active"),
                user_configs.c.enable_chat_history,
            )
            .join(users, _same(users, chat_sessions, "tenant_id", "user_id"))
            .join(user_configs, _same(user_configs, users, "tenant_id", "user_id"))
            .where(*self._session(session_id), users.c.deleted_at.is_(None))
        )
        return (await self._connection.execute(query)).mappings().first()

    async def named_session(self, session_id: str) -> Row | None:
        """Return whose a session is, deleted or not, with ``user_is_active``; or None."""
        query = (
            sa.select(chat_sessions.c.user_id, users.c.is_active.label("user_is_active"))
            .join(users, _same(users, chat_sessions, "tenant_id", "user_id"))
            .where(*self._named(session_id), users.c.deleted_at.is_(None))
        )
        return (await self._connection.execute(query)).mappings().first()

    async def lock_session(self, session_id: str) -> Row | None:
        """Return a session, deleted or not, with ``user_is_active``, and hold it; or None."""
        query = (
            sa.select(*_SESSION, users.c.is_active.label("user_is_active"))
            .join(users, _same(users, chat_sessions, "tenant_id", "user_id"))
            .where(*self._named(session_id), users.c.deleted_at.is_(None))
            .with_for_update(of=chat_sessions, key_share=True)
        )
        return (await self._connection.execute(query)).mappings().first()

    async def set_session(self, session_id: str, values: Mapping[str, Any]) -> Row:
        """Change a session that ``lock_session`` holds, and tell watchers; return it."""
        statement = (
            sa.update(chat_sessions)
            .where(*self._named(session_id))
            .values(**values, updated_at=sa.func.clock_timestamp())
            .returning(*_SESSION, _TOLD)
        )
        return (await self._connection.execute(statement)).mappings().one()

    async def list_sessions(
        self,
        user_id: str,
        page: Page,
        filters: Mapping[str, Any],
        times: Sequence[dt.datetime | None],
        *,
        show_deleted: bool,
    ) -> Sequence[Row]:
        """Return a page of a user's sessions and one more, latest activity first.

        ``filters`` by column; ``times`` are when activity was at the earliest and before when.
        One row with no session_id stands for a user without sessions; no row, for no user.
        """
        found = sa.select(*_SESSION, _ACTIVITY.label("active_at")).where(
            chat_sessions.c.tenant_id == self._tenant_id,
            chat_sessions.c.user_id == users.c.user_id,
            *(chat_sessions.c[column] == value for column, value in filters.items()),
        )
        since, before = times
        if since is not None:
            found = found.where(since <= _ACTIVITY)
        if before is not None:
            found = found.where(before > _ACTIVITY)
        if not show_deleted:
            found = found.where(chat_sessions.c.deleted_at.is_(None))
        if page.after:
            active_at, session_id = page.after.split("|")
            key = sa.tuple_(dt.datetime.fromisoformat(active_at), sa.cast(session_id, sa.Uuid))
            found = found.where(sa.tuple_(_ACTIVITY, chat_sessions.c.session_id) < key)
        found = found.order_by(_ACTIVITY.desc(), chat_sessions.c.session_id.desc())
        rows = found.limit(page.size + 1).lateral("page")
        query = (
            sa.select(users.c.is_active.label("user_is_active"), rows)
            .select_from(users.outerjoin(rows, sa.true()))
            .where(self._user(user_id))
            .order_by(rows.c.active_at.desc(), rows.c.session_id.desc())
        )
        return (await self._connection.execute(query)).mappings().all()

    async def list_messages(
        self, session_id: str, span: Span, most: int, *, newest_first: bool
    ) -> Sequence[Row]:
        """Return so many messages of a session at most, those it shares with others included.

        Each row bears ``user_id``, ``user_is_active`` and ``enable_chat_history``. One row with
        no seq stands for a session without such messages; no row, for no session.
        """
        statement = _NEWEST_FIRST if newest_first else _OLDEST_FIRST
        parameters = {
            "after_seq": span.after,
            "last_seq": span.last,
            "roles": list(span.roles) or None,
            "types": list(span.types) or None,
            "since": span.since,
            "until": span.until,
            "most": most,
            "most_bytes": 2 * PAGE_BYTES,
        }
        return await self._rows(statement, session_id, **parameters)

    async def fork(self, session_id: str, at_seq: int, title: str | None) -> str:
        """Add a session that shares another's messages up to a seq; return its id."""
        fork_id = new_id()
        await self._rows(_FORK, session_id, last_seq=at_seq, title=title, fork_id=fork_id)
        return fork_id

    async def lock_origin(self, session_id: str, seq: int) -> str | None:
        """Hold a session and the one that a message of it belongs to; return the latter's id."""
        rows = await self._rows(_LOCK_ORIGIN, session_id, seq=seq, last_seq=LAST)
        return next((row["session_id"] for row in rows if row["is_origin"]), None)

    async def redact(self, session_id: str, origin_id: str, seq: int) -> int | None:
        """Remove the content of a message of the origin, and count that in both sessions.

        Returns the seq of that change in the user's space, 0 where the message was in none; None =
        there was nothing to remove.
        """
        rows = await self._rows(_REDACT, session_id, origin_id=origin_id, seq=seq)
        return int(rows[0]["space_seq"] or 0) if rows else None

    async def _rows(
        self, statement: HotStatement, session_id: str, **parameters: Any
    ) -> Sequence[Row]:
        given = {"tenant_id": self._tenant_id, "session_id": session_id, **parameters}
        return await statement.rows(self._connection, given)

    def _session(self, session_id: str) -> tuple[sa.ColumnElement[bool], ...]:
        return (*self._named(session_id), chat_sessions.c.deleted_at.is_(None))

    def _named(self, session_id: str) -> tuple[sa.ColumnElement[bool], ...]:
        """Match a session, deleted or not."""
        return (
            chat_sessions.c.tenant_id == self._tenant_id,
            chat_sessions.c.session_id == session_id,
        )

    def _user(self, user_id: str) -> sa.ColumnElement[bool]:
        return sa.and_(
            users.c.tenant_id == self._tenant_id,
            users.c.user_id == user_id,
            users.c.deleted_at.is_(None),
        )


def _same(left: sa.FromClause, right: sa.FromClause, *names: str) -> sa.ColumnElement[bool]:
    return sa.and_(*(left.c[name] == right.c[name] for name in names))
