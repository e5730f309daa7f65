"""The end of memories: what expired 30 days ago is deleted, of all tenants, a few at a time."""

import datetime as dt
from typing import Final

from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.memory.turn import Turn
from hub_server.memory.write_repository import due_memories

_BATCH: Final = 100


async def purge(database: Database) -> int:
    """Delete all memories whose grace is over; return how many."""
    count = 0
    while True:
        async with database.system() as connection:
            due = await due_memories(connection, _BATCH)
        for one in due:
            count += await _deleted(database, one["tenant_id"], one["user_id"], one["memory_id"])
        if len(due) < _BATCH:
            return count


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
