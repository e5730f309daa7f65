"""SQL of the search over messages. Returns rows; never commits.

A message is in its user's space if it bears a space_seq. It changes there when it is appended,
embedded and redacted; deleting a session changes nothing there, but then no read returns it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.chat.models import EMBEDDED_CHARACTERS
from hub_server.chat.repository import LINEAGE
from hub_server.chat.spans import LAST, Span
from hub_server.database import HotStatement
from hub_server.paging import PAGE_BYTES
from hub_server.retrieval.neighbours import REACH
from hub_server.retrieval.view import Change, IndexedRow
from hub_server.rows import Row

_MOST_CHANGES: Final = 1000
_MOST_BYTES: Final = 4 << 20  # of the texts of one pull

_STATE: Final = HotStatement("""
SELECT u.is_active AS user_is_active, c.enable_chat_history, c.preferred_language,
       t.message_search, coalesce(p.last_seq, 0) AS last_seq, p.embedding_model,
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
       CASE :model ::text WHEN sized.embedding_model THEN sized.embedding
                          WHEN sized.next_model THEN sized.next_embedding END AS embedding
FROM (SELECT found.*, sum(coalesce(octet_length(found.content), 0)) OVER (ORDER BY found.space_seq)
                      - coalesce(octet_length(found.content), 0) AS before
      FROM (SELECT m.message_id, m.space_seq, m.content, m.embedding, m.embedding_model,
                   m.next_embedding, m.next_model
            FROM chat_messages m
            WHERE m.tenant_id = :tenant_id ::uuid AND m.user_id = :user_id ::uuid
              AND m.space_seq > :after ::bigint
            ORDER BY m.space_seq
            LIMIT :most ::int) found) sized
WHERE sized.before <= :most_bytes ::bigint
ORDER BY sized.space_seq
""")

# The reads of single messages are laterals with a limit: so each is a look-up in an index, whatever
# Postgres believes of the sizes of tables and arrays. Planned as a join, a search took a second.
#
# A message is shown in its own session, or in the one that is asked for: its seq is then one of
# those that its session contributes.
_OWN: Final = {
    "head": "WITH",
    "shown": """
        SELECT s.session_id FROM chat_sessions s
        WHERE s.tenant_id = :tenant_id ::uuid AND s.session_id = m.session_id
          AND s.user_id = :user_id ::uuid AND s.deleted_at IS NULL
        LIMIT 1""",
    "origin": "SELECT found.origin_id AS session_id",
}
_ASKED: Final = {
    "head": f"{LINEAGE},",
    "shown": """
        SELECT s.session_id FROM lineage
        JOIN chat_sessions s
            ON s.tenant_id = :tenant_id ::uuid AND s.session_id = :session_id ::uuid
        WHERE lineage.session_id = m.session_id
          AND m.seq > lineage.after AND m.seq <= lineage.last
          AND s.user_id = :user_id ::uuid AND s.deleted_at IS NULL
        LIMIT 1""",
    "origin": """
        SELECT lineage.session_id FROM lineage
        WHERE found.seq + step.by > lineage.after AND found.seq + step.by <= lineage.last
        LIMIT 1""",
}
_PARTS: Final = {
    "is_his": """
        m.tenant_id = :tenant_id ::uuid AND m.user_id = :user_id ::uuid
        AND m.content IS NOT NULL""",
    "is_asked": """
        (:roles ::text[] IS NULL OR m.role = ANY (:roles ::text[]))
        AND (:since ::timestamptz IS NULL OR m.created_at >= :since ::timestamptz)
        AND (:until ::timestamptz IS NULL OR m.created_at < :until ::timestamptz)""",
}

# Where messages are, and what is beside them.
_PLACES: Final = """
{head} found AS MATERIALIZED (
    SELECT m.session_id AS origin_id, m.seq, shown.session_id
    FROM unnest(:message_ids ::uuid[]) AS given (message_id)
    CROSS JOIN LATERAL (
        SELECT m.session_id, m.seq FROM chat_messages m
        WHERE m.message_id = given.message_id AND {is_his}
        LIMIT 1) m
    CROSS JOIN LATERAL ({shown}) shown
),
beside AS MATERIALIZED (
    SELECT DISTINCT found.session_id, origin.session_id AS origin_id, found.seq + step.by AS seq
    FROM found
    CROSS JOIN generate_series(-:reach ::int, :reach ::int) AS step (by)
    CROSS JOIN LATERAL ({origin}) origin
)
SELECT m.message_id::text, beside.session_id::text, beside.seq, m.is_asked
FROM beside CROSS JOIN LATERAL (
    SELECT m.message_id, {is_asked} AS is_asked FROM chat_messages m
    WHERE m.session_id = beside.origin_id AND m.seq = beside.seq AND {is_his}
    LIMIT 1) m
"""
# The messages of an answer, in the order given, as many as a page may hold.
_MESSAGES: Final = """
{head} found AS (
    SELECT shown.session_id::text, m.seq, m.message_id::text, m.role, m.message_type, m.content,
           m.token_count, m.model_name, m.model_response_time, m.metadata, m.created_at,
           m.redacted_at, given.place,
           sum(octet_length(m.content) + octet_length(m.metadata::text))
               OVER (ORDER BY given.place) AS filled
    FROM unnest(:message_ids ::uuid[]) WITH ORDINALITY AS given (message_id, place)
    CROSS JOIN LATERAL (
        SELECT * FROM chat_messages m
        WHERE m.message_id = given.message_id AND {is_his} AND {is_asked}
        LIMIT 1) m
    CROSS JOIN LATERAL ({shown}) shown
)
SELECT * FROM found WHERE filled <= :most_bytes ::bigint ORDER BY place
"""
_OWN_PLACES: Final = HotStatement(_PLACES, **_OWN, **_PARTS)
_ASKED_PLACES: Final = HotStatement(_PLACES, **_ASKED, **_PARTS)
_OWN_MESSAGES: Final = HotStatement(_MESSAGES, **_OWN, **_PARTS)
_ASKED_MESSAGES: Final = HotStatement(_MESSAGES, **_ASKED, **_PARTS)

_TO_EMBED: Final = HotStatement("""
SELECT m.message_id::text, left(m.content, :most_characters ::int) AS content,
       (SELECT embedding_model FROM spaces
        WHERE tenant_id = :tenant_id ::uuid AND user_id = :user_id ::uuid AND kind = 'messages')
           AS space_model
FROM chat_messages m
WHERE (SELECT message_search FROM tenants WHERE tenant_id = :tenant_id ::uuid) = 'hybrid'
  AND m.tenant_id = :tenant_id ::uuid AND m.user_id = :user_id ::uuid
  AND m.space_seq IS NOT NULL AND m.embedding IS NULL AND m.content IS NOT NULL
ORDER BY m.space_seq
LIMIT :most ::int
""")
# Of the messages only those are taken that nobody has redacted or embedded meanwhile, or is about
# to, and none at all where the space names another model by now. Messages are locked before their
# space, as by a redaction.
_EMBED: Final = HotStatement("""
WITH held AS (
    SELECT m.session_id, m.seq, made.embedding
    FROM unnest(:message_ids ::uuid[], :embeddings ::bytea[]) AS made (message_id, embedding)
    CROSS JOIN LATERAL (
        SELECT m.session_id, m.seq FROM chat_messages m
        WHERE m.tenant_id = :tenant_id ::uuid AND m.message_id = made.message_id
          AND m.user_id = :user_id ::uuid AND m.embedding IS NULL AND m.content IS NOT NULL
        LIMIT 1
        FOR NO KEY UPDATE SKIP LOCKED) m
),
numbered AS (
    SELECT held.*, row_number() OVER (ORDER BY session_id, seq) AS place,
           count(*) OVER () AS total
    FROM held
),
moved AS (
    UPDATE spaces s
    SET last_seq = s.last_seq + taken.total, updated_at = clock_timestamp(),
        embedding_model = coalesce(s.embedding_model, :space_model ::text)
    FROM (SELECT DISTINCT total FROM numbered) taken
    WHERE s.tenant_id = :tenant_id ::uuid AND s.user_id = :user_id ::uuid AND s.kind = 'messages'
      AND coalesce(s.embedding_model, :space_model ::text) = :space_model ::text
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
        ``message_search``, ``last_seq`` and ``embedding_model`` of the space, ``has_session``
        (whether the session, empty = none, is his) and ``is_to_embed`` (whether any message is).
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
        statement = _ASKED_PLACES if session_id else _OWN_PLACES
        return await self._shown(statement, message_ids, session_id, span, reach=REACH)

    async def messages(
        self, message_ids: Sequence[str], session_id: str, span: Span
    ) -> Sequence[Row]:
        """Return those of the messages that may be shown now, in this order."""
        statement = _ASKED_MESSAGES if session_id else _OWN_MESSAGES
        return await self._shown(statement, message_ids, session_id, span, most_bytes=PAGE_BYTES)

    async def to_embed(self, most: int) -> Sequence[Row]:
        """Return some messages that are to be embedded, oldest first; none where nothing is.

        ``space_model`` is what their space names, None = nothing yet.
        """
        return await self._rows(_TO_EMBED, most=most, most_characters=EMBEDDED_CHARACTERS)

    async def embed(self, vectors: Mapping[str, bytes], model: str, space_model: str | None) -> int:
        """Keep the vectors of messages, by id; return how many were still to be embedded.

        ``space_model`` is what the space named before: if that has changed, none is kept.
        """
        columns = {"message_ids": list(vectors), "embeddings": list(vectors.values())}
        names = {"model": model, "space_model": space_model or model}
        return len(await self._rows(_EMBED, **columns, **names))

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
