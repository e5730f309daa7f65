"""Spaces that move to another model: searched all the while, and no row is lost on the way."""

import asyncio
import datetime as dt
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from hub_client import errors
from hub_client.v1 import (
    AddChunksRequest,
    BatchAppendMessagesRequest,
    BatchMessage,
    BatchRememberRequest,
    CancelReembeddingRequest,
    DeleteDocumentRequest,
    DeleteMemoryRequest,
    Document,
    ExportUserRequest,
    GetReembeddingRequest,
    ImportUserRequest,
    IndexKind,
    IngestDocumentRequest,
    ListDocumentsRequest,
    Memory,
    MemoryType,
    MessageSearch,
    NewMemory,
    OwnChunk,
    RecallRequest,
    RedactMessageRequest,
    Reembedding,
    ReembeddingStatus,
    ReembedSpaceRequest,
    Role,
    SearchHit,
    SearchMessagesRequest,
    SearchMode,
    SearchRequest,
    TenantSettings,
    UndeleteDocumentRequest,
    UpdateMemoryRequest,
    UpdateTenantSettingsRequest,
    User,
)
from hub_server.caller import Caller
from hub_server.database import Connection
from hub_server.jobs import reembedding
from hub_server.knowledge.reembed_repository import ReembedRepository
from hub_server.knowledge.repository import KnowledgeRepository
from hub_server.migrations import migrate
from hub_server.settings import Settings
from tests.embedding_server import EmbeddingServer, Handler, Seen, embedding_server, good, status
from tests.integration.test_database import held, new_database, until, waiting_for_locks
from tests.support import Hub, Tenant, running_hub, settled

_OLD: Final = "wordllama-l2-256"
_NEW: Final = "openai:new"
_OTHER: Final = "openai:other"
_MOVING = ReembeddingStatus.REEMBEDDING_STATUS_MOVING
_DONE = ReembeddingStatus.REEMBEDDING_STATUS_DONE
_NONE = ReembeddingStatus.REEMBEDDING_STATUS_NONE
_ALL = IndexKind.INDEX_KIND_UNSPECIFIED
_MEMORY = IndexKind.INDEX_KIND_MEMORY
_FACT = MemoryType.MEMORY_TYPE_FACT
_LONG: Final = "\n\n".join(
    f"Paragraph {n} speaks of birds. " + "Owls hunt. " * 60 for n in range(24)
)
_ROWS: Final = """
    SELECT embedding_model, next_model, count(*) FROM {} WHERE user_id = %s
    GROUP BY 1, 2 ORDER BY 1, 2"""

_SEARCHED: Final = """
    INSERT INTO vector_spaces (tenant_id, user_id, kind, embedding_model, life, dimension)
    SELECT tenant_id, user_id, 'knowledge', %s, gen_random_uuid(), 1 FROM users WHERE user_id = %s
    ON CONFLICT DO NOTHING"""
_TIDY_NOW: Final = "UPDATE reembeddings SET not_before = now() WHERE user_id = %s RETURNING 1"


class Gate:
    """Holds up what a server of embeddings is asked, until it is opened."""

    def __init__(self) -> None:
        """Closed."""
        self._opened = threading.Event()

    def __call__(self, handler: Handler, seen: Seen) -> None:
        """Answer once the gate is open."""
        assert self._opened.wait(30)
        good(handler, seen)

    def open(self) -> None:
        """Let all pass."""
        self._opened.set()


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddingServer]:
    """A server with the models that spaces move to."""
    with embedding_server() as server:
        yield server


@pytest.fixture(scope="module")
def settings(server: EmbeddingServer) -> dict[str, Any]:
    """What hubs need to know of it."""
    names = (f"openai:{name}@{server.url}" for name in ("new", "other"))
    return {"embedding_models": ",".join((*names, "wordllama"))}


@pytest.fixture(scope="module")
async def served(
    postgres_url: str, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Hub]:
    """A hub over a database of its own, whose spaces no other hub moves; its models are loaded."""
    folder = tmp_path_factory.mktemp("reembedding")
    with new_database(postgres_url) as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reembedding, "_POLL_SECONDS", 0.2)
        patch.setattr(reembedding, "_PAUSE_SECONDS", 0.01)
        migrate(url, Settings().server_role)
        async with running_hub(url, folder, **settings) as hub:
            tenant = await hub.new_tenant()
            for model in (_NEW, _OTHER):
                user = await tenant.new_user()
                await move(tenant, user, model)
                assert (await arrived(tenant, user)).status == _DONE
            yield hub


@pytest.fixture
async def tenant(served: Hub, server: EmbeddingServer) -> AsyncIterator[Tenant]:
    """A new tenant of that hub; the server answers well again at the end."""
    yield await served.new_tenant()
    server.always = good
    server.acts.clear()
    server.seen.clear()


@pytest.fixture
async def user(tenant: Tenant) -> User:
    """A new user of the tenant."""
    return await tenant.new_user()


async def move(
    tenant: Tenant, user: User | None, model: str = _NEW, kind: IndexKind.ValueType = _ALL
) -> Reembedding:
    """Ask a user, or all, to be moved."""
    user_id = user.user_id if user else ""
    request = ReembedSpaceRequest(user_id=user_id, embedding_model=model, kind=kind)
    return (await tenant.client.knowledge.reembed_space(request)).reembedding


async def progress(
    tenant: Tenant, user: User | None, kind: IndexKind.ValueType = _ALL
) -> Reembedding:
    """Return how far they are."""
    request = GetReembeddingRequest(user_id=user.user_id if user else "", kind=kind)
    return (await tenant.client.knowledge.get_reembedding(request)).reembedding


async def arrived(tenant: Tenant, user: User | None) -> Reembedding:
    """Return how it ended."""
    return await seen(tenant, user, lambda found: found.status != _MOVING)


async def seen(
    tenant: Tenant, user: User | None, is_it: Callable[[Reembedding], bool]
) -> Reembedding:
    """Return how far they are once that is so."""
    async with asyncio.timeout(30):
        while True:
            if is_it(found := await progress(tenant, user)):
                return found
            await asyncio.sleep(0.02)  # polling, as any caller of this API does


async def stopped_at(
    gate: Gate,
    server: EmbeddingServer,
    tenant: Tenant,
    user: User,
    kind: IndexKind.ValueType = _ALL,
) -> Reembedding:
    """Move a user until the first batch is done, and the second held up."""
    server.acts.append(good)
    server.always = gate
    assert (await move(tenant, user, kind=kind)).status == _MOVING
    return await seen(tenant, user, lambda found: found.rows_done > 0)


async def search(tenant: Tenant, user: User, **values: Any) -> list[SearchHit]:
    """Search by meaning alone; every chunk that has a vector of the space's model is found."""
    known = {"user_id": user.user_id, "top_k": 200, "mode": SearchMode.SEARCH_MODE_SEMANTIC}
    request = SearchRequest(**{**known, "query": "owls", **values})
    return list((await tenant.client.knowledge.search(request)).hits)


async def model_of(tenant: Tenant, user: User) -> str:
    """Return the model that a user is searched by: of the server's, or the old one."""
    vector = np.ones(64, dtype="<f4").tobytes()
    try:
        await search(tenant, user, query="", vector=vector)
    except errors.InvalidFieldError as error:
        return _OLD if _OLD in dict(error.violations)["vector"] else "another"
    return _NEW


async def add_own(tenant: Tenant, user: User) -> None:
    """Add a chunk with a vector made elsewhere."""
    vector = np.ones(3, dtype="<f4").tobytes()
    request = AddChunksRequest(
        user_id=user.user_id,
        title="Own",
        embedding_model="elsewhere",
        chunks=[OwnChunk(content="made elsewhere", embedding=vector)],
    )
    await tenant.client.knowledge.add_chunks(request)


async def listed(tenant: Tenant, user: User) -> list[Document]:
    """Return a user's documents, newest first."""
    request = ListDocumentsRequest(user_id=user.user_id)
    return [one async for one in tenant.client.knowledge.list_documents(request)]


async def rows(tenant: Tenant, user: User, table: str = "chunks") -> list[Any]:
    """Return how many rows of a user have which models."""
    return await asyncio.to_thread(tenant.hub.sql, _ROWS.format(table), user.user_id)


async def until_rows(
    tenant: Tenant, user: User, expected: list[Any], table: str = "chunks"
) -> None:
    """Return once the rows of a user have these models."""
    async with asyncio.timeout(30):
        while True:
            if await rows(tenant, user, table) == expected:
                return
            await asyncio.sleep(0.02)


async def remember(tenant: Tenant, user: User, *texts: str) -> list[Memory]:
    """Remember some texts; return what came of them."""
    memories = [NewMemory(memory_type=_FACT, memory_content=text) for text in texts]
    request = BatchRememberRequest(user_id=user.user_id, memories=memories)
    results = (await tenant.client.memory.batch_remember(request)).remember_results
    return [one.memory for one in results]


async def recalled(tenant: Tenant, user: User, query: str, **values: Any) -> dict[str, float]:
    """Return what is recalled, and how alike in meaning it is."""
    request = RecallRequest(user_id=user.user_id, query=query, top_k=200, **values)
    hits = (await tenant.client.memory.recall(request)).hits
    return {hit.memory.memory_content: hit.vector_score for hit in hits}


async def test_a_space_is_searched_by_its_old_model_until_all_of_it_has_the_new_one(
    tenant: Tenant,
    user: User,
    server: EmbeddingServer,
    settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    """In every hub at once; what is written, deleted, undeleted meanwhile comes along."""
    large = await tenant.ingest(user, "Birds", _LONG)
    small = await tenant.ingest(user, "Cars", "Cars drive on roads.")
    total = large.chunk_count + 1
    assert total > 16
    gate = Gate()
    found = await stopped_at(gate, server, tenant, user)
    assert (found.status, found.rows_done, found.rows_total) == (_MOVING, 16, total)
    async with running_hub(tenant.hub.owner_url, tmp_path, **settings) as second:
        other = Tenant(tenant.tenant_id, tenant.key, second, second.client(tenant.key))
        for one in (tenant, other):
            assert len(await search(one, user)) == total
            assert await model_of(one, user) == _OLD
        about = {"document_id": small.document_id}
        await tenant.client.knowledge.delete_document(DeleteDocumentRequest(**about))
        late = await tenant.ingest(user, "Late", "Geese fly south.")
        assert len(await search(other, user)) == total
        gate.open()
        found = await arrived(tenant, user)
        assert (found.status, found.embedding_model) == (_DONE, _NEW)
        assert (found.rows_done, found.rows_total) == (total + 1, total + 1)
        await tenant.client.knowledge.undelete_document(UndeleteDocumentRequest(**about))
        for one in (tenant, other):
            hits = await search(one, user)
            assert {hit.chunk.document_id for hit in hits} >= {late.document_id, small.document_id}
            assert len(hits) == total + 1
            assert await model_of(one, user) == _NEW
    assert await move(tenant, user) == found


async def test_a_move_never_tells_of_more_rows_than_there_are(
    tenant: Tenant, user: User, server: EmbeddingServer
) -> None:
    """However many come while it is under way."""
    total = (await tenant.ingest(user, "Birds", _LONG)).chunk_count
    first, second = Gate(), Gate()
    await stopped_at(first, server, tenant, user)
    for title in ("More birds", "And more"):
        await tenant.ingest(user, title, _LONG)
    server.acts.extend([good] * 4)
    server.always = second
    first.open()
    found = await seen(tenant, user, lambda found: found.rows_done > total)
    assert found.rows_done <= found.rows_total
    second.open()
    found = await arrived(tenant, user)
    assert (found.rows_done, found.rows_total) == (3 * total, 3 * total)


@pytest.mark.parametrize("is_first", [True, False], ids=["published first", "moved first"])
async def test_no_row_is_lost_at_the_switch(tenant: Tenant, user: User, *, is_first: bool) -> None:
    """What is published by the old model just before it is moved, just after it is embedded anew.

    Both wait for the space; whoever comes second finds what the first has done.
    """
    await add_own(tenant, user)  # so that there is a space
    lock = "SELECT 1 FROM spaces WHERE user_id = %s AND kind = 'knowledge' FOR UPDATE"
    request = IngestDocumentRequest(user_id=user.user_id, title="Late", text="Geese fly south.")
    calls: list[Callable[[], Any]] = [
        lambda: tenant.client.knowledge.ingest_document(request),
        lambda: move(tenant, user, _NEW),
    ]
    with held(tenant.hub, lock, user.user_id):
        for place, call in enumerate(calls if is_first else reversed(calls), start=1):
            await call()
            await until(lambda: waiting_for_locks(tenant.hub) == place)  # noqa: B023 - awaited
    found = await arrived(tenant, user)
    assert (found.status, await model_of(tenant, user)) == (_DONE, _NEW)
    await settled(tenant.client, (await listed(tenant, user))[0].document_id)
    assert [hit.chunk.content for hit in await search(tenant, user)] == ["Geese fly south."]


async def test_who_drops_chunks_and_who_frees_their_room_do_not_wait_in_a_circle(
    tenant: Tenant, user: User
) -> None:
    """They take them in different orders; both hold the document first."""
    document_id = (await tenant.ingest(user, "Birds", _LONG)).document_id
    await move(tenant, user)
    await arrived(tenant, user)

    def transaction() -> AbstractAsyncContextManager[Connection]:
        return tenant.hub.database.transaction(Caller.hub(tenant.tenant_id))

    async def drop() -> None:
        async with transaction() as connection:
            repository = KnowledgeRepository(connection, tenant.tenant_id)
            assert await repository.lock_document(document_id)
            await repository.drop_chunks(document_id, shown=True)

    async def tidy() -> None:
        async with transaction() as connection:
            repository = ReembedRepository(connection, tenant.tenant_id, user.user_id, "knowledge")
            await repository.tidy(_NEW, 500)

    tasks = []
    lock = "SELECT 1 FROM chunks WHERE user_id = %s AND chunk_index = 8 FOR UPDATE"
    with held(tenant.hub, lock, user.user_id):
        for place, work in enumerate((drop, tidy), start=1):
            tasks.append(asyncio.create_task(work()))
            await until(lambda: waiting_for_locks(tenant.hub) == place)  # noqa: B023 - awaited
    await asyncio.gather(*tasks)
    assert await rows(tenant, user) == []


@pytest.mark.parametrize("table", ["users", "tenants"])
async def test_who_has_lost_a_move_changes_nothing(tenant: Tenant, user: User, table: str) -> None:
    """However late he comes; nor does anybody for who is being erased."""
    await tenant.ingest(user, "Birds", "Owls hunt mice.")
    await move(tenant, user)
    await arrived(tenant, user)
    query = "SELECT attempt FROM reembeddings WHERE user_id = %s AND kind = 'knowledge'"
    ((attempt,),) = await asyncio.to_thread(tenant.hub.sql, query, user.user_id)

    async def tidied(attempt: int) -> int:
        claim = {"tenant_id": tenant.tenant_id, "user_id": user.user_id, "attempt": attempt}
        claim |= {"kind": "knowledge"}
        one = reembedding._Move(tenant.hub.database, claim, dt.timedelta(seconds=60))
        return await one.tidy(_OLD, kept=None)

    assert await tidied(attempt - 1) == 0
    mark = f"UPDATE {table} SET erasure_id = gen_random_uuid() WHERE tenant_id = %s"  # noqa: S608
    await asyncio.to_thread(tenant.hub.sql, mark, tenant.tenant_id)
    assert await tidied(attempt) == 0
    assert await rows(tenant, user) == [(_OLD, _NEW, 1)]


async def test_a_move_that_is_cancelled_leaves_nothing_behind(
    tenant: Tenant, user: User, server: EmbeddingServer
) -> None:
    """The space stays with its model; asked for again it is moved."""
    total = (await tenant.ingest(user, "Birds", _LONG)).chunk_count
    gate = Gate()
    await stopped_at(gate, server, tenant, user)
    request = CancelReembeddingRequest(user_id=user.user_id)
    ended = (await tenant.client.knowledge.cancel_reembedding(request)).reembedding
    assert ended.status == ReembeddingStatus.REEMBEDDING_STATUS_CANCELLED
    gate.open()
    await until_rows(tenant, user, [(_OLD, None, total)])
    assert (await model_of(tenant, user), len(await search(tenant, user))) == (_OLD, total)
    await move(tenant, user)
    assert (await arrived(tenant, user)).status == _DONE
    assert (await model_of(tenant, user), len(await search(tenant, user))) == (_NEW, total)


async def test_another_model_takes_the_place_of_the_first(
    tenant: Tenant, user: User, server: EmbeddingServer
) -> None:
    """The last one asked for is where the space ends; later only its vectors are left.

    So it is with what pgvector makes of them, in whatever way they are searched here.
    """
    total = (await tenant.ingest(user, "Birds", _LONG)).chunk_count
    gate = Gate()
    await stopped_at(gate, server, tenant, user)
    assert (await move(tenant, user)).rows_done == 16  # the same again changes nothing
    assert (await move(tenant, user, _OTHER)).rows_done == 0
    gate.open()
    found = await arrived(tenant, user)
    assert (found.embedding_model, found.rows_done) == (_OTHER, total)
    assert await rows(tenant, user) == [(_OLD, _OTHER, total)]
    before = await search(tenant, user)
    for model in (_OLD, _NEW):
        await asyncio.to_thread(tenant.hub.sql, _SEARCHED, model, user.user_id)
    assert len(await asyncio.to_thread(tenant.hub.sql, _TIDY_NOW, user.user_id)) == 3  # kinds
    await until_rows(tenant, user, [(_OTHER, None, total)])
    query = "SELECT 1 FROM vector_spaces WHERE user_id = %s AND embedding_model <> %s"
    await until(lambda: not tenant.hub.sql(query, user.user_id, _OTHER))
    assert await search(tenant, user) == before
    await move(tenant, user, _OLD)
    assert (await arrived(tenant, user)).rows_done == total
    assert (await model_of(tenant, user), len(await search(tenant, user))) == (_OLD, total)


async def test_a_space_that_moved_is_exported_as_it_is_searched(tenant: Tenant, user: User) -> None:
    """With the model's vectors, though they have not taken their place; and it keeps the model."""
    await tenant.ingest(user, "Birds", "Owls hunt mice.")
    await remember(tenant, user, "Likes owls.")
    await move(tenant, user)
    await arrived(tenant, user)
    assert await rows(tenant, user) == [(_OLD, _NEW, 1)]
    told = tenant.client.identity.export_user(ExportUserRequest(user_id=user.user_id))
    records = [ImportUserRequest(export_record=one.export_record) async for one in told]
    there = await tenant.hub.new_tenant()
    await there.client.identity.import_user(records)
    assert (await model_of(there, user), len(await search(there, user))) == (_NEW, 1)
    assert (await recalled(there, user, "owls."))["Likes owls."] > 0


async def test_memories_that_change_while_they_move_are_found_all_the_while(
    tenant: Tenant, user: User, server: EmbeddingServer
) -> None:
    """By the old model, then by the new one; so are those that are told again, and old states.

    Other kinds stay where they are.
    """
    birds = [f"Saw {n} of the birds that sing in trees near the sea all day" for n in range(17)]
    memories = await remember(tenant, user, *birds)
    gate = Gate()
    assert (await stopped_at(gate, server, tenant, user, _MEMORY)).rows_total == len(birds)
    server.seen.clear()
    before = Timestamp()
    before.GetCurrentTime()
    changed = {0: "Swims like a fish", 16: "Climbs like a cat"}  # with a vector, and on its way
    for place, text in changed.items():
        memory_id = memories[place].memory_id
        update = UpdateMemoryRequest(memory_id=memory_id, memory_content=text)
        await tenant.client.memory.update_memory(update)
    request = DeleteMemoryRequest(memory_id=memories[1].memory_id)
    await tenant.client.memory.delete_memory(request)
    await remember(tenant, user, "Geese fly south")
    expected = {*birds[2:16], *changed.values(), "Geese fly south"}
    for model in (_OLD, _NEW):
        for text in changed.values():
            found = await recalled(tenant, user, text)
            assert (set(found), found[text] > 0.99, all(found.values())) == (expected, True, True)
        assert ([text] in [one.texts for one in server.seen]) == (model == _NEW)
        if model == _OLD:
            gate.open()
            ended = await arrived(tenant, user)
            assert (ended.status, ended.rows_done, ended.rows_total) == (_DONE, 17, 17)
    (again,) = await remember(tenant, user, birds[5].replace("the sea", "sea"))
    assert again.memory_id == memories[5].memory_id
    found = await recalled(tenant, user, "birds", as_of=before)
    assert {text: score > 0 for text, score in found.items()} == {
        text: text in expected for text in birds if text != birds[1]
    }
    await asyncio.to_thread(tenant.hub.sql, _TIDY_NOW, user.user_id)
    # What was deleted has no vector: it keeps the name alone.
    await until_rows(tenant, user, [(_NEW, None, 17), (_OLD, None, 1)], "memory_store")
    assert len(await recalled(tenant, user, "birds")) == 17
    assert (await progress(tenant, user, IndexKind.INDEX_KIND_KNOWLEDGE)).status == _NONE
    assert await model_of(tenant, user) == _OLD


async def test_messages_that_are_said_while_they_move_are_found_all_the_while(
    tenant: Tenant, user: User, server: EmbeddingServer
) -> None:
    """By meaning; what is said later has the new model, and what is redacted has no vector."""
    settings = TenantSettings(message_search=MessageSearch.MESSAGE_SEARCH_HYBRID)
    await tenant.client.identity.update_tenant_settings(
        UpdateTenantSettingsRequest(tenant_settings=settings)
    )
    session_id = (await tenant.new_session(user)).session_id

    async def say(count: int) -> None:
        messages = [BatchMessage(role=Role.ROLE_USER, content=f"bird {n}") for n in range(count)]
        request = BatchAppendMessagesRequest(session_id=session_id, messages=messages)
        await tenant.client.chat.batch_append_messages(request)

    async def seqs() -> set[int]:
        request = SearchMessagesRequest(user_id=user.user_id, query="owls", top_k=200)
        hits = (await tenant.client.chat.search_messages(request)).hits
        return {hit.message.seq for hit in hits}

    await say(17)
    await until_rows(tenant, user, [(_OLD, None, 17)], "chat_messages")
    gate = Gate()
    await stopped_at(gate, server, tenant, user)
    await say(1)
    await until_rows(tenant, user, [(_OLD, _NEW, 16), (_OLD, None, 2)], "chat_messages")
    redact = RedactMessageRequest(session_id=session_id, seq=1)
    await tenant.client.chat.redact_message(redact)
    assert await seqs() == set(range(2, 19))
    gate.open()
    assert (await arrived(tenant, user)).status == _DONE
    server.seen.clear()
    assert await seqs() == set(range(2, 19))
    assert [one.texts for one in server.seen] == [["owls"]]
    await say(1)
    expected = [(_NEW, None, 1), (_OLD, _NEW, 17), (None, None, 1)]
    await until_rows(tenant, user, expected, "chat_messages")
    assert await seqs() == set(range(2, 20))


async def test_a_move_that_fails_tells_why_and_goes_on_where_it_stopped(
    tenant: Tenant, user: User, server: EmbeddingServer
) -> None:
    """Searches know nothing of it; what was embedded is not embedded again."""
    total = (await tenant.ingest(user, "Birds", _LONG)).chunk_count
    server.acts.append(good)
    server.always = status(401)
    await move(tenant, user)
    found = await arrived(tenant, user)
    assert found.status == ReembeddingStatus.REEMBEDDING_STATUS_FAILED
    assert found.error.startswith("the texts could not be embedded")
    assert (found.failed_user_id, found.rows_done) == (user.user_id, 16)
    assert (await model_of(tenant, user), len(await search(tenant, user))) == (_OLD, total)
    server.always = good
    server.seen.clear()
    await move(tenant, user)
    assert (await arrived(tenant, user)).status == _DONE
    assert sum(len(request.texts) for request in server.seen) == total - 16
    assert len(await search(tenant, user)) == total


async def test_a_whole_tenant_moves_and_own_vectors_stay(
    tenant: Tenant, user: User, served: Hub
) -> None:
    """Those are counted, and found as before; users of other tenants stay where they are."""
    assert (await progress(tenant, None)).status == _NONE
    await tenant.ingest(user, "Birds", "Owls hunt mice.")
    await add_own(tenant, user)
    second = await tenant.new_user()
    await tenant.ingest(second, "Cars", "Cars drive on roads.")
    foreign = await served.new_tenant()
    stranger = await foreign.new_user()
    await foreign.ingest(stranger, "Cars", "Cars drive on roads.")
    await move(tenant, None)
    found = await arrived(tenant, None)
    assert (found.status, found.users_done, found.users_total) == (_DONE, 2, 2)
    assert (found.rows_done, found.rows_total, found.rows_own) == (2, 2, 1)
    for one in (user, second):
        assert (await model_of(tenant, one), len(await search(tenant, one))) == (_NEW, 1)
    vector = np.ones(3, dtype="<f4").tobytes()
    (hit,) = await search(tenant, user, query="", vector=vector, embedding_model="elsewhere")
    assert hit.chunk.content == "made elsewhere"
    assert await model_of(foreign, stranger) == _OLD
    assert (await progress(foreign, None)).status == _NONE


async def test_only_models_that_the_hub_has_are_moved_to(tenant: Tenant, user: User) -> None:
    """The others are told."""
    with pytest.raises(errors.InvalidFieldError) as caught:
        await move(tenant, user, "openai:unknown")
    assert caught.value.violations == (
        ("embedding_model", f"must be one of: {_OLD}, {_NEW}, {_OTHER}"),
    )


async def test_a_space_keeps_its_model_when_the_hub_gets_another(
    tenant: Tenant, user: User, server: EmbeddingServer, settings: dict[str, Any], tmp_path: Path
) -> None:
    """As long as the hub has it; a hub that has not finds words, until the space is moved."""
    await tenant.ingest(user, "Birds", "Owls hunt mice.")
    url, other = tenant.hub.owner_url, f"openai:other@{server.url}"
    (tmp_path / "two").mkdir()
    async with running_hub(url, tmp_path, **{**settings, "embedding": other}) as second:
        there = Tenant(tenant.tenant_id, tenant.key, second, second.client(tenant.key))
        assert (await model_of(there, user), len(await search(there, user))) == (_OLD, 1)
        late = await there.ingest(user, "Late", "Geese fly south.")
        assert len(await search(tenant, user)) == 2
        newcomer = await there.new_user()
        assert [await model_of(one, newcomer) for one in (there, tenant)] == [_NEW, _OLD]
    alone: dict[str, Any] = {"embedding": other, "embedding_models": "minilm"}
    async with running_hub(url, tmp_path / "two", **alone) as third:
        there = Tenant(tenant.tenant_id, tenant.key, third, third.client(tenant.key))
        hits = await search(there, user, query="geese", mode=SearchMode.SEARCH_MODE_HYBRID)
        assert [hit.chunk.document_id for hit in hits] == [late.document_id]
        assert hits[0].vector_score == 0
        await move(there, user, _OTHER)
        await arrived(there, user)
        assert len(await search(there, user)) == 2
