"""The audit log, to which every room adds: one event in the transaction of the act it tells of."""

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.caller import Caller
from hub_server.identity.models import audit_events
from hub_server.ids import new_id


async def note(
    connection: AsyncConnection,
    caller: Caller,
    event_type: str,
    target_type: str,
    target_id: str,
    *,
    done: bool = True,
) -> None:
    """Write down what the caller did, or tried to do."""
    await connection.execute(
        sa.insert(audit_events).values(
            tenant_id=caller.tenant_id,
            event_id=new_id(),
            event_type=event_type,
            outcome="success" if done else "failure",
            actor_credential_id=caller.credential_id or None,
            actor_user_id=caller.user_id,
            target_type=target_type,
            target_id=target_id,
            created_at=sa.func.clock_timestamp(),
        )
    )
