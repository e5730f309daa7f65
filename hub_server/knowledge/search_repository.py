"""SQL of the search over knowledge. Returns rows; never commits."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.chat.served import SERVED
from hub_server.database import HotStatement
from hub_server.ids import new_id
from hub_server.knowledge.filters import Condition
from hub_server.knowledge.models import retrievals
from hub_server.rows import Row

_FILTERED: Final = HotStatement("""
SELECT array_agg(found::text) AS chunk_ids FROM hub_filtered_chunks(
    :user_id ::uuid, :merged ::jsonpath, :of_documents ::jsonpath, :of_chunks ::jsonpath,
    :names ::text[], :most ::integer) AS found
""")
# As in the search over messages, the reads of single rows are laterals with a limit: so each is a
# look-up in an index, whatever Postgres believes of the sizes of tables and arrays.
_PARTS: Final = {
    "document": """
        SELECT d.revision, d.metadata FROM documents d
        WHERE d.tenant_id = :tenant_id ::uuid AND d.document_id = given.document_id
          AND d.user_id = :user_id ::uuid AND d.deleted_at IS NULL
        LIMIT 1""",
    "chunk": """
        c.chunk_id::text, c.document_id::text, c.metadata ->> 'document_title' AS document_title,
        c.chunk_index, c.content, c.heading_path, c.start_char, c.end_char, c.token_count,
        c.metadata""",
    "is_asked": "(:merged ::jsonpath IS NULL OR (d.metadata || c.metadata) @@ :merged ::jsonpath)",
}
_OF_DOCUMENTS: Final = HotStatement(
    """
SELECT array_agg(found.chunk_id::text) AS chunk_ids FROM (
    SELECT c.chunk_id
    FROM (SELECT DISTINCT unnest(:document_ids ::uuid[]) AS document_id) given
    CROSS JOIN LATERAL ({document}) d
    CROSS JOIN LATERAL (
        SELECT c.chunk_id, c.metadata FROM chunks c
        WHERE c.tenant_id = :tenant_id ::uuid AND c.document_id = given.document_id
          AND c.revision = d.revision
        OFFSET 0) c
    WHERE {is_asked}
    LIMIT :most ::integer) found
""",
    **_PARTS,
)
_BESIDE: Final = HotStatement(
    """
SELECT array_agg(found.chunk_id::text) AS chunk_ids FROM (
    SELECT c.chunk_id
    FROM documents d
    CROSS JOIN LATERAL (
        SELECT c.chunk_id, c.metadata FROM chunks c
        WHERE c.tenant_id = :tenant_id ::uuid AND c.document_id = d.document_id
          AND c.revision = d.revision
        OFFSET 0) c
    WHERE d.tenant_id = :tenant_id ::uuid AND d.user_id = :user_id ::uuid
      AND d.deleted_at IS NULL AND d.document_id <> ALL (:full ::uuid[])
      AND (:document_ids ::uuid[] IS NULL OR d.document_id = ANY (:document_ids ::uuid[]))
      AND {is_asked}
    LIMIT :most ::integer) found
""",
    **_PARTS,
)
# A row without a chunk_id stands for none: the seq is told in any case, of the same moment.
_SHOWN: Final = HotStatement(
    """
SELECT s.last_seq, shown.*
FROM (SELECT coalesce(max(last_seq), 0) AS last_seq FROM spaces
      WHERE tenant_id = :tenant_id ::uuid AND user_id = :user_id ::uuid AND kind = 'knowledge') s
LEFT JOIN LATERAL (
    SELECT {chunk}
    FROM unnest(:chunk_ids ::uuid[]) AS asked (chunk_id)
    CROSS JOIN LATERAL (
        SELECT * FROM chunks c
        WHERE c.tenant_id = :tenant_id ::uuid AND c.chunk_id = asked.chunk_id
          AND c.user_id = :user_id ::uuid
          AND (:document_ids ::uuid[] IS NULL OR c.document_id = ANY (:document_ids ::uuid[]))
        LIMIT 1) c
    CROSS JOIN LATERAL (SELECT c.document_id) given
    CROSS JOIN LATERAL ({document}) d
    WHERE c.revision = d.revision AND {is_asked}
) shown ON true
""",
    **_PARTS,
)
_SPANS: Final = HotStatement(
    """
SELECT given.place, {chunk}
FROM unnest(:document_ids ::uuid[], :firsts ::integer[], :lasts ::integer[])
    WITH ORDINALITY AS given (document_id, first, last, place)
CROSS JOIN LATERAL ({document}) d
CROSS JOIN LATERAL (
    SELECT * FROM chunks c
    WHERE c.tenant_id = :tenant_id ::uuid AND c.document_id = given.document_id
      AND c.revision = d.revision AND c.chunk_index BETWEEN given.first AND given.last
    LIMIT given.last - given.first + 1) c
ORDER BY given.place, c.chunk_index
""",
    **_PARTS,
)


class SearchRepository:
    """The chunks of one user, as searches see them."""

    def __init__(self, connection: AsyncConnection, tenant_id: str, user_id: str) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._tenant_id = tenant_id
        self._user_id = user_id

    async def served(self, session_id: str, message_id: str) -> Row:
        """Return ``has_session``, whether it is the user's, and ``has_message``, whether it has it.

        No message = it has it.
        """
        rows = await self._rows(SERVED, session_id=session_id, message_id=message_id or None)
        return rows[0]

    async def filtered(
        self,
        document_ids: Sequence[str],
        condition: Condition | None,
        most: int,
        full: Sequence[str] = (),
    ) -> Sequence[str]:
        """Return the ids of chunks that meet a filter, so many at most: of any, or of documents.

        None of them are of the documents that are ``full``.
        """
        merged = condition and condition.merged
        if full:
            of_any = {"document_ids": list(document_ids) or None, "full": list(full)}
            rows = await self._rows(_BESIDE, merged=merged, most=most, **of_any)
        elif document_ids or condition is None:
            ids = list(document_ids)
            rows = await self._rows(_OF_DOCUMENTS, document_ids=ids, merged=merged, most=most)
        else:
            rows = await self._rows(
                _FILTERED,
                merged=merged,
                of_documents=condition.of_documents,
                of_chunks=condition.of_chunks,
                names=list(condition.names),
                most=most,
            )
        return rows[0]["chunk_ids"] or []

    async def shown_chunks(
        self, chunk_ids: Sequence[str], document_ids: Sequence[str], condition: Condition | None
    ) -> tuple[Mapping[str, Row], int]:
        """Return those of the chunks that may be shown now and are asked for, by id.

        No documents = of all; no condition = whatever their metadata. With them comes the last seq
        of the user's space at the same moment.
        """
        rows = await self._rows(
            _SHOWN,
            chunk_ids=list(chunk_ids),
            document_ids=list(document_ids) or None,
            merged=condition and condition.merged,
        )
        shown = {row["chunk_id"]: row for row in rows if row["chunk_id"]}
        return shown, rows[0]["last_seq"]

    async def spans(self, spans: Sequence[tuple[str, int, int]]) -> Mapping[int, Sequence[Row]]:
        """Return the chunks of spans of documents that may be shown now, by the span's place.

        A span is a document, its first and its last ``chunk_index``.
        """
        document_ids, firsts, lasts = (list(column) for column in zip(*spans, strict=True))
        rows = await self._rows(_SPANS, document_ids=document_ids, firsts=firsts, lasts=lasts)
        found: dict[int, list[Row]] = {}
        for row in rows:
            found.setdefault(row["place"] - 1, []).append(row)
        return found

    async def record(self, searches: Sequence[Sequence[Mapping[str, Any]]], **common: Any) -> None:
        """Record which chunks each search returned, best first; all of it or nothing."""
        common |= {"tenant_id": self._tenant_id, "user_id": self._user_id}
        rows = [
            {**common, **hit, "retrieval_id": retrieval_id, "rank": rank}
            for retrieval_id, hits in ((new_id(), hits) for hits in searches)
            for rank, hit in enumerate(hits, start=1)
        ]
        await self._connection.execute(sa.insert(retrievals).values(rows))

    async def _rows(self, statement: HotStatement, **parameters: Any) -> Sequence[Row]:
        own = {"tenant_id": self._tenant_id, "user_id": self._user_id}
        return await statement.rows(self._connection, {**own, **parameters})
