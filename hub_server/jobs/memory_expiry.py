"""The end of memories: what expired 30 days ago is deleted, of all tenants, a few at a time."""

import datetime as dt
from typing import Final

import structlog

from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.logs import causes
from hub_server.memory.turn import Turn
from hub_server.memory.write_repository import due_memories

_BATCH: Final = 100

log: structlog.stdlib.BoundLogger = structlog.get_logger("hub.memory_expiry")


async def purge(database: Database) -> int:
    """Delete all memories whose grace is over; return how many.

    One that cannot be deleted, such as that of a user who is erased meanwhile, keeps none of the
    others: it is passed over until the next time.
    """
    count = 0
    passed: set[str] = set()
    while True:
        async with database.system() as connection:
            due = await due_memories(connection, _BATCH + len(passed))
        todo = [one for one in due if one["memory_id"] not in passed]
        for one in todo:
            if await _is_deleted(database, one["tenant_id"], one["user_id"], one["memory_id"]):
                count += 1
            else:
                passed.add(one["memory_id"])
        if not todo:
            return count


async def _is_deleted(database: Database, tenant_id: str, user_id: str, memory_id: str) -> bool:
    """Delete a memory; return whether that was possible."""
    try:
        return await _deleted(database, tenant_id, user_id, memory_id)
    except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
        log.warning("memory not deleted", memory_id=memory_id, cause=causes(error))
        return False


async def _deleted(database: Database, tenant_id: str, user_id: str, memory_id: str) -> bool:
    """Delete a memory in a transaction of its own, unless it lives again or is gone."""
    caller = Caller.hub(tenant_id)
    async with database.transaction(caller) as connection:
        turn = await Turn.begin(connection, caller, user_id, lambda: dt.datetime.now(dt.UTC))
        memory = await turn.writes.memory(memory_id)
        if memory is None or memory["expires_at"] is None or memory["expires_at"] > turn.now:
            return False
        await turn.delete(memory)
        return True
