"""SQL of spaces that move to another model. Returns rows; never commits.

A row has room for two vectors. The second is filled with the target's while searches go on with the
first; once no row lacks it the space names the target as its model, and reads take whichever of the
two is asked for. Later the second takes the place of the first.

Whatever is searched moves in the same way: what differs is where rows are, what they follow from,
and what whoever changes them holds first.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.chat.models import EMBEDDED_CHARACTERS
from hub_server.database import HotStatement
from hub_server.rows import Row
from hub_server.spaces import KINDS

_CLAIM: Final = sa.text(
    "SELECT tenant_id, user_id, kind, attempt FROM hub_claim_reembedding(:lease, :models)"
).columns(tenant_id=sa.Uuid(as_uuid=False), user_id=sa.Uuid(as_uuid=False))

_OF_SPACE: Final = """
    tenant_id = :tenant_id ::uuid AND user_id = :user_id ::uuid AND kind = :kind ::text"""
_LACKS: Final = "c.embedding_model <> :model ::text AND c.next_model IS DISTINCT FROM :model ::text"
_OF_ONE: Final = """
    c.tenant_id = :tenant_id ::uuid AND c.user_id = :user_id ::uuid"""

# A user who has no space yet gets one: what is written first is then of the model asked for.
_OPEN: Final = HotStatement("""
INSERT INTO spaces (tenant_id, user_id, kind, last_seq)
SELECT u.tenant_id, u.user_id, kinds.kind, 0
FROM users u CROSS JOIN unnest(:kinds ::text[]) AS kinds (kind)
WHERE u.tenant_id = :tenant_id ::uuid AND u.user_id = :user_id ::uuid AND u.deleted_at IS NULL
ON CONFLICT DO NOTHING RETURNING 1
""")
# Asked for again, a move goes on; one to another model takes its place.
_ASK: Final = HotStatement("""
INSERT INTO reembeddings AS r (tenant_id, user_id, kind, target_model, status)
SELECT s.tenant_id, s.user_id, s.kind, :model ::text, 'moving'
FROM spaces s
JOIN users u ON u.tenant_id = s.tenant_id AND u.user_id = s.user_id AND u.deleted_at IS NULL
WHERE s.tenant_id = :tenant_id ::uuid AND s.kind = ANY (:kinds ::text[])
  AND (:user_id ::uuid IS NULL OR s.user_id = :user_id ::uuid)
ORDER BY s.user_id, s.kind
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
WHERE tenant_id = :tenant_id ::uuid AND kind = ANY (:kinds ::text[])
  AND status IN ('moving', 'failed')
  AND (:user_id ::uuid IS NULL OR user_id = :user_id ::uuid)
RETURNING 1
""")
# Of a tenant those spaces count that were asked to where the last one was.
_PROGRESS: Final = HotStatement("""
SELECT max(r.target_model) AS target_model,
       count(*) AS spaces_total,
       count(DISTINCT r.user_id) AS users_total,
       count(DISTINCT r.user_id)
           - count(DISTINCT r.user_id) FILTER (WHERE r.status <> 'done') AS users_done,
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
WHERE r.tenant_id = :tenant_id ::uuid AND r.kind = ANY (:kinds ::text[])
  AND (:user_id ::uuid IS NULL OR r.user_id = :user_id ::uuid)
  AND r.target_model = (
      SELECT last.target_model FROM reembeddings last
      WHERE last.tenant_id = :tenant_id ::uuid AND last.kind = ANY (:kinds ::text[])
        AND (:user_id ::uuid IS NULL OR last.user_id = :user_id ::uuid)
      ORDER BY last.asked_at DESC LIMIT 1)
""")

_CLAIMED: Final = HotStatement("""
SELECT r.target_model, r.status, s.embedding_model
FROM reembeddings r
JOIN spaces s ON s.tenant_id = r.tenant_id AND s.user_id = r.user_id AND s.kind = r.kind
WHERE r.tenant_id = :tenant_id ::uuid AND r.user_id = :user_id ::uuid AND r.kind = :kind ::text
  AND r.attempt = :attempt ::int
""")
_SET: Final = HotStatement("""
UPDATE reembeddings
SET status = coalesce(:status ::text, status), error = coalesce(:error ::text, error),
    is_untidy = coalesce(:is_untidy ::boolean, is_untidy),
    rows_total = coalesce(:rows_total ::bigint,
                          greatest(rows_total, rows_done + :more ::bigint)),
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


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the rows of a kind of space are, as SQL. A row is ``c``, what it follows from ``g``."""

    table: str
    key: str
    its: str
    """FROM and WHERE: the rows that are found, or would be if what was done to them were undone."""

    order: tuple[str, str]
    """By what rows are read, each once, and how a place in that order is given."""

    start: tuple[str, str]
    """The place before all rows."""

    told: str
    """What is embedded, and what more is told of it."""

    hold: str
    """What whoever changes rows or takes a seq of the space holds first, as everywhere."""

    groups: str = ""
    """The table of what bears the seqs; empty = the rows themselves do."""

    group_key: str = ""
    is_whole: str = "g.next_model = :model ::text"
    """Whether nothing that bears one seq lacks a vector."""

    own_model: str = "''"
    """Whose vectors a row has, if they are not the hub's; these stay."""

    version: str = "0"
    """A number that changes when a row does: a vector is of one version."""

    def statement(self, text: str) -> HotStatement:
        """Return a statement about rows of this kind."""
        group_key = self.group_key or self.key
        return HotStatement(
            text,
            table=self.table,
            key=self.key,
            its=self.its.format(one=_OF_ONE),
            places=self.order[0],
            after=self.order[1],
            told=self.told,
            groups=self.groups or self.table,
            group_key=group_key,
            is_whole=self.is_whole.format(lacks=_LACKS),
            own_model=self.own_model,
            version=self.version,
            lacks=_LACKS,
            of_space=_OF_SPACE,
        )


_BY_SEQ: Final = ("c.space_seq", ":after_id ::bigint")
_KINDS: Final = {
    "knowledge": _Kind(
        table="chunks",
        key="chunk_id",
        its="""
            FROM chunks c
            JOIN documents d ON d.tenant_id = c.tenant_id AND d.document_id = c.document_id
            WHERE {one} AND c.revision = d.revision""",
        order=("c.embedding_model, c.chunk_id", ":after_model ::text, :after_id ::uuid"),
        start=("", "00000000-0000-0000-0000-000000000000"),
        told="""
            c.embedding_model AS place_model, c.chunk_id::text AS place_id, c.content,
            c.metadata ->> 'document_title' AS document_title, c.heading_path""",
        hold="""
            SELECT document_id FROM documents
            WHERE tenant_id = :tenant_id ::uuid AND document_id = ANY (:group_ids ::uuid[])
            ORDER BY document_id FOR UPDATE""",
        groups="documents",
        group_key="document_id",
        is_whole="""NOT EXISTS (
            SELECT FROM chunks c
            WHERE c.tenant_id = :tenant_id ::uuid AND c.document_id = g.document_id
              AND c.revision = g.revision AND {lacks})""",
        own_model="d.own_model",
    ),
    "memory": _Kind(
        table="memory_store",
        key="memory_id",
        its="FROM memory_store c WHERE {one} AND c.deleted_at IS NULL",
        order=_BY_SEQ,
        start=("", "0"),
        told="'' AS place_model, c.space_seq::text AS place_id, c.memory_content AS content",
        hold="SELECT last_seq FROM spaces WHERE {of_space} FOR UPDATE",
        # Of a memory that is deleted nothing is kept.
        version="CASE WHEN c.deleted_at IS NULL THEN c.revision ELSE 0 END",
    ),
    "messages": _Kind(
        table="chat_messages",
        key="message_id",
        # What has no vector yet gets one of the model that the space has then.
        its="""
            FROM chat_messages c
            WHERE {one} AND c.space_seq IS NOT NULL AND c.embedding IS NOT NULL""",
        order=_BY_SEQ,
        start=("", "0"),
        told=f"""
            '' AS place_model, c.space_seq::text AS place_id,
            left(c.content, {EMBEDDED_CHARACTERS}) AS content""",
        hold="""
            SELECT message_id FROM chat_messages
            WHERE tenant_id = :tenant_id ::uuid AND message_id = ANY (:group_ids ::uuid[])
            ORDER BY message_id FOR NO KEY UPDATE""",
        # A message changes when it is redacted, and has no vectors then.
        version="(c.embedding IS NULL)::int",
    ),
}


def _of_kinds(text: str) -> Mapping[str, HotStatement]:
    return {name: kind.statement(text) for name, kind in _KINDS.items()}


_HOLD: Final = {name: kind.statement(kind.hold) for name, kind in _KINDS.items()}
_TOTALS: Final = _of_kinds("""
SELECT count(*) FILTER (WHERE {own_model} = '') AS rows_total,
       count(*) FILTER (WHERE {own_model} = '' AND NOT ({lacks})) AS rows_done,
       count(*) FILTER (WHERE {own_model} <> '' AND {own_model} <> :model ::text) AS rows_own
{its}
""")
_LACKING: Final = _of_kinds("""
SELECT c.{key}::text AS row_id, c.{group_key}::text AS group_id, {version} AS version, {told}
{its}
  AND {own_model} = '' AND {lacks}
  AND ({places}) > ({after})
ORDER BY {places}
LIMIT :most ::int
""")
_FILL: Final = _of_kinds("""
UPDATE {table} c SET next_embedding = made.embedding, next_model = :model ::text
FROM unnest(:row_ids ::uuid[], :versions ::int[], :embeddings ::bytea[])
    AS made (row_id, version, embedding)
WHERE c.tenant_id = :tenant_id ::uuid AND c.{key} = made.row_id AND {version} = made.version
RETURNING 1
""")
# A view of the target that somebody made before learns of these rows.
_TELL: Final = _of_kinds("""
WITH whole AS (
    SELECT g.{group_key} AS group_id, row_number() OVER (ORDER BY g.{group_key}) AS place,
           count(*) OVER () AS total
    FROM {groups} g
    WHERE g.tenant_id = :tenant_id ::uuid AND g.{group_key} = ANY (:group_ids ::uuid[])
      AND g.space_seq IS NOT NULL AND {is_whole}
),
moved AS (
    UPDATE spaces SET last_seq = last_seq + taken.total, updated_at = clock_timestamp()
    FROM (SELECT DISTINCT total FROM whole) taken
    WHERE {of_space}
    RETURNING last_seq
)
UPDATE {groups} g SET space_seq = moved.last_seq - whole.total + whole.place
FROM whole CROSS JOIN moved
WHERE g.tenant_id = :tenant_id ::uuid AND g.{group_key} = whole.group_id
RETURNING 1
""")
_SWITCH: Final = HotStatement("""
UPDATE spaces SET embedding_model = :model ::text, updated_at = clock_timestamp()
WHERE {of_space} RETURNING last_seq
""", of_space=_OF_SPACE)  # fmt: skip
_UNTIDY: Final = _of_kinds("""
SELECT {key}::text AS row_id, {group_key}::text AS group_id FROM {table}
WHERE tenant_id = :tenant_id ::uuid AND user_id = :user_id ::uuid AND next_model IS NOT NULL
  AND (:kept ::text IS NULL OR next_model <> :kept ::text)
ORDER BY {key} LIMIT :most ::int
""")
# The searches of the space need only the one of the two vectors that is of its model.
_TIDY: Final = _of_kinds("""
UPDATE {table} c
SET embedding = CASE WHEN c.next_model = :model ::text THEN c.next_embedding ELSE c.embedding END,
    embedding_model = CASE WHEN c.next_model = :model ::text
                           THEN c.next_model ELSE c.embedding_model END,
    next_embedding = NULL, next_model = NULL
WHERE c.tenant_id = :tenant_id ::uuid AND c.{key} = ANY (:row_ids ::uuid[])
RETURNING 1
""")
# What pgvector searches of a model that no chunk has any more.
_LET_GO: Final = _of_kinds("""
DELETE FROM vector_spaces v
WHERE v.tenant_id = :tenant_id ::uuid AND v.user_id = :user_id ::uuid AND v.kind = :kind ::text
  AND NOT EXISTS (SELECT {its} AND c.embedding_model = v.embedding_model)
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
    """The moves of one tenant's spaces, of one user (None = of all) and kind (None = of all)."""

    def __init__(
        self,
        connection: AsyncConnection,
        tenant_id: str,
        user_id: str | None,
        kind: str | None = None,
    ) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._kind = kind or ""
        kinds = [kind] if kind else list(KINDS)
        self._own = {"tenant_id": tenant_id, "user_id": user_id, "kind": kind, "kinds": kinds}

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
        return (await self._rows(_TOTALS[self._kind], model=model))[0]

    async def lacking(self, model: str, after: Row | None, most: int) -> Sequence[Row]:
        """Return some rows that lack a vector of a model, those after one; None = the first."""
        start = _KINDS[self._kind].start
        place = start if after is None else (after["place_model"], after["place_id"])
        return await self._rows(
            _LACKING[self._kind],
            model=model,
            after_model=place[0],
            after_id=place[1],
            most=most,
        )

    async def fill(self, model: str, rows: Sequence[Row], vectors: Sequence[bytes]) -> None:
        """Keep the vectors of rows that are as they were; searches by the model learn of them."""
        groups = {"group_ids": list({row["group_id"] for row in rows})}
        await self._rows(_HOLD[self._kind], **groups)
        made = {
            "row_ids": [row["row_id"] for row in rows],
            "versions": [row["version"] for row in rows],
            "embeddings": list(vectors),
        }
        await self._rows(_FILL[self._kind], model=model, **made)
        await self._rows(_TELL[self._kind], model=model, **groups)

    async def switch(self, model: str) -> bool:
        """Let the space be searched by a model; False = a row lacks its vector.

        From the first statement on nobody writes to the space, so the second sees all of its rows.
        """
        await self._rows(_SWITCH, model=model)
        return not await self.lacking(model, None, 1)

    async def tidy(self, model: str | None, most: int, *, kept: str | None = None) -> int:
        """Free the room of the second vector of some rows; return of how many.

        One of the space's model takes the place of the first; one of ``kept`` stays.
        """
        untidy = await self._rows(_UNTIDY[self._kind], most=most, kept=kept)
        groups = list({row["group_id"] for row in untidy})
        await self._rows(_HOLD[self._kind], group_ids=groups)
        row_ids = [row["row_id"] for row in untidy]
        await self._rows(_TIDY[self._kind], model=model, row_ids=row_ids)
        return len(untidy)

    async def let_go(self) -> None:
        """Remove what is searched of models that the space has left, once it is tidy."""
        await self._rows(_LET_GO[self._kind])

    async def _rows(self, statement: HotStatement, **parameters: Any) -> Sequence[Row]:
        return await statement.rows(self._connection, {**self._own, **parameters})
