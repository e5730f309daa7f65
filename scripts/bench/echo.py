"""`make bench-echo`: calls a second of our own path against a bare grpc.aio echo, in one run.

Each series is measured once a round, all series in turn, by one load process that keeps so many
calls in flight; each server is a process of its own. The last column is the ratio to the bare echo
of the same round and the same number in flight.
"""

import argparse
import asyncio
import multiprocessing
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool

from hub_client import HubClient
from hub_client.v1 import (
    Access,
    AppendMessageRequest,
    CreateSessionRequest,
    CreateUserRequest,
    GetUserRequest,
    GetUserResponse,
    Level,
    Role,
    User,
    options_pb2,
)
from hub_server.caller import Caller
from hub_server.logs import configure_logs
from hub_server.rpc import Rpc
from scripts.bench.figures import machine, table
from scripts.hub_process import running_hub

ECHO: Final = "/bench.Echo/Call"
SESSIONS: Final = 64
IN_FLIGHT: Final = 64
_SPAWN: Final = multiprocessing.get_context("spawn")  # never fork after gRPC has started


@dataclass(frozen=True)
class Series:
    """What one series calls: where, what, with which requests, how many at a time."""

    name: str
    address: str
    method: str
    requests: Sequence[bytes]
    key: str = ""
    in_flight: int = IN_FLIGHT


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each series in a round")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="hub-bench-") as folder,
        server(serve_bare) as bare,
        server(serve_empty) as empty,
        running_hub(Path(folder) / "data") as (hub, key),
    ):
        for in_flight in (IN_FLIGHT, 1):
            measured = all_series(bare, empty, hub, key, in_flight)
            rounds: dict[str, list[float]] = {series.name: [] for series in measured}
            for _ in range(options.rounds):
                for series in measured:
                    rounds[series.name].append(rate(series, options.seconds))
            print(
                f"\n{in_flight} in flight; {machine()}; median of {options.rounds} rounds (range)"
            )
            print(table(rounds, measured[0].name))
        print(f"\n{machine()}")


def all_series(bare: str, empty: str, hub: str, key: str, in_flight: int) -> list[Series]:
    """Return the series, the reference first."""
    with HubClient(hub, key) as client:
        email = f"{time.time_ns()}@example.org"
        user_id = client.identity.create_user(CreateUserRequest(email=email)).user.user_id
        start = CreateSessionRequest(user_id=user_id)
        sessions = [client.chat.create_session(start).session.session_id for _ in range(SESSIONS)]
    get = [GetUserRequest(user_id=user_id).SerializeToString()]
    appends = [
        AppendMessageRequest(
            session_id=session_id, role=Role.ROLE_USER, content="How is the weather today?"
        ).SerializeToString()
        for session_id in sessions
    ]
    append = "/hub.v1.ChatService/AppendMessage"
    get_user = "/hub.v1.IdentityService/GetUser"
    return [
        Series("bare grpc.aio echo", bare, ECHO, get, in_flight=in_flight),
        Series("our path, empty call", empty, ECHO, get, in_flight=in_flight),
        Series("hub: GetUser (two reads)", hub, get_user, get, key, in_flight),
        Series("hub: AppendMessage, 64 sessions", hub, append, appends, key, in_flight),
        Series("hub: AppendMessage, one session", hub, append, appends[:1], key, in_flight),
    ]


def rate(series: Series, seconds: float) -> float:
    """Return calls a second, measured by a process of its own."""
    ours, theirs = _SPAWN.Pipe()
    load = _SPAWN.Process(target=_load, args=(theirs, series, seconds))
    load.start()
    result: float = ours.recv()
    load.join()
    return result


def _load(results: Connection, series: Series, seconds: float) -> None:
    results.send(asyncio.run(_calls_a_second(series, seconds)))


async def _calls_a_second(series: Series, seconds: float) -> float:
    metadata = (("authorization", f"Bearer {series.key}"),) if series.key else ()
    async with grpc.aio.insecure_channel(series.address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(series.method)
        await call(series.requests[0], metadata=metadata)  # connects
        begin = time.perf_counter()
        done = 0

        async def caller(request: bytes) -> None:
            nonlocal done
            while time.perf_counter() - begin < seconds:
                await call(request, metadata=metadata)
                done += 1

        count = len(series.requests)
        await asyncio.gather(
            *(caller(series.requests[place % count]) for place in range(series.in_flight))
        )
        return done / (time.perf_counter() - begin)


@contextmanager
def server(serve: Callable[[grpc.aio.Server], Awaitable[None]]) -> Iterator[str]:
    """Run a server in a process of its own; yield its address."""
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_serve, args=(theirs, serve), daemon=True)
    process.start()
    try:
        yield f"127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def _serve(addresses: Connection, prepare: Callable[[grpc.aio.Server], Awaitable[None]]) -> None:
    async def run() -> None:
        server = grpc.aio.server()
        await prepare(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        addresses.send(port)
        await server.wait_for_termination()

    configure_logs("WARNING")
    asyncio.run(run())


async def serve_bare(server: grpc.aio.Server) -> None:
    """Answer with a constant, bytes in and bytes out: what grpc.aio costs by itself."""
    answer = GetUserResponse(user=User(user_id="x" * 36)).SerializeToString()

    async def call(_: bytes, __: object) -> bytes:
        return answer

    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Call": grpc.unary_unary_rpc_method_handler(call)
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", handlers),))


async def serve_empty(server: grpc.aio.Server) -> None:
    """Serve a public method that does nothing, on the hub's own path."""

    class Echo:
        async def Call(  # noqa: N802 - the method's name in the contract
            self, _: GetUserRequest, __: Caller | None
        ) -> GetUserResponse:
            return GetUserResponse(user=User(user_id="x" * 36))

    async def nobody(authorization: str, act_as: str | None, deadline: float) -> Caller:
        raise AssertionError(authorization, act_as, deadline)  # the method is public

    async def nothing(caller: Caller, method: str) -> None:
        raise AssertionError(caller, method)

    file = descriptor_pb2.FileDescriptorProto(name="bench.proto", package="bench", syntax="proto3")
    file.dependency.extend(["hub/v1/identity.proto", "hub/v1/options.proto"])
    method = file.service.add(name="Echo").method.add(name="Call")
    method.input_type, method.output_type = ".hub.v1.GetUserRequest", ".hub.v1.GetUserResponse"
    method.options.Extensions[options_pb2.level] = Level.LEVEL_PUBLIC
    method.options.Extensions[options_pb2.access] = Access.ACCESS_READ
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    rpc = Rpc(
        nobody, nothing, most_calls=512, most_streams=512, default_deadline=30, stall=1, room=1
    )
    service = pool.FindServiceByName("bench.Echo")
    server.add_generic_rpc_handlers((rpc.handler(service, Echo()),))


if __name__ == "__main__":
    main()
