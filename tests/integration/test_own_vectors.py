"""Chunks whose vectors were made elsewhere, and searches by such a vector."""

import asyncio
import threading
import uuid
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import json_format

from hub_client import errors
from hub_client.v1 import (
    AddChunksRequest,
    AddChunksResponse,
    BatchSearchRequest,
    DeleteDocumentRequest,
    Document,
    DocumentStatus,
    ListChunksRequest,
    ListRetrievalsRequest,
    OwnChunk,
    RetryDocumentRequest,
    SearchHit,
    SearchMode,
    SearchQuery,
    SearchRequest,
    UndeleteDocumentRequest,
    UpdateDocumentRequest,
    User,
)
from hub_server.embedding.wordllama import WordLlama256
from hub_server.knowledge.search_repository import SearchRepository
from hub_server.paging import LARGEST_ANSWER
from tests.integration.test_database import statements, until
from tests.support import Tenant

_MODEL = "elsewhere-3"
_AXES = np.eye(3)
_WORDS = ("owls hunt mice", "swans sleep on lakes", "cars drive on roads")


@pytest.fixture
async def user(tenant: Tenant) -> User:
    """A new user of the tenant."""
    return await tenant.new_user()


def packed(vector: Any) -> bytes:
    """Return a vector as the contract takes it."""
    return np.asarray(vector, dtype="<f4").tobytes()


def own(vectors: Any = _AXES, words: Sequence[str] = _WORDS) -> list[OwnChunk]:
    """Return chunks with these vectors."""
    return [
        OwnChunk(content=content, embedding=packed(vector))
        for content, vector in zip(words, vectors, strict=True)
    ]


async def add(tenant: Tenant, user: User, **values: Any) -> AddChunksResponse:
    """Add three chunks, unless told otherwise to a new document."""
    title = {} if "document_id" in values else {"title": "Things"}
    known = {"user_id": user.user_id, "embedding_model": _MODEL, "chunks": own()}
    request = AddChunksRequest(**{**known, **title, **values})
    return await tenant.client.knowledge.add_chunks(request)


async def search(tenant: Tenant, user: User, vector: Any = None, **values: Any) -> list[SearchHit]:
    """Search by a vector of the model, unless told otherwise."""
    if vector is not None:
        values = {"vector": packed(vector), "embedding_model": _MODEL, **values}
    request = SearchRequest(user_id=user.user_id, **values)
    return list((await tenant.client.knowledge.search(request)).hits)


async def told(call: Any) -> tuple[tuple[str, str], ...]:
    """Return what is wrong with the fields of a call that is refused."""
    with pytest.raises(errors.InvalidFieldError) as caught:
        await call
    return tuple(caught.value.violations)


async def listed(tenant: Tenant, document: Document) -> list[Any]:
    """Return the chunks of a document."""
    request = ListChunksRequest(document_id=document.document_id)
    return [one async for one in tenant.client.knowledge.list_chunks(request)]


def found(hits: Sequence[SearchHit]) -> list[str]:
    """Return what was found."""
    return [hit.chunk.content for hit in hits]


async def test_chunks_are_found_by_their_vectors_and_words_at_once(
    tenant: Tenant, user: User
) -> None:
    """By a vector alone, by vector and words, by words alone; beside what the hub embedded."""
    chunks = own()
    chunks[1].metadata.update({"page": 7})
    chunks[2].token_count = 77
    added = await add(tenant, user, chunks=chunks, source_url="file:things")
    assert added.document.status == DocumentStatus.DOCUMENT_STATUS_READY
    assert (added.document.chunk_count, added.document.embedding_model) == (3, _MODEL)
    hits = await search(tenant, user, [0.1, 3, 0.2])
    assert found(hits) == [_WORDS[1], _WORDS[2], _WORDS[0]]
    assert [hit.chunk.chunk_id for hit in hits] == [added.chunk_ids[n] for n in (1, 2, 0)]
    assert hits[0].vector_score == pytest.approx(3 / np.linalg.norm([0.1, 3, 0.2]))
    assert json_format.MessageToDict(hits[0].chunk.metadata) == {
        "page": 7,
        "source": "file:things",
        "chunk_index": 1,
        "document_title": "Things",
    }
    await tenant.ingest(user, "Birds", "Owls are birds.")
    both = {
        hit.chunk.content: (hit.vector_score, hit.word_score > 0)
        for hit in await search(tenant, user, [0, 1, 0], query="owls")
    }
    # The vector of the first is of the hub's own model.
    seen = [both[words] for words in ("Owls are birds.", *_WORDS[:2])]
    assert seen == [(0, True), (0, True), (1, False)]
    semantic = SearchMode.SEARCH_MODE_SEMANTIC
    assert found(await search(tenant, user, [0, 1, 0], query="owls", mode=semantic))[0] == _WORDS[1]
    by_words = await search(tenant, user, query="swans")
    assert (by_words[0].chunk.content, by_words[0].vector_score) == (_WORDS[1], 0)
    counts = [one.token_count for one in await listed(tenant, added.document)]
    assert (counts[0] > 0, counts[2]) == (True, 77)


async def test_chunks_are_added_in_order_and_once(tenant: Tenant, user: User) -> None:
    """Behind those that are there; a retry adds none; of what is refused nothing is added."""
    first = await add(tenant, user, request_id="first")
    about = {"document_id": first.document.document_id}
    second = await add(tenant, user, **about, request_id="second")
    assert await add(tenant, user, **about, request_id="second") == second
    assert (second.document.chunk_count, len(second.chunk_ids)) == (6, 3)
    bad = own([[1, 0, 0], [1, 0, 0], [np.nan, 0, 0]])
    await told(add(tenant, user, **about, chunks=bad))
    chunks = await listed(tenant, first.document)
    assert [one.chunk_id for one in chunks] == [*first.chunk_ids, *second.chunk_ids]
    assert [one.chunk_index for one in chunks] == list(range(6))
    assert all(one.token_count > 0 for one in chunks)


async def test_vectors_without_direction_or_of_other_lengths_are_refused(
    tenant: Tenant, user: User
) -> None:
    """Each is named by its index; the dimension that is expected is told."""
    odd = own([[1, 0, 0], [0, 0, -0.0], [0, np.inf, 0]])
    assert await told(add(tenant, user, chunks=odd)) == (
        ("chunks[1].embedding", "must not be zero"),
        ("chunks[2].embedding", "must not hold NaN or infinity"),
    )
    uneven = [*own()[:2], OwnChunk(content="x", embedding=packed([1, 2]))]
    assert await told(add(tenant, user, chunks=uneven)) == (
        ("chunks[2].embedding", "must have 3 dimensions, as the first, not 2"),
    )
    cut = [OwnChunk(content="x", embedding=b"12345")]
    assert await told(add(tenant, user, chunks=cut)) == (
        ("chunks[0].embedding", "must be float32 numbers of 4 bytes, not 5 bytes"),
    )
    taken = own()
    taken[0].metadata.update({"source": "mine"})
    ((field, _),) = await told(add(tenant, user, chunks=taken))
    assert field == "chunks[0].metadata"
    await add(tenant, user)
    other = [OwnChunk(content="x", embedding=packed([1, 2]))]
    assert await told(add(tenant, user, chunks=other)) == (
        ("chunks[0].embedding", "must have the 3 dimensions of elsewhere-3, not 2"),
    )
    assert await told(add(tenant, user, chunks=other, embedding_model="wordllama-l2-256")) == (
        ("chunks[0].embedding", "must have the 256 dimensions of wordllama-l2-256, not 2"),
    )
    assert (await add(tenant, await tenant.new_user(), chunks=other)).document.chunk_count == 1


async def test_of_two_dimensions_added_at_once_one_is_refused(tenant: Tenant, user: User) -> None:
    """However the calls meet: all vectors of a model that a user has are of one dimension."""
    for number in range(5):
        model = f"model {number}"
        calls = [
            add(tenant, user, embedding_model=model, chunks=own(np.eye(3)[:, :size] + 1))
            for size in (2, 3)
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(one, errors.InvalidFieldError) for one in answers) == 1
        assert sum(isinstance(one, AddChunksResponse) for one in answers) == 1


async def test_a_search_by_a_vector_must_fit(tenant: Tenant, user: User) -> None:
    """Its model is one that the user's chunks have, its dimension that of the model."""
    await add(tenant, user)
    axis = [1, 0, 0]
    lexical = {"mode": SearchMode.SEARCH_MODE_LEXICAL}
    bad: list[tuple[Any, dict[str, Any], str, str]] = [
        (axis, {"embedding_model": "another"}, "embedding_model", "must be a model of"),
        ([1, 0], {}, "vector", "must have the 3 dimensions of elsewhere-3, not 2"),
        (axis, {"embedding_model": ""}, "vector", "must have the 256 dimensions of wordllama"),
        ([0, 0, 0], {}, "vector", "must not be zero"),
        (None, {"query": "x", "embedding_model": _MODEL}, "embedding_model", "must not be set"),
        (None, {}, "query", "is required"),
        (axis, lexical, "query", "is required"),
        (axis, {"query": "x", **lexical}, "vector", "must not be set in mode lexical"),
    ]
    for vector, values, name, text in bad:
        ((field, what),) = await told(search(tenant, user, vector, **values))
        assert (field, what[: len(text)]) == (name, text)
    stranger = await tenant.new_user()
    assert await told(search(tenant, stranger, axis)) == (
        ("embedding_model", "must be a model of the user's chunks"),
    )


async def test_a_vector_of_the_hubs_own_model_needs_no_name(tenant: Tenant, user: User) -> None:
    """It is looked for among what the hub embedded; what was found is recorded with its model."""
    await tenant.ingest(user, "Birds", "Owls are birds.")
    session = await tenant.new_session(user)
    request = {"embedding_model": "", "session_id": session.session_id}
    (hit,) = await search(tenant, user, np.ones(256), **request)
    assert hit.vector_score != 0
    listing = ListRetrievalsRequest(session_id=session.session_id)
    (record,) = [one async for one in tenant.client.knowledge.list_retrievals(listing)]
    assert (record.query, record.embedding_model) == ("", "wordllama-l2-256")


async def test_a_document_of_own_chunks_is_changed_as_others_are(
    tenant: Tenant, other_tenant: Tenant, user: User
) -> None:
    """A title is found at once and the vectors stay; its text is no text of the hub's to split."""
    document = (await add(tenant, user)).document
    about: dict[str, Any] = {"document_id": document.document_id}
    knowledge = tenant.client.knowledge
    named = UpdateDocumentRequest(**about, title="Zebras", source_url="file:z", etag=document.etag)
    changed = (await knowledge.update_document(named)).document
    assert (changed.title, changed.status) == ("Zebras", DocumentStatus.DOCUMENT_STATUS_READY)
    hits = await search(tenant, user, query="zebras")
    assert len(hits) == 3
    assert {hit.chunk.document_title for hit in hits} == {"Zebras"}
    assert found(await search(tenant, user, [0, 1, 0]))[0] == _WORDS[1]
    text = UpdateDocumentRequest(**about, text="Another text.")
    assert await told(knowledge.update_document(text)) == (
        ("text", "must not be set: AddChunks brought the chunks"),
    )
    assert (await knowledge.retry_document(RetryDocumentRequest(**about))).document == changed
    await knowledge.delete_document(DeleteDocumentRequest(**about))
    assert await search(tenant, user, [0, 1, 0]) == []
    with pytest.raises(errors.NotFoundError):
        await add(tenant, user, **about)
    await knowledge.undelete_document(UndeleteDocumentRequest(**about))
    assert len(await search(tenant, user, [0, 1, 0])) == 3
    ingested = await tenant.ingest(user, "Birds", "Owls are birds.")
    assert await told(add(tenant, user, document_id=ingested.document_id)) == (
        ("document_id", "must be of a document that AddChunks made"),
    )
    ((field, _),) = await told(add(tenant, user, **about, title="New"))
    assert field == "title"
    ((field, _),) = await told(add(tenant, user, **about, embedding_model="another"))
    assert field == "embedding_model"
    for owner in (tenant, other_tenant):
        with pytest.raises(errors.NotFoundError):
            await add(owner, await owner.new_user(), **about)
    missing = {"title": "", "request_id": uuid.uuid4().hex}
    assert await told(add(tenant, user, **missing)) == (
        ("title", "is required without a document_id"),
    )


async def test_a_document_has_so_many_chunks_at_most(tenant: Tenant, user: User) -> None:
    """A view reads a document as a whole."""
    document = (await add(tenant, user)).document
    query = "UPDATE documents SET chunk_count = 9998 WHERE document_id = %s RETURNING 1"
    await asyncio.to_thread(tenant.hub.sql, query, document.document_id)
    assert await told(add(tenant, user, document_id=document.document_id)) == (
        ("chunks", "must be at most 2 here: a document has at most 10,000"),
    )
    await asyncio.to_thread(tenant.hub.sql, query.replace("9998", "10000"), document.document_id)
    assert await told(add(tenant, user, document_id=document.document_id)) == (
        ("document_id", "must be of another document: this one is full, with 10,000 chunks"),
    )


async def test_an_answer_that_is_too_large_is_refused(tenant: Tenant, user: User) -> None:
    """It is told how large it is; what is asked for less at a time comes."""
    large = OwnChunk(content="x" * 65_536, embedding=packed([1, 1, 1]), token_count=1)
    for _ in range(3):
        await add(tenant, user, chunks=[large] * 100)
    query = SearchQuery(vector=packed([1, 1, 1]), embedding_model=_MODEL, top_k=200)
    queries, most = [query] * 6, LARGEST_ANSWER // (200 * 65_536)
    with pytest.raises(errors.AnswerTooLargeError) as caught:
        await tenant.client.knowledge.batch_search(
            BatchSearchRequest(user_id=user.user_id, queries=queries)
        )
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(caught.value.metadata["size_bytes"]) > LARGEST_ANSWER
    fewer = BatchSearchRequest(user_id=user.user_id, queries=queries[: most - 1])
    results = (await tenant.client.knowledge.batch_search(fewer)).search_results
    assert [len(one.hits) for one in results] == [200] * (most - 1)


async def test_no_query_waits_for_chunks_to_be_counted(
    tenant: Tenant, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many are, and however long it takes."""
    begun, counted = threading.Semaphore(0), threading.Event()

    def count(_: WordLlama256, texts: Sequence[str]) -> list[int]:
        begun.release()
        assert counted.wait(30)
        return [1] * len(texts)

    monkeypatch.setattr(WordLlama256, "count_tokens", count)
    adding = [asyncio.create_task(add(tenant, user)) for _ in range(3)]
    try:
        for _ in range(2):  # as many as there are threads
            await until(lambda: begun.acquire(blocking=False))
        assert await search(tenant, user, query="owls") == []
    finally:
        counted.set()
        await asyncio.gather(*adding)
    assert await search(tenant, user, query="owls") != []


async def test_the_searches_of_a_batch_see_one_state(
    tenant: Tenant, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes between two of them, and is found by others already, is found by both."""
    await add(tenant, user)
    read = SearchRepository.shown_chunks

    async def come(self: SearchRepository, *asked: Any) -> Any:
        shown = await read(self, *asked)
        monkeypatch.undo()
        await add(tenant, user)
        assert len(await search(tenant, user, [1, 1, 1])) == 6
        return shown

    monkeypatch.setattr(SearchRepository, "shown_chunks", come)
    queries = [SearchQuery(vector=packed([1, 1, 1]), embedding_model=_MODEL)] * 2
    request = BatchSearchRequest(user_id=user.user_id, queries=queries)
    results = (await tenant.client.knowledge.batch_search(request)).search_results
    assert [len(one.hits) for one in results] == [6, 6]


async def test_a_least_score_leaves_out_what_scores_less_without_it(
    tenant: Tenant, user: User
) -> None:
    """Of however many chunks: the scores of those that are left stay what they were."""
    angles = np.linspace(0, 1, 400)
    vectors = np.column_stack((np.cos(angles), np.sin(angles), np.zeros(400)))
    await add(tenant, user, chunks=own(vectors, [f"Row {n}" for n in range(400)]))
    scores = [hit.score for hit in await search(tenant, user, [1, 0, 0], top_k=200)]
    best = [hit.score for hit in await search(tenant, user, [1, 0, 0], top_k=200, min_score=0.25)]
    assert 0 < len(best) < len(scores)
    assert best == [score for score in scores if score >= 0.25]


async def test_what_is_far_is_not_sought_past_all_that_is_near(
    tenant: Tenant, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best of each of few documents, and what a filter leaves: at the second look at most."""
    monkeypatch.setattr("hub_server.knowledge.search._MOST_AMONG", 4)  # those of a filter are more
    ids = []
    for axis, count in ((0, 300), (0, 300), (1, 20)):
        vectors = _AXES[axis] + np.linspace(0, 0.1, count)[:, np.newaxis] * _AXES[2]
        added = await add(tenant, user, chunks=own(vectors, ["Row"] * count))
        ids.append(added.document.document_id)
    for values, expected in (
        ({"max_per_document": 1}, ids),
        ({"max_per_document": 1, "top_k": 3}, ids),
        ({"max_per_document": 1, "document_ids": ids[:2]}, ids[:2]),
        ({"document_ids": ids[2:]}, ids[2:] * 10),
    ):
        with statements() as seen:
            hits = await search(tenant, user, [1, 0, 0], **values)
        assert [hit.chunk.document_id for hit in hits] == expected
        assert hits[0].score == 1 or values == {"document_ids": ids[2:]}
        assert sum("AS asked (chunk_id)" in one for one in seen) <= 2
