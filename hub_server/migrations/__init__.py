"""Alembic migrations, and ``migrate``, which brings a database up to date.

Two roles: the owner of all objects (``hub_owner``, cannot log in) and the server's role, under
which every query of the hub runs and which row security binds.
"""

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError

from hub_server.database import OWNER_ROLE, driver_url

_SET_IS_A_RIGHT: Final = (16,)
# Any constant number serves; all hubs that migrate one database must agree on it.
_LOCK: Final = 0x68756221
# Roles belong to the whole server: hubs that migrate other databases may make them at this moment.
_CREATE_ROLE: Final = """
DO $$ BEGIN
    CREATE ROLE {role} {login} NOSUPERUSER NOBYPASSRLS;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$
"""
# Only a superuser, or who a managed Postgres lets, may. Without it all migrates, too.
_CREATE_VECTOR: Final = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector') THEN
        CREATE EXTENSION IF NOT EXISTS vector;
    END IF;
EXCEPTION WHEN insufficient_privilege OR unique_violation THEN NULL;
END $$
"""


class MigrationError(RuntimeError):
    """The database could not be brought up to date."""


def migrate(url: str, server_role: str) -> None:
    """Bring the database up to date; runs once, however many processes ask at a time.

    ``url`` logs in as a role that may create roles and objects, or as a member of ``hub_owner``
    where both roles exist. Raises MigrationError with what Postgres said.
    """
    engine = sa.create_engine(driver_url(url), poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            _migrate(connection, server_role)
    except DBAPIError as error:
        message = f"cannot migrate: {str(error.orig).splitlines()[0]}"
        raise MigrationError(message) from error
    finally:
        engine.dispose()


def _migrate(connection: sa.Connection, server_role: str) -> None:
    """Migrate while holding the lock that all hubs over this database respect."""
    connection.execute(sa.select(sa.func.pg_advisory_lock(_LOCK)))
    connection.commit()
    _ensure_roles(connection, server_role)
    connection.execute(sa.text(_CREATE_VECTOR))
    connection.commit()
    connection.execute(sa.text(f"SET ROLE {OWNER_ROLE}"))
    connection.commit()
    config = _config()
    config.attributes["connection"] = connection
    config.attributes["server_role"] = server_role
    command.upgrade(config, "head")
    # The end of the connection frees the lock and forgets the role.


def head() -> str:
    """Return the revision the hub's code was written for."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        message = "no migrations are installed"
        raise RuntimeError(message)
    return revision


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


def _ensure_roles(connection: sa.Connection, server_role: str) -> None:
    """Create the two roles where they are missing, and let the owner create in this database."""
    for role, login in ((OWNER_ROLE, "NOLOGIN"), (server_role, "LOGIN")):
        known = connection.scalar(sa.text("SELECT 1 FROM pg_roles WHERE rolname = :r"), {"r": role})
        if known is None:
            connection.execute(sa.text(_CREATE_ROLE.format(role=role, login=login)))
    # A superuser may take on every role; since Postgres 16 who made a role must first be let to.
    version = connection.dialect.server_version_info or (0,)
    right = "SET" if version >= _SET_IS_A_RIGHT else "MEMBER"
    for role in (OWNER_ROLE, server_role):
        if not connection.scalar(sa.text(f"SELECT pg_has_role(:r, '{right}')"), {"r": role}):
            connection.execute(sa.text(f"GRANT {role} TO CURRENT_USER"))
    if not connection.scalar(
        sa.text("SELECT has_schema_privilege(:r, 'public', 'CREATE')"), {"r": OWNER_ROLE}
    ):
        connection.execute(sa.text(f"GRANT CREATE ON SCHEMA public TO {OWNER_ROLE}"))
    connection.commit()
