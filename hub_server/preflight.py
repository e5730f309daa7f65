"""What must be true of a database before the hub serves from it."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.database import Database
from hub_server.migrations import OWNER_ROLE, head

_OLDEST_POSTGRES: Final = 150000

_SETTINGS: Final = sa.text("""
    SELECT current_setting('server_version_num')::int AS version,
           current_setting('fsync') AS fsync,
           current_setting('full_page_writes') AS full_page_writes,
           current_setting('synchronous_commit') AS synchronous_commit
""")
_ROLE: Final = sa.text("""
    SELECT current_user AS name, rolsuper, rolbypassrls, pg_has_role(:owner, 'MEMBER') AS owns
    FROM pg_roles WHERE rolname = current_user
""")
_REVISION: Final = sa.text("SELECT version_num FROM alembic_version")
_HAS_REVISION: Final = sa.text("SELECT to_regclass('alembic_version')")
_UNPROTECTED: Final = sa.text("""
    SELECT c.relname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE a.attname = 'tenant_id' AND c.relkind IN ('r', 'p')
      AND c.relnamespace = current_schema()::regnamespace
      AND NOT (c.relrowsecurity AND c.relforcerowsecurity)
    ORDER BY 1
""")


class UnfitDatabaseError(RuntimeError):
    """The database would let the hub break a promise; the message says which and what to do."""


async def check(database: Database) -> None:
    """Refuse a database that loses acknowledged writes or does not separate tenants.

    Raises UnfitDatabaseError with the first finding.
    """
    async with database.system() as connection:
        await _check_settings(connection)
        await _check_schema(connection)
        await _check_role(connection)


async def _check_settings(connection: AsyncConnection) -> None:
    row = (await connection.execute(_SETTINGS)).one()
    if row.version < _OLDEST_POSTGRES:
        _refuse(f"Postgres 15 or newer is needed, this one is {row.version // 10000}")
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        if getattr(row, setting) == "off":
            _refuse(f"{setting} is off in Postgres: acknowledged writes could be lost")


async def _check_schema(connection: AsyncConnection) -> None:
    known = (await connection.execute(_HAS_REVISION)).scalar()
    revision = (await connection.execute(_REVISION)).scalar() if known else None
    if revision != head():
        found = f"is at revision {revision}" if revision else "has no hub schema"
        _refuse(f"the database {found}, this hub needs {head()}: run `hub migrate`")
    unprotected = (await connection.execute(_UNPROTECTED)).scalars().all()
    if unprotected:
        _refuse(f"row security is not enabled and forced on: {', '.join(unprotected)}")


async def _check_role(connection: AsyncConnection) -> None:
    row = (await connection.execute(_ROLE, {"owner": OWNER_ROLE})).one()
    if row.rolsuper or row.rolbypassrls:
        _refuse(f"role {row.name} bypasses row security: tenants would not be separated")
    if row.owns:
        _refuse(f"role {row.name} owns the tables: it could switch row security off")


def _refuse(finding: str) -> None:
    raise UnfitDatabaseError(finding)
