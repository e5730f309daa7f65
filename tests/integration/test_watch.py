"""Watched sessions: everything once and in order, whatever happens to reader, hub or listener."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from hub_client import AsyncHubClient, errors
from hub_client.v1 import (
    AppendMessageRequest,
    CreateApiKeyRequest,
    DeactivateUserRequest,
    DeleteSessionRequest,
    EndSessionRequest,
    Message,
    RedactMessageRequest,
    RevokeApiKeyRequest,
    Role,
    Session,
    UpdateSessionRequest,
    UpdateUserConfigRequest,
    User,
    UserConfig,
    WatchSessionRequest,
    WatchSessionResponse,
)
from hub_client.v1.options_pb2 import Scope
from hub_server.caller import Caller
from hub_server.chat.service import ChatService
from hub_server.wakeups import Subscription, Wakeups
from tests.integration.test_batches import batch
from tests.integration.test_database import rewritten, statements, token_of, until
from tests.support import Hub, Tenant, running_hub

_KIB = 1024


@pytest.fixture(scope="module")
async def quick_hub(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hub]:
    """Another hub over the same database, whose streams are soon heard of and soon cut off."""
    folder = tmp_path_factory.mktemp("quick")
    async with running_hub(hub.owner_url, folder, heartbeat=0.2, stall=0.5) as quick:
        yield quick


@pytest.fixture
async def user(tenant: Tenant) -> User:
    """A new user of the tenant."""
    return await tenant.new_user()


@pytest.fixture
async def session(tenant: Tenant, user: User) -> Session:
    """A new session of the user."""
    return await tenant.new_session(user)


async def say(client: AsyncHubClient, session: Session, content: str) -> None:
    """Append a message."""
    await client.chat.append_message(
        AppendMessageRequest(session_id=session.session_id, role=Role.ROLE_USER, content=content)
    )


class Watch:
    """One reader of a session; its events come one by one."""

    def __init__(self, client: AsyncHubClient, session: Session, **values: Any) -> None:
        """``values`` are of WatchSessionRequest."""
        request = WatchSessionRequest(session_id=session.session_id, **values)
        self._events = client.chat.watch_session(request)

    async def next(self) -> WatchSessionResponse:
        """Return the next event that is no heartbeat, sooner than a heartbeat would bring it."""
        async with asyncio.timeout(10):
            while True:
                event = await anext(self._events)
                if event.WhichOneof("event") != "heartbeat":
                    return event

    async def text(self) -> str:
        """Return the content of the next event, which has to be a message."""
        event = await self.next()
        assert event.WhichOneof("event") == "message"
        return event.message.content

    async def close(self) -> None:
        """Leave."""
        await self._events.aclose()  # type: ignore[attr-defined]


async def test_what_is_stored_comes_first_and_then_what_is_appended(
    tenant: Tenant, session: Session
) -> None:
    """From any seq on, after the state; without a seq only what is yet to come."""
    for text in "abc":
        await say(tenant.client, session, text)
    whole, part = (
        Watch(tenant.client, session, from_seq=1),
        Watch(tenant.client, session, from_seq=3),
    )
    new, later = Watch(tenant.client, session), Watch(tenant.client, session, from_seq=5)
    for watch in (whole, part, new, later):
        assert (await watch.next()).session.last_seq == 3
    assert [await whole.text() for _ in range(3)] == ["a", "b", "c"]
    assert await part.text() == "c"
    await say(tenant.client, session, "d")
    assert [await one.text() for one in (whole, part, new)] == ["d"] * 3
    await say(tenant.client, session, "e")
    assert [await one.text() for one in (whole, part, new, later)] == ["e"] * 4
    for watch in (whole, part, new, later):
        await watch.close()


async def test_a_change_of_the_state_is_told(tenant: Tenant, session: Session) -> None:
    """A new title, a redaction and the end come as the session; messages do not bring it."""
    watch, chat = Watch(tenant.client, session, from_seq=1), tenant.client.chat
    about = session.session_id
    await watch.next()
    await say(tenant.client, session, "a")
    assert await watch.text() == "a"
    await chat.update_session(UpdateSessionRequest(session_id=about, session_title="Tea"))
    assert (await watch.next()).session.session_title == "Tea"
    await chat.redact_message(RedactMessageRequest(session_id=about, seq=1))
    assert (await watch.next()).session.redaction_count == 1
    await chat.end_session(EndSessionRequest(session_id=about))
    assert not (await watch.next()).session.is_active
    await watch.close()


async def test_what_comes_while_the_session_is_read_is_not_missed(
    tenant: Tenant, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is told of between the look at the session and the wait wakes the reader."""
    subscriptions: list[Subscription] = []
    subscribe, read = Wakeups.subscribe, ChatService.get_session

    def noted(wakeups: Wakeups, key: str) -> Subscription:
        subscriptions.append(subscribe(wakeups, key))
        return subscriptions[-1]

    async def read_and_append(chat: ChatService, caller: Caller, session_id: str) -> Any:
        row = await read(chat, caller, session_id)
        if row["last_seq"] == 0:
            await say(tenant.client, session, "meanwhile")
            await until(subscriptions[0].changed.is_set)
        return row

    monkeypatch.setattr(Wakeups, "subscribe", noted)
    monkeypatch.setattr(ChatService, "get_session", read_and_append)
    watch = Watch(tenant.client, session, from_seq=1)
    assert (await watch.next()).session.last_seq == 0
    assert await watch.text() == "meanwhile"
    await watch.close()


async def test_a_long_history_comes_in_order(tenant: Tenant, session: Session) -> None:
    """More than a page of the hub's own reading, and some of it large."""
    texts = [str(place) for place in range(250)] + ["x" * 900 * _KIB] * 4
    for start in range(0, len(texts), 252):
        await batch(tenant.client, session, texts[start : start + 252])
    watch = Watch(tenant.client, session, from_seq=1)
    await watch.next()
    assert [await watch.text() for _ in texts] == texts
    await watch.close()


async def test_a_reader_who_reconnects_at_random_sees_each_message_once(
    tenant: Tenant, quick_hub: Hub, session: Session
) -> None:
    """4 writers and a reader over two hubs: exactly 1 to n, in order, none lost, none repeated."""
    chance = random.Random(4)  # noqa: S311 - no secret
    clients = [tenant.client, quick_hub.client(tenant.key)]
    count = 4 * 40

    async def write(place: int) -> None:
        for number in range(count // 4):
            await say(clients[number % 2], session, f"{place}-{number}")

    writing = asyncio.gather(*(write(place) for place in range(4)))
    seen: list[int] = []
    while len(seen) < count:
        watch = Watch(chance.choice(clients), session, from_seq=len(seen) + 1)
        for _ in range(chance.randrange(1, 12)):
            event = await watch.next()
            if event.WhichOneof("event") == "message":
                seen.append(event.message.seq)
            if len(seen) == count:
                break
        await watch.close()
    await writing
    assert seen == list(range(1, count + 1))


async def test_without_a_word_from_postgres_a_reader_still_gets_everything(
    tenant: Tenant, quick_hub: Hub, session: Session
) -> None:
    """When nothing is told of a commit, the heartbeat's look at the session finds it."""
    watch = Watch(quick_hub.client(tenant.key), session, from_seq=1)
    await watch.next()
    with rewritten("pg_notify", "concat_ws") as changed:
        await say(tenant.client, session, "a")
    assert changed
    assert await watch.text() == "a"
    await watch.close()


async def test_a_lost_listener_is_replaced(tenant: Tenant, session: Session) -> None:
    """Its connection is ended by Postgres; a message meanwhile arrives, and later ones promptly."""
    watch = Watch(tenant.client, session, from_seq=1)
    await watch.next()
    ended = tenant.hub.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE 'LISTEN%%' AND state = 'idle'"
    )
    assert ended
    await say(tenant.client, session, "a")
    assert await watch.text() == "a"
    await until(lambda: _listeners(tenant.hub) >= len(ended))
    await say(tenant.client, session, "b")
    assert await watch.text() == "b"
    await watch.close()


def _listeners(hub: Hub) -> int:
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE 'LISTEN%%'"
    )
    return int(hub.sql(query)[0][0])


async def test_a_quiet_stream_says_where_it_is(
    tenant: Tenant, quick_hub: Hub, session: Session
) -> None:
    """A heartbeat tells the seq to go on from."""
    await say(tenant.client, session, "a")
    request = WatchSessionRequest(session_id=session.session_id, from_seq=1)
    events = quick_hub.client(tenant.key).chat.watch_session(request)
    async with asyncio.timeout(20):
        kinds = [await anext(events) for _ in range(4)]
    assert [one.WhichOneof("event") for one in kinds] == [
        "session",
        "message",
        "heartbeat",
        "heartbeat",
    ]
    assert kinds[-1].heartbeat.next_seq == 2
    await events.aclose()  # type: ignore[attr-defined]


async def test_a_stream_ends_with_the_session(tenant: Tenant, session: Session) -> None:
    """Deleting it tells its readers; one who comes later is told the same."""
    watch = Watch(tenant.client, session)
    await watch.next()
    await tenant.client.chat.delete_session(DeleteSessionRequest(session_id=session.session_id))
    for one in (watch, Watch(tenant.client, session)):
        with pytest.raises(errors.NotFoundError):
            await one.next()


async def test_a_stream_ends_when_access_is_lost(
    tenant: Tenant, quick_hub: Hub, user: User, session: Session
) -> None:
    """No message follows a disabled user, a revoked key or a history that is switched off."""
    new_key = CreateApiKeyRequest(name="A reader", scopes=[Scope.SCOPE_CHAT_READ])
    made = await tenant.client.identity.create_api_key(new_key)
    others = [await tenant.new_session(await tenant.new_user()) for _ in range(2)]
    token = await token_of(tenant, user.user_id)
    clients = [quick_hub.client(token), quick_hub.client(tenant.key), quick_hub.client(made.secret)]
    watches = [Watch(client, one) for client, one in zip(clients, (session, *others), strict=True)]
    for watch in watches:
        await watch.next()
    identity = tenant.client.identity
    await identity.deactivate_user(DeactivateUserRequest(user_id=user.user_id))
    config = UserConfig(user_id=others[0].user_id, enable_chat_history=False)
    await identity.update_user_config(UpdateUserConfigRequest(config=config))
    await identity.revoke_api_key(RevokeApiKeyRequest(api_key_id=made.api_key.api_key_id))
    await say(tenant.client, others[1], "not for a revoked key")
    wanted = (
        errors.CredentialInvalidError,
        errors.FeatureDisabledError,
        errors.CredentialInvalidError,
    )
    for watch, kind in zip(watches, wanted, strict=True):
        with pytest.raises(kind):
            await watch.next()


async def test_a_foreign_session_cannot_be_watched(
    tenant: Tenant, other_tenant: Tenant, session: Session
) -> None:
    """Another tenant, and another user of the same, are answered as if it did not exist."""
    stranger = await token_of(tenant, (await tenant.new_user()).user_id)
    for client in (other_tenant.client, tenant.hub.client(stranger)):
        with pytest.raises(errors.NotFoundError):
            await Watch(client, session).next()


async def test_a_reader_who_does_not_read_is_cut_off(
    tenant: Tenant, quick_hub: Hub, session: Session
) -> None:
    """The hub ends the stream, keeps nothing for it, and the reader goes on where he stopped."""
    texts = ["x" * 256 * _KIB] * 16
    await batch(tenant.client, session, texts)
    options = (("grpc.http2.lookahead_bytes", 64 * _KIB), ("grpc.http2.bdp_probe", 0))
    async with grpc.aio.insecure_channel(quick_hub.address, options=options) as channel:
        call = channel.unary_stream(
            "/hub.v1.ChatService/WatchSession",
            request_serializer=WatchSessionRequest.SerializeToString,
            response_deserializer=WatchSessionResponse.FromString,
        )(
            WatchSessionRequest(session_id=session.session_id, from_seq=1),
            metadata=(("authorization", f"Bearer {tenant.key}"),),
        )
        await call.read()
        with capture_logs() as lines:
            await until(lambda: any("WatchSession" in line.get("method", "") for line in lines))
        seen = await _read_to_the_end(call)
        assert await call.code() == grpc.StatusCode.ABORTED
    assert seen < len(texts)
    watch = Watch(tenant.client, session, from_seq=seen + 1)
    await watch.next()
    assert [await watch.text() for _ in texts[seen:]] == texts[seen:]
    await watch.close()


async def _read_to_the_end(call: Any) -> int:
    """Return how many messages came before the stream failed."""
    seen = 0
    try:
        while True:
            seen += (await call.read()).WhichOneof("event") == "message"
    except grpc.aio.AioRpcError:
        return seen


async def test_idle_readers_cost_no_connection(tenant: Tenant, session: Session) -> None:
    """200 readers of a session hold none of Postgres, and all of them get the next message."""

    def connections() -> int:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        return int(tenant.hub.sql(query)[0][0])

    before = connections()
    watches = [Watch(tenant.client, session) for _ in range(200)]
    await asyncio.gather(*(watch.next() for watch in watches))
    pool = tenant.hub.settings.pool_size
    assert connections() <= before + pool
    await say(tenant.client, session, "a")
    assert await asyncio.gather(*(watch.text() for watch in watches)) == ["a"] * 200
    for watch in watches:
        await watch.close()


async def test_more_readers_than_calls_are_all_served(
    hub: Hub, tenant: Tenant, session: Session, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A change that wakes more streams than calls are allowed ends none, and holds up no call."""
    folder = tmp_path_factory.mktemp("few")
    async with running_hub(hub.owner_url, folder, max_calls=5, max_streams=60) as few:
        client = few.client(tenant.key)
        watches = [Watch(client, session) for _ in range(60)]
        for start in range(0, 60, 5):
            await asyncio.gather(*(watch.next() for watch in watches[start : start + 5]))
        with pytest.raises(errors.OverloadedError):
            await Watch(client, session).next()
        for text in "ab":
            await say(client, session, text)
        for text in "ab":
            assert await asyncio.gather(*(watch.text() for watch in watches)) == [text] * 60
        for watch in watches:
            await watch.close()
        watch = Watch(client, session)
        await watch.next()  # there is room again
        await watch.close()


async def test_streams_that_are_left_while_they_begin_leave_nothing_behind(
    tenant: Tenant, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However early a reader goes, nobody waits for the session on its behalf."""
    all_wakeups: set[Wakeups] = set()
    remember = Wakeups.remember

    def noted(wakeups: Wakeups, key: str, subscription: Subscription) -> None:
        all_wakeups.add(wakeups)
        remember(wakeups, key, subscription)

    monkeypatch.setattr(Wakeups, "remember", noted)
    request = WatchSessionRequest(session_id=session.session_id)
    for number in range(120):
        timeout = number % 40 / 1000  # from none to well after the first event
        with suppress(errors.DeadlineExceededError, TimeoutError):
            async for _ in tenant.client.chat.watch_session(request, timeout=timeout + 0.001):
                break
    assert all_wakeups
    await until(lambda: not any(session.session_id in one._waiting for one in all_wakeups))


async def test_what_is_redacted_is_not_sent_to_a_reader_who_paused(
    tenant: Tenant, session: Session
) -> None:
    """What was read before his pause is read again after it, and so is who he may be."""
    texts = ["x" * 60 * _KIB] * 60
    await batch(tenant.client, session, texts)
    options = (("grpc.http2.lookahead_bytes", 64 * _KIB), ("grpc.http2.bdp_probe", 0))
    async with grpc.aio.insecure_channel(tenant.hub.address, options=options) as channel:
        call = channel.unary_stream(
            "/hub.v1.ChatService/WatchSession",
            request_serializer=WatchSessionRequest.SerializeToString,
            response_deserializer=WatchSessionResponse.FromString,
        )(
            WatchSessionRequest(session_id=session.session_id, from_seq=1),
            metadata=(("authorization", f"Bearer {tenant.key}"),),
        )
        await call.read()
        redact = RedactMessageRequest(session_id=session.session_id, seq=30)
        await asyncio.sleep(0.5)  # the reader's pause
        await tenant.client.chat.redact_message(redact)
        seen: list[Message] = []
        while len(seen) < len(texts):
            event: Any = await call.read()
            seen += [event.message] if event.HasField("message") else []
        call.cancel()
    assert [one.seq for one in seen] == list(range(1, 61))
    assert [one.content for one in seen] == [*texts[:29], "", *texts[30:]]


async def test_where_nobody_listens_there_are_no_more_heartbeats(
    hub: Hub,
    tenant: Tenant,
    session: Session,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As behind a pooler: a session is looked at again and again, and its reader hears no more."""

    async def listen(_: Wakeups) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("hub_server.wakeups._POLL_SECONDS", 0.01)
    monkeypatch.setattr(Wakeups, "_listen", listen)
    async with running_hub(hub.owner_url, tmp_path_factory.mktemp("deaf")) as deaf:
        request = WatchSessionRequest(session_id=session.session_id)
        watch = deaf.client(tenant.key).chat.watch_session(request)
        assert (await anext(watch)).HasField("session")
        with statements() as seen:
            await until(lambda: len(seen) > 20)
        await say(tenant.client, session, "a")
        assert (await anext(watch)).message.content == "a"
        await watch.aclose()  # type: ignore[attr-defined]


async def test_a_hub_that_stops_tells_its_readers_to_come_back(
    hub: Hub, tenant: Tenant, session: Session, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """UNAVAILABLE, at once; and another hub goes on where it stopped."""
    folder = tmp_path_factory.mktemp("stopping")
    async with running_hub(hub.owner_url, folder, heartbeat=1) as stopping:
        client = AsyncHubClient(stopping.address, tenant.key)
        events = client.chat.watch_session(WatchSessionRequest(session_id=session.session_id))
        while not (await anext(events)).HasField("heartbeat"):
            pass
        await say(client, await tenant.new_session(await tenant.new_user()), "a")
        # By now the stream waits for news of its own session.
    with pytest.raises(errors.UnavailableError) as caught:
        await anext(events)
    assert caught.value.retry_after == 0.5  # so it is the hub's answer, not a lost connection
    await client.close()
    await say(tenant.client, session, "a")
    again = Watch(tenant.client, session, from_seq=1)
    await again.next()
    assert await again.text() == "a"
    await again.close()


async def test_a_client_follows_a_session_through_restarts_of_the_hub(
    hub: Hub, tenant: Tenant, session: Session, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The hub it is connected to goes and comes back; what was appended meanwhile is there once."""
    folder = tmp_path_factory.mktemp("restarted")
    async with running_hub(hub.owner_url, folder) as first:
        address = first.address
        client = AsyncHubClient(address, tenant.key)
        events = client.follow(session.session_id)
        assert (await anext(events)).session.last_seq == 0
        await say(tenant.client, session, "a")
        assert (await anext(events)).message.content == "a"
    await say(tenant.client, session, "b")
    async with asyncio.timeout(30), running_hub(hub.owner_url, folder, listen=address):
        assert (await anext(events)).session.last_seq == 2
        assert (await anext(events)).message.content == "b"
        await say(tenant.client, session, "c")
        assert (await anext(events)).message.content == "c"
        await tenant.client.chat.delete_session(DeleteSessionRequest(session_id=session.session_id))
        with pytest.raises(errors.NotFoundError):
            await anext(events)
    await client.close()


async def test_a_stream_may_have_a_deadline(tenant: Tenant, session: Session) -> None:
    """It ends there, as the caller asked."""
    request = WatchSessionRequest(session_id=session.session_id)
    with pytest.raises(errors.DeadlineExceededError):
        async for _ in tenant.client.chat.watch_session(request, timeout=0.5):
            pass
