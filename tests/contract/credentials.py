"""Credentials without a login: a password hash takes a third of a second."""

from typing import Any

from hub_client.v1 import User
from hub_server.caller import Caller
from hub_server.identity import owner
from hub_server.identity.access_repository import AccessRepository
from hub_server.identity.scopes import EVERYTHING
from hub_server.identity.secrets import SERVICE_KEY, Secret
from hub_server.ids import new_id
from tests.support import Hub, Tenant


async def issue(tenant: Tenant, kind: str, user: User | None = None, **values: Any) -> str:
    """Return a new credential of a tenant; with a user, it is a user token."""
    credential_id = new_id()
    secret = Secret.service_key(credential_id) if kind == SERVICE_KEY else Secret.new(kind)
    caller = Caller.hub(tenant.tenant_id)
    if user is None:
        values.setdefault("scopes", list(EVERYTHING))
    async with tenant.hub.database.transaction(caller) as connection:
        await AccessRepository(connection, caller).add_credential(
            "user_token" if user else "service_key",
            secret.hash,
            credential_id,
            user_id=user.user_id if user else None,
            **values,
        )
    return secret.text


def operator_of(hub: Hub) -> str:
    """Return the key of a new operator of a hub."""
    return owner.create_operator(hub.owner_url, "tests")
