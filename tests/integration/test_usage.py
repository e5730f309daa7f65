"""What users have used, and what new users begin with."""

import datetime as dt

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from hub_client import errors
from hub_client.v1 import (
    AppendMessageRequest,
    BudgetPeriod,
    EndSessionRequest,
    GetDefaultConfigRequest,
    GetUsageRequest,
    GetUserConfigRequest,
    ListUsageRequest,
    MemoryType,
    RememberRequest,
    Role,
    Session,
    UpdateDefaultConfigRequest,
    UpdateUserConfigRequest,
    Usage,
    User,
    UserConfig,
)
from tests.integration.test_database import statements, token_of
from tests.support import Hub, Tenant

DAY = BudgetPeriod.BUDGET_PERIOD_DAY
MONTH = BudgetPeriod.BUDGET_PERIOD_MONTH


async def say(tenant: Tenant, session: Session, tokens: int) -> None:
    """Append a message that counts so many tokens."""
    request = AppendMessageRequest(
        session_id=session.session_id, role=Role.ROLE_USER, content="Hello", token_count=tokens
    )
    await tenant.client.chat.append_message(request)


async def used(tenant: Tenant, user: User) -> Usage:
    """Return what a user has used."""
    request = GetUsageRequest(user_id=user.user_id)
    return (await tenant.client.identity.get_usage(request)).usage


async def configure(tenant: Tenant, user: User, **values: object) -> UserConfig:
    """Change the configuration of a user; return it."""
    config = UserConfig(user_id=user.user_id, **values)  # type: ignore[arg-type]
    request = UpdateUserConfigRequest(config=config)
    return (await tenant.client.identity.update_user_config(request)).config


async def test_all_that_a_user_has_is_counted(tenant: Tenant) -> None:
    """Tokens, sessions, messages, memories, documents and bytes, in one statement."""
    user, other = await tenant.new_user(), await tenant.new_user()
    one, two, theirs = [await tenant.new_session(who) for who in (user, user, other)]
    for session, tokens in ((one, 5), (two, 7), (two, 0), (theirs, 1000)):
        await say(tenant, session, tokens)
    await tenant.client.chat.end_session(EndSessionRequest(session_id=one.session_id))
    await tenant.client.memory.remember(
        RememberRequest(
            user_id=user.user_id,
            memory_type=MemoryType.MEMORY_TYPE_FACT,
            memory_content="likes tea",
        )
    )
    await tenant.ingest(user, "Tea", "Tea is brewed at ninety degrees.")
    with statements() as seen:
        usage = await used(tenant, user)
    assert len(seen) <= 2  # the second carries the tenant
    assert (usage.total_tokens_used, usage.period_tokens_used) == (12, 12)
    assert (usage.active_sessions, usage.messages) == (1, 3)
    assert (usage.memories, usage.documents) == (1, 1)
    assert 2 * 1024 < usage.bytes < 8 * 1024  # two vectors of 256 floats, and some words
    assert not usage.HasField("tokens_left")
    assert not usage.HasField("period_start")


async def test_tokens_left_are_those_of_the_period(hub: Hub, tenant: Tenant) -> None:
    """Never below none; a period that is over counts as not begun."""
    user = await tenant.new_user()
    session = await tenant.new_session(user)
    await say(tenant, session, 30)
    await configure(tenant, user, max_tokens=100)
    assert (await used(tenant, user)).tokens_left == 70
    await configure(tenant, user, max_tokens=10)
    assert (await used(tenant, user)).tokens_left == 0
    await configure(tenant, user, max_tokens=100, budget_period=DAY)
    assert (await used(tenant, user)).period_tokens_used == 30  # said today, too
    await say(tenant, session, 20)
    usage = await used(tenant, user)
    assert (usage.total_tokens_used, usage.period_tokens_used, usage.tokens_left) == (50, 50, 50)
    hub.sql(
        "UPDATE user_usage SET period_start = period_start - interval '1 day' WHERE user_id = %s",
        user.user_id,
    )
    usage = await used(tenant, user)
    assert (usage.period_tokens_used, usage.tokens_left) == (0, 100)
    await say(tenant, session, 1)
    assert (await used(tenant, user)).period_tokens_used == 1


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/Los_Angeles", "Asia/Kathmandu"])
async def test_a_period_begins_at_midnight_where_the_user_is(tenant: Tenant, zone: str) -> None:
    """Of this day, or of the first of this month, in his time zone."""
    import zoneinfo  # noqa: PLC0415

    user = await tenant.new_user()
    for period in (DAY, MONTH):
        await configure(tenant, user, timezone=zone, budget_period=period)
        start = (await used(tenant, user)).period_start.ToDatetime(tzinfo=dt.UTC)
        there = start.astimezone(zoneinfo.ZoneInfo(zone))
        now = dt.datetime.now(zoneinfo.ZoneInfo(zone))
        assert (there.hour, there.minute, there.second) == (0, 0, 0)
        assert there.date() == (now.date() if period == DAY else now.date().replace(day=1))


async def test_usage_is_listed_by_tokens(tenant: Tenant, other_tenant: Tenant) -> None:
    """Most first, over pages; of this tenant alone."""
    expected = []
    for tokens in (5, 50, 0, 20):
        user = await tenant.new_user()
        await say(tenant, await tenant.new_session(user), tokens)
        expected.append((tokens, user.user_id))
    await say(other_tenant, await other_tenant.new_session(await other_tenant.new_user()), 9)
    request = ListUsageRequest(page_size=1)
    listed = [one async for one in tenant.client.identity.list_usage(request)]
    assert [(one.total_tokens_used, one.user_id) for one in listed] == sorted(
        expected, reverse=True
    )
    assert [one.messages for one in listed] == [1] * 4


async def test_a_user_sees_his_own_usage_only(hub: Hub, tenant: Tenant) -> None:
    """With his token, without naming himself; another's is not found."""
    user, other = await tenant.new_user(), await tenant.new_user()
    own = hub.client(await token_of(tenant, user.user_id))
    assert (await own.identity.get_usage(GetUsageRequest())).usage.user_id == user.user_id
    with pytest.raises(errors.NotFoundError):
        await own.identity.get_usage(GetUsageRequest(user_id=other.user_id))


# --- defaults ------------------------------------------------------------------------------------


async def default(tenant: Tenant, mask: tuple[str, ...] = (), **values: object) -> UserConfig:
    """Change the defaults of a tenant; return them."""
    config = UserConfig(**values)  # type: ignore[arg-type]
    request = UpdateDefaultConfigRequest(config=config, update_mask=FieldMask(paths=mask))
    return (await tenant.client.identity.update_default_config(request)).config


async def test_new_users_begin_with_the_defaults_of_their_tenant(
    tenant: Tenant, other_tenant: Tenant
) -> None:
    """Those there were keep their own, and another tenant has its own."""
    before = await tenant.new_user()
    made = await default(tenant, max_sessions=3, timezone="Europe/Lisbon", budget_period=DAY)
    get = GetDefaultConfigRequest()
    assert (await tenant.client.identity.get_default_config(get)).config == made
    assert made.enable_rag
    after, elsewhere = await tenant.new_user(), await other_tenant.new_user()

    async def config(of: Tenant, user: User) -> UserConfig:
        request = GetUserConfigRequest(user_id=user.user_id)
        return (await of.client.identity.get_user_config(request)).config

    found = await config(tenant, after)
    assert (found.max_sessions, found.timezone, found.budget_period) == (3, "Europe/Lisbon", DAY)
    for of, user in ((tenant, before), (other_tenant, elsewhere)):
        found = await config(of, user)
        assert (found.HasField("max_sessions"), found.timezone) == (False, "UTC")


async def test_a_field_that_is_reset_returns_to_the_default_of_the_tenant(tenant: Tenant) -> None:
    """And a default that is reset, to the hub's own."""
    user = await tenant.new_user()
    await default(tenant, max_sessions=3, preferred_language="de")
    await configure(tenant, user, max_sessions=9, preferred_language="fr")
    request = UpdateUserConfigRequest(
        config=UserConfig(user_id=user.user_id), update_mask=FieldMask(paths=["max_sessions"])
    )
    config = (await tenant.client.identity.update_user_config(request)).config
    assert (config.max_sessions, config.preferred_language) == (3, "fr")
    made = await default(tenant, ("max_sessions", "preferred_language"))
    assert (made.HasField("max_sessions"), made.preferred_language) == (False, "en")


async def test_a_stale_etag_of_defaults_is_refused(tenant: Tenant) -> None:
    """Also when there were none yet; and a bad value changes nothing."""
    get = GetDefaultConfigRequest()
    first = (await tenant.client.identity.get_default_config(get)).config
    second = await default(tenant, max_sessions=1, etag=first.etag)
    with pytest.raises(errors.EtagMismatchError):
        await default(tenant, max_sessions=2, etag=first.etag)
    with pytest.raises(errors.InvalidFieldError):
        await default(tenant, timezone="Mars/Olympus")
    assert (await tenant.client.identity.get_default_config(get)).config == second
