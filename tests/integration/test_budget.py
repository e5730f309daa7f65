"""Token budgets: never exceeded, used to the last token, and told when they end."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from hub_client import AsyncHubClient, errors
from hub_client.v1 import (
    AppendMessageRequest,
    BudgetPeriod,
    GetUsageRequest,
    ListMessagesRequest,
    Role,
    Session,
    UpdateUserConfigRequest,
    Usage,
    User,
    UserConfig,
)
from hub_server.caller import Caller
from hub_server.chat.append_repository import AppendRepository
from hub_server.chat.appends import Append, NewMessage, PendingAppend, _columns
from hub_server.idempotency import KEPT, Retry
from hub_server.ids import new_id
from tests.integration.test_database import (
    held,
    held_session,
    occupied,
    own_hub,
    submissions,
    until,
    waiting_for_locks,
)
from tests.support import Hub, Tenant, running_hub


@pytest.fixture
async def other_hub(hub: Hub) -> AsyncIterator[Hub]:
    """A second hub over the same database."""
    folder = hub.settings.data_dir / new_id()
    await asyncio.to_thread(folder.mkdir)
    async with running_hub(hub.owner_url, folder) as other:
        yield other


async def give(tenant: Tenant, user: User, **values: Any) -> None:
    """Give a user a budget."""
    config = UserConfig(user_id=user.user_id, **values)
    await tenant.client.identity.update_user_config(UpdateUserConfigRequest(config=config))


async def say(tenant: Tenant, session: Session, tokens: int, **values: Any) -> str:
    """Append a message of so many tokens; return `OK` or the reason of the refusal."""
    request = AppendMessageRequest(
        session_id=session.session_id, role=Role.ROLE_USER, token_count=tokens, **values
    )
    return await _outcome(tenant.client, request)


async def _outcome(client: AsyncHubClient, request: AppendMessageRequest) -> str:
    try:
        await client.chat.append_message(request)
    except errors.HubError as error:
        return error.reason
    return "OK"


async def used(tenant: Tenant, user: User) -> Usage:
    """Return what a user has used."""
    request = GetUsageRequest(user_id=user.user_id)
    return (await tenant.client.identity.get_usage(request)).usage


async def test_64_writers_never_exceed_a_budget_and_use_it_up(
    tenant: Tenant, other_hub: Hub
) -> None:
    """In two hubs, over 8 sessions, with retries: of 200 single tokens exactly 100 are granted."""
    user = await tenant.new_user()
    await give(tenant, user, max_tokens=100)
    sessions = [await tenant.new_session(user) for _ in range(8)]
    clients = (tenant.client, other_hub.client(tenant.key))
    outcomes: Counter[str] = Counter()
    numbers = iter(range(200))

    async def write() -> None:
        for number in numbers:
            request = AppendMessageRequest(
                session_id=sessions[number % 8].session_id,
                role=Role.ROLE_USER,
                token_count=1,
                request_id=f"append {number}",
            )
            # Each hub has sessions of its own: nothing but the budget makes them wait.
            client = clients[number % 2]
            for _ in range(2):  # the second is a retry
                outcomes[await _outcome(client, request)] += 1

    await asyncio.gather(*(write() for _ in range(64)))
    assert outcomes == {"OK": 200, "TOKEN_BUDGET": 200}
    usage = await used(tenant, user)
    assert (usage.total_tokens_used, usage.tokens_left, usage.messages) == (100, 0, 100)


async def test_of_two_at_the_last_token_one_gets_it(
    hub: Hub, tenant: Tenant, other_hub: Hub
) -> None:
    """Groups of two hubs that stand at the user's row together: the second sees the first's."""
    user = await tenant.new_user()
    await give(tenant, user, max_tokens=1)
    sessions = [await tenant.new_session(user) for _ in range(2)]
    lock = "SELECT 1 FROM user_usage WHERE user_id = %s FOR UPDATE"
    with held(hub, lock, user.user_id):
        tasks = [
            asyncio.create_task(
                _outcome(
                    client,
                    AppendMessageRequest(
                        session_id=session.session_id, role=Role.ROLE_USER, token_count=1
                    ),
                )
            )
            for client, session in zip(
                (tenant.client, other_hub.client(tenant.key)), sessions, strict=True
            )
        ]
        await until(lambda: waiting_for_locks(hub) == 2)
    assert sorted(await asyncio.gather(*tasks)) == ["OK", "TOKEN_BUDGET"]
    assert (await used(tenant, user)).total_tokens_used == 1


async def test_one_group_is_weighed_in_its_order(
    hub: Hub, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too much is refused; what comes after and fits is not, nor is another user."""
    user, other = await tenant.new_user(), await tenant.new_user()
    session, theirs = await tenant.new_session(user), await tenant.new_session(other)
    held = await tenant.new_session(other)
    await give(tenant, user, max_tokens=10)
    submitted = submissions(monkeypatch)
    with held_session(hub, held.session_id):
        first = await occupied(hub, lambda: say(tenant, held, 0))
        tasks = []
        for tokens in (6, 5, 4, 1, 0):
            tasks.append(asyncio.create_task(say(tenant, session, tokens)))
            await until(lambda: len(submitted) == len(first) + len(tasks))
        tasks.append(asyncio.create_task(say(tenant, theirs, 1000)))
        await until(lambda: len(submitted) == len(first) + len(tasks))
    assert await asyncio.gather(*tasks) == [
        "OK",
        "TOKEN_BUDGET",
        "OK",
        "TOKEN_BUDGET",
        "OK",
        "OK",
    ]
    listing = ListMessagesRequest(session_id=session.session_id)
    listed = [one.token_count async for one in tenant.client.chat.list_messages(listing)]
    assert sorted(listed) == [0, 4, 6]
    await asyncio.gather(*first)


async def test_a_refused_append_leaves_nothing_and_can_be_retried(tenant: Tenant) -> None:
    """Neither a message nor a spent request id: with a greater budget the same call succeeds."""
    user = await tenant.new_user()
    session = await tenant.new_session(user)
    await give(tenant, user, max_tokens=5)
    assert await say(tenant, session, 6, request_id="six") == "TOKEN_BUDGET"
    assert (await used(tenant, user)).messages == 0
    await give(tenant, user, max_tokens=6)
    assert await say(tenant, session, 6, request_id="six") == "OK"
    assert await say(tenant, session, 6, request_id="six") == "OK"
    assert (await used(tenant, user)).total_tokens_used == 6


async def test_a_period_that_ends_is_told(tenant: Tenant) -> None:
    """A daily budget tells how long to wait, one for life does not; both name the field."""
    user = await tenant.new_user()
    session = await tenant.new_session(user)
    request = AppendMessageRequest(
        session_id=session.session_id, role=Role.ROLE_USER, token_count=1
    )
    for period, longest in (
        (BudgetPeriod.BUDGET_PERIOD_LIFETIME, None),
        (BudgetPeriod.BUDGET_PERIOD_DAY, 25 * 3600),
        (BudgetPeriod.BUDGET_PERIOD_MONTH, 31 * 86400 + 3600),
    ):
        await give(tenant, user, max_tokens=0, budget_period=period, timezone="America/Los_Angeles")
        with pytest.raises(errors.TokenBudgetError) as caught:
            await tenant.client.chat.append_message(request)
        assert caught.value.metadata == {"limit": "0", "tokens_left": "0", "subject": "max_tokens"}
        wait = caught.value.retry_after
        assert wait is None if longest is None else wait is not None and 0 < wait <= longest


async def test_a_new_period_has_a_new_budget(hub: Hub, tenant: Tenant) -> None:
    """What was used yesterday does not count today; what was used in all still does."""
    user = await tenant.new_user()
    session = await tenant.new_session(user)
    await give(tenant, user, max_tokens=10, budget_period=BudgetPeriod.BUDGET_PERIOD_DAY)
    assert await say(tenant, session, 10) == "OK"
    assert await say(tenant, session, 1) == "TOKEN_BUDGET"
    hub.sql(
        "UPDATE user_usage SET period_start = period_start - interval '1 day' WHERE user_id = %s",
        user.user_id,
    )
    assert await say(tenant, session, 10) == "OK"
    assert await say(tenant, session, 1) == "TOKEN_BUDGET"
    assert (await used(tenant, user)).total_tokens_used == 20


async def test_a_group_locks_all_sessions_before_any_usage(
    empty_database: str, tmp_path: Path
) -> None:
    """Whatever plan Postgres prefers: else two groups could wait for each other in a circle.

    With few users and statistics of them it would look for each usage among the sessions, and so
    lock it between them.
    """
    async with own_hub(empty_database, tmp_path) as hub:
        tenant = await hub.new_tenant()
        user = await tenant.new_user()
        ids = sorted([(await tenant.new_session(user)).session_id for _ in range(2)])
        hub.sql("ANALYZE")
        message = NewMessage("user", "text", "x", 1, "", None, {})
        caller, retry = Caller.hub(tenant.tenant_id), Retry("", b"")
        group = [PendingAppend(caller, retry, Append(one, [message]), [new_id()]) for one in ids]

        async def append() -> list[str]:
            async with hub.database.statement(caller) as connection:
                repository = AppendRepository(connection, caller.tenant_id)
                return [row["outcome"] for row in await repository.append(_columns(group), KEPT)]

        with psycopg.connect(hub.owner_url) as other:
            # It has the second session, and asks for the usage while the group waits for that.
            held = "SELECT 1 FROM chat_sessions WHERE session_id = %s FOR NO KEY UPDATE"
            other.execute(held, [ids[1]])
            appending = asyncio.create_task(append())
            await until(lambda: waiting_for_locks(hub) == 1)
            usage = "SELECT 1 FROM user_usage WHERE user_id = %s FOR NO KEY UPDATE NOWAIT"
            assert other.execute(usage, [user.user_id]).fetchone() is not None
        assert await appending == ["ACCEPTED", "ACCEPTED"]


async def test_a_period_never_goes_back(tenant: Tenant) -> None:
    """An append that began in the old period and waited counts in the new one, with the others."""
    user = await tenant.new_user()
    await give(tenant, user, max_tokens=100, budget_period=BudgetPeriod.BUDGET_PERIOD_DAY)
    session, other = [await tenant.new_session(user) for _ in range(2)]
    with held_session(tenant.hub, session.session_id):
        late = asyncio.create_task(say(tenant, session, 1))
        await until(lambda: waiting_for_locks(tenant.hub) == 1)
        # The next day begins, and its budget is used up.
        tenant.hub.sql(
            "UPDATE user_usage SET period_start = hub_period_start('day', 'UTC')"
            " + interval '1 day', period_tokens_used = 100, total_tokens_used = 100"
            " WHERE user_id = %s",
            user.user_id,
        )
    assert await late == "TOKEN_BUDGET"
    assert await say(tenant, other, 1) == "TOKEN_BUDGET"
