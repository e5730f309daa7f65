"""A hub whose embeddings come from another server, which goes away and comes back."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from hub_client.errors import UnavailableError
from hub_client.v1 import (
    AppendMessageRequest,
    DocumentStatus,
    GetDocumentRequest,
    IngestDocumentRequest,
    MemoryType,
    MessageSearch,
    RecallRequest,
    RememberRequest,
    Role,
    SearchRequest,
    TenantSettings,
    UpdateTenantSettingsRequest,
    User,
)
from hub_server import search
from hub_server.embedding import openai
from hub_server.jobs import ingestion, message_embedding
from hub_server.migrations import migrate
from hub_server.settings import Settings
from tests.embedding_server import (
    DIMENSION,
    KEY,
    EmbeddingServer,
    Handler,
    Seen,
    echo,
    embedding_server,
    good,
    status,
)
from tests.integration.test_database import own_hub
from tests.support import Tenant, hub_process, settled


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingServer]:
    """A server that answers well until told otherwise; the hub asks it again at once."""
    monkeypatch.setattr(openai, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(ingestion, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(message_embedding, "_PAUSE_SECONDS", 0.01)
    with embedding_server() as server:
        yield server


@pytest.fixture
async def tenant(
    empty_database: str, tmp_path: Path, server: EmbeddingServer
) -> AsyncIterator[Tenant]:
    """A tenant of a hub of its own, which embeds by the server."""
    embedding = f"openai:a-model@{server.url}"
    values = {"embedding": embedding, "embedding_key": SecretStr(KEY), "ingestion_lease": 1.0}
    async with own_hub(empty_database, tmp_path / "hub", **values) as hub:
        yield await hub.new_tenant()


async def _remember(tenant: Tenant, user: User, text: str) -> None:
    fact = MemoryType.MEMORY_TYPE_FACT
    request = RememberRequest(user_id=user.user_id, memory_type=fact, memory_content=text)
    await tenant.client.memory.remember(request)


async def _recall(tenant: Tenant, user: User, query: str) -> list[str]:
    request = RecallRequest(user_id=user.user_id, query=query)
    hits = (await tenant.client.memory.recall(request)).hits
    return [hit.memory.memory_content for hit in hits]


async def _search(tenant: Tenant, user: User, query: str) -> list[str]:
    request = SearchRequest(user_id=user.user_id, query=query)
    return [hit.chunk.content for hit in (await tenant.client.knowledge.search(request)).hits]


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # polling: what is awaited happens in Postgres or a thread


async def test_what_is_kept_is_found_by_the_servers_vectors(
    tenant: Tenant, server: EmbeddingServer
) -> None:
    """Memories and chunks bear the model's id and vectors of its length."""
    user = await tenant.new_user()
    for text in ("Green tea is what he drinks.", "The red car needs fuel."):
        await _remember(tenant, user, text)
    assert (await _recall(tenant, user, "tea to drink"))[0] == "Green tea is what he drinks."
    await tenant.ingest(user, "Whales", "Whales sing songs.")
    assert await _search(tenant, user, "which songs") == ["Whales sing songs."]
    for table in ("memory_store", "chunks"):
        query = f"SELECT DISTINCT embedding_model, length(embedding) FROM {table}"  # noqa: S608
        assert tenant.hub.sql(query) == [("openai:a-model", 4 * DIMENSION)]
    assert {seen.authorization for seen in server.seen} == {f"Bearer {KEY}"}
    assert "Whales\nWhales sing songs." in [text for seen in server.seen for text in seen.texts]


async def test_while_the_server_is_away_callers_are_told_and_then_served(
    tenant: Tenant, server: EmbeddingServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """UNAVAILABLE, never INTERNAL: what needs no vector works on, and all does once it is back."""
    user = await tenant.new_user()
    await _remember(tenant, user, "Green tea is what he drinks.")
    calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
        lambda: _remember(tenant, user, "The red car needs fuel."),
        lambda: _recall(tenant, user, "tea"),
        lambda: _search(tenant, user, "tea"),
    ]
    server.stop()
    for call in calls:
        with pytest.raises(UnavailableError):
            await call()
    await tenant.new_session(user)
    server.start()
    for act in (echo(401), status(200, b"<html>"), echo(400)):
        server.always = act
        with pytest.raises(UnavailableError):
            await _recall(tenant, user, "teapot")
    server.always = status(429, Retry_After="30")
    with pytest.raises(UnavailableError) as caught:
        await _remember(tenant, user, "The red car needs fuel.")
    assert caught.value.retry_after == 30.0
    server.always = good
    for call in calls:
        await call()
    assert await _recall(tenant, user, "fuel for a car") != []
    out, err = capfd.readouterr()
    assert "answered 401: is HUB_EMBEDDING_KEY right?" in out + err
    assert not re.search(f"{KEY}|teapot|green tea", out + err, re.IGNORECASE)


async def test_a_server_that_hangs_holds_up_no_caller(
    tenant: Tenant, server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More queries than threads: those that wait for their turn are told as well, and dropped."""
    user = await tenant.new_user()
    monkeypatch.setattr(search, "_EMBED_SECONDS", 0.2)
    server.always = lambda _, __: hang(server)
    calls = [_remember(tenant, user, f"Text {number}") for number in range(40)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(answer) for answer in answers} == {UnavailableError}
    assert len(server.seen) <= 1 + 16  # as many as there are threads


def hang(server: EmbeddingServer) -> None:
    """Answer nothing before the test ends."""
    assert server.ended.wait(60)


async def test_a_document_waits_for_the_server_and_is_done(
    tenant: Tenant, server: EmbeddingServer
) -> None:
    """However often it was asked in vain and however long: within one attempt, to the end.

    The server is away for longer than a lease, and fails in the midst of the document.
    """
    user = await tenant.new_user()
    server.always = status(503)
    text = "\n\n".join(f"Chapter {number}. " + "Whales sing songs. " * 40 for number in range(40))
    request = IngestDocumentRequest(user_id=user.user_id, title="Whales", text=text)
    document = (await tenant.client.knowledge.ingest_document(request)).document
    document_id, begun = document.document_id, len(server.seen)
    lease = "SELECT lease_expires_at FROM documents WHERE lease_expires_at IS NOT NULL"
    await _until(lambda: tenant.hub.sql(lease))
    ((first_lease,),) = tenant.hub.sql(lease)
    over = "SELECT 1 FROM documents WHERE now() > %s AND lease_expires_at > now()"
    await _until(lambda: tenant.hub.sql(over, first_lease))
    tries = 10 * 5  # more than attempts a document has
    await _until(lambda: len(server.seen) - begun > tries)
    get = GetDocumentRequest(document_id=document_id)
    document = (await tenant.client.knowledge.get_document(get)).document
    assert document.status == DocumentStatus.DOCUMENT_STATUS_PROCESSING
    server.acts.extend([good, *[status(500)] * 12])
    server.always = good
    document = await settled(tenant.client, document_id)
    assert document.status == DocumentStatus.DOCUMENT_STATUS_READY
    assert tenant.hub.sql("SELECT attempt FROM documents") == [(1,)]
    indexes = tenant.hub.sql("SELECT chunk_index FROM chunks ORDER BY 1")
    assert indexes == [(place,) for place in range(document.chunk_count)]
    assert document.chunk_count > 32


async def test_a_document_that_waits_stays_its_workers(
    tenant: Tenant, server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also through a pause longer than the lease: nobody else begins it anew."""
    monkeypatch.setattr(ingestion, "_PAUSE_SECONDS", 1.5)
    monkeypatch.setattr(ingestion, "_POLL_SECONDS", 0.05)
    user = await tenant.new_user()
    server.acts.extend([status(503)] * 5)
    document = await tenant.ingest(user, "Whales", "Whales sing songs.")
    assert document.status == DocumentStatus.DOCUMENT_STATUS_READY
    assert tenant.hub.sql("SELECT attempt FROM documents") == [(1,)]
    assert not server.acts


async def test_a_document_that_the_server_refuses_fails_with_a_reason(
    tenant: Tenant, server: EmbeddingServer
) -> None:
    """A fault of its text does not pass, and keeps no other document from being done."""

    def picky(handler: Handler, seen: Seen) -> None:
        is_bad = any(text.startswith("B") for text in seen.texts)  # also when it is cut
        (echo(400) if is_bad else good)(handler, seen)

    server.always = picky
    user = await tenant.new_user()
    bad = await tenant.ingest(user, "Bad", "Words that it will not have.")
    assert bad.status == DocumentStatus.DOCUMENT_STATUS_FAILED
    assert bad.error == "the text could not be processed (TextRefusedError)"
    fine = await tenant.ingest(user, "Whales", "Whales sing songs.")
    assert fine.status == DocumentStatus.DOCUMENT_STATUS_READY


async def test_messages_are_embedded_when_the_server_is_back(
    tenant: Tenant, server: EmbeddingServer
) -> None:
    """Nobody has to search for that."""
    settings = TenantSettings(message_search=MessageSearch.MESSAGE_SEARCH_HYBRID)
    request = UpdateTenantSettingsRequest(tenant_settings=settings)
    await tenant.client.identity.update_tenant_settings(request)
    session = await tenant.new_session(await tenant.new_user())
    server.always = status(503)
    begun = len(server.seen)
    message = AppendMessageRequest(
        session_id=session.session_id, content="Green tea", role=Role.ROLE_USER
    )
    await tenant.client.chat.append_message(message)
    await _until(lambda: len(server.seen) > begun + 3 * 5)
    server.always = good
    await _until(lambda: tenant.hub.sql("SELECT 1 FROM chat_messages WHERE embedding IS NOT NULL"))


def test_a_start_without_the_server_is_told_in_one_line(
    empty_database: str, tmp_path: Path, server: EmbeddingServer
) -> None:
    """`hub serve` ends, with the URL and no traceback; the key is nowhere."""
    migrate(empty_database, Settings().server_role)
    server.always = echo(401)
    values = {"embedding": f"openai:a-model@{server.url}", "embedding_key": KEY}
    with hub_process(tmp_path / "hub", database_url=empty_database, **values) as hub:
        with pytest.raises(RuntimeError, match="did not start"):
            hub.start()
        assert hub.process is not None
        assert hub.process.wait(60) == 1
        assert hub.process.stdout is not None
        hub.process.stdout.close()
        hub.process = None
        told = hub.log.read_text()
    last = told.splitlines()[-1]
    assert last == f"hub: {server.url}/embeddings answered 401: is HUB_EMBEDDING_KEY right?"
    assert "Traceback" not in told
    assert KEY not in told
