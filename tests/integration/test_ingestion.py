"""Ingestion: documents are done once, whoever dies, stops or comes late, and in fair turns."""

import asyncio
import datetime as dt
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.embedding import Embedder, load_embedder
from hub_server.embedding.models import Models
from hub_server.idempotency import Retry
from hub_server.identity.access_repository import AccessRepository
from hub_server.identity.repository import IdentityRepository
from hub_server.ids import new_id
from hub_server.jobs import splitting
from hub_server.jobs.ingestion import Ingestion, _Attempt
from hub_server.knowledge.repository import claim_document
from hub_server.knowledge.search import Asked, KnowledgeSearch, Served
from hub_server.knowledge.service import KnowledgeService
from hub_server.migrations import migrate
from hub_server.retrieval.views import Views
from hub_server.rows import Row
from hub_server.search import Search
from hub_server.settings import Settings

LONG = dt.timedelta(seconds=60)
SHORT = dt.timedelta(seconds=0.5)
# About 60 chunks, so that some are written while others are not.
LARGE = "\n\n".join(
    f"Paragraph {number}. " + f"It speaks of the bird number {number}. " * 25
    for number in range(60)
)


class Watched:
    """A real model that notes what it embeds, and stops before texts that a test names."""

    def __init__(self, embedder: Embedder) -> None:
        """Let everything pass."""
        self._embedder = embedder
        self.model = embedder.model
        self.dimension = embedder.dimension
        self.window = embedder.window
        self.embedded: list[str] = []
        self.stop_at: str | None = None
        self.fail_at: str | None = None
        self.seconds_per_block = 0.0
        self.stopped = threading.Event()
        self.go_on = threading.Event()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed, unless a text is one to fail or to stop at."""
        if self.fail_at and any(self.fail_at in text for text in texts):
            raise ValueError(f"secret words: {texts[0]}")
        if self.stop_at and any(self.stop_at in text for text in texts):
            self.stopped.set()
            assert self.go_on.wait(60)
        self.embedded.extend(texts)
        return self._embedder.embed(texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count as the model does, the words of a block on a machine that may be slow."""
        if len(texts) > 16:
            time.sleep(self.seconds_per_block)
        return self._embedder.count_tokens(texts)


class Library:
    """A tenant with one user, in a database that only the ingestions of a test work on."""

    def __init__(self, url: str, embedder: Embedder) -> None:
        """Nothing connects yet."""
        self.url = url
        self.embedder = embedder
        self.caller = Caller.hub(new_id())
        self.user_id = ""
        self.database = self.new_database()

    def new_database(self) -> Database:
        """Return another way to the database, as another hub process has."""
        return Database(self.url, role=Settings().server_role, pool_size=4)

    async def found(self) -> None:
        """Create tenant and user."""
        async with self.database.transaction(self.caller) as connection:
            await AccessRepository(connection, self.caller).add_tenant("library")
            identity = IdentityRepository(connection, self.caller.tenant_id)
            user = await identity.add_user(
                {},
                email="a@b.example",
                email_key="a@b.example",
                password_hash=None,
                display_name="",
            )
        assert user is not None
        self.user_id = user["user_id"]

    @property
    def service(self) -> KnowledgeService:
        """The rules of knowledge, which wake no ingestion."""
        return KnowledgeService(self.database, self._search, lambda: None)

    @property
    def _search(self) -> Search:
        return Search(Models(self.embedder), Views(exact_max_bytes=1 << 24, memory_bytes=1 << 28))

    async def search(self, query: str) -> Row:
        """Return the chunk that fits best."""
        asked = Asked(query, top_k=1)
        rules = KnowledgeSearch(self.database, self._search)
        ((found,),) = await rules.search(self.caller, self.user_id, [asked], Served())
        return found.hit.row

    async def add(self, text: str, title: str = "A title") -> str:
        """Ingest a document, which then waits; return its id."""
        values = {"title": title, "text": text, "source_url": "", "author": "", "metadata": {}}
        row = await self.service.ingest(
            self.caller, Retry("", b""), self.user_id, values, allow_duplicate=True
        )
        return str(row["document_id"])

    def sql(self, statement: str, *parameters: Any) -> list[Any]:
        """Run a statement as a superuser; return its rows, or their only column."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters)
            rows = cursor.fetchall() if cursor.description else []
        return [row[0] if len(row) == 1 else row for row in rows]

    def statuses(self, *document_ids: str) -> list[str]:
        """Return the statuses of documents, in their order."""
        found = dict(self.sql("SELECT document_id::text, status FROM documents"))
        return [found[document_id] for document_id in document_ids]

    def indexes(self, document_id: str) -> list[int]:
        """Return the indexes of the chunks on disk."""
        return self.sql(
            "SELECT chunk_index FROM chunks WHERE document_id = %s ORDER BY 1", document_id
        )

    async def claim(self) -> _Attempt:
        """Claim what waits for longest, as an ingestion does."""
        async with self.database.system() as connection:
            claim = await claim_document(connection, LONG)
        assert claim is not None
        return _Attempt(self.database, claim, LONG)

    def end_leases(self) -> None:
        """Let every lease end now."""
        self.sql("UPDATE documents SET lease_expires_at = now() WHERE lease_expires_at > now()")


@pytest.fixture(scope="module")
def model() -> Embedder:
    """The fast model, loaded once."""
    return load_embedder("wordllama")


@pytest.fixture
async def library(empty_database: str, model: Embedder) -> AsyncIterator[Library]:
    """A library in a database of its own."""
    migrate(empty_database, Settings().server_role)
    library = Library(empty_database, model)
    await library.found()
    yield library
    await library.database.close()


@asynccontextmanager
async def ingesting(
    library: Library, embedder: Embedder, lease: dt.timedelta = LONG
) -> AsyncIterator[Ingestion]:
    """Run the ingestion of one hub process; at the end it is stopped as the hub stops it."""
    database = library.new_database()
    ingestion = Ingestion(database, Models(embedder), lease)
    task = asyncio.create_task(ingestion.run())
    try:
        yield ingestion
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await database.close()


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so, at most a minute."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # polling: what is awaited happens in Postgres or a thread


async def until_settled(library: Library, *document_ids: str) -> list[str]:
    """Return the statuses of documents once none of them is processed any more."""
    await until(lambda: "processing" not in library.statuses(*document_ids))
    return library.statuses(*document_ids)


async def test_a_stopped_ingestion_goes_on_at_once_where_it_was(
    library: Library, model: Embedder
) -> None:
    """A hub that stops gives its lease back, and the next one repeats no chunk that is written."""
    document_id = await library.add(LARGE)
    first, second = Watched(model), Watched(model)
    first.stop_at = "bird number 40."
    async with ingesting(library, first):
        await until(first.stopped.is_set)
        written = library.indexes(document_id)
    first.go_on.set()
    async with ingesting(library, second):
        assert await until_settled(library, document_id) == ["ready"]
    indexes = library.indexes(document_id)
    assert 0 < len(written) < len(indexes)
    assert indexes == list(range(len(indexes)))
    assert len(second.embedded) == len(indexes) - len(written)


async def test_an_ingestion_that_is_woken_as_it_is_stopped_stops(
    library: Library, model: Embedder
) -> None:
    """A document that arrives at the last moment does not keep the hub from ending."""
    ingestion = Ingestion(library.database, Models(model), LONG)
    task = asyncio.create_task(ingestion.run())
    await until(lambda: ingestion._waiting._waiters)
    ingestion.wake()
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()


async def test_a_lease_that_ended_lets_another_take_over(
    library: Library, model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document of a hub that stalls is finished by another; the first then adds nothing."""
    monkeypatch.setattr("hub_server.jobs.ingestion._DOCUMENTS", 1)  # it claims nothing meanwhile
    document_id = await library.add(LARGE)
    first, second = Watched(model), Watched(model)
    first.stop_at = "bird number 40."
    async with ingesting(library, first, SHORT):
        await until(first.stopped.is_set)
        async with ingesting(library, second):
            assert await until_settled(library, document_id) == ["ready"]
        finished = library.sql("SELECT chunk_id FROM chunks ORDER BY chunk_index")
        first.go_on.set()
        # It works on one document at a time: when it did this one, it was refused that one.
        assert await until_settled(library, await library.add("Another text.")) == ["ready"]
    assert "bird number 40." in "".join(first.embedded)
    assert library.indexes(document_id) == list(range(len(finished)))
    assert set(finished) < set(library.sql("SELECT chunk_id FROM chunks"))


_LATE: Row = {
    "chunk_index": 999,
    "content": "late",
    "token_count": 1,
    "embedding": b"\0" * 1024,
    "metadata": {},
}


async def late_write(attempt: _Attempt, document: Any) -> bool:
    """Write a chunk far behind all others."""
    return await attempt.write(document, [dict(_LATE)], "model", of=1000)


async def late_finish(attempt: _Attempt, document: Any) -> bool:
    """Say that the document is done, with another number of chunks."""
    return await attempt.finish(document, "model", 999)


async def late_fail(attempt: _Attempt, _: Any) -> bool:
    """Say that the document failed."""
    await attempt.fail("late")
    return False


async def late_extend(attempt: _Attempt, _: Any) -> bool:
    """Ask for more time."""
    return await attempt.extend()


async def late_release(attempt: _Attempt, _: Any) -> bool:
    """Give back what is another's by now."""
    await attempt.release()
    return False


Late = Callable[[_Attempt, Any], Awaitable[bool]]


@pytest.mark.parametrize("late", [late_write, late_finish, late_fail, late_extend, late_release])
async def test_an_attempt_that_was_overtaken_changes_nothing(library: Library, late: Late) -> None:
    """Whatever a worker does after another claimed its document is refused."""
    document_id = await library.add("A text.")
    first = await library.claim()
    document = await first.document()
    library.end_leases()
    second = await library.claim()
    assert (second.document_id, second.number) == (document_id, 2)
    state = "SELECT status, error, attempt, chunk_count, lease_expires_at FROM documents"
    before = library.sql(state)
    assert not await late(first, document)
    assert library.sql(state) == before
    assert library.indexes(document_id) == []
    assert await late_write(second, document)


@pytest.mark.parametrize("table", ["users", "tenants"])
async def test_nothing_is_written_for_who_is_being_erased(library: Library, table: str) -> None:
    """A user or a whole tenant: else its documents could not be removed."""
    await library.add("A text.")
    attempt = await library.claim()
    document = await attempt.document()
    library.sql(f"UPDATE {table} SET erasure_id = gen_random_uuid()")  # noqa: S608
    assert not await late_write(attempt, document)


async def test_a_document_that_cannot_be_processed_fails_with_a_reason(
    library: Library, model: Embedder
) -> None:
    """It becomes `failed`, tells no word of its text, keeps no chunk, and stops no other."""
    watched = Watched(model)
    watched.fail_at = "bird number 50."
    bad = await library.add(LARGE)
    good = await library.add("Nothing is wrong with this one.")
    async with ingesting(library, watched):
        assert await until_settled(library, bad, good) == ["failed", "ready"]
    assert library.sql("SELECT error FROM documents WHERE status = 'failed'") == [
        "the text could not be processed (ValueError)"
    ]
    assert library.indexes(bad) == []


async def test_a_document_that_kills_its_workers_is_given_up(
    library: Library, model: Embedder
) -> None:
    """After five attempts that ended in nothing the sixth says so, and the queue moves on."""
    deadly = await library.add("A text on which every process dies.")
    for _ in range(5):
        await library.claim()
        library.end_leases()
    good = await library.add("Nothing is wrong with this one.")
    async with ingesting(library, model):
        assert await until_settled(library, deadly, good) == ["failed", "ready"]
    assert library.sql("SELECT error FROM documents WHERE status = 'failed'") == [
        "gave up after 5 attempts"
    ]


@pytest.mark.parametrize("does", ["write", "release"])
async def test_a_document_whose_workers_come_further_or_stop_is_not_given_up(
    library: Library, model: Embedder, does: str
) -> None:
    """However often hubs are killed after a part of it, or stopped before."""
    document_id = await library.add("A text.")
    for place in range(6):
        attempt = await library.claim()
        if does == "release":
            await attempt.release()
            continue
        document: Any = await attempt.document()
        row = {**_LATE, "chunk_index": place}
        assert await attempt.write(document, [row], "model", of=1000)
        library.end_leases()
    async with ingesting(library, model):
        assert await until_settled(library, document_id) == ["ready"]
    assert library.indexes(document_id) == [0]


async def test_a_document_deleted_while_it_is_processed_gets_no_more_chunks(
    library: Library, model: Embedder
) -> None:
    """The batch that was under way is not written, and the worker goes on to the next.

    It is done when it is brought back, whatever is left of the lease.
    """
    watched = Watched(model)
    watched.stop_at = "bird number 40."
    document_id = await library.add(LARGE)
    async with ingesting(library, watched) as ingestion:
        await until(watched.stopped.is_set)
        written = library.indexes(document_id)
        await library.service.delete_document(library.caller, document_id)
        other = await library.add("Another text.")
        watched.go_on.set()
        ingestion.wake()
        assert await until_settled(library, other) == ["ready"]
        assert library.indexes(document_id) == written
        assert library.statuses(document_id) == ["processing"]
        await library.service.undelete_document(library.caller, document_id)
        ingestion.wake()
        assert await until_settled(library, document_id) == ["ready"]


async def test_an_upload_that_is_told_its_own_text_is_still_read(library: Library) -> None:
    """While it is read: the same text is no change, and takes no file away."""
    upload = await library.service.begin_upload(library.caller, library.user_id)
    upload.add(b"Sencha.")
    values = {"title": "Tea", "file_name": "", "source_url": "", "author": "", "metadata": {}}
    about = (library.caller, Retry("", b""), library.user_id, values, upload)
    document = await library.service.upload(*about, allow_duplicate=True)
    attempt = await library.claim()
    same = (document["document_id"], {"text": "Sencha.", "author": "Ann"}, "")
    document = await library.service.update_document(library.caller, *same)
    assert document["author"] == "Ann"
    assert await attempt.file() == (False, bytearray(b"Sencha."))


async def test_two_hubs_never_do_the_same_document(library: Library, model: Embedder) -> None:
    """Of forty documents that two hubs work on at once each chunk is embedded exactly once."""
    documents = [await library.add(f"Text {number}", f"Title {number}") for number in range(40)]
    hubs = Watched(model), Watched(model)
    async with AsyncExitStack() as stack:
        for hub in hubs:
            await stack.enter_async_context(ingesting(library, hub))
        assert set(await until_settled(library, *documents)) == {"ready"}
    wanted = sorted(f"Title {number}\nText {number}" for number in range(40))
    assert sorted(hubs[0].embedded + hubs[1].embedded) == wanted
    assert library.sql("SELECT DISTINCT attempt FROM documents") == [1]


async def test_a_claim_does_not_wait_for_another(library: Library) -> None:
    """While one worker is claiming the oldest document the next one gets the second oldest."""
    first, second = await library.add("One."), await library.add("Two.")
    with psycopg.connect(library.url) as other:
        other.execute("SELECT FROM documents WHERE document_id = %s FOR UPDATE", [first])
        async with asyncio.timeout(5):
            attempt = await library.claim()
    assert attempt.document_id == second


async def test_large_documents_do_not_hold_up_a_small_one(
    library: Library, model: Embedder
) -> None:
    """A small document behind three large ones is ready while they are still being processed."""
    large = [await library.add(LARGE * 8) for _ in range(3)]
    small = await library.add("A small text.")
    async with ingesting(library, model):
        assert await until_settled(library, small) == ["ready"]
        assert set(library.statuses(*large)) == {"processing"}


async def test_a_large_document_keeps_its_lease_while_it_is_split(
    library: Library, model: Embedder
) -> None:
    """On a machine so slow that splitting takes two leases, one attempt is enough."""
    text = LARGE * 4
    document_id = await library.add(text)
    first, second = Watched(model), Watched(model)
    lease = 4 * SHORT  # two thirds of it are left when a machine that is shared stands still
    first.seconds_per_block = 2 * lease.total_seconds() / (len(text) // splitting.BLOCK_CHARS)
    async with ingesting(library, first, lease):
        await until(lambda: library.sql("SELECT attempt FROM documents") == [1])
        async with ingesting(library, second, lease) as other:
            while library.statuses(document_id) != ["ready"]:
                other.wake()
                await asyncio.sleep(0.02)  # the other looks for documents again and again
    assert library.sql("SELECT attempt FROM documents") == [1]
    assert second.embedded == []


async def test_chunks_of_another_model_are_replaced(library: Library, model: Embedder) -> None:
    """A hub that resumes with another model leaves no chunk of the first one."""
    first, second = Watched(model), Watched(model)
    first.stop_at, second.model = "bird number 40.", "another"
    document_id = await library.add(LARGE)
    async with ingesting(library, first):
        await until(first.stopped.is_set)
        assert library.indexes(document_id)
    first.go_on.set()
    async with ingesting(library, second):
        assert await until_settled(library, document_id) == ["ready"]
    assert library.sql("SELECT DISTINCT embedding_model FROM chunks") == ["another"]
    indexes = library.indexes(document_id)
    assert indexes == list(range(len(indexes)))


async def test_what_is_finished_is_found(library: Library, model: Embedder) -> None:
    """A document of many chunks is found by its last words, with the place they stand at."""
    document_id = await library.add(LARGE)
    async with ingesting(library, model):
        await until_settled(library, document_id)
    chunk = await library.search("bird number 59")
    assert "bird number 59." in chunk["content"]
    assert chunk["metadata"]["chunk_index"] >= library.indexes(document_id)[-2]
