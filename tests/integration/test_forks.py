"""Histories that sessions share, messages that are redacted, and lists of both."""

import asyncio
from typing import Any

import pytest

from hub_client import errors
from hub_client.v1 import (
    AppendMessageRequest,
    DeleteSessionRequest,
    ForkSessionRequest,
    GetMessageRequest,
    GetSessionRequest,
    GetUsageRequest,
    ListAuditEventsRequest,
    ListMessagesRequest,
    ListSessionsRequest,
    Message,
    MessageOrder,
    MessageType,
    RedactMessageRequest,
    Role,
    Session,
    UpdateUserConfigRequest,
    User,
    UserConfig,
)
from tests.integration.test_database import statements
from tests.support import Tenant

_NEWEST_FIRST = MessageOrder.MESSAGE_ORDER_NEWEST_FIRST


@pytest.fixture
async def user(tenant: Tenant) -> User:
    """A new user of the tenant."""
    return await tenant.new_user()


@pytest.fixture
async def session(tenant: Tenant, user: User) -> Session:
    """A session with messages 1 to 6."""
    session = await tenant.new_session(user, session_title="Tea", model_name="m")
    for place in range(1, 7):
        await say(tenant, session, str(place))
    return session


async def say(tenant: Tenant, session: Session, content: str, **values: Any) -> Message:
    """Append a message of one token."""
    values.setdefault("role", Role.ROLE_USER)
    request = AppendMessageRequest(
        session_id=session.session_id, content=content, token_count=1, **values
    )
    return (await tenant.client.chat.append_message(request)).message


async def fork(tenant: Tenant, session: Session, **values: Any) -> Session:
    """Fork a session."""
    request = ForkSessionRequest(session_id=session.session_id, **values)
    return (await tenant.client.chat.fork_session(request)).session


async def get(tenant: Tenant, session: Session) -> Session:
    """Return a session as it is now."""
    request = GetSessionRequest(session_id=session.session_id)
    return (await tenant.client.chat.get_session(request)).session


async def redact(tenant: Tenant, session: Session, seq: int) -> Message:
    """Redact a message."""
    request = RedactMessageRequest(session_id=session.session_id, seq=seq)
    return (await tenant.client.chat.redact_message(request)).message


async def messages(tenant: Tenant, session: Session, **values: Any) -> list[Message]:
    """Return messages of a session."""
    request = ListMessagesRequest(session_id=session.session_id, **values)
    return [one async for one in tenant.client.chat.list_messages(request)]


async def texts(tenant: Tenant, session: Session, **values: Any) -> str:
    """Return the contents of messages, one character each."""
    return "".join(one.content for one in await messages(tenant, session, **values))


# --- forks


async def test_a_fork_shares_the_history_and_goes_its_own_way(
    tenant: Tenant, user: User, session: Session
) -> None:
    """Both read the same up to there, and their own after it, page by page in both orders."""
    branch = await fork(tenant, session, at_seq=4)
    assert (branch.last_seq, branch.total_tokens_used) == (4, 4)
    assert (branch.parent_session_id, branch.parent_seq) == (session.session_id, 4)
    assert (branch.session_title, branch.model_name) == ("Tea", "m")
    assert (await say(tenant, branch, "a")).seq == 5
    assert (await say(tenant, session, "7")).seq == 7
    for page_size in (1, 2, 3, 50):
        assert await texts(tenant, branch, page_size=page_size) == "1234a"
        newest = await texts(tenant, branch, page_size=page_size, order=_NEWEST_FIRST)
        assert newest == "a4321"
    assert await texts(tenant, session) == "1234567"
    kept = await messages(tenant, branch)
    assert [one.seq for one in kept] == [1, 2, 3, 4, 5]
    assert {one.session_id for one in kept} == {branch.session_id}
    usage = await tenant.client.identity.get_usage(GetUsageRequest(user_id=user.user_id))
    assert (usage.usage.total_tokens_used, usage.usage.messages) == (8, 8)


async def test_forks_of_forks_share_what_their_parents_share(
    tenant: Tenant, session: Session
) -> None:
    """At a point of the parent's own, or one that the parent shares itself; also from nothing."""
    first = await fork(tenant, session, at_seq=4, session_title="Coffee")
    await say(tenant, first, "a")
    await say(tenant, first, "b")
    own, shared = await fork(tenant, first, at_seq=5), await fork(tenant, first, at_seq=2)
    await say(tenant, own, "c")
    await say(tenant, shared, "d")
    deepest = await fork(tenant, own)
    await say(tenant, deepest, "e")
    assert await texts(tenant, own) == "1234ac"
    assert await texts(tenant, shared) == "12d"
    assert await texts(tenant, deepest) == "1234ace"
    assert own.session_title == "Coffee"
    assert await texts(tenant, await fork(tenant, deepest, at_seq=0)) == ""
    assert (await get(tenant, deepest)).total_tokens_used == 7


async def test_a_fork_outlives_its_parent(tenant: Tenant, session: Session) -> None:
    """Deleting the session leaves what the fork shares of it."""
    branch = await fork(tenant, session)
    request = DeleteSessionRequest(session_id=session.session_id)
    await tenant.client.chat.delete_session(request)
    assert await texts(tenant, branch) == "123456"
    with pytest.raises(errors.NotFoundError):
        await fork(tenant, session)


async def test_a_fork_costs_no_round_trip_for_each_message(
    tenant: Tenant, session: Session
) -> None:
    """As many statements for one message as for all of them."""
    counts = []
    for at_seq in (1, 6):
        with statements() as seen:
            await fork(tenant, session, at_seq=at_seq)
        counts.append(len(seen))
    assert counts[0] == counts[1] <= 8


async def test_forking_is_bounded_and_retried_safely(
    tenant: Tenant, user: User, session: Session
) -> None:
    """A retry answers the same; a limit on sessions holds; there is no seq beyond the last."""
    first = await fork(tenant, session, request_id="r")
    assert await fork(tenant, session, request_id="r") == first
    with pytest.raises(errors.InvalidFieldError) as caught:
        await fork(tenant, session, at_seq=7)
    assert caught.value.violations == (("at_seq", "must be at most 6"),)
    config = UserConfig(user_id=user.user_id, max_sessions=3)
    await tenant.client.identity.update_user_config(UpdateUserConfigRequest(config=config))
    outcomes = await asyncio.gather(
        *(fork(tenant, session) for _ in range(8)), return_exceptions=True
    )
    assert sum(isinstance(one, errors.SessionLimitError) for one in outcomes) == 7


# --- redaction


async def test_what_is_redacted_is_gone_everywhere(
    tenant: Tenant, user: User, session: Session
) -> None:
    """No table holds its words, in no session that shares it; seq, role and counts stay."""
    values: dict[str, Any] = {"request_id": "r", "metadata": {"canary-redacted": True}}
    said = await say(tenant, session, "canary-redacted", **values)
    branch = await fork(tenant, session)
    left = await redact(tenant, branch, said.seq)
    assert (left.seq, left.role, left.token_count) == (7, Role.ROLE_USER, 1)
    assert (left.content, len(left.metadata)) == ("", 0)
    assert left.HasField("redacted_at")
    for one in (session, branch):
        assert [message.content for message in await messages(tenant, one)][-1] == ""
        kept = await get(tenant, one)
        assert (kept.last_seq, kept.total_tokens_used, kept.redaction_count) == (7, 7, 1)
    rows = tenant.hub.sql(
        "SELECT to_jsonb(m), to_jsonb(r) FROM chat_messages m, request_ids r"
        " WHERE m.tenant_id = %s AND r.tenant_id = m.tenant_id",
        tenant.tenant_id,
    )
    assert "canary" not in repr(rows)
    retried = await say(tenant, session, "canary-redacted", **values)
    assert (retried.seq, retried.content) == (7, "")
    assert retried.HasField("redacted_at")
    usage = await tenant.client.identity.get_usage(GetUsageRequest(user_id=user.user_id))
    assert usage.usage.total_tokens_used == 7


async def test_a_redaction_is_audited_once(tenant: Tenant, session: Session) -> None:
    """Redacting again changes nothing; the event tells which message, and no word of it."""
    first = await redact(tenant, session, 3)
    assert await redact(tenant, session, 3) == first
    request = ListAuditEventsRequest(event_type="message_redacted")
    events = [one async for one in tenant.client.identity.list_audit_events(request)]
    assert [(one.target_type, one.target_id) for one in events] == [
        ("message", f"{session.session_id}/3")
    ]
    assert (await get(tenant, session)).redaction_count == 1


async def test_only_a_message_that_is_there_is_redacted(
    tenant: Tenant, other_tenant: Tenant, session: Session
) -> None:
    """A seq beyond the last, a fork's parent's later message, a session of somebody else."""
    branch = await fork(tenant, session, at_seq=2)
    for one, seq in ((session, 7), (branch, 3)):
        with pytest.raises(errors.NotFoundError) as caught:
            await redact(tenant, one, seq)
        assert caught.value.metadata["resource"] == "message"
    with pytest.raises(errors.NotFoundError) as caught:
        await redact(other_tenant, session, 1)
    assert caught.value.metadata["resource"] == "session"
    assert await texts(tenant, session) == "123456"


# --- lists


async def test_messages_are_listed_from_a_seq_in_either_direction(
    tenant: Tenant, session: Session
) -> None:
    """And the tail of the last n is the first page of n, newest first."""
    for page_size in (1, 2, 50):
        assert await texts(tenant, session, from_seq=3, page_size=page_size) == "3456"
        back = await texts(tenant, session, from_seq=3, page_size=page_size, order=_NEWEST_FIRST)
        assert back == "321"
    assert await texts(tenant, session, from_seq=7) == ""
    assert await texts(tenant, session, from_seq=99, order=_NEWEST_FIRST) == "654321"
    tail = ListMessagesRequest(session_id=session.session_id, page_size=2, order=_NEWEST_FIRST)
    pages = tenant.client.chat.list_messages(tail)
    assert [(await anext(pages)).content for _ in range(2)] == ["6", "5"]


async def test_messages_are_listed_by_role_type_and_time(tenant: Tenant, user: User) -> None:
    """Each filter by itself and all together, over pages; an undefined role is refused."""
    session = await tenant.new_session(user)
    made = [
        await say(tenant, session, "a"),
        await say(tenant, session, "b", role=Role.ROLE_ASSISTANT),
        await say(tenant, session, "c", message_type=MessageType.MESSAGE_TYPE_NOTICE),
        await say(tenant, session, "d", role=Role.ROLE_TOOL),
    ]
    some = [Role.ROLE_USER, Role.ROLE_TOOL]
    for page_size in (1, 50):
        assert await texts(tenant, session, roles=some, page_size=page_size) == "acd"
        notices = [MessageType.MESSAGE_TYPE_NOTICE]
        assert await texts(tenant, session, message_types=notices, page_size=page_size) == "c"
    since, before = made[1].created_at, made[3].created_at
    assert await texts(tenant, session, created_since=since) == "bcd"
    assert await texts(tenant, session, created_before=before) == "abc"
    both = await texts(
        tenant, session, created_since=since, created_before=before, roles=[Role.ROLE_USER]
    )
    assert both == "c"
    with pytest.raises(errors.InvalidFieldError):
        await messages(tenant, session, roles=[Role.ROLE_UNSPECIFIED])


async def test_a_list_of_a_fork_is_one_statement(tenant: Tenant, session: Session) -> None:
    """However many sessions share the history; and so is a message by its seq."""
    branch = await fork(tenant, await fork(tenant, session))
    with statements() as seen:
        assert await texts(tenant, branch) == "123456"
    assert len(seen) == 1
    with statements() as seen:
        request = GetMessageRequest(session_id=branch.session_id, seq=2)
        assert (await tenant.client.chat.get_message(request)).message.content == "2"
    assert len(seen) == 1


async def test_sessions_are_listed_by_their_latest_activity(tenant: Tenant, user: User) -> None:
    """A message brings its session to the front; times of activity filter; pages hold together."""
    sessions = [await tenant.new_session(user) for _ in range(5)]

    async def listed(**values: Any) -> list[int]:
        request = ListSessionsRequest(user_id=user.user_id, **values)
        found = [one.session_id async for one in tenant.client.chat.list_sessions(request)]
        return [[one.session_id for one in sessions].index(one) for one in found]

    assert await listed() == [4, 3, 2, 1, 0]
    said = [await say(tenant, sessions[place], "x") for place in (1, 3)]
    for page_size in (1, 2, 50):
        assert await listed(page_size=page_size) == [3, 1, 4, 2, 0]
    assert await listed(active_since=said[1].created_at) == [3]
    assert await listed(active_before=said[0].created_at) == [4, 2, 0]
    sessions.append(await fork(tenant, sessions[1]))  # with a message older than the fork
    assert await listed() == [5, 3, 1, 4, 2, 0]
