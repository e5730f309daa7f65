"""What tests share: a running hub, its tenants, and a hub as a process of its own."""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from hub_client import AsyncHubClient
from hub_client.v1 import (
    CreateSessionRequest,
    CreateUserRequest,
    Document,
    DocumentStatus,
    GetDocumentRequest,
    IngestDocumentRequest,
    Session,
    User,
)
from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.identity.access_repository import AccessRepository
from hub_server.identity.scopes import EVERYTHING
from hub_server.identity.secrets import Secret
from hub_server.ids import new_id
from hub_server.memory.rules import Clock, utc_now
from hub_server.server import serving
from hub_server.settings import Settings

# `HUB_INDEX=pgvector make test`: every hub of the tests then searches so.
INDEX = os.environ.get("HUB_INDEX", "hnswlib")
in_memory_only = pytest.mark.skipif(INDEX != "hnswlib", reason="is about views in memory")


@dataclass
class Tenant:
    """A tenant with a service key, and a client that presents it."""

    tenant_id: str
    key: str
    hub: "Hub"
    client: AsyncHubClient

    async def new_user(self, **values: Any) -> User:
        """Create a user; the email is made up unless given."""
        values.setdefault("email", f"{uuid.uuid4().hex}@example.org")
        response = await self.client.identity.create_user(CreateUserRequest(**values))
        return response.user

    async def new_session(self, user: User, **values: Any) -> Session:
        """Start a session of a user."""
        request = CreateSessionRequest(user_id=user.user_id, **values)
        return (await self.client.chat.create_session(request)).session

    async def ingest(self, user: User, title: str, text: str, **values: Any) -> Document:
        """Ingest a document, whether or not the user has its text, and wait until it is ready."""
        values.setdefault("allow_duplicate", True)
        request = IngestDocumentRequest(user_id=user.user_id, title=title, text=text, **values)
        document = (await self.client.knowledge.ingest_document(request)).document
        return await settled(self.client, document.document_id)


@dataclass
class Hub:
    """A hub that serves in this process."""

    address: str
    key: str
    owner_url: str
    settings: Settings
    database: Database
    clients: list[AsyncHubClient]

    def client(self, key: str | None = None) -> AsyncHubClient:
        """Return a client that presents `key`; it is closed with the hub."""
        client = AsyncHubClient(self.address, key)
        self.clients.append(client)
        return client

    async def new_tenant(self) -> Tenant:
        """Create a tenant as the first start does, under another name."""
        caller, key_id = Caller.hub(new_id()), new_id()
        secret = Secret.service_key(key_id)
        async with self.database.transaction(caller) as connection:
            access = AccessRepository(connection, caller)
            await access.add_tenant(uuid.uuid4().hex)
            await access.add_credential("service_key", secret.hash, key_id, scopes=list(EVERYTHING))
        return Tenant(caller.tenant_id, secret.text, self, self.client(secret.text))

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement as a superuser, whom row security does not bind; return its rows."""
        with psycopg.connect(self.owner_url, autocommit=True) as connection:
            cursor = connection.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []


@asynccontextmanager
async def running_hub(
    owner_url: str, data_dir: Path, *, clock: Clock = utc_now, **values: Any
) -> AsyncIterator[Hub]:
    """Serve a migrated database in this process; `values` are settings."""
    values = {"embedding": "wordllama", "listen": "127.0.0.1:0", "index": INDEX, **values}
    settings = Settings(data_dir=data_dir, **values)
    database = Database(owner_url, role=settings.server_role, pool_size=4)
    async with serving(settings, owner_url, clock=clock) as address:
        key_file = data_dir / "service.key"
        key = key_file.read_text() if key_file.exists() else ""
        hub = Hub(address, key, owner_url, settings, database, [])
        try:
            yield hub
        finally:
            for client in hub.clients:
                await client.close()
    await database.close()


async def settled(client: AsyncHubClient, document_id: str) -> Document:
    """Return a document once it is processed, in either way."""
    async with asyncio.timeout(60):
        while True:
            request = GetDocumentRequest(document_id=document_id)
            document = (await client.knowledge.get_document(request)).document
            if document.status != DocumentStatus.DOCUMENT_STATUS_PROCESSING:
                return document
            await asyncio.sleep(0.02)  # polling, as any caller of this API does


class HubProcess:
    """`hub serve` as a process of its own, to be killed and started again."""

    def __init__(self, data_dir: Path, **environment: str) -> None:
        """`environment` are HUB_* variables without the prefix, in any case."""
        self.data_dir = data_dir
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HUB_")},
            "HUB_DATA_DIR": str(data_dir),
            "HUB_LISTEN": "127.0.0.1:0",
            "HUB_EMBEDDING": "wordllama",
            "HUB_INDEX": INDEX,
            **{f"HUB_{name.upper()}": value for name, value in environment.items()},
        }
        self.process: subprocess.Popen[str] | None = None
        self.log = data_dir.parent / f"{data_dir.name}.log"

    @property
    def key(self) -> str:
        """The service key of the first start."""
        return (self.data_dir / "service.key").read_text()

    def start(self) -> str:
        """Start and return the address once it serves; raises with the log when it ends."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from hub_server.cli import main; main()", "serve"],
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if "listens on" not in line:
            raise RuntimeError(f"the hub did not start: {self.log.read_text()}")
        return line.split("listens on ")[1].split(",")[0]

    def kill(self) -> None:
        """Kill -9, and wait for the end."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; return the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None
        return code


@contextmanager
def hub_process(data_dir: Path, **environment: str) -> Iterator[HubProcess]:
    """Yield a process that is not started yet; at the end it and its own Postgres are stopped.

    A hub that was killed leaves its Postgres behind: the next start takes it over, and stops it.
    """
    hub = HubProcess(data_dir, **environment)
    try:
        yield hub
    finally:
        if hub.process is None and (data_dir / "postgres" / "postmaster.pid").exists():
            hub.start()
        if hub.process is not None:
            hub.stop()
