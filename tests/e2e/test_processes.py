"""What a hub process promises when it, or its Postgres, is killed, stopped or started twice."""

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest
import sqlalchemy as sa

from hub_client import HubClient
from hub_client.errors import HubError, UnavailableError
from hub_client.v1 import (
    AppendMessageRequest,
    CreateSessionRequest,
    CreateUserRequest,
    DocumentStatus,
    GetDocumentRequest,
    IngestDocumentRequest,
    ListMessagesRequest,
    MemoryType,
    Message,
    RecallRequest,
    RememberRequest,
    Role,
    SearchRequest,
)
from hub_server.migrations import migrate
from hub_server.settings import Settings
from tests.support import HubProcess, hub_process

COMMAND = [sys.executable, "-c", "from hub_server.cli import main; main()"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    """A hub process that is not started yet."""
    with hub_process(tmp_path / "data") as process:
        yield process


def new_session(client: HubClient) -> str:
    """Create a user and start a session; return its id."""
    request = CreateUserRequest(email=f"{uuid.uuid4().hex}@example.org")
    user = client.identity.create_user(request).user
    return client.chat.create_session(CreateSessionRequest(user_id=user.user_id)).session.session_id


def append(client: HubClient, session_id: str, text: str) -> Message:
    """Append a message whose request_id is its text."""
    request = AppendMessageRequest(
        session_id=session_id, role=Role.ROLE_USER, content=text, request_id=text
    )
    return client.chat.append_message(request).message


def listed(client: HubClient, session_id: str) -> list[tuple[int, str]]:
    """Return seq and content of all messages of a session."""
    request = ListMessagesRequest(session_id=session_id)
    return [(message.seq, message.content) for message in client.chat.list_messages(request)]


class Writer(threading.Thread):
    """Appends to a session until the hub goes away, and notes what was acknowledged."""

    def __init__(self, address: str, key: str, session_id: str, name: str) -> None:
        super().__init__()
        self._arguments = (address, key, session_id)
        self.prefix = name
        self.acknowledged: list[tuple[int, str]] = []
        self.enough = threading.Event()

    def run(self) -> None:
        """Append until a call fails."""
        address, key, session_id = self._arguments
        # A short limit: the client's own retries would wait for a hub that is gone.
        with HubClient(address, key, timeout=2.0) as client:
            try:
                while True:
                    text = f"{self.prefix} {len(self.acknowledged)}"
                    self.acknowledged.append((append(client, session_id, text).seq, text))
                    if len(self.acknowledged) == 15:
                        self.enough.set()
            except HubError:
                return


def write_until(address: str, key: str, session_id: str, end: Callable[[], None]) -> list[Writer]:
    """Let four writers work, call `end` while they do, and return them when they gave up."""
    writers = [Writer(address, key, session_id, f"writer {number}") for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        assert writer.enough.wait(60)
    end()
    for writer in writers:
        writer.join(60)
    return writers


def check_nothing_lost(client: HubClient, session_id: str, writers: list[Writer]) -> None:
    """Check that each acknowledged message stands once, at the seq that was acknowledged."""
    messages = listed(client, session_id)
    assert [seq for seq, _ in messages] == list(range(1, len(messages) + 1))
    assert len({text for _, text in messages}) == len(messages)
    acknowledged = {pair for writer in writers for pair in writer.acknowledged}
    assert acknowledged <= set(messages)
    # At most one append of each writer may be on disk without having been acknowledged.
    assert len(messages) - len(acknowledged) <= len(writers)


def test_a_killed_hub_loses_no_acknowledged_append(hub: HubProcess) -> None:
    """After kill -9 amid appends all acknowledged ones are there once, and retries repeat them."""
    address = hub.start()
    with HubClient(address, hub.key) as client:
        session_id = new_session(client)
    writers = write_until(address, hub.key, session_id, hub.kill)
    with HubClient(hub.start(), hub.key) as client:
        check_nothing_lost(client, session_id, writers)
        before = listed(client, session_id)
        for seq, text in writers[0].acknowledged:
            assert append(client, session_id, text).seq == seq
        assert listed(client, session_id) == before


def test_a_killed_postgres_loses_no_acknowledged_append(hub: HubProcess) -> None:
    """After kill -9 of the whole Postgres amid appends all acknowledged ones are there once."""
    address = hub.start()
    with HubClient(address, hub.key) as client:
        session_id = new_session(client)
    postmaster = psutil.Process(postmaster_pid(hub))

    def kill_postgres() -> None:
        for process in (postmaster, *postmaster.children(recursive=True)):
            # Children end by themselves when they notice that their postmaster is gone.
            with suppress(psutil.NoSuchProcess):
                process.kill()

    writers = write_until(address, hub.key, session_id, kill_postgres)
    hub.stop()
    with HubClient(hub.start(), hub.key) as client:
        check_nothing_lost(client, session_id, writers)


def test_a_lock_file_that_names_another_program_does_not_keep_the_hub_away(
    hub: HubProcess,
) -> None:
    """After a kill -9 of everything its Postgres' number may be anybody's; nothing is lost."""
    address = hub.start()
    with HubClient(address, hub.key) as client:
        session_id = new_session(client)
        append(client, session_id, "a")
    postmaster = psutil.Process(postmaster_pid(hub))
    hub.kill()
    for process in (postmaster, *postmaster.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    file = hub.data_dir / "postgres" / "postmaster.pid"
    number, _, rest = file.read_text().partition("\n")
    assert number == str(postmaster.pid)
    file.write_text(f"{os.getpid()}\n{rest}")
    with HubClient(hub.start(), hub.key) as client:
        assert listed(client, session_id) == [(1, "a")]


def postmaster_pid(hub: HubProcess) -> int:
    """Return the process id of the hub's own Postgres."""
    return int((hub.data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0])


def test_a_killed_ingestion_is_finished_after_the_restart(hub: HubProcess) -> None:
    """Chunks written before a kill -9 stay, the others follow, and none is there twice."""
    address = hub.start()
    paragraphs = [f"Paragraph {number} " + "speaks of birds. " * 60 for number in range(600)]
    with HubClient(address, hub.key) as client:
        user = client.identity.create_user(CreateUserRequest(email="a@example.org")).user
        request = IngestDocumentRequest(
            user_id=user.user_id, title="Birds", text="\n\n".join(paragraphs)
        )
        document_id = client.knowledge.ingest_document(request).document.document_id
        while not chunk_indexes(hub):
            assert is_processing(client, document_id)
        hub.kill()
    written = chunk_indexes(hub)
    with HubClient(hub.start(), hub.key) as client:
        while is_processing(client, document_id):
            pass
        document = client.knowledge.get_document(GetDocumentRequest(document_id=document_id))
        assert document.document.status == DocumentStatus.DOCUMENT_STATUS_READY
        indexes = chunk_indexes(hub)
        assert 0 < len(written) < len(indexes)
        assert indexes == list(range(document.document.chunk_count))
        attempts = sql(hub, "SELECT attempt FROM documents")
        assert attempts == [(2,)]
        found = client.knowledge.search(SearchRequest(user_id=user.user_id, query="Paragraph 599"))
        assert "Paragraph 599" in found.hits[0].chunk.content


def is_processing(client: HubClient, document_id: str) -> bool:
    """Tell whether a document is being processed."""
    document = client.knowledge.get_document(GetDocumentRequest(document_id=document_id)).document
    return document.status == DocumentStatus.DOCUMENT_STATUS_PROCESSING


def chunk_indexes(hub: HubProcess) -> list[int]:
    """Return the indexes of all chunks on disk."""
    return [index for (index,) in sql(hub, "SELECT chunk_index FROM chunks ORDER BY 1")]


def sql(hub: HubProcess, statement: str) -> list[tuple[int, ...]]:
    """Run a statement as the superuser of the hub's own Postgres."""
    folder = (hub.data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[4]
    url = f"postgresql://postgres@/hub?host={folder}"
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def test_a_stopped_hub_finishes_its_calls_and_leaves_nothing_running(hub: HubProcess) -> None:
    """After SIGTERM calls in progress are answered, the code is 0, and no Postgres is left."""
    address = hub.start()
    with HubClient(address, hub.key) as client:
        session_id = new_session(client)
    pid = postmaster_pid(hub)
    codes: list[int] = []
    writers = write_until(address, hub.key, session_id, lambda: codes.append(hub.stop()))
    assert codes == [0]
    assert not is_running(pid)
    assert not (hub.data_dir / "address").exists()
    with HubClient(hub.start(), hub.key) as client:
        acknowledged = sorted(pair for writer in writers for pair in writer.acknowledged)
        # Nothing was cut off: what is on disk was acknowledged, and the other way round.
        assert listed(client, session_id) == acknowledged


def is_running(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_postgres_left_behind_is_taken_over_and_stopped(hub: HubProcess) -> None:
    """A killed hub leaves its Postgres running; the next hub works with it and ends it."""
    hub.start()
    pid = postmaster_pid(hub)
    hub.kill()
    assert is_running(pid)
    with HubClient(hub.start(), hub.key) as client:
        assert postmaster_pid(hub) == pid
        new_session(client)
    hub.stop()
    assert not is_running(pid)


def test_a_second_hub_in_the_same_folder_is_refused(hub: HubProcess) -> None:
    """Two hubs never share a data directory; the second is told so in one line."""
    hub.start()
    refused = run_hub("serve", HUB_DATA_DIR=str(hub.data_dir), HUB_LISTEN="127.0.0.1:0")
    assert refused.returncode == 1
    assert refused.stderr.startswith("hub: another hub is running in ")
    assert len(refused.stderr.splitlines()) == 1


def run_hub(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HUB_")}
    return subprocess.run(
        [*COMMAND, *arguments],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"HUB_POOL_SIZE": "many"}, "hub: HUB_POOL_SIZE: "),
        ({"HUB_LISTEN": "0.0.0.0:1"}, "hub: "),
        ({"HUB_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x"}, "hub: Postgres: conn"),
        ({"HUB_DATABASE_URL": "not a url"}, "hub: HUB_DATABASE_URL: "),
        ({"HUB_EMBEDDING": "other"}, "hub: HUB_EMBEDDING: "),
    ],
)
def test_what_an_operator_can_mend_is_told_in_one_line(
    tmp_path: Path, environment: dict[str, str], line: str
) -> None:
    """Bad settings end the start with one line, not a traceback."""
    refused = run_hub("serve", HUB_DATA_DIR=str(tmp_path / "data"), **environment)
    assert refused.returncode == 1
    assert refused.stderr.startswith(line)
    assert len(refused.stderr.splitlines()) == 1


def test_a_hub_that_cannot_listen_leaves_no_postgres_behind(
    hub: HubProcess, tmp_path: Path
) -> None:
    """A start that fails late, because the port is taken, stops the Postgres it had started."""
    address = hub.start()
    other = tmp_path / "other"
    refused = run_hub(
        "serve", HUB_DATA_DIR=str(other), HUB_LISTEN=address, HUB_EMBEDDING="wordllama"
    )
    assert refused.returncode == 1
    assert f"hub: cannot listen on {address}" in refused.stderr
    assert not (other / "postgres" / "postmaster.pid").exists()


def test_a_hub_stopped_while_it_starts_leaves_no_postgres_behind(tmp_path: Path) -> None:
    """SIGTERM at the moment Postgres begins to run ends both."""
    data = tmp_path / "data"
    environment = {name: text for name, text in os.environ.items() if not name.startswith("HUB_")}
    process = subprocess.Popen(
        [*COMMAND, "serve"],
        env=environment | {"HUB_DATA_DIR": str(data), "HUB_LISTEN": "127.0.0.1:0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while (pid := pid_in(data)) <= 0:  # initdb's own server calls itself by a negative number
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    psutil.wait_procs([psutil.Process(pid)] if is_running(pid) else [], timeout=30)
    assert not is_running(pid)


def pid_in(data: Path) -> int:
    """Return the process id in a Postgres' lock file, or 0 while there is none."""
    try:
        return int((data / "postgres" / "postmaster.pid").read_text().splitlines()[0])
    except (FileNotFoundError, IndexError):
        return 0


def test_a_hub_killed_while_it_makes_its_database_starts_anew(hub: HubProcess) -> None:
    """What a killed initdb left is set aside, and the next start makes a whole one."""
    half = hub.data_dir / "postgres"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with HubClient(hub.start(), hub.key) as client:
        new_session(client)
    assert list(hub.data_dir.glob("postgres.unfinished-*"))


@pytest.fixture
def database(postgres_url: str) -> Iterator[str]:
    """URL of a new, migrated database on the session's Postgres."""
    name = f"hub_test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    url = sa.make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    migrate(url, Settings().server_role)
    yield url
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def test_hubs_over_one_database_see_each_others_writes_at_once(
    database: str, tmp_path: Path
) -> None:
    """What one hub acknowledged the other finds, on the very next call, fifty times."""
    with (
        hub_process(tmp_path / "one", database_url=database) as one,
        hub_process(tmp_path / "two", database_url=database) as two,
    ):
        addresses = one.start(), two.start()
        with HubClient(addresses[0], one.key) as writer, HubClient(addresses[1], one.key) as reader:
            user = writer.identity.create_user(CreateUserRequest(email="a@example.org")).user
            hubs = [writer, reader]
            for number in range(50):
                content = f"The number {number} is remembered"
                request = RememberRequest(
                    user_id=user.user_id,
                    memory_type=MemoryType.MEMORY_TYPE_FACT,
                    memory_content=content,
                )
                hubs[number % 2].memory.remember(request)
                recall = RecallRequest(user_id=user.user_id, query=f"number {number}", top_k=1)
                hits = hubs[1 - number % 2].memory.recall(recall).hits
                assert hits[0].memory.memory_content == content


def test_a_restarted_postgres_is_found_again(database: str, tmp_path: Path) -> None:
    """When all its connections are cut the hub goes on without a restart."""
    with hub_process(tmp_path / "data", database_url=database) as hub:
        address = hub.start()
        with HubClient(address, hub.key) as client:
            session_id = new_session(client)
            for number in range(3):
                with psycopg.connect(database, autocommit=True) as connection:
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                append_when_possible(client, session_id, f"after cut {number}")
            assert [seq for seq, _ in listed(client, session_id)] == [1, 2, 3]


def append_when_possible(client: HubClient, session_id: str, text: str) -> None:
    """Append, as a client does who is told that the hub is unavailable and may try again."""
    for _ in range(20):
        try:
            append(client, session_id, text)
        except UnavailableError:
            continue
        return
    raise AssertionError("the hub did not find Postgres again")
