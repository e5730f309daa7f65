"""The purge of what has had its time, of all tenants: request ids, logins, files, memories."""

import asyncio
import datetime as dt
from typing import Final

import structlog

from hub_server import idempotency
from hub_server.database import Database
from hub_server.identity.system_repository import SystemRepository
from hub_server.jobs import memory_expiry
from hub_server.knowledge.file_repository import purge_files
from hub_server.logs import causes

_EVERY_SECONDS: Final = 3600.0
# For so long who asks why a token was refused can still find its login.
_KEPT: Final = dt.timedelta(days=7)
_FILES_KEPT: Final = dt.timedelta(days=7)  # as UploadDocument promises

log: structlog.stdlib.BoundLogger = structlog.get_logger("hub.purge")


async def run(database: Database) -> None:
    """Purge now and then every hour, until cancelled."""
    while True:
        try:
            async with database.system() as connection:
                request_ids = await idempotency.purge(connection)
                credentials = await SystemRepository(connection).purge_credentials(_KEPT)
                files = await purge_files(connection, _FILES_KEPT)
            memories = await memory_expiry.purge(database)
            log.info(
                "purged",
                request_ids=request_ids,
                credentials=credentials,
                files=files,
                memories=memories,
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the next hour tries again
            log.warning("purge put off", cause=causes(error))
        await asyncio.sleep(_EVERY_SECONDS)
