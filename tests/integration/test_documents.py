"""The life of documents: changed while searches go on, watched, tried again, deleted and back."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from hub_client import errors
from hub_client.v1 import (
    Chunk,
    Chunking,
    DeleteDocumentRequest,
    Document,
    DocumentStatus,
    IngestDocumentRequest,
    ListChunksRequest,
    ListDocumentsRequest,
    ListRetrievalsRequest,
    RetryDocumentRequest,
    SearchHit,
    SearchMode,
    SearchRequest,
    UndeleteDocumentRequest,
    UpdateDocumentRequest,
    User,
    WatchDocumentRequest,
)
from hub_server.knowledge.search_repository import SearchRepository
from tests.integration.test_database import held, until, waiting_for_locks
from tests.integration.test_uploads import read
from tests.support import Tenant, settled

_READY = DocumentStatus.DOCUMENT_STATUS_READY


@pytest.fixture
async def user(tenant: Tenant) -> User:
    """A new user of the tenant."""
    return await tenant.new_user()


async def search(tenant: Tenant, user: User, query: str, **values: Any) -> list[SearchHit]:
    """Search a user's documents."""
    request = SearchRequest(user_id=user.user_id, query=query, **values)
    return list((await tenant.client.knowledge.search(request)).hits)


async def update(tenant: Tenant, document: Document, **values: Any) -> Document:
    """Change a document and wait until it is processed."""
    request = UpdateDocumentRequest(document_id=document.document_id, **values)
    await tenant.client.knowledge.update_document(request)
    return await settled(tenant.client, document.document_id)


async def chunks(tenant: Tenant, document: Document, **values: Any) -> list[Chunk]:
    """Return the chunks of a document."""
    request = ListChunksRequest(document_id=document.document_id, **values)
    return [one async for one in tenant.client.knowledge.list_chunks(request)]


async def test_the_same_text_is_stored_once(tenant: Tenant, user: User) -> None:
    """Of 8 at once too; another user, a deleted document or a word of the caller make it anew."""
    request = IngestDocumentRequest(user_id=user.user_id, title="Tea", text="Sencha is green.")
    ingest = tenant.client.knowledge.ingest_document
    answers = await asyncio.gather(*(ingest(request) for _ in range(8)))
    ids = {answer.document.document_id for answer in answers}
    assert len(ids) == 1
    await settled(tenant.client, *ids)
    again = IngestDocumentRequest(
        user_id=user.user_id, title="Tea", text="Sencha is green.", allow_duplicate=True
    )
    other = (await ingest(again)).document
    assert other.document_id not in ids
    stranger = await tenant.new_user()
    theirs = IngestDocumentRequest(user_id=stranger.user_id, title="Tea", text="Sencha is green.")
    assert (await ingest(theirs)).document.user_id == stranger.user_id
    for document_id in (*ids, other.document_id):
        await tenant.client.knowledge.delete_document(
            DeleteDocumentRequest(document_id=document_id)
        )
    assert (await ingest(request)).document.document_id not in {*ids, other.document_id}


async def test_a_changed_text_takes_the_place_of_the_old_one_at_once(
    tenant: Tenant, user: User
) -> None:
    """While it is processed searches find the old text alone, and after it the new one alone."""
    document = await tenant.ingest(user, "Birds", "Owls hunt mice at night.")
    request = UpdateDocumentRequest(document_id=document.document_id, text="Swans sleep on lakes.")
    # The last step of the processing takes a seq of the space, and waits for it here.
    lock = "SELECT 1 FROM spaces WHERE user_id = %s AND kind = 'knowledge' FOR UPDATE"
    with held(tenant.hub, lock, user.user_id):
        changed = (await tenant.client.knowledge.update_document(request)).document
        assert changed.status == DocumentStatus.DOCUMENT_STATUS_PROCESSING
        await until(lambda: waiting_for_locks(tenant.hub) == 1)
        hits = await search(tenant, user, "owls swans")
        assert [hit.chunk.content for hit in hits] == ["Owls hunt mice at night."]
        assert [one.content for one in await chunks(tenant, document)] == [
            "Owls hunt mice at night."
        ]
    assert (await settled(tenant.client, document.document_id)).status == _READY
    hits = await search(tenant, user, "owls swans")
    assert [hit.chunk.content for hit in hits] == ["Swans sleep on lakes."]
    count = tenant.hub.sql(
        "SELECT count(*) FROM chunks WHERE document_id = %s", document.document_id
    )
    assert count == [(1,)]


@pytest.mark.parametrize("step", ["filtered", "shown_chunks", "spans"])
async def test_a_text_changed_within_a_search_is_found(
    tenant: Tenant, user: User, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old or the new, whichever read it changes before."""
    document = await tenant.ingest(user, "Birds", "Owls hunt mice at night.")
    read, changes = getattr(SearchRepository, step), ["Swans sleep on lakes."]

    async def changed(*arguments: Any) -> Any:
        if changes:
            await update(tenant, document, text=changes.pop())
        return await read(*arguments)

    monkeypatch.setattr(SearchRepository, step, changed)
    ids = [document.document_id] if step == "filtered" else []
    (hit,) = await search(tenant, user, "owls swans", neighbours=1, document_ids=ids)
    assert hit.chunk.content == "Swans sleep on lakes."
    assert not changes


LEAVES = " ".join(f"Leaf {number} is picked and dried." for number in range(16))
GUIDE = f"# Téa 茶\r\n\r\n## Green 🍵\r\n\r\n{LEAVES}\r\n\r\nBlack\r\n-----\r\n\r\n{LEAVES}"
GREEN, BLACK = ["Téa 茶", "Green 🍵"], ["Téa 茶", "Black"]


async def test_chunks_know_their_place_and_the_headings_above_them(
    tenant: Tenant, user: User
) -> None:
    """In lists and in hits: characters of the text, not bytes; and they are found by a heading."""
    small = Chunking(max_tokens=40, overlap_tokens=20)
    document = await tenant.ingest(user, "Guide", GUIDE, chunking=small)
    listed = await chunks(tenant, document)
    assert [GUIDE[one.start_char : one.end_char] for one in listed] == [
        one.content for one in listed
    ]
    paths = [list(one.heading_path) for one in listed]
    assert paths == [GREEN] * paths.count(GREEN) + [BLACK] * paths.count(BLACK)
    green = [one for one in listed if list(one.heading_path) == GREEN]
    assert len(green) > 2
    assert all(one.end_char > after.start_char for one, after in pairwise(green))
    hits = await search(tenant, user, "black", mode=SearchMode.SEARCH_MODE_LEXICAL, top_k=100)
    by_index = sorted((hit.chunk for hit in hits), key=lambda one: one.chunk_index)
    assert by_index == [one for one in listed if one not in green]


async def test_another_chunking_takes_the_place_of_the_old_one_at_once(
    tenant: Tenant, user: User
) -> None:
    """Until then the chunks are as they were; whatever else changes later, it stays."""
    document = await tenant.ingest(user, "Guide", GUIDE, chunking=Chunking(max_tokens=40))
    before = await chunks(tenant, document)
    request = UpdateDocumentRequest(document_id=document.document_id, chunking=Chunking())
    lock = "SELECT 1 FROM spaces WHERE user_id = %s AND kind = 'knowledge' FOR UPDATE"
    with held(tenant.hub, lock, user.user_id):
        changed = (await tenant.client.knowledge.update_document(request)).document
        await until(lambda: waiting_for_locks(tenant.hub) == 1)
        assert await chunks(tenant, document) == before
    assert (changed.chunking.max_tokens, changed.etag != document.etag) == (200, True)
    await settled(tenant.client, document.document_id)
    after = await chunks(tenant, document)
    assert [list(one.heading_path) for one in after] == [GREEN, BLACK]
    hits = await search(tenant, user, "leaf", top_k=100)
    assert {hit.chunk.chunk_id for hit in hits} == {one.chunk_id for one in after}
    await update(tenant, document, chunking=Chunking(max_tokens=40))
    await update(tenant, document, title="Another")
    again = await chunks(tenant, document)
    assert [one.start_char for one in again] == [one.start_char for one in before]


async def test_a_chunking_beyond_its_limits_is_refused(tenant: Tenant, user: User) -> None:
    """Of a new document and of a change, with the field named; nothing is stored."""
    document = await tenant.ingest(user, "Guide", GUIDE)
    for wrong, field in (
        (Chunking(max_tokens=31), "chunking.max_tokens"),
        (Chunking(max_tokens=40, overlap_tokens=21), "chunking.overlap_tokens"),
        (Chunking(overlap_tokens=101), "chunking.overlap_tokens"),
    ):
        with pytest.raises(errors.InvalidFieldError) as caught:
            await tenant.ingest(user, "Other", "Text", chunking=wrong)
        assert [name for name, _ in caught.value.violations] == [field]
        with pytest.raises(errors.InvalidFieldError):
            await update(tenant, document, chunking=wrong)
    found = tenant.client.knowledge.list_documents(ListDocumentsRequest(user_id=user.user_id))
    assert [one async for one in found] == [document]


async def test_no_chunk_may_be_larger_than_the_model_of_the_space_reads(
    tenant: Tenant, user: User
) -> None:
    """It is his space's model that counts, and not the hub's, which here reads all of a text."""
    large = Chunking(max_tokens=255)
    document = await tenant.ingest(user, "Guide", GUIDE, chunking=large)
    moved = """
        UPDATE spaces SET embedding_model = 'minilm-l6-v2-int8'
        WHERE user_id = %s AND kind = 'knowledge' RETURNING 1"""
    assert await asyncio.to_thread(tenant.hub.sql, moved, user.user_id) == [(1,)]
    for call in (
        tenant.ingest(user, "Other", "Text", chunking=large),
        read(tenant, user, b"Text", title="Other", chunking=large),
        update(tenant, document, chunking=large),
    ):
        with pytest.raises(errors.InvalidFieldError) as caught:
            await call
        ((field, what),) = caught.value.violations
        assert (field, "at most 254" in what) == ("chunking.max_tokens", True)


async def test_only_what_chunks_are_made_of_is_processed_anew(tenant: Tenant, user: User) -> None:
    """A title is; author and metadata are not; an etag holds off who has not seen a change."""
    document = await tenant.ingest(user, "Birds", "Owls hunt mice at night.")
    (before,) = await chunks(tenant, document)
    kept = await update(tenant, document, author="Ann", metadata={"shelf": 1})
    assert (kept.author, kept.metadata["shelf"]) == ("Ann", 1)
    assert await chunks(tenant, document) == [before]
    renamed = await update(tenant, document, title="Owls", etag=kept.etag)
    (after,) = await chunks(tenant, document)
    assert (after.document_title, after.chunk_id != before.chunk_id) == ("Owls", True)
    with pytest.raises(errors.EtagMismatchError):
        await update(tenant, document, title="Swans", etag=kept.etag)
    cleared = await update(tenant, renamed, update_mask=FieldMask(paths=["author"]))
    assert (cleared.author, cleared.title) == ("", "Owls")
    with pytest.raises(errors.InvalidFieldError) as caught:
        await update(tenant, document, update_mask=FieldMask(paths=["text"]))
    assert caught.value.violations == (("text", "must not be empty"),)


async def test_a_text_changed_twice_at_once_ends_as_the_last_one(
    tenant: Tenant, user: User
) -> None:
    """The processing of a text that was replaced meanwhile publishes nothing."""
    document = await tenant.ingest(user, "Birds", "Owls.")
    for number in range(6):
        request = UpdateDocumentRequest(document_id=document.document_id, text=f"Swan {number}.")
        await tenant.client.knowledge.update_document(request)
    assert (await settled(tenant.client, document.document_id)).status == _READY
    assert [one.content for one in await chunks(tenant, document)] == ["Swan 5."]


async def test_a_deleted_document_comes_back_as_it_was(tenant: Tenant, user: User) -> None:
    """Searches find it again, lists show it in between to those who ask."""
    document = await tenant.ingest(user, "Birds", "Owls hunt mice at night.")
    about = {"document_id": document.document_id}
    await tenant.client.knowledge.delete_document(DeleteDocumentRequest(**about))
    assert await search(tenant, user, "owls") == []
    listing = ListDocumentsRequest(user_id=user.user_id, show_deleted=True)
    (shown,) = [one async for one in tenant.client.knowledge.list_documents(listing)]
    assert shown.HasField("deleted_at")
    undelete = tenant.client.knowledge.undelete_document
    back = (await undelete(UndeleteDocumentRequest(**about))).document
    assert (back.etag, back.status) == (document.etag, _READY)
    assert (await undelete(UndeleteDocumentRequest(**about))).document == back
    hits = await search(tenant, user, "owls")
    assert [hit.chunk.document_id for hit in hits] == [document.document_id]


async def test_a_failed_document_can_be_tried_again(tenant: Tenant, user: User) -> None:
    """After its text was mended, or as it is; one that has not failed is left alone."""
    document = await read(tenant, user, b" ", file_name="nothing.txt")
    assert document.status == DocumentStatus.DOCUMENT_STATUS_FAILED
    retry = RetryDocumentRequest(document_id=document.document_id)
    retried = (await tenant.client.knowledge.retry_document(retry)).document
    assert (retried.status, retried.error) == (DocumentStatus.DOCUMENT_STATUS_PROCESSING, "")
    again = await settled(tenant.client, document.document_id)
    assert again.status == DocumentStatus.DOCUMENT_STATUS_FAILED
    mended = await update(tenant, document, text="Something.")
    assert (mended.status, mended.error) == (_READY, "")
    assert (await tenant.client.knowledge.retry_document(retry)).document == mended


async def test_a_watched_document_is_seen_to_become_ready(tenant: Tenant, user: User) -> None:
    """Its steps come as they are made, and the stream ends with the last one."""
    text = "\n\n".join(f"Bird {number} sings. " * 40 for number in range(60))
    request = IngestDocumentRequest(user_id=user.user_id, title="Birds", text=text)
    document = (await tenant.client.knowledge.ingest_document(request)).document
    watch = WatchDocumentRequest(document_id=document.document_id)
    events = tenant.client.knowledge.watch_document(watch)
    async with asyncio.timeout(60):
        seen = [event.document async for event in events]
    assert seen[-1].status == _READY
    assert seen[-1].chunk_count == seen[-1].chunks_total == seen[-1].chunks_done > 16
    done = [one.chunks_done for one in seen]
    assert done == sorted(done)
    foreign = tenant.client.knowledge.watch_document(WatchDocumentRequest(document_id=user.user_id))
    with pytest.raises(errors.NotFoundError):
        await anext(foreign)


async def test_a_search_is_narrowed_as_asked(tenant: Tenant, user: User) -> None:
    """By words, by meaning, by score, by document, by so many of each; foreign ids find nothing."""
    birds = await tenant.ingest(
        user, "Birds", "\n\n".join(f"Owl {n} hunts. " * 60 for n in range(9))
    )
    cars = await tenant.ingest(user, "Cars", "An owl sat on the car.")
    everything = await search(tenant, user, "owl", top_k=50)
    assert {hit.chunk.document_id for hit in everything} == {birds.document_id, cars.document_id}
    few = await search(tenant, user, "owl", top_k=50, max_per_document=2)
    assert [hit.chunk.document_id for hit in few].count(birds.document_id) == 2
    only = await search(tenant, user, "owl", top_k=50, document_ids=[cars.document_id])
    assert [hit.chunk.document_id for hit in only] == [cars.document_id]
    assert await search(tenant, user, "owl", document_ids=[user.user_id]) == []
    best = await search(tenant, user, "owl", top_k=50, min_score=everything[0].score)
    assert [hit.score for hit in best] == [everything[0].score]
    words = await search(tenant, user, "vehicle", mode=SearchMode.SEARCH_MODE_LEXICAL)
    assert words == []
    (hit, *_) = await search(tenant, user, "owl", mode=SearchMode.SEARCH_MODE_LEXICAL)
    assert (hit.vector_score, hit.word_score > 0) == (0, True)
    (hit, *_) = await search(tenant, user, "vehicle", mode=SearchMode.SEARCH_MODE_SEMANTIC)
    assert (hit.chunk.document_id, hit.word_score) == (cars.document_id, 0)


async def test_what_was_returned_to_a_session_is_listed(
    tenant: Tenant, other_tenant: Tenant, user: User
) -> None:
    """Search by search, latest first, each in its order, and how often a chunk was returned."""
    await tenant.ingest(user, "Birds", "Owls hunt mice at night.")
    await tenant.ingest(user, "Cars", "Cars drive on roads.")
    session = await tenant.new_session(user)
    for query in ("owls", "cars"):
        await search(tenant, user, query, session_id=session.session_id)
    request = ListRetrievalsRequest(session_id=session.session_id)
    for request.page_size in (1, 3, 50):
        found = [one async for one in tenant.client.knowledge.list_retrievals(request)]
        assert [(one.query, one.rank) for one in found] == [
            ("cars", 1),
            ("cars", 2),
            ("owls", 1),
            ("owls", 2),
        ]
        assert {one.times_retrieved for one in found} == {2}
    with pytest.raises(errors.NotFoundError):
        await anext(other_tenant.client.knowledge.list_retrievals(request))


async def test_chunks_are_listed_in_pages(tenant: Tenant, user: User) -> None:
    """In the order of the document, whatever the page size."""
    text = "\n\n".join(f"Owl {number} hunts. " * 60 for number in range(9))
    document = await tenant.ingest(user, "Birds", text)
    whole = await chunks(tenant, document)
    assert [one.chunk_index for one in whole] == list(range(document.chunk_count))
    assert await chunks(tenant, document, page_size=2) == whole
