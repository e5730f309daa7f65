"""Migrations: they run once, and what they make is what the code expects."""

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, Final

import psycopg
import psycopg.sql
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.dialects.postgresql.base import PGDialect

import hub_server.server
from hub_server.database import driver_url, metadata
from hub_server.migrations import MigrationError, head, migrate
from hub_server.settings import Settings

_ROLE: Final = Settings().server_role
# Tables that belong to no tenant: the hubs' common secrets, operators, and Alembic's own.
_COMMON: Final = {"hub_keys", "operators", "alembic_version"}
_TABLES: Final = sorted(set(metadata.tables) - _COMMON)

of_each_table = pytest.mark.parametrize("table", _TABLES)


def _sql(url: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def _database(url: str, name: str) -> str:
    return sa.make_url(url).set(database=name).render_as_string(hide_password=False)


# --- running them --------------------------------------------------------------------------------


@pytest.fixture
def new_database(empty_database: str) -> str:
    """URL of a superuser of a new database, in which nobody waits for ever."""
    name = sa.make_url(empty_database).database
    for limit in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
        _sql(empty_database, f"ALTER DATABASE {name} SET {limit} = '20s'")
    return empty_database


def test_migrations_that_start_at_once_are_applied_once(new_database: str) -> None:
    """Four hubs over one new database: one makes the schema, the others find it made."""
    together = threading.Barrier(4)

    def run() -> None:
        together.wait()
        migrate(new_database, _ROLE)

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(run) for _ in range(4)]:
            done.result()
    assert _sql(new_database, "SELECT version_num FROM alembic_version") == [(head(),)]
    assert _sql(new_database, "SELECT count(*) FROM hub_keys") == [(3,)]


def test_a_migration_waits_for_one_that_runs(new_database: str) -> None:
    """Whoever comes second does nothing before the first is through, and then nothing more."""
    with ThreadPoolExecutor(1) as threads, psycopg.connect(new_database) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [hub_server.migrations._LOCK])
        waiting = threads.submit(migrate, new_database, _ROLE)
        _wait_for_lock(new_database, "advisory")
        assert _sql(new_database, "SELECT to_regclass('alembic_version')") == [(None,)]
        assert not waiting.done()
        connection.close()
        waiting.result()
    assert _sql(new_database, "SELECT version_num FROM alembic_version") == [(head(),)]


def _wait_for_lock(url: str, kind: str) -> None:
    """Return when somebody waits for a lock; pg_sleep lets the other go on meanwhile."""
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = %s"
    for _ in range(500):
        if _sql(url, query, kind) != [(0,)]:
            return
        _sql(url, "SELECT pg_sleep(0.01)")
    pytest.fail("nobody waits")


def test_migrating_again_changes_nothing(empty_database: str) -> None:
    """A start over an existing database leaves data, keys and schema alone."""
    migrate(empty_database, _ROLE)
    before = _sql(empty_database, "SELECT secret FROM hub_keys")
    migrate(empty_database, _ROLE)
    assert _sql(empty_database, "SELECT secret FROM hub_keys") == before


@contextmanager
def _other_database(url: str) -> Iterator[str]:
    name = f"hub_test_{uuid.uuid4().hex}"
    _sql(url, f"CREATE DATABASE {name}")
    yield _database(url, name)
    _sql(url, f"DROP DATABASE {name} WITH (FORCE)")


def test_two_new_databases_of_one_server_can_be_migrated_at_once(empty_database: str) -> None:
    """Roles belong to the whole server: that another migration just made them is no error."""
    role = f"hub_test_{uuid.uuid4().hex}"
    with (
        _other_database(empty_database) as other,
        closing(psycopg.connect(other)) as first,
        ThreadPoolExecutor(1) as threads,
    ):
        first.execute(f"CREATE ROLE {role} LOGIN")  # as the other migration would, in `other`
        second = threads.submit(migrate, empty_database, role)
        _wait_for_lock(empty_database, "transactionid")
        first.commit()
        second.result()
    assert _sql(empty_database, "SELECT version_num FROM alembic_version") == [(head(),)]
    _sql(empty_database, f"DROP OWNED BY {role}")
    _sql(empty_database, f"DROP ROLE {role}")


def test_an_owner_who_may_not_do_everything_can_migrate(empty_database: str) -> None:
    """A role that may create roles and objects in its database suffices: no superuser is needed."""
    admin, role = (f"hub_test_{uuid.uuid4().hex}" for _ in range(2))
    name = sa.make_url(empty_database).database
    _sql(empty_database, f"CREATE ROLE {admin} LOGIN CREATEROLE PASSWORD 'admin'")
    _sql(empty_database, f"ALTER DATABASE {name} OWNER TO {admin}")
    _sql(empty_database, f"GRANT hub_owner TO {admin} WITH ADMIN OPTION")
    url = sa.make_url(empty_database).set(username=admin, password="admin")
    try:
        migrate(url.render_as_string(hide_password=False), role)
        assert _sql(empty_database, "SELECT version_num FROM alembic_version") == [(head(),)]
    finally:
        for one in (role, admin):
            _sql(empty_database, f"DROP OWNED BY {one}")
        _sql(empty_database, f"ALTER DATABASE {name} OWNER TO CURRENT_USER")
        for one in (role, admin):
            _sql(empty_database, f"DROP ROLE {one}")


def test_what_postgres_says_of_a_failed_migration_is_told(empty_database: str) -> None:
    """One line, without SQL or a traceback; and nothing of the failed migration stays."""
    _sql(empty_database, "CREATE TABLE users (name text)")
    with pytest.raises(MigrationError) as caught:
        migrate(empty_database, _ROLE)
    assert str(caught.value) == 'cannot migrate: relation "users" already exists'
    assert _sql(empty_database, "SELECT to_regclass('tenants'), to_regclass('hub_keys')") == [
        (None, None)
    ]


# --- what they make ------------------------------------------------------------------------------


def _is_of_models(_: object, name: str | None, kind: str, *__: object) -> bool:
    """Leave out the graphs of pgvector, which hubs make for the dimensions they meet."""
    return not (kind == "index" and (name or "").startswith("vectors_graph_"))


def test_the_schema_is_what_the_models_say(owner_url: str) -> None:
    """Tables, columns, types, defaults, keys, indexes: Alembic finds no difference."""
    engine = sa.create_engine(driver_url(owner_url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        options = {
            "compare_type": True,
            "compare_server_default": True,
            "include_object": _is_of_models,
        }
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []
    engine.dispose()


@of_each_table
def test_a_column_is_in_postgres_what_it_is_in_the_models(owner_url: str, table: str) -> None:
    """The very types and NULL-ness, by Postgres' own spelling, which Alembic compares loosely."""
    found = _sql(
        owner_url,
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
        table,
    )
    spelled = {"TIMESTAMP WITH TIME ZONE": "timestamp with time zone"}
    expected = {
        (column.name, spelled.get(kind, kind.lower()), not column.nullable)
        for column in metadata.tables[table].columns
        for kind in [column.type.compile(PGDialect())]  # type: ignore[no-untyped-call]
    }
    assert set(found) == expected


@of_each_table
def test_an_index_is_in_postgres_what_it_is_in_the_models(owner_url: str, table: str) -> None:
    """Columns in their order, and uniqueness, of every index and unique key."""
    found = _sql(
        owner_url,
        "SELECT i.indisunique, array_agg(a.attname::text ORDER BY k.place) FROM pg_index i,"
        " unnest(i.indkey) WITH ORDINALITY k (attnum, place), pg_attribute a"
        " WHERE i.indrelid = %s::regclass AND a.attrelid = i.indrelid AND a.attnum = k.attnum"
        " GROUP BY i.indexrelid, i.indisunique",
        table,
    )
    model = metadata.tables[table]
    unique = [
        one
        for one in model.constraints
        if isinstance(one, sa.PrimaryKeyConstraint | sa.UniqueConstraint)
    ]
    expected = [(True, [column.name for column in one.columns]) for one in unique]
    expected += [
        (bool(one.unique), [column.name for column in one.columns]) for one in model.indexes
    ]
    assert sorted(found) == sorted(expected)


def test_every_table_of_a_tenant_says_so(owner_url: str) -> None:
    """Each table bears `tenant_id`, but for those that belong to no tenant."""
    tables = _sql(owner_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert {name for (name,) in tables} == {*_TABLES, *_COMMON}
    bearing = _sql(
        owner_url,
        "SELECT table_name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND column_name = 'tenant_id' AND is_nullable = 'NO'",
    )
    assert {name for (name,) in bearing} == set(_TABLES)


@of_each_table
def test_row_security_binds_everybody(owner_url: str, table: str) -> None:
    """Enabled and forced; the server's role has one policy for all commands: its own tenant."""
    assert _sql(
        owner_url,
        "SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = %s::regclass",
        table,
    ) == [(True, True)]
    policies = _sql(
        owner_url,
        "SELECT roles::text[], cmd, permissive, qual, with_check FROM pg_policies"
        " WHERE tablename = %s AND NOT 'hub_owner' = ANY (roles)",
        table,
    )
    own = "(tenant_id = hub_tenant())"
    assert policies == [([_ROLE], "ALL", "PERMISSIVE", own, own)]


@of_each_table
def test_a_primary_key_begins_with_the_tenant(owner_url: str, table: str) -> None:
    """So the tables can be spread by tenant without change."""
    assert _key_starts(owner_url, table, "p") == ["tenant_id"]


@of_each_table
def test_a_foreign_key_begins_with_the_tenant_on_both_sides(owner_url: str, table: str) -> None:
    """No row can refer to a row of another tenant."""
    assert set(_key_starts(owner_url, table, "f")) <= {"tenant_id"}
    others = _sql(
        owner_url,
        "SELECT a.attname FROM pg_constraint c JOIN pg_attribute a"
        " ON a.attrelid = c.confrelid AND a.attnum = c.confkey[1]"
        " WHERE c.conrelid = %s::regclass AND c.contype = 'f'",
        table,
    )
    assert {name for (name,) in others} <= {"tenant_id"}


def _key_starts(url: str, table: str, kind: str) -> list[str]:
    """Return the first column of each key of a kind."""
    rows = _sql(
        url,
        "SELECT a.attname FROM pg_constraint c JOIN pg_attribute a"
        " ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]"
        " WHERE c.conrelid = %s::regclass AND c.contype = %s",
        table,
        kind,
    )
    return [name for (name,) in rows]


@of_each_table
def test_a_unique_key_begins_with_the_tenant(owner_url: str, table: str) -> None:
    """One tenant never learns from a conflict what another has; names of tenants are the hub's."""
    expected = {"name"} if table == "tenants" else {"tenant_id"}
    assert set(_key_starts(owner_url, table, "u")) <= expected


def test_the_role_of_the_server_owns_nothing_and_bypasses_nothing(owner_url: str) -> None:
    """It may read and write rows, and call the functions that look across tenants, no more."""
    assert _sql(
        owner_url,
        "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb FROM pg_roles"
        " WHERE rolname = %s",
        _ROLE,
    ) == [(False, False, False, False)]
    owned = "SELECT relname FROM pg_class WHERE relowner = %s::regrole"
    assert _sql(owner_url, owned, _ROLE) == []
    rights = (
        "SELECT DISTINCT privilege_type FROM information_schema.role_table_grants"
        " WHERE grantee = %s AND table_schema = 'public' ORDER BY 1"
    )
    rows = _sql(owner_url, rights, _ROLE)
    assert [right for (right,) in rows] == ["DELETE", "INSERT", "SELECT", "UPDATE"]


def test_what_looks_across_tenants_is_for_the_server_alone(owner_url: str) -> None:
    """Functions that run as the owner have a fixed search path and cannot be called by others."""
    functions = _sql(
        owner_url,
        "SELECT proname, proconfig::text[], has_function_privilege(%s, oid, 'EXECUTE'),"
        " EXISTS (SELECT FROM aclexplode(proacl) WHERE grantee = 0)"
        " FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace",
        _ROLE,
    )
    assert len(functions) == 18
    for _, settings, for_server, for_everybody in functions:
        assert settings == ["search_path=public, pg_temp"]
        assert (for_server, for_everybody) == (True, False)


@pytest.mark.parametrize("tenant", [None, "", "00000000-0000-0000-0000-000000000001"])
def test_without_its_tenant_a_connection_sees_and_writes_nothing(
    owner_url: str, tenant: str | None
) -> None:
    """Unset, empty or of nobody: row security lets no row of any table through."""
    with psycopg.connect(owner_url) as connection:
        connection.execute(
            "INSERT INTO tenants (tenant_id, name) VALUES (gen_random_uuid(), gen_random_uuid())"
        )
        connection.execute(f"SET ROLE {_ROLE}")
        if tenant is not None:
            connection.execute("SELECT set_config('hub.tenant', %s, true)", [tenant])
        for table in _TABLES:
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)  # noqa: S608
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            connection.execute(
                "INSERT INTO tenants (tenant_id, name) VALUES (gen_random_uuid(), 'stray')"
            )
        connection.rollback()


def test_what_the_first_version_made_lives_on(empty_database: str) -> None:
    """Keys get every scope, tokens can be revoked, users have usage, zones are Postgres' own."""
    _migrate_to(empty_database, "0001")
    tenant, user, session = (str(uuid.uuid4()) for _ in range(3))
    with psycopg.connect(empty_database) as connection:
        for table, values in (
            ("tenants", {"tenant_id": tenant, "name": "old"}),
            ("users", {"user_id": user, "email": "a@b.org", "email_key": "a@b.org"}),
            ("user_configs", {"config_id": user, "user_id": user, "timezone": "Mars/Olympus"}),
            ("credentials", {"credential_id": tenant, "kind": "service_key"}),
            ("credentials", {"credential_id": user, "kind": "user_token", "user_id": user}),
            ("chat_sessions", {"session_id": session, "user_id": user, "total_tokens_used": 7}),
        ):
            row: dict[str, Any] = {"tenant_id": tenant, **values}
            if table == "credentials":
                row |= {"secret_hash": uuid.UUID(row["credential_id"]).bytes * 2}
                row |= {"expires_at": "2100-01-01"}
            names = psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, row))
            marks = psycopg.sql.SQL(", ").join(psycopg.sql.Placeholder() * len(row))
            into = psycopg.sql.SQL("INSERT INTO {} ({}) VALUES ({})")
            connection.execute(
                into.format(psycopg.sql.Identifier(table), names, marks), list(row.values())
            )
    migrate(empty_database, _ROLE)
    assert _sql(
        empty_database,
        "SELECT kind, array_length(scopes, 1), refresh_expires_at = expires_at FROM credentials"
        " ORDER BY kind",
    ) == [("service_key", 5, None), ("user_token", None, True)]
    assert _sql(empty_database, "SELECT timezone FROM user_configs") == [("UTC",)]
    assert _sql(empty_database, "SELECT total_tokens_used FROM user_usage") == [(7,)]


def _migrate_to(url: str, revision: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        upgrade = command.upgrade
        patch.setattr(command, "upgrade", lambda config, _: upgrade(config, revision))
        migrate(url, _ROLE)
