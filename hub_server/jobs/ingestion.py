"""Ingestion: documents that wait are split, embedded and made searchable.

The queue is the documents themselves. The hub claims one with SKIP LOCKED for the time of a
lease, which every step of the work extends; when it dies, the lease ends and another hub goes on
behind the chunks that are written already. Each claim is a numbered attempt, and an attempt that
is no longer the document's writes nothing.

Several documents are worked on at once, step by step in turn: a large one does not hold up the
small ones behind it.
"""

import asyncio
import datetime as dt
import itertools
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

import structlog

from hub_server import spaces
from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.embedding import Embedder, EmbeddingError, TextRefusedError
from hub_server.embedding.models import Models
from hub_server.errors import HubError
from hub_server.jobs import splitting
from hub_server.jobs.parsing import Parsing, UnreadableError
from hub_server.jobs.splitting import Piece
from hub_server.knowledge.chunking import Chunking, chunking_of, embedded
from hub_server.knowledge.file_repository import FileRepository
from hub_server.knowledge.files import UNTITLED
from hub_server.knowledge.repository import KnowledgeRepository, claim_document
from hub_server.knowledge.service import KIND
from hub_server.logs import causes
from hub_server.rows import Row
from hub_server.workers import Workers

_THREADS: Final = 2
_DOCUMENTS: Final = 8
# Chunks of one step: half a second of MiniLM, which is also what a stopping hub may wait for.
_BATCH: Final = 16
_POLL_SECONDS: Final = 2.0
_RELEASE_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 2.0  # before a server of embeddings that is away is asked again
_MOST_ATTEMPTS: Final = 5

T = TypeVar("T")

_Rows = list[dict[str, Any]]

log: structlog.stdlib.BoundLogger = structlog.get_logger("hub.ingestion")


class Ingestion:
    """The ingestion of one process."""

    def __init__(
        self,
        database: Database,
        models: Models,
        lease: dt.timedelta,
        parsing: Parsing | None = None,
    ) -> None:
        """Work on the documents of a database with the models that searches use."""
        self._database = database
        self._parsing = parsing or Parsing()
        self._models = models
        self._lease = lease
        # Threads of its own: a query's embedding never waits for a document's.
        self._threads = Workers("ingest", threads=_THREADS, most_waiting=_DOCUMENTS)
        self._free = asyncio.Semaphore(_DOCUMENTS)
        self._waiting = asyncio.Event()

    def wake(self) -> None:
        """Look for documents now rather than at the next poll."""
        self._waiting.set()

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._free.acquire()
                    self._waiting.clear()
                    attempt = await self._claim()
                    if attempt is not None:
                        group.create_task(self._work(attempt))
                        continue
                    self._free.release()
                    # Not wait_for: in Python 3.11 it forgets that it was cancelled when it is
                    # woken at the same moment, and the hub would not stop.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_POLL_SECONDS):
                            await self._waiting.wait()
        finally:
            self._threads.close()

    async def _claim(self) -> "_Attempt | None":
        """Claim the document that waits for longest; None = none waits, or Postgres is away."""
        try:
            async with self._database.system() as connection:
                claim = await claim_document(connection, self._lease)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next poll tries again
            log.warning("ingestion paused", cause=causes(error))
            return None
        return None if claim is None else _Attempt(self._database, claim, self._lease)

    async def _work(self, attempt: "_Attempt") -> None:
        """Process one document; whatever its fault, the others go on."""
        try:
            await self._process(attempt)
        except asyncio.CancelledError:
            await attempt.release()
            raise
        except HubError as error:
            # The database is away or too busy; the claim ends with its lease.
            log.warning("ingestion broken off", **attempt.facts, cause=causes(error))
        except Exception as error:  # noqa: BLE001 - one document's fault must not end the others
            log.error("ingestion failed", **attempt.facts, cause=causes(error))  # noqa: TRY400
            with suppress(HubError):
                await attempt.fail(f"the text could not be processed ({type(error).__name__})")
        finally:
            self._free.release()

    async def _process(self, attempt: "_Attempt") -> None:
        document = await attempt.document()
        if document is None:
            return
        if attempt.number - document["first_attempt"] >= _MOST_ATTEMPTS:
            await attempt.fail(f"gave up after {_MOST_ATTEMPTS} attempts")
            return
        document = await self._parsed(attempt, document)
        if document is None:
            return
        embedder = await self._embedder(attempt, self._models.in_use(document["space_model"]))
        if embedder is None:
            return
        pieces = await self._split(attempt, embedder, document["text"], chunking_of(document))
        if pieces == []:
            await attempt.fail("the document holds no text")
        elif pieces is not None:
            try:
                await self._write(attempt, embedder, document, pieces)
            except spaces.OtherModelError:
                await attempt.start_over()
                await self._process(attempt)

    async def _embedder(self, attempt: "_Attempt", model: str) -> Embedder | None:
        """Return a model, once its server is there; None = the claim was lost."""
        while True:
            try:
                return await self._models.get(model)
            except EmbeddingError as error:
                log.warning("ingestion waits", **attempt.facts, cause=causes(error))
                if not await attempt.outwait(error.retry_after or _PAUSE_SECONDS):
                    return None

    async def _parsed(self, attempt: "_Attempt", document: Row) -> Row | None:
        """Return the document with its text; None = it has failed, or the claim was lost."""
        if document["text"] or not document["media_type"]:
            return document
        try:
            read = await attempt.meanwhile(self._read(attempt, document["media_type"]))
        except UnreadableError as error:
            await attempt.fail(str(error))
            return None
        return None if read is None else await attempt.keep_text(document, *read)

    async def _read(self, attempt: "_Attempt", media_type: str) -> tuple[bool, str, str]:
        """Return whether its file names the document, and title and text of the file."""
        async with self._parsing.turn:
            file = await attempt.file()
            if file is None:
                raise UnreadableError("its file is no longer kept: upload it again")
            names_document, content = file
            title, text = await self._parsing.read(media_type, content)
        return names_document, title, text

    async def _split(
        self, attempt: "_Attempt", embedder: Embedder, text: str, chunking: Chunking
    ) -> list[Piece] | None:
        """Return the pieces of a text; None = the claim was lost."""
        # A hub that was restarted with another model may have one that reads less.
        chunking = chunking.within(embedder.window)
        pieces: list[Piece] = []
        blocks = splitting.pieces(text, embedder.count_tokens, chunking)
        while (block := await self._threads.run(partial(next, blocks, None))) is not None:
            pieces += block
            if not await attempt.extend():
                return None
        return pieces

    async def _write(
        self, attempt: "_Attempt", embedder: Embedder, document: Row, pieces: Sequence[Piece]
    ) -> None:
        model = embedder.model
        done = await attempt.resume(document, pieces, model)
        for start in range(done, len(pieces), _BATCH):
            batch = pieces[start : start + _BATCH]
            rows = await self._embedded(attempt, partial(_embed, embedder, document, start, batch))
            if rows is None or not await attempt.write(document, rows, model, of=len(pieces)):
                return
        if done < len(pieces) or await attempt.finish(document, model, len(pieces)):
            log.info("ingested", **attempt.facts, chunks=len(pieces))

    async def _embedded(self, attempt: "_Attempt", embed: Callable[[], _Rows]) -> _Rows | None:
        """Return the chunks of a batch; None = the claim was lost.

        While a server of embeddings is away the document waits, within the one attempt: so it
        is not given up for that, however long it takes.
        """
        while True:
            try:
                return await self._threads.run(embed)
            except TextRefusedError:
                raise
            except EmbeddingError as error:
                log.warning("ingestion waits", **attempt.facts, cause=causes(error))
                if not await attempt.outwait(error.retry_after or _PAUSE_SECONDS):
                    return None


class _Attempt:
    """One claim of one document: what it may read and write."""

    def __init__(self, database: Database, claim: Row, lease: dt.timedelta) -> None:
        self._database = database
        self._lease = lease
        self._tenant_id: str = claim["tenant_id"]
        self.document_id: str = claim["document_id"]
        self.number: int = claim["attempt"]

    @property
    def facts(self) -> dict[str, Any]:
        """What a log line tells of it."""
        return {"document_id": self.document_id, "attempt": self.number}

    async def document(self) -> Row | None:
        """Return the document, or None when it is this attempt's no longer."""
        async with self._database.statement(self._hub()) as connection:
            return await self._repository(connection).claimed(self.document_id, self.number)

    async def extend(self) -> bool:
        """Take a new lease; False = the claim was lost."""
        async with self._database.statement(self._hub()) as connection:
            repository = self._repository(connection)
            return await repository.extend_lease(self.document_id, self.number, self._lease)

    async def outwait(self, seconds: float) -> bool:
        """Wait, and keep the claim meanwhile; False = it was lost."""
        step = self._lease.total_seconds() / 3
        while seconds > 0:
            if not await self.extend():
                return False
            await asyncio.sleep(min(step, seconds))
            seconds -= step
        return await self.extend()

    async def meanwhile(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Return what the work returns, and keep the claim meanwhile; None = it was lost."""
        task = asyncio.create_task(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=self._lease.total_seconds() / 3)
                if not task.done() and not await self.extend():
                    return None
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def file(self) -> tuple[bool, bytearray] | None:
        """Return whether its file names the document, and the file; None = it is not kept."""
        content, names_document = bytearray(), False
        for part in itertools.count():
            async with self._database.statement(self._hub()) as connection:
                repository = FileRepository(connection, self._tenant_id)
                row = await repository.part_of(self.document_id, part)
            if row is None:
                break
            content += row["content"]
            names_document = row["names_document"]
        return (names_document, content) if content else None

    async def keep_text(
        self,
        document: Row,
        names_document: bool,  # noqa: FBT001 - as it is read
        title: str,
        text: str,
    ) -> Row | None:
        """Put the text of a file in its place; return the document, None = the claim was lost.

        The file names the document unless somebody has given it another title since.
        """
        read = {"text": text}
        is_unnamed = document["title"] == (document["file_name"] or UNTITLED)
        if title and names_document and is_unnamed:
            read["title"] = title
        async with self._database.transaction(self._hub()) as connection:
            repository = self._repository(connection)
            if not await repository.set_claimed(self.document_id, self.number, **read):
                return None
            await FileRepository(connection, self._tenant_id).drop(self.document_id)
        return {**document, **read}

    async def release(self) -> None:
        """Give the claim back: who starts next need not wait for the lease to end."""
        with suppress(HubError, TimeoutError):
            async with (
                asyncio.timeout(_RELEASE_SECONDS),
                self._database.statement(self._hub()) as connection,
            ):
                repository = self._repository(connection)
                await repository.set_claimed(
                    self.document_id,
                    self.number,
                    lease_expires_at=None,
                    first_attempt=self.number + 1,  # this one was no failure
                )

    async def resume(self, document: Row, pieces: Sequence[Piece], model: str) -> int:
        """Return how many pieces earlier attempts have written.

        What they wrote in another way (another model, other pieces) is dropped.
        """
        if document["chunks_done"] == 0:
            return 0
        async with self._database.transaction(self._hub()) as connection:
            repository = self._repository(connection)
            if await repository.claimed(self.document_id, self.number) is None:
                return len(pieces)
            written = await repository.chunks_so_far(self.document_id, document["revision"] + 1)
            if written == [(piece.start, piece.content, model) for piece in pieces[: len(written)]]:
                return len(written)
            await repository.drop_chunks(self.document_id, shown=False)
            return 0

    async def write(
        self, document: Row, rows: Sequence[dict[str, Any]], model: str, *, of: int
    ) -> bool:
        """Write a batch of the chunks; with the last one searches see the document.

        False = the claim was lost.
        """
        async with self._database.transaction(self._hub()) as connection:
            repository = self._repository(connection)
            done = rows[-1]["chunk_index"] + 1
            if not await repository.extend_lease(
                self.document_id,
                self.number,
                self._lease,
                chunks_done=done,
                chunks_total=of,
                first_attempt=self.number,  # those before have led further
            ):
                return False
            await repository.add_chunks(
                rows,
                document_id=self.document_id,
                user_id=document["user_id"],
                revision=document["revision"] + 1,
                embedding_model=model,
            )
            if done == of:
                await self._publish(connection, document, model, of)
        return True

    async def finish(self, document: Row, model: str, chunk_count: int) -> bool:
        """Let searches see the document; False = the claim was lost."""
        async with self._database.transaction(self._hub()) as connection:
            repository = self._repository(connection)
            if not await repository.extend_lease(self.document_id, self.number, self._lease):
                return False
            await self._publish(connection, document, model, chunk_count)
        return True

    async def _publish(self, connection: Any, document: Row, model: str, chunk_count: int) -> None:
        """Put the new chunks in the place of those that searches found before, if any.

        Raises OtherModelError when the space moved to another model meanwhile.
        """
        space = (connection, self._tenant_id, document["user_id"], KIND)
        seq = await spaces.next_seq(*space, model=document["space_model"] or model)
        repository = self._repository(connection)
        await repository.set_claimed(
            self.document_id,
            self.number,
            status="ready",
            revision=document["revision"] + 1,
            chunk_count=chunk_count,
            space_seq=seq,
            lease_expires_at=None,
        )
        if document["revision"] > 0:
            await repository.drop_chunks(self.document_id, shown=False)

    async def start_over(self) -> None:
        """Drop what was written of the chunks that no search finds yet."""
        async with self._database.transaction(self._hub()) as connection:
            repository = self._repository(connection)
            if await repository.claimed(self.document_id, self.number) is not None:
                await repository.drop_chunks(self.document_id, shown=False)

    async def fail(self, error: str) -> None:
        """Give the document up, with a reason for people; what was written of it goes."""
        async with self._database.transaction(self._hub()) as connection:
            repository = self._repository(connection)
            if await repository.set_claimed(
                self.document_id, self.number, status="failed", error=error, lease_expires_at=None
            ):
                await repository.drop_chunks(self.document_id, shown=False)

    def _hub(self) -> Caller:
        return Caller.hub(self._tenant_id)

    def _repository(self, connection: Any) -> KnowledgeRepository:
        return KnowledgeRepository(connection, self._tenant_id)


def _embed(embedder: Embedder, document: Row, start: int, batch: Sequence[Piece]) -> _Rows:
    """Return the chunks of a batch as rows."""
    counts = embedder.count_tokens([piece.content for piece in batch])
    vectors = embedder.embed(
        [
            embedded(embedder, document["title"], piece.path, piece.content, size)
            for piece, size in zip(batch, counts, strict=True)
        ]
    )
    return [
        {
            "chunk_index": start + place,
            "content": piece.content,
            "heading_path": list(piece.path),
            "start_char": piece.start,
            "end_char": piece.end,
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
