"""What a search of knowledge can be asked for beside a query, and what it tells of its hits."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_client import errors
from hub_client.v1 import (
    AddChunksRequest,
    AppendMessageRequest,
    BatchSearchRequest,
    Document,
    ForkSessionRequest,
    ListRetrievalsRequest,
    MetadataEquals,
    MetadataFilter,
    MetadataValue,
    OwnChunk,
    Retrieval,
    Role,
    SearchHit,
    SearchMode,
    SearchQuery,
    SearchRequest,
    UpdateUserConfigRequest,
    User,
    UserConfig,
)
from hub_server.knowledge.search import joined
from tests.integration.test_database import passing, statements
from tests.support import Tenant, in_memory_only, running_hub

_FILTER = MetadataFilter(equals=MetadataEquals(path=["kind"], value=MetadataValue(text="far")))
_SUBJECTS = ("owls", "bridges", "violins", "granite", "tides", "looms", "kites", "foxes", "salt")


@pytest.fixture
async def user(tenant: Tenant) -> User:
    """A new user of the tenant."""
    return await tenant.new_user()


@pytest.fixture
async def book(tenant: Tenant, user: User) -> Document:
    """A document of nine chunks or more, each about something else."""
    paragraphs = (f"Here it is about {one}. " + f"Many know of {one}. " * 36 for one in _SUBJECTS)
    document = await tenant.ingest(user, "A book", "\n\n".join(paragraphs))
    assert document.chunk_count >= len(_SUBJECTS)
    return document


async def search(tenant: Tenant, user: User, query: str, **values: Any) -> list[SearchHit]:
    """Search a user's documents."""
    request = SearchRequest(user_id=user.user_id, query=query, **values)
    return list((await tenant.client.knowledge.search(request)).hits)


async def retrievals(tenant: Tenant, session_id: str, **values: Any) -> list[Retrieval]:
    """Return what was returned to a session."""
    request = ListRetrievalsRequest(session_id=session_id, **values)
    return [one async for one in tenant.client.knowledge.list_retrievals(request)]


async def message_of(tenant: Tenant, session_id: str) -> str:
    """Append a message; return its id."""
    request = AppendMessageRequest(session_id=session_id, role=Role.ROLE_USER, content="?")
    return (await tenant.client.chat.append_message(request)).message.message_id


@given(
    places=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), min_size=1),
    reach=st.integers(0, 5),
)
def test_spans_hold_what_is_near_and_stay_apart(places: list[tuple[str, int]], reach: int) -> None:
    """They are just the places within reach; no two of a text touch."""
    spans = joined(places, reach)
    held = [(text, place) for text, first, last in spans for place in range(first, last + 1)]
    near = {(text, at) for text, place in places for at in range(place - reach, place + reach + 1)}
    assert sorted(held) == sorted(one for one in near if one[1] >= 0)
    ends = {(text, last + 1) for text, _, last in spans}
    assert not ends & {(text, first) for text, first, _ in spans}


async def test_a_hit_comes_with_its_neighbours(tenant: Tenant, user: User, book: Document) -> None:
    """So many on either side, as far as the document goes; none unless asked for."""
    (plain, *_) = await search(tenant, user, "violins", top_k=1)
    assert (list(plain.span), list(plain.chunk_ids)) == ([], [])
    for reach in (1, 5):
        (hit,) = await search(tenant, user, "violins", top_k=1, neighbours=reach)
        assert (hit.chunk, list(hit.chunk_ids)) == (plain.chunk, [plain.chunk.chunk_id])
        middle = plain.chunk.chunk_index
        last = min(middle + reach, book.chunk_count - 1)
        indexes = list(range(max(middle - reach, 0), last + 1))
        assert [one.chunk_index for one in hit.span] == indexes
        assert hit.chunk in hit.span


async def test_hits_that_are_neighbours_are_one(tenant: Tenant, user: User, book: Document) -> None:
    """It stands where the best of them stood, and names all; another document has its own."""
    await tenant.ingest(user, "A leaflet", "Some words about owls.")
    apart = await search(tenant, user, "owls", top_k=50)
    (one, other) = await search(tenant, user, "owls", top_k=50, neighbours=2)
    assert {len(one.chunk_ids), len(other.chunk_ids)} == {1, book.chunk_count}
    assert one.chunk == apart[0].chunk
    whole = max(one, other, key=lambda hit: len(hit.span))
    ids = [hit.chunk.chunk_id for hit in apart if hit.chunk.document_id == book.document_id]
    assert list(whole.chunk_ids) == ids
    assert [chunk.chunk_index for chunk in whole.span] == list(range(book.chunk_count))


async def test_a_document_that_goes_before_its_spans_are_read_is_no_hit(
    tenant: Tenant, user: User, book: Document
) -> None:
    """The last read decides, for what is around a hit and for the hit itself."""

    def delete(sent: str) -> str:
        if "AS given (document_id, first, last, place)" in sent:
            gone = "UPDATE documents SET deleted_at = now() WHERE document_id = %s"
            tenant.hub.sql(gone, book.document_id)
        return sent

    with passing(delete):
        assert await search(tenant, user, "owls", neighbours=1) == []


async def test_the_words_that_match_are_marked(tenant: Tenant, user: User) -> None:
    """By their stems and folded, counted in code points; none in mode semantic."""
    await tenant.ingest(user, "Owls", "\U0001f989 OWLS hunt; the hunters' ﬁeld lies in Zürich.")

    async def marked(query: str, mode: Any = SearchMode.SEARCH_MODE_HYBRID) -> list[str]:
        (hit,) = await search(tenant, user, query, mode=mode)
        ranges = [(one.start, one.end) for one in hit.highlights]
        assert ranges == sorted(ranges)
        return [hit.chunk.content[start:end] for start, end in ranges]

    assert await marked("Which owl was hunting in fields?") == ["OWLS", "hunt", "ﬁeld", "in"]
    assert await marked("zürich", SearchMode.SEARCH_MODE_LEXICAL) == ["Zürich"]
    assert await marked("owl", SearchMode.SEARCH_MODE_SEMANTIC) == []
    config = UserConfig(user_id=user.user_id, preferred_language="xx")
    await tenant.client.identity.update_user_config(UpdateUserConfigRequest(config=config))
    assert await marked("owl hunt") == ["hunt"]


async def test_the_words_of_long_chunks_are_marked_at_their_beginning(
    tenant: Tenant, user: User
) -> None:
    """A hundred of them, and none of what is cut off: a chunk may have thousands."""
    before = "owls " * 120 + "x" * (8_192 - 120 * 5 - 4)
    for text in (before + " mice in barns", "." * 8_189 + "owls sleep"):
        chunk = OwnChunk(content=text, embedding=np.ones(3, dtype="<f4").tobytes())
        request = AddChunksRequest(
            user_id=user.user_id, title="Long", embedding_model="m", chunks=[chunk]
        )
        await tenant.client.knowledge.add_chunks(request)
    long, cut = await search(tenant, user, "owls", mode=SearchMode.SEARCH_MODE_LEXICAL)
    assert [(one.start, one.end) for one in long.highlights] == [
        (5 * place, 5 * place + 4) for place in range(100)
    ]
    assert list(cut.highlights) == []


async def test_the_parts_of_a_score_are_its_sum(tenant: Tenant, user: User, book: Document) -> None:
    """Both scaled as they went into it; what was not asked for adds and takes nothing."""
    for mode in (0, SearchMode.SEARCH_MODE_SEMANTIC, SearchMode.SEARCH_MODE_LEXICAL):
        hits = await search(tenant, user, "violins and tides", top_k=50, mode=mode)
        assert hits
        for hit in hits:
            assert hit.score == pytest.approx(hit.vector_part + hit.word_part)
            assert (hit.word_part > 0) == (hit.word_score > 0)
        highest = [max(hit.vector_part for hit in hits), max(hit.word_part for hit in hits)]
        asked = (mode != SearchMode.SEARCH_MODE_LEXICAL, mode != SearchMode.SEARCH_MODE_SEMANTIC)
        assert highest == [one / sum(asked) for one in asked]


async def test_a_batch_finds_what_its_searches_find(
    tenant: Tenant, user: User, book: Document
) -> None:
    """Each by itself, in their order, whatever they ask for."""
    asked: list[dict[str, Any]] = [
        {"query": "owls", "top_k": 3},
        {"query": "nothing at all", "mode": SearchMode.SEARCH_MODE_LEXICAL},
        {"query": "tides", "neighbours": 1, "top_k": 2},
        {"query": "salt", "document_ids": [user.user_id]},
        {"query": "kites", "mode": SearchMode.SEARCH_MODE_SEMANTIC, "min_score": 0.5},
    ]
    batch = BatchSearchRequest(user_id=user.user_id, queries=[SearchQuery(**one) for one in asked])
    results = (await tenant.client.knowledge.batch_search(batch)).search_results
    assert [list(one.hits) for one in results] == [
        await search(tenant, user, **one) for one in asked
    ]
    assert [bool(one.hits) for one in results] == [True, False, True, False, True]


async def test_a_bad_query_of_a_batch_is_named(tenant: Tenant, user: User) -> None:
    """By its place among the queries; all together may not ask for too much."""
    good = SearchQuery(query="owls")
    for bad, field in (
        (SearchQuery(query="owls", top_k=201), "queries[1].top_k"),
        (SearchQuery(), "queries[1].query"),
        (SearchQuery(query="owls", filter=MetadataFilter()), "queries[1].filter"),
        (SearchQuery(query="owls", embedding_model="m"), "queries[1].embedding_model"),
        (
            SearchQuery(query="owls", vector=b"\0\0\x80?" * 3, embedding_model="m"),
            "queries[1].embedding_model",
        ),
        (SearchQuery(query="owls", top_k=200, neighbours=5), "queries"),
    ):
        request = BatchSearchRequest(user_id=user.user_id, queries=[good, bad])
        with pytest.raises(errors.InvalidFieldError) as caught:
            await tenant.client.knowledge.batch_search(request)
        assert [name for name, _ in caught.value.violations] == [field]


async def test_a_batch_is_recorded_as_a_whole(tenant: Tenant, user: User, book: Document) -> None:
    """Every search with its hits, or none when one cannot be."""
    session = await tenant.new_session(user)
    request = BatchSearchRequest(
        user_id=user.user_id,
        session_id=session.session_id,
        queries=[SearchQuery(query=one, top_k=2) for one in ("owls", "tides", "salt")],
    )
    await tenant.client.knowledge.batch_search(request)
    found = await retrievals(tenant, session.session_id)
    assert [(one.query, one.rank) for one in found] == [
        (query, rank) for query in ("salt", "tides", "owls") for rank in (1, 2)
    ]
    assert len({one.retrieval_id for one in found}) == 3
    tenant.hub.sql(
        "ALTER TABLE retrievals ADD CONSTRAINT no_tides CHECK (query <> 'tides') NOT VALID"
    )
    try:
        with pytest.raises(errors.HubError):
            await tenant.client.knowledge.batch_search(request)
    finally:
        tenant.hub.sql("ALTER TABLE retrievals DROP CONSTRAINT no_tides")
    assert await retrievals(tenant, session.session_id) == found


async def test_a_search_names_the_message_it_served(
    tenant: Tenant, user: User, book: Document
) -> None:
    """A message of the session, or one that it shares as a fork; listed with it alone if asked."""
    session, other = await tenant.new_session(user), await tenant.new_session(user)
    first, second = [await message_of(tenant, session.session_id) for _ in range(2)]
    foreign = await message_of(tenant, other.session_id)
    fork = ForkSessionRequest(session_id=session.session_id, at_seq=1)
    forked = (await tenant.client.chat.fork_session(fork)).session.session_id
    for message_id in (first, second, ""):
        own = {"session_id": session.session_id, "message_id": message_id}
        await search(tenant, user, "owls", top_k=1, **own)
    found = await retrievals(tenant, session.session_id)
    assert [one.message_id for one in found] == ["", second, first]
    of_first = await retrievals(tenant, session.session_id, message_id=first)
    assert [one.retrieval_id for one in of_first] == [found[2].retrieval_id]
    assert await retrievals(tenant, other.session_id, message_id=first) == []
    await search(tenant, user, "owls", session_id=forked, message_id=first)
    for session_id, message_id in (
        (session.session_id, foreign),
        (session.session_id, user.user_id),
        (forked, second),
    ):
        with pytest.raises(errors.NotFoundError) as caught:
            await search(tenant, user, "owls", session_id=session_id, message_id=message_id)
        assert caught.value.metadata["resource"] == "message"
    with pytest.raises(errors.InvalidFieldError):
        await search(tenant, user, "owls", message_id=first)


@in_memory_only
@pytest.mark.parametrize(
    ("values", "cost"),
    [
        ({}, 2),  # the state; the chunks
        ({"filter": _FILTER}, 3),  # those that meet it
        ({"document_ids": True}, 3),  # those of the document
        ({"neighbours": 1}, 3),  # what is around the hits
        ({"session_id": True}, 4),  # whose it is; what was returned to it
    ],
    ids=str,
)
async def test_a_search_costs_so_many_statements(
    tenant: Tenant, user: User, book: Document, values: dict[str, Any], cost: int
) -> None:
    """Exactly those; each search of a batch costs but its own."""
    session = await tenant.new_session(user)
    known = {"session_id": session.session_id, "document_ids": [book.document_id]}
    values = {name: known.get(name, value) for name, value in values.items()}
    await search(tenant, user, "owls")
    with statements() as seen:
        await search(tenant, user, "owls", **values)
    assert len(seen) == cost, seen
    shared = {"session_id": values.pop("session_id", "")}
    queries = [SearchQuery(query="owls", **values)] * 3
    request = BatchSearchRequest(user_id=user.user_id, queries=queries, **shared)
    with statements() as seen:
        await tenant.client.knowledge.batch_search(request)
    once = 3 if shared["session_id"] else 1
    assert len(seen) == once + 3 * (cost - once), seen


async def test_a_narrow_filter_is_exact_where_a_graph_is_searched(
    tenant: Tenant, user: User, owner_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What it leaves is all found, however far from the query it is."""
    for number in range(4):
        await tenant.ingest(user, "Owls", f"Owls hunt at night, {number}. " * 300)
    far = await tenant.ingest(user, "Cars", "Cars drive on roads.", metadata={"kind": "far"})
    folder = tmp_path_factory.mktemp("graph")
    async with running_hub(owner_url, folder, exact_max_mb=0) as graph:
        there = Tenant(tenant.tenant_id, tenant.key, graph, graph.client(tenant.key))
        with statements() as seen:
            hits = await search(there, user, "owls", top_k=1, filter=_FILTER)
        assert [hit.chunk.document_id for hit in hits] == [far.document_id]
        assert sum("AS asked (chunk_id)" in one for one in seen) == 1, "it was sought twice"
