"""What is remembered is recalled at once, and what is over is never recalled."""

import asyncio
import datetime as dt
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from hub_client import AsyncHubClient
from hub_client.errors import InvalidFieldError, NotFoundError
from hub_client.v1 import (
    GetMemoryReportRequest,
    GetMemoryRequest,
    ListMemoriesRequest,
    Memory,
    MemoryFindingKind,
    MemoryHit,
    MemorySource,
    MemoryType,
    RecallRequest,
    RememberRequest,
    User,
)
from hub_server.memory.repository import MemoryRepository
from tests.integration.test_database import own_hub, statements
from tests.support import Hub, Tenant, in_memory_only, running_hub

_FACT = MemoryType.MEMORY_TYPE_FACT
_DUPLICATE = MemoryFindingKind.MEMORY_FINDING_KIND_DUPLICATE


@pytest.fixture(scope="module")
async def second_hub(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hub]:
    """Another hub over the database of the first: it learns of memories from Postgres only."""
    async with running_hub(hub.owner_url, tmp_path_factory.mktemp("second")) as second:
        yield second


@pytest.fixture
async def user(tenant: Tenant) -> User:
    """A new user of the tenant."""
    return await tenant.new_user()


async def test_a_memory_is_found_by_every_recall_after_its_answer(
    tenant: Tenant, second_hub: Hub, user: User
) -> None:
    """100 times, ten at once: a Recall sent when Remember has answered finds it, in both hubs."""
    clients = [tenant.client, second_hub.client(tenant.key)]

    async def remember_and_recall(writer: int) -> None:
        for place in range(10):
            text = f"word{writer}x{place} is what number {place} of {writer} is about"
            memory = await _remember(clients[place % 2], user, text)
            for client in clients:
                hits = await _recall(client, user, f"word{writer}x{place}", top_k=1)
                assert [hit.memory for hit in hits] == [memory]

    await asyncio.gather(*(remember_and_recall(writer) for writer in range(10)))


async def test_an_expired_memory_is_never_recalled(tenant: Tenant, user: User) -> None:
    """A recall that begins after `expires_at` does not return it; before, it does."""
    expires_at = _database_time(tenant.hub) + dt.timedelta(seconds=1.5)
    soon = await _remember(tenant.client, user, "tea, for now", expires_at=_stamp(expires_at))
    kept = await _remember(tenant.client, user, "tea, for good")
    seen = 0
    async with asyncio.timeout(20):
        while True:
            began = _database_time(tenant.hub)
            found = {hit.memory.memory_id for hit in await _recall(tenant.client, user, "tea")}
            if found == {kept.memory_id}:
                break
            assert found == {kept.memory_id, soon.memory_id}
            assert began < expires_at
            seen += 1
    assert seen > 0
    assert _database_time(tenant.hub) >= expires_at
    assert [one.memory_id for one in await _listed(tenant.client, user)] == [kept.memory_id]


@pytest.mark.parametrize(
    "change", ["status = 'forgotten'", "deleted_at = now()", "expires_at = now()"]
)
async def test_a_memory_that_only_the_view_still_holds_is_not_recalled(
    tenant: Tenant, user: User, change: str
) -> None:
    """What Postgres says decides, though no change was announced to the view that proposes it."""
    gone = await _remember(tenant.client, user, "tea in the morning")
    kept = await _remember(tenant.client, user, "tea in the evening")
    assert len(await _recall(tenant.client, user, "tea")) == 2
    statement = "UPDATE memory_store SET " + change + " WHERE memory_id = %s"  # noqa: S608 - ours
    tenant.hub.sql(statement, gone.memory_id)
    for top_k in (1, 10):
        hits = await _recall(tenant.client, user, "tea in the morning", top_k=top_k)
        assert [hit.memory.memory_id for hit in hits] == [kept.memory_id]
    assert [one.memory_id for one in await _listed(tenant.client, user)] == [kept.memory_id]


async def test_a_memory_superseded_within_a_recall_leaves_its_successor(
    tenant: Tenant, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old or the new is recalled, never neither, though the new one was not proposed."""
    drink = {"memory_key": "drink.favourite"}
    await _remember(tenant.client, user, "Likes green tea best.", **drink)
    read, later = MemoryRepository.living, ["Likes coffee best.", "Likes juice best."]

    async def superseded(*arguments: Any) -> Any:
        if later:
            await _remember(tenant.client, user, later.pop(), **drink)
        return await read(*arguments)

    monkeypatch.setattr(MemoryRepository, "living", superseded)
    (hit,) = await _recall(tenant.client, user, "drink")
    assert (hit.memory.memory_content, later) == ("Likes coffee best.", [])


async def test_memories_that_are_over_do_not_crowd_out_the_others(
    tenant: Tenant, user: User
) -> None:
    """One living memory is found behind far more expired ones than a view proposes at first."""
    for place in range(30):
        await _remember(tenant.client, user, f"green tea number {place}")
    living = await _remember(tenant.client, user, "once spoke of tea, among many other things")
    tenant.hub.sql(
        "UPDATE memory_store SET expires_at = now() WHERE user_id = %s AND memory_id <> %s",
        user.user_id,
        living.memory_id,
    )
    hits = await _recall(tenant.client, user, "green tea number", top_k=1)
    assert [hit.memory for hit in hits] == [living]


async def test_hits_are_ordered_and_their_scores_within_the_documented_ranges(
    tenant: Tenant, user: User
) -> None:
    """The score falls from hit to hit within 0..1, a cosine is within -1..1, BM25 0 or more."""
    texts = [
        "Drinks green tea every morning.",
        "Never drinks coffee.",
        "Has a dog called Rex.",
        "Works in Lisbon as an engineer.",
        "Plays chess on Sundays with a neighbour.",
    ]
    for text in texts:
        await _remember(tenant.client, user, text)
    for query in ("green tea", "What is the dog called?", "chess", "zzz", "!?", "🐕", "où"):
        hits = await _recall(tenant.client, user, query)
        scores = [hit.score for hit in hits]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)
        assert all(-1.0001 <= hit.vector_score <= 1.0001 for hit in hits)
        assert all(hit.word_score >= 0 for hit in hits)
    best = (await _recall(tenant.client, user, "What is the dog called?"))[0]
    assert best.memory.memory_content == "Has a dog called Rex."
    assert (best.relevance, best.confidence) == (1, 1)
    assert 0.999 < best.recency <= 1
    assert math.isclose(best.score, best.recency**0.2)
    assert best.word_score > 0


async def test_nothing_remembered_is_nothing_recalled(tenant: Tenant, user: User) -> None:
    """A user without memories gets no hits, and one whose memory has gone likewise."""
    assert await _recall(tenant.client, user, "anything") == []
    assert await _listed(tenant.client, user) == []
    memory = await _remember(tenant.client, user, "something")
    for table in ("memory_revisions", "memory_store"):
        tenant.hub.sql(f"DELETE FROM {table} WHERE memory_id = %s", memory.memory_id)  # noqa: S608
    assert await _recall(tenant.client, user, "something") == []


async def test_top_k_bounds_the_hits(tenant: Tenant, user: User) -> None:
    """0 is 10, 200 is the most; beyond the limits the call is refused and names the field."""
    for place in range(12):
        await _remember(tenant.client, user, f"tea number {place}")
    for top_k, count in ((0, 10), (1, 1), (11, 11), (200, 12)):
        assert len(await _recall(tenant.client, user, "tea", top_k=top_k)) == count
    for top_k in (-1, 201):
        with pytest.raises(InvalidFieldError) as caught:
            await _recall(tenant.client, user, "tea", top_k=top_k)
        assert [field for field, _ in caught.value.violations] == ["top_k"]


async def test_confidence_is_between_0_and_1(tenant: Tenant, user: User) -> None:
    """Both ends are kept exactly, what lies beyond is refused, absent is certain."""
    for place, (given, kept) in enumerate(
        ((0.0, 0.0), (1.0, 1.0), (0.1, 0.1), (5e-324, 5e-324), (None, 1.0))
    ):
        memory = await _remember(tenant.client, user, f"tea {place}", confidence_score=given)
        assert memory.confidence_score == kept
    for beyond in (-1e-9, 1 + 1e-9, math.nan, math.inf, -math.inf):
        with pytest.raises(InvalidFieldError) as caught:
            await _remember(tenant.client, user, "tea", confidence_score=beyond)
        assert {field for field, _ in caught.value.violations} == {"confidence_score"}
    assert len(await _listed(tenant.client, user)) == 5


async def test_a_memory_cannot_expire_in_the_past(tenant: Tenant, user: User) -> None:
    """`expires_at` now or earlier, or outside the years 1 to 9999, is refused; nothing is kept."""
    now = _database_time(tenant.hub)
    times = [_stamp(now), _stamp(now - dt.timedelta(days=9)), Timestamp(seconds=0)]
    times += [Timestamp(seconds=1 << 50), Timestamp(seconds=-(1 << 50)), Timestamp(nanos=-5)]
    for time in times:
        with pytest.raises(InvalidFieldError) as caught:
            await _remember(tenant.client, user, "tea", expires_at=time)
        assert [field for field, _ in caught.value.violations] == ["expires_at"]
    assert await _listed(tenant.client, user) == []
    last = Timestamp(seconds=253402300799)
    assert (await _remember(tenant.client, user, "tea", expires_at=last)).expires_at == last


async def test_a_memory_comes_back_as_it_was_stored(tenant: Tenant, user: User) -> None:
    """Remember, get, list and recall answer the same memory; lists are newest first, in pages."""
    expires_at = _stamp(dt.datetime(2099, 12, 31, 23, 59, 59, 123456, tzinfo=dt.UTC))
    memories = [
        await _remember(tenant.client, user, "tea 👩‍👩‍👧 \u202e e\u0301"),
        await _remember(
            tenant.client,
            user,
            "t" * 4000,
            memory_type=MemoryType.MEMORY_TYPE_HABIT,
            source=MemorySource.MEMORY_SOURCE_INFERRED,
            confidence_score=0.25,
            expires_at=expires_at,
        ),
        await _remember(tenant.client, user, "!"),
    ]
    assert memories[0].source == MemorySource.MEMORY_SOURCE_USER
    assert memories[1].expires_at == expires_at
    memories = [_stored(memory) for memory in memories]
    for memory in memories:
        request = GetMemoryRequest(memory_id=memory.memory_id)
        assert _stored((await tenant.client.memory.get_memory(request)).memory) == memory
    for page_size in (1, 2, 50):
        listed = await _listed(tenant.client, user, page_size=page_size)
        assert [_stored(memory) for memory in listed] == memories[::-1]
    recalled = [hit.memory for hit in await _recall(tenant.client, user, "tea" + "?" * 7997)]
    assert sorted(map(_stored, recalled), key=lambda one: one.memory_id) == memories


@in_memory_only
async def test_reads_take_as_few_statements_as_they_can(tenant: Tenant, user: User) -> None:
    """A list and a get are one statement, a recall of what the view holds is two."""
    memory = await _remember(tenant.client, user, "tea")
    await _recall(tenant.client, user, "the view follows, the connection carries the tenant")
    request = GetMemoryRequest(memory_id=memory.memory_id)
    for call, count in (
        (_listed(tenant.client, user), 1),
        (tenant.client.memory.get_memory(request), 1),
        (_recall(tenant.client, user, "tea"), 2),
    ):
        with statements() as seen:
            await call
        assert len(seen) == count, seen


async def test_memories_keep_their_model_as_long_as_the_hub_has_it(
    empty_database: str, tmp_path: Path
) -> None:
    """Without it they are found by words, with no likeness in meaning made up.

    And a text that is told again is reported, whatever embedded it.
    """
    async with own_hub(empty_database, tmp_path / "minilm", embedding="minilm") as minilm:
        tenant = await minilm.new_tenant()
        user = await tenant.new_user()
        old = await _remember(tenant.client, user, "Likes strong green tea.")
        for name in ("has", "lacks"):
            (tmp_path / name).mkdir()
        async with (
            running_hub(
                empty_database, tmp_path / "has", embedding_models="minilm", near_duplicate=0.8
            ) as has,
            running_hub(empty_database, tmp_path / "lacks", embedding_models="wordllama") as lacks,
        ):
            client = has.client(tenant.key)
            (hit,) = await _recall(client, user, "favourite hot drink")
            assert hit.vector_score > 0
            again = await _remember(client, user, "Likes the strong green tea.")
            assert (again.memory_id, again.reinforcement_count) == (old.memory_id, 1)
            client = lacks.client(tenant.key)
            new = await _remember(client, user, "Owns a black bicycle.")
            hits = await _recall(client, user, "green tea")
            assert {hit.memory.memory_id for hit in hits} == {old.memory_id, new.memory_id}
            (first,) = [hit for hit in hits if hit.memory == again]
            assert (first.vector_score, first.word_score > 0) == (0, True)
            back = await _recall(tenant.client, user, "bicycle")
            found = [hit for hit in back if hit.memory == new]
            assert [(hit.vector_score, hit.word_score > 0) for hit in found] == [(0, True)]
            same = await _remember(client, user, "likes strong green TEA", memory_key="drink")
            request = GetMemoryReportRequest(user_id=user.user_id)
            report = (await client.memory.get_memory_report(request)).memory_report
            duplicates = [one for one in report.findings if one.kind == _DUPLICATE]
            assert [([*one.memories], one.similarity) for one in duplicates] == [([same, again], 1)]


async def test_a_vector_of_another_model_is_not_compared_though_it_would_fit(
    tenant: Tenant, user: User
) -> None:
    """Not the length of a vector but the model that made it decides whether it is used."""
    other = await _remember(tenant.client, user, "Likes strong green tea.")
    change = "UPDATE memory_store SET embedding_model = 'other-256' WHERE memory_id = %s"
    tenant.hub.sql(change, other.memory_id)
    own = await _remember(tenant.client, user, "Likes strong black tea.")
    hits = await _recall(tenant.client, user, "green tea")
    by_id = {hit.memory.memory_id: hit for hit in hits}
    assert by_id[other.memory_id].vector_score == 0
    assert by_id[other.memory_id].word_score > 0
    assert by_id[own.memory_id].vector_score > 0


async def test_remembering_for_nobody_is_not_found(tenant: Tenant, user: User) -> None:
    """An unknown user is NOT_FOUND for every method, an unknown memory too; no user is refused."""
    nobody = User(user_id=user.user_id[:-12] + "0" * 12)
    for call in (
        _remember(tenant.client, nobody, "tea"),
        _recall(tenant.client, nobody, "tea"),
        _listed(tenant.client, nobody),
        tenant.client.memory.get_memory(GetMemoryRequest(memory_id=user.user_id)),
    ):
        with pytest.raises(NotFoundError):
            await call
    with pytest.raises(InvalidFieldError):
        await _recall(tenant.client, User(), "tea")


def _stored(memory: Memory) -> Memory:
    """Return a memory without what changes with the time it is read at."""
    memory.ClearField("current_confidence")
    return memory


def _database_time(hub: Hub) -> dt.datetime:
    time: dt.datetime = hub.sql("SELECT clock_timestamp()")[0][0]
    return time


def _stamp(time: dt.datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


async def _remember(client: AsyncHubClient, user: User, text: str, **values: Any) -> Memory:
    values = {"memory_type": _FACT, **values}
    request = RememberRequest(user_id=user.user_id, memory_content=text, **values)
    return (await client.memory.remember(request)).memory


async def _recall(
    client: AsyncHubClient, user: User, query: str, top_k: int = 0
) -> list[MemoryHit]:
    request = RecallRequest(user_id=user.user_id, query=query, top_k=top_k)
    return list((await client.memory.recall(request)).hits)


async def _listed(client: AsyncHubClient, user: User, **values: Any) -> list[Memory]:
    request = ListMemoriesRequest(user_id=user.user_id, **values)
    return [memory async for memory in client.memory.list_memories(request)]
