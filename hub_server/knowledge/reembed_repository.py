"""SQL of spaces that move to another model. Returns rows; never commits.

A chunk has room for two vectors. The second is filled with the target's while searches go on with
the first; once no chunk lacks it the space names the target as its model, and reads take whichever
of the two is asked for. Later the second takes the place of the first.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.database import HotStatement
from hub_server.rows import Row

START: Final = ("", "00000000-0000-0000-0000-000000000000")
"""The place before all chunks."""

_CLAIM: Final = sa.text(
    "SELECT tenant_id, user_id, kind, attempt FROM hub_claim_reembedding(:lease, :models)"
).columns(tenant_id=sa.Uuid(as_uuid=False), user_id=sa.Uuid(as_uuid=False))

_OF_SPACE: Final = """
    tenant_id = :tenant_id ::uuid AND user_id = :user_id ::uuid AND kind = 'knowledge'"""
# Chunks of the hub's own making that are found, or would be if their document were undeleted.
_ITS_CHUNKS: Final = """
    FROM chunks c
    JOIN documents d ON d.tenant_id = c.tenant_id AND d.document_id = c.document_id
    WHERE c.tenant_id = :tenant_id ::uuid AND c.user_id = :user_id ::uuid
      AND c.revision = d.revision"""
_LACKS: Final = "c.embedding_model <> :model ::text AND c.next_model IS DISTINCT FROM :model ::text"

# A user who has no space yet gets one: what is ingested first is then of the model asked for.
_OPEN: Final = HotStatement("""
INSERT INTO spaces (tenant_id, user_id, kind, last_seq)
SELECT u.tenant_id, u.user_id, 'knowledge', 0 FROM users u
WHERE u.tenant_id = :tenant_id ::uuid AND u.user_id = :user_id ::uuid AND u.deleted_at IS NULL
ON CONFLICT DO NOTHING RETURNING 1
""")
# Asked for again, a move goes on; one to another model takes its place.
_ASK: Final = HotStatement("""
INSERT INTO reembeddings AS r (tenant_id, user_id, kind, target_model, status)
SELECT s.tenant_id, s.user_id, s.kind, :model ::text, 'moving'
FROM spaces s
JOIN users u ON u.tenant_id = s.tenant_id AND u.user_id = s.user_id AND u.deleted_at IS NULL
WHERE s.tenant_id = :tenant_id ::uuid AND s.kind = 'knowledge'
  AND (:user_id ::uuid IS NULL OR s.user_id = :user_id ::uuid)
ORDER BY s.user_id
ON CONFLICT (tenant_id, user_id, kind) DO UPDATE
SET target_model = excluded.target_model, status = 'moving', error = '', is_untidy = true,
    rows_total = 0, rows_done = 0, rows_own = 0, attempt = r.attempt + 1,
    lease_expires_at = NULL, asked_at = clock_timestamp(), updated_at = clock_timestamp()
WHERE r.target_model <> excluded.target_model OR r.status IN ('failed', 'cancelled')
RETURNING 1
""")
_CANCEL: Final = HotStatement("""
UPDATE reembeddings
SET status = 'cancelled', is_untidy = true, attempt = attempt + 1, lease_expires_at = NULL,
    updated_at = clock_timestamp()
WHERE tenant_id = :tenant_id ::uuid AND kind = 'knowledge' AND status IN ('moving', 'failed')
  AND (:user_id ::uuid IS NULL OR user_id = :user_id ::uuid)
RETURNING 1
""")
# Of a tenant those spaces count that were asked to where the last one was.
_PROGRESS: Final = HotStatement("""
SELECT max(r.target_model) AS target_model,
       count(*) AS spaces_total,
       count(*) FILTER (WHERE r.status = 'done') AS spaces_done,
       count(*) FILTER (WHERE r.status = 'failed') AS spaces_failed,
       count(*) FILTER (WHERE r.status = 'cancelled') AS spaces_cancelled,
       coalesce(sum(r.rows_total), 0)::bigint AS rows_total,
       coalesce(sum(r.rows_done), 0)::bigint AS rows_done,
       coalesce(sum(r.rows_own), 0)::bigint AS rows_own,
       (array_agg(r.error ORDER BY r.user_id) FILTER (WHERE r.status = 'failed'))[1] AS error,
       (array_agg(r.user_id::text ORDER BY r.user_id) FILTER (WHERE r.status = 'failed'))[1]
           AS failed_user_id,
       max(r.updated_at) AS updated_at
FROM reembeddings r
WHERE r.tenant_id = :tenant_id ::uuid AND r.kind = 'knowledge'
  AND (:user_id ::uuid IS NULL OR r.user_id = :user_id ::uuid)
  AND r.target_model = (
      SELECT last.target_model FROM reembeddings last
      WHERE last.tenant_id = :tenant_id ::uuid AND last.kind = 'knowledge'
        AND (:user_id ::uuid IS NULL OR last.user_id = :user_id ::uuid)
      ORDER BY last.asked_at DESC LIMIT 1)
""")

_CLAIMED: Final = HotStatement("""
SELECT r.target_model, r.status, s.embedding_model
FROM reembeddings r
JOIN spaces s ON s.tenant_id = r.tenant_id AND s.user_id = r.user_id AND s.kind = r.kind
WHERE r.tenant_id = :tenant_id ::uuid AND r.user_id = :user_id ::uuid AND r.kind = 'knowledge'
  AND r.attempt = :attempt ::int
""")
_SET: Final = HotStatement("""
UPDATE reembeddings
SET status = coalesce(:status ::text, status), error = coalesce(:error ::text, error),
    is_untidy = coalesce(:is_untidy ::boolean, is_untidy),
    rows_total = coalesce(:rows_total ::bigint, rows_total),
    rows_done = coalesce(:rows_done ::bigint, rows_done + :more ::bigint),
    rows_own = coalesce(:rows_own ::bigint, rows_own),
    lease_expires_at = clock_timestamp() + :lease ::interval,
    not_before = coalesce(clock_timestamp() + :rest ::interval, not_before),
    updated_at = clock_timestamp()
WHERE {of_space} AND attempt = :attempt ::int
  AND EXISTS (SELECT FROM users u JOIN tenants t ON t.tenant_id = u.tenant_id
              WHERE u.tenant_id = :tenant_id ::uuid AND u.user_id = :user_id ::uuid
                AND u.erasure_id IS NULL AND t.erasure_id IS NULL)
RETURNING attempt
""", of_space=_OF_SPACE)  # fmt: skip
_TOTALS: Final = HotStatement("""
SELECT count(*) FILTER (WHERE d.own_model = '') AS rows_total,
       count(*) FILTER (WHERE d.own_model = '' AND NOT ({lacks})) AS rows_done,
       count(*) FILTER (WHERE d.own_model <> '' AND d.own_model <> :model ::text) AS rows_own
{its_chunks}
""", its_chunks=_ITS_CHUNKS, lacks=_LACKS)  # fmt: skip
_LACKING: Final = HotStatement("""
SELECT c.chunk_id::text, c.document_id::text, c.embedding_model, c.content,
       c.metadata ->> 'document_title' AS document_title, c.heading_path
{its_chunks}
  AND d.own_model = '' AND {lacks}
  AND (c.embedding_model, c.chunk_id) > (:after_model ::text, :after_id ::uuid)
ORDER BY c.embedding_model, c.chunk_id
LIMIT :most ::int
""", its_chunks=_ITS_CHUNKS, lacks=_LACKS)  # fmt: skip
_HOLD: Final = HotStatement("""
SELECT document_id FROM documents
WHERE tenant_id = :tenant_id ::uuid AND document_id = ANY (:document_ids ::uuid[])
ORDER BY document_id FOR UPDATE
""")
_FILL: Final = HotStatement("""
UPDATE chunks c SET next_embedding = made.embedding, next_model = :model ::text
FROM unnest(:chunk_ids ::uuid[], :embeddings ::bytea[]) AS made (chunk_id, embedding)
WHERE c.tenant_id = :tenant_id ::uuid AND c.chunk_id = made.chunk_id
RETURNING 1
""")
# A view of the target that somebody made before learns of these documents.
_TELL: Final = HotStatement("""
WITH whole AS (
    SELECT d.document_id, row_number() OVER (ORDER BY d.document_id) AS place,
           count(*) OVER () AS total
    FROM documents d
    WHERE d.tenant_id = :tenant_id ::uuid AND d.document_id = ANY (:document_ids ::uuid[])
      AND d.space_seq IS NOT NULL
      AND NOT EXISTS (
          SELECT FROM chunks c
          WHERE c.tenant_id = :tenant_id ::uuid AND c.document_id = d.document_id
            AND c.revision = d.revision AND {lacks})
),
moved AS (
    UPDATE spaces s SET last_seq = s.last_seq + taken.total, updated_at = clock_timestamp()
    FROM (SELECT DISTINCT total FROM whole) taken
    WHERE s.{of_space}
    RETURNING s.last_seq
)
UPDATE documents d SET space_seq = moved.last_seq - whole.total + whole.place
FROM whole CROSS JOIN moved
WHERE d.tenant_id = :tenant_id ::uuid AND d.document_id = whole.document_id
RETURNING 1
""", of_space=_OF_SPACE.strip(), lacks=_LACKS)  # fmt: skip
_SWITCH: Final = HotStatement("""
UPDATE spaces SET embedding_model = :model ::text, updated_at = clock_timestamp()
WHERE {of_space} RETURNING last_seq
""", of_space=_OF_SPACE)  # fmt: skip
_UNTIDY: Final = HotStatement("""
SELECT chunk_id::text, document_id::text FROM chunks
WHERE tenant_id = :tenant_id ::uuid AND user_id = :user_id ::uuid AND next_model IS NOT NULL
  AND (:kept ::text IS NULL OR next_model <> :kept ::text)
ORDER BY chunk_id LIMIT :most ::int
""")
# The searches of the space need only the one of the two vectors that is of its model.
_TIDY: Final = HotStatement("""
UPDATE chunks c
SET embedding = CASE WHEN c.next_model = :model ::text THEN c.next_embedding ELSE c.embedding END,
    embedding_model = CASE WHEN c.next_model = :model ::text
                           THEN c.next_model ELSE c.embedding_model END,
    next_embedding = NULL, next_model = NULL
WHERE c.tenant_id = :tenant_id ::uuid AND c.chunk_id = ANY (:chunk_ids ::uuid[])
RETURNING 1
""")
# What pgvector searches of a model that no chunk has any more.
_LET_GO: Final = HotStatement("""
DELETE FROM vector_spaces v
WHERE v.tenant_id = :tenant_id ::uuid AND v.user_id = :user_id ::uuid AND v.kind = 'knowledge'
  AND NOT EXISTS (
      SELECT FROM chunks c
      WHERE c.tenant_id = :tenant_id ::uuid AND c.user_id = :user_id ::uuid
        AND c.embedding_model = v.embedding_model)
RETURNING 1
""")


async def claim_reembedding(
    connection: AsyncConnection, lease: dt.timedelta, models: Sequence[str]
) -> Row | None:
    """Claim what is to be done for a space of any tenant, by a hub that has these models.

    None = nothing is. The claim ends with its lease, and is void when another attempt begins.
    """
    parameters = {"lease": lease, "models": list(models)}
    return (await connection.execute(_CLAIM, parameters)).mappings().first()


class ReembedRepository:
    """The moves of one tenant's spaces, of one user (None = of all)."""

    def __init__(self, connection: AsyncConnection, tenant_id: str, user_id: str | None) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._own = {"tenant_id": tenant_id, "user_id": user_id}

    async def ask(self, model: str) -> None:
        """Have the spaces moved to a model, those that are not on their way to it already."""
        if self._own["user_id"] is not None:
            await self._rows(_OPEN)
        await self._rows(_ASK, model=model)

    async def cancel(self) -> None:
        """Have no space moved any further; those that have arrived stay there."""
        await self._rows(_CANCEL)

    async def progress(self) -> Row:
        """Return how far the spaces are; ``target_model`` is None where none was ever asked to."""
        return (await self._rows(_PROGRESS))[0]

    async def claimed(self, attempt: int) -> Row | None:
        """Return target_model, status and the space's embedding_model, if it is this attempt's."""
        rows = await self._rows(_CLAIMED, attempt=attempt)
        return rows[0] if rows else None

    async def renew(self, attempt: int, lease: dt.timedelta | None, **values: Any) -> bool:
        """Work on, and note how far it is; False = it is not this attempt's, or his end has come.

        The values are columns, ``more`` (rows done) and ``rest``: how long nobody is to claim it.
        """
        unchanged = dict.fromkeys(
            ("status", "error", "is_untidy", "rows_total", "rows_done", "rows_own", "rest")
        )
        parameters = {**unchanged, "more": 0, "attempt": attempt, "lease": lease, **values}
        return bool(await self._rows(_SET, **parameters))

    async def totals(self, model: str) -> Row:
        """Return ``rows_total``, and of these ``rows_done``; and ``rows_own``, which stay."""
        return (await self._rows(_TOTALS, model=model))[0]

    async def lacking(self, model: str, after: tuple[str, str], most: int) -> Sequence[Row]:
        """Return some chunks that lack a vector of a model, those behind a place in their order."""
        return await self._rows(
            _LACKING, model=model, after_model=after[0], after_id=after[1], most=most
        )

    async def fill(self, model: str, document_ids: set[str], vectors: Mapping[str, bytes]) -> None:
        """Keep vectors of chunks, by id; searches by the model learn of documents that are whole.

        Whoever changes chunks or takes a seq of the space holds the documents first, as
        everywhere.
        """
        documents = {"document_ids": list(document_ids)}
        await self._rows(_HOLD, **documents)
        made = {"chunk_ids": list(vectors), "embeddings": list(vectors.values())}
        await self._rows(_FILL, model=model, **made)
        await self._rows(_TELL, model=model, **documents)

    async def switch(self, model: str) -> bool:
        """Let the space be searched by a model; False = a chunk lacks its vector.

        From the first statement on nobody publishes chunks, so the second sees all of them.
        """
        await self._rows(_SWITCH, model=model)
        return not await self.lacking(model, START, 1)

    async def tidy(self, model: str | None, most: int, *, kept: str | None = None) -> int:
        """Free the room of the second vector of some chunks; return of how many.

        One of the space's model takes the place of the first; one of ``kept`` stays.
        """
        untidy = await self._rows(_UNTIDY, most=most, kept=kept)
        await self._rows(_HOLD, document_ids=list({row["document_id"] for row in untidy}))
        await self._rows(_TIDY, model=model, chunk_ids=[row["chunk_id"] for row in untidy])
        return len(untidy)

    async def let_go(self) -> None:
        """Remove what is searched of models that the space has left, once it is tidy."""
        await self._rows(_LET_GO)

    async def _rows(self, statement: HotStatement, **parameters: Any) -> Sequence[Row]:
        return await statement.rows(self._connection, {**self._own, **parameters})
