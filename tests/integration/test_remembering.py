"""The rules of Remember: superseded, reinforced, proposed; also when many say it at once."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from hub_client import AsyncHubClient
from hub_client.errors import (
    EtagMismatchError,
    InvalidFieldError,
    MemoryRateError,
    MemoryStatusError,
    NotFoundError,
)
from hub_client.v1 import (
    AcceptMemoryRequest,
    AppendMessageRequest,
    BatchRememberRequest,
    DeleteMemoryRequest,
    ForgetMemoryRequest,
    ForkSessionRequest,
    GetMemoryHistoryRequest,
    GetMemoryReportRequest,
    GetMemoryRequest,
    ListMemoriesRequest,
    Memory,
    MemoryFindingKind,
    MemoryRevision,
    MemorySource,
    MemoryStatus,
    MemoryType,
    NewMemory,
    RecallRequest,
    RecallWeights,
    RejectMemoryRequest,
    RememberOutcome,
    RememberRequest,
    RememberResponse,
    RestoreMemoryRequest,
    Role,
    UpdateMemoryRequest,
    User,
)
from hub_server.jobs import memory_expiry
from hub_server.memory.turn import Turn
from tests.integration.test_database import statements
from tests.support import Hub, Tenant, running_hub

_FACT = MemoryType.MEMORY_TYPE_FACT
_INFERRED = MemorySource.MEMORY_SOURCE_INFERRED
_WRITERS = 32
_DAY = dt.timedelta(days=1)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        """Show the present."""
        self.now = dt.datetime.now(dt.UTC)

    def __call__(self) -> dt.datetime:
        """Return the time; no two readings are the same."""
        self.now += dt.timedelta(microseconds=1)
        return self.now


@pytest.fixture
async def user(tenant: Tenant) -> User:
    """A new user of the tenant."""
    return await tenant.new_user()


@pytest.fixture(scope="module")
async def second_hub(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hub]:
    """Another hub over the database of the first."""
    async with running_hub(hub.owner_url, tmp_path_factory.mktemp("second")) as second:
        yield second


async def test_racing_writers_of_one_key_leave_one_active_memory(
    tenant: Tenant, second_hub: Hub, user: User
) -> None:
    """32 callers in two hubs: one memory is active, the others form one chain behind it."""
    clients = [tenant.client, second_hub.client(tenant.key)]
    results = await asyncio.gather(
        *(
            _remember(clients[place % 2], user, f"Likes drink {place}.", memory_key="drink")
            for place in range(_WRITERS)
        )
    )
    assert sorted(result.outcome for result in results) == [1, *[3] * (_WRITERS - 1)]
    (active,) = await _listed(tenant, user)
    everything = await _listed(tenant, user, statuses=list(MemoryStatus.values())[1:])
    assert len(everything) == _WRITERS
    by_id = {memory.memory_id: memory for memory in everything}
    ends = {memory.memory_id for memory in everything} - {
        result.superseded_id for result in results
    }
    assert ends == {active.memory_id}
    assert sorted(one.superseded_by for one in by_id.values() if one.superseded_by) == sorted(
        result.memory.memory_id for result in results if result.superseded_id
    )


async def test_racing_writers_of_one_text_leave_one_memory(
    tenant: Tenant, second_hub: Hub, user: User
) -> None:
    """32 callers in two hubs say the same, or nearly: one memory, reinforced 31 times."""
    clients = [tenant.client, second_hub.client(tenant.key)]
    texts = ["Prefers dark mode in all apps", "Prefers the dark mode in all apps!"]
    results = await asyncio.gather(
        *(
            _remember(clients[place % 2], user, texts[place // 2 % 2], confidence_score=0.5)
            for place in range(_WRITERS)
        )
    )
    assert sorted(result.outcome for result in results) == [1, *[2] * (_WRITERS - 1)]
    (memory,) = await _listed(tenant, user)
    assert memory.reinforcement_count == _WRITERS - 1
    sure = 0.5
    for _ in range(_WRITERS - 1):
        sure += (1 - sure) * 0.5 / 2
    assert memory.confidence_score == pytest.approx(sure)


async def test_without_turns_two_writers_of_one_text_would_leave_two(
    tenant: Tenant, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: where both look before either writes, neither knows of the other."""
    both, known = asyncio.Barrier(2), Turn.known

    async def begin(connection: Any, caller: Any, user_id: str, clock: Any, *_: Any) -> Turn:
        return Turn(connection, caller, user_id, clock(), ())

    async def met(turn: Turn, *asked: Any) -> Any:
        found = await known(turn, *asked)
        await both.wait()
        return found

    monkeypatch.setattr(Turn, "begin", begin)
    monkeypatch.setattr(Turn, "known", met)
    await asyncio.gather(*(_remember(tenant.client, user, "Drinks tea.") for _ in range(2)))
    assert len(await _listed(tenant, user)) == 2


async def test_a_batch_costs_a_statement_for_each_change(tenant: Tenant, user: User) -> None:
    """Whatever comes before these is done once."""
    keys = [{"memory_key": str(number)} for number in range(6)]
    await _batch(tenant, user, [{**key, "memory_content": "Owl."} for key in keys])
    counts = []
    for some in (keys[:1], keys[1:]):
        with statements() as seen:
            await _batch(tenant, user, [{**key, "memory_content": "Swan."} for key in some])
        counts.append(len(seen))
    assert counts[1] - counts[0] == 4 * len(("superseded", "created"))


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("Has the flu every year.", "Has flu every year", True),
        ("  LIVES in   Lisbon!", "lives in lisbon", True),
        ("Is allergic to nuts.", "Is not allergic to nuts.", False),
        ("Ada beats Bob at chess.", "Bob beats Ada at chess.", False),
        ("Codes in C", "Codes in C++", False),
        ("Ada really likes green tea.", "Ada likes green tea", False),
    ],
)
async def test_what_says_the_same_reinforces(
    tenant: Tenant, user: User, first: str, second: str, *, is_same: bool
) -> None:
    """Equal but for case, spaces and marks, or near with the same words; or both are kept."""
    await _remember(tenant.client, user, first)
    again = await _remember(tenant.client, user, second)
    reinforced = RememberOutcome.REMEMBER_OUTCOME_REINFORCED
    assert (again.outcome == reinforced) == is_same
    assert len(await _listed(tenant, user)) == 2 - is_same
    other_type = MemoryType.MEMORY_TYPE_HABIT
    assert (await _remember(tenant.client, user, second, memory_type=other_type)).outcome == 1


async def test_the_later_expiry_is_kept(tenant: Tenant, user: User) -> None:
    """Whichever came first; and none is later than any."""
    soon, late = (dt.datetime(year, 1, 1, tzinfo=dt.UTC) for year in (2090, 2099))
    for text, times, kept in (
        ("One.", (soon, late), late),
        ("Two.", (late, soon), late),
        ("Three.", (soon, None), None),
        ("Four.", (None, soon), None),
    ):
        for expires_at in times:
            await _remember(tenant.client, user, text, expires_at=expires_at)
        (memory,) = [one for one in await _listed(tenant, user) if one.memory_content == text]
        assert memory.reinforcement_count == 1
        ends = memory.expires_at.ToDatetime(dt.UTC) if memory.HasField("expires_at") else None
        assert ends == kept


async def test_the_user_outranks_what_is_inferred(tenant: Tenant, user: User) -> None:
    """An inference against the user's word is a proposal, which he may accept or reject."""
    said = await _remember(tenant.client, user, "Drinks tea.", memory_key="drink")
    guess = await _remember(
        tenant.client, user, "Drinks coffee.", memory_key="drink", source=_INFERRED
    )
    assert guess.outcome == RememberOutcome.REMEMBER_OUTCOME_PROPOSED
    assert [one.memory_id for one in await _listed(tenant, user)] == [said.memory.memory_id]
    again = await _remember(
        tenant.client, user, "drinks coffee", memory_key="drink", source=_INFERRED
    )
    assert (again.outcome, again.memory.memory_id) == (2, guess.memory.memory_id)
    named = AcceptMemoryRequest(memory_id=guess.memory.memory_id)
    accepted = (await tenant.client.memory.accept_memory(named)).memory
    assert accepted.source == MemorySource.MEMORY_SOURCE_USER
    assert [one.memory_id for one in await _listed(tenant, user)] == [accepted.memory_id]
    assert (await _got(tenant, said.memory)).superseded_by == accepted.memory_id
    with pytest.raises(MemoryStatusError):
        await tenant.client.memory.accept_memory(named)


async def test_what_was_rejected_stays_rejected(tenant: Tenant, user: User) -> None:
    """The same inference does not come back; the user's own word for it does."""
    await _remember(tenant.client, user, "Drinks tea.", memory_key="drink")
    wrong = {"memory_key": "drink", "source": _INFERRED}
    guess = await _remember(tenant.client, user, "Drinks coffee.", **wrong)
    await tenant.client.memory.reject_memory(RejectMemoryRequest(memory_id=guess.memory.memory_id))
    again = await _remember(tenant.client, user, "Drinks coffee.", **wrong)
    assert again.outcome == RememberOutcome.REMEMBER_OUTCOME_UNCHANGED
    assert again.memory.status == MemoryStatus.MEMORY_STATUS_REJECTED
    stated = await _remember(tenant.client, user, "Drinks coffee.", memory_key="drink")
    assert stated.outcome == RememberOutcome.REMEMBER_OUTCOME_SUPERSEDED


async def test_a_message_proves_a_thing_once(tenant: Tenant, user: User) -> None:
    """The message that said it before changes nothing; another one reinforces."""
    session = await tenant.new_session(user)
    origins = []
    for text in ("I drink tea.", "Tea, as ever."):
        request = AppendMessageRequest(
            session_id=session.session_id, role=Role.ROLE_USER, content=text
        )
        said = (await tenant.client.chat.append_message(request)).message
        origins.append({"session_id": session.session_id, "message_id": said.message_id})
    outcomes = [
        (await _remember(tenant.client, user, "Drinks tea.", **origins[place])).outcome
        for place in (0, 0, 1, 1, 0)
    ]
    assert outcomes == [1, 4, 2, 4, 4]
    (memory,) = await _listed(tenant, user)
    assert (memory.message_id, memory.reinforcement_count) == (origins[0]["message_id"], 1)
    proofs = [one.event for one in await _history(tenant, memory)]
    assert proofs == [1, 3]


async def test_origins_are_the_users_own(tenant: Tenant, user: User) -> None:
    """A foreign session or message is NOT_FOUND, in a batch too; nothing is remembered."""
    neighbour = await tenant.new_user()
    foreign = await tenant.new_session(neighbour)
    own = await tenant.new_session(user)
    request = AppendMessageRequest(
        session_id=foreign.session_id, role=Role.ROLE_USER, content="tea"
    )
    message = (await tenant.client.chat.append_message(request)).message
    for origin in (
        {"session_id": foreign.session_id},
        {"session_id": own.session_id, "message_id": message.message_id},
    ):
        with pytest.raises(NotFoundError):
            await _remember(tenant.client, user, "tea", **origin)
        with pytest.raises(NotFoundError):
            await _batch(tenant, user, [{}, origin])
    with pytest.raises(InvalidFieldError) as caught:
        await _batch(tenant, user, [{}, {"message_id": message.message_id}])
    assert [field for field, _ in caught.value.violations] == ["memories[1].message_id"]
    assert await _listed(tenant, user) == []


async def test_what_a_fork_shares_is_an_origin(tenant: Tenant, user: User) -> None:
    """A message that came before the fork is one of its session; one that came after is not."""
    session = await tenant.new_session(user)
    asked = AppendMessageRequest(
        session_id=session.session_id, role=Role.ROLE_USER, content="I like tea."
    )
    shared = (await tenant.client.chat.append_message(asked)).message.message_id
    request = ForkSessionRequest(session_id=session.session_id, at_seq=1)
    fork = (await tenant.client.chat.fork_session(request)).session.session_id
    later = (await tenant.client.chat.append_message(asked)).message.message_id
    await _remember(tenant.client, user, "tea", session_id=fork, message_id=shared)
    with pytest.raises(NotFoundError):
        await _remember(tenant.client, user, "tea", session_id=fork, message_id=later)


async def test_a_batch_is_remembered_in_its_order_or_not_at_all(tenant: Tenant, user: User) -> None:
    """Each item sees what those before it made; a bad one leaves nothing of the others."""
    batch = [
        {"memory_content": "Drinks tea.", "memory_key": "drink"},
        {"memory_content": "Drinks coffee.", "memory_key": "drink"},
        {"memory_content": "Lives in Lisbon."},
        {"memory_content": "lives in lisbon"},
    ]
    results = await _batch(tenant, user, batch, request_id="batch")
    assert [one.outcome for one in results] == [1, 3, 1, 2]
    assert results[1].superseded_id == results[0].memory.memory_id
    assert await _batch(tenant, user, batch, request_id="batch") == results
    assert len(await _listed(tenant, user)) == 2
    past = {"expires_at": dt.datetime(2020, 1, 1, tzinfo=dt.UTC)}
    with pytest.raises(InvalidFieldError) as caught:
        await _batch(tenant, user, [{"memory_content": "Reads."}, past])
    assert [field for field, _ in caught.value.violations] == ["memories[1].expires_at"]
    assert len(await _listed(tenant, user)) == 2


async def test_a_supersession_is_undone(tenant: Tenant, user: User) -> None:
    """RestoreMemory puts the old one back and the newer behind it; history tells all of it."""
    old = (await _remember(tenant.client, user, "Drinks tea.", memory_key="drink")).memory
    new = (await _remember(tenant.client, user, "Drinks coffee.", memory_key="drink")).memory
    restored = await tenant.client.memory.restore_memory(
        RestoreMemoryRequest(memory_id=old.memory_id)
    )
    assert restored.memory.status == MemoryStatus.MEMORY_STATUS_ACTIVE
    assert not restored.memory.superseded_by
    assert (await _got(tenant, new)).superseded_by == old.memory_id
    assert [one.memory_id for one in await _listed(tenant, user)] == [old.memory_id]
    for one in (old, new):
        told = [(step.memory.memory_id, step.event) for step in await _history(tenant, one)]
        assert told == [
            (old.memory_id, 1),
            (old.memory_id, 4),
            (new.memory_id, 1),
            (new.memory_id, 4),
            (old.memory_id, 5),
        ]


async def test_forgotten_memories_come_back_and_deleted_ones_do_not(
    tenant: Tenant, user: User
) -> None:
    """ForgetMemory hides, RestoreMemory shows; DeleteMemory leaves no word in any table."""
    kept = (await _remember(tenant.client, user, "Drinks tea.", request_id="kept")).memory
    memory = tenant.client.memory
    named = {"memory_id": kept.memory_id}
    await memory.forget_memory(ForgetMemoryRequest(**named))
    assert await _listed(tenant, user) == []
    assert await _recalled(tenant, user, "tea") == []
    await memory.restore_memory(RestoreMemoryRequest(**named))
    assert len(await _recalled(tenant, user, "tea")) == 1
    await memory.delete_memory(DeleteMemoryRequest(**named))
    for call in (
        memory.get_memory(GetMemoryRequest(**named)),
        memory.restore_memory(RestoreMemoryRequest(**named)),
        memory.delete_memory(DeleteMemoryRequest(**named)),
        memory.get_memory_history(GetMemoryHistoryRequest(**named)),
    ):
        with pytest.raises(NotFoundError):
            await call
    assert await _recalled(tenant, user, "tea") == []
    for table in ("memory_store", "memory_revisions", "request_ids"):
        query = f"SELECT count(*) FROM {table} t WHERE user_id = %s AND t::text LIKE %s"  # noqa: S608
        assert await asyncio.to_thread(tenant.hub.sql, query, user.user_id, "%tea%") == [(0,)]
    again = await _remember(tenant.client, user, "Drinks tea.", request_id="kept")
    assert (again.memory.memory_id, again.memory.memory_content) == (kept.memory_id, "")


async def test_a_retry_gets_the_first_answer(tenant: Tenant, user: User) -> None:
    """Whatever became of the memory since; and it changes nothing."""
    first = await _remember(tenant.client, user, "Drinks tea.", request_id="one")
    await _remember(tenant.client, user, "Drinks tea.", request_id="two")
    change = UpdateMemoryRequest(memory_id=first.memory.memory_id, memory_content="Drinks mate.")
    await tenant.client.memory.update_memory(change)
    assert await _remember(tenant.client, user, "Drinks tea.", request_id="one") == first
    assert (await _got(tenant, first.memory)).reinforcement_count == 1


async def test_an_update_changes_what_the_mask_names(tenant: Tenant, user: User) -> None:
    """Text, confidence and expiry; a stale etag and what cannot be are refused."""
    memory = (await _remember(tenant.client, user, "Drinks tea.")).memory
    named: dict[str, Any] = {"memory_id": memory.memory_id}
    ends = dt.datetime(2099, 1, 1, tzinfo=dt.UTC)
    request = UpdateMemoryRequest(memory_content="Drinks mate.", etag=memory.etag, **named)
    request.expires_at.FromDatetime(ends)
    changed = (await tenant.client.memory.update_memory(request)).memory
    assert (changed.memory_content, changed.confidence_score) == ("Drinks mate.", 1)
    assert changed.expires_at.ToDatetime(dt.UTC) == ends
    assert [one.memory_id for one in await _recalled(tenant, user, "mate")] == [memory.memory_id]
    with pytest.raises(EtagMismatchError):
        await tenant.client.memory.update_memory(request)
    request = UpdateMemoryRequest(**named)
    request.update_mask.paths.append("expires_at")
    assert not (await tenant.client.memory.update_memory(request)).memory.HasField("expires_at")
    for paths, field in (
        (["memory_content"], "memory_content"),
        (["source"], "update_mask"),
        (["confidence_score"], "confidence_score"),
    ):
        request = UpdateMemoryRequest(**named)
        request.update_mask.paths.extend(paths)
        with pytest.raises(InvalidFieldError) as caught:
            await tenant.client.memory.update_memory(request)
        assert [name for name, _ in caught.value.violations] == [field]


async def test_time_decides_what_is_recalled_and_how_surely(
    owner_url: str, hub: Hub, tmp_path: Path
) -> None:
    """Inferences fade, memories expire, and `as_of` answers as the past would have."""
    clock = Clock()
    async with running_hub(owner_url, tmp_path, clock=clock) as own:
        tenant = await own.new_tenant()
        user = await tenant.new_user()
        began = clock.now
        first = (await _remember(tenant.client, user, "Drinks tea.", memory_key="drink")).memory
        guess = (await _remember(tenant.client, user, "Plays chess.", source=_INFERRED)).memory
        soon = await _remember(tenant.client, user, "Is on leave.", expires_at=clock.now + _DAY)
        clock.now += 90 * _DAY
        hit = {one.memory.memory_id: one for one in await _hits(tenant, user, "chess")}
        assert hit[guess.memory_id].confidence == pytest.approx(0.5)
        assert hit[guess.memory_id].recency == pytest.approx(0.5**0.5)
        assert hit[first.memory_id].confidence == 1
        assert soon.memory.memory_id not in hit
        (sure,) = await _recalled(tenant, user, "chess", min_confidence=0.6)
        assert sure.memory_id == first.memory_id
        flat = RecallWeights(confidence=0, recency=0)
        for one in await _hits(tenant, user, "chess", weights=flat):
            assert one.score == one.relevance
        await _remember(tenant.client, user, "Drinks coffee.", memory_key="drink")
        assert await _texts(tenant, user) == {"Drinks coffee.", "Plays chess."}
        then = {"as_of": began + _DAY / 2}
        assert await _texts(tenant, user, **then) == {"Drinks tea.", "Plays chess.", "Is on leave."}
        recalled = await _recalled(tenant, user, "tea", **then)
        assert {one.memory_content for one in recalled} == await _texts(tenant, user, **then)
        assert recalled[0].status == MemoryStatus.MEMORY_STATUS_ACTIVE
        assert await _texts(tenant, user, as_of=began - _DAY) == set()
        for ask in (_recalled(tenant, user, "tea", as_of=clock.now + _DAY),):
            with pytest.raises(InvalidFieldError) as caught:
                await ask
            assert [name for name, _ in caught.value.violations] == ["as_of"]


async def test_expired_memories_are_deleted_after_their_grace(tenant: Tenant, user: User) -> None:
    """What expired 30 days ago goes with its words; what expired since then stays."""
    old, young, kept = [
        (await _remember(tenant.client, user, text)).memory for text in ("Old.", "Young.", "Kept.")
    ]
    expire = "UPDATE memory_store SET expires_at = now() - %s WHERE memory_id = %s"
    await asyncio.to_thread(tenant.hub.sql, expire, dt.timedelta(days=31), old.memory_id)
    await asyncio.to_thread(tenant.hub.sql, expire, dt.timedelta(days=29), young.memory_id)
    assert await memory_expiry.purge(tenant.hub.database) >= 1
    with pytest.raises(NotFoundError):
        await _got(tenant, old)
    assert (await _got(tenant, young)).memory_content == "Young."
    assert [one.memory_id for one in await _listed(tenant, user)] == [kept.memory_id]


async def test_a_memory_that_cannot_be_deleted_keeps_no_other(tenant: Tenant, user: User) -> None:
    """It is passed over, and goes the next time."""
    stuck, other = [
        (await _remember(tenant.client, user, text)).memory for text in ("Stuck.", "Other.")
    ]
    expire = "UPDATE memory_store SET expires_at = now() - %s WHERE memory_id = %s"
    for one, days in ((stuck, 99), (other, 31)):
        await asyncio.to_thread(tenant.hub.sql, expire, dt.timedelta(days=days), one.memory_id)
    await asyncio.to_thread(
        tenant.hub.sql,
        "CREATE FUNCTION stuck() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'stuck'; END $$;"
        "CREATE TRIGGER stuck BEFORE UPDATE ON memory_store FOR EACH ROW "
        f"WHEN (OLD.memory_id = '{stuck.memory_id}') EXECUTE FUNCTION stuck()",
    )
    try:
        assert await memory_expiry.purge(tenant.hub.database) == 1
    finally:
        await asyncio.to_thread(tenant.hub.sql, "DROP FUNCTION stuck CASCADE")
    assert (await _got(tenant, stuck)).memory_content == "Stuck."
    with pytest.raises(NotFoundError):
        await _got(tenant, other)
    assert await memory_expiry.purge(tenant.hub.database) == 1


async def test_what_has_expired_takes_nobodys_place(
    owner_url: str, hub: Hub, tmp_path: Path
) -> None:
    """It is restored or accepted only with a later expiry: or nothing would be recalled."""
    clock = Clock()
    async with running_hub(owner_url, tmp_path, clock=clock) as own:
        tenant = await own.new_tenant()
        user = await tenant.new_user()
        about: dict[str, Any] = {"memory_key": "drink"}
        ends = {**about, "expires_at": clock.now + _DAY}
        old = (await _remember(tenant.client, user, "Drinks tea.", **ends)).memory
        new = (await _remember(tenant.client, user, "Drinks coffee.", **about)).memory
        guess = await _remember(tenant.client, user, "Drinks mate.", source=_INFERRED, **ends)
        clock.now += 2 * _DAY
        restore = RestoreMemoryRequest(memory_id=old.memory_id)
        accept = AcceptMemoryRequest(memory_id=guess.memory.memory_id)
        for ask in (
            tenant.client.memory.restore_memory(restore),
            tenant.client.memory.accept_memory(accept),
        ):
            with pytest.raises(MemoryStatusError) as caught:
                await ask
            assert caught.value.metadata["status"] == "expired"
        assert [one.memory_id for one in await _listed(tenant, user)] == [new.memory_id]
        assert "CONTRADICTION" not in await _findings(tenant, user)
        request = UpdateMemoryRequest(memory_id=old.memory_id)
        request.update_mask.paths.append("expires_at")
        await tenant.client.memory.update_memory(request)
        await tenant.client.memory.restore_memory(restore)
        assert [one.memory_id for one in await _listed(tenant, user)] == [old.memory_id]


async def test_the_report_tells_what_to_clean(owner_url: str, hub: Hub, tmp_path: Path) -> None:
    """Duplicates, contradictions, what is unsure, stale, or never recalled."""
    clock = Clock()
    async with running_hub(owner_url, tmp_path, clock=clock) as own:
        tenant = await own.new_tenant()
        user = await tenant.new_user()
        for text, values in (
            ("Was born in 1990.", {}),
            ("Was born in 1991.", {}),
            ("Drinks tea.", {"memory_key": "drink"}),
            ("drinks tea", {"memory_key": "Drink"}),
            ("Drinks tea!", {"memory_type": MemoryType.MEMORY_TYPE_HABIT}),
            ("Drinks coffee.", {"memory_key": "drink", "source": _INFERRED}),
            ("Plays the oboe.", {"confidence_score": 0.2}),
        ):
            await _remember(tenant.client, user, text, **values)
        clock.now += 31 * _DAY
        await _hits(tenant, user, "oboe", top_k=1)
        found = await _findings(tenant, user)
        assert found["DUPLICATE"][-1] == {"Was born in 1991.", "Was born in 1990."}
        equal = [set(two) for two in combinations(("Drinks tea!", "Drinks tea.", "drinks tea"), 2)]
        assert len(found["DUPLICATE"]) == len(equal) + 1
        assert all(two in found["DUPLICATE"] for two in equal)
        assert found["CONTRADICTION"] == [{"Drinks coffee.", "Drinks tea."}]
        assert found["LOW_CONFIDENCE"] == [{"Plays the oboe."}]
        assert {"Plays the oboe."} not in found["NEVER_RECALLED"]
        assert len(found["NEVER_RECALLED"]) == 5
        assert "STALE" not in found
        clock.now += 180 * _DAY
        assert len((await _findings(tenant, user))["STALE"]) == 6


async def test_a_rate_bounds_what_is_remembered(owner_url: str, hub: Hub, tmp_path: Path) -> None:
    """Beyond HUB_REMEMBER_RATE within an hour a user's memories are refused, others' are not."""
    async with running_hub(owner_url, tmp_path, remember_rate=2) as own:
        tenant = await own.new_tenant()
        user, other = await tenant.new_user(), await tenant.new_user()
        for text in ("One.", "Two."):
            await _remember(tenant.client, user, text)
        with pytest.raises(MemoryRateError) as caught:
            await _remember(tenant.client, user, "Three.")
        assert caught.value.retry_after == 3600
        batch = [{"memory_content": f"{place}"} for place in range(3)]
        with pytest.raises(InvalidFieldError) as refused:
            await _batch(tenant, other, batch)
        what = "must be at most 2 items, which is HUB_REMEMBER_RATE, not 3"
        assert [*refused.value.violations] == [("memories", what)]
        await _remember(tenant.client, other, "One.")
        with pytest.raises(MemoryRateError):
            await _batch(tenant, other, batch[:2])
        assert len(await _listed(tenant, user)) == 2


async def _remember(
    client: AsyncHubClient, user: User, text: str, **values: Any
) -> RememberResponse:
    values = {"memory_type": _FACT, **values}
    request = RememberRequest(user_id=user.user_id, memory_content=text, **values)
    return await client.memory.remember(request)


async def _batch(
    tenant: Tenant, user: User, items: list[dict[str, Any]], request_id: str = ""
) -> list[Any]:
    memories = [
        NewMemory(**{"memory_type": _FACT, "memory_content": "tea", **one}) for one in items
    ]
    request = BatchRememberRequest(user_id=user.user_id, memories=memories, request_id=request_id)
    return list((await tenant.client.memory.batch_remember(request)).remember_results)


async def _listed(tenant: Tenant, user: User, **values: Any) -> list[Memory]:
    request = ListMemoriesRequest(user_id=user.user_id, **values)
    return [memory async for memory in tenant.client.memory.list_memories(request)]


async def _texts(tenant: Tenant, user: User, **values: Any) -> set[str]:
    return {memory.memory_content for memory in await _listed(tenant, user, **values)}


async def _hits(tenant: Tenant, user: User, query: str, **values: Any) -> list[Any]:
    request = RecallRequest(user_id=user.user_id, query=query, **values)
    return list((await tenant.client.memory.recall(request)).hits)


async def _recalled(tenant: Tenant, user: User, query: str, **values: Any) -> list[Memory]:
    return [hit.memory for hit in await _hits(tenant, user, query, **values)]


async def _got(tenant: Tenant, memory: Memory) -> Memory:
    request = GetMemoryRequest(memory_id=memory.memory_id)
    return (await tenant.client.memory.get_memory(request)).memory


async def _history(tenant: Tenant, memory: Memory) -> list[MemoryRevision]:
    request = GetMemoryHistoryRequest(memory_id=memory.memory_id)
    answer = await tenant.client.memory.get_memory_history(request)
    return list(answer.memory_history.revisions)


async def _findings(tenant: Tenant, user: User) -> dict[str, list[set[str]]]:
    request = GetMemoryReportRequest(user_id=user.user_id)
    report = (await tenant.client.memory.get_memory_report(request)).memory_report
    found: dict[str, list[set[str]]] = {}
    for finding in report.findings:
        kind = MemoryFindingKind.Name(finding.kind).removeprefix("MEMORY_FINDING_KIND_")
        texts = {memory.memory_content for memory in finding.memories}
        found.setdefault(kind, []).append(texts)
    return found
