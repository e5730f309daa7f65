"""What must be true of a database before the hub serves from it."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server import vector_store
from hub_server.database import Database
from hub_server.migrations import head

_OLDEST_POSTGRES: Final = 150000

_SETTINGS: Final = sa.text("""
    SELECT current_setting('server_version_num')::int AS version,
           current_setting('fsync') AS fsync,
           current_setting('full_page_writes') AS full_page_writes,
           current_setting('synchronous_commit') AS synchronous_commit
""")
_ROLE: Final = sa.text("""
    SELECT current_user AS name, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user
""")
_SCHEMA: Final = sa.text("""
    SELECT to_regclass('alembic_version') IS NOT NULL AS exists, current_user AS name,
           has_table_privilege(to_regclass('alembic_version'), 'SELECT') AS readable
""")
_REVISION: Final = sa.text("SELECT version_num FROM alembic_version")
_TENANT_TABLES: Final = sa.text("""
    SELECT c.relname, c.relrowsecurity AND c.relforcerowsecurity AS protected,
           pg_has_role(c.relowner, 'MEMBER') AS owned
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE a.attname = 'tenant_id' AND c.relkind IN ('r', 'p')
      AND c.relnamespace = current_schema()::regnamespace
    ORDER BY c.relname
""")


class UnfitDatabaseError(RuntimeError):
    """The database would let the hub break a promise; the message says which and what to do."""


async def check(database: Database, *, with_pgvector: bool = False) -> None:
    """Refuse a database that loses acknowledged writes or does not separate tenants.

    With ``with_pgvector`` also one that lacks it. Raises UnfitDatabaseError with the first finding.
    """
    async with database.system() as connection:
        await _check_settings(connection)
        await _check_schema(connection)
        await _check_tenancy(connection)
        if with_pgvector and not await vector_store.is_fit(connection):
            _refuse(
                "HUB_INDEX=pgvector needs the extension vector, 0.8 or newer: install pgvector"
                " and run `hub migrate` as a role that may create extensions"
            )


async def _check_settings(connection: AsyncConnection) -> None:
    row = (await connection.execute(_SETTINGS)).one()
    if row.version < _OLDEST_POSTGRES:
        _refuse(f"Postgres 15 or newer is needed, this one is {row.version // 10000}")
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        if getattr(row, setting) == "off":
            _refuse(f"{setting} is off in Postgres: acknowledged writes could be lost")


async def _check_schema(connection: AsyncConnection) -> None:
    schema = (await connection.execute(_SCHEMA)).one()
    if schema.exists and not schema.readable:
        _refuse(f"role {schema.name} has no rights here: `hub migrate` was run for another role")
    revision = (await connection.execute(_REVISION)).scalar() if schema.exists else None
    if revision != head():
        found = f"is at revision {revision}" if revision else "has no hub schema"
        _refuse(f"the database {found}, this hub needs {head()}: run `hub migrate`")


async def _check_tenancy(connection: AsyncConnection) -> None:
    role = (await connection.execute(_ROLE)).one()
    if role.rolsuper or role.rolbypassrls:
        _refuse(f"role {role.name} bypasses row security: tenants would not be separated")
    tables = (await connection.execute(_TENANT_TABLES)).all()
    if unprotected := [table.relname for table in tables if not table.protected]:
        _refuse(f"row security is not enabled and forced on: {', '.join(unprotected)}")
    if any(table.owned for table in tables):
        _refuse(f"role {role.name} owns the tables: it could switch row security off")


def _refuse(finding: str) -> None:
    raise UnfitDatabaseError(finding)
