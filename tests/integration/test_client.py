"""The two clients against a real hub: errors, lost replies, pages, and what they need installed."""

import asyncio
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf.message import Message
from structlog.testing import capture_logs

from hub_client import AsyncHubClient, HubClient, HubError, errors
from hub_client.v1 import (
    AppendMessageRequest,
    CreateSessionRequest,
    CreateUserRequest,
    GetSessionRequest,
    GetUserRequest,
    IngestDocumentRequest,
    ListSessionsRequest,
    LoginRequest,
    MemoryType,
    RecallRequest,
    RememberRequest,
    Role,
    Session,
    UpdateUserConfigRequest,
    UserConfig,
)
from tests.support import Tenant

_ROOT: Final = Path(__file__).parents[2]
_HEADERS: Final = 1  # the type of an HTTP/2 frame that begins an answer
_FRAME_HEAD: Final = 9


class LossyProxy:
    """Stands between a client and a hub, and can lose an answer.

    Once `lose_answers` is called, so many answers are withheld when their first frame comes from
    the hub (the hub has then done the work), and the connection is cut instead.
    """

    def __init__(self, hub_address: str) -> None:
        host, _, port = hub_address.rpartition(":")
        self._hub = (host, int(port))
        self._losing = 0
        self.lost = 0
        self.address = ""
        self._connections: list[asyncio.Task[Any]] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Accept connections at `address`."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = "{}:{}".format(*server.sockets[0].getsockname())
        yield
        server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def lose_answers(self, count: int) -> None:
        """Lose the next answers."""
        self._losing, self.lost = count, 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on until either side ends it, or an answer is to be lost."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.append(task)
        from_hub, to_hub = await asyncio.open_connection(*self._hub)
        asking = asyncio.create_task(self._ask(reader, to_hub))
        try:
            await self._answer(from_hub, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one side went away, or the test is over
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await asyncio.gather(*map(_closed, (writer, to_hub)), return_exceptions=True)

    async def _ask(self, reader: asyncio.StreamReader, to_hub: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            to_hub.write(data)
            await to_hub.drain()

    async def _answer(self, from_hub: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await from_hub.readexactly(_FRAME_HEAD)
            if self._losing and head[3] == _HEADERS:
                self._losing -= 1
                self.lost += 1
                return
            writer.write(head + await from_hub.readexactly(int.from_bytes(head[:3])))
            await writer.drain()


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


@pytest.fixture
async def proxy(tenant: Tenant) -> AsyncIterator[LossyProxy]:
    """A proxy before the session's hub."""
    proxy = LossyProxy(tenant.hub.address)
    async with proxy.listening():
        yield proxy


async def _caught(call: Awaitable[Any]) -> HubError:
    with pytest.raises(HubError) as caught:
        await call
    return caught.value


async def test_an_error_tells_the_same_in_both_clients(tenant: Tenant) -> None:
    """Class, code, reason, metadata, violations and request id; the hub's log bears that id."""
    bad = CreateUserRequest(email="ada", password="short")
    with HubClient(tenant.hub.address, tenant.key) as client:
        for call in (
            tenant.client.identity.create_user(bad),
            asyncio.to_thread(client.identity.create_user, bad),
        ):
            with capture_logs() as lines:
                error = await _caught(call)
            assert isinstance(error, errors.InvalidFieldError)
            assert error.code == grpc.StatusCode.INVALID_ARGUMENT
            assert error.reason == "INVALID_FIELD"
            assert [field for field, _ in error.violations] == ["email", "password"]
            assert error.retry_after is None
            (line,) = (line for line in lines if line["event"] == "call")
            assert line["request_id"] == error.request_id


async def test_an_error_bears_the_facts_of_its_reason(tenant: Tenant) -> None:
    """What is missing, what is switched off, how many are allowed: metadata tells."""
    user = await tenant.new_user()
    missing = GetSessionRequest(session_id=str(uuid.uuid4()))
    error = await _caught(tenant.client.chat.get_session(missing))
    assert isinstance(error, errors.NotFoundError)
    assert error.metadata == {"resource": "session"}
    config = UserConfig(user_id=user.user_id, max_sessions=0)
    await tenant.client.identity.update_user_config(UpdateUserConfigRequest(config=config))
    refused = tenant.client.chat.create_session(CreateSessionRequest(user_id=user.user_id))
    error = await _caught(refused)
    assert isinstance(error, errors.SessionLimitError)
    assert error.metadata == {"limit": "0", "subject": "max_sessions"}


async def test_both_clients_do_the_main_things(tenant: Tenant) -> None:
    """The sync client, in a thread, does what the async one does."""
    with HubClient(tenant.hub.address, tenant.key) as client:

        def talk() -> Session:
            user = client.identity.create_user(CreateUserRequest(email="ada@example.org")).user
            session = client.chat.create_session(CreateSessionRequest(user_id=user.user_id)).session
            said = AppendMessageRequest(
                session_id=session.session_id, role=Role.ROLE_USER, content="Hello"
            )
            assert client.chat.append_message(said).message.seq == 1
            memory = RememberRequest(
                user_id=user.user_id,
                memory_type=MemoryType.MEMORY_TYPE_FACT,
                memory_content="Ada drinks tea.",
            )
            client.memory.remember(memory)
            recall = RecallRequest(user_id=user.user_id, query="What does Ada drink?")
            assert client.memory.recall(recall).hits[0].memory.memory_content == "Ada drinks tea."
            return session

        session = await asyncio.to_thread(talk)
    found = await tenant.client.chat.get_session(GetSessionRequest(session_id=session.session_id))
    assert found.session.last_seq == 1


async def test_a_client_without_a_key_can_only_log_in(tenant: Tenant) -> None:
    """No metadata is sent that is not there: the hub says that the credential is missing."""
    async with AsyncHubClient(tenant.hub.address) as client:
        missing = await _caught(client.identity.get_user(GetUserRequest()))
        failed = await _caught(client.identity.login(LoginRequest(email="a@b.org", password="p")))
    assert isinstance(missing, errors.CredentialMissingError)
    assert isinstance(failed, errors.LoginFailedError)


async def test_a_hub_that_is_not_there_is_unavailable() -> None:
    """After its retries the client says so, with an error of its own and no request id."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # nobody listens, and nobody else can
        address = "{}:{}".format(*deaf.getsockname())
        async with AsyncHubClient(address, "key") as client:
            with HubClient(address, "key") as other:
                caught = await asyncio.gather(
                    _caught(client.identity.get_user(GetUserRequest())),
                    _caught(asyncio.to_thread(other.identity.get_user, GetUserRequest())),
                )
    for error in caught:
        assert isinstance(error, errors.UnavailableError)
        assert error.code == grpc.StatusCode.UNAVAILABLE
        assert (error.reason, error.request_id) == ("", "")


async def test_a_call_ends_at_its_time_limit(tenant: Tenant) -> None:
    """`timeout` bounds a call, retries included; the client's own bounds those that name none."""
    request = GetUserRequest(user_id=str(uuid.uuid4()))
    error = await _caught(tenant.client.identity.get_user(request, timeout=1e-6))
    assert isinstance(error, errors.DeadlineExceededError)
    async with AsyncHubClient(tenant.hub.address, tenant.key, timeout=1e-6) as client:
        error = await _caught(client.identity.get_user(request))
        assert isinstance(error, errors.DeadlineExceededError)
        assert isinstance(
            await _caught(client.identity.get_user(request, timeout=30)), errors.NotFoundError
        )


def _asked(lines: list[Any]) -> int:
    return sum(line.get("method") == "/hub.v1.ChatService/ListSessions" for line in lines)


async def test_a_list_is_fetched_page_by_page_as_it_is_read(tenant: Tenant) -> None:
    """A page is asked for when the one before is used up, and the iterator ends with the list."""
    user = await tenant.new_user()
    made = [(await tenant.new_session(user)).session_id for _ in range(5)]
    request = ListSessionsRequest(user_id=user.user_id, page_size=2)
    with capture_logs() as lines:
        listed = tenant.client.chat.list_sessions(request)
        assert _asked(lines) == 0
        seen = []
        for pages in (1, 1, 2, 2, 3):
            seen.append((await anext(listed)).session_id)
            assert _asked(lines) == pages
        with pytest.raises(StopAsyncIteration):
            await anext(listed)
        assert _asked(lines) == 3
    assert seen == made[::-1]
    assert not request.page_token


async def test_a_list_is_fetched_page_by_page_in_a_thread(tenant: Tenant) -> None:
    """The sync client's iterators are as lazy; an empty list is an empty iterator."""
    user, stranger = await tenant.new_user(), await tenant.new_user()
    made = [(await tenant.new_session(user)).session_id for _ in range(4)]
    with capture_logs() as lines, HubClient(tenant.hub.address, tenant.key) as client:
        listed = client.chat.list_sessions(ListSessionsRequest(user_id=user.user_id, page_size=2))
        assert _asked(lines) == 0
        first = await asyncio.to_thread(lambda: [next(listed), next(listed)])
        assert _asked(lines) == 1
        rest = await asyncio.to_thread(list, listed)
        assert _asked(lines) == 2
        none = client.chat.list_sessions(ListSessionsRequest(user_id=stranger.user_id))
        assert await asyncio.to_thread(list, none) == []
    assert [session.session_id for session in (*first, *rest)] == made[::-1]


async def test_a_list_raises_where_it_is_read(tenant: Tenant) -> None:
    """A refused list raises with its first item, as a HubError."""
    request = ListSessionsRequest(user_id=str(uuid.uuid4()))
    listed = tenant.client.chat.list_sessions(request)
    assert isinstance(await _caught(anext(listed)), errors.NotFoundError)
    with HubClient(tenant.hub.address, tenant.key) as client:
        reading = asyncio.to_thread(list, client.chat.list_sessions(request))
        assert isinstance(await _caught(reading), errors.NotFoundError)


# Each call that adds a row, and the table it adds it to.
_ADDING: Final[dict[str, tuple[str, Callable[[Session], Message]]]] = {
    "identity.create_user": (
        "users WHERE email = 'lost@example.org'",
        lambda _: CreateUserRequest(email="lost@example.org"),
    ),
    "chat.create_session": (
        "chat_sessions WHERE session_title = 'lost'",
        lambda session: CreateSessionRequest(user_id=session.user_id, session_title="lost"),
    ),
    "chat.append_message": (
        "chat_messages WHERE content = 'lost'",
        lambda session: AppendMessageRequest(
            session_id=session.session_id, role=Role.ROLE_USER, content="lost"
        ),
    ),
    "memory.remember": (
        "memory_store WHERE memory_content = 'lost'",
        lambda session: RememberRequest(
            user_id=session.user_id,
            memory_type=MemoryType.MEMORY_TYPE_FACT,
            memory_content="lost",
        ),
    ),
    # Larger than what gRPC by itself keeps for a retry, with little to embed.
    "knowledge.ingest_document": (
        "documents WHERE title = 'lost'",
        lambda session: IngestDocumentRequest(
            user_id=session.user_id, title="lost", text="x".ljust(4 << 20)
        ),
    ),
}


def _count(tenant: Tenant, table: str) -> int:
    query = f"SELECT count(*) FROM {table} AND tenant_id = %s"  # noqa: S608 - from above
    return int(tenant.hub.sql(query, tenant.tenant_id)[0][0])


@pytest.mark.parametrize("name", _ADDING)
async def test_a_lost_answer_is_asked_for_again_and_nothing_is_done_twice(
    tenant: Tenant, proxy: LossyProxy, name: str
) -> None:
    """The connection breaks after the hub has done the work: the client retries under one id."""
    session = await tenant.new_session(await tenant.new_user())
    table, make = _ADDING[name]
    request: Any = make(session)
    room, method = name.split(".")
    async with AsyncHubClient(proxy.address, tenant.key) as client:
        proxy.lose_answers(2)
        await getattr(getattr(client, room), method)(request)
    assert (proxy.lost, _count(tenant, table)) == (2, 1)
    assert not request.request_id  # the caller's message is as it was


async def test_a_lost_answer_is_asked_for_again_by_the_sync_client(
    tenant: Tenant, proxy: LossyProxy
) -> None:
    """In a thread the same holds."""
    session = await tenant.new_session(await tenant.new_user())
    table, make = _ADDING["chat.append_message"]
    request = make(session)
    assert isinstance(request, AppendMessageRequest)
    with HubClient(proxy.address, tenant.key) as client:
        proxy.lose_answers(1)
        answer = await asyncio.to_thread(client.chat.append_message, request)
    assert (answer.message.seq, answer.message.content) == (1, "lost")
    assert (proxy.lost, _count(tenant, table)) == (1, 1)


async def test_a_client_gives_up_after_four_attempts(tenant: Tenant, proxy: LossyProxy) -> None:
    """Who gets no answer at all is told UNAVAILABLE; what was done was done once."""
    session = await tenant.new_session(await tenant.new_user())
    table, make = _ADDING["memory.remember"]
    request = make(session)
    assert isinstance(request, RememberRequest)
    async with AsyncHubClient(proxy.address, tenant.key) as client:
        proxy.lose_answers(99)
        error = await _caught(client.memory.remember(request))
    assert isinstance(error, errors.UnavailableError)
    assert (proxy.lost, _count(tenant, table)) == (4, 1)


async def test_each_call_has_a_request_id_of_its_own(tenant: Tenant) -> None:
    """The same request sent twice is two wishes, unless the caller gave it an id."""
    session = await tenant.new_session(await tenant.new_user())
    request = AppendMessageRequest(session_id=session.session_id, role=Role.ROLE_USER)
    append = tenant.client.chat.append_message
    assert [(await append(request)).message.seq for _ in range(2)] == [1, 2]
    request.request_id = "mine"
    assert [(await append(request)).message.seq for _ in range(2)] == [3, 3]


@asynccontextmanager
async def _impostor(answer: bytes | None) -> AsyncIterator[str]:
    """A gRPC server that is no hub: it answers noise, or refuses with noise for details."""

    async def noise(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        if answer is None:
            trailers = (("grpc-status-details-bin", b"\xff\xfe"),)
            await context.abort(grpc.StatusCode.DATA_LOSS, "noise", trailers)
        return answer

    class Everything(grpc.GenericRpcHandler):
        def service(self, _: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(noise)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Everything(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.mark.parametrize(
    ("answer", "code"),
    [(b"\xff", grpc.StatusCode.INTERNAL), (None, grpc.StatusCode.DATA_LOSS)],
    ids=["answer", "details"],
)
async def test_noise_from_the_other_end_is_a_hub_error(
    answer: bytes | None, code: grpc.StatusCode
) -> None:
    """Whatever answers at the address, callers have one kind of error to catch."""
    async with _impostor(answer) as address:
        with HubClient(address, "key") as client:
            error = await _caught(asyncio.to_thread(client.identity.get_user, GetUserRequest()))
        async with AsyncHubClient(address, "key") as other:
            same = await _caught(other.identity.get_user(GetUserRequest()))
    assert (type(error), error.code) == (type(same), same.code) == (HubError, code)


# Refuses every import but the standard library's, grpcio's, protobuf's and the client's own.
_ALONE: Final = """
import sys

ALLOWED = {"grpc", "google", "typing_extensions", "hub_client", *sys.stdlib_module_names}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED or (top == "google" and not "google.protobuf".startswith(name)
                                  and not name.startswith(("google.protobuf", "google._upb"))):
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Refuse())
import hub_client.errors
from hub_client import HubClient, HubError
from hub_client.v1 import GetUserRequest

with HubClient(sys.argv[1], sys.argv[2]) as client:
    try:
        client.identity.get_user(GetUserRequest(user_id="x"))
    except hub_client.errors.InvalidFieldError as error:
        print(error.violations)
print(*sorted({name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)))
"""


async def test_the_client_needs_grpcio_and_protobuf_alone(tenant: Tenant) -> None:
    """With nothing else importable it calls, and reads the details of a refusal."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _ALONE, tenant.hub.address, tenant.key),
        cwd=_ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert out.decode().startswith("(('user_id', 'must be a UUID in lower case'),)")
    assert not {"hub_server", "grpc_status", "sqlalchemy", "numpy"} & set(out.decode().split())
