"""Ingestion: documents that wait are split, embedded and made searchable.

The queue is the documents themselves. A worker claims one with SKIP LOCKED for the time of a
lease, which each written batch extends; when it dies, the lease ends and another goes on behind
the chunks that are written already. Each claim is a numbered attempt, and a worker whose attempt
is no longer the document's writes nothing.
"""

import asyncio
import datetime as dt
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import structlog
from semantic_text_splitter import MarkdownSplitter

from hub_server import spaces
from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.embedding import Embedder
from hub_server.errors import HubError
from hub_server.knowledge.repository import KnowledgeRepository, claim_document
from hub_server.knowledge.service import KIND
from hub_server.rows import Row
from hub_server.rpc import causes
from hub_server.workers import Workers

_WORKERS: Final = 2
_BATCH: Final = 32
_POLL_SECONDS: Final = 2.0
_MOST_ATTEMPTS: Final = 5
_CHUNK_TOKENS: Final = 220

log: structlog.stdlib.BoundLogger = structlog.get_logger("hub.ingestion")


class Ingestion:
    """The ingestion workers of one process."""

    def __init__(self, database: Database, embedder: Embedder, lease: dt.timedelta) -> None:
        """Work on the documents of a database with the model that searches use."""
        self._database = database
        self._embedder = embedder
        self._lease = lease
        self._splitter = MarkdownSplitter.from_callback(self._count, _CHUNK_TOKENS)
        # Threads of its own: a query's embedding never waits for a document's.
        self._threads = Workers("ingest", threads=_WORKERS, most_waiting=2 * _WORKERS)
        self._waiting = asyncio.Event()

    def wake(self) -> None:
        """Look for documents now rather than at the next poll."""
        self._waiting.set()

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_WORKERS):
                    group.create_task(self._work())
        finally:
            self._threads.close()

    async def _work(self) -> None:
        while True:
            self._waiting.clear()
            try:
                found = await self._next()
            except HubError as error:
                # The database is away or too busy; the claim, if any, ends with its lease.
                log.warning("ingestion paused", cause=causes(error))
                found = False
            if not found:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._waiting.wait(), _POLL_SECONDS)

    async def _next(self) -> bool:
        """Claim one document and process it; False = none waits."""
        async with self._database.system() as connection:
            claim = await claim_document(connection, self._lease)
        if claim is None:
            return False
        attempt = _Attempt(self._database, claim)
        try:
            await self._process(attempt)
        except HubError:
            raise
        except Exception as error:  # noqa: BLE001 - one document's fault must not end the worker
            cause = causes(error)
            log.error("ingestion failed", document_id=attempt.document_id, cause=cause)  # noqa: TRY400
            await attempt.fail(f"the text could not be processed ({type(error).__name__})")
        return True

    async def _process(self, attempt: "_Attempt") -> None:
        if attempt.number > _MOST_ATTEMPTS:
            await attempt.fail(f"gave up after {_MOST_ATTEMPTS} attempts")
            return
        document = await attempt.document()
        if document is None:
            return
        pieces = await self._threads.run(lambda: self._splitter.chunks(document["text"]))
        if not pieces:
            await attempt.fail("the document holds no text")
            return
        done = await attempt.resume(pieces, self._embedder.model)
        for start in range(done, len(pieces), _BATCH):
            batch = pieces[start : start + _BATCH]
            rows = await self._threads.run(partial(self._embed, document, start, batch))
            if not await attempt.write(document, rows, self._embedder.model, self._lease):
                return
        if await attempt.finish(document["user_id"], len(pieces)):
            log.info("ingested", document_id=attempt.document_id, chunks=len(pieces))

    def _embed(self, document: Row, start: int, batch: Sequence[str]) -> list[dict[str, Any]]:
        """Return the chunks of a batch as rows; a chunk is embedded together with its title."""
        vectors = self._embedder.embed([f"{document['title']}\n{piece}" for piece in batch])
        counts = self._embedder.count_tokens(batch)
        return [
            {
                "chunk_index": start + place,
                "content": piece,
                "token_count": counts[place],
                "embedding": vectors[place].astype("<f4").tobytes(),
                "metadata": {
                    "source": document["source_url"],
                    "chunk_index": start + place,
                    "document_title": document["title"],
                },
            }
            for place, piece in enumerate(batch)
        ]

    def _count(self, text: str) -> int:
        return self._embedder.count_tokens([text])[0]


class _Attempt:
    """One claim of one document: what it may read and write."""

    def __init__(self, database: Database, claim: Row) -> None:
        self._database = database
        self._tenant_id: str = claim["tenant_id"]
        self.document_id: str = claim["document_id"]
        self.number: int = claim["attempt"]

    async def document(self) -> Row | None:
        """Return the document, or None when it is this attempt's no longer."""
        async with self._database.transaction(self._hub()) as connection:
            return await self._repository(connection).claimed(self.document_id, self.number)

    async def resume(self, pieces: Sequence[str], model: str) -> int:
        """Return how many pieces an earlier attempt has written.

        What it wrote in another way (another model, other pieces) is dropped.
        """
        async with self._database.transaction(self._hub()) as connection:
            repository = self._repository(connection)
            if await repository.claimed(self.document_id, self.number) is None:
                return len(pieces)
            written = await repository.chunks_so_far(self.document_id)
            if written == [(piece, model) for piece in pieces[: len(written)]]:
                return len(written)
            await repository.drop_chunks(self.document_id)
            return 0

    async def write(
        self, document: Row, rows: list[dict[str, Any]], model: str, lease: dt.timedelta
    ) -> bool:
        """Write a batch of chunks and extend the lease; False = the claim was lost."""
        async with self._database.transaction(self._hub()) as connection:
            repository = self._repository(connection)
            if not await repository.extend_lease(self.document_id, self.number, lease):
                return False
            await repository.add_chunks(
                rows,
                document_id=self.document_id,
                user_id=document["user_id"],
                embedding_model=model,
            )
        return True

    async def finish(self, user_id: str, chunk_count: int) -> bool:
        """Let searches see the document; False = the claim was lost."""
        async with self._database.transaction(self._hub()) as connection:
            repository = self._repository(connection)
            if await repository.claimed(self.document_id, self.number) is None:
                return False
            seq = await spaces.next_seq(connection, self._tenant_id, user_id, KIND)
            return await repository.set_claimed(
                self.document_id,
                self.number,
                status="ready",
                chunk_count=chunk_count,
                space_seq=seq,
                lease_expires_at=None,
            )

    async def fail(self, error: str) -> None:
        """Give the document up, with a reason for people; what was written of it goes."""
        async with self._database.transaction(self._hub()) as connection:
            repository = self._repository(connection)
            if await repository.set_claimed(
                self.document_id, self.number, status="failed", error=error, lease_expires_at=None
            ):
                await repository.drop_chunks(self.document_id)

    def _hub(self) -> Caller:
        return Caller.hub(self._tenant_id)

    def _repository(self, connection: Any) -> KnowledgeRepository:
        return KnowledgeRepository(connection, self._tenant_id)
