"""Connections that carry their tenant, over tables that row security closes.

The helpers at the end make Postgres wait, or change what reaches it; the other files here use
them too.
"""

import asyncio
import random
import re
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from hub_client.errors import LoginFailedError
from hub_client.v1 import (
    AppendMessageRequest,
    BuildContextRequest,
    CreateSessionRequest,
    EraseUserRequest,
    ListSessionsRequest,
    LoginRequest,
    MemoryType,
    RecallRequest,
    ReembedSpaceRequest,
    RememberRequest,
    ReserveTokensRequest,
    Role,
    SearchRequest,
    UpdateDefaultConfigRequest,
    User,
    UserConfig,
)
from hub_server import database as database_module
from hub_server.batching import Batcher
from hub_server.caller import Caller
from hub_server.chat.appends import PendingAppend
from hub_server.database import Database, as_role, metadata
from hub_server.errors import HubError, Reason
from hub_server.identity.access_repository import AccessRepository
from hub_server.identity.secrets import USER_TOKEN, Secret
from hub_server.ids import new_id
from hub_server.migrations import migrate
from hub_server.settings import Settings
from tests.erasing import AS_OTHERS_DO, in_thread
from tests.support import Hub, Tenant, running_hub

_ROLE = Settings().server_role
_TABLES = [table for table in metadata.sorted_tables if "tenant_id" in table.c]
# What belongs to no tenant: the hub's own keys, and the revision of the schema.
_WITHOUT_TENANT = {"hub_keys", "alembic_version"}
_FORBIDDEN = "42501"
_FACT = MemoryType.MEMORY_TYPE_FACT


@pytest.fixture(params=["none", "transaction"])
async def database(
    request: pytest.FixtureRequest, owner_url: str, role_url: str
) -> AsyncIterator[Database]:
    """One pooled connection, in either way the tenant reaches Postgres."""
    pooler = request.param == "transaction"
    url = role_url if pooler else owner_url
    database = Database(url, role=_ROLE, pool_size=1, pooler=pooler)
    yield database
    await database.close()


@pytest.fixture
def role_url(owner_url: str) -> str:
    """URL that logs in as the server's role, as one behind a pooler has to."""
    return logged_in_as_role(owner_url)


async def test_a_connection_without_a_tenant_sees_no_row(hub: Hub, tenant: Tenant) -> None:
    """Every tenant table holds rows, and a connection that carries no tenant sees none of them."""
    await _write_to_every_table(tenant)
    for table in _TABLES:
        assert _rows(hub, table, tenant), f"{table.name} was to hold a row"
        async with hub.database.system() as connection:
            seen = await connection.scalar(sa.select(sa.func.count()).select_from(table))
        assert seen == 0, table.name


async def test_a_connection_without_a_tenant_can_insert_no_row(hub: Hub, tenant: Tenant) -> None:
    """A row that one tenant could write is refused by row security when no tenant is set."""
    await _write_to_every_table(tenant)
    for table in _TABLES:
        with pytest.raises(HubError) as caught:
            async with hub.database.system() as connection:
                await connection.execute(_copy_of(table), {"row": _rows(hub, table, tenant)[0]})
        assert _sqlstate(caught.value) == _FORBIDDEN, table.name


async def test_a_tenant_reaches_no_row_of_another_by_any_statement(
    hub: Hub, tenant: Tenant, other_tenant: Tenant
) -> None:
    """Without any WHERE, one tenant's SELECT, UPDATE, DELETE and INSERT leave another's rows be."""
    await _write_to_every_table(tenant)
    before = [_rows(hub, table, tenant) for table in _TABLES]
    caller = Caller.hub(other_tenant.tenant_id)
    for table, rows in zip(_TABLES, before, strict=True):
        async with hub.database.transaction(caller) as connection:
            own = sa.select(table.c.tenant_id).distinct()
            seen = (await connection.scalars(own)).all()
            assert set(seen) <= {other_tenant.tenant_id}, table.name
            theirs = table.c.tenant_id == tenant.tenant_id
            if table.name != "audit_events":  # which nobody changes: see test_audit
                touched = sa.update(table).where(theirs).values(updated_at=sa.func.now())
                assert (await connection.execute(touched)).rowcount == 0, table.name
                assert (await connection.execute(sa.delete(table).where(theirs))).rowcount == 0
        with pytest.raises(HubError) as caught:
            async with hub.database.statement(caller) as connection:
                await connection.execute(_copy_of(table), {"row": rows[0]})
        assert _sqlstate(caught.value) == _FORBIDDEN, table.name
    assert [_rows(hub, table, tenant) for table in _TABLES] == before


async def test_the_server_can_reach_no_table_outside_row_security(hub: Hub) -> None:
    """Of all tables the server's role has a right to, only the two without tenants are open."""
    reachable = hub.sql(
        """
        SELECT c.relname, c.relrowsecurity AND c.relforcerowsecurity
        FROM pg_class c
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
          AND c.relnamespace = 'public'::regnamespace
          AND has_table_privilege(%s, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
        """,
        _ROLE,
    )
    closed = {name for name, is_forced in reachable if is_forced}
    assert closed == {table.name for table in _TABLES}
    assert {name for name, _ in reachable} - closed == _WITHOUT_TENANT


async def test_one_connection_serves_two_tenants_and_never_mixes_them(
    database: Database, tenant: Tenant, other_tenant: Tenant
) -> None:
    """Two tenants share one connection, at once and in turn, some cut off: each sees its own."""
    for one in (tenant, other_tenant):
        await one.new_user()
    chance = random.Random(2)  # noqa: S311 - repeatable, not secret
    callers = [Caller.hub(one.tenant_id) for one in (tenant, other_tenant)]
    answered = 0
    for _ in range(25):
        asked = [chance.choice(callers) for _ in range(8)]
        tasks = [asyncio.create_task(_tenants_seen(database, caller)) for caller in asked]
        await asyncio.sleep(chance.random() * 0.01)
        for task in chance.sample(tasks, 2):
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for caller, answer in zip(asked, answers, strict=True):
            if isinstance(answer, asyncio.CancelledError):
                continue
            assert answer == [caller.tenant_id]
            answered += 1
    assert answered >= 100
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # QueuePool has it


@pytest.mark.parametrize("pooler", ["none", "transaction"])
async def test_a_hub_with_one_connection_never_mixes_answers_of_tenants(
    empty_database: str, tmp_path: Path, pooler: str
) -> None:
    """Calls of two tenants race for one connection, many are given up midway: answers stay apart.

    Afterwards the connection is not lost, nor is any transaction left open.
    """
    async with own_hub(empty_database, tmp_path, pool_size=1, pooler=pooler) as hub:
        tenants = [await hub.new_tenant() for _ in range(2)]
        users = [await one.new_user() for one in tenants]
        chance = random.Random(3)  # noqa: S311 - repeatable, not secret
        for _ in range(6):
            pairs = [chance.choice(list(zip(tenants, users, strict=True))) for _ in range(12)]
            tasks = [asyncio.create_task(_work_of(*pair)) for pair in pairs]
            await asyncio.sleep(chance.random() * 0.05)
            for task in chance.sample(tasks, 5):
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            for (_, user), owners in zip(pairs, done, strict=True):
                if not isinstance(owners, asyncio.CancelledError):
                    assert owners == {user.user_id}
        for one, user in zip(tenants, users, strict=True):
            assert await _work_of(one, user) == {user.user_id}
        await until(lambda: set(_states(hub)) == {"idle"})
        # One for calls, four at most for what has no tenant, one that listens, and the test's own.
        assert len(_states(hub)) <= 1 + 4 + (pooler == "none") + 1


async def test_a_connection_whose_work_was_cut_off_is_closed(
    database: Database, hub: Hub, tenant: Tenant
) -> None:
    """After a cancelled statement the next one runs on another connection, and the old is gone."""
    caller = Caller.hub(tenant.tenant_id)
    before = await _backend(database, caller)
    task = asyncio.create_task(_run(database, caller, "SELECT pg_sleep(60)"))
    await until(lambda: _asleep(hub, before))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await _backend(database, caller) != before
    await until(lambda: not hub.sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s", before))


async def test_a_connection_whose_work_failed_is_closed(database: Database, tenant: Tenant) -> None:
    """After a statement that Postgres refused the next one runs on another connection."""
    caller = Caller.hub(tenant.tenant_id)
    before = await _backend(database, caller)
    with pytest.raises(HubError) as caught:
        await _run(database, caller, "SELECT 1 / 0")
    assert caught.value.reason == Reason.REASON_INTERNAL
    assert await _backend(database, caller) != before


async def test_a_refusal_rolls_back_and_keeps_the_connection(
    database: Database, hub: Hub, tenant: Tenant
) -> None:
    """A rule that refuses undoes what its transaction wrote, and costs no connection."""
    user = await tenant.new_user()
    caller = Caller.hub(tenant.tenant_id)
    before = await _backend(database, caller)

    async def rename_and_refuse() -> None:
        async with database.transaction(caller) as connection:
            renamed = sa.text("UPDATE users SET display_name = 'other' WHERE user_id = :id")
            await connection.execute(renamed, {"id": user.user_id})
            raise HubError(Reason.REASON_SESSION_ENDED)

    with pytest.raises(HubError):
        await rename_and_refuse()
    name = "SELECT display_name FROM users WHERE user_id = %s"
    assert hub.sql(name, user.user_id) == [("",)]
    assert await _backend(database, caller) == before


async def test_a_connection_killed_by_postgres_fails_one_call_only(
    database: Database, hub: Hub, tenant: Tenant
) -> None:
    """Terminating the pooled backend is UNAVAILABLE for who meets it; the next call is served."""
    caller = Caller.hub(tenant.tenant_id)
    before = await _backend(database, caller)
    hub.sql("SELECT pg_terminate_backend(%s, 10000)", before)
    with pytest.raises(HubError) as caught:
        await _backend(database, caller)
    assert caught.value.reason == Reason.REASON_UNAVAILABLE
    assert await _backend(database, caller) != before


async def test_waiting_too_long_for_a_connection_is_overloaded(
    owner_url: str, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who gets no connection in time is refused as OVERLOADED; the holder is not disturbed."""
    monkeypatch.setattr(database_module, "_POOL_WAIT_SECONDS", 0.05)
    database = Database(owner_url, role=_ROLE, pool_size=1)
    caller = Caller.hub(tenant.tenant_id)
    async with database.statement(caller) as connection:
        with pytest.raises(HubError) as caught:
            await _backend(database, caller)
        assert caught.value.reason == Reason.REASON_OVERLOADED
        assert await connection.scalar(sa.text("SELECT 1")) == 1
    await database.close()


async def test_behind_a_pooler_no_tenant_outlives_its_transaction(
    role_url: str, tenant: Tenant
) -> None:
    """In pooler mode the connection carries nothing on: without a transaction it sees no row."""
    await tenant.new_user()
    database = Database(role_url, role=_ROLE, pool_size=1, pooler=True)
    caller = Caller.hub(tenant.tenant_id)
    pid = await _backend(database, caller)
    assert await _tenants_seen(database, caller) == [tenant.tenant_id]
    async with database.engine.connect() as connection:
        assert await connection.scalar(sa.text("SELECT pg_backend_pid()")) == pid
        assert await connection.scalar(sa.text("SELECT hub_tenant()")) is None
        assert await connection.scalar(sa.text("SELECT count(*) FROM users")) == 0
    await database.close()


async def test_a_connection_is_told_a_tenant_once(owner_url: str, tenant: Tenant) -> None:
    """Calls of one tenant cost no statement for that; `statements` leaves it out."""
    database = Database(owner_url, role=_ROLE, pool_size=1)
    told: list[str] = []

    def note(statement: str) -> str:
        told.extend([statement] if statement.startswith("SELECT set_config") else [])
        return statement

    with passing(note):
        for _ in range(3):
            await _backend(database, Caller.hub(tenant.tenant_id))
        assert len(told) == 1
        await _backend(database, Caller.hub(new_id()))
        assert len(told) == 2
    await database.close()


async def _write_to_every_table(tenant: Tenant) -> None:
    """Make calls that leave a row of the tenant in each table."""
    client, user = tenant.client, await tenant.new_user()
    session = await tenant.new_session(user)
    await client.chat.append_message(
        AppendMessageRequest(session_id=session.session_id, role=Role.ROLE_USER, content="tea?")
    )
    await client.memory.remember(
        RememberRequest(user_id=user.user_id, memory_type=_FACT, memory_content="likes tea")
    )
    await tenant.ingest(user, "Tea", "Tea is brewed at ninety degrees.")
    await client.knowledge.search(
        SearchRequest(user_id=user.user_id, query="tea", session_id=session.session_id)
    )
    await client.chat.reserve_tokens(ReserveTokensRequest(user_id=user.user_id, tokens=1))
    await client.identity.update_default_config(
        UpdateDefaultConfigRequest(config=UserConfig(max_sessions=5))
    )
    with pytest.raises(LoginFailedError):
        await client.identity.login(LoginRequest(email="who@example.org", password="guessed"))
    await client.chat.build_context(
        BuildContextRequest(session_id=session.session_id, token_budget=100)
    )
    await client.knowledge.reembed_space(
        ReembedSpaceRequest(user_id=user.user_id, embedding_model="wordllama-l2-256")
    )
    for statement in AS_OTHERS_DO:
        await in_thread(tenant.hub.sql, statement, tenant.tenant_id, user.user_id)
    other = await tenant.new_user()
    await client.identity.erase_user(EraseUserRequest(user_id=other.user_id))


def _rows(hub: Hub, table: sa.Table, tenant: Tenant) -> list[str]:
    """Return a tenant's rows of a table as JSON texts, as a superuser sees them."""
    query = sql.SQL("SELECT to_jsonb(t)::text FROM {} t WHERE tenant_id = %s ORDER BY 1")
    text = query.format(sql.Identifier(table.name)).as_string()
    return [row for (row,) in hub.sql(text, tenant.tenant_id)]


def _copy_of(table: sa.Table) -> sa.TextClause:
    """Return the statement that inserts a row given as JSON.

    Row security speaks before any constraint does, so that the row exists already is no matter.
    """
    name = table.name
    columns = ", ".join(column.name for column in table.c if column.computed is None)
    return sa.text(
        f"INSERT INTO {name} ({columns}) SELECT {columns}"  # noqa: S608 - names of the schema
        f" FROM jsonb_populate_record(NULL::{name}, CAST(:row AS jsonb))"
    )


def _sqlstate(error: HubError) -> str | None:
    cause = error.__cause__
    assert isinstance(cause, sa.exc.DBAPIError)
    return getattr(cause.orig, "sqlstate", None)


async def _run(database: Database, caller: Caller, statement: str) -> Sequence[Any]:
    async with database.statement(caller) as connection:
        return (await connection.scalars(sa.text(statement))).all()


async def _tenants_seen(database: Database, caller: Caller) -> Sequence[Any]:
    return await _run(database, caller, "SELECT DISTINCT tenant_id::text FROM users")


async def _backend(database: Database, caller: Caller) -> int:
    return int((await _run(database, caller, "SELECT pg_backend_pid()"))[0])


def _asleep(hub: Hub, pid: int) -> bool:
    query = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
    return bool(hub.sql(query, pid))


async def _work_of(tenant: Tenant, user: User) -> set[str]:
    """Write and read for a user; return the owners of all that was answered."""
    client, user_id = tenant.client, user.user_id
    created = await client.chat.create_session(CreateSessionRequest(user_id=user_id))
    owners = {created.session.user_id}
    for content in ("likes tea", "likes milk"):
        kept = await client.memory.remember(
            RememberRequest(user_id=user_id, memory_type=_FACT, memory_content=content)
        )
        owners.add(kept.memory.user_id)
    listed = client.chat.list_sessions(ListSessionsRequest(user_id=user_id))
    owners |= {session.user_id async for session in listed}
    found = await client.memory.recall(RecallRequest(user_id=user_id, query="tea"))
    return owners | {hit.memory.user_id for hit in found.hits}


def _states(hub: Hub) -> list[str]:
    query = """
        SELECT state FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'cortex-hub'
    """
    return [state for (state,) in hub.sql(query)]


# --- what the other files here share --------------------------------------------------------------


def logged_in_as_role(owner_url: str) -> str:
    """Return the URL that logs in as the server's role, which is given a password if need be."""
    url = as_role(owner_url, _ROLE)
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        password = secrets.token_hex()
        change = sql.SQL("ALTER ROLE {} PASSWORD {}")
        with psycopg.connect(owner_url, autocommit=True) as connection:
            connection.execute(change.format(sql.Identifier(_ROLE), sql.Literal(password)))
        url = sa.make_url(url).set(password=password).render_as_string(hide_password=False)
    return url


@contextmanager
def new_database(postgres_url: str) -> Iterator[str]:
    """Make an empty database, where the fixture `empty_database` would not live long enough."""
    name = f"hub_test_{new_id().replace('-', '')}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield sa.make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@asynccontextmanager
async def own_hub(database_url: str, data_dir: Path, **values: Any) -> AsyncIterator[Hub]:
    """Serve an empty database of a superuser's URL; `values` are settings.

    A hub in pooler mode logs in as the server's role; `Hub.sql` is a superuser's all the same.
    """
    migrate(database_url, _ROLE)
    await asyncio.to_thread(data_dir.mkdir, exist_ok=True)
    url = database_url
    if values.get("pooler") == "transaction":
        url = logged_in_as_role(database_url)
    async with running_hub(url, data_dir, **values) as hub:
        hub.owner_url = database_url
        yield hub


async def token_of(tenant: Tenant, user_id: str) -> str:
    """Return a token of a user, as a login makes it, without the cost of a password."""
    caller, secret = Caller.hub(tenant.tenant_id), Secret.new(USER_TOKEN)
    async with tenant.hub.database.transaction(caller) as connection:
        repository = AccessRepository(connection, caller)
        await repository.add_credential("user_token", secret.hash, user_id=user_id)
    return secret.text


async def until(condition: Callable[[], object]) -> None:
    """Return once the condition holds; it is asked again and again, for 20 seconds at most."""
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


@contextmanager
def held(hub: Hub, query: str, *parameters: Any) -> Iterator[None]:
    """Hold what a `SELECT … FOR UPDATE` locks until the block ends."""
    with psycopg.connect(hub.owner_url) as connection:
        assert connection.execute(query, parameters).fetchone() is not None
        yield
        connection.rollback()


def held_session(hub: Hub, session_id: str) -> AbstractContextManager[None]:
    """Hold a session: every append to it waits until the block ends."""
    return held(hub, "SELECT 1 FROM chat_sessions WHERE session_id = %s FOR UPDATE", session_id)


def waiting_for_locks(hub: Hub) -> int:
    """Return how many connections of hubs wait for a lock in this database."""
    query = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'cortex-hub'
          AND wait_event_type = 'Lock'
    """
    return int(hub.sql(query)[0][0])


async def occupied(hub: Hub, append: Callable[[], Coroutine[Any, Any, Any]]) -> list[Any]:
    """Let appends to a held session wait in Postgres until their hub begins no other group.

    Returns their tasks. What is sent from now on goes to Postgres together.
    """
    tasks: list[Any] = []
    for count in (1, 2):
        tasks.append(asyncio.create_task(append()))
        await until(lambda: waiting_for_locks(hub) == count)  # noqa: B023 - awaited here
    return tasks


def submissions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that grows with each append that waits for its group, in any hub here."""
    submitted: list[Any] = []
    submit = Batcher.submit

    async def noted(batcher: Batcher[Any, Any], item: Any) -> Any:
        if isinstance(item, PendingAppend):  # and not a credential
            submitted.append(item)
        return await submit(batcher, item)

    monkeypatch.setattr(Batcher, "submit", noted)
    return submitted


@contextmanager
def rewritten(pattern: str, replacement: str = "") -> Iterator[list[tuple[str, str]]]:
    """Change every statement that fits the pattern; yields those changed, before and after."""
    changed: list[tuple[str, str]] = []

    def rewrite(statement: str) -> str:
        other = re.sub(pattern, replacement, statement)
        if other != statement:
            changed.append((statement, other))
        return other

    with passing(rewrite):
        yield changed


@contextmanager
def statements() -> Iterator[list[str]]:
    """Collect the statements of calls: without authentication and without background work.

    And without telling a connection its tenant, where it served another one's, a job's for
    instance: that this is done once is tested by itself.
    """
    seen: list[str] = []
    others = r"\bhub_(authenticate|claim_\w+|gone|purge_\w+|note_used)\b|^SELECT set_config"

    def note(statement: str) -> str:
        task = asyncio.current_task()
        code = getattr(task and task.get_coro(), "cr_code", None)
        is_of_job = code is not None and Path(code.co_filename).parent.name == "jobs"
        if not is_of_job and not re.search(others, statement):
            seen.append(statement)
        return statement

    with passing(note):
        yield seen


@contextmanager
def passing(through: Callable[[str], str]) -> Iterator[None]:
    """Let every statement on its way to Postgres pass through a function."""
    execute = psycopg.AsyncCursor.execute

    async def changed(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        # What SQLAlchemy asks of a new connection comes as something else than a text.
        return await execute(
            self, through(query) if isinstance(query, str) else query, *arguments, **options
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.AsyncCursor, "execute", changed)
        yield
