"""Logins: refreshing, ending and looking into tokens, through a real channel."""

import asyncio
import base64

import bcrypt
import pytest

from hub_client import AsyncHubClient
from hub_client.errors import (
    CredentialInvalidError,
    InvalidFieldError,
    LoginFailedError,
    NotFoundError,
    PasswordRefusedError,
)
from hub_client.v1 import (
    ChangePasswordRequest,
    ConfirmPasswordResetRequest,
    CreatePasswordResetRequest,
    DeactivateUserRequest,
    GetUserRequest,
    IntrospectTokenRequest,
    ListLoginsRequest,
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    RefreshTokenRequest,
    RefreshTokenResponse,
    RevokeLoginRequest,
    WhoAmIRequest,
)
from hub_server.errors import HubError, Reason
from hub_server.passwords import Passwords
from tests.integration.test_database import held, until, waiting_for_locks
from tests.support import Tenant

PASSWORD = "a long enough password"
EMAIL = "ann@example.org"


async def log_in(tenant: Tenant) -> LoginResponse:
    """Log the tenant's one user in, creating him the first time."""
    login = LoginRequest(email=EMAIL, password=PASSWORD)
    if not tenant.hub.sql("SELECT 1 FROM users WHERE tenant_id = %s", tenant.tenant_id):
        await tenant.new_user(email=EMAIL, password=PASSWORD)
    return await tenant.client.identity.login(login)


def anonymous(tenant: Tenant) -> AsyncHubClient:
    """Return a client without a credential, as one whose token has expired calls."""
    return tenant.hub.client()


async def refresh(tenant: Tenant, token: str) -> RefreshTokenResponse:
    """Refresh as a client without a valid user token does."""
    request = RefreshTokenRequest(refresh_token=token)
    return await anonymous(tenant).identity.refresh_token(request)


async def is_let_in(tenant: Tenant, token: str) -> bool:
    """Tell whether a call with this user token is let in."""
    try:
        await tenant.hub.client(token).identity.who_am_i(WhoAmIRequest())
    except CredentialInvalidError:
        return False
    return True


async def test_a_refresh_replaces_both_tokens(tenant: Tenant) -> None:
    """The new user token is valid, the one before is refused, and the login stays one."""
    login = await log_in(tenant)
    pair = await refresh(tenant, login.refresh_token)
    assert await is_let_in(tenant, pair.token)
    assert not await is_let_in(tenant, login.token)
    again = await refresh(tenant, pair.refresh_token)
    assert await is_let_in(tenant, again.token)
    request = ListLoginsRequest(user_id=login.user.user_id)
    listed = [one.login_id async for one in tenant.client.identity.list_logins(request)]
    assert listed == [login.login_id]


async def test_a_lost_refresh_can_be_asked_for_again(tenant: Tenant) -> None:
    """The previous refresh token buys the current pair once more, and no further step."""
    login = await log_in(tenant)
    first = await refresh(tenant, login.refresh_token)
    second = await refresh(tenant, login.refresh_token)
    assert (second.token, second.refresh_token) == (first.token, first.refresh_token)
    assert second.expires_at == first.expires_at


async def _refresh(client: AsyncHubClient, request: RefreshTokenRequest) -> RefreshTokenResponse:
    return await client.identity.refresh_token(request)


async def test_64_parallel_refreshes_make_one_step(tenant: Tenant) -> None:
    """Whoever races with one refresh token gets the same pair."""
    login = await log_in(tenant)
    client, request = anonymous(tenant), RefreshTokenRequest(refresh_token=login.refresh_token)
    lock = "SELECT 1 FROM credentials WHERE credential_id = %s FOR UPDATE"
    with held(tenant.hub, lock, login.login_id):
        tasks = [asyncio.create_task(_refresh(client, request)) for _ in range(64)]
        # As many as the hub has connections stand at the row at once.
        await until(lambda: waiting_for_locks(tenant.hub) == tenant.hub.settings.pool_size)
    pairs = await asyncio.gather(*tasks)
    assert len({(pair.token, pair.refresh_token) for pair in pairs}) == 1


async def test_an_old_refresh_token_ends_the_login_for_good(tenant: Tenant) -> None:
    """A token older than the previous one is refused, and its login's newest pair with it."""
    login = await log_in(tenant)
    second = await refresh(tenant, login.refresh_token)
    third = await refresh(tenant, second.refresh_token)
    with pytest.raises(CredentialInvalidError):
        await refresh(tenant, login.refresh_token)
    assert not await is_let_in(tenant, third.token)
    with pytest.raises(CredentialInvalidError):
        await refresh(tenant, third.refresh_token)


async def test_a_made_up_refresh_token_ends_nothing(tenant: Tenant) -> None:
    """Who knows the id of a login, but none of its tokens, cannot end it."""
    login = await log_in(tenant)
    prefix, raw = login.refresh_token[:7], base64.urlsafe_b64decode(login.refresh_token[7:])
    for place in (16, 40, 63):
        forged = bytearray(raw)
        forged[place] ^= 1
        with pytest.raises(CredentialInvalidError):
            await refresh(tenant, prefix + base64.urlsafe_b64encode(forged).decode())
    for text in ("x", "hub_rt_", "hub_rt_é", login.refresh_token + "=", login.token):
        with pytest.raises(CredentialInvalidError):
            await refresh(tenant, text)
    assert await is_let_in(tenant, login.token)


async def test_no_token_stands_in_the_database(tenant: Tenant) -> None:
    """What is stored of tokens opens nothing: no text and no random bytes of theirs."""
    login = await log_in(tenant)
    pair = await refresh(tenant, login.refresh_token)
    rows = tenant.hub.sql(
        "SELECT c::text FROM credentials c WHERE tenant_id = %s", tenant.tenant_id
    )
    stored = "".join(text for (text,) in rows)
    for token in (login.token, login.refresh_token, pair.token, pair.refresh_token):
        secret = base64.urlsafe_b64decode(token[7:] + "=" * (-len(token[7:]) % 4))[-48:][:32]
        assert token not in stored
        assert secret.hex() not in stored


async def test_a_login_ends_when_its_user_says_so(tenant: Tenant) -> None:
    """Logout ends one login or all; RevokeLogin another one; each acts on the next call."""
    one, two, three = [await log_in(tenant) for _ in range(3)]
    own = tenant.hub.client(one.token)
    await own.identity.revoke_login(RevokeLoginRequest(login_id=two.login_id))
    assert not await is_let_in(tenant, two.token)
    with pytest.raises(CredentialInvalidError):
        await refresh(tenant, two.refresh_token)
    with pytest.raises(NotFoundError):
        await own.identity.revoke_login(RevokeLoginRequest(login_id=two.login_id))
    assert (await own.identity.logout(LogoutRequest())).ended == 1
    assert not await is_let_in(tenant, one.token)
    assert await is_let_in(tenant, three.token)
    with pytest.raises(InvalidFieldError):
        await tenant.client.identity.logout(LogoutRequest())


async def test_logging_out_everywhere_ends_every_login(tenant: Tenant) -> None:
    """Logout(all) ends all logins of the user."""
    logins = [await log_in(tenant) for _ in range(3)]
    own = tenant.hub.client(logins[0].token)
    assert (await own.identity.logout(LogoutRequest(all=True))).ended == 3
    assert [await is_let_in(tenant, login.token) for login in logins] == [False] * 3


async def test_a_stranger_cannot_end_a_login(tenant: Tenant, other_tenant: Tenant) -> None:
    """A login of another user or tenant is not found."""
    login = await log_in(tenant)
    await tenant.new_user(email="bob@example.org", password=PASSWORD)
    request = LoginRequest(email="bob@example.org", password=PASSWORD)
    bob = tenant.hub.client((await tenant.client.identity.login(request)).token)
    for stranger in (bob, other_tenant.client):
        with pytest.raises(NotFoundError):
            await stranger.identity.revoke_login(RevokeLoginRequest(login_id=login.login_id))
    assert await is_let_in(tenant, login.token)


async def test_a_changed_password_ends_the_other_logins(tenant: Tenant) -> None:
    """Who changes the password stays logged in, alone; the old password is void."""
    other, own = await log_in(tenant), await log_in(tenant)
    client = tenant.hub.client(own.token)
    new = "an even longer password"
    with pytest.raises(LoginFailedError):
        await client.identity.change_password(
            ChangePasswordRequest(old_password="wrong one", new_password=new)
        )
    answer = await client.identity.change_password(
        ChangePasswordRequest(old_password=PASSWORD, new_password=new)
    )
    assert answer.ended == 1
    assert [await is_let_in(tenant, login.token) for login in (other, own)] == [False, True]
    with pytest.raises(LoginFailedError):
        await log_in(tenant)
    await tenant.client.identity.login(LoginRequest(email=EMAIL, password=new))


async def test_a_password_reset_works_once(tenant: Tenant) -> None:
    """Of 8 at a time one sets the password; all logins end; a newer token voids an older one."""
    login = await log_in(tenant)
    ask = CreatePasswordResetRequest(user_id=login.user.user_id)
    older = (await tenant.client.identity.create_password_reset(ask)).reset_token
    token = (await tenant.client.identity.create_password_reset(ask)).reset_token

    async def confirm(token: str, password: str) -> bool:
        request = ConfirmPasswordResetRequest(reset_token=token, new_password=password)
        try:
            await anonymous(tenant).identity.confirm_password_reset(request)
        except CredentialInvalidError:
            return False
        return True

    assert not await confirm(older, "the password of the older")
    with pytest.raises(PasswordRefusedError):
        await confirm(token, "password123")
    passwords = [f"the password of number {number}" for number in range(8)]
    done = await asyncio.gather(*(confirm(token, password) for password in passwords))
    assert sum(done) == 1
    assert not await is_let_in(tenant, login.token)
    winner = passwords[done.index(True)]
    await tenant.client.identity.login(LoginRequest(email=EMAIL, password=winner))


async def test_a_hash_from_elsewhere_is_taken_and_replaced(tenant: Tenant) -> None:
    """A plain bcrypt hash lets its user in, and is of our own scheme after the login."""
    await tenant.new_user(email=EMAIL)
    plain = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    tenant.hub.sql(
        "UPDATE users SET password_hash = %s WHERE tenant_id = %s", plain, tenant.tenant_id
    )
    for _ in range(2):
        await tenant.client.identity.login(LoginRequest(email=EMAIL, password=PASSWORD))
    ((stored,),) = tenant.hub.sql(
        "SELECT password_hash FROM users WHERE tenant_id = %s", tenant.tenant_id
    )
    assert stored.startswith("hub1$")


async def test_common_passwords_and_the_own_email_are_refused(tenant: Tenant) -> None:
    """Whatever its case, a password that guessers try first is not taken."""
    for password in (
        "Password123",
        "P@ssword1",
        "qwertyuiop",
        "00000000",
        "87654321",
        "12341234",
        "19871987",
        "Ann@Example.org",
        "ann@example.org1",
    ):
        with pytest.raises(PasswordRefusedError):
            await tenant.new_user(email=EMAIL, password=password)


async def test_introspection_tells_what_a_call_would_meet(
    tenant: Tenant, other_tenant: Tenant
) -> None:
    """A valid token is described; an ended, foreign or made-up one is merely not active."""
    login = await log_in(tenant)
    ask = IntrospectTokenRequest(token=login.token)
    found = await tenant.client.identity.introspect_token(ask)
    assert (found.active, found.user_id) == (True, login.user.user_id)
    assert found.expires_at == login.expires_at
    elsewhere = await other_tenant.client.identity.introspect_token(ask)
    assert (elsewhere.active, elsewhere.user_id) == (False, "")
    await tenant.hub.client(login.token).identity.logout(LogoutRequest())
    assert not (await tenant.client.identity.introspect_token(ask)).active


async def test_a_reset_token_is_no_credential(tenant: Tenant) -> None:
    """Introspection calls it not active, and no call is let in with it."""
    login = await log_in(tenant)
    ask = CreatePasswordResetRequest(user_id=login.user.user_id)
    token = (await tenant.client.identity.create_password_reset(ask)).reset_token
    found = await tenant.client.identity.introspect_token(IntrospectTokenRequest(token=token))
    assert not found.active
    assert not await is_let_in(tenant, token)


async def test_an_old_hash_is_replaced_unseen(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's etag stays; and a login that cannot replace it for want of room succeeds."""
    await tenant.new_user(email=EMAIL)
    plain = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    tenant.hub.sql(
        "UPDATE users SET password_hash = %s WHERE tenant_id = %s", plain, tenant.tenant_id
    )
    request = LoginRequest(email=EMAIL, password=PASSWORD)

    async def full(_: Passwords, __: str) -> str:
        raise HubError(Reason.REASON_OVERLOADED)

    with monkeypatch.context() as patch:
        patch.setattr(Passwords, "hash", full)
        first = await tenant.client.identity.login(request)
    stored = "SELECT password_hash FROM users WHERE tenant_id = %s"
    assert tenant.hub.sql(stored, tenant.tenant_id) == [(plain,)]
    second = await tenant.client.identity.login(request)
    assert second.user.etag == first.user.etag
    got = await tenant.client.identity.get_user(GetUserRequest(user_id=first.user.user_id))
    assert got.user.etag == first.user.etag


@pytest.mark.parametrize("is_same", [True, False], ids=["the same password", "another"])
async def test_a_login_that_another_overtakes_succeeds(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, *, is_same: bool
) -> None:
    """The other replaces the old hash while this one checks it; a new password is not let in."""
    await tenant.new_user(email=EMAIL)

    def store(password: str) -> None:
        plain = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
        change = "UPDATE users SET password_hash = %s WHERE tenant_id = %s"
        tenant.hub.sql(change, plain, tenant.tenant_id)

    store(PASSWORD)
    request, verify = LoginRequest(email=EMAIL, password=PASSWORD), Passwords.verify

    async def overtaken(passwords: Passwords, password: str, stored: str | None) -> bool:
        fits = await verify(passwords, password, stored)
        patch.undo()
        if is_same:
            await tenant.client.identity.login(request)
        else:
            await asyncio.to_thread(store, f"{PASSWORD} another")
        return fits

    with monkeypatch.context() as patch:
        patch.setattr(Passwords, "verify", overtaken)
        if is_same:
            assert (await tenant.client.identity.login(request)).token
        else:
            with pytest.raises(LoginFailedError):
                await tenant.client.identity.login(request)
    events = "SELECT event_type FROM audit_events WHERE tenant_id = %s AND event_type LIKE %s"
    noted = tenant.hub.sql(events, tenant.tenant_id, "authn_login_%")
    assert noted == ([("authn_login_success",)] * 2 if is_same else [("authn_login_fail",)])


async def test_the_logins_of_a_disabled_user_can_be_listed(tenant: Tenant) -> None:
    """By a service key, which manages him; of nobody, they are not found."""
    login = await log_in(tenant)
    user_id = login.user.user_id
    await tenant.client.identity.deactivate_user(DeactivateUserRequest(user_id=user_id))
    request = ListLoginsRequest(user_id=user_id)
    listed = [one.login_id async for one in tenant.client.identity.list_logins(request)]
    assert listed == [login.login_id]
    with pytest.raises(NotFoundError):
        _ = [
            one
            async for one in tenant.client.identity.list_logins(
                ListLoginsRequest(user_id=login.login_id)
            )
        ]


@pytest.mark.parametrize("password", ["\uff21nn@example.org", "e\u0301" * 4])
async def test_a_password_is_judged_as_it_is_hashed(tenant: Tenant, password: str) -> None:
    """Wide letters do not hide one's own email, nor do combining ones make it longer."""
    with pytest.raises((PasswordRefusedError, InvalidFieldError)):
        await tenant.new_user(email=EMAIL, password=password)
