"""Service keys: scopes, acting for a user, what they were used for, and their end."""

import asyncio
import datetime as dt
from typing import Any

import grpc
import pytest

from hub_client import AsyncHubClient, errors
from hub_client.v1 import (
    ApiKey,
    AppendMessageRequest,
    CreateApiKeyRequest,
    CreateSessionRequest,
    GetUserConfigRequest,
    GetUserRequest,
    IntrospectTokenRequest,
    ListApiKeysRequest,
    ListSessionsRequest,
    ListUsersRequest,
    RevokeApiKeyRequest,
    Role,
    WhoAmIRequest,
)
from hub_client.v1.options_pb2 import Level, Scope
from hub_server.identity.scopes import expanded
from hub_server.identity.secrets import SERVICE_KEY, Secret, is_well_formed
from hub_server.ids import new_id
from tests.integration.test_database import token_of, until
from tests.support import Hub, Tenant


async def new_key(tenant: Tenant, *scopes: Scope.ValueType, **values: Any) -> tuple[ApiKey, str]:
    """Make a key; return it and its secret."""
    request = CreateApiKeyRequest(name="a program", scopes=scopes, **values)
    answer = await tenant.client.identity.create_api_key(request)
    return answer.api_key, answer.secret


async def ask(
    hub: Hub, method: str, request: Any, key: str, act_as: str | None = None
) -> tuple[str, bytes]:
    """Call with this metadata; return the code's name and the answer's bytes."""
    metadata = [("authorization", f"Bearer {key}")]
    metadata += [] if act_as is None else [("act-as", act_as)]
    async with grpc.aio.insecure_channel(hub.address) as channel:
        call: Any = channel.unary_unary(f"/hub.v1.{method}")
        try:
            return "OK", await call(request.SerializeToString(), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return error.code().name, b""


async def test_a_key_may_do_what_its_scopes_say(hub: Hub, tenant: Tenant) -> None:
    """A key that reads chats reads chats: it appends nothing, and sees no user."""
    user = await tenant.new_user()
    _, secret = await new_key(tenant, Scope.SCOPE_CHAT_READ)
    reader = hub.client(secret)
    listing = ListSessionsRequest(user_id=user.user_id)
    assert [one async for one in reader.chat.list_sessions(listing)] == []
    with pytest.raises(errors.ScopeInsufficientError) as caught:
        await reader.chat.create_session(CreateSessionRequest(user_id=user.user_id))
    assert caught.value.metadata["required"] == "CHAT_WRITE"
    with pytest.raises(errors.ScopeInsufficientError):
        await reader.identity.get_user(GetUserRequest(user_id=user.user_id))
    with pytest.raises(errors.ScopeInsufficientError):
        await new_key(Tenant(tenant.tenant_id, secret, hub, reader), Scope.SCOPE_CHAT_READ)


def test_a_greater_scope_includes_the_lesser() -> None:
    """ADMIN includes WRITE, which includes READ, of one service and of no other."""
    assert expanded(("chat_admin",)) == {
        Scope.SCOPE_CHAT_ADMIN,
        Scope.SCOPE_CHAT_WRITE,
        Scope.SCOPE_CHAT_READ,
    }
    assert expanded(("memory_write", "act_as")) == {
        Scope.SCOPE_MEMORY_WRITE,
        Scope.SCOPE_MEMORY_READ,
        Scope.SCOPE_ACT_AS,
    }


async def test_a_key_cannot_grant_what_it_lacks(hub: Hub, tenant: Tenant) -> None:
    """Who manages keys makes none that is greater than his own."""
    _, secret = await new_key(tenant, Scope.SCOPE_IDENTITY_ADMIN)
    lesser = Tenant(tenant.tenant_id, secret, hub, hub.client(secret))
    await new_key(lesser, Scope.SCOPE_IDENTITY_WRITE)
    for scope in (Scope.SCOPE_CHAT_READ, Scope.SCOPE_ACT_AS):
        with pytest.raises(errors.ScopeInsufficientError) as caught:
            await new_key(lesser, Scope.SCOPE_IDENTITY_READ, scope)
        assert caught.value.metadata["required"] == Scope.Name(scope).removeprefix("SCOPE_")


async def test_a_key_is_shown_once(hub: Hub, tenant: Tenant) -> None:
    """A retry returns the same key without its secret, and the database holds its hash alone."""
    request = CreateApiKeyRequest(
        name="a program", scopes=[Scope.SCOPE_CHAT_READ], request_id="one key"
    )
    first = await tenant.client.identity.create_api_key(request)
    again = await tenant.client.identity.create_api_key(request)
    assert (again.api_key, again.secret) == (first.api_key, "")
    assert first.secret.startswith(f"hub_sk_{first.api_key.api_key_id.replace('-', '')}_")
    stored = str(hub.sql("SELECT c::text FROM credentials c"))
    stored += str(hub.sql("SELECT answer FROM request_ids WHERE answer IS NOT NULL"))
    assert first.api_key.api_key_id in stored
    assert first.secret[40:] not in stored


def test_a_mistyped_key_is_told_from_a_key() -> None:
    """One wrong letter does not fit the checksum; keys of the first version had none."""
    text = Secret.service_key(new_id()).text
    assert is_well_formed(text)
    for place in range(len("hub_sk_"), len(text)):
        if text[place] != "_":
            other = "a" if text[place] != "a" else "b"
            assert not is_well_formed(text[:place] + other + text[place + 1 :])
    assert is_well_formed(Secret.new(SERVICE_KEY).text)


async def test_keys_are_listed_until_they_end(tenant: Tenant) -> None:
    """Newest first; those revoked or expired only on request, and never of another tenant."""
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    (one, _), (two, _) = [
        await new_key(tenant, Scope.SCOPE_CHAT_READ, expires_at=later) for _ in range(2)
    ]
    assert one.expires_at.ToDatetime(tzinfo=dt.UTC) == later
    revoke = RevokeApiKeyRequest(api_key_id=one.api_key_id)
    revoked = (await tenant.client.identity.revoke_api_key(revoke)).api_key
    assert revoked.HasField("revoked_at")
    assert (await tenant.client.identity.revoke_api_key(revoke)).api_key == revoked

    async def listed(**values: Any) -> list[str]:
        request = ListApiKeysRequest(**values)
        return [key.api_key_id async for key in tenant.client.identity.list_api_keys(request)]

    own = (await tenant.client.identity.who_am_i(WhoAmIRequest())).credential_id
    assert await listed() == [two.api_key_id, own]
    assert await listed(show_ended=True) == [two.api_key_id, one.api_key_id, own]


async def test_a_key_of_another_tenant_cannot_be_ended(
    tenant: Tenant, other_tenant: Tenant
) -> None:
    """It is not found, and still works; nor is a login a key."""
    key, secret = await new_key(tenant, Scope.SCOPE_CHAT_READ, Scope.SCOPE_IDENTITY_READ)
    revoke = RevokeApiKeyRequest(api_key_id=key.api_key_id)
    with pytest.raises(errors.NotFoundError):
        await other_tenant.client.identity.revoke_api_key(revoke)
    await tenant.hub.client(secret).identity.who_am_i(WhoAmIRequest())


async def test_a_key_must_expire_in_the_future(tenant: Tenant) -> None:
    """A key that is dead when it is made is a mistake."""
    now = dt.datetime.now(dt.UTC)
    with pytest.raises(errors.InvalidFieldError) as caught:
        await new_key(tenant, Scope.SCOPE_CHAT_READ, expires_at=now)
    assert [field for field, _ in caught.value.violations] == ["expires_at"]
    with pytest.raises(errors.InvalidFieldError):
        await new_key(tenant, Scope.SCOPE_UNSPECIFIED)


# --- acting for a user ---------------------------------------------------------------------------


async def test_a_key_that_acts_for_a_user_has_his_rights_and_its_own(
    hub: Hub, tenant: Tenant
) -> None:
    """`act-as` needs no user_id, sees his rows alone, and is neither service nor admin."""
    user, other = await tenant.new_user(), await tenant.new_user()
    session = await tenant.new_session(user)
    theirs = await tenant.new_session(other)
    _, secret = await new_key(tenant, Scope.SCOPE_CHAT_WRITE, Scope.SCOPE_ACT_AS)
    acting = {"key": secret, "act_as": user.user_id}
    own = AppendMessageRequest(session_id=session.session_id, role=Role.ROLE_USER)
    foreign = AppendMessageRequest(session_id=theirs.session_id, role=Role.ROLE_USER)
    assert (await ask(hub, "ChatService/AppendMessage", own, **acting))[0] == "OK"
    assert (await ask(hub, "ChatService/AppendMessage", foreign, **acting))[0] == "NOT_FOUND"
    assert (await ask(hub, "ChatService/ListSessions", ListSessionsRequest(), **acting))[0] == "OK"
    get = GetUserRequest()
    assert (await ask(hub, "IdentityService/GetUser", get, **acting))[0] == "PERMISSION_DENIED"
    everything = {"key": tenant.key, "act_as": user.user_id}
    assert (await ask(hub, "IdentityService/GetUser", get, **everything))[0] == "OK"
    listing = ListUsersRequest()
    code, _ = await ask(hub, "IdentityService/ListUsers", listing, **everything)
    assert code == "PERMISSION_DENIED"
    acting_client = AsyncHubClient(hub.address, tenant.key, act_as=user.user_id)
    async with acting_client as client:
        told = await client.identity.who_am_i(WhoAmIRequest())
    assert (told.level, told.user.user_id) == (Level.LEVEL_USER, user.user_id)


async def test_a_key_is_told_its_level_and_all_it_may(hub: Hub, tenant: Tenant) -> None:
    """ADMIN only with such a scope; introspection says the same."""
    for scopes, level, held in (
        ([Scope.SCOPE_IDENTITY_WRITE], Level.LEVEL_SERVICE, 2),
        ([Scope.SCOPE_IDENTITY_READ, Scope.SCOPE_CHAT_ADMIN], Level.LEVEL_ADMIN, 4),
    ):
        _, secret = await new_key(tenant, *scopes)
        told = await hub.client(secret).identity.who_am_i(WhoAmIRequest())
        assert (told.level, len(told.scopes)) == (level, held)
        found = await tenant.client.identity.introspect_token(IntrospectTokenRequest(token=secret))
        assert (found.level, found.scopes) == (told.level, told.scopes)


async def test_a_user_in_metadata_is_refused_without_such_a_key(
    hub: Hub, tenant: Tenant, other_tenant: Tenant
) -> None:
    """Not ignored: from a key without the scope, from a user, from nobody, of another tenant."""
    user, other = await tenant.new_user(), await tenant.new_user()
    stranger = await other_tenant.new_user()
    _, without = await new_key(tenant, Scope.SCOPE_IDENTITY_ADMIN, Scope.SCOPE_CHAT_ADMIN)
    token = await token_of(tenant, user.user_id)
    get, method = GetUserConfigRequest(user_id=user.user_id), "IdentityService/GetUserConfig"
    for key, act_as, expected in (
        (without, user.user_id, "PERMISSION_DENIED"),
        (token, user.user_id, "PERMISSION_DENIED"),
        (token, other.user_id, "PERMISSION_DENIED"),
        (tenant.key, other.user_id, "NOT_FOUND"),
        (tenant.key, stranger.user_id, "NOT_FOUND"),
        (tenant.key, new_id(), "NOT_FOUND"),
        (tenant.key, "nonsense", "INVALID_ARGUMENT"),
        (tenant.key, "", "INVALID_ARGUMENT"),
        (tenant.key, user.user_id, "OK"),
    ):
        assert (await ask(hub, method, get, key, act_as))[0] == expected, (act_as, expected)
    hub.sql("UPDATE users SET is_active = false WHERE user_id = %s", user.user_id)
    assert (await ask(hub, method, get, tenant.key, user.user_id))[0] == "PERMISSION_DENIED"
    hub.sql("UPDATE users SET deleted_at = now() WHERE user_id = %s", user.user_id)
    assert (await ask(hub, method, get, tenant.key, user.user_id))[0] == "NOT_FOUND"


# --- use -----------------------------------------------------------------------------------------


async def test_the_last_use_of_a_key_is_noted(
    hub: Hub, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key never used says so; one that was used tells when, a moment later."""
    monkeypatch.setattr("hub_server.identity.authentication._NOTE_SECONDS", 0.01)
    key, secret = await new_key(tenant, Scope.SCOPE_IDENTITY_READ)
    query = "SELECT last_used_at FROM credentials WHERE credential_id = %s"
    assert hub.sql(query, key.api_key_id) == [(None,)]
    before = dt.datetime.now(dt.UTC)
    await _used(hub, secret)
    await until(lambda: hub.sql(query, key.api_key_id) != [(None,)])
    ((used,),) = hub.sql(query, key.api_key_id)
    assert before <= used <= dt.datetime.now(dt.UTC)


async def _used(hub: Hub, secret: str) -> None:
    """Use a key in a hub of its own, which notes it when it stops, or before."""
    from tests.support import running_hub  # noqa: PLC0415

    folder = hub.settings.data_dir / new_id()
    await asyncio.to_thread(folder.mkdir)
    async with (
        running_hub(hub.owner_url, folder) as other,
        AsyncHubClient(other.address, secret) as client,
    ):
        await client.identity.who_am_i(WhoAmIRequest())
