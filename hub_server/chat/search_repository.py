"""SQL of the search over messages. Returns rows; never commits.

A message is in its user's space if it bears a space_seq. It changes there when it is appended,
embedded and redacted; deleting a session changes nothing there, but then no read returns it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.chat.repository import LINEAGE
from hub_server.chat.spans import LAST, Span
from hub_server.database import HotStatement
from hub_server.paging import PAGE_BYTES
from hub_server.retrieval.neighbours import REACH
from hub_server.retrieval.view import Change, IndexedRow
from hub_server.rows import Row

_MOST_CHANGES: Final = 1000
_MOST_BYTES: Final = 4 << 20  # of the texts of one pull
# As much of a message as is embedded: more than models read (MiniLM 256 tokens).
_MOST_CHARACTERS: Final = 4000

_STATE: Final = HotStatement("""
SELECT u.is_active AS user_is_active, c.enable_chat_history, c.preferred_language,
       t.message_search, coalesce(p.last_seq, 0) AS last_seq,
       :session_id ::uuid IS NULL OR EXISTS (
           SELECT FROM chat_sessions s
           WHERE s.tenant_id = :tenant_id ::uuid AND s.session_id = :session_id ::uuid
             AND s.user_id = u.user_id AND s.deleted_at IS NULL) AS has_session,
       t.message_search = 'hybrid' AND EXISTS (
           SELECT FROM chat_messages m
           WHERE m.tenant_id = :tenant_id ::uuid AND m.user_id = u.user_id
             AND m.space_seq IS NOT NULL AND m.embedding IS NULL AND m.content IS NOT NULL
       ) AS is_to_embed
FROM users u
JOIN tenants t ON t.tenant_id = u.tenant_id
JOIN user_configs c ON c.tenant_id = u.tenant_id AND c.user_id = u.user_id
LEFT JOIN spaces p
    ON p.tenant_id = u.tenant_id AND p.user_id = u.user_id AND p.kind = 'messages'
WHERE u.tenant_id = :tenant_id ::uuid AND u.user_id = :user_id ::uuid AND u.deleted_at IS NULL
""")
_CHANGES: Final = HotStatement("""
SELECT sized.message_id::text, sized.space_seq, sized.content,
       CASE WHEN sized.embedding_model = :model ::text THEN sized.embedding END AS embedding
FROM (SELECT found.*, sum(coalesce(octet_length(found.content), 0)) OVER (ORDER BY found.space_seq)
                      - coalesce(octet_length(found.content), 0) AS before
      FROM (SELECT m.message_id, m.space_seq, m.content, m.embedding, m.embedding_model
            FROM chat_messages m
            WHERE m.tenant_id = :tenant_id ::uuid AND m.user_id = :user_id ::uuid
              AND m.space_seq > :after ::bigint
            ORDER BY m.space_seq
            LIMIT :most ::int) found) sized
WHERE sized.before <= :most_bytes ::bigint
ORDER BY sized.space_seq
""")

# Which seqs of which sessions are shown, and as whose: each session's as its own, or those that
# one session shows as that one's.
_OF_ALL: Final = """
WITH shown AS NOT MATERIALIZED (
    SELECT s.session_id, s.session_id AS shown_in, 0::bigint AS after, :last_seq ::bigint AS last
    FROM chat_sessions s
    WHERE s.tenant_id = :tenant_id ::uuid AND s.user_id = :user_id ::uuid
      AND s.deleted_at IS NULL AND :session_id ::uuid IS NULL
)"""
_OF_ONE: Final = """
{lineage},
shown AS (
    SELECT lineage.session_id, s.session_id AS shown_in, lineage.after, lineage.last
    FROM lineage
    JOIN chat_sessions s ON s.tenant_id = :tenant_id ::uuid AND s.session_id = :session_id ::uuid
    WHERE s.user_id = :user_id ::uuid AND s.deleted_at IS NULL
)"""
_IS_SHOWN: Final = """
    m.tenant_id = :tenant_id ::uuid AND m.user_id = :user_id ::uuid
    AND m.session_id = shown.session_id AND m.seq > shown.after AND m.seq <= shown.last
    AND m.content IS NOT NULL"""
_IS_ASKED: Final = """
    (:roles ::text[] IS NULL OR m.role = ANY (:roles ::text[]))
    AND (:since ::timestamptz IS NULL OR m.created_at >= :since ::timestamptz)
    AND (:until ::timestamptz IS NULL OR m.created_at < :until ::timestamptz)"""

# Where messages are, and what is beside them.
_PLACES: Final = """
{shown},
beside AS (
    SELECT DISTINCT shown.shown_in, m.seq + step.by AS seq
    FROM chat_messages m
    JOIN shown ON shown.session_id = m.session_id
    CROSS JOIN generate_series(-:reach ::int, :reach ::int) AS step (by)
    WHERE m.message_id = ANY (:message_ids ::uuid[]) AND {is_shown}
)
SELECT m.message_id::text, shown.shown_in::text AS session_id, m.seq, {is_asked} AS is_asked
FROM beside
JOIN shown ON shown.shown_in = beside.shown_in
    AND beside.seq > shown.after AND beside.seq <= shown.last
JOIN chat_messages m ON m.seq = beside.seq AND {is_shown}
"""
# The messages of an answer, in the order asked, as many as a page may hold.
_MESSAGES: Final = """
{shown}
SELECT sized.*
FROM (SELECT shown.shown_in::text AS session_id, m.seq, m.message_id::text, m.role, m.message_type,
             m.content, m.token_count, m.model_name, m.model_response_time, m.metadata,
             m.created_at, m.redacted_at, asked.place,
             sum(octet_length(m.content) + octet_length(m.metadata::text))
                 OVER (ORDER BY asked.place) AS filled
      FROM unnest(:message_ids ::uuid[]) WITH ORDINALITY AS asked (message_id, place)
      JOIN chat_messages m ON m.tenant_id = :tenant_id ::uuid AND m.message_id = asked.message_id
      JOIN shown ON shown.session_id = m.session_id
      WHERE {is_shown} AND {is_asked}) sized
WHERE sized.filled <= :most_bytes ::bigint
ORDER BY sized.place
"""
_ALL: Final = {"shown": _OF_ALL, "is_shown": _IS_SHOWN, "is_asked": _IS_ASKED}
_ONE: Final = {**_ALL, "shown": _OF_ONE.format(lineage=LINEAGE)}
_PLACES_OF_ALL: Final = HotStatement(_PLACES, **_ALL)
_PLACES_OF_ONE: Final = HotStatement(_PLACES, **_ONE)
_MESSAGES_OF_ALL: Final = HotStatement(_MESSAGES, **_ALL)
_MESSAGES_OF_ONE: Final = HotStatement(_MESSAGES, **_ONE)

_TO_EMBED: Final = HotStatement("""
SELECT m.message_id::text, left(m.content, :most_characters ::int) AS content
FROM chat_messages m
JOIN tenants t ON t.tenant_id = m.tenant_id AND t.message_search = 'hybrid'
WHERE m.tenant_id = :tenant_id ::uuid AND m.user_id = :user_id ::uuid
  AND m.space_seq IS NOT NULL AND m.embedding IS NULL AND m.content IS NOT NULL
ORDER BY m.space_seq
LIMIT :most ::int
""")
# Of the messages only those are taken that nobody has redacted or embedded meanwhile, or is about
# to. Messages are locked before their space, as by a redaction.
_EMBED: Final = HotStatement("""
WITH held AS (
    SELECT m.session_id, m.seq, made.embedding
    FROM unnest(:message_ids ::uuid[], :embeddings ::bytea[]) AS made (message_id, embedding)
    JOIN chat_messages m
        ON m.tenant_id = :tenant_id ::uuid AND m.message_id = made.message_id
    WHERE m.user_id = :user_id ::uuid AND m.embedding IS NULL AND m.content IS NOT NULL
    FOR NO KEY UPDATE OF m SKIP LOCKED
),
numbered AS (
    SELECT held.*, row_number() OVER (ORDER BY session_id, seq) AS place,
           count(*) OVER () AS total
    FROM held
),
moved AS (
    UPDATE spaces s SET last_seq = s.last_seq + taken.total, updated_at = clock_timestamp()
    FROM (SELECT DISTINCT total FROM numbered) taken
    WHERE s.tenant_id = :tenant_id ::uuid AND s.user_id = :user_id ::uuid AND s.kind = 'messages'
    RETURNING s.last_seq
)
UPDATE chat_messages m
SET embedding = numbered.embedding, embedding_model = :model ::text,
    space_seq = moved.last_seq - numbered.total + numbered.place
FROM numbered CROSS JOIN moved
WHERE m.tenant_id = :tenant_id ::uuid AND m.session_id = numbered.session_id
  AND m.seq = numbered.seq
RETURNING m.seq
""")


class SearchRepository:
    """The messages of one user, as searches see them."""

    def __init__(self, connection: AsyncConnection, tenant_id: str, user_id: str) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._own = {"tenant_id": tenant_id, "user_id": user_id}

    async def state(self, session_id: str) -> Row | None:
        """Return what decides whether and how the user's messages are searched; None = no user.

        Columns: ``user_is_active``, ``enable_chat_history``, ``preferred_language``,
        ``message_search``, ``last_seq`` of the space, ``has_session`` (whether the session, empty =
        none, is his) and ``is_to_embed`` (whether any message is).
        """
        rows = await self._rows(_STATE, session_id=session_id or None)
        return rows[0] if rows else None

    async def changes(self, model: str, after: int) -> Sequence[Change]:
        """Return the next changes of the space after a seq, in order.

        Vectors of another model are left out; with no model, all are.
        """
        rows = await self._rows(
            _CHANGES, model=model, after=after, most=_MOST_CHANGES, most_bytes=_MOST_BYTES
        )
        return [_change(row) for row in rows]

    async def places(
        self, message_ids: Sequence[str], session_id: str, span: Span
    ) -> Sequence[Row]:
        """Return where those of the messages are that are shown, and those beside them.

        Columns: ``message_id``, ``session_id``, ``seq``, and ``is_asked``, whether the message
        itself is of the span's roles and times.
        """
        statement = _PLACES_OF_ONE if session_id else _PLACES_OF_ALL
        return await self._shown(statement, message_ids, session_id, span, reach=REACH)

    async def messages(
        self, message_ids: Sequence[str], session_id: str, span: Span
    ) -> Sequence[Row]:
        """Return those of the messages that may be shown now, in this order."""
        statement = _MESSAGES_OF_ONE if session_id else _MESSAGES_OF_ALL
        return await self._shown(statement, message_ids, session_id, span, most_bytes=PAGE_BYTES)

    async def to_embed(self, most: int) -> Sequence[Row]:
        """Return some messages that are to be embedded, oldest first; none where nothing is."""
        return await self._rows(_TO_EMBED, most=most, most_characters=_MOST_CHARACTERS)

    async def embed(self, vectors: Mapping[str, bytes], model: str) -> int:
        """Keep the vectors of messages, by id; return how many were still to be embedded."""
        columns = {"message_ids": list(vectors), "embeddings": list(vectors.values())}
        return len(await self._rows(_EMBED, **columns, model=model))

    async def _shown(
        self,
        statement: HotStatement,
        message_ids: Sequence[str],
        session_id: str,
        span: Span,
        **more: Any,
    ) -> Sequence[Row]:
        return await self._rows(
            statement,
            message_ids=list(message_ids),
            session_id=session_id or None,
            last_seq=LAST,
            roles=list(span.roles) or None,
            since=span.since,
            until=span.until,
            **more,
        )

    async def _rows(self, statement: HotStatement, **parameters: Any) -> Sequence[Row]:
        return await statement.rows(self._connection, {**self._own, **parameters})


def _change(row: Row) -> Change:
    """Return a message as a view takes it; a redacted one is gone from it."""
    message_id, content = row["message_id"], row["content"]
    indexed = IndexedRow(message_id, content or "", bytes(row["embedding"] or b""))
    return Change(message_id, row["space_seq"], () if content is None else (indexed,))
