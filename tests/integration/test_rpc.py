"""The one path of every call: given up, too slow, too many, cut off, broken, drained."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
import sqlalchemy as sa
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message as ProtoMessage
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from structlog.testing import capture_logs

from hub_client import errors
from hub_client.v1 import (
    AppendMessageRequest,
    CreateSessionRequest,
    GetSessionRequest,
    ListMessagesRequest,
    Role,
    SearchRequest,
    Session,
    User,
)
from hub_server.ids import new_id
from hub_server.server import SERVICES, serving
from hub_server.settings import Settings
from tests.contract.wire import sending
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

METHODS = {method.name: method for service in SERVICES.values() for method in service.methods}
_OK = grpc.StatusCode.OK


@dataclass(frozen=True)
class Answer:
    """All that a call answered, as it crossed the wire; equal ones differ in their id only."""

    code: grpc.StatusCode
    request_id: str = field(compare=False)
    """Of the trailing metadata."""
    response: Any = None
    status: status_pb2.Status | None = None
    """Of a refusal by the hub, without the request id."""
    raw: bytes = field(default=b"", compare=False)
    """The message and all trailing metadata of a refusal."""

    @property
    def reason(self) -> str:
        """Why the call was refused; empty = it was not, or not by the hub."""
        info = self.detail(error_details_pb2.ErrorInfo)
        return "" if info is None else str(info.reason)

    def detail(self, kind: type[ProtoMessage]) -> Any:
        """Return the detail of that kind, or None."""
        for detail in self.status.details if self.status else ():
            found = kind()
            if detail.Unpack(found):
                return found
        return None


async def ask(
    channel: grpc.aio.Channel,
    method: MethodDescriptor,
    request: ProtoMessage | bytes,
    key: str | None,
    *,
    timeout: float | None = 30,  # noqa: ASYNC109 - a deadline on the wire
    request_id: str | None = None,
) -> Answer:
    """Make one call with nothing in between: no retries, no request id of its own.

    Of a stream it is the first message that is answered; then the stream is cancelled.
    """
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    if method.server_streaming:
        return await _first_of(channel, method, raw, key, request_id)
    call = sent(channel, method, raw, key, timeout, request_id)
    try:
        response = GetMessageClass(method.output_type).FromString(await call)
    except grpc.aio.AioRpcError as error:
        return _refusal(error)
    trailers = dict(await call.trailing_metadata())
    return Answer(_OK, str(trailers["x-request-id"]), response)


async def _first_of(
    channel: grpc.aio.Channel,
    method: MethodDescriptor,
    request: bytes,
    key: str | None,
    request_id: str | None,
) -> Answer:
    multi: Any = channel.unary_stream(_path(method))
    call = multi(request, timeout=30, metadata=_metadata(key, request_id))
    try:
        response = GetMessageClass(method.output_type).FromString(await call.read())
    except grpc.aio.AioRpcError as error:
        return _refusal(error)
    bears = dict(await call.initial_metadata())
    call.cancel()
    return Answer(grpc.StatusCode.CANCELLED, str(bears["x-request-id"]), response)


def sent(
    channel: grpc.aio.Channel,
    method: MethodDescriptor,
    request: bytes,
    key: str | None,
    timeout: float | None,
    request_id: str | None = None,
) -> grpc.aio.UnaryUnaryCall[bytes, bytes]:
    """Send a call and return it without waiting for its answer."""
    call: grpc.aio.UnaryUnaryCall[bytes, bytes] = sending(
        channel, method, request, timeout=timeout, metadata=_metadata(key, request_id)
    )
    return call


def _path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def _metadata(key: str | None, request_id: str | None) -> tuple[tuple[str, str], ...]:
    bearer = (("authorization", f"Bearer {key}"),) if key is not None else ()
    return bearer if request_id is None else (*bearer, ("x-request-id", request_id))


def _refusal(error: grpc.aio.AioRpcError) -> Answer:
    trailers = dict(error.trailing_metadata() or ())
    raw = repr((error.details(), trailers)).encode()
    details = trailers.get("grpc-status-details-bin")
    if not isinstance(details, bytes):
        return Answer(error.code(), str(trailers.get("x-request-id", "")), raw=raw)
    status = status_pb2.Status.FromString(details)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            assert info.metadata.pop("request_id") == trailers["x-request-id"]
            detail.Pack(info)
    return Answer(error.code(), str(trailers["x-request-id"]), status=status, raw=raw)


@pytest.fixture
async def channel(hub: Hub) -> AsyncIterator[grpc.aio.Channel]:
    """A bare channel to the session's hub."""
    async with grpc.aio.insecure_channel(hub.address) as channel:
        yield channel


@pytest.fixture
async def user(tenant: Tenant) -> User:
    """A new user of the tenant."""
    return await tenant.new_user()


@pytest.fixture
async def session(tenant: Tenant, user: User) -> Session:
    """A new session of the user."""
    return await tenant.new_session(user)


async def test_an_append_that_its_client_gave_up_is_done_whole(
    tenant: Tenant, channel: grpc.aio.Channel, session: Session
) -> None:
    """Cancelled while Postgres worked, the message is there with its seq, and a retry gets it."""
    request = _append(session, "given up", request_id="r")
    with held_session(tenant.hub, session.session_id):
        call = sent(channel, METHODS["AppendMessage"], request.SerializeToString(), tenant.key, 20)
        await until(lambda: waiting_for_locks(tenant.hub) == 1)
        assert call.cancel()
        assert await call.code() == grpc.StatusCode.CANCELLED
        assert waiting_for_locks(tenant.hub) == 1, "the statement was not torn"
    await _until_messages(tenant, session, 1)
    retried = await tenant.client.chat.append_message(request)
    assert (retried.message.seq, retried.message.content) == (1, "given up")
    assert (await _say(tenant, session, "next")).response.message.seq == 2


async def test_a_transaction_that_its_client_gave_up_is_done_whole(
    tenant: Tenant, channel: grpc.aio.Channel, user: User
) -> None:
    """Cancelled between its statements, session and request id are both there afterwards."""
    request = CreateSessionRequest(user_id=user.user_id, request_id="r")
    lock = "SELECT 1 FROM user_configs WHERE user_id = %s FOR UPDATE"
    with held(tenant.hub, lock, user.user_id):
        call = sent(channel, METHODS["CreateSession"], request.SerializeToString(), tenant.key, 20)
        await until(lambda: waiting_for_locks(tenant.hub) == 1)
        call.cancel()
        assert await call.code() == grpc.StatusCode.CANCELLED
    count = "SELECT count(*) FROM chat_sessions WHERE user_id = %s"
    await until(lambda: tenant.hub.sql(count, user.user_id) == [(1,)])
    first = (await tenant.client.chat.create_session(request)).session
    assert (await tenant.client.chat.create_session(request)).session == first
    assert tenant.hub.sql(count, user.user_id) == [(1,)]


async def test_work_beyond_its_deadline_is_answered_in_time_and_stopped_in_postgres(
    tenant: Tenant, channel: grpc.aio.Channel, session: Session
) -> None:
    """The caller gets DEADLINE_EXCEEDED when due, the statement is cancelled, nothing is written.

    The lock it waits for is held throughout: only the time limit can have ended it.
    """
    with held_session(tenant.hub, session.session_id):
        began = time.monotonic()
        late = asyncio.create_task(
            ask(
                channel,
                METHODS["AppendMessage"],
                _append(session, "late"),
                tenant.key,
                timeout=1.5,
            )
        )
        await until(lambda: waiting_for_locks(tenant.hub) == 1)
        assert (await late).code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - began < 3
        await until(lambda: waiting_for_locks(tenant.hub) == 0)
        assert time.monotonic() - began < 10
    assert (await _say(tenant, session, "next")).response.message.seq == 1


async def test_the_log_tells_of_work_that_was_done_too_late(
    tenant: Tenant, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code is what came of it; whoever asked was told DEADLINE_EXCEEDED."""
    is_told = threading.Event()

    def mark(_: object, __: object, found: Any) -> Any:
        assert is_told.wait(30)
        return found

    monkeypatch.setattr("hub_server.knowledge.search._highlighted", mark)
    request = SearchRequest(user_id=user.user_id, query="owls")
    with capture_logs() as lines:
        with pytest.raises(errors.DeadlineExceededError):
            await tenant.client.knowledge.search(request, timeout=0.3)
        is_told.set()
        await until(lambda: bool(lines))
    assert [(line["code"], line["is_late"]) for line in lines] == [("OK", True)]


async def test_a_call_without_a_deadline_gets_the_hubs(
    owner_url: str, tmp_path: Path, hub: Hub, tenant: Tenant, session: Session
) -> None:
    """The setting `default_deadline` ends it, and the refusal says why and bears its id."""
    async with (
        running_hub(owner_url, tmp_path, default_deadline=0.3) as hasty,
        grpc.aio.insecure_channel(hasty.address) as channel,
    ):
        with held_session(hub, session.session_id):
            began = time.monotonic()
            answer = await ask(
                channel,
                METHODS["AppendMessage"],
                _append(session, "late"),
                tenant.key,
                timeout=None,
                request_id="mine",
            )
            assert time.monotonic() - began < 5
            assert (answer.reason, answer.code) == (
                "DEADLINE_EXCEEDED",
                grpc.StatusCode.DEADLINE_EXCEEDED,
            )
            assert answer.request_id == "mine"
            await until(lambda: waiting_for_locks(hub) == 0)


async def test_calls_beyond_the_most_are_overloaded_and_the_others_are_served(
    owner_url: str,
    tmp_path: Path,
    tenant: Tenant,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With `max_calls` in progress any other is refused with RetryInfo; then all goes on."""
    async with (
        running_hub(owner_url, tmp_path, max_calls=4) as small,
        grpc.aio.insecure_channel(small.address) as channel,
    ):
        get = GetSessionRequest(session_id=session.session_id)
        submitted = submissions(monkeypatch)
        with held_session(tenant.hub, session.session_id):
            appends = [
                asyncio.create_task(
                    ask(channel, METHODS["AppendMessage"], _append(session, "x"), tenant.key)
                )
                for _ in range(4)
            ]
            await until(lambda: len(submitted) == 4)
            refused = await ask(channel, METHODS["GetSession"], get, tenant.key)
            assert refused.reason == "OVERLOADED"
            assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED
            pause = refused.detail(error_details_pb2.RetryInfo).retry_delay
            assert pause.ToMilliseconds() == 500
        assert [answer.code for answer in await asyncio.gather(*appends)] == [_OK] * 4
        served = await ask(channel, METHODS["GetSession"], get, tenant.key)
        assert served.response.session.last_seq == 4


async def test_killed_connections_cost_unavailable_answers_and_no_acknowledged_message(
    empty_database: str, tmp_path: Path
) -> None:
    """While backends are terminated under load, each call is served or UNAVAILABLE.

    Whoever repeats the latter with the same request id gets its message into the session once.
    """
    async with (
        own_hub(empty_database, tmp_path, pool_size=4) as hub,
        grpc.aio.insecure_channel(hub.address) as channel,
    ):
        tenant = await hub.new_tenant()
        session = await tenant.new_session(await tenant.new_user())
        refusals = done = 0

        async def write(writer: int) -> None:
            nonlocal done, refusals
            for place in range(10):
                request = _append(session, f"{writer}.{place}", request_id=f"{writer}.{place}")
                while True:
                    answer = await ask(channel, METHODS["AppendMessage"], request, tenant.key)
                    if answer.code == _OK:
                        break
                    assert answer.reason == "UNAVAILABLE"
                    assert answer.detail(error_details_pb2.RetryInfo) is not None
                    refusals += 1
                done += 1

        async def kill() -> None:
            for progress in (5, 25, 45, 65):
                await until(lambda: done >= progress)  # noqa: B023 - awaited here
                hub.sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name = 'cortex-hub'"
                )

        await asyncio.gather(kill(), *(write(number) for number in range(8)))
        assert refusals > 0
        listed = tenant.client.chat.list_messages(
            ListMessagesRequest(session_id=session.session_id, page_size=1000)
        )
        messages = [(message.seq, message.content) async for message in listed]
        assert [seq for seq, _ in messages] == list(range(1, 8 * 10 + 1))
        assert len({content for _, content in messages}) == 8 * 10


async def test_without_postgres_calls_are_unavailable_until_it_is_back(
    postgres_url: str, empty_database: str, tmp_path: Path
) -> None:
    """A database that takes no connections is UNAVAILABLE with RetryInfo; no restart is needed."""
    async with (
        own_hub(empty_database, tmp_path) as hub,
        grpc.aio.insecure_channel(hub.address) as channel,
    ):
        tenant = await hub.new_tenant()
        session = await tenant.new_session(await tenant.new_user())
        get = GetSessionRequest(session_id=session.session_id)
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            name = sa.make_url(empty_database).database
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
                [name],
            )
            for _ in range(3):
                answer = await ask(channel, METHODS["GetSession"], get, tenant.key)
                assert answer.reason == "UNAVAILABLE"
                assert answer.detail(error_details_pb2.RetryInfo) is not None
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        # The connections of either pool that died unnoticed may cost one more call each.
        later = [await ask(channel, METHODS["GetSession"], get, tenant.key) for _ in range(5)]
        assert [answer.reason for answer in later[2:]] == ["", "", ""]
        assert {answer.reason for answer in later[:2]} <= {"", "UNAVAILABLE"}


async def test_what_the_driver_says_never_crosses_the_wire(
    empty_database: str, tmp_path: Path
) -> None:
    """A broken constraint and a missing column are INTERNAL, "internal error" and an id."""
    async with (
        own_hub(empty_database, tmp_path) as hub,
        grpc.aio.insecure_channel(hub.address) as channel,
    ):
        tenant = await hub.new_tenant()
        user = await tenant.new_user()
        hub.sql("ALTER TABLE chat_sessions ADD CONSTRAINT guard CHECK (session_title <> 'canary')")
        create = CreateSessionRequest(user_id=user.user_id, session_title="canary")
        broken = await ask(channel, METHODS["CreateSession"], create, tenant.key)
        await tenant.new_session(user, session_title="a canary")
        hub.sql("ALTER TABLE chat_sessions RENAME session_title TO canary_title")
        missing = await ask(channel, METHODS["CreateSession"], create, tenant.key, request_id="me")
        assert missing.request_id == "me"
        for answer in (broken, missing):
            assert (answer.reason, answer.code) == ("INTERNAL", grpc.StatusCode.INTERNAL)
            assert answer.status is not None
            assert answer.status.message == "internal error"
            for word in (b"canary", b"guard", b"chat_sessions", b"psycopg", b"SELECT", b"INSERT"):
                assert word not in answer.raw


async def test_an_item_that_postgres_refuses_leaves_its_group_alone(
    empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message that breaks the statement of its group is INTERNAL; the others are appended."""
    async with own_hub(empty_database, tmp_path) as hub:
        tenant = await hub.new_tenant()
        session = await tenant.new_session(await tenant.new_user())
        hub.sql("ALTER TABLE chat_messages ADD CHECK (content <> 'poison')")
        async with grpc.aio.insecure_channel(hub.address) as channel:

            def append(content: str) -> Coroutine[Any, Any, Answer]:
                request = _append(session, content)
                return ask(channel, METHODS["AppendMessage"], request, tenant.key)

            submitted = submissions(monkeypatch)
            with held_session(hub, session.session_id):
                tasks = await occupied(hub, lambda: append("first"))
                for text in ("good", "poison", "better", "best"):
                    tasks.append(asyncio.create_task(append(text)))
                await until(lambda: len(submitted) == len(tasks))
            answers = await asyncio.gather(*tasks)
        assert [answer.reason for answer in answers] == ["", "", "", "INTERNAL", "", ""]
        request = ListMessagesRequest(session_id=session.session_id)
        listed = [message async for message in tenant.client.chat.list_messages(request)]
        assert [message.seq for message in listed] == [1, 2, 3, 4, 5]
        assert {message.content for message in listed} == {"first", "good", "better", "best"}


async def test_the_request_id_of_a_call_is_the_callers_or_made(
    tenant: Tenant, channel: grpc.aio.Channel, session: Session
) -> None:
    """A sound `x-request-id` comes back with answers and refusals, any other is replaced."""
    get = GetSessionRequest(session_id=session.session_id)
    unknown = GetSessionRequest(session_id=new_id())
    for request in (get, unknown):
        mine = await ask(channel, METHODS["GetSession"], request, tenant.key, request_id="a.b:c-1")
        assert mine.request_id == "a.b:c-1"
        for unsound in (None, "", "x" * 65, "two words"):
            made = await ask(
                channel, METHODS["GetSession"], request, tenant.key, request_id=unsound
            )
            assert made.request_id != unsound
            assert len(made.request_id) == 36


async def test_a_hub_that_stops_takes_no_new_call_and_finishes_those_that_run(
    owner_url: str, tmp_path: Path, hub: Hub, tenant: Tenant, session: Session
) -> None:
    """A call that runs when the stop begins is answered; one that comes later is UNAVAILABLE."""
    settings = Settings(data_dir=tmp_path, embedding="wordllama", listen="127.0.0.1:0")
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(serving(settings, owner_url))
        async with grpc.aio.insecure_channel(address) as channel:
            with held_session(hub, session.session_id):
                running = asyncio.create_task(
                    ask(channel, METHODS["AppendMessage"], _append(session, "in time"), tenant.key)
                )
                await until(lambda: waiting_for_locks(hub) == 1)
                stopping = asyncio.create_task(stack.pop_all().aclose())
                await _until_refused(address, tenant.key)
                assert not running.done()
            assert (await running).response.message.seq == 1
            await stopping


async def test_a_hub_that_may_wait_no_longer_rolls_back_what_it_breaks_off(
    owner_url: str, tmp_path: Path, hub: Hub, tenant: Tenant, user: User
) -> None:
    """A transaction that outlasts `drain` is undone as a whole, and its statement stopped."""
    settings = Settings(data_dir=tmp_path, embedding="wordllama", listen="127.0.0.1:0", drain=0.2)
    request = CreateSessionRequest(user_id=user.user_id, request_id="r")
    lock = "SELECT 1 FROM user_configs WHERE user_id = %s FOR UPDATE"
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(serving(settings, owner_url))
        async with grpc.aio.insecure_channel(address) as channel:
            with held(hub, lock, user.user_id):
                running = asyncio.create_task(
                    ask(channel, METHODS["CreateSession"], request, tenant.key)
                )
                await until(lambda: waiting_for_locks(hub) == 1)
                await stack.pop_all().aclose()
                await until(lambda: waiting_for_locks(hub) == 0)
            assert (await running).code != _OK
    query = "SELECT 1 FROM request_ids WHERE user_id = %s"
    assert not hub.sql(query, user.user_id)
    assert (await tenant.client.chat.create_session(request)).session.user_id == user.user_id


async def test_a_hub_that_may_wait_no_longer_breaks_off_a_group_of_appends(
    owner_url: str, tmp_path: Path, hub: Hub, tenant: Tenant, session: Session
) -> None:
    """The statement of a group belongs to no single call, and ends with the hub all the same."""
    settings = Settings(data_dir=tmp_path, embedding="wordllama", listen="127.0.0.1:0", drain=0.2)
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(serving(settings, owner_url))
        async with grpc.aio.insecure_channel(address) as channel:
            with held_session(hub, session.session_id):
                running = asyncio.create_task(
                    ask(channel, METHODS["AppendMessage"], _append(session, "late"), tenant.key)
                )
                await until(lambda: waiting_for_locks(hub) == 1)
                await stack.pop_all().aclose()
                await until(lambda: waiting_for_locks(hub) == 0)
            assert (await running).code != _OK
    assert not hub.sql("SELECT 1 FROM chat_messages WHERE session_id = %s", session.session_id)


async def _until_refused(address: str, key: str) -> None:
    """Return once new calls, each on a channel of its own, are UNAVAILABLE."""
    async with asyncio.timeout(20):
        while True:
            async with grpc.aio.insecure_channel(address) as channel:
                request = GetSessionRequest(session_id=new_id())
                answer = await ask(channel, METHODS["GetSession"], request, key)
            if answer.code == grpc.StatusCode.UNAVAILABLE:
                return
            assert answer.code == grpc.StatusCode.NOT_FOUND


async def _until_messages(tenant: Tenant, session: Session, count: int) -> None:
    query = "SELECT last_seq FROM chat_sessions WHERE session_id = %s"
    await until(lambda: tenant.hub.sql(query, session.session_id) == [(count,)])


def _append(session: Session, content: str, **values: Any) -> AppendMessageRequest:
    return AppendMessageRequest(
        session_id=session.session_id, role=Role.ROLE_USER, content=content, **values
    )


async def _say(tenant: Tenant, session: Session, content: str) -> Answer:
    async with grpc.aio.insecure_channel(tenant.hub.address) as channel:
        return await ask(channel, METHODS["AppendMessage"], _append(session, content), tenant.key)
