"""Sessions and messages, through a real channel."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.field_mask_pb2 import FieldMask
from psycopg import sql

from hub_client import AsyncHubClient
from hub_client.errors import (
    FeatureDisabledError,
    HubError,
    InvalidFieldError,
    NotFoundError,
    RequestIdReusedError,
    SeqMismatchError,
    SessionEndedError,
    SessionLimitError,
)
from hub_client.v1 import (
    AppendMessageRequest,
    CreateSessionRequest,
    EndSessionRequest,
    GetSessionRequest,
    ListMessagesRequest,
    ListSessionsRequest,
    Message,
    MessageOrder,
    MessageType,
    Role,
    Session,
    UpdateUserConfigRequest,
    User,
    UserConfig,
)
from hub_server import idempotency
from tests.integration.test_database import (
    held_session,
    occupied,
    rewritten,
    statements,
    submissions,
    token_of,
    until,
    waiting_for_locks,
)
from tests.support import Hub, Tenant, running_hub

_MEBIBYTE = 1 << 20
_OLDEST_FIRST = MessageOrder.MESSAGE_ORDER_OLDEST_FIRST
_NEWEST_FIRST = MessageOrder.MESSAGE_ORDER_NEWEST_FIRST


@pytest.fixture(scope="module")
async def second_hub(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hub]:
    """Another hub over the database of the first: its calls meet the first's in Postgres only."""
    async with running_hub(hub.owner_url, tmp_path_factory.mktemp("second")) as second:
        yield second


@pytest.fixture
async def user(tenant: Tenant) -> User:
    """A new user of the tenant."""
    return await tenant.new_user()


@pytest.fixture
async def session(tenant: Tenant, user: User) -> Session:
    """A new session of the user."""
    return await tenant.new_session(user)


# --- order


async def test_messages_are_listed_in_the_order_of_their_seq(
    tenant: Tenant, session: Session
) -> None:
    """What was appended comes back, numbered from 1, in both orders, whatever the page size."""
    texts = ["one", "two", "three"]
    for text in texts:
        await _say(tenant.client, session, text)
    expected = list(enumerate(texts, start=1))
    for page_size in (1, 2, 3, 50):
        oldest = await _listed(tenant.client, session, page_size=page_size)
        assert [(message.seq, message.content) for message in oldest] == expected
        newest = await _listed(tenant.client, session, page_size=page_size, order=_NEWEST_FIRST)
        assert [(message.seq, message.content) for message in newest] == expected[::-1]


async def test_sixteen_writers_through_two_hubs_make_one_order_without_gaps(
    tenant: Tenant, second_hub: Hub, session: Session
) -> None:
    """16 writers get seq 1..n, and what returned before another was sent has the lower seq."""
    await _assert_one_order([tenant.client, second_hub.client(tenant.key)], session)
    kept = await _get(tenant.client, session)
    assert (kept.last_seq, kept.total_tokens_used) == (16 * 6, 16 * 6)
    last = (await _listed(tenant.client, session))[-1]
    assert kept.last_message_at.ToDatetime() >= last.created_at.ToDatetime()


async def test_without_the_lock_of_the_session_the_order_is_seen_to_break(
    tenant: Tenant, second_hub: Hub, session: Session
) -> None:
    """The check above fails when the append reads its session unlocked: so it can fail."""
    clients = [tenant.client, second_hub.client(tenant.key)]

    async def race() -> None:
        for _ in range(10):
            await _assert_one_order(clients, session)

    with rewritten("FOR NO KEY UPDATE OF s") as changed, pytest.raises(AssertionError):
        await race()
    assert changed


async def test_pages_of_a_growing_session_have_neither_gap_nor_repeat(
    tenant: Tenant, session: Session
) -> None:
    """Reading page by page in either direction while others append meets each message once."""
    before = 10
    for place in range(before):
        await _say(tenant.client, session, str(place))
    growing = asyncio.gather(*(_say(tenant.client, session, "more") for _ in range(40)))
    oldest, newest = await asyncio.gather(
        _listed(tenant.client, session, page_size=3),
        _listed(tenant.client, session, page_size=3, order=_NEWEST_FIRST),
    )
    await growing
    assert [message.seq for message in oldest] == list(range(1, len(oldest) + 1))
    assert [message.seq for message in newest] == list(range(len(newest), 0, -1))
    assert min(len(oldest), len(newest)) >= before


# --- retries


async def test_a_retried_append_returns_the_same_message(tenant: Tenant, session: Session) -> None:
    """A retry answers as the first call did, adds nothing, and is told from another message."""
    values: dict[str, Any] = {
        "request_id": "r",
        "message_type": MessageType.MESSAGE_TYPE_NOTICE,
        "token_count": 7,
        "model_name": "model",
        "model_response_time_ms": 12,
        "metadata": {"a": [1, None, {"b": "c"}]},
    }
    first = await _say(tenant.client, session, "once", **values)
    await _say(tenant.client, session, "another", token_count=1)
    for _ in range(3):
        assert await _say(tenant.client, session, "once", **values) == first
    assert [message.content for message in await _listed(tenant.client, session)] == [
        "once",
        "another",
    ]
    kept = await _get(tenant.client, session)
    assert (kept.last_seq, kept.total_tokens_used) == (2, 8)


async def test_32_retries_at_once_append_one_message(tenant: Tenant, session: Session) -> None:
    """The same call 32 times at once in one process is one message, and 32 equal answers."""
    answers = await asyncio.gather(
        *(_say(tenant.client, session, "once", request_id="r") for _ in range(32))
    )
    assert answers == [answers[0]] * 32
    assert (await _get(tenant.client, session)).last_seq == 1


async def test_retries_that_race_in_two_hubs_append_one_message(
    tenant: Tenant, second_hub: Hub, session: Session
) -> None:
    """Two hubs that take the same call into statements of their own answer the same message."""
    clients = [tenant.client, second_hub.client(tenant.key)]
    with statements() as seen:
        with held_session(tenant.hub, session.session_id):
            tasks = [
                asyncio.create_task(_say(client, session, "once", request_id="r"))
                for client in clients
            ]
            await until(lambda: waiting_for_locks(tenant.hub) == 2)
        answers = await asyncio.gather(*tasks)
    # One of the two ran into the other, and had to ask again.
    assert sum("WITH call" in statement for statement in seen) == 3
    more = [_say(client, session, "once", request_id="r") for client in clients * 8]
    answers += await asyncio.gather(*more)
    assert answers == [answers[0]] * 18
    assert (await _get(tenant.client, session)).last_seq == 1


@pytest.mark.parametrize(
    "other",
    [
        {"content": "twice"},
        {"role": Role.ROLE_ASSISTANT},
        {"token_count": 0},
        {"metadata": {"a": 1}},
        {"model_name": "model"},
    ],
    ids=lambda other: next(iter(other)),
)
async def test_a_request_id_with_other_content_is_refused(
    tenant: Tenant, session: Session, other: dict[str, Any]
) -> None:
    """The id of an append cannot be spent on another one, nor in another session of the user."""
    first: dict[str, Any] = {"content": "once", "request_id": "r"}
    await _say(tenant.client, session, **first)
    with pytest.raises(RequestIdReusedError):
        await _say(tenant.client, session, **(first | other))
    elsewhere = await tenant.client.chat.create_session(
        CreateSessionRequest(user_id=session.user_id)
    )
    with pytest.raises(RequestIdReusedError):
        await _say(tenant.client, elsewhere.session, **first)
    assert (await _get(tenant.client, session)).last_seq == 1


async def test_two_contents_that_race_for_one_request_id_are_not_both_appended(
    tenant: Tenant, second_hub: Hub, session: Session
) -> None:
    """Of two texts under one id in two hubs at once, one is appended and the other refused."""
    clients = [tenant.client, second_hub.client(tenant.key)]
    with held_session(tenant.hub, session.session_id):
        tasks = [
            asyncio.create_task(_say(client, session, content, request_id="r"))
            for client, content in zip(clients, ("one", "other"), strict=True)
        ]
        await until(lambda: waiting_for_locks(tenant.hub) == 2)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert _outcomes(answers) == {"appended": 1, "REQUEST_ID_REUSED": 1}
    assert (await _get(tenant.client, session)).last_seq == 1


async def test_a_request_id_is_free_again_after_24_hours(tenant: Tenant, session: Session) -> None:
    """An id older than 24 hours appends anew, even with other content; a younger one does not."""
    first = await _say(tenant.client, session, "once", request_id="r")
    _age(tenant.hub, session, "23:59:00")
    assert await _say(tenant.client, session, "once", request_id="r") == first
    _age(tenant.hub, session, "24:00:01")
    second = await _say(tenant.client, session, "twice", request_id="r")
    assert (second.seq, second.content) == (2, "twice")
    assert await _say(tenant.client, session, "twice", request_id="r") == second


async def test_the_purge_removes_the_request_ids_that_are_over(
    tenant: Tenant, session: Session
) -> None:
    """What is older than 24 hours goes, in any tenant; what is younger stays."""
    await _say(tenant.client, session, "old", request_id="old")
    _age(tenant.hub, session, "24:00:01")
    await _say(tenant.client, session, "young", request_id="young")
    async with tenant.hub.database.system() as connection:
        assert await idempotency.purge(connection) >= 1
    ids = "SELECT request_id FROM request_ids WHERE user_id = %s"
    assert tenant.hub.sql(ids, session.user_id) == [("young",)]


# --- groups


async def test_an_item_that_fails_leaves_its_group_alone(
    tenant: Tenant, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that go to Postgres as one statement are refused or appended each for itself."""
    user, stranger = await tenant.new_user(), await tenant.new_user()
    await _configure(tenant, user, enable_tool=False)
    ended, toolless = await tenant.new_session(user), await tenant.new_session(user)
    await tenant.client.chat.end_session(EndSessionRequest(session_id=ended.session_id))
    foreign = tenant.hub.client(await token_of(tenant, stranger.user_id))
    submitted = submissions(monkeypatch)
    with statements() as seen:
        with held_session(tenant.hub, session.session_id):
            # Two groups may be under way: with both waiting, all that comes makes up the third.
            first = asyncio.create_task(_say(tenant.client, session, "first"))
            await until(lambda: waiting_for_locks(tenant.hub) == 1)
            second = asyncio.create_task(_say(tenant.client, session, "second"))
            await until(lambda: waiting_for_locks(tenant.hub) == 2)
            tasks = [
                asyncio.create_task(work)
                for work in (
                    _say(tenant.client, session, "good"),
                    _say(tenant.client, ended, "too late"),
                    _say(foreign, session, "not his"),
                    _say(tenant.client, toolless, "no tools", role=Role.ROLE_TOOL),
                    _say(tenant.client, Session(session_id=user.user_id), "nowhere"),
                    _say(tenant.client, toolless, "good"),
                    _say(tenant.client, session, "good again"),
                )
            ]
            await until(lambda: len(submitted) == 2 + len(tasks))
        answers = await asyncio.gather(first, second, *tasks, return_exceptions=True)
    assert sum("WITH call" in statement for statement in seen) == 3
    assert [_outcome(answer) for answer in answers] == [
        "appended",
        "appended",
        "appended",
        "SESSION_ENDED",
        "NOT_FOUND",
        "FEATURE_DISABLED",
        "NOT_FOUND",
        "appended",
        "appended",
    ]
    assert [one.content for one in await _listed(tenant.client, session)] == [
        "first",
        "second",
        "good",
        "good again",
    ]
    assert [one.content for one in await _listed(tenant.client, toolless)] == ["good"]


async def test_an_append_is_one_statement_and_so_is_every_read(
    tenant: Tenant, session: Session
) -> None:
    """Beside the look at the credential, an append, a list and a get go to Postgres once each."""
    await _say(tenant.client, session, "the connection carries the tenant from here on")
    calls: list[Awaitable[Any]] = [
        _say(tenant.client, session, "one", request_id="r"),
        _say(tenant.client, session, "one", request_id="r"),
        _get(tenant.client, session),
        _listed(tenant.client, session),
        _sessions_of(tenant.client, session.user_id),
    ]
    for call in calls:
        with statements() as seen:
            await call
        assert len(seen) == 1, seen


# --- what a user may do


async def test_without_enable_tool_no_tool_speaks(
    tenant: Tenant, user: User, session: Session
) -> None:
    """Role `tool` is refused from the next call on, names the flag, and others still speak."""
    await _say(tenant.client, session, "allowed", role=Role.ROLE_TOOL)
    await _configure(tenant, user, enable_tool=False)
    with pytest.raises(FeatureDisabledError) as caught:
        await _say(tenant.client, session, "refused", role=Role.ROLE_TOOL)
    assert caught.value.metadata == {"feature": "enable_tool"}
    for role in (Role.ROLE_USER, Role.ROLE_ASSISTANT, Role.ROLE_SYSTEM):
        await _say(tenant.client, session, "allowed", role=role)
    assert (await _get(tenant.client, session)).last_seq == 4


async def test_without_chat_history_no_content_is_stored_anywhere(
    tenant: Tenant, user: User, session: Session
) -> None:
    """Messages are numbered and counted, and neither content nor metadata is in any column."""
    secret, open_text = "canary-kept-secret", "canary-kept-openly"
    await _say(tenant.client, session, open_text, metadata={"note": [open_text]}, token_count=1)
    await _configure(tenant, user, enable_chat_history=False)
    values: dict[str, Any] = {"metadata": {secret: [secret]}, "request_id": "r", "token_count": 5}
    first = await _say(tenant.client, session, secret, **values)
    assert (first.seq, first.content, len(first.metadata)) == (2, "", 0)
    assert await _say(tenant.client, session, secret, **values) == first
    assert _places_of(tenant.hub, open_text) == {"chat_messages"}  # the search finds what is there
    assert _places_of(tenant.hub, secret) == set()
    with pytest.raises(FeatureDisabledError) as caught:
        await _listed(tenant.client, session)
    assert caught.value.metadata == {"feature": "enable_chat_history"}
    kept = await _get(tenant.client, session)
    assert (kept.last_seq, kept.total_tokens_used) == (2, 6)
    await _configure(tenant, user, enable_chat_history=True)
    assert [one.content for one in await _listed(tenant.client, session)] == [open_text, ""]
    assert await _say(tenant.client, session, secret, **values) == first


async def test_without_multichat_one_session_at_a_time_is_active(
    tenant: Tenant, user: User
) -> None:
    """A second active session is refused whatever max_sessions says, until the first has ended."""
    await _configure(tenant, user, enable_multichat=False, max_sessions=5)
    first = await tenant.new_session(user)
    with pytest.raises(SessionLimitError) as caught:
        await tenant.new_session(user)
    assert caught.value.metadata == {"limit": "1", "subject": "enable_multichat"}
    await tenant.client.chat.end_session(EndSessionRequest(session_id=first.session_id))
    await tenant.new_session(user)
    await _configure(tenant, user, enable_multichat=False, max_sessions=0)
    with pytest.raises(SessionLimitError):
        await tenant.new_session(user)


async def test_64_sessions_at_once_reach_the_limit_and_never_exceed_it(
    tenant: Tenant, second_hub: Hub, user: User
) -> None:
    """Of 64 concurrent starts in two hubs exactly max_sessions succeed; ending one frees one."""
    await _configure(tenant, user, max_sessions=5)
    clients = [tenant.client, second_hub.client(tenant.key)] * 32
    request = CreateSessionRequest(user_id=user.user_id)
    answers = await asyncio.gather(
        *(client.chat.create_session(request) for client in clients), return_exceptions=True
    )
    assert _outcomes(answers) == {"appended": 5, "SESSION_LIMIT": 59}
    sessions = await _sessions_of(tenant.client, user.user_id)
    assert [one.is_active for one in sessions] == [True] * 5
    await tenant.client.chat.end_session(EndSessionRequest(session_id=sessions[0].session_id))
    await tenant.new_session(user)
    with pytest.raises(SessionLimitError):
        await tenant.new_session(user)


async def test_a_limit_of_no_sessions_allows_none(tenant: Tenant, user: User) -> None:
    """max_sessions 0 is none, and absent again is no limit."""
    await _configure(tenant, user, max_sessions=0)
    with pytest.raises(SessionLimitError):
        await tenant.new_session(user)
    mask = FieldMask(paths=["max_sessions"])
    await tenant.client.identity.update_user_config(
        UpdateUserConfigRequest(config=UserConfig(user_id=user.user_id), update_mask=mask)
    )
    await tenant.new_session(user)


async def test_an_ended_session_takes_no_message_and_ends_once(
    tenant: Tenant, session: Session
) -> None:
    """Ending again changes nothing; appends are refused, but retries of earlier ones answered."""
    first = await _say(tenant.client, session, "in time", request_id="r")
    request = EndSessionRequest(session_id=session.session_id)
    ended = (await tenant.client.chat.end_session(request)).session
    assert not ended.is_active
    assert ended.HasField("ended_at")
    assert (await tenant.client.chat.end_session(request)).session == ended
    with pytest.raises(SessionEndedError):
        await _say(tenant.client, session, "too late")
    assert await _say(tenant.client, session, "in time", request_id="r") == first
    assert await _get(tenant.client, session) == ended


async def test_a_session_that_ends_among_appends_has_exactly_the_acknowledged(
    tenant: Tenant, second_hub: Hub, session: Session
) -> None:
    """Appends race with the end: each is in the session, or refused as coming too late."""
    clients = [tenant.client, second_hub.client(tenant.key)]
    writing = [
        asyncio.create_task(_say(client, session, f"{number}"))
        for number, client in enumerate(clients * 15)
    ]
    await asyncio.wait(writing, return_when=asyncio.FIRST_COMPLETED)
    ending = EndSessionRequest(session_id=session.session_id)
    ended = (await clients[1].chat.end_session(ending)).session
    answers = await asyncio.gather(*writing, return_exceptions=True)
    taken = [answer for answer in answers if isinstance(answer, Message)]
    assert set(_outcomes(answers)) <= {"appended", "SESSION_ENDED"}
    listed = await _listed(tenant.client, session)
    assert sorted(one.message_id for one in taken) == sorted(one.message_id for one in listed)
    assert ended.last_seq == len(listed)


async def test_appending_to_no_session_is_not_found(tenant: Tenant, user: User) -> None:
    """An id of nothing, or of a user, is NOT_FOUND and names what was not found."""
    for call in (
        _say(tenant.client, Session(session_id=user.user_id), "nowhere"),
        _listed(tenant.client, Session(session_id=user.user_id)),
        _get(tenant.client, Session(session_id=user.user_id)),
    ):
        with pytest.raises(NotFoundError) as caught:
            await call
        assert caught.value.metadata == {"resource": "session"}


# --- what a message holds


@pytest.mark.parametrize("text", ["x" * _MEBIBYTE, "é" * (_MEBIBYTE // 2)], ids=["ascii", "é"])
async def test_a_message_of_exactly_one_mebibyte_is_kept(
    tenant: Tenant, session: Session, text: str
) -> None:
    """1 MiB of UTF-8 comes back whole; one byte more is refused, and stores nothing."""
    await _say(tenant.client, session, text)
    with pytest.raises(InvalidFieldError) as caught:
        await _say(tenant.client, session, text + "x")
    assert [field for field, _ in caught.value.violations] == ["content"]
    assert [one.content for one in await _listed(tenant.client, session)] == [text]


async def test_texts_of_all_scripts_come_back_as_they_went(
    tenant: Tenant, session: Session
) -> None:
    """No text is normalized, trimmed or cut: emoji, combining marks, right to left, controls."""
    texts = [
        "👩‍👩‍👧‍👦 🏳️‍🌈 🇵🇹",
        "e\u0301 is not \u00e9, \u1112\u1161\u11ab is not \ud55c",
        "שלום \u202eevil\u202c مرحبا",
        "\ufeff \u200b\u00a0\t\r\n\x01\x7f trailing ",
        "\U0010ffff \uffff \U0001d518",
        "'; DROP TABLE chat_messages; -- %s %(x)s :y \\x00 \\u0000",
        " ",
        "",
    ]
    for text in texts:
        assert (await _say(tenant.client, session, text)).content == text
    assert [one.content for one in await _listed(tenant.client, session)] == texts


async def test_metadata_comes_back_as_it_went(tenant: Tenant, session: Session) -> None:
    """Nested values keep their kinds, and the answer of the append is what a list returns."""
    metadata: dict[str, Any] = {
        "text": "é👩‍👧",
        "": "an empty key",
        "numbers": [0, -1.5, 1e-300, 1e300, 2**53, 0.1],
        "flags": [True, False, None],
        "deep": {"a": {"b": [{"c": [[], {}, [[1]]]}]}},
        "times": {"rest": {}},
    }
    said = await _say(tenant.client, session, "text", metadata=metadata)
    assert json_format.MessageToDict(said.metadata) == metadata
    assert await _listed(tenant.client, session) == [said]


async def test_a_session_keeps_what_it_was_given(tenant: Tenant, user: User) -> None:
    """Title, model and metadata come back from create, get and list alike."""
    created = await tenant.new_session(
        user, session_title="Ünï 👩‍👧", model_name="m", metadata={"a": {"b": [1, None]}}
    )
    assert json_format.MessageToDict(created.metadata) == {"a": {"b": [1, None]}}
    assert (created.session_title, created.model_name) == ("Ünï 👩‍👧", "m")
    assert (created.is_active, created.last_seq, created.total_tokens_used) == (True, 0, 0)
    assert not created.HasField("last_message_at")
    assert await _get(tenant.client, created) == created
    assert await _sessions_of(tenant.client, user.user_id) == [created]


# --- helpers


@dataclass(frozen=True)
class _Sent:
    sent: float
    returned: float
    seq: int


async def _assert_one_order(clients: Sequence[AsyncHubClient], session: Session) -> None:
    """Let 16 writers append 6 messages each; assert that all of them came into one order."""
    before = (await _get(clients[0], session)).last_seq
    work = [_write(clients[number % len(clients)], session, 6) for number in range(16)]
    written = await asyncio.gather(*work, return_exceptions=True)
    failed = [one for one in written if isinstance(one, BaseException)]
    assert not failed
    all_sent = [one for some in written if isinstance(some, list) for one in some]
    seqs = sorted(one.seq for one in all_sent)
    assert seqs == list(range(before + 1, before + 1 + len(all_sent)))
    for later in all_sent:
        earlier = [one.seq for one in all_sent if one.returned < later.sent]
        assert max(earlier, default=0) < later.seq


async def _write(client: AsyncHubClient, session: Session, count: int) -> list[_Sent]:
    done = []
    for _ in range(count):
        sent = time.monotonic()
        message = await _say(client, session, "text", token_count=1)
        done.append(_Sent(sent, time.monotonic(), message.seq))
    return done


async def _say(client: AsyncHubClient, session: Session, content: str, **values: Any) -> Message:
    values.setdefault("role", Role.ROLE_USER)
    request = AppendMessageRequest(session_id=session.session_id, content=content, **values)
    return (await client.chat.append_message(request)).message


async def _get(client: AsyncHubClient, session: Session) -> Session:
    request = GetSessionRequest(session_id=session.session_id)
    return (await client.chat.get_session(request)).session


async def _listed(client: AsyncHubClient, session: Session, **values: Any) -> list[Message]:
    request = ListMessagesRequest(session_id=session.session_id, **values)
    async with asyncio.timeout(60):  # pages that repeat have no end
        return [message async for message in client.chat.list_messages(request)]


async def _sessions_of(client: AsyncHubClient, user_id: str) -> list[Session]:
    request = ListSessionsRequest(user_id=user_id)
    return [session async for session in client.chat.list_sessions(request)]


async def _configure(tenant: Tenant, user: User, **flags: Any) -> None:
    await tenant.client.identity.update_user_config(
        UpdateUserConfigRequest(config=UserConfig(user_id=user.user_id, **flags))
    )


def _outcome(answer: object) -> str:
    return answer.reason if isinstance(answer, HubError) else "appended"


def _outcomes(answers: Iterable[object]) -> dict[str, int]:
    return dict(Counter(map(_outcome, answers)))


def _age(hub: Hub, session: Session, age: str) -> None:
    """Make the request ids of a session's user as old as that."""
    statement = "UPDATE request_ids SET created_at = now() - %s::interval WHERE user_id = %s"
    hub.sql(statement, age, session.user_id)


def _places_of(hub: Hub, text: str) -> set[str]:
    """Return the tables that hold a text in any column, as text, JSON or bytes."""
    tables = hub.sql("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname !~ '^(pg|sql)_'")
    query = sql.SQL("SELECT 1 FROM {} t WHERE t::text LIKE %s OR t::text LIKE %s LIMIT 1")
    likes = [f"%{form}%" for form in (json.dumps(text)[1:-1], text.encode().hex())]
    return {
        table
        for (table,) in tables
        if hub.sql(query.format(sql.Identifier(table)).as_string(), *likes)
    }


# --- compare and append --------------------------------------------------------------------------


async def test_an_append_that_expects_another_seq_is_refused(
    tenant: Tenant, session: Session
) -> None:
    """Nothing is appended, the current seq is told, and a retry of what was appended succeeds."""
    await _say(tenant.client, session, "one", expected_seq=0, request_id="one")
    for expected in (0, 2):
        with pytest.raises(SeqMismatchError) as caught:
            await _say(tenant.client, session, "two", expected_seq=expected, request_id="two")
        assert caught.value.metadata == {"last_seq": "1"}
    await _say(tenant.client, session, "two", expected_seq=1, request_id="two")
    await _say(tenant.client, session, "one", expected_seq=0, request_id="one")
    assert [one.content for one in await _listed(tenant.client, session)] == ["one", "two"]


async def test_of_16_who_append_to_what_all_have_read_one_does(
    tenant: Tenant, second_hub: Hub, session: Session
) -> None:
    """Round after round, in two hubs: each seq is given to one of those who expected it."""
    clients = (tenant.client, second_hub.client(tenant.key))
    for last in range(5):
        answers = await asyncio.gather(
            *(
                _say(clients[number % 2], session, f"{last} {number}", expected_seq=last)
                for number in range(16)
            ),
            return_exceptions=True,
        )
        refused = [one for one in answers if isinstance(one, SeqMismatchError)]
        assert len(refused) == 15
        assert {one.metadata["last_seq"] for one in refused} == {f"{last + 1}"}
    assert [one.seq for one in await _listed(tenant.client, session)] == [1, 2, 3, 4, 5]


async def test_what_waits_together_is_compared_one_by_one(
    tenant: Tenant, session: Session, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes of a group that expects what its parts bring about, each has its place.

    Calls that are under way at once have no order, so a later one of a chain may be refused.
    """
    other = await tenant.new_session(user)
    submitted = submissions(monkeypatch)
    expectations = (0, 1, 2, 1)
    with held_session(tenant.hub, other.session_id):
        held = await occupied(tenant.hub, lambda: _say(tenant.client, other, "held"))
        tasks = []
        for expected in expectations:
            text = f"after {expected}"
            tasks.append(
                asyncio.create_task(_say(tenant.client, session, text, expected_seq=expected))
            )
            await until(lambda: len(submitted) == len(held) + len(tasks))
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*held)
    appended = [isinstance(one, SeqMismatchError) is False for one in answers]
    assert appended[0]
    assert not (appended[1] and appended[3])
    listed = await _listed(tenant.client, session)
    assert len(listed) == sum(appended)
    assert [one.content for one in listed] == [f"after {one.seq - 1}" for one in listed]
