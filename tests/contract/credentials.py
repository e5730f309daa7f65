"""Credentials without a login: a password hash takes a third of a second."""

from typing import Any

from hub_client.v1 import User
from hub_server.caller import Caller
from hub_server.identity.repository import IdentityRepository
from hub_server.identity.secrets import Secret
from tests.support import Tenant


async def issue(tenant: Tenant, kind: str, user: User | None = None, **values: Any) -> str:
    """Return a new credential of a tenant; with a user, it is a user token."""
    secret = Secret.new(kind)
    caller = Caller.hub(tenant.tenant_id)
    async with tenant.hub.database.transaction(caller) as connection:
        await IdentityRepository(connection, tenant.tenant_id).add_credential(
            "user_token" if user else "service_key",
            secret.hash,
            user_id=user.user_id if user else None,
            **values,
        )
    return secret.text
