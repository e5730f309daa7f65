"""The audit log: what was done, by whom, to what; and what was refused."""

from typing import Any

import psycopg
import pytest

from hub_client import errors
from hub_client.v1 import (
    ActivateUserRequest,
    AuditEvent,
    AuditOutcome,
    ChangePasswordRequest,
    CreateApiKeyRequest,
    DeactivateUserRequest,
    DeleteUserRequest,
    ListAuditEventsRequest,
    ListUsersRequest,
    LoginRequest,
    LogoutRequest,
    RefreshTokenRequest,
    RevokeApiKeyRequest,
    UndeleteUserRequest,
    UpdateUserConfigRequest,
    UpdateUserRequest,
    User,
    UserConfig,
    WhoAmIRequest,
)
from hub_client.v1.options_pb2 import Scope
from tests.integration.test_keys import ask
from tests.integration.test_logins import EMAIL, PASSWORD, log_in
from tests.support import Hub, Tenant


async def events(tenant: Tenant, **filters: Any) -> list[AuditEvent]:
    """Return the events of a tenant, oldest first."""
    request = ListAuditEventsRequest(**filters)
    found = [one async for one in tenant.client.identity.list_audit_events(request)]
    return found[::-1]


async def test_what_is_done_to_a_user_is_noted(tenant: Tenant) -> None:
    """Each act once, with the key that did it and the user it was done to."""
    client = tenant.client.identity
    user = await tenant.new_user()
    user_id = user.user_id
    await client.update_user(UpdateUserRequest(user=User(user_id=user_id, display_name="Ann")))
    await client.update_user_config(
        UpdateUserConfigRequest(config=UserConfig(user_id=user_id, max_sessions=3))
    )
    await client.deactivate_user(DeactivateUserRequest(user_id=user_id))
    await client.deactivate_user(DeactivateUserRequest(user_id=user_id))  # changes nothing
    await client.activate_user(ActivateUserRequest(user_id=user_id))
    await client.delete_user(DeleteUserRequest(user_id=user_id))
    await client.undelete_user(UndeleteUserRequest(user_id=user_id))
    key = (await client.who_am_i(WhoAmIRequest())).credential_id
    found = await events(tenant, target_id=user.user_id)
    assert [one.event_type for one in found] == [
        "user_created",
        "user_updated",
        "authz_change",
        "user_archived",
        "user_activated",
        "user_deleted",
        "user_undeleted",
    ]
    assert {one.actor_credential_id for one in found} == {key}
    assert {one.outcome for one in found} == {AuditOutcome.AUDIT_OUTCOME_SUCCESS}


async def test_logins_are_noted_whatever_comes_of_them(tenant: Tenant) -> None:
    """A success, a failure, the reuse of an old token, a changed password, a logout."""
    login = await log_in(tenant)
    with pytest.raises(errors.LoginFailedError):
        await tenant.client.identity.login(LoginRequest(email=EMAIL, password="a wrong one"))
    with pytest.raises(errors.LoginFailedError):
        await tenant.client.identity.login(LoginRequest(email="who@x.org", password="a wrong one"))
    own = tenant.hub.client(login.token)
    await own.identity.change_password(
        ChangePasswordRequest(old_password=PASSWORD, new_password="another good one")
    )
    await own.identity.logout(LogoutRequest())
    user_id = login.user.user_id
    found = [(one.event_type, one.outcome, one.target_id) for one in await events(tenant)]
    done, refused = AuditOutcome.AUDIT_OUTCOME_SUCCESS, AuditOutcome.AUDIT_OUTCOME_FAILURE
    assert found == [
        ("user_created", done, user_id),
        ("authn_login_success", done, user_id),
        ("authn_login_fail", refused, user_id),
        ("authn_login_fail", refused, ""),
        ("authn_password_change", done, user_id),
        ("authn_token_revoked", done, login.login_id),
    ]


async def test_the_reuse_of_a_token_is_noted_although_the_call_fails(tenant: Tenant) -> None:
    """The end of the login and its note are committed with the refusal."""
    client = tenant.hub.client()
    first = (await log_in(tenant)).refresh_token
    second = (
        await client.identity.refresh_token(RefreshTokenRequest(refresh_token=first))
    ).refresh_token
    await client.identity.refresh_token(RefreshTokenRequest(refresh_token=second))
    with pytest.raises(errors.CredentialInvalidError):
        await client.identity.refresh_token(RefreshTokenRequest(refresh_token=first))
    (event,) = await events(tenant, event_type="authn_token_reuse")
    assert event.outcome == AuditOutcome.AUDIT_OUTCOME_FAILURE


async def test_keys_and_refusals_are_noted(hub: Hub, tenant: Tenant) -> None:
    """A key that was made, what it was refused, and its end."""
    request = CreateApiKeyRequest(name="reader", scopes=[Scope.SCOPE_CHAT_READ])
    made = await tenant.client.identity.create_api_key(request)
    with pytest.raises(errors.ScopeInsufficientError):
        _ = [one async for one in hub.client(made.secret).identity.list_users(ListUsersRequest())]
    key_id = made.api_key.api_key_id
    await tenant.client.identity.revoke_api_key(RevokeApiKeyRequest(api_key_id=key_id))
    found = await events(tenant)
    assert [(one.event_type, one.target_type, one.target_id) for one in found] == [
        ("authn_token_created", "api_key", key_id),
        ("authz_fail", "method", "ListUsers"),
        ("authn_token_revoked", "api_key", key_id),
    ]
    assert found[1].actor_credential_id == key_id


async def test_events_can_be_filtered(tenant: Tenant) -> None:
    """By type, outcome, actor, target and time; filters add up."""
    users = [await tenant.new_user() for _ in range(3)]
    await tenant.client.identity.deactivate_user(DeactivateUserRequest(user_id=users[0].user_id))
    everything = await events(tenant)
    actor = everything[0].actor_credential_id
    assert len(everything) == 4
    assert len(await events(tenant, event_type="user_created")) == 3
    assert await events(tenant, event_type="user_created", target_id=users[0].user_id) == [
        everything[0]
    ]
    assert await events(tenant, outcome=AuditOutcome.AUDIT_OUTCOME_FAILURE) == []
    assert await events(tenant, actor_credential_id=actor) == everything
    assert await events(tenant, since=everything[2].created_at) == everything[2:]
    assert await events(tenant, until=everything[2].created_at) == everything[:2]


async def test_an_act_that_is_undone_is_not_noted(tenant: Tenant) -> None:
    """The note is in the transaction of the act: what fails at its end leaves none behind."""
    await tenant.new_user(email="a@example.org")
    with pytest.raises(errors.EmailTakenError):
        await tenant.new_user(email="a@example.org")
    assert len(await events(tenant)) == 1


async def test_no_event_of_another_tenant_is_listed(tenant: Tenant, other_tenant: Tenant) -> None:
    """Each tenant has its own log."""
    user = await tenant.new_user()
    assert len(await events(tenant, target_id=user.user_id)) == 1
    assert await events(other_tenant, target_id=user.user_id) == []


def test_the_server_can_neither_change_nor_delete_events(hub: Hub) -> None:
    """Append-only: Postgres itself refuses both to the server's role."""
    for statement in ("UPDATE audit_events SET outcome = 'success'", "DELETE FROM audit_events"):
        with psycopg.connect(hub.owner_url) as connection:
            connection.execute("SET ROLE hub_server")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


async def test_what_a_key_tries_in_vain_is_noted(hub: Hub, tenant: Tenant) -> None:
    """To act for a user without the scope, and to grant what it lacks."""
    user = await tenant.new_user()
    request = CreateApiKeyRequest(name="admin", scopes=[Scope.SCOPE_IDENTITY_ADMIN])
    made = await tenant.client.identity.create_api_key(request)
    lesser = hub.client(made.secret)
    with pytest.raises(errors.ScopeInsufficientError):
        await lesser.identity.create_api_key(
            CreateApiKeyRequest(name="greater", scopes=[Scope.SCOPE_CHAT_READ])
        )
    answer = await ask(hub, "IdentityService/WhoAmI", WhoAmIRequest(), made.secret, user.user_id)
    assert answer[0] == "PERMISSION_DENIED"
    found = await events(tenant, event_type="authz_fail")
    assert [one.target_id for one in found] == ["CreateApiKey", "act-as"]
    assert {one.actor_credential_id for one in found} == {made.api_key.api_key_id}


async def test_a_refresh_is_noted(tenant: Tenant) -> None:
    """Once for each new pair; a repetition makes none."""
    login = await log_in(tenant)
    request = RefreshTokenRequest(refresh_token=login.refresh_token)
    for _ in range(2):
        await tenant.hub.client().identity.refresh_token(request)
    (event,) = await events(tenant, event_type="authn_token_created")
    assert event.target_id == login.login_id
