"""SQL of knowledge. Returns rows; never commits."""

import datetime as dt
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.chat.models import chat_sessions
from hub_server.identity.models import tenants, users
from hub_server.ids import new_id
from hub_server.knowledge.chunking import headed
from hub_server.knowledge.models import chunks, documents, retrievals
from hub_server.paging import Page
from hub_server.retrieval.view import Change, IndexedRow
from hub_server.rows import Row
from hub_server.spaces import spaces
from hub_server.wakeups import CHANNEL

_DOCUMENT: Final = (
    documents.c.document_id,
    documents.c.user_id,
    documents.c.title,
    documents.c.source_url,
    documents.c.author,
    documents.c.status,
    documents.c.error,
    documents.c.chunk_count,
    documents.c.metadata,
    documents.c.max_tokens,
    documents.c.overlap_tokens,
    documents.c.chunks_done,
    documents.c.chunks_total,
    documents.c.revision,
    documents.c.own_model,
    documents.c.file_name,
    documents.c.media_type,
    sa.func.encode(documents.c.content_hash, "hex").label("content_hash"),
    documents.c.created_at,
    documents.c.updated_at,
    documents.c.deleted_at,
)
_CHUNK: Final = (
    chunks.c.chunk_id,
    chunks.c.document_id,
    chunks.c.metadata["document_title"].astext.label("document_title"),
    chunks.c.chunk_index,
    chunks.c.content,
    chunks.c.heading_path,
    chunks.c.start_char,
    chunks.c.end_char,
    chunks.c.token_count,
    chunks.c.metadata,
)
_TOLD: Final = sa.func.pg_notify(CHANNEL, sa.cast(documents.c.document_id, sa.Text))
# One who stores a text waits for another who stores the same for the same user.
_SAME_TEXT: Final = sa.text(
    "SELECT pg_advisory_xact_lock(hashtextextended(:user_id || encode(:content_hash, 'hex'), 0))"
)
# What one statement brings to a view, in documents and in chunks: enough to make the round trip
# small beside the work, few enough for some 10 MB. One document is always brought.
_MOST_CHANGES: Final = 64
_FLOAT_BYTES: Final = 4
_MOST_CHUNKS: Final = 2000
_CLAIM: Final = sa.text(
    "SELECT tenant_id, document_id, attempt FROM hub_claim_document(:lease)"
).columns(tenant_id=sa.Uuid(as_uuid=False), document_id=sa.Uuid(as_uuid=False))


async def claim_document(connection: AsyncConnection, lease: dt.timedelta) -> Row | None:
    """Claim the oldest document that waits to be processed, of any tenant; None = none waits.

    The claim ends with its lease, and is void when another attempt begins.
    """
    return (await connection.execute(_CLAIM, {"lease": lease})).mappings().first()


class KnowledgeRepository:
    """Documents and chunks of one tenant."""

    def __init__(self, connection: AsyncConnection, tenant_id: str) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._tenant_id = tenant_id

    async def add_document(self, **values: Any) -> Row:
        """Add a document; unless told otherwise, one that waits to be processed."""
        values = {"status": "processing", **values}
        statement = (
            sa.insert(documents)
            .values(tenant_id=self._tenant_id, document_id=new_id(), **values)
            .returning(*_DOCUMENT)
        )
        return (await self._connection.execute(statement)).mappings().one()

    async def same_text(self, user_id: str, content_hash: bytes) -> Row | None:
        """Return a user's document with this text, or None; and hold off others who store it.

        The text of an upload counts as its very bytes.
        """
        parameters = {"user_id": user_id, "content_hash": content_hash}
        await self._connection.execute(_SAME_TEXT, parameters)
        query = (
            sa.select(*_DOCUMENT)
            .where(
                documents.c.tenant_id == self._tenant_id,
                documents.c.user_id == user_id,
                documents.c.content_hash == content_hash,
                documents.c.deleted_at.is_(None),
                documents.c.status != "failed",
            )
            .order_by(documents.c.document_id)
            .limit(1)
        )
        return (await self._connection.execute(query)).mappings().first()

    async def document(self, document_id: str) -> Row | None:
        """Return a document with ``user_is_active``, or None."""
        query = (
            sa.select(*_DOCUMENT, users.c.is_active.label("user_is_active"))
            .join(users, _owner())
            .where(*self._is(document_id), users.c.deleted_at.is_(None))
        )
        return (await self._connection.execute(query)).mappings().first()

    async def list_documents(
        self, user_id: str, page: Page, *, show_deleted: bool
    ) -> Sequence[Row]:
        """Return a page of a user's documents and one more, newest first.

        One row with no document_id stands for a user without documents; no row, for no user.
        """
        found = sa.select(*_DOCUMENT).where(
            documents.c.tenant_id == self._tenant_id,
            documents.c.user_id == users.c.user_id,
        )
        if not show_deleted:
            found = found.where(documents.c.deleted_at.is_(None))
        if page.after:
            found = found.where(documents.c.document_id < page.after)
        found = found.order_by(documents.c.document_id.desc()).limit(page.size + 1)
        rows = found.lateral("page")
        query = (
            sa.select(users.c.is_active.label("user_is_active"), rows)
            .select_from(users.outerjoin(rows, sa.true()))
            .where(
                users.c.tenant_id == self._tenant_id,
                users.c.user_id == user_id,
                users.c.deleted_at.is_(None),
            )
            .order_by(rows.c.document_id.desc())
        )
        return (await self._connection.execute(query)).mappings().all()

    async def lock_document(self, document_id: str) -> Row | None:
        """Hold a document, deleted or not; return it, or None.

        It bears ``user_is_active`` and ``space_model``. Whoever takes a seq of its space holds the
        document first, so that nobody waits in a circle.
        """
        query = (
            sa.select(
                *_DOCUMENT,
                users.c.is_active.label("user_is_active"),
                self._space_model().label("space_model"),
            )
            .join(users, _owner())
            .where(*self._named(document_id), users.c.deleted_at.is_(None))
            .with_for_update(of=documents)
        )
        return (await self._connection.execute(query)).mappings().first()

    async def set_document(self, document_id: str, values: Mapping[str, Any]) -> Row:
        """Change a document that is held, and tell who watches it; return it."""
        statement = (
            sa.update(documents)
            .where(*self._named(document_id))
            .values(**values, updated_at=sa.func.clock_timestamp())
            .returning(*_DOCUMENT, _TOLD)
        )
        return (await self._connection.execute(statement)).mappings().one()

    async def process_anew(self, document_id: str, values: Mapping[str, Any]) -> Row:
        """Let a document that is held be processed once more, with other values.

        Whoever works on it has lost it from now on; what searches find stays.
        """
        await self.drop_chunks(document_id, shown=False)
        begin = {
            "status": "processing",
            "error": "",
            "attempt": documents.c.attempt + 1,
            "first_attempt": documents.c.attempt + 2,
            "lease_expires_at": None,
            "chunks_done": 0,
            "chunks_total": 0,
        }
        return await self.set_document(document_id, {**begin, **values})

    async def list_chunks(self, document_id: str, page: Page) -> Sequence[Row]:
        """Return a page of a document's chunks and one more, in order.

        Each row bears ``user_id`` and ``user_is_active``. One row with no chunk_id stands for a
        document without chunks; no row, for no document.
        """
        found = sa.select(*_CHUNK).where(*_shown_chunks())
        if page.after:
            found = found.where(chunks.c.chunk_index > int(page.after))
        rows = found.order_by(chunks.c.chunk_index).limit(page.size + 1).lateral("page")
        query = (
            sa.select(documents.c.user_id, users.c.is_active.label("user_is_active"), rows)
            .select_from(documents.join(users, _owner()).outerjoin(rows, sa.true()))
            .where(*self._is(document_id), users.c.deleted_at.is_(None))
            .order_by(rows.c.chunk_index)
        )
        return (await self._connection.execute(query)).mappings().all()

    async def list_retrievals(self, session_id: str, message_id: str, page: Page) -> Sequence[Row]:
        """Return a page of what was returned to a session and one more, latest search first.

        With a message, only what served it. Each row bears ``user_id`` and ``user_is_active``. One
        row with no retrieval_id stands for a session without any; no row, for no session.
        """
        found = sa.select(*(column for column in retrievals.c if column.name != "tenant_id")).where(
            retrievals.c.tenant_id == self._tenant_id, retrievals.c.session_id == session_id
        )
        if message_id:
            found = found.where(retrievals.c.message_id == message_id)
        if page.after:
            retrieval_id, rank = page.after.split("|")
            found = found.where(
                (retrievals.c.retrieval_id < retrieval_id)
                | ((retrievals.c.retrieval_id == retrieval_id) & (retrievals.c.rank > int(rank)))
            )
        found = found.order_by(retrievals.c.retrieval_id.desc(), retrievals.c.rank)
        rows = found.limit(page.size + 1).cte("page")
        times = self._times_retrieved(rows)
        query = (
            sa.select(
                chat_sessions.c.user_id,
                users.c.is_active.label("user_is_active"),
                *(column for column in rows.c if column.name != "user_id"),
                times.c.times_retrieved,
            )
            .select_from(
                chat_sessions.join(
                    users,
                    (users.c.tenant_id == chat_sessions.c.tenant_id)
                    & (users.c.user_id == chat_sessions.c.user_id),
                )
                .outerjoin(rows, sa.true())
                .outerjoin(times, times.c.chunk_id == rows.c.chunk_id)
            )
            .where(
                chat_sessions.c.tenant_id == self._tenant_id,
                chat_sessions.c.session_id == session_id,
                chat_sessions.c.deleted_at.is_(None),
                users.c.deleted_at.is_(None),
            )
            .order_by(rows.c.retrieval_id.desc(), rows.c.rank)
        )
        return (await self._connection.execute(query)).mappings().all()

    def _times_retrieved(self, rows: sa.CTE) -> sa.Subquery:
        """Return how often each chunk of a page was returned; a page may have one many times."""
        used = sa.select(rows.c.user_id, rows.c.chunk_id).distinct().subquery("used")
        times = (
            sa.select(sa.func.count())
            .where(
                retrievals.c.tenant_id == self._tenant_id,
                retrievals.c.chunk_id == used.c.chunk_id,
                retrievals.c.user_id == used.c.user_id,
            )
            .scalar_subquery()
        )
        return sa.select(used.c.chunk_id, times.label("times_retrieved")).subquery("times")

    async def changes(self, user_id: str, model: str, after: int) -> Sequence[Change]:
        """Return the next changes of a user's knowledge space after a seq, in order."""
        shown = (documents.c.revision > 0) & documents.c.deleted_at.is_(None)
        changed = (
            sa.select(
                documents.c.tenant_id,
                documents.c.document_id,
                documents.c.space_seq,
                documents.c.revision,
                shown.label("is_shown"),
                _chunks_before().label("chunks_before"),
            )
            .where(
                documents.c.tenant_id == self._tenant_id,
                documents.c.user_id == user_id,
                documents.c.space_seq > after,
            )
            .order_by(documents.c.space_seq)
            .limit(_MOST_CHANGES)
            .subquery()
        )
        of_it = (
            (chunks.c.tenant_id == changed.c.tenant_id)
            & (chunks.c.document_id == changed.c.document_id)
            & (chunks.c.revision == changed.c.revision)
            & changed.c.is_shown
        )
        few = changed.c.chunks_before < _MOST_CHUNKS
        query = sa.select(
            changed.c.document_id,
            changed.c.space_seq,
            chunks.c.metadata["document_title"].astext.label("title"),
            chunks.c.chunk_id,
            chunks.c.heading_path,
            chunks.c.content,
            sa.case(
                (chunks.c.embedding_model == model, chunks.c.embedding),
                (chunks.c.next_model == model, chunks.c.next_embedding),
            ).label("embedding"),
        )
        query = (
            query.select_from(changed.outerjoin(chunks, of_it))
            .where(few)
            .order_by(changed.c.space_seq, chunks.c.chunk_index)
        )
        rows = (await self._connection.execute(query)).all()
        groups = groupby(rows, key=lambda row: (row.document_id, row.space_seq))
        return [
            Change(document_id, seq, tuple(_indexed(row) for row in group if row.chunk_id))
            for (document_id, seq), group in groups
        ]

    async def dimension(self, user_id: str, model: str) -> int | None:
        """Return the dimension of a user's vectors of a model; None = there are none."""
        query = (
            sa.select(sa.func.octet_length(chunks.c.embedding))
            .where(
                chunks.c.tenant_id == self._tenant_id,
                chunks.c.user_id == user_id,
                chunks.c.embedding_model == model,
            )
            .limit(1)
        )
        size: int | None = (await self._connection.execute(query)).scalar()
        return None if size is None else size // _FLOAT_BYTES

    async def label_chunks(self, document_id: str, values: Mapping[str, Any]) -> None:
        """Change what the chunks of a document tell of it."""
        statement = (
            sa.update(chunks)
            .where(chunks.c.tenant_id == self._tenant_id, chunks.c.document_id == document_id)
            .values(metadata=chunks.c.metadata.concat(sa.cast(dict(values), JSONB)))
        )
        await self._connection.execute(statement)

    async def claimed(self, document_id: str, attempt: int) -> Row | None:
        """Return the text of a document if this attempt still has it, and hold it.

        The text of an upload is empty until it is read.
        """
        query = (
            sa.select(
                documents.c.user_id,
                documents.c.title,
                documents.c.text,
                documents.c.source_url,
                documents.c.max_tokens,
                documents.c.overlap_tokens,
                documents.c.file_name,
                documents.c.media_type,
                documents.c.revision,
                documents.c.first_attempt,
                documents.c.chunks_done,
                self._space_model().label("space_model"),
            )
            .where(*self._is_claimed(document_id, attempt))
            .with_for_update()
        )
        return (await self._connection.execute(query)).mappings().first()

    async def set_claimed(self, document_id: str, attempt: int, **values: Any) -> bool:
        """Change a document if this attempt still has it; tell whether it did."""
        statement = (
            sa.update(documents)
            .where(*self._is_claimed(document_id, attempt))
            .values(**values, updated_at=sa.func.clock_timestamp())
            .returning(_TOLD)
        )
        return (await self._connection.execute(statement)).first() is not None

    async def extend_lease(
        self, document_id: str, attempt: int, lease: dt.timedelta, **values: Any
    ) -> bool:
        """Let this attempt work on, if it still has the document; tell whether it has."""
        until = sa.func.clock_timestamp() + lease
        return await self.set_claimed(document_id, attempt, lease_expires_at=until, **values)

    async def chunks_so_far(
        self, document_id: str, revision: int
    ) -> Sequence[tuple[int | None, str, str]]:
        """Return place, content and embedding model of the chunks that earlier attempts wrote."""
        query = (
            sa.select(chunks.c.start_char, chunks.c.content, chunks.c.embedding_model)
            .where(
                chunks.c.tenant_id == self._tenant_id,
                chunks.c.document_id == document_id,
                chunks.c.revision == revision,
            )
            .order_by(chunks.c.chunk_index)
        )
        return [tuple(row) for row in await self._connection.execute(query)]

    async def drop_chunks(self, document_id: str, *, shown: bool) -> None:
        """Remove the chunks of a document that searches find, or those that they do not (yet)."""
        revision = (
            sa.select(documents.c.revision).where(*self._named(document_id)).scalar_subquery()
        )
        is_shown = chunks.c.revision == revision
        await self._connection.execute(
            sa.delete(chunks).where(
                chunks.c.tenant_id == self._tenant_id,
                chunks.c.document_id == document_id,
                is_shown if shown else ~is_shown,
            )
        )

    async def add_chunks(self, rows: Sequence[Mapping[str, Any]], **common: Any) -> None:
        """Add chunks; ``common`` are the columns that all of them share."""
        values = [
            {"tenant_id": self._tenant_id, "chunk_id": new_id(), **common, **row} for row in rows
        ]
        await self._connection.execute(sa.insert(chunks), values)

    def _space_model(self) -> sa.ScalarSelect[str | None]:
        """Return the model of the space of a document."""
        return (
            sa.select(spaces.c.embedding_model)
            .where(
                spaces.c.tenant_id == self._tenant_id,
                spaces.c.user_id == documents.c.user_id,
                spaces.c.kind == "knowledge",
            )
            .scalar_subquery()
        )

    def _is(self, document_id: str) -> tuple[sa.ColumnElement[bool], ...]:
        return (*self._named(document_id), documents.c.deleted_at.is_(None))

    def _named(self, document_id: str) -> tuple[sa.ColumnElement[bool], ...]:
        """Match a document, deleted or not."""
        return (
            documents.c.tenant_id == self._tenant_id,
            documents.c.document_id == document_id,
        )

    def _is_claimed(self, document_id: str, attempt: int) -> tuple[sa.ColumnElement[bool], ...]:
        return (
            *self._is(document_id),
            documents.c.status == "processing",
            documents.c.attempt == attempt,
            sa.exists(
                sa.select(1).where(
                    _owner(),
                    users.c.erasure_id.is_(None),
                    tenants.c.tenant_id == users.c.tenant_id,
                    tenants.c.erasure_id.is_(None),
                )
            ),
        )


def _owner() -> sa.ColumnElement[bool]:
    return (users.c.tenant_id == documents.c.tenant_id) & (users.c.user_id == documents.c.user_id)


def _shown_chunks() -> tuple[sa.ColumnElement[bool], ...]:
    """Match the chunks of a document that searches may find."""
    return (
        chunks.c.tenant_id == documents.c.tenant_id,
        chunks.c.document_id == documents.c.document_id,
        chunks.c.revision == documents.c.revision,
    )


def _chunks_before() -> sa.ColumnElement[int]:
    """Return how many chunks the changes before this one have."""
    total = sa.func.sum(documents.c.chunk_count).over(order_by=documents.c.space_seq)
    return total - documents.c.chunk_count


def _indexed(row: Any) -> IndexedRow:
    """Return a chunk as its view takes it, without a vector if it has none of the model."""
    text = headed(row.title, row.heading_path, row.content)
    return IndexedRow(row.chunk_id, text, bytes(row.embedding or b""))
