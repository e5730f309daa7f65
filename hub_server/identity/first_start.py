"""The first start in an empty database: the tenant ``default`` and a service key for it."""

import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.identity.access_repository import AccessRepository
from hub_server.identity.logins import DEFAULT_TENANT
from hub_server.identity.scopes import EVERYTHING
from hub_server.identity.secrets import Secret
from hub_server.identity.system_repository import SystemRepository
from hub_server.ids import new_id
from hub_server.settings import Settings

_NAME: Final = re.compile(r"[a-z0-9]{1,16}")


async def ensure_default_tenant(database: Database, key_file: Path) -> bool:
    """Create the tenant and write its key, unless the database has tenants; tell whether it did.

    The key is on disk before the tenant is committed: a crash in between leaves a file with a
    key nobody honours, which the next start sets aside, but never a tenant without a key. Of
    several hubs that start at once one creates the tenant.
    """
    async with database.system() as connection:
        if await SystemRepository(connection).has_tenants():
            return False
    caller, key_id = Caller.hub(new_id()), new_id()
    secret = Secret.service_key(key_id)
    async with database.transaction(caller) as connection:
        access = AccessRepository(connection, caller)
        if not await access.add_tenant(DEFAULT_TENANT):
            return False
        await access.add_credential(
            "service_key", secret.hash, key_id, name="first start", scopes=list(EVERYTHING)
        )
        _write_private(key_file, secret.text)
    return True


async def shared_key(database: Database, name: str) -> bytes:
    """Return a secret that all hubs over this database share, such as ``page_token``."""
    async with database.system() as connection:
        return await SystemRepository(connection).key(name)


def read_peppers(settings: Settings) -> Mapping[str, bytes]:
    """Return the keys of password hashes by name, the one for new hashes first.

    They are HUB_PEPPER's. Without it, a hub on its own Postgres keeps one in its data directory,
    made when it is missing; over a given Postgres there is none, since all hubs over it would have
    to know it. Raises ValueError when HUB_PEPPER is malformed.
    """
    if settings.pepper is not None:
        pairs = [pair.partition(":") for pair in settings.pepper.get_secret_value().split(",")]
        if not all(_NAME.fullmatch(name) and key for name, _, key in pairs):
            message = "HUB_PEPPER must be name:key, or several of these separated by commas"
            raise ValueError(message)
        return {name: key.encode() for name, _, key in pairs}
    if settings.database_url is not None:
        return {"none": b""}
    file = settings.data_dir / "pepper"
    if not file.exists():
        _write_private(file, secrets.token_hex(32))
    return {"file": file.read_bytes()}


def _write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, durably and at once.

    One that is there already may be another database's only key: it is kept under another name.
    """
    if path.exists():
        path.rename(path.with_name(f"{path.name}.{time.time_ns()}"))
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
