"""Vectors in Postgres, searched there by pgvector: a view like those in memory, of all processes.

A space's vectors follow its rows up to ``applied_seq``, which rises only together with what it
tells of. They may be removed at any time; whoever searches next makes them anew, in another life.

A row is searched exactly until it is ``in_graph``: the index of pgvector holds only rows of large
spaces, moved there a few at a time, so neither writes nor small spaces pay for it.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.database import HotStatement, identifier, tenant_table, timestamp
from hub_server.retrieval.views import Space
from hub_server.rows import Row

__all__ = ["MOST_INDEXED", "Found", "Page", "VectorStore", "is_fit", "vector_spaces", "vectors"]

MOST_INDEXED: Final = 2_000
"""Dimensions up to which pgvector has an index; longer vectors are searched exactly."""

_OLDEST_PGVECTOR: Final = (0, 8)  # the first that goes on where a filter left too few
_MOST_EF: Final = 1_000  # pgvector's own bound

_KEY: Final = ("tenant_id", "user_id", "kind", "embedding_model")

vector_spaces = tenant_table(
    "vector_spaces",
    identifier("user_id", nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("embedding_model", sa.Text, nullable=False),
    identifier("life", nullable=False),
    sa.Column("dimension", sa.Integer, nullable=False),
    sa.Column("applied_seq", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("row_count", sa.BigInteger, nullable=False, server_default="0"),
    timestamp("built_at"),
    sa.PrimaryKeyConstraint(*_KEY),
    sa.ForeignKeyConstraint(
        ["tenant_id", "user_id"], ["users.tenant_id", "users.user_id"], ondelete="CASCADE"
    ),
)
# Not of pgvector's own type, so that the tables are the same where it is not installed.
vectors = tenant_table(
    "vectors",
    identifier("user_id", nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("embedding_model", sa.Text, nullable=False),
    identifier("row_id", nullable=False),
    identifier("group_id", nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("in_graph", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("embedding", ARRAY(sa.REAL), nullable=False),
    sa.PrimaryKeyConstraint("tenant_id", "row_id", "embedding_model"),
    sa.ForeignKeyConstraint(_KEY, [f"vector_spaces.{name}" for name in _KEY], ondelete="CASCADE"),
    sa.Index("vectors_group", *_KEY, "group_id"),
    sa.Index("vectors_exact", *_KEY, postgresql_where=sa.text("NOT in_graph")),
)

_OF_SPACE: Final = """
    {alias}.tenant_id = :tenant_id ::uuid AND {alias}.user_id = :user_id ::uuid
    AND {alias}.kind = :kind ::text AND {alias}.embedding_model = :embedding_model ::text"""
_SPACE: Final = {
    "space": _OF_SPACE.format(alias="s"),
    "rows": _OF_SPACE.format(alias="v"),
}

_BEGIN: Final = HotStatement("""
INSERT INTO vector_spaces (tenant_id, user_id, kind, embedding_model, life, dimension)
SELECT u.tenant_id, u.user_id, :kind ::text, :embedding_model ::text, :life ::uuid,
       :dimension ::int
FROM users u WHERE u.tenant_id = :tenant_id ::uuid AND u.user_id = :user_id ::uuid
FOR KEY SHARE
ON CONFLICT DO NOTHING
RETURNING life::text
""")
# All or nothing of a page, and only if nobody was faster: the space's row is held before anything
# is written, and whoever waited for it finds it changed. The removal comes before the addition,
# which asks for its count: a row that changed keeps its id.
_APPLY: Final = HotStatement(
    """
WITH held AS MATERIALIZED (
    SELECT FROM vector_spaces s
    WHERE {space} AND s.life = :life ::uuid AND s.applied_seq = :before ::bigint
    FOR NO KEY UPDATE
),
gone AS (
    DELETE FROM vectors v USING held
    WHERE {rows} AND v.group_id = ANY (:changed ::uuid[])
    RETURNING 1
),
added AS (
    INSERT INTO vectors
        (tenant_id, user_id, kind, embedding_model, row_id, group_id, seq, embedding)
    SELECT :tenant_id ::uuid, :user_id ::uuid, :kind ::text, :embedding_model ::text,
           one.row_id, one.group_id, one.seq,
           (:embeddings ::real[])[(one.place - 1) * :dimension ::int + 1
                                  : one.place * :dimension ::int]
    FROM held CROSS JOIN (SELECT count(*) FROM gone) removed
    CROSS JOIN unnest(:row_ids ::uuid[], :group_ids ::uuid[], :seqs ::bigint[])
        WITH ORDINALITY AS one (row_id, group_id, seq, place)
    RETURNING 1
)
UPDATE vector_spaces s
SET applied_seq = :seq ::bigint, updated_at = now(),
    row_count = s.row_count - (SELECT count(*) FROM gone) + (SELECT count(*) FROM added)
FROM held
WHERE {space}
RETURNING s.applied_seq
""",
    **_SPACE,
)
_FORGET: Final = HotStatement("""
DELETE FROM vector_spaces s
WHERE s.tenant_id = :tenant_id ::uuid AND s.user_id = :user_id ::uuid AND s.kind = :kind ::text
RETURNING s.embedding_model
""")
_END: Final = HotStatement(
    "DELETE FROM vector_spaces s WHERE {space} AND s.life = :life ::uuid RETURNING 1", **_SPACE
)
# Materialized: a join might otherwise run what limits and locks more than once.
_MOVE: Final = HotStatement(
    """
WITH one AS MATERIALIZED (
    SELECT v.row_id FROM vectors v
    WHERE {rows} AND NOT v.in_graph
    LIMIT :most ::int
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE vectors m SET in_graph = true
FROM one
WHERE m.tenant_id = :tenant_id ::uuid AND m.row_id = one.row_id
  AND m.embedding_model = :embedding_model ::text
RETURNING 1
""",
    **_SPACE,
)
_BUILT: Final = HotStatement(
    "UPDATE vector_spaces s SET built_at = now() WHERE {space} RETURNING 1", **_SPACE
)
_STATE: Final = HotStatement(
    """
SELECT s.life::text, s.dimension, s.applied_seq, s.row_count,
       s.built_at,
       (SELECT count(*) FROM vectors v WHERE {rows} AND NOT v.in_graph) AS behind
FROM vector_spaces s WHERE {space}
""",
    **_SPACE,
)
_GROUPS: Final = HotStatement(
    """
SELECT s.applied_seq, v.row_id::text, v.group_id::text, v.seq, v.embedding
FROM vector_spaces s
LEFT JOIN vectors v ON {rows} AND v.group_id = ANY (:group_ids ::uuid[])
WHERE {space}
""",
    **_SPACE,
)
_IDS: Final = HotStatement(
    "SELECT v.row_id::text, v.group_id::text, v.seq FROM vectors v WHERE {rows}", **_SPACE
)
_SAMPLE: Final = HotStatement(
    "SELECT v.embedding FROM vectors v WHERE {rows} ORDER BY hashtext(v.row_id::text)"
    " LIMIT :most ::int",
    **_SPACE,
)
_INDEX: Final = HotStatement("SELECT hub_index_vectors(:dimension ::int)")

# Local to the transaction. Without the second, Postgres may prefer to sort a space's rows; and no
# more is walked than an exact search would cost: what is found by then is too little, and known
# to be.
_NARROW: Final = HotStatement("""
SELECT set_config('hnsw.ef_search', :ef ::text, true), set_config('enable_sort', 'off', true),
       set_config('hnsw.iterative_scan', 'strict_order', true),
       set_config('hnsw.max_scan_tuples', :most ::text, true)
""")

# Each returns the space's state with every row found, or once with none.
_FOUND: Final = """
SELECT s.life::text, s.dimension, s.applied_seq, s.row_count, coalesce(found.behind, 0) AS behind,
       found.row_id::text, -found.distance AS score
FROM vector_spaces s
LEFT JOIN LATERAL ({found}) found ON true
WHERE {space}
ORDER BY found.distance, found.row_id
"""
# Distances are computed before anything is sorted or counted, so that neither carries vectors
# about; and the query becomes a vector once, not with every row.
_DISTANCE: Final = """
    v.embedding::vector({dimension}) <#> (SELECT :query ::real[]::vector({dimension}))"""
_EXACT: Final = """
    SELECT near.row_id, near.distance, count(*) OVER () AS behind
    FROM (SELECT v.row_id, {distance} AS distance
          FROM vectors v WHERE {rows} AND {only} AND cardinality(v.embedding) = {dimension}
          OFFSET 0) near
    ORDER BY near.distance, near.row_id LIMIT :depth ::int"""
_BY_GRAPH: Final = """
    SELECT v.row_id, {distance} AS distance, 0::bigint AS behind
    FROM vectors v WHERE {rows} AND v.in_graph AND cardinality(v.embedding) = {dimension}
    ORDER BY {distance} LIMIT :depth ::int"""


@lru_cache(maxsize=64)
def _nearest(dimension: int, how: str) -> HotStatement:
    """Return a search: of rows ``behind`` the graph, by ``graph`` and these, ``all``, ``among``."""
    exact = {"behind": "NOT v.in_graph", "all": "true", "among": "v.row_id = ANY (:ids ::uuid[])"}
    if how == "graph":
        behind = _EXACT.replace("{only}", exact["behind"])
        found = f"({_BY_GRAPH}) UNION ALL ({behind})"
    else:
        found = _EXACT.replace("{only}", exact[how])
    parts = {**_SPACE, "dimension": str(int(dimension))}
    parts["distance"] = _DISTANCE.format(**parts)
    return HotStatement(_FOUND, **parts, found=found.format(**parts))


@dataclass(frozen=True, slots=True)
class Found:
    """The state of a space, and rows nearest to a query: ids and cosines, highest first."""

    life: str
    dimension: int
    applied_seq: int
    row_count: int
    behind: int
    """Rows not in the graph, as far as the search looked at those."""
    rows: Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Page:
    """What a page of changes makes of a space: rows of the changed groups, and up to which seq."""

    seq: int
    changed: Sequence[str]
    """Ids of groups; all they had is replaced."""
    row_ids: Sequence[str]
    group_ids: Sequence[str]
    seqs: Sequence[int]
    embeddings: NDArray[np.float32]
    """Of the rows, one after the other; shape (n * dimension,)."""


async def is_fit(connection: AsyncConnection) -> bool:
    """Tell whether this database has a pgvector that is recent enough."""
    query = sa.text("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
    version = (await connection.execute(query)).scalar()
    return version is not None and _numbers(version) >= _OLDEST_PGVECTOR


class VectorStore:
    """The vectors of one space."""

    def __init__(self, connection: AsyncConnection, space: Space) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._own = {
            "tenant_id": space.tenant_id,
            "user_id": space.user_id,
            "kind": space.kind,
            "embedding_model": space.embedding_model,
        }

    async def begin(self, dimension: int) -> None:
        """Begin a life of the space, unless it has one or its user is gone."""
        await self._rows(_BEGIN, life=str(uuid.uuid4()), dimension=dimension)

    async def end(self, life: str) -> None:
        """Remove all there is of a life of the space."""
        await self._rows(_END, life=life)

    async def forget(self) -> None:
        """Remove all vectors of the tenant's user's kind, of whatever model."""
        await self._rows(_FORGET)

    async def apply(self, before: Found, page: Page) -> bool:
        """Bring the space from where it was to where ``page`` ends; False = others were faster."""
        applied = await self._rows(
            _APPLY,
            life=before.life,
            before=before.applied_seq,
            dimension=before.dimension,
            seq=page.seq,
            changed=list(page.changed),
            row_ids=list(page.row_ids),
            group_ids=list(page.group_ids),
            seqs=list(page.seqs),
            embeddings=page.embeddings,
        )
        return bool(applied)

    async def exact(
        self, query: NDArray[np.float32], depth: int, how: str = "all", ids: Sequence[str] = ()
    ) -> Found | None:
        """Search all rows, those ``behind`` the graph, or ``among`` ids; None = no such space."""
        return await self._found(how, query, depth, ids=list(ids))

    async def by_graph(
        self, query: NDArray[np.float32], depth: int, ef: int, row_count: int
    ) -> Found | None:
        """Search by the graph, and those behind it exactly. Needs a transaction."""
        most = max(2 * _MOST_EF, row_count // 2)
        await self._rows(_NARROW, ef=str(min(max(ef, depth), _MOST_EF)), most=str(most))
        return await self._found("graph", query, depth)

    async def index(self, dimension: int) -> None:
        """Make the index for vectors of a dimension, unless it is there."""
        await self._rows(_INDEX, dimension=dimension)

    async def move(self, most: int) -> int:
        """Put so many rows into the graph; return how many it were."""
        return len(await self._rows(_MOVE, most=most))

    async def built(self) -> None:
        """Note that the graph is up to date."""
        await self._rows(_BUILT)

    async def state(self) -> Row | None:
        """Return life, dimension, applied_seq, row_count, behind, built_at; None = no space."""
        rows = await self._rows(_STATE)
        return rows[0] if rows else None

    async def groups(self, group_ids: Sequence[str]) -> Sequence[Row]:
        """Return the rows of groups with ``applied_seq``; one without row_id stands for none."""
        return await self._rows(_GROUPS, group_ids=list(group_ids))

    async def ids(self) -> Sequence[Row]:
        """Return row_id, group_id and seq of all rows."""
        return await self._rows(_IDS)

    async def sample(self, most: int) -> Sequence[NDArray[np.float32]]:
        """Return some of the vectors, always the same."""
        rows = await self._rows(_SAMPLE, most=most)
        return [np.array(row["embedding"], dtype=np.float32) for row in rows]

    async def _found(
        self, how: str, query: NDArray[np.float32], depth: int, **more: Any
    ) -> Found | None:
        parameters = {"query": query, "depth": depth, **more}
        rows = await self._rows(_nearest(len(query), how), **parameters)
        if not rows:
            return None
        first = rows[0]
        found = [(row["row_id"], float(row["score"])) for row in rows if row["row_id"]]
        return Found(
            life=first["life"],
            dimension=first["dimension"],
            applied_seq=first["applied_seq"],
            row_count=first["row_count"],
            behind=max(row["behind"] for row in rows),
            rows=found[:depth],
        )

    async def _rows(
        self, statement: HotStatement, **parameters: Any
    ) -> Sequence[Mapping[str, Any]]:
        return await statement.rows(self._connection, {**self._own, **parameters})


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
