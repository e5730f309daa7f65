"""SQL of chat. Returns rows; never commits."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.chat.models import chat_messages, chat_sessions
from hub_server.database import HotStatement
from hub_server.identity.models import user_configs, users
from hub_server.ids import new_id
from hub_server.paging import PAGE_BYTES, Page
from hub_server.rows import Row

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
    chat_sessions.c.created_at,
    chat_sessions.c.updated_at,
    chat_sessions.c.deleted_at,
)
_MESSAGE: Final = tuple(
    column for column in chat_messages.c if column.name not in ("tenant_id", "updated_at")
)

# Appends a group of messages, each for itself, in one statement (DESIGN section 5). In order:
#
# session   locks the sessions by id, so that no two groups can wait for each other in a circle,
#           and reads each as the last group left it;
# budget    locks what their users have used, by id, after the sessions for the same reason;
# judged    says of each item what hinders it, or that it repeats an earlier call; what expects a
#           seq that an earlier item of the group may yet bring about comes out as RACED;
# weighed   lets as many items in, in order of arrival, as their users have tokens left for; what
#           is more than is then left is refused, and what might fit since another was refused
#           comes out as RACED;
# claimed   spends the request ids; one that a concurrent group has just spent is not returned,
#           and its item comes out as RACED, to be judged again by the next statement;
# accepted  numbers what is left, per session in the order of arrival.
#
# The content of a repeated call is in the call itself (its fingerprint is the same), so only what
# the hub made is looked up: seq and time.
_APPEND: Final = HotStatement("""
WITH item AS (
    SELECT * FROM unnest(
        :session_id ::uuid[], :user_id ::uuid[], :message_id ::uuid[], :role ::text[],
        :message_type ::text[], :content ::text[], :token_count ::int[], :model_name ::text[],
        :model_response_time ::int[], :metadata ::jsonb[], :request_id ::text[],
        :fingerprint ::bytea[], :expected_seq ::bigint[]
    ) WITH ORDINALITY AS item (
        session_id, caller_id, message_id, role, message_type, content, token_count, model_name,
        model_response_time, metadata, request_id, fingerprint, expected_seq, place)
),
session AS (
    SELECT s.session_id, s.user_id, s.last_seq, s.is_active, u.is_active AS user_is_active,
           c.enable_chat_history, c.enable_tool
    FROM chat_sessions s
    JOIN users u ON u.tenant_id = s.tenant_id AND u.user_id = s.user_id
    JOIN user_configs c ON c.tenant_id = s.tenant_id AND c.user_id = s.user_id
    WHERE s.tenant_id = :tenant_id ::uuid AND s.session_id = ANY (:session_id ::uuid[])
      AND s.deleted_at IS NULL AND u.deleted_at IS NULL
    ORDER BY s.session_id
    FOR NO KEY UPDATE OF s
),
budget AS (
    SELECT g.user_id, period.start, c.max_tokens,
           c.max_tokens - g.reserved_tokens
               - CASE WHEN c.budget_period = 'lifetime' THEN g.total_tokens_used
                      WHEN g.period_start = period.start THEN g.period_tokens_used
                      ELSE 0 END AS tokens_left,
           CASE WHEN c.budget_period <> 'lifetime'
                THEN (period.start AT TIME ZONE c.timezone + ('1 ' || c.budget_period)::interval)
                         AT TIME ZONE c.timezone - now() END AS renewal
    FROM user_usage g
    JOIN user_configs c ON c.tenant_id = g.tenant_id AND c.user_id = g.user_id
    CROSS JOIN LATERAL (SELECT hub_period_start(c.budget_period, c.timezone) AS start) period
    WHERE g.tenant_id = :tenant_id ::uuid AND g.user_id IN (SELECT user_id FROM session)
    ORDER BY g.user_id
    FOR NO KEY UPDATE OF g
),
judged AS (
    SELECT item.*, session.user_id, session.last_seq, session.enable_chat_history,
           request.resource_id AS first_id, budget.max_tokens, budget.tokens_left, budget.renewal,
           CASE
               WHEN session.session_id IS NULL OR item.caller_id <> session.user_id
                   THEN 'NOT_FOUND'
               WHEN NOT session.user_is_active THEN 'USER_DISABLED'
               WHEN request.fingerprint = item.fingerprint THEN 'REPEATED'
               WHEN request.fingerprint IS NOT NULL THEN 'REUSED'
               WHEN NOT session.is_active THEN 'ENDED'
               WHEN item.role = 'tool' AND NOT session.enable_tool THEN 'NO_TOOL'
               WHEN item.request_id IS NOT NULL AND row_number() OVER (
                        PARTITION BY session.user_id, item.request_id ORDER BY item.place) > 1
                   THEN 'RACED'
               WHEN item.expected_seq < session.last_seq THEN 'STALE'
               WHEN item.expected_seq IS NOT NULL AND row_number() OVER (
                        PARTITION BY item.session_id ORDER BY item.place) > 1
                   THEN 'RACED'
               WHEN item.expected_seq > session.last_seq THEN 'STALE'
           END AS hindrance
    FROM item
    LEFT JOIN session ON session.session_id = item.session_id
    LEFT JOIN budget ON budget.user_id = session.user_id
    LEFT JOIN request_ids request
        ON request.tenant_id = :tenant_id ::uuid AND request.user_id = session.user_id
        AND request.request_id = item.request_id AND request.created_at >= now() - :kept ::interval
),
summed AS (
    SELECT judged.*, sum(token_count) FILTER (WHERE hindrance IS NULL)
                         OVER (PARTITION BY user_id ORDER BY place) AS tokens_to_here
    FROM judged
),
weighed AS (
    SELECT summed.*,
           CASE
               WHEN hindrance IS NOT NULL THEN hindrance
               WHEN tokens_left IS NULL OR token_count = 0 OR tokens_to_here <= tokens_left
                   THEN 'ACCEPTED'
               WHEN token_count > tokens_left - coalesce(
                        max(tokens_to_here) FILTER (WHERE tokens_to_here <= tokens_left)
                            OVER (PARTITION BY user_id), 0)
                   THEN 'NO_BUDGET'
               ELSE 'RACED'
           END AS outcome
    FROM summed
),
claimed AS (
    INSERT INTO request_ids AS known
        (tenant_id, user_id, request_id, fingerprint, resource_id)
    SELECT :tenant_id ::uuid, user_id, request_id, fingerprint, message_id
    FROM weighed WHERE outcome = 'ACCEPTED' AND request_id IS NOT NULL
    ON CONFLICT (tenant_id, user_id, request_id) DO UPDATE
        SET fingerprint = excluded.fingerprint, resource_id = excluded.resource_id,
            answer = NULL, created_at = now()
        WHERE known.created_at < now() - :kept ::interval
    RETURNING resource_id
),
accepted AS (
    SELECT weighed.*,
           last_seq + row_number() OVER (PARTITION BY session_id ORDER BY place) AS seq
    FROM weighed
    WHERE outcome = 'ACCEPTED'
      AND (request_id IS NULL OR message_id IN (SELECT resource_id FROM claimed))
),
written AS (
    INSERT INTO chat_messages
        (tenant_id, session_id, seq, message_id, role, message_type, content, token_count,
         model_name, model_response_time, metadata, created_at)
    SELECT :tenant_id ::uuid, session_id, seq, message_id, role, message_type,
           CASE WHEN enable_chat_history THEN content END, token_count, model_name,
           model_response_time, CASE WHEN enable_chat_history THEN metadata END,
           clock_timestamp()
    FROM accepted
    RETURNING message_id, seq, content, created_at
),
advanced AS (
    UPDATE chat_sessions s
    SET last_seq = s.last_seq + added.messages,
        total_tokens_used = s.total_tokens_used + added.tokens,
        last_message_at = clock_timestamp(), updated_at = clock_timestamp()
    FROM (SELECT session_id, count(*) AS messages, sum(token_count) AS tokens
          FROM accepted GROUP BY session_id) added
    WHERE s.tenant_id = :tenant_id ::uuid AND s.session_id = added.session_id
),
used AS (
    UPDATE user_usage g
    SET total_tokens_used = g.total_tokens_used + added.tokens,
        period_tokens_used = added.tokens
            + CASE WHEN g.period_start IS NOT DISTINCT FROM added.start
                   THEN g.period_tokens_used ELSE 0 END,
        period_start = added.start, updated_at = clock_timestamp()
    FROM (SELECT accepted.user_id, budget.start, sum(accepted.token_count) AS tokens
          FROM accepted JOIN budget ON budget.user_id = accepted.user_id
          GROUP BY accepted.user_id, budget.start) added
    WHERE g.tenant_id = :tenant_id ::uuid AND g.user_id = added.user_id AND added.tokens > 0
)
SELECT CASE WHEN weighed.outcome = 'ACCEPTED' AND written.seq IS NULL THEN 'RACED'
            ELSE weighed.outcome END AS outcome,
       weighed.max_tokens, weighed.renewal, weighed.last_seq,
       coalesce(written.message_id, first.message_id)::text AS message_id,
       coalesce(written.seq, first.seq) AS seq,
       coalesce(written.created_at, first.created_at) AS created_at,
       coalesce(written.content, first.content) IS NOT NULL AS is_kept
FROM weighed
LEFT JOIN written ON written.message_id = weighed.message_id
LEFT JOIN chat_messages first
    ON first.tenant_id = :tenant_id ::uuid AND first.message_id = weighed.first_id
    AND weighed.outcome = 'REPEATED'
ORDER BY weighed.place
""")


class ChatRepository:
    """Sessions and messages of one tenant."""

    def __init__(self, connection: AsyncConnection, tenant_id: str) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._tenant_id = tenant_id

    async def append(self, columns: Mapping[str, Sequence[Any]], kept: Any) -> Sequence[Row]:
        """Append a group of messages given as columns; return an outcome for each, in order."""
        parameters = {**columns, "tenant_id": self._tenant_id, "kept": kept}
        return await _APPEND.rows(self._connection, parameters)

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
        """Return a session with ``user_is_active``, or None."""
        query = (
            sa.select(*_SESSION, users.c.is_active.label("user_is_active"))
            .join(users, _same(users, chat_sessions, "tenant_id", "user_id"))
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
        """Change a session that ``lock_session`` holds; return it."""
        statement = (
            sa.update(chat_sessions)
            .where(*self._named(session_id))
            .values(**values, updated_at=sa.func.clock_timestamp())
            .returning(*_SESSION)
        )
        return (await self._connection.execute(statement)).mappings().one()

    async def list_sessions(
        self, user_id: str, page: Page, filters: Mapping[str, Any], *, show_deleted: bool
    ) -> Sequence[Row]:
        """Return a page of a user's sessions and one more, newest first; ``filters`` by column.

        One row with no session_id stands for a user without sessions; no row, for no user.
        """
        found = sa.select(*_SESSION).where(
            chat_sessions.c.tenant_id == self._tenant_id,
            chat_sessions.c.user_id == users.c.user_id,
            *(chat_sessions.c[column] == value for column, value in filters.items()),
        )
        if not show_deleted:
            found = found.where(chat_sessions.c.deleted_at.is_(None))
        if page.after:
            found = found.where(chat_sessions.c.session_id < page.after)
        found = found.order_by(chat_sessions.c.session_id.desc()).limit(page.size + 1)
        rows = found.lateral("page")
        query = (
            sa.select(users.c.is_active.label("user_is_active"), rows)
            .select_from(users.outerjoin(rows, sa.true()))
            .where(self._user(user_id))
            .order_by(rows.c.session_id.desc())
        )
        return (await self._connection.execute(query)).mappings().all()

    async def list_messages(
        self, session_id: str, page: Page, *, newest_first: bool
    ) -> Sequence[Row]:
        """Return a page of a session's messages and one more.

        Each row bears ``user_id``, ``user_is_active`` and ``enable_chat_history``. One row with
        no seq stands for a session without messages; no row, for no session.
        """
        seq = chat_messages.c.seq
        found = sa.select(*_MESSAGE).where(
            chat_messages.c.tenant_id == self._tenant_id,
            chat_messages.c.session_id == session_id,
        )
        if page.after:
            found = found.where(seq < int(page.after) if newest_first else seq > int(page.after))
        order = seq.desc() if newest_first else seq.asc()
        found = found.order_by(order).limit(page.size + 1)
        rows = _within_page(found, order).lateral("page")
        query = (
            sa.select(
                users.c.user_id,
                users.c.is_active.label("user_is_active"),
                user_configs.c.enable_chat_history,
                rows,
            )
            .select_from(
                chat_sessions.join(users, _same(users, chat_sessions, "tenant_id", "user_id"))
                .join(user_configs, _same(user_configs, users, "tenant_id", "user_id"))
                .outerjoin(rows, sa.true())
            )
            .where(*self._session(session_id), users.c.deleted_at.is_(None))
            .order_by(rows.c.seq.desc() if newest_first else rows.c.seq)
        )
        return (await self._connection.execute(query)).mappings().all()

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


def _within_page(found: sa.Select[Any], order: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Leave out what ``paging.split`` would not take, so that it is not even sent.

    A thousand messages of a megabyte each would be a gigabyte.
    """
    size = sa.func.coalesce(sa.func.octet_length(chat_messages.c.content), 0)
    before = sa.func.sum(size).over(order_by=order) - size
    sized = found.add_columns(before.label("bytes_before")).subquery("sized")
    columns = [column for column in sized.c if column.name != "bytes_before"]
    return sa.select(*columns).where(sized.c.bytes_before <= 2 * PAGE_BYTES)


def _same(left: sa.FromClause, right: sa.FromClause, *names: str) -> sa.ColumnElement[bool]:
    return sa.and_(*(left.c[name] == right.c[name] for name in names))
