"""What a search answers is what brute force over the rows in Postgres answers."""

import asyncio
import math
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from hub_client import AsyncHubClient
from hub_client.v1 import (
    DeleteDocumentRequest,
    IngestDocumentRequest,
    MemoryType,
    RecallRequest,
    RememberRequest,
    SearchHit,
    SearchRequest,
    UpdateUserConfigRequest,
    User,
    UserConfig,
)
from hub_server.embedding import load_embedder
from hub_server.retrieval.text import Analyzer
from tests.integration.test_database import statements
from tests.support import Hub, Tenant, running_hub, settled

_DEPTH = 200  # how many rows each of the two lists brings
_TOP_K = 100
_SYLLABLES = ("ba", "den", "ri", "mo", "tul", "sa", "ke", "wo", "lin", "gar", "pe", "zu")
_QUERIES = (
    "badenri motul",
    "What does saketul say of lingar and of pezu?",
    "wo",
    "badenri badenri badenri wolin garpe",
    "nothing of this is in any text",
    "...",
)


_COPY_DOCUMENTS = """
    INSERT INTO documents (tenant_id, document_id, user_id, title, text, status, content_hash,
                           chunk_count, space_seq, revision)
    SELECT tenant_id, md5(%s || document_id)::uuid, %s, title, text, status, content_hash,
           chunk_count, space_seq, revision
    FROM documents WHERE user_id = %s
"""
_COPY_CHUNKS = """
    INSERT INTO chunks (tenant_id, chunk_id, document_id, user_id, chunk_index, content,
                        token_count, embedding, embedding_model, metadata)
    SELECT tenant_id, md5(%s || chunk_id)::uuid, md5(%s || document_id)::uuid, %s, chunk_index,
           content, token_count, embedding, embedding_model, metadata
    FROM chunks WHERE user_id = %s
"""
_COPY_SPACE = """
    INSERT INTO spaces (tenant_id, user_id, kind, last_seq)
    SELECT tenant_id, %s, kind, last_seq FROM spaces WHERE user_id = %s
"""


@dataclass(frozen=True)
class Expected:
    """A chunk as a search should answer it."""

    content: str
    score: float
    vector_score: float
    word_score: float


@dataclass
class Library:
    """A user with a few hundred chunks, and all of them as a superuser reads them."""

    tenant: Tenant
    user: User
    contents: list[str]
    words: list[Counter[str]]
    vectors: NDArray[np.float32]


@pytest.fixture(scope="module")
async def library(hub: Hub) -> Library:
    """Thirty documents of made-up words, ingested through the hub."""
    tenant = await hub.new_tenant()
    user = await tenant.new_user()
    chance = random.Random(5)  # noqa: S311 - repeatable, not secret
    vocabulary = ["".join(chance.choices(_SYLLABLES, k=chance.choice((2, 3)))) for _ in range(400)]
    taken = [
        await tenant.client.knowledge.ingest_document(
            IngestDocumentRequest(
                user_id=user.user_id,
                title=" ".join(chance.choices(vocabulary, k=3)),
                text="\n\n".join(
                    " ".join(chance.choices(vocabulary, k=chance.randrange(40, 90))) + "."
                    for _ in range(12)
                ),
            )
        )
        for _ in range(30)
    ]
    for one in taken:
        assert (await settled(tenant.client, one.document.document_id)).chunk_count > 1
    return _library(tenant, user)


@pytest.fixture(scope="module")
async def approximate(
    owner_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Hub]:
    """A hub that searches vectors with hnswlib from the first row on."""
    folder = tmp_path_factory.mktemp("approximate")
    async with running_hub(owner_url, folder, exact_max_mb=0) as hub:
        yield hub


@pytest.mark.parametrize("query", _QUERIES)
async def test_a_search_answers_what_brute_force_does(library: Library, query: str) -> None:
    """Every hit, its place and its three scores are those of the formulas over all rows."""
    hits = await _search(library.tenant.client, library.user, query)
    expected = _brute_force(library, query)[:_TOP_K]
    assert len(library.contents) > _DEPTH
    assert [hit.chunk.content for hit in hits] == [one.content for one in expected]
    for hit, one in zip(hits, expected, strict=True):
        scores = (hit.score, hit.vector_score, hit.word_score)
        assert scores == pytest.approx((one.score, one.vector_score, one.word_score), abs=1e-5)


@pytest.mark.parametrize("query", _QUERIES)
async def test_an_approximate_index_answers_almost_what_brute_force_does(
    approximate: Hub, library: Library, query: str
) -> None:
    """With hnswlib at least 95 of 100 hits are the true ones, and no score is made up."""
    hits = await _search(approximate.client(library.tenant.key), library.user, query)
    best = {one.content for one in _brute_force(library, query)[:_TOP_K]}
    assert len({hit.chunk.content for hit in hits} & best) >= 0.95 * _TOP_K
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    cosines, words = _scores(library, query)
    for hit in hits:
        row = library.contents.index(hit.chunk.content)
        assert hit.vector_score in (0, pytest.approx(cosines[row], abs=1e-5))
        assert hit.word_score in (0, pytest.approx(words.get(row, 0), abs=1e-5))


async def test_views_that_are_evicted_come_back_whole(
    owner_url: str, tmp_path_factory: pytest.TempPathFactory, library: Library
) -> None:
    """Under a budget that holds one view of three, every search answers as with plenty."""
    tenant = library.tenant
    users = [library.user, *[await _copy(library) for _ in range(2)]]
    # The last bits of a cosine depend on where its row lies in memory.
    plenty = pytest.approx(await _contents(tenant.client, library.user), abs=1e-5)
    folder = tmp_path_factory.mktemp("tiny")
    async with running_hub(owner_url, folder, view_memory_mb=1) as tiny:
        client = tiny.client(tenant.key)
        for _ in range(2):
            for user in users:
                with statements() as seen:
                    assert await _contents(client, user) == plenty
                assert any("documents.space_seq >" in one for one in seen), "was not evicted"
        together = await asyncio.gather(*(_contents(client, user) for user in users * 4))
        assert all(one == plenty for one in together)


async def test_a_view_that_grows_and_shrinks_over_the_threshold_loses_nothing(
    owner_url: str, tmp_path_factory: pytest.TempPathFactory, hub: Hub
) -> None:
    """Rows come and go around the size at which the kind of index changes: all are found."""
    tenant = await hub.new_tenant()
    user = await tenant.new_user()
    folder = tmp_path_factory.mktemp("border")
    # 8 vectors of 256 dimensions are exact, the ninth makes the view hnswlib; below 4 it returns.
    async with running_hub(owner_url, folder, exact_max_mb=8 * 1024 / (1 << 20)) as border:
        client = border.client(tenant.key)
        living: list[str] = []
        for step in (6, 6, -10, 5, 4, -9):
            for _ in range(max(step, 0)):
                document = await tenant.ingest(user, "Owls", "Owls hunt at night.")
                living.append(document.document_id)
            for _ in range(max(-step, 0)):
                request = DeleteDocumentRequest(document_id=living.pop(0))
                await client.knowledge.delete_document(request)
            hits = await _search(client, user, "owls")
            assert sorted(hit.chunk.document_id for hit in hits) == sorted(living)
            assert {(hit.score, round(hit.vector_score, 5)) for hit in hits} == {
                (1.0, round(hits[0].vector_score, 5))
            }


async def test_the_language_of_the_user_chooses_how_words_are_reduced(tenant: Tenant) -> None:
    """Inflected words meet in the user's language, from the next search on, and only in it."""
    user = await tenant.new_user()
    await tenant.ingest(user, "Stadt", "Die alten Häuser standen am Fluss.")
    await tenant.client.memory.remember(
        RememberRequest(
            user_id=user.user_id,
            memory_type=MemoryType.MEMORY_TYPE_FACT,
            memory_content="Die alten Häuser standen am Fluss.",
        )
    )
    for language, is_met in (("en", False), ("de", True), ("de-AT", True), ("fr", False)):
        config = UserConfig(user_id=user.user_id, preferred_language=language)
        await tenant.client.identity.update_user_config(UpdateUserConfigRequest(config=config))
        found = (await _search(tenant.client, user, "Haus"))[0]
        recall = RecallRequest(user_id=user.user_id, query="Haus")
        recalled = (await tenant.client.memory.recall(recall)).hits[0]
        assert [hit.word_score > 0 for hit in (found, recalled)] == [is_met] * 2


def _library(tenant: Tenant, user: User) -> Library:
    rows = tenant.hub.sql(
        "SELECT c.content, d.title, c.embedding FROM chunks c JOIN documents d USING (document_id)"
        " WHERE c.user_id = %s ORDER BY c.chunk_id",
        user.user_id,
    )
    terms = Analyzer("en").terms
    return Library(
        tenant,
        user,
        [content for content, _, _ in rows],
        [Counter(terms(f"{title}\n{content}")) for content, title, _ in rows],
        np.stack([np.frombuffer(embedding, dtype="<f4") for _, _, embedding in rows]),
    )


async def _copy(library: Library) -> User:
    """Return another user with the same documents, copied in Postgres."""
    user = await library.tenant.new_user()
    new, old = user.user_id, library.user.user_id
    library.tenant.hub.sql(_COPY_DOCUMENTS, new, new, old)
    library.tenant.hub.sql(_COPY_CHUNKS, new, new, new, old)
    library.tenant.hub.sql(_COPY_SPACE, new, old)
    return user


def _brute_force(library: Library, query: str) -> list[Expected]:
    """Return all rows that either list brings, best first."""
    cosines, words = map(_top, _scores(library, query))
    by_meaning = _scaled(cosines, None)
    by_words = _scaled(words, 0.0 if len(words) < _DEPTH else None)
    ranked = [
        Expected(
            library.contents[row],
            (by_meaning.get(row, 0.0) + by_words.get(row, 0.0)) / 2,
            cosines.get(row, 0.0),
            words.get(row, 0.0),
        )
        for row in cosines.keys() | words.keys()
    ]
    return sorted(ranked, key=lambda one: -one.score)


def _scores(library: Library, query: str) -> tuple[dict[int, float], dict[int, float]]:
    """Return the cosines of all rows, and the BM25 scores of those with a word of the query."""
    embedded = load_embedder("wordllama").embed([query])[0]
    words = _bm25(library.words, Analyzer("en").query_terms(query))
    return dict(enumerate((library.vectors @ embedded).tolist())), words


def _bm25(rows: Sequence[Counter[str]], terms: Sequence[str]) -> dict[int, float]:
    average = sum(row.total() for row in rows) / len(rows)
    scores: dict[int, float] = defaultdict(float)
    for term in terms:
        frequency = sum(term in row for row in rows)
        idf = math.log(1 + (len(rows) - frequency + 0.5) / (frequency + 0.5))
        for place, row in enumerate(rows):
            if count := row[term]:
                length = 1.5 * (1 - 0.75 + 0.75 * row.total() / average)
                scores[place] += idf * count / (count + length)
    return scores


def _top(scores: dict[int, float]) -> dict[int, float]:
    return dict(sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:_DEPTH])


def _scaled(scores: dict[int, float], floor: float | None) -> dict[int, float]:
    if not scores:
        return {}
    low = min(scores.values()) if floor is None else floor
    span = max(scores.values()) - low
    return {row: (score - low) / span if span else 1.0 for row, score in scores.items()}


async def _contents(client: AsyncHubClient, user: User) -> dict[str, float]:
    hits = await _search(client, user, _QUERIES[1])
    # Of hits as good as the last one it is chance which are within top_k: ids decide.
    least = hits[-1].score + 1e-5
    return {hit.chunk.content: hit.score for hit in hits if hit.score > least}


async def _search(client: AsyncHubClient, user: User, query: str) -> list[SearchHit]:
    request = SearchRequest(user_id=user.user_id, query=query, top_k=_TOP_K)
    return list((await client.knowledge.search(request)).hits)
