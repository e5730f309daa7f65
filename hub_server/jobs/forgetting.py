"""Views of users who are gone are dropped, by each process its own.

Whoever erases a user removes his views in its own process, and their files. All other processes
are told, and look themselves now and then, since they may not hear it. No search of somebody who is
gone gets as far as a view; this is what bounds the time for which one may lie there.
"""

from typing import Final

import structlog

from hub_server.database import Database
from hub_server.erasure.repository import ERASURES, gone
from hub_server.logs import causes
from hub_server.retrieval.index import Index
from hub_server.retrieval.views import Space
from hub_server.spaces import KINDS
from hub_server.wakeups import Wakeups

_EVERY_SECONDS: Final = 60.0

log: structlog.stdlib.BoundLogger = structlog.get_logger("hub.forgetting")


async def run(database: Database, views: Index, wakeups: Wakeups) -> None:
    """Drop what is to go whenever somebody was erased, and every minute, until cancelled."""
    subscription = wakeups.subscribe(ERASURES)
    while True:
        subscription.looks()
        try:
            await sweep(database, views)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next time tries again
            log.warning("views not looked through", cause=causes(error))
        await subscription.wait(_EVERY_SECONDS)


async def sweep(database: Database, views: Index) -> int:
    """Remove the views of users who are gone; return how many it were."""
    owners = sorted(await views.owners())
    if not owners:
        return 0
    async with database.system() as connection:
        lost = await gone(connection, owners)
    removed = 0
    for tenant_id, user_id in lost:
        for kind in KINDS:
            removed += await views.forget(Space(tenant_id, user_id, kind, ""))
    return removed
