"""The audit log, to which every room adds: one event in the transaction of the act it tells of."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.caller import Caller
from hub_server.identity.models import audit_events, users
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
    """Write down what the caller did, or tried to do.

    A user is named unless he is being erased: what ends after that must not tell of him any more.
    """
    target: Any = target_id
    if target_type == "user":
        target = sa.func.coalesce(sa.cast(_living(caller, target_id), sa.Text), "")
    await connection.execute(
        sa.insert(audit_events).values(
            tenant_id=caller.tenant_id,
            event_id=new_id(),
            event_type=event_type,
            outcome="success" if done else "failure",
            actor_credential_id=caller.credential_id or None,
            actor_user_id=caller.user_id and _living(caller, caller.user_id),
            target_type=target_type,
            target_id=target,
            created_at=sa.func.clock_timestamp(),
        )
    )


def _living(caller: Caller, user_id: str) -> Any:
    """Return a user's id, NULL where nobody bears it any more."""
    query = sa.select(users.c.user_id).where(
        users.c.tenant_id == caller.tenant_id,
        users.c.user_id == user_id,
        users.c.erasure_id.is_(None),
    )
    return query.scalar_subquery()
