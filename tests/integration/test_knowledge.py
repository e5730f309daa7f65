"""Documents and their search, the same with either kind of vector index."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf import json_format

from hub_client import AsyncHubClient
from hub_client.errors import FeatureDisabledError, InvalidFieldError, NotFoundError
from hub_client.v1 import (
    DeleteDocumentRequest,
    Document,
    DocumentStatus,
    GetDocumentRequest,
    IngestDocumentRequest,
    ListDocumentsRequest,
    SearchHit,
    SearchRequest,
    UpdateUserConfigRequest,
    UploadDocumentRequest,
    User,
    UserConfig,
)
from hub_server.ids import new_id
from tests.integration.test_database import passing, statements
from tests.support import Hub, Tenant, in_memory_only, running_hub, settled

_READY = DocumentStatus.DOCUMENT_STATUS_READY
_FAILED = DocumentStatus.DOCUMENT_STATUS_FAILED
_PROCESSING = DocumentStatus.DOCUMENT_STATUS_PROCESSING
_PARAGRAPHS = [
    f"Paragraph {place} speaks of {subject}. " + f"It says many things about {subject}. " * 25
    for place, subject in enumerate(("tea", "bridges", "owls", "granite", "violins", "tides"))
]


@pytest.fixture(scope="module", params=["exact", "hnswlib"])
async def served(
    request: pytest.FixtureRequest, owner_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Hub]:
    """A hub that searches vectors in one of two ways, over the database of the session's hub."""
    most = 16.0 if request.param == "exact" else 0.0
    folder = tmp_path_factory.mktemp(request.param)
    async with running_hub(owner_url, folder, exact_max_mb=most) as hub:
        yield hub


@pytest.fixture
async def tenant(served: Hub) -> Tenant:
    """A new tenant of that hub."""
    return await served.new_tenant()


@pytest.fixture
async def user(tenant: Tenant) -> User:
    """A new user of the tenant."""
    return await tenant.new_user()


async def test_a_document_is_ingested_and_then_found(tenant: Tenant, hub: Hub, user: User) -> None:
    """It is processing first, then ready, and from then on every search finds it, in every hub."""
    request = IngestDocumentRequest(
        user_id=user.user_id,
        title="Tea",
        text="Green tea is brewed at eighty degrees.",
        source_url="https://example.org/tea",
        author="Ana",
    )
    request.metadata.update({"shelf": {"row": [1, None]}})
    taken = (await tenant.client.knowledge.ingest_document(request)).document
    assert (taken.status, taken.chunk_count, taken.error) == (_PROCESSING, 0, "")
    ready = await settled(tenant.client, taken.document_id)
    assert (ready.status, ready.chunk_count, ready.error) == (_READY, 1, "")
    for one in (taken, ready):
        assert (one.title, one.author, one.source_url) == (
            "Tea",
            "Ana",
            "https://example.org/tea",
        )
        assert json_format.MessageToDict(one.metadata) == {"shelf": {"row": [1, None]}}
    for client in (tenant.client, hub.client(tenant.key)):
        hits = await _search(client, user, "How hot is green tea?")
        assert [hit.chunk.document_id for hit in hits] == [taken.document_id]
        assert hits[0].score == 1
        assert hits[0].chunk.content == "Green tea is brewed at eighty degrees."
        assert hits[0].chunk.token_count > 0


async def test_a_document_of_several_chunks_is_found_by_each_of_them(
    tenant: Tenant, user: User
) -> None:
    """Chunks are numbered from 0, hold the whole text, and tell where they come from."""
    text = "\n\n".join(_PARAGRAPHS)
    document = await tenant.ingest(user, "Subjects", text, source_url="file:subjects.md")
    hits = await _search(tenant.client, user, "subjects", top_k=200)
    assert document.chunk_count == len(hits) >= 6
    chunks = sorted((hit.chunk for hit in hits), key=lambda chunk: chunk.chunk_index)
    assert [chunk.chunk_index for chunk in chunks] == list(range(len(chunks)))
    assert "".join("".join(one.content for one in chunks).split()) == "".join(text.split())
    for chunk in chunks:
        assert chunk.document_id == document.document_id
        assert chunk.document_title == "Subjects"
        assert json_format.MessageToDict(chunk.metadata) == {
            "source": "file:subjects.md",
            "chunk_index": chunk.chunk_index,
            "document_title": "Subjects",
        }
    for paragraph, subject in ((2, "owls"), (4, "violins")):
        best = (await _search(tenant.client, user, f"Who says things about {subject}?"))[0]
        assert f"Paragraph {paragraph} " in best.chunk.content


async def test_a_document_without_text_fails_and_says_so(tenant: Tenant, user: User) -> None:
    """Whitespace alone is `failed` with its reason, has no chunks, and its title finds nothing."""
    document = await _blank(tenant, user, "Owls")
    assert (document.status, document.chunk_count) == (_FAILED, 0)
    assert document.error == "the document holds no text"
    assert await _search(tenant.client, user, "Owls") == []
    assert not tenant.hub.sql("SELECT 1 FROM chunks WHERE document_id = %s", document.document_id)
    ready = await tenant.ingest(user, "Owls again", "Owls hunt at night.")
    found = await _search(tenant.client, user, "Owls")
    assert [hit.chunk.document_id for hit in found] == [ready.document_id]


async def _blank(tenant: Tenant, user: User, title: str) -> Document:
    """Return a document of a file that holds no text."""
    request = UploadDocumentRequest(user_id=user.user_id, title=title)
    document = await tenant.client.upload(" \n\t\u00a0\n ".encode(), request)
    return await settled(tenant.client, document.document_id)


async def test_a_deleted_document_is_gone_for_every_call_after_the_answer(
    tenant: Tenant, hub: Hub, user: User
) -> None:
    """Search, get and list no longer know it, here and in another hub; deleting again fails."""
    kept = await tenant.ingest(user, "Kept", "Owls hunt at night.")
    gone = await tenant.ingest(user, "Gone", "Owls hunt at night, with their ears.")
    clients = (tenant.client, hub.client(tenant.key))
    for client in clients:
        assert len(await _search(client, user, "owls")) == 2
    await _delete(tenant.client, gone)
    for client in clients:
        hits = await _search(client, user, "Owls hunt with their ears")
        assert [hit.chunk.document_id for hit in hits] == [kept.document_id]
        assert [one.document_id for one in await _listed(client, user)] == [kept.document_id]
        with pytest.raises(NotFoundError):
            await client.knowledge.get_document(GetDocumentRequest(document_id=gone.document_id))
        with pytest.raises(NotFoundError):
            await _delete(client, gone)


@pytest.mark.parametrize("change", ["deleted_at = now()", "revision = 0"])
async def test_a_chunk_that_only_the_view_still_holds_is_not_returned(
    tenant: Tenant, user: User, change: str
) -> None:
    """What Postgres says decides, though no change was announced to the view that proposes it."""
    gone = await tenant.ingest(user, "Gone", "Owls hunt at night, with their ears.")
    kept = await tenant.ingest(user, "Kept", "Owls hunt at night.")
    assert len(await _search(tenant.client, user, "owls")) == 2
    statement = "UPDATE documents SET " + change + " WHERE document_id = %s"  # noqa: S608 - ours
    tenant.hub.sql(statement, gone.document_id)
    for top_k in (1, 10):
        hits = await _search(tenant.client, user, "Owls hunt with their ears", top_k=top_k)
        assert [hit.chunk.document_id for hit in hits] == [kept.document_id]


async def test_a_chunk_deleted_while_a_search_runs_is_not_returned(
    tenant: Tenant, user: User
) -> None:
    """A document that goes between the view's proposal and the final read is not in the answer."""
    gone = await tenant.ingest(user, "Gone", "Owls hunt at night.")
    assert len(await _search(tenant.client, user, "owls")) == 1
    deleted: list[tuple[Any, ...]] = []

    def delete_before_the_final_read(sent: str) -> str:
        if "AS asked (chunk_id)" in sent and not deleted:
            statement = "UPDATE documents SET deleted_at = now() WHERE document_id = %s RETURNING 1"
            deleted.extend(tenant.hub.sql(statement, gone.document_id))
        return sent

    with passing(delete_before_the_final_read):
        assert await _search(tenant.client, user, "owls") == []
    assert deleted


async def test_no_search_sent_after_a_delete_returns_the_document(
    tenant: Tenant, hub: Hub, user: User
) -> None:
    """Searches of two hubs run without pause while documents go one by one."""
    documents = await asyncio.gather(
        *(tenant.ingest(user, f"Owls {number}", "Owls hunt at night.") for number in range(12))
    )
    gone: set[str] = set()
    clients = (tenant.client, hub.client(tenant.key))

    async def search_on(client: AsyncHubClient) -> None:
        while len(gone) < len(documents):
            gone_before = set(gone)
            hits = await _search(client, user, "owls", top_k=200)
            assert not gone_before & {hit.chunk.document_id for hit in hits}

    async def delete_all() -> None:
        for document in documents:
            await _delete(clients[0], document)
            gone.add(document.document_id)

    await asyncio.gather(delete_all(), *(search_on(client) for client in clients * 2))
    assert await _search(tenant.client, user, "owls") == []


async def test_a_document_deleted_while_it_is_processed_is_never_found(
    tenant: Tenant, user: User
) -> None:
    """Whichever is first, the delete or the end of the processing: nothing is found afterwards."""
    for number in range(8):
        request = IngestDocumentRequest(
            user_id=user.user_id, title=f"Owls {number}", text="\n\n".join(_PARAGRAPHS[:number])
        )
        request.text = request.text or "Owls."
        taken = (await tenant.client.knowledge.ingest_document(request)).document
        await _delete(tenant.client, taken)
    await tenant.ingest(user, "Tides", "Tides rise and fall.")
    hits = await _search(tenant.client, user, "owls", top_k=200)
    assert {hit.chunk.document_title for hit in hits} == {"Tides"}


async def test_what_a_search_returned_for_a_session_is_recorded(tenant: Tenant, user: User) -> None:
    """Each hit is a row with query, rank, score and model; without a session nothing is kept."""
    await tenant.ingest(user, "Subjects", "\n\n".join(_PARAGRAPHS))
    session = await tenant.new_session(user)
    await _search(tenant.client, user, "owls and tides")
    hits = await _search(
        tenant.client, user, "owls and tides", top_k=3, session_id=session.session_id
    )
    rows = tenant.hub.sql(
        "SELECT rank, chunk_id::text, score, query, session_id::text, embedding_model"
        " FROM retrievals WHERE user_id = %s ORDER BY rank",
        user.user_id,
    )
    assert rows == [
        (rank, one.chunk.chunk_id, one.score, "owls and tides", session.session_id, model)
        for rank, one in enumerate(hits, start=1)
        for model in ["wordllama-l2-256"]
    ]
    assert len(rows) == 3


async def test_a_search_for_a_session_that_is_not_the_users_is_refused(
    tenant: Tenant, user: User
) -> None:
    """An unknown session and one of another user are NOT_FOUND alike, and record nothing."""
    await tenant.ingest(user, "Owls", "Owls hunt at night.")
    foreign = await tenant.new_session(await tenant.new_user())
    refusals = []
    for session_id in (foreign.session_id, new_id()):
        with pytest.raises(NotFoundError) as caught:
            await _search(tenant.client, user, "owls", session_id=session_id)
        refusals.append((caught.value.message, caught.value.metadata))
    assert refusals == [("session not found", {"resource": "session"})] * 2
    recorded = "SELECT 1 FROM retrievals WHERE tenant_id = %s"
    assert not tenant.hub.sql(recorded, tenant.tenant_id)


async def test_without_enable_rag_nothing_is_searched(tenant: Tenant, user: User) -> None:
    """Search is refused from the next call on and names the flag; documents are kept as before."""
    document = await tenant.ingest(user, "Owls", "Owls hunt at night.")
    for enabled in (False, True):
        config = UserConfig(user_id=user.user_id, enable_rag=enabled)
        await tenant.client.identity.update_user_config(UpdateUserConfigRequest(config=config))
        if enabled:
            assert len(await _search(tenant.client, user, "owls")) == 1
        else:
            with pytest.raises(FeatureDisabledError) as caught:
                await _search(tenant.client, user, "owls")
            assert caught.value.metadata == {"feature": "enable_rag"}
            assert await _listed(tenant.client, user) == [document]


async def test_top_k_bounds_the_hits(tenant: Tenant, user: User) -> None:
    """0 is 10, 200 is the most; beyond the limits the call is refused and names the field."""
    assert await _search(tenant.client, user, "owls") == []
    await tenant.ingest(user, "Subjects", "\n\n".join(_PARAGRAPHS * 2))
    for top_k, count in ((0, 10), (1, 1), (11, 11)):
        hits = await _search(tenant.client, user, "owls", top_k=top_k)
        assert len(hits) == count
        scores = [hit.score for hit in hits]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= hit.score <= 1 and hit.word_score >= 0 for hit in hits)
        assert all(-1.0001 <= hit.vector_score <= 1.0001 for hit in hits)
    for top_k in (-1, 201):
        with pytest.raises(InvalidFieldError) as caught:
            await _search(tenant.client, user, "owls", top_k=top_k)
        assert [field for field, _ in caught.value.violations] == ["top_k"]


async def test_a_vector_of_another_model_is_not_compared_though_it_would_fit(
    tenant: Tenant, user: User
) -> None:
    """Not the length of a vector but the model that made it decides whether it is used."""
    other = await tenant.ingest(user, "Other", "Owls hunt at night.")
    own = await tenant.ingest(user, "Own", "Owls hunt by day.")
    change = "UPDATE chunks SET embedding_model = 'other-256' WHERE document_id = %s"
    tenant.hub.sql(change, other.document_id)
    hits = await _search(tenant.client, user, "Do owls hunt at night?")
    by_id = {hit.chunk.document_id: hit for hit in hits}
    assert by_id[other.document_id].vector_score == 0
    assert by_id[other.document_id].word_score > 0
    assert by_id[own.document_id].vector_score > 0


async def test_documents_are_listed_newest_first_in_pages(tenant: Tenant, user: User) -> None:
    """Every document is listed once, whatever the page size and its status."""
    documents = [await tenant.ingest(user, f"{number}", "Owls.") for number in range(4)]
    documents.append(await _blank(tenant, user, "4"))
    for page_size in (1, 2, 5, 50):
        assert await _listed(tenant.client, user, page_size=page_size) == documents[::-1]
    request = GetDocumentRequest(document_id=documents[0].document_id)
    assert (await tenant.client.knowledge.get_document(request)).document == documents[0]


@in_memory_only
async def test_reads_take_as_few_statements_as_they_can(tenant: Tenant, user: User) -> None:
    """A list and a get are one statement, a search of what the view holds is two."""
    document = await tenant.ingest(user, "Owls", "Owls hunt at night.")
    await _search(tenant.client, user, "the view follows, the connection carries the tenant")
    request = GetDocumentRequest(document_id=document.document_id)
    for call, count in (
        (_listed(tenant.client, user), 1),
        (tenant.client.knowledge.get_document(request), 1),
        (_search(tenant.client, user, "owls"), 2),
    ):
        with statements() as seen:
            await call
        assert len(seen) == count, seen


async def _search(client: AsyncHubClient, user: User, query: str, **values: Any) -> list[SearchHit]:
    request = SearchRequest(user_id=user.user_id, query=query, **values)
    return list((await client.knowledge.search(request)).hits)


async def _listed(client: AsyncHubClient, user: User, **values: Any) -> list[Document]:
    request = ListDocumentsRequest(user_id=user.user_id, **values)
    return [document async for document in client.knowledge.list_documents(request)]


async def _delete(client: AsyncHubClient, document: Document) -> None:
    request = DeleteDocumentRequest(document_id=document.document_id)
    await client.knowledge.delete_document(request)
