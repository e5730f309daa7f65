"""Tenants and the operators who manage them."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from hub_client import AsyncHubClient, errors
from hub_client.v1 import (
    ActivateTenantRequest,
    CreateTenantRequest,
    CreateUserRequest,
    DeactivateTenantRequest,
    GetTenantRequest,
    ListAuditEventsRequest,
    ListTenantsRequest,
    RefreshTokenRequest,
    WhoAmIRequest,
)
from hub_server.identity import owner
from hub_server.ids import new_id
from tests.contract.credentials import operator_of
from tests.integration.test_database import token_of
from tests.integration.test_logins import log_in
from tests.support import Hub, Tenant, running_hub


@pytest.fixture
async def operator(hub: Hub) -> AsyncIterator[AsyncHubClient]:
    """A client with an operator's key."""
    key = await asyncio.to_thread(operator_of, hub)
    async with AsyncHubClient(hub.address, key) as client:
        yield client


async def test_a_new_tenant_is_ready_to_use(hub: Hub, operator: AsyncHubClient) -> None:
    """Its first key may do everything in it, and sees nothing else."""
    name = new_id()
    created = await operator.identity.create_tenant(CreateTenantRequest(name=name))
    assert (created.tenant.name, created.tenant.is_active) == (name, True)
    own = hub.client(created.secret)
    await own.identity.create_user(CreateUserRequest(email="a@example.org"))
    assert (await own.identity.who_am_i(WhoAmIRequest())).tenant_id == created.tenant.tenant_id
    get = GetTenantRequest(tenant_id=created.tenant.tenant_id)
    assert (await operator.identity.get_tenant(get)).tenant == created.tenant
    events = [one async for one in own.identity.list_audit_events(ListAuditEventsRequest())]
    assert [one.event_type for one in events] == ["user_created", "tenant_created"]


async def test_of_many_who_create_one_tenant_one_does(operator: AsyncHubClient) -> None:
    """A name is taken once; a retry returns the same tenant without its secret."""
    name = new_id()

    async def create(request_id: str) -> tuple[str, str]:
        request = CreateTenantRequest(name=name, request_id=request_id)
        try:
            answer = await operator.identity.create_tenant(request)
        except errors.TenantExistsError:
            return "", ""
        return answer.tenant.tenant_id, answer.secret

    made = await asyncio.gather(*(create(f"{name} {number}") for number in range(8)))
    ((tenant_id, secret),) = [one for one in made if one[0]]
    assert secret
    again = await create(f"{name} {made.index((tenant_id, secret))}")
    assert again == (tenant_id, "")
    with pytest.raises(errors.RequestIdReusedError):
        await operator.identity.create_tenant(
            CreateTenantRequest(
                name=new_id(), request_id=f"{name} {made.index((tenant_id, secret))}"
            )
        )


async def test_all_access_of_a_tenant_stops_when_it_is_deactivated(
    hub: Hub, tenant: Tenant, operator: AsyncHubClient
) -> None:
    """Keys, tokens, logins and refreshes, from the next call on, in another process too."""
    login = await log_in(tenant)
    token = await token_of(tenant, login.user.user_id)
    folder = hub.settings.data_dir / new_id()
    await asyncio.to_thread(folder.mkdir)
    async with running_hub(hub.owner_url, folder) as other:
        clients = [one.client(key) for one in (hub, other) for key in (tenant.key, token)]
        for client in clients:
            await client.identity.who_am_i(WhoAmIRequest())
        request = DeactivateTenantRequest(tenant_id=tenant.tenant_id)
        stopped = (await operator.identity.deactivate_tenant(request)).tenant
        assert not stopped.is_active
        assert (await operator.identity.deactivate_tenant(request)).tenant == stopped
        for client in clients:
            with pytest.raises(errors.CredentialInvalidError):
                await client.identity.who_am_i(WhoAmIRequest())
        refresh = RefreshTokenRequest(refresh_token=login.refresh_token)
        with pytest.raises(errors.CredentialInvalidError):
            await hub.client().identity.refresh_token(refresh)
        await operator.identity.activate_tenant(ActivateTenantRequest(tenant_id=tenant.tenant_id))
        for client in clients:
            await client.identity.who_am_i(WhoAmIRequest())


async def test_tenants_are_listed_in_pages(operator: AsyncHubClient) -> None:
    """Newest first, each once."""
    made = [
        (await operator.identity.create_tenant(CreateTenantRequest(name=new_id()))).tenant
        for _ in range(3)
    ]
    listing = ListTenantsRequest(page_size=2)
    listed = [tenant async for tenant in operator.identity.list_tenants(listing)]
    assert listed[:3] == made[::-1]
    assert len({tenant.tenant_id for tenant in listed}) == len(listed)


async def test_an_unknown_tenant_is_not_found(operator: AsyncHubClient) -> None:
    """Whatever is asked of it."""
    tenant_id = new_id()
    for answer in (
        operator.identity.get_tenant(GetTenantRequest(tenant_id=tenant_id)),
        operator.identity.deactivate_tenant(DeactivateTenantRequest(tenant_id=tenant_id)),
        operator.identity.activate_tenant(ActivateTenantRequest(tenant_id=tenant_id)),
    ):
        with pytest.raises(errors.NotFoundError):
            await answer


async def test_an_operator_ends_on_the_next_call(hub: Hub) -> None:
    """A revoked operator's key is refused; the server's own role can neither see nor make one."""
    key = await asyncio.to_thread(operator_of, hub)
    client = hub.client(key)
    await client.identity.create_tenant(CreateTenantRequest(name=new_id()))
    operator_id = (await asyncio.to_thread(owner.operators, hub.owner_url))[0]["operator_id"]
    assert await asyncio.to_thread(owner.revoke_operator, hub.owner_url, operator_id)
    with pytest.raises(errors.CredentialInvalidError):
        await client.identity.create_tenant(CreateTenantRequest(name=new_id()))
    assert not await asyncio.to_thread(owner.revoke_operator, hub.owner_url, new_id())
    rights = "SELECT has_table_privilege('hub_server', 'operators', %s)"
    for right in ("SELECT", "INSERT", "UPDATE", "DELETE"):
        assert hub.sql(rights, right) == [(False,)]


async def test_a_key_for_a_tenant_that_lost_its_own(hub: Hub, tenant: Tenant) -> None:
    """`hub admin create-key` makes one that may do everything, by the tenant's name."""
    ((name,),) = hub.sql("SELECT name FROM tenants WHERE tenant_id = %s", tenant.tenant_id)
    key = await asyncio.to_thread(owner.create_key, hub.owner_url, name)
    assert key is not None
    told = await hub.client(key).identity.who_am_i(WhoAmIRequest())
    assert told.tenant_id == tenant.tenant_id
    assert await asyncio.to_thread(owner.create_key, hub.owner_url, "nobody's") is None
