"""Fixtures: one Postgres for the session, a hub over a database of its own, tenants and users."""

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
import sqlalchemy as sa

# Read when gRPC is first imported; see hub_server.cli.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")


from hub_server.migrations import migrate
from hub_server.postgres import embedded_postgres
from hub_server.settings import Settings
from tests.support import Hub, Tenant, running_hub

_GIVEN_URL = os.environ.get("HUB_DATABASE_URL")


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """Tests set what they need; the developer's own HUB_* must not change what they show."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("HUB_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a superuser of a real Postgres: HUB_DATABASE_URL's, or an embedded one."""
    if _GIVEN_URL:
        yield _GIVEN_URL
        return
    # Not below pytest's own folder: another pytest of root that starts makes that one private.
    with TemporaryDirectory(prefix="hub-") as folder, embedded_postgres(Path(folder)) as url:
        yield url


@pytest.fixture
def empty_database(postgres_url: str) -> Iterator[str]:
    """URL of a superuser of a new, empty database, dropped at the end."""
    name = f"hub_test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield sa.make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def owner_url(postgres_url: str) -> Iterator[str]:
    """URL of a superuser of the migrated database that the session's hub serves."""
    name = f"hub_test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = sa.make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    migrate(url, Settings().server_role)
    yield url
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
async def hub(owner_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hub]:
    """A hub in this process, on a free port; its tenant is `default`."""
    async with running_hub(owner_url, tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
async def tenant(hub: Hub) -> Tenant:
    """A new tenant of the session's hub, with a service key."""
    return await hub.new_tenant()


@pytest.fixture
async def other_tenant(hub: Hub) -> Tenant:
    """Another new tenant of the session's hub."""
    return await hub.new_tenant()
