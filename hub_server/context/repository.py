"""SQL of contexts. Returns rows; never commits."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.chat.models import chat_sessions
from hub_server.chat.repository import LINEAGE
from hub_server.chat.spans import LAST
from hub_server.context.models import context_records
from hub_server.database import HotStatement
from hub_server.identity.models import user_configs, users
from hub_server.rows import Row

# All that decides what a context may hold, the end of the session, and what the user said last
# where that is looked for: a row for each message, newest first, or one without.
_STATE: Final = HotStatement(
    """
{lineage}
SELECT u.user_id::text, u.is_active AS user_is_active, c.enable_rag, c.enable_tool,
       c.enable_chat_history, c.preferred_language, t.message_search, own.spaces, page.*
FROM chat_sessions s
JOIN tenants t ON t.tenant_id = s.tenant_id
JOIN users u ON u.tenant_id = s.tenant_id AND u.user_id = s.user_id
JOIN user_configs c ON c.tenant_id = s.tenant_id AND c.user_id = s.user_id
LEFT JOIN LATERAL (
    SELECT jsonb_object_agg(p.kind, jsonb_build_object(
               'last_seq', p.last_seq, 'embedding_model', p.embedding_model)) AS spaces
    FROM spaces p
    WHERE p.tenant_id = s.tenant_id AND p.user_id = s.user_id) own ON true
LEFT JOIN LATERAL (
    SELECT sized.message_id::text, sized.seq, sized.role, sized.content, true AS is_tail
    FROM (SELECT found.*, sum(octet_length(found.content)) OVER (ORDER BY found.seq DESC)
                          - octet_length(found.content) AS before
          FROM (SELECT m.message_id, m.seq, m.role, m.content
                FROM lineage CROSS JOIN LATERAL (
                    SELECT m.message_id, m.seq, m.role, m.content FROM chat_messages m
                    WHERE m.tenant_id = :tenant_id ::uuid AND m.session_id = lineage.session_id
                      AND m.seq > lineage.after AND m.seq <= lineage.last
                      AND m.content IS NOT NULL AND m.message_type = 'text'
                    ORDER BY m.seq DESC
                    LIMIT :most ::int) m
                ORDER BY m.seq DESC
                LIMIT :most ::int) found) sized
    WHERE sized.before <= :most_bytes ::bigint AND c.enable_chat_history
    UNION ALL (
    SELECT said.message_id::text, said.seq, 'user', left(said.content, :said_length ::int), false
    FROM lineage CROSS JOIN LATERAL (
        SELECT m.message_id, m.seq, m.content FROM chat_messages m
        WHERE m.tenant_id = :tenant_id ::uuid AND m.session_id = lineage.session_id
          AND m.seq > lineage.after AND m.seq <= lineage.last
          AND m.content IS NOT NULL AND m.message_type = 'text' AND m.role = 'user'
        ORDER BY m.seq DESC
        LIMIT 1) said
    WHERE :said_length ::int > 0
    ORDER BY said.seq DESC
    LIMIT 1)) page ON true
WHERE s.tenant_id = :tenant_id ::uuid AND s.session_id = :session_id ::uuid
  AND s.deleted_at IS NULL AND u.deleted_at IS NULL
ORDER BY page.is_tail DESC, page.seq DESC
""",
    lineage=LINEAGE,
)

_PARTS: Final = {
    "lineage": LINEAGE,
    "no_chunk": """NULL::text AS document_id, NULL::int AS place, NULL::int AS start_char,
       NULL::text AS title, NULL::text AS source_url, NULL::text[] AS heading_path""",
    "no_memory": """NULL::text AS memory_type, NULL::text AS source,
       NULL::float8 AS confidence_score, NULL::int AS reinforcement_count,
       NULL::timestamptz AS created_at, NULL::timestamptz AS reinforced_at,
       NULL::int AS revision, NULL::text AS said_by""",
}
# Each message is looked up by its id: the lineage first would be a look at the whole session.
_CHUNKS_AND_MESSAGES: Final = """
UNION ALL
SELECT 'knowledge', k.chunk_id::text, k.content, k.document_id::text, k.chunk_index, k.start_char,
       k.metadata->>'document_title', k.metadata->>'source', k.heading_path, NULL::text AS role,
       {no_memory}
FROM chunks k
JOIN documents d
    ON d.tenant_id = k.tenant_id AND d.document_id = k.document_id AND d.revision = k.revision
WHERE k.tenant_id = :tenant_id ::uuid AND k.user_id = :user_id ::uuid
  AND k.chunk_id = ANY (:chunk_ids ::uuid[]) AND d.deleted_at IS NULL
UNION ALL (
{lineage}
SELECT 'history' AS part, m.message_id::text, m.content, NULL::text, m.seq::int, NULL::int,
       NULL::text, NULL::text, NULL::text[], m.role,
       {no_memory}
FROM unnest(:message_ids ::uuid[]) AS given (message_id)
CROSS JOIN LATERAL (
    SELECT * FROM chat_messages m
    WHERE m.tenant_id = :tenant_id ::uuid AND m.message_id = given.message_id
      AND m.content IS NOT NULL
    LIMIT 1) m
JOIN lineage ON lineage.session_id = m.session_id
    AND m.seq > lineage.after AND m.seq <= lineage.last)
"""
# What is proposed, as far as it may be shown now, with so many of the newest memories; and how far
# the spaces are at that moment.
_FOUND: Final = HotStatement(
    """
SELECT 'memory' AS part, m.memory_id::text AS item_id, m.memory_content AS text, {no_chunk},
       NULL::text AS role, m.memory_type, m.source, m.confidence_score, m.reinforcement_count,
       m.created_at, m.reinforced_at, m.revision, r.message_id::text AS said_by
FROM memory_store m
LEFT JOIN memory_revisions r  -- whose text was changed says what the message does not
    ON r.tenant_id = m.tenant_id AND r.memory_id = m.memory_id AND r.revision = 1
    AND r.memory_content = m.memory_content
WHERE m.tenant_id = :tenant_id ::uuid AND m.user_id = :user_id ::uuid
  AND m.memory_id = ANY (:memory_ids ::uuid[] || ARRAY({newest}))
  AND m.deleted_at IS NULL AND m.status = 'active'
  AND (m.expires_at IS NULL OR m.expires_at > :now ::timestamptz)
UNION ALL
SELECT 'space', s.kind, s.last_seq::text, {no_chunk}, NULL::text, {no_memory}
FROM spaces s
WHERE s.tenant_id = :tenant_id ::uuid AND s.user_id = :user_id ::uuid
"""
    + _CHUNKS_AND_MESSAGES,
    **_PARTS,
    newest="""
      SELECT n.memory_id FROM memory_store n
      WHERE n.tenant_id = :tenant_id ::uuid AND n.user_id = :user_id ::uuid
        AND n.deleted_at IS NULL AND n.status = 'active'
        AND (n.expires_at IS NULL OR n.expires_at > :now ::timestamptz)
      ORDER BY coalesce(n.reinforced_at, n.created_at) DESC, n.memory_id DESC
      LIMIT :newest ::int""",
)
# What a context held, as far as it is still there: memories as they were.
_KEPT: Final = HotStatement(
    """
SELECT 'memory' AS part, m.memory_id::text AS item_id, m.memory_content AS text, {no_chunk},
       NULL::text AS role, m.memory_type, m.source, m.confidence_score, m.reinforcement_count,
       m.recorded_at AS created_at, m.reinforced_at, m.revision, NULL::text AS said_by
FROM unnest(:memory_ids ::uuid[], :revisions ::int[]) AS given (memory_id, revision)
JOIN memory_revisions m
    ON m.tenant_id = :tenant_id ::uuid AND m.memory_id = given.memory_id
    AND m.revision = given.revision AND m.user_id = :user_id ::uuid
"""
    + _CHUNKS_AND_MESSAGES,
    **_PARTS,
)
# The chunks of a context are retrievals, as those of a search are.
_RECORD: Final = HotStatement("""
WITH recorded AS (
    INSERT INTO context_records (tenant_id, context_id, user_id, session_id, token_budget,
                                 model_name, tools_allowed, blocks, ledger, created_at)
    VALUES (:tenant_id ::uuid, :context_id ::uuid, :user_id ::uuid, :session_id ::uuid,
            :token_budget ::int, :model_name ::text, :tools_allowed ::bool, :blocks ::jsonb,
            :ledger ::jsonb, clock_timestamp())
    RETURNING created_at
),
retrieved AS (
    INSERT INTO retrievals (tenant_id, retrieval_id, rank, session_id, user_id, chunk_id, query,
                            score, embedding_model, message_id)
    SELECT :tenant_id ::uuid, :context_id ::uuid, hit.rank, :session_id ::uuid, :user_id ::uuid,
           hit.chunk_id, :query ::text, hit.score, :embedding_model ::text, :message_id ::uuid
    FROM unnest(:chunk_ids ::uuid[], :scores ::float8[]) WITH ORDINALITY
        AS hit (chunk_id, score, rank)
)
SELECT created_at FROM recorded
""")


class ContextRepository:
    """The contexts of one tenant, and what they are made of."""

    def __init__(self, connection: AsyncConnection, tenant_id: str) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._tenant_id = tenant_id

    async def state(
        self, session_id: str, most: int, most_bytes: int, said_length: int
    ) -> Sequence[Row]:
        """Return a session's newest messages with what decides; see _STATE. No row: no session.

        Last comes, with ``is_tail`` false, so much of what the user said last; 0 = nothing.
        """
        return await self._rows(
            _STATE,
            session_id=session_id,
            last_seq=LAST,
            most=most,
            most_bytes=most_bytes,
            said_length=said_length,
        )

    async def found(self, **values: Any) -> tuple[Sequence[Row], Mapping[str, int]]:
        """Return what of the given ids may be shown to a user in a session now.

        With it comes the last seq of each of the user's spaces at the same moment.
        """
        rows = await self._rows(_FOUND, last_seq=LAST, **values)
        seqs = {row["item_id"]: int(row["text"]) for row in rows if row["part"] == "space"}
        return [row for row in rows if row["part"] != "space"], seqs

    async def kept(self, **values: Any) -> Sequence[Row]:
        """Return what a context held, as far as it is there."""
        return await self._rows(_KEPT, last_seq=LAST, **values)

    async def record(self, *, blocks: Any, ledger: Any, **values: Any) -> Row:
        """Keep a context; return when that was."""
        values |= {"blocks": json.dumps(blocks), "ledger": json.dumps(ledger)}
        return (await self._rows(_RECORD, **values))[0]

    async def get(self, context_id: str) -> Row | None:
        """Return a context with ``user_is_active`` and ``enable_chat_history``, or None."""
        query = (
            sa.select(
                context_records,
                users.c.is_active.label("user_is_active"),
                user_configs.c.enable_chat_history,
            )
            .join(users, _same(users, "user_id"))
            .join(user_configs, _same(user_configs, "user_id"))
            .join(chat_sessions, _same(chat_sessions, "session_id"))
            .where(
                context_records.c.tenant_id == self._tenant_id,
                context_records.c.context_id == context_id,
                chat_sessions.c.deleted_at.is_(None),
                users.c.deleted_at.is_(None),
            )
        )
        return (await self._connection.execute(query)).mappings().first()

    async def _rows(self, statement: HotStatement, **values: Any) -> Sequence[Mapping[str, Any]]:
        return await statement.rows(self._connection, values | {"tenant_id": self._tenant_id})


def _same(table: sa.Table, name: str) -> sa.ColumnElement[bool]:
    return (table.c.tenant_id == context_records.c.tenant_id) & (
        table.c[name] == context_records.c[name]
    )
