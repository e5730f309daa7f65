"""Several processes that serve one port, and the parent that looks after them."""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from hub_client import HubClient
from hub_client._transport import OPTIONS
from hub_client.errors import NotFoundError
from hub_client.v1 import (
    AppendMessageRequest,
    CreateSessionRequest,
    CreateUserRequest,
    GetUserRequest,
    ListMessagesRequest,
    MemoryType,
    RecallRequest,
    RememberRequest,
    Role,
    WatchSessionRequest,
    WhoAmIRequest,
)
from hub_server.cli import supervisor
from hub_server.cli.port import reserved
from hub_server.ids import new_id
from hub_server.server import serving
from hub_server.settings import Settings
from tests.support import HubProcess, hub_process

_WORKERS = 2
_POOL_SIZE = 60  # with it, a Postgres as it comes would not have connections enough


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """A hub with two workers, which the first test that needs it starts."""
    data = tmp_path_factory.mktemp("workers") / "data"
    with hub_process(data, workers=str(_WORKERS), pool_size=str(_POOL_SIZE)) as process:
        yield process


@pytest.fixture
def hub(process: HubProcess) -> HubProcess:
    """The hub with two workers, serving."""
    if process.process is None:
        process.start()
    return process


def address_of(hub: HubProcess) -> str:
    """Return where a hub serves."""
    return (hub.data_dir / "address").read_text()


def workers(hub: HubProcess) -> list[psutil.Process]:
    """Return the worker processes that run."""
    assert hub.process is not None
    children = psutil.Process(hub.process.pid).children()
    return [child for child in children if child.cmdline()[-1:] == ["worker"]]


class Connections:
    """Connections to a hub, one for each client, and who accepted them."""

    def __init__(self, hub: HubProcess, stack: ExitStack) -> None:
        self._hub = hub
        self._stack = stack

    def open(self) -> tuple[int, HubClient]:
        """Connect; return the worker at the other end, which is who logs the call."""
        client = self._stack.enter_context(HubClient(address_of(self._hub), self._hub.key))
        unheard_of = new_id()
        with suppress(NotFoundError):
            client.identity.get_user(GetUserRequest(user_id=unheard_of))
        lines = self._hub.log.read_text().splitlines()
        return next(json.loads(line)["worker"] for line in lines if unheard_of in line), client

    def by_worker(self) -> dict[int, HubClient]:
        """Connect until every worker has a connection, and return one to each."""
        found = dict([self.open()])
        for _ in range(60):  # that one worker gets all of so many does not happen
            if len(found) == _WORKERS:
                break
            worker, client = self.open()
            found[worker] = client
        return found


@pytest.fixture
def connections(hub: HubProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connections]:
    """Connect anew with each client; else gRPC lets those of one process share a connection."""
    alone = (*OPTIONS, ("grpc.use_local_subchannel_pool", 1))
    monkeypatch.setattr("hub_client.client.OPTIONS", alone)
    with ExitStack() as stack:
        yield Connections(hub, stack)


def test_all_workers_serve_the_one_port(hub: HubProcess, connections: Connections) -> None:
    """The kernel shares connections out among the workers, and nobody else gets any."""
    assert set(connections.by_worker()) == {worker.pid for worker in workers(hub)}


def test_a_worker_sees_what_another_one_wrote(connections: Connections) -> None:
    """What one worker acknowledged the other reads and finds, on the very next call."""
    one, two = connections.by_worker().values()
    new_user = CreateUserRequest(email=f"{uuid.uuid4().hex}@example.org")
    user = one.identity.create_user(new_user).user
    session = two.chat.create_session(CreateSessionRequest(user_id=user.user_id)).session
    for number in range(1, 11):
        append = AppendMessageRequest(
            session_id=session.session_id, role=Role.ROLE_USER, content=f"text {number}"
        )
        assert one.chat.append_message(append).message.seq == number
        listing = ListMessagesRequest(session_id=session.session_id)
        seqs = [message.seq for message in two.chat.list_messages(listing)]
        assert seqs == list(range(1, number + 1))
        remember = RememberRequest(
            user_id=user.user_id,
            memory_type=MemoryType.MEMORY_TYPE_FACT,
            memory_content=f"The number {number} is remembered",
        )
        one.memory.remember(remember)
        recall = RecallRequest(user_id=user.user_id, query=f"number {number}", top_k=1)
        hits = two.memory.recall(recall).hits
        assert hits[0].memory.memory_content == remember.memory_content
        one, two = two, one


def test_a_reader_who_reconnects_at_random_sees_each_message_once(
    connections: Connections,
) -> None:
    """Writers and a reader over both workers: exactly 1 to n, in order, whoever serves whom."""
    chance, clients = random.Random(7), list(connections.by_worker().values())  # noqa: S311
    new_user = CreateUserRequest(email=f"{uuid.uuid4().hex}@example.org")
    user = clients[0].identity.create_user(new_user).user
    new_session = CreateSessionRequest(user_id=user.user_id)
    session_id = clients[1].chat.create_session(new_session).session.session_id
    count = 200

    def write(place: int) -> None:
        append = AppendMessageRequest(session_id=session_id, role=Role.ROLE_USER, content="x")
        clients[place % _WORKERS].chat.append_message(append)

    seen: list[int] = []
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, place) for place in range(count)]
        while len(seen) < count:
            request = WatchSessionRequest(session_id=session_id, from_seq=len(seen) + 1)
            events = chance.choice(clients).chat.watch_session(request, timeout=60)
            for _ in range(chance.randrange(1, 12)):
                event = next(events)
                seen += [event.message.seq] if event.HasField("message") else []
                if len(seen) == count:
                    break
            events.close()  # type: ignore[attr-defined]
    for one in writing:
        one.result()
    assert seen == list(range(1, count + 1))


def test_a_killed_worker_is_replaced_while_the_others_serve(
    hub: HubProcess, connections: Connections
) -> None:
    """After kill -9 of one worker calls of the other go on, and soon a new one takes calls."""
    killed, spared = clients = connections.by_worker()
    psutil.Process(killed).kill()
    deadline = time.monotonic() + 30
    while not (new := pids_that_served(hub) - {killed, spared}):
        clients[spared].identity.who_am_i(WhoAmIRequest(), timeout=5)
        assert time.monotonic() < deadline
    assert set(connections.by_worker()) == {spared, *new}


def pids_that_served(hub: HubProcess) -> set[int]:
    """Return the workers that came to serve at any time, by the parent's log."""
    lines = [line for line in hub.log.read_text().splitlines() if "worker serves" in line]
    return {json.loads(line)["worker"] for line in lines}


def test_the_own_postgres_has_connections_for_all_workers(hub: HubProcess) -> None:
    """Were the pools of all workers full, Postgres would refuse none."""
    with psycopg.connect(postgres(hub, "postgres")) as connection:
        row = connection.execute("SHOW max_connections").fetchone()
    assert row is not None
    assert int(row[0]) > _WORKERS * (_POOL_SIZE + 5)


def postgres(hub: HubProcess, role: str) -> str:
    """Return the URL of the hub's own Postgres."""
    folder = (hub.data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[4]
    return f"postgresql://{role}@/hub?host={folder}"


async def test_a_hub_without_workers_is_refused_on_their_port(
    hub: HubProcess, tmp_path: Path
) -> None:
    """A port that workers share is not shared with a hub that does not share its own."""
    settings = Settings(data_dir=tmp_path, listen=address_of(hub), embedding="wordllama")
    with pytest.raises(OSError, match=r"cannot listen on .*: is another server there"):
        async with serving(settings, postgres(hub, "hub_server")):
            pass


def test_another_hub_with_workers_is_refused_on_their_port(hub: HubProcess, tmp_path: Path) -> None:
    """A port that workers share is shared with the workers of no other hub."""
    refused = subprocess.run(
        [sys.executable, "-c", "from hub_server.cli import main; main()", "serve"],
        env=os.environ
        | {
            "HUB_DATA_DIR": str(tmp_path),
            "HUB_DATABASE_URL": postgres(hub, "hub_server"),
            "HUB_LISTEN": address_of(hub),
            "HUB_WORKERS": str(_WORKERS),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 1
    line = f"hub: cannot listen on {address_of(hub)}: is another server there?\n"
    assert refused.stderr == line


def test_a_killed_parent_takes_its_workers_along(hub: HubProcess) -> None:
    """After kill -9 of the parent no worker is left that nobody looks after; a start works."""
    orphans = workers(hub)
    assert len(orphans) == _WORKERS
    hub.kill()
    assert psutil.wait_procs(orphans, timeout=10)[1] == []
    hub.start()
    assert len(workers(hub)) == _WORKERS


def test_a_stopped_hub_leaves_no_process_behind(hub: HubProcess) -> None:
    """SIGTERM ends the parent with 0, and before it each worker, with 0 too, and the Postgres."""
    left = workers(hub)
    assert len(left) == _WORKERS
    lock = hub.data_dir / "postgres" / "postmaster.pid"
    assert hub.stop() == 0
    assert not any(worker.is_running() for worker in left)
    assert not lock.exists()
    assert not (hub.data_dir / "address").exists()
    ended = [line for line in hub.log.read_text().splitlines() if "worker stopped" in line]
    assert [json.loads(line)["code"] for line in ended] == [0] * _WORKERS


async def test_a_worker_that_cannot_start_ends_the_start() -> None:
    """A fault that keeps a worker from ever serving is told, not tried again and again."""
    good = supervisor.Worker(["sh", "-c", "read orders; echo serves; exec cat"], b"orders\n")
    bad = supervisor.Worker(["sh", "-c", "read orders; exit 1"], b"orders\n")
    with pytest.raises(supervisor.WorkerError):
        await supervisor.all_serve([good, bad], asyncio.Event())
    await good.stop(5)
    await bad.stop(5)


async def test_an_end_asked_for_during_the_start_is_heeded() -> None:
    """A start does not wait for a worker that takes its time when the hub shall end."""
    slow = supervisor.Worker(["cat"], b"orders\n")
    stopped = asyncio.Event()
    stopped.set()
    assert not await supervisor.all_serve([slow], stopped)
    await slow.stop(5)


async def test_a_worker_that_does_not_end_is_killed() -> None:
    """A worker that hangs cannot keep the hub, and its Postgres, from stopping."""
    deaf = supervisor.Worker(
        ["sh", "-c", "trap '' TERM; read orders; echo serves; exec cat"], b"orders\n"
    )
    await deaf.start()
    async with asyncio.timeout(5):
        await deaf.stop(0.05)


def test_a_worker_that_does_not_last_is_started_later_and_later() -> None:
    """Pauses double up to half a minute, and begin anew when a worker was sound."""
    pauses = [0.125]
    for _ in range(10):
        pauses.append(supervisor.next_pause(pauses[-1], lasted=1.0))
    assert pauses[1:5] == [0.25, 0.5, 1.0, 2.0]
    assert pauses[-1] == 30.0
    assert supervisor.next_pause(30.0, lasted=60.0) == 0.25


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::]"])
def test_a_reserved_port_is_for_sharers_alone(host: str) -> None:
    """Who holds a port without listening keeps other hubs away, and lets workers in."""
    with reserved(f"{host}:0") as address:
        family = socket.AF_INET6 if "[" in host else socket.AF_INET
        check_held(address, family)
        with bound(address, family, socket.SO_REUSEADDR, socket.SO_REUSEPORT) as one:
            with bound(address, family, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                check_held(address, family)
            accept_and_close(one)
        # Neither that no worker listens, nor what is left of its connections, gives it away.
        check_held(address, family)
    with reserved(address) as again:
        assert again == address


def check_held(address: str, family: int) -> None:
    """Check that neither a hub with workers nor one without can have the address."""
    with pytest.raises(OSError, match="is another server there"), reserved(address):
        pass
    with pytest.raises(OSError, match="in use"), bound(address, family, socket.SO_REUSEADDR):
        pass


def bound(address: str, family: int, *options: int) -> socket.socket:
    """Return a socket that listens, bound with these options."""
    host, _, port = address.rpartition(":")
    listener = socket.socket(family)
    try:
        for option in options:
            listener.setsockopt(socket.SOL_SOCKET, option, 1)
        listener.bind((host.strip("[]"), int(port)))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def accept_and_close(listener: socket.socket) -> None:
    """Accept a connection and be the first to close it, as a hub that stops."""
    loopback = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}[listener.family]
    with socket.socket(listener.family) as client:
        client.connect((loopback, listener.getsockname()[1]))
        listener.accept()[0].close()
        assert client.recv(1) == b""


def test_what_cannot_be_listened_on_is_told() -> None:
    """A name without an address is told as such."""
    with (
        pytest.raises(OSError, match=r"cannot listen on nowhere\.invalid:1: "),
        reserved("nowhere.invalid:1"),
    ):
        pass
