"""Messages appended together, and tokens that the hub counts."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from hub_client import AsyncHubClient, errors
from hub_client.v1 import (
    AppendedMessage,
    AppendMessageRequest,
    BatchAppendMessagesRequest,
    BatchMessage,
    EndSessionRequest,
    GetMessageRequest,
    GetUsageRequest,
    ListMessagesRequest,
    Message,
    MessageType,
    Role,
    Session,
    UpdateUserConfigRequest,
    User,
    UserConfig,
)
from hub_server.tokenizer import Tokenizer
from tests.integration.test_database import (
    held_session,
    occupied,
    statements,
    submissions,
    until,
)
from tests.support import Tenant


@pytest.fixture
async def user(tenant: Tenant) -> User:
    """A new user of the tenant."""
    return await tenant.new_user()


@pytest.fixture
async def session(tenant: Tenant, user: User) -> Session:
    """A new session of the user."""
    return await tenant.new_session(user)


async def batch(
    client: AsyncHubClient, session: Session, texts: Sequence[str], **values: Any
) -> Sequence[AppendedMessage]:
    """Append texts together."""
    messages = [BatchMessage(role=Role.ROLE_USER, content=text, token_count=1) for text in texts]
    request = BatchAppendMessagesRequest(session_id=session.session_id, messages=messages, **values)
    return (await client.chat.batch_append_messages(request)).appended_messages


async def listed(tenant: Tenant, session: Session) -> list[Message]:
    """Return all messages of a session."""
    request = ListMessagesRequest(session_id=session.session_id)
    return [one async for one in tenant.client.chat.list_messages(request)]


async def give(tenant: Tenant, user: User, **values: Any) -> None:
    """Configure a user."""
    config = UserConfig(user_id=user.user_id, **values)
    await tenant.client.identity.update_user_config(UpdateUserConfigRequest(config=config))


async def test_a_batch_is_one_statement_and_keeps_its_order(
    tenant: Tenant, session: Session
) -> None:
    """500 messages get 500 seqs in a row, in one statement, and every field of theirs is kept."""
    texts = [str(place) for place in range(500)]
    with statements() as seen:
        appended = await batch(tenant.client, session, texts)
    assert len(seen) == 1
    assert [one.seq for one in appended] == list(range(1, 501))
    kept = await listed(tenant, session)
    assert [one.content for one in kept] == texts
    assert [one.message_id for one in kept] == [one.message_id for one in appended]
    full = BatchMessage(
        role=Role.ROLE_ASSISTANT, content="é", message_type=MessageType.MESSAGE_TYPE_ERROR,
        token_count=7, model_name="m", model_response_time_ms=12,
    )  # fmt: skip
    full.metadata.update({"a": [1, None]})
    request = BatchAppendMessagesRequest(session_id=session.session_id, messages=[full])
    await tenant.client.chat.batch_append_messages(request)
    get = GetMessageRequest(session_id=session.session_id, seq=501)
    stored = (await tenant.client.chat.get_message(get)).message
    for field in BatchMessage.DESCRIPTOR.fields:
        assert getattr(stored, field.name) == getattr(full, field.name), field.name


async def test_a_batch_is_appended_whole_or_not_at_all(
    tenant: Tenant, user: User, session: Session
) -> None:
    """One message too many for the budget, one tool where none is allowed: nothing is stored."""
    await give(tenant, user, max_tokens=3)
    with pytest.raises(errors.TokenBudgetError):
        await batch(tenant.client, session, ["a"] * 4)
    await give(tenant, user, max_tokens=100, enable_tool=False)
    tool = BatchMessage(role=Role.ROLE_TOOL, content="b")
    said = BatchMessage(role=Role.ROLE_USER, content="a")
    request = BatchAppendMessagesRequest(session_id=session.session_id, messages=[said, tool])
    with pytest.raises(errors.FeatureDisabledError):
        await tenant.client.chat.batch_append_messages(request)
    assert await listed(tenant, session) == []
    usage = await tenant.client.identity.get_usage(GetUsageRequest(user_id=user.user_id))
    assert usage.usage.total_tokens_used == 0


async def test_a_retried_batch_answers_as_the_first_one_did(
    tenant: Tenant, session: Session
) -> None:
    """The same ids and seqs, however often it is retried; another content is refused."""
    first = await batch(tenant.client, session, ["a", "b", "c"], request_id="r")
    await batch(tenant.client, session, ["x"])
    for _ in range(2):
        assert await batch(tenant.client, session, ["a", "b", "c"], request_id="r") == first
    with pytest.raises(errors.RequestIdReusedError):
        await batch(tenant.client, session, ["a", "b"], request_id="r")
    assert [one.content for one in await listed(tenant, session)] == ["a", "b", "c", "x"]


async def test_batches_and_messages_of_one_group_keep_their_place(
    tenant: Tenant, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one statement calls of several sizes get seqs in order, and one that fails leaves none."""
    other = await tenant.new_session(await tenant.new_user())
    ended = await tenant.new_session(await tenant.new_user())
    await tenant.client.chat.end_session(EndSessionRequest(session_id=ended.session_id))
    submitted = submissions(monkeypatch)
    with held_session(tenant.hub, session.session_id):
        tasks = await occupied(tenant.hub, lambda: batch(tenant.client, session, ["a"]))
        for at, texts in ((session, "bc"), (ended, "no"), (other, "xyz"), (session, "d")):
            tasks.append(asyncio.create_task(batch(tenant.client, at, list(texts))))
            await until(lambda: len(submitted) == len(tasks))
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in answers].count(errors.SessionEndedError) == 1
    assert [one.content for one in await listed(tenant, session)] == ["a", "a", "b", "c", "d"]
    assert [one.content for one in await listed(tenant, other)] == ["x", "y", "z"]


async def test_a_batch_expects_a_seq(tenant: Tenant, session: Session) -> None:
    """`expected_seq` holds for a batch as for a message."""
    await batch(tenant.client, session, ["a", "b"], expected_seq=0)
    with pytest.raises(errors.SeqMismatchError) as caught:
        await batch(tenant.client, session, ["c"], expected_seq=1)
    assert caught.value.metadata["last_seq"] == "2"
    assert (await batch(tenant.client, session, ["c"], expected_seq=2))[0].seq == 3


async def test_tokens_that_the_caller_did_not_count_are_counted(
    tenant: Tenant, user: User, session: Session
) -> None:
    """With the tokenizer's vocabulary, for messages short and long; 0 is a count, too."""
    texts = ["Is green tea better than black?", "", "word " * 10_000]
    counts = await Tokenizer().counts(texts)
    assert counts[:2] == [7, 0]
    assert 10_000 <= counts[2] <= 20_100
    for text, count in zip(texts, counts, strict=True):
        request = AppendMessageRequest(
            session_id=session.session_id, role=Role.ROLE_USER, content=text
        )
        assert (await tenant.client.chat.append_message(request)).message.token_count == count
    counted, given = (
        BatchMessage(role=Role.ROLE_USER, content=texts[0]),
        BatchMessage(role=Role.ROLE_USER, token_count=0),
    )
    both = BatchAppendMessagesRequest(session_id=session.session_id, messages=[counted, given])
    answer = await tenant.client.chat.batch_append_messages(both)
    assert [one.token_count for one in answer.appended_messages] == [7, 0]
    usage = await tenant.client.identity.get_usage(GetUsageRequest(user_id=user.user_id))
    assert usage.usage.total_tokens_used == sum(counts) + 7


async def test_without_chat_history_a_batch_leaves_no_content(
    tenant: Tenant, user: User, session: Session
) -> None:
    """Its messages are numbered and counted, by the hub too, and their words are nowhere."""
    await give(tenant, user, enable_chat_history=False)
    appended = await batch(tenant.client, session, ["canary-in-a-batch"] * 2, request_id="r")
    assert [one.seq for one in appended] == [1, 2]
    rows = tenant.hub.sql(
        "SELECT to_jsonb(m), to_jsonb(r) FROM chat_messages m, request_ids r"
        " WHERE m.session_id = %s AND r.tenant_id = m.tenant_id",
        session.session_id,
    )
    assert rows
    assert "canary" not in json.dumps(rows)
