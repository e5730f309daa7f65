"""Start-up: what the hub refuses to serve from, the first start, and hubs that start at once."""

import asyncio
import os
import re
import stat
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import psycopg
import pytest
import sqlalchemy as sa

from hub_client import AsyncHubClient
from hub_client.v1 import ListUsersRequest
from hub_server import preflight
from hub_server.database import OWNER_ROLE, Database
from hub_server.migrations import head, migrate
from hub_server.postgres import DataDirBusyError, embedded_postgres, exclusive
from hub_server.preflight import UnfitDatabaseError
from hub_server.settings import Settings
from tests.support import running_hub

_ROOT: Final = Path(__file__).parents[2]
_ROLE: Final = Settings().server_role
_SERVE: Final = (sys.executable, "-c", "from hub_server.cli import main; main()", "serve")


@pytest.fixture
def migrated(empty_database: str) -> str:
    """URL of a superuser of a new database with the hub's schema and no tenant."""
    migrate(empty_database, _ROLE)
    return empty_database


def _sql(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements as a superuser; return the rows of the last one."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements[:-1]:
            connection.execute(statement)
        cursor = connection.execute(statements[-1])
        return cursor.fetchall() if cursor.description else []


def _name(url: str) -> str:
    return str(sa.make_url(url).database)


async def _finding(url: str, role: str = _ROLE) -> str:
    """Return why the hub would not start from a database."""
    database = Database(url, role=role, pool_size=1)
    try:
        with pytest.raises(UnfitDatabaseError) as caught:
            await preflight.check(database)
    finally:
        await database.close()
    return str(caught.value)


async def _accepted(url: str) -> bool:
    database = Database(url, role=_ROLE, pool_size=1)
    try:
        await preflight.check(database)
    finally:
        await database.close()
    return True


@contextmanager
def _role(url: str, attributes: str) -> Iterator[str]:
    """Make a role that may do what the server's role may, and has further attributes."""
    name = f"hub_test_{uuid.uuid4().hex}"
    _sql(
        url,
        f"CREATE ROLE {name} LOGIN {attributes}",
        f"GRANT {_ROLE} TO {name}",
        f"GRANT SELECT ON alembic_version TO {name}",
    )
    try:
        yield name
    finally:
        _sql(url, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


# --- refusals ------------------------------------------------------------------------------------


async def test_a_migrated_database_is_accepted(migrated: str) -> None:
    """The databases refused below have one fault each: this one has none."""
    assert await _accepted(migrated)


@pytest.mark.parametrize("attribute", ["SUPERUSER", "BYPASSRLS"])
async def test_a_role_that_bypasses_row_security_is_refused(migrated: str, attribute: str) -> None:
    """Under such a role every tenant would see every other."""
    with _role(migrated, attribute) as role:
        assert await _finding(migrated, role) == (
            f"role {role} bypasses row security: tenants would not be separated"
        )


async def test_without_pgvector_all_works_but_the_engine_that_needs_it(migrated: str) -> None:
    """A database without the extension is migrated and served; HUB_INDEX=pgvector is refused."""
    database = Database(migrated, role=Settings().server_role, pool_size=1)
    try:
        await preflight.check(database, with_pgvector=True)
        _sql(migrated, "DROP EXTENSION vector")
        migrate(migrated, Settings().server_role)  # makes it where it is missing
        await preflight.check(database, with_pgvector=True)
        _sql(migrated, "DROP EXTENSION vector")
        await preflight.check(database)
        with pytest.raises(UnfitDatabaseError, match="needs the extension vector"):
            await preflight.check(database, with_pgvector=True)
    finally:
        await database.close()


async def test_a_role_that_is_the_owner_is_refused(migrated: str) -> None:
    """An owner could switch row security off."""
    assert await _finding(migrated, OWNER_ROLE) == (
        f"role {OWNER_ROLE} owns the tables: it could switch row security off"
    )


@pytest.mark.parametrize("inherits", ["INHERIT", "NOINHERIT"])
async def test_a_role_that_may_become_the_owner_is_refused(migrated: str, inherits: str) -> None:
    """A member of the owner's role is as good as the owner."""
    with _role(migrated, f"{inherits} IN ROLE {OWNER_ROLE}") as role:
        assert "owns the tables" in await _finding(migrated, role)


async def test_a_role_that_nothing_was_granted_to_is_told(migrated: str) -> None:
    """Who serves as another role than he migrated for learns that, not of an internal error."""
    with _role(migrated, "") as role:
        _sql(migrated, f"DROP OWNED BY {role}", f"REVOKE {_ROLE} FROM {role}")
        assert await _finding(migrated, role) == (
            f"role {role} has no rights here: `hub migrate` was run for another role"
        )


async def test_a_role_that_owns_one_table_is_refused(migrated: str) -> None:
    """Also where the table is not owned by the hub's usual owner."""
    _sql(migrated, f"ALTER TABLE memory_store OWNER TO {_ROLE}")
    assert await _finding(migrated) == (
        f"role {_ROLE} owns the tables: it could switch row security off"
    )


@pytest.mark.parametrize("change", ["NO FORCE", "DISABLE"])
async def test_a_table_without_row_security_is_refused(migrated: str, change: str) -> None:
    """Row security that does not bind the owner, or nobody, is told with the table's name."""
    _sql(
        migrated,
        f"ALTER TABLE users {change} ROW LEVEL SECURITY",
        f"ALTER TABLE chunks {change} ROW LEVEL SECURITY",
    )
    assert await _finding(migrated) == "row security is not enabled and forced on: chunks, users"


async def test_a_foreign_table_of_tenants_is_refused(migrated: str) -> None:
    """Any table with a `tenant_id` in the hub's schema must be protected, whoever made it."""
    _sql(migrated, "CREATE TABLE somebody_elses (tenant_id uuid)")
    assert await _finding(migrated) == "row security is not enabled and forced on: somebody_elses"


async def test_a_database_that_commits_without_the_disk_is_refused(migrated: str) -> None:
    """With synchronous_commit off, acknowledged writes are lost in a crash."""
    _sql(migrated, f"ALTER DATABASE {_name(migrated)} SET synchronous_commit = off")
    assert await _finding(migrated) == (
        "synchronous_commit is off in Postgres: acknowledged writes could be lost"
    )


async def test_a_server_that_does_not_reach_the_disk_is_refused() -> None:
    """Tried on a Postgres of its own: the settings are those of a whole server."""
    # Not under tmp_path: another pytest of root that starts meanwhile would lock Postgres out.
    with TemporaryDirectory(prefix="hub-") as folder, embedded_postgres(Path(folder)) as url:
        for setting in ("fsync", "full_page_writes"):
            _sql(url, f"ALTER SYSTEM SET {setting} = off", "SELECT pg_reload_conf()")
            await _until(url, f"SHOW {setting}", "off")
            assert await _finding(url, "postgres") == (
                f"{setting} is off in Postgres: acknowledged writes could be lost"
            )
            _sql(url, f"ALTER SYSTEM RESET {setting}", "SELECT pg_reload_conf()")
            await _until(url, f"SHOW {setting}", "on")


def test_an_embedded_postgres_keeps_its_data_and_gets_the_connections_it_needs() -> None:
    """Also one whose operator used ALTER SYSTEM, which rewrites the file of our settings."""
    with TemporaryDirectory(prefix="hub-") as folder:
        with embedded_postgres(Path(folder)) as url:
            _sql(url, "CREATE TABLE kept ()", "ALTER SYSTEM SET max_connections = 50")
        with embedded_postgres(Path(folder), connections=150) as url:
            assert _sql(url, "SELECT FROM kept") == []
            assert _sql(url, "SHOW unix_socket_permissions") == [("0700",)]
            assert int(_sql(url, "SHOW max_connections")[0][0]) >= 150


async def _until(url: str, query: str, value: object) -> None:
    """Wait until a query returns this value; Postgres tells nobody when that will be."""
    async with asyncio.timeout(60):
        while await asyncio.to_thread(_sql, url, query) != [(value,)]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_database_without_the_schema_is_refused(empty_database: str) -> None:
    """It is told what to run."""
    assert await _finding(empty_database) == (
        f"the database has no hub schema, this hub needs {head()}: run `hub migrate`"
    )


@pytest.mark.parametrize("revision", ["0000", "9999"])
async def test_a_database_of_another_revision_is_refused(migrated: str, revision: str) -> None:
    """An older schema lacks something, and what a newer one holds this hub does not know."""
    _sql(migrated, f"UPDATE alembic_version SET version_num = '{revision}'")  # noqa: S608 - ours
    assert await _finding(migrated) == (
        f"the database is at revision {revision}, this hub needs {head()}: run `hub migrate`"
    )


# --- the command ---------------------------------------------------------------------------------


def _environment(data_dir: Path, **settings: str) -> dict[str, str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("HUB_")}
    inside = {"DATA_DIR": str(data_dir), "LISTEN": "127.0.0.1:0", "EMBEDDING": "wordllama"}
    inside |= {name.upper(): value for name, value in settings.items()}
    return outside | {f"HUB_{name}": value for name, value in inside.items()}


def _serve(data_dir: Path, **settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        _SERVE,
        cwd=_ROOT,
        env=_environment(data_dir, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_operator_is_told_in_one_line(empty_database: str, tmp_path: Path) -> None:
    """`hub serve` ends with 1 and one plain line, without a traceback."""
    hub = _serve(tmp_path, database_url=empty_database)
    out, err = hub.communicate(timeout=60)
    assert (hub.returncode, out) == (1, "")
    assert err == (
        f"hub: the database has no hub schema, this hub needs {head()}: run `hub migrate`\n"
    )


def test_a_data_directory_in_use_is_told_with_its_user(tmp_path: Path) -> None:
    """Another hub in the directory ends `hub serve` before it touches Postgres' files."""
    with exclusive(tmp_path):
        hub = _serve(tmp_path)
        out, err = hub.communicate(timeout=60)
    assert (hub.returncode, out) == (1, "")
    assert err == f"hub: another hub is running in {tmp_path} (process {os.getpid()})\n"
    assert not (tmp_path / "postgres").exists()


def test_a_data_directory_is_free_again_when_its_hub_is_gone(tmp_path: Path) -> None:
    """Also after an error, and whatever the lock file holds from before."""
    for _ in range(2):
        with suppress(ZeroDivisionError), exclusive(tmp_path):
            with pytest.raises(DataDirBusyError, match=f"process {os.getpid()}"):
                exclusive(tmp_path).__enter__()
            raise ZeroDivisionError


async def test_the_first_start_writes_a_key_and_prints_it_nowhere(
    migrated: str, tmp_path: Path
) -> None:
    """`service.key` can be read by its owner only, and opens the hub; no output bears it."""
    hub = _serve(tmp_path, database_url=migrated, log_level="DEBUG")
    assert hub.stdout is not None
    first = await asyncio.to_thread(hub.stdout.readline)
    address = re.findall(r"listens on (\S+),", first)[0]
    assert (tmp_path / "address").read_text() == address
    key_file = tmp_path / "service.key"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    key = key_file.read_text()
    assert re.fullmatch(r"hub_sk_[0-9a-f]{32}_[0-9A-Za-z]{49}", key)
    async with AsyncHubClient(address, key) as client:
        assert [user async for user in client.identity.list_users(ListUsersRequest())] == []
    hub.terminate()
    out, err = await asyncio.to_thread(hub.communicate, timeout=60)
    assert hub.returncode == 0
    assert '"event": "call"' in err
    assert key not in first + out + err
    assert key.removeprefix("hub_sk_") not in first + out + err
    assert _names(tmp_path) == ["service.key"]  # the address is gone with the hub


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# --- the first start -----------------------------------------------------------------------------


async def test_a_later_start_makes_no_second_key(migrated: str, tmp_path: Path) -> None:
    """The tenant and its key are made once; a hub elsewhere over the same database makes none."""
    async with running_hub(migrated, _folder(tmp_path, "first")) as hub:
        key = hub.key
    async with running_hub(migrated, _folder(tmp_path, "first")) as hub:
        assert hub.key == key
    async with running_hub(migrated, _folder(tmp_path, "second")) as hub:
        assert hub.key == ""
    assert _sql(migrated, "SELECT count(*), count(DISTINCT name) FROM tenants") == [(1, 1)]
    assert _sql(migrated, "SELECT count(*) FROM credentials") == [(1,)]


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir(exist_ok=True)
    return folder


async def test_a_key_that_is_there_already_is_set_aside(migrated: str, tmp_path: Path) -> None:
    """It may be of a first start that crashed, or of another database: it is never overwritten."""
    (tmp_path / "service.key").write_text("hub_sk_of_another")
    (tmp_path / "service.new").write_text("half")
    async with running_hub(migrated, tmp_path) as hub:
        client = hub.client(hub.key)
        assert [user async for user in client.identity.list_users(ListUsersRequest())] == []
    assert stat.S_IMODE((tmp_path / "service.key").stat().st_mode) == 0o600
    (kept,) = (name for name in _names(tmp_path) if name.startswith("service.key."))
    assert (tmp_path / kept).read_text() == "hub_sk_of_another"


async def test_hubs_that_start_at_once_make_one_tenant(migrated: str, tmp_path: Path) -> None:
    """Each saw an empty database; one tenant and one key come of it, and all of them serve."""
    folders = [_folder(tmp_path, f"{number}") for number in range(3)]
    async with _held_up(migrated, len(folders)) as starting:
        hubs = [asyncio.create_task(_keys(migrated, folder)) for folder in folders]
        await starting()
    keys = [key for key in await asyncio.gather(*hubs) if key]
    assert len(keys) == 1
    assert _sql(migrated, "SELECT name FROM tenants") == [("default",)]
    assert _sql(migrated, "SELECT count(*) FROM credentials") == [(1,)]


async def _keys(url: str, folder: Path) -> str:
    """Start a hub and return the key it wrote, which must work; empty when it wrote none."""
    async with running_hub(url, folder) as hub:
        if hub.key:
            client = hub.client(hub.key)
            assert [user async for user in client.identity.list_users(ListUsersRequest())] == []
        return hub.key


@asynccontextmanager
async def _held_up(url: str, count: int) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Keep tenants from being added; yields what waits until so many wait to add one."""
    waiting = (
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'"
        " AND relation = 'tenants'::regclass"
    )

    with psycopg.connect(url) as connection:
        connection.execute("LOCK TABLE tenants IN SHARE MODE")
        yield partial(_until, url, waiting, count)
        connection.rollback()
