"""How the hub is reached: TLS, ports, reflection, health, and the end of a connection."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import grpc
import psycopg
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import (
    ServerReflectionRequest,
    ServerReflectionResponse,
)

from hub_client import AsyncHubClient, HubClient, HubError, errors
from hub_client.v1 import (
    AppendMessageRequest,
    CreateSessionRequest,
    GetUserRequest,
    IngestDocumentRequest,
    ListUsersRequest,
    Role,
)
from hub_server.server import SERVICES
from tests.support import Hub, Tenant, running_hub

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_REFLECTION: Final = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


async def _users(client: AsyncHubClient) -> list[Any]:
    return [user async for user in client.identity.list_users(ListUsersRequest(page_size=1000))]


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """An authority that nobody but these tests trusts."""
    return trustme.CA()


@pytest.fixture(scope="module")
async def tls_hub(
    owner_url: str, hub: Hub, authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Hub]:
    """A second hub over the session's database, with a certificate for localhost."""
    folder = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    for part in issued.cert_chain_pems:
        part.write_to_path(folder / "cert.pem", append=True)
    files: dict[str, Any] = {"tls_cert": folder / "cert.pem", "tls_key": folder / "key.pem"}
    async with running_hub(owner_url, folder, listen="localhost:0", **files) as tls_hub:
        yield tls_hub


async def test_both_clients_speak_tls(tls_hub: Hub, hub: Hub, authority: trustme.CA) -> None:
    """With the authority's certificate a client reaches a hub that has one."""
    roots = authority.cert_pem.bytes()
    async with AsyncHubClient(tls_hub.address, hub.key, root_certificates=roots) as client:
        listed = await _users(client)
    with HubClient(tls_hub.address, hub.key, root_certificates=roots) as other:
        assert (
            await asyncio.to_thread(list, other.identity.list_users(ListUsersRequest())) == listed
        )


async def test_a_hub_that_the_client_does_not_trust_learns_nothing(tls_hub: Hub, hub: Hub) -> None:
    """Another authority's client, and one that trusts the system's, send no credential."""
    for roots in (trustme.CA().cert_pem.bytes(), None):
        async with AsyncHubClient(
            tls_hub.address, hub.key, tls=True, root_certificates=roots
        ) as client:
            with pytest.raises(errors.UnavailableError):
                await _users(client)


async def test_a_certificate_for_another_name_is_not_trusted(
    tls_hub: Hub, hub: Hub, authority: trustme.CA
) -> None:
    """The address is checked, not only who signed."""
    address = tls_hub.address.replace("localhost", "127.0.0.1")
    roots = authority.cert_pem.bytes()
    async with AsyncHubClient(address, hub.key, root_certificates=roots) as client:
        with pytest.raises(errors.UnavailableError):
            await _users(client)


async def test_a_tls_hub_takes_no_plaintext(tls_hub: Hub, hub: Hub) -> None:
    """Where TLS is configured nothing is answered without it."""
    async with AsyncHubClient(tls_hub.address, hub.key) as client:
        with pytest.raises(errors.UnavailableError):
            await _users(client)


# --- ports ---------------------------------------------------------------------------------------


async def test_a_second_hub_on_one_port_does_not_start(hub: Hub, tmp_path: Path) -> None:
    """It is told, instead of half of the calls going to either; the first is not disturbed."""
    with pytest.raises(OSError, match=f"cannot listen on {hub.address}: is another server there"):
        async with running_hub(hub.owner_url, tmp_path, listen=hub.address):
            pytest.fail("two hubs on one port")
    await _users(hub.client(hub.key))


async def test_a_port_is_free_again_when_its_hub_is_gone(owner_url: str, tmp_path: Path) -> None:
    """A hub that is restarted finds its port."""
    async with running_hub(owner_url, tmp_path) as first:
        address = first.address
    async with running_hub(owner_url, tmp_path, listen=address) as second:
        assert second.address == address


# --- reflection ----------------------------------------------------------------------------------


async def _reflected(address: str) -> set[str]:
    """Return the services that reflection lists."""
    async with grpc.aio.insecure_channel(address) as channel:
        ask: Any = channel.stream_stream(
            _REFLECTION,
            request_serializer=ServerReflectionRequest.SerializeToString,
            response_deserializer=ServerReflectionResponse.FromString,
        )
        stream = ask(iter([ServerReflectionRequest(list_services="")]))
        (answer,) = [answer async for answer in stream]
        return {service.name for service in answer.list_services_response.service}


async def test_reflection_lists_the_services(hub: Hub) -> None:
    """On loopback tools learn of the contract from the hub itself."""
    assert await _reflected(hub.address) >= {service.full_name for service in SERVICES.values()}


async def test_reflection_can_be_switched_off(owner_url: str, tmp_path: Path) -> None:
    """Then the method does not exist."""
    async with running_hub(owner_url, tmp_path, reflection=False) as hub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _reflected(hub.address)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


# --- health --------------------------------------------------------------------------------------


def _health(channel: grpc.aio.Channel) -> Any:  # what is generated declares no methods
    return health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("service", ["", *(one.full_name for one in SERVICES.values())])
async def test_every_service_is_healthy(hub: Hub, service: str) -> None:
    """Each service by its name, and the hub as a whole, without a credential."""
    async with grpc.aio.insecure_channel(hub.address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await _health(channel).Check(request)
    assert answer.status == _SERVING


async def test_the_health_of_an_unknown_service_is_not_found(hub: Hub) -> None:
    """A misspelled probe is told so."""
    async with grpc.aio.insecure_channel(hub.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _health(channel).Check(health_pb2.HealthCheckRequest(service="hub.v1.Unheard"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


# --- the end -------------------------------------------------------------------------------------


class Stopping:
    """A hub that can be told to stop while a test looks on, and its service is watched."""

    def __init__(self, hub: Hub, stack: AsyncExitStack) -> None:
        self.hub = hub
        self._stack = stack
        self._channel = grpc.aio.insecure_channel(hub.address)

    async def begin(self, service: str) -> asyncio.Task[None]:
        """Begin to stop; returns once the service says so. The task ends with the hub."""
        watched = _health(self._channel).Watch(health_pb2.HealthCheckRequest(service=service))
        assert (await watched.read()).status == _SERVING
        stop = asyncio.create_task(self._stack.aclose())
        assert (await watched.read()).status == _NOT_SERVING
        watched.cancel()  # a stop waits for what is still asked
        await self._channel.close()
        return stop


@asynccontextmanager
async def _stopping(owner_url: str, folder: Path, **settings: Any) -> AsyncIterator[Stopping]:
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(running_hub(owner_url, folder, **settings))
        yield Stopping(hub, stack)


@pytest.mark.parametrize("service", [one.full_name for one in SERVICES.values()])
async def test_a_hub_that_stops_says_so_first(owner_url: str, tmp_path: Path, service: str) -> None:
    """Whoever watches a service sees NOT_SERVING before the connection ends."""
    async with _stopping(owner_url, tmp_path) as stopping:
        await (await stopping.begin(service))


@asynccontextmanager
async def _held_up(hub: Hub, lock: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Hold the rows that `lock` selects; yields what waits until somebody waits for them."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    async def wait() -> None:
        async with asyncio.timeout(60):
            while await asyncio.to_thread(hub.sql, waiting) != [(1,)]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # Postgres tells nobody of its locks

    with psycopg.connect(hub.owner_url) as connection:
        connection.execute(lock)
        yield wait


async def test_a_call_that_runs_is_answered_before_the_end(owner_url: str, tmp_path: Path) -> None:
    """A stop lets running calls finish; who calls now finds nobody."""
    async with _stopping(owner_url, tmp_path) as stopping:
        hub = stopping.hub
        tenant = await hub.new_tenant()
        session = await tenant.new_session(await tenant.new_user())
        client = AsyncHubClient(hub.address, tenant.key)
        request = AppendMessageRequest(session_id=session.session_id, role=Role.ROLE_USER)
        lock = f"SELECT FROM chat_sessions WHERE session_id = '{session.session_id}' FOR UPDATE"
        async with _held_up(hub, lock) as waits:
            running = asyncio.create_task(client.chat.append_message(request))
            await waits()
            stop = await stopping.begin("hub.v1.ChatService")
            assert not running.done()
        assert (await running).message.seq == 1
        await stop
    with pytest.raises(errors.UnavailableError):
        await client.identity.get_user(GetUserRequest())
    await client.close()


async def test_a_call_that_does_not_end_is_broken_off(owner_url: str, tmp_path: Path) -> None:
    """A stop does not wait for ever: what is broken off is rolled back, and its caller told."""
    async with _stopping(owner_url, tmp_path, drain=0.1) as stopping:
        hub = stopping.hub
        tenant = await hub.new_tenant()
        user = await tenant.new_user()
        async with AsyncHubClient(hub.address, tenant.key) as client:
            request = CreateSessionRequest(user_id=user.user_id)
            lock = f"SELECT FROM user_configs WHERE user_id = '{user.user_id}' FOR UPDATE"
            async with _held_up(hub, lock) as waits:
                running = asyncio.create_task(client.chat.create_session(request))
                await waits()
                await (await stopping.begin("hub.v1.ChatService"))
                with pytest.raises(HubError):
                    await running
    count = "SELECT count(*) FROM chat_sessions WHERE user_id = %s"
    assert hub.sql(count, user.user_id) == [(0,)]


# --- connections ---------------------------------------------------------------------------------


async def test_a_request_beyond_all_limits_is_refused_by_size(tenant: Tenant) -> None:
    """Twice the largest document is not even read."""
    request = IngestDocumentRequest(title="t", text="x" * (9 << 20))
    with pytest.raises(HubError) as caught:
        await tenant.client.knowledge.ingest_document(request)
    assert caught.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_method_that_does_not_exist_is_unimplemented(hub: Hub) -> None:
    """As anywhere in gRPC."""
    async with grpc.aio.insecure_channel(hub.address) as channel:
        for path in ("/hub.v1.ChatService/Unheard", "/hub.v1.UnheardService/GetUser"):
            caller: Any = channel.unary_unary(path)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await caller(b"")
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_caller_names_his_call(hub: Hub) -> None:
    """`x-request-id` comes back as it was sent, unless it could not stand in a log."""
    async with grpc.aio.insecure_channel(hub.address) as channel:
        for given, kept in (("a-1_b:2.c", True), ("x" * 65, False), ("a b", False), ("", False)):
            caller: Any = channel.unary_unary("/hub.v1.IdentityService/GetUser")
            call = caller(b"", metadata=(("x-request-id", given),))
            with suppress(grpc.aio.AioRpcError):
                await call
            answered = dict(await call.trailing_metadata())["x-request-id"]
            assert (answered == given) == kept
            assert answered
