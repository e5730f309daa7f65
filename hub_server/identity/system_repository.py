"""SQL of identity beyond a tenant: what precedes one, and what the owner does. Never commits."""

import datetime as dt
from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.database import HotStatement
from hub_server.identity.models import audit_events, credentials, hub_keys, operators, tenants
from hub_server.ids import new_id
from hub_server.paging import Page
from hub_server.rows import Row

_ID: Final = sa.Uuid(as_uuid=False)
_AUTHENTICATE: Final = HotStatement(
    "SELECT place, tenant_id::text, credential_id::text, kind, user_id::text, scopes,"
    " subject_is_active FROM hub_authenticate(:hashes ::bytea[], :subjects ::uuid[])"
)
_TENANT_NAMED: Final = sa.text("SELECT hub_tenant_named(:name) AS tenant_id").columns(tenant_id=_ID)
_TENANT_OF_LOGIN: Final = sa.text("SELECT hub_tenant_of_login(:login) AS tenant_id").columns(
    tenant_id=_ID
)
_LIST_TENANTS: Final = sa.text(
    "SELECT tenant_id, name, is_active, created_at, updated_at"
    " FROM hub_list_tenants(:after ::uuid, :most)"
).columns(tenant_id=_ID)
_NOTE_USED: Final = sa.text("SELECT hub_note_used(:ids ::uuid[], :times ::timestamptz[])")


class SystemRepository:
    """What is asked before a tenant is known; each is a function of the owner."""

    def __init__(self, connection: AsyncConnection) -> None:
        """Work on a connection that carries no tenant."""
        self._connection = connection

    async def authenticate(
        self, hashes: Sequence[bytes], subjects: Sequence[str | None]
    ) -> Sequence[Row]:
        """Return the credentials among these hashes that are valid now, by place from 1.

        ``subjects`` are the users for whom a key wants to act, one for each hash or None:
        ``subject_is_active`` tells of each, None when there is no such user.
        """
        parameters = {"hashes": list(hashes), "subjects": list(subjects)}
        return await _AUTHENTICATE.rows(self._connection, parameters)

    async def note_used(self, ids: Sequence[str], times: Sequence[dt.datetime]) -> None:
        """Note when service keys were last used."""
        await self._connection.execute(_NOTE_USED, {"ids": list(ids), "times": list(times)})

    async def tenant_named(self, name: str) -> str | None:
        """Return the id of an active tenant, or None."""
        tenant: str | None = await self._connection.scalar(_TENANT_NAMED, {"name": name})
        return tenant

    async def tenant_of_login(self, login_id: str) -> str | None:
        """Return the tenant in which a login was made, or None."""
        tenant: str | None = await self._connection.scalar(_TENANT_OF_LOGIN, {"login": login_id})
        return tenant

    async def list_tenants(self, page: Page) -> Sequence[Row]:
        """Return a page of tenants and one more, newest first."""
        parameters = {"after": page.after, "most": page.size + 1}
        return (await self._connection.execute(_LIST_TENANTS, parameters)).mappings().all()

    async def has_tenants(self) -> bool:
        """Tell whether any tenant exists."""
        return bool(await self._connection.scalar(sa.text("SELECT hub_has_tenants()")))

    async def key(self, name: str) -> bytes:
        """Return a secret that all hubs over this database share."""
        query = sa.select(hub_keys.c.secret).where(hub_keys.c.name == name)
        return bytes((await self._connection.execute(query)).scalar_one())

    async def purge_credentials(self, kept: dt.timedelta) -> int:
        """Remove, in all tenants, logins, resets and throttles that ended so long ago."""
        statement = sa.text("SELECT hub_purge_credentials(:kept)")
        return int((await self._connection.execute(statement, {"kept": kept})).scalar_one())


class OwnerRepository:
    """What only the owner may do: `hub admin`, never a call."""

    def __init__(self, connection: sa.Connection) -> None:
        """Work within the transaction of a connection of the owner."""
        self._connection = connection

    def add_operator(self, name: str, secret_hash: bytes) -> str:
        """Add an operator; return his id."""
        operator_id = new_id()
        values = {"operator_id": operator_id, "name": name, "secret_hash": secret_hash}
        self._connection.execute(sa.insert(operators).values(values))
        return operator_id

    def operators(self) -> Sequence[Row]:
        """Return all operators, newest first."""
        query = sa.select(
            operators.c.operator_id,
            operators.c.name,
            operators.c.created_at,
            operators.c.revoked_at,
        ).order_by(operators.c.operator_id.desc())
        return self._connection.execute(query).mappings().all()

    def revoke_operator(self, operator_id: str) -> bool:
        """End an operator's key; tell whether there is such an operator."""
        statement = (
            sa.update(operators)
            .where(sa.cast(operators.c.operator_id, sa.Text) == operator_id)
            .values(revoked_at=sa.func.coalesce(operators.c.revoked_at, sa.func.now()))
            .returning(operators.c.operator_id)
        )
        return self._connection.execute(statement).first() is not None

    def add_key(self, tenant: str, key_id: str, secret_hash: bytes, granted: Sequence[str]) -> bool:
        """Add a service key to a tenant, by its name; False when there is none of that name."""
        query = sa.select(tenants.c.tenant_id).where(tenants.c.name == tenant)
        tenant_id = self._connection.scalar(query)
        if tenant_id is None:
            return False
        self._connection.execute(
            sa.insert(credentials).values(
                tenant_id=tenant_id,
                credential_id=key_id,
                kind="service_key",
                secret_hash=secret_hash,
                name="hub admin",
                scopes=list(granted),
            )
        )
        self._connection.execute(
            sa.insert(audit_events).values(
                tenant_id=tenant_id,
                event_id=new_id(),
                event_type="authn_token_created",
                outcome="success",
                target_type="api_key",
                target_id=key_id,
            )
        )
        return True
