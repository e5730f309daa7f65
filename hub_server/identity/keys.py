"""Rules of service keys, tenants and the audit log."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.errors import HubError, Reason
from hub_server.idempotency import NO_TENANT, NO_USER, Claims, Retry
from hub_server.identity import scopes
from hub_server.identity.access_repository import AccessRepository
from hub_server.identity.secrets import Secret
from hub_server.identity.system_repository import SystemRepository
from hub_server.ids import new_id
from hub_server.paging import Page, split
from hub_server.rows import Row


class Keys:
    """The service keys of a tenant, and what was done with them."""

    def __init__(self, database: Database) -> None:
        """Keep everything in the given database."""
        self._database = database

    async def create_key(
        self,
        caller: Caller,
        retry: Retry,
        name: str,
        wanted: Sequence[str],
        expires_at: dt.datetime | None,
    ) -> tuple[Row, str]:
        """Make a key; return it and its secret, which a retry does not get.

        Raises INVALID_FIELD, SCOPE_INSUFFICIENT or REQUEST_ID_REUSED.
        """
        if (lacking := _lacking(caller, wanted)) is not None:
            await self._note_refusal(caller)
            raise HubError(Reason.REASON_SCOPE_INSUFFICIENT, required=lacking)
        async with self._database.transaction(caller) as connection:
            claims = Claims(connection, caller.tenant_id, NO_USER)
            if (answer := await claims.claim(retry)) is not None:
                return answer, ""
            if expires_at is not None and expires_at <= dt.datetime.now(dt.UTC):
                raise HubError.invalid("expires_at", "must be a time to come")
            access = AccessRepository(connection, caller)
            key, secret = await _add_key(access, name, wanted, expires_at)
            await access.note("authn_token_created", "api_key", key["credential_id"])
            await claims.keep(retry, key)
            return key, secret

    async def _note_refusal(self, caller: Caller) -> None:
        async with self._database.statement(caller) as connection:
            access = AccessRepository(connection, caller)
            await access.note("authz_fail", "method", "CreateApiKey", done=False)

    async def list_keys(
        self, caller: Caller, page: Page, *, show_ended: bool
    ) -> tuple[Sequence[Row], str | None]:
        """Return a page of keys and the key of the next."""
        async with self._database.statement(caller) as connection:
            access = AccessRepository(connection, caller)
            rows = await access.list_keys(page, show_ended=show_ended)
        return split(rows, page.size, lambda row: str(row["credential_id"]))

    async def revoke_key(self, caller: Caller, key_id: str) -> Row:
        """End a key. Raises NOT_FOUND."""
        async with self._database.transaction(caller) as connection:
            access = AccessRepository(connection, caller)
            key = await access.lock_key(key_id)
            if key is None:
                raise HubError(Reason.REASON_NOT_FOUND, resource="api_key")
            if key["revoked_at"] is not None:
                return key
            await access.note("authn_token_revoked", "api_key", key_id)
            return await access.revoke_key(key_id)

    async def list_events(
        self, caller: Caller, page: Page, filters: Mapping[str, str], since: Any, until: Any
    ) -> tuple[Sequence[Row], str | None]:
        """Return a page of audit events and the key of the next; ``filters`` by column."""
        async with self._database.statement(caller) as connection:
            access = AccessRepository(connection, caller)
            rows = await access.list_events(page, filters, since, until)
        return split(rows, page.size, lambda row: str(row["event_id"]))


class Tenants:
    """The tenants of a hub, as its operators see them."""

    def __init__(self, database: Database) -> None:
        """Keep everything in the given database."""
        self._database = database

    async def create(self, operator: Caller, retry: Retry, name: str) -> tuple[Row, str]:
        """Create a tenant; return it and the secret of its first key, which a retry does not get.

        Raises TENANT_EXISTS or REQUEST_ID_REUSED.
        """
        nobody = operator.within(NO_TENANT)
        async with self._database.transaction(nobody) as connection:
            claims = Claims(connection, NO_TENANT, NO_USER)
            if (answer := await claims.claim(retry)) is not None:
                return answer, ""
            access = AccessRepository(connection, nobody)
            await access.carry(new_id())
            tenant = await access.add_tenant(name)
            if tenant is None:
                raise HubError(Reason.REASON_TENANT_EXISTS)
            _, secret = await _add_key(access, "first key", scopes.EVERYTHING, None)
            await access.note("tenant_created", "tenant", tenant["tenant_id"])
            await access.carry(NO_TENANT)
            await claims.keep(retry, tenant)
            return tenant, secret

    async def get(self, operator: Caller, tenant_id: str) -> Row:
        """Return a tenant. Raises NOT_FOUND."""
        caller = operator.within(tenant_id)
        async with self._database.statement(caller) as connection:
            return _found(await AccessRepository(connection, caller).tenant())

    async def list_tenants(self, page: Page) -> tuple[Sequence[Row], str | None]:
        """Return a page of tenants and the key of the next."""
        async with self._database.system() as connection:
            rows = await SystemRepository(connection).list_tenants(page)
        return split(rows, page.size, lambda row: str(row["tenant_id"]))

    async def set_active(self, operator: Caller, tenant_id: str, *, is_active: bool) -> Row:
        """Disable a tenant or enable it again. Raises NOT_FOUND."""
        caller = operator.within(tenant_id)
        async with self._database.transaction(caller) as connection:
            access = AccessRepository(connection, caller)
            tenant = await access.set_tenant_active(is_active=is_active)
            if tenant is None:
                return _found(await access.tenant())
            event = "tenant_activated" if is_active else "tenant_deactivated"
            await access.note(event, "tenant", tenant_id)
            return tenant


async def _add_key(
    access: AccessRepository, name: str, granted: Sequence[str], expires_at: dt.datetime | None
) -> tuple[Row, str]:
    key_id = new_id()
    secret = Secret.service_key(key_id)
    key = await access.add_credential(
        "service_key",
        secret.hash,
        key_id,
        name=name,
        scopes=sorted(set(granted)),
        expires_at=expires_at,
    )
    return key, secret.text


def _lacking(caller: Caller, wanted: Sequence[str]) -> str | None:
    """Return a scope that the caller lacks and so must not grant, or None."""
    held = caller.scopes or frozenset()
    lacking = [scope.upper() for scope in wanted if scopes.from_text(scope) not in held]
    return min(lacking, default=None)


def _found(row: Row | None) -> Row:
    if row is None:
        raise HubError(Reason.REASON_NOT_FOUND, resource="tenant")
    return row
