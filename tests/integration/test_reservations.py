"""Tokens set aside: never more than the budget, drawn by messages, settled, released by time."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from hub_client import errors
from hub_client.v1 import (
    AppendMessageRequest,
    BatchAppendMessagesRequest,
    BatchMessage,
    BudgetPeriod,
    GetUsageRequest,
    Reservation,
    ReserveTokensRequest,
    Role,
    Session,
    SettleTokensRequest,
    UpdateUserConfigRequest,
    Usage,
    User,
    UserConfig,
)
from tests.integration.test_database import held, rewritten, token_of, until, waiting_for_locks
from tests.support import Tenant


@pytest.fixture
async def user(tenant: Tenant) -> User:
    """A user with a budget of 100 tokens."""
    user = await tenant.new_user()
    await give(tenant, user, max_tokens=100)
    return user


@pytest.fixture
async def session(tenant: Tenant, user: User) -> Session:
    """A new session of the user."""
    return await tenant.new_session(user)


async def give(tenant: Tenant, user: User, **values: Any) -> None:
    """Give a user a budget."""
    config = UserConfig(user_id=user.user_id, **values)
    await tenant.client.identity.update_user_config(UpdateUserConfigRequest(config=config))


async def reserve(tenant: Tenant, user: User, tokens: int, **values: Any) -> Reservation:
    """Set tokens aside."""
    request = ReserveTokensRequest(user_id=user.user_id, tokens=tokens, **values)
    return (await tenant.client.chat.reserve_tokens(request)).reservation


async def settle(tenant: Tenant, reservation: Reservation, used: int | None = None) -> Reservation:
    """Close a reservation."""
    request = SettleTokensRequest(reservation_id=reservation.reservation_id, used_tokens=used)
    return (await tenant.client.chat.settle_tokens(request)).reservation


async def say(tenant: Tenant, session: Session, tokens: int, **values: Any) -> str:
    """Append a message of so many tokens; return `OK` or the reason of the refusal."""
    request = AppendMessageRequest(
        session_id=session.session_id, role=Role.ROLE_USER, token_count=tokens, **values
    )
    try:
        await tenant.client.chat.append_message(request)
    except errors.HubError as error:
        return error.reason
    return "OK"


async def used(tenant: Tenant, user: User) -> Usage:
    """Return what a user has used."""
    request = GetUsageRequest(user_id=user.user_id)
    return (await tenant.client.identity.get_usage(request)).usage


def expire(tenant: Tenant, reservation: Reservation) -> None:
    """Let a reservation's time be over."""
    tenant.hub.sql(
        "UPDATE token_reservations SET expires_at = now() - interval '1 second'"
        " WHERE reservation_id = %s",
        reservation.reservation_id,
    )


async def test_what_is_reserved_is_no_longer_free(
    tenant: Tenant, user: User, session: Session
) -> None:
    """Others get what is left and no more, until the rest is settled."""
    kept = await reserve(tenant, user, 80)
    assert (kept.tokens, kept.held_tokens, kept.used_tokens) == (80, 80, 0)
    assert 590 < kept.expires_at.seconds - kept.created_at.seconds <= 600
    with pytest.raises(errors.TokenBudgetError) as caught:
        await reserve(tenant, user, 21)
    assert (caught.value.metadata["subject"], caught.value.metadata["limit"]) == (
        "max_tokens",
        "100",
    )
    assert await say(tenant, session, 21) == "TOKEN_BUDGET"
    assert await say(tenant, session, 20) == "OK"
    settled = await settle(tenant, kept, 30)
    assert (settled.held_tokens, settled.used_tokens) == (0, 30)
    assert settled.HasField("settled_at")
    usage = await used(tenant, user)
    assert (usage.total_tokens_used, usage.reserved_tokens, usage.tokens_left) == (50, 0, 50)


async def test_messages_draw_on_the_reservation_they_name(
    tenant: Tenant, user: User, session: Session
) -> None:
    """What it lacks comes from the free budget; all of it counts when it is settled."""
    kept = await reserve(tenant, user, 60)
    by: dict[str, Any] = {"reservation_id": kept.reservation_id}
    assert await say(tenant, session, 50, **by) == "OK"
    usage = await used(tenant, user)
    assert (usage.total_tokens_used, usage.reserved_tokens, usage.tokens_left) == (50, 10, 40)
    messages = [BatchMessage(role=Role.ROLE_USER, token_count=10)] * 2
    batch = BatchAppendMessagesRequest(session_id=session.session_id, messages=messages, **by)
    await tenant.client.chat.batch_append_messages(batch)
    usage = await used(tenant, user)
    assert (usage.total_tokens_used, usage.reserved_tokens, usage.tokens_left) == (70, 0, 30)
    assert await say(tenant, session, 31, **by) == "TOKEN_BUDGET"
    with pytest.raises(errors.InvalidFieldError) as caught:
        await settle(tenant, kept, 69)
    assert caught.value.violations[0][0] == "used_tokens"
    assert (await settle(tenant, kept, 75)).used_tokens == 75
    assert (await used(tenant, user)).total_tokens_used == 75
    assert await say(tenant, session, 1, **by) == "RESERVATION_SETTLED"


async def test_settling_again_changes_nothing(tenant: Tenant, user: User) -> None:
    """The same answer for the same tokens, or none named; other tokens are refused."""
    kept = await reserve(tenant, user, 10)
    first = await settle(tenant, kept, 4)
    assert await settle(tenant, kept, 4) == first
    assert await settle(tenant, kept) == first
    with pytest.raises(errors.ReservationSettledError):
        await settle(tenant, kept, 5)
    assert (await used(tenant, user)).total_tokens_used == 4


async def test_without_tokens_a_reservation_is_released(tenant: Tenant, user: User) -> None:
    """What no message drew is free again, and nothing was used."""
    await settle(tenant, await reserve(tenant, user, 100))
    usage = await used(tenant, user)
    assert (usage.total_tokens_used, usage.reserved_tokens, usage.tokens_left) == (0, 0, 100)


async def test_more_than_was_reserved_must_fit_the_budget(
    tenant: Tenant, user: User, session: Session
) -> None:
    """What a model took beyond its reservation is counted where there is room, else refused."""
    kept = await reserve(tenant, user, 10)
    assert await say(tenant, session, 80) == "OK"
    with pytest.raises(errors.TokenBudgetError):
        await settle(tenant, kept, 21)
    assert (await settle(tenant, kept, 20)).used_tokens == 20
    assert (await used(tenant, user)).tokens_left == 0


async def test_an_expired_reservation_releases_itself(
    tenant: Tenant, user: User, session: Session
) -> None:
    """Its tokens are there for the next message or reservation, without anybody's doing."""
    kept = await reserve(tenant, user, 100, ttl_seconds=60)
    assert await say(tenant, session, 1) == "TOKEN_BUDGET"
    expire(tenant, kept)
    usage = await used(tenant, user)
    assert (usage.reserved_tokens, usage.tokens_left) == (0, 100)
    assert await say(tenant, session, 40) == "OK"
    again = await reserve(tenant, user, 60)
    expire(tenant, again)
    await reserve(tenant, user, 60)
    with pytest.raises(errors.TokenBudgetError):  # it holds nothing any more, and nothing is free
        await settle(tenant, again, 1)
    assert await say(tenant, session, 1, reservation_id=again.reservation_id) == "TOKEN_BUDGET"


async def test_a_reservation_drawn_on_by_many_at_once_is_not_overdrawn(
    tenant: Tenant, user: User, session: Session
) -> None:
    """20 messages at once take what is reserved, and then what is free, and nothing more."""
    kept = await reserve(tenant, user, 8)
    await say(tenant, session, 88)
    outcomes = await asyncio.gather(
        *(say(tenant, session, 1, reservation_id=kept.reservation_id) for _ in range(20))
    )
    assert Counter(outcomes) == {"OK": 12, "TOKEN_BUDGET": 8}
    usage = await used(tenant, user)
    assert (usage.total_tokens_used, usage.reserved_tokens) == (100, 0)


async def _race(tenant: Tenant, user: User, sessions: list[Session]) -> Counter[str]:
    """Reserve, append, settle and release at once, all for one budget; count what was granted."""
    granted: Counter[str] = Counter()

    async def reserves(place: int) -> None:
        try:
            kept = await reserve(tenant, user, 3, request_id=f"r{place}")
        except errors.TokenBudgetError:
            return
        use = place % 4
        try:
            settled = await settle(tenant, kept, use)
        except errors.TokenBudgetError:
            settled = await settle(tenant, kept)
        granted["tokens"] += settled.used_tokens

    async def appends(place: int) -> None:
        outcome = await say(tenant, sessions[place % 4], 1)
        granted["tokens"] += outcome == "OK"

    await asyncio.gather(
        *(reserves(place) for place in range(60)), *(appends(place) for place in range(60))
    )
    return granted


async def test_no_race_of_reservations_and_appends_exceeds_a_budget(
    tenant: Tenant, user: User
) -> None:
    """What was granted is what was counted, at most the budget, and nothing stays reserved."""
    sessions = [await tenant.new_session(user) for _ in range(4)]
    granted = await _race(tenant, user, sessions)
    usage = await used(tenant, user)
    assert usage.total_tokens_used == granted["tokens"] <= 100
    assert usage.reserved_tokens == 0


async def test_without_the_lock_of_the_usage_a_budget_is_seen_to_break(
    tenant: Tenant, user: User
) -> None:
    """Two reservations that see the same budget are both granted: so the lock is what holds."""
    with rewritten("FOR NO KEY UPDATE OF g") as changed:
        lock = "SELECT 1 FROM user_usage WHERE user_id = %s FOR UPDATE"
        with held(tenant.hub, lock, user.user_id):
            both = [asyncio.create_task(reserve(tenant, user, 60)) for _ in range(2)]
            await until(lambda: waiting_for_locks(tenant.hub) == 2)
        await asyncio.gather(*both)
    assert changed
    assert (await used(tenant, user)).reserved_tokens == 120


async def test_a_reservation_belongs_to_its_user(
    tenant: Tenant, other_tenant: Tenant, user: User, session: Session
) -> None:
    """Another user's or tenant's answers like one that does not exist, in every call."""
    stranger = await tenant.new_user()
    foreign = [
        await reserve(tenant, stranger, 1),
        await reserve(other_tenant, await other_tenant.new_user(), 1),
        Reservation(reservation_id=user.user_id),
    ]
    client = tenant.hub.client(await token_of(tenant, user.user_id))
    for one in foreign:
        assert await say(tenant, session, 1, reservation_id=one.reservation_id) == "NOT_FOUND"
        request = SettleTokensRequest(reservation_id=one.reservation_id)
        with pytest.raises(errors.NotFoundError) as caught:
            await client.chat.settle_tokens(request)
        assert caught.value.metadata["resource"] == "reservation"
    with pytest.raises(errors.NotFoundError):
        await client.chat.reserve_tokens(ReserveTokensRequest(user_id=stranger.user_id, tokens=1))


async def test_a_retried_reservation_is_made_once(tenant: Tenant, user: User) -> None:
    """Its first answer comes again; of 8 at once one sets tokens aside."""
    answers = await asyncio.gather(*(reserve(tenant, user, 30, request_id="r") for _ in range(8)))
    assert answers == [answers[0]] * 8
    assert (await used(tenant, user)).reserved_tokens == 30


async def test_a_refusal_tells_when_the_period_ends(tenant: Tenant, user: User) -> None:
    """RetryInfo of a daily budget is at most a day; a budget for life has none."""
    with pytest.raises(errors.TokenBudgetError) as caught:
        await reserve(tenant, user, 101)
    assert caught.value.retry_after is None
    await give(tenant, user, budget_period=BudgetPeriod.BUDGET_PERIOD_DAY)
    with pytest.raises(errors.TokenBudgetError) as caught:
        await reserve(tenant, user, 101)
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 86_400
