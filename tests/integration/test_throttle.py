"""Guessing passwords: what a login costs, and how often one may be tried."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from hub_client import errors
from hub_client.v1 import (
    ChangePasswordRequest,
    ConfirmPasswordResetRequest,
    CreatePasswordResetRequest,
    DeactivateUserRequest,
    LoginRequest,
    LoginResponse,
    User,
)
from hub_server import passwords
from hub_server.ids import new_id
from tests.integration.test_database import statements
from tests.support import Hub, Tenant, running_hub

PASSWORD = "a correct horse"
ALLOWED = 10  # Settings().login_attempts


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash with cost 4: what is counted here are hashes, not how long they take."""
    monkeypatch.setattr(passwords, "ROUNDS", 4)


@pytest.fixture
async def quick(owner_url: str, tmp_path: Path, _cheap_hashes: None) -> AsyncIterator[Hub]:
    """A hub of its own over the session's database, which hashes as cheaply."""
    async with running_hub(owner_url, tmp_path) as hub:
        yield hub


@pytest.fixture
async def there(quick: Hub) -> Tenant:
    """A new tenant, called through that hub."""
    return await quick.new_tenant()


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The hashes that passwords were compared with, dummies included, as they come."""
    seen: list[bytes] = []
    checkpw = bcrypt.checkpw

    def noted(password: bytes, hashed: bytes) -> bool:
        seen.append(hashed)
        return checkpw(password, hashed)

    with monkeypatch.context() as patch:
        patch.setattr(bcrypt, "checkpw", noted)
        yield seen


async def try_in(hub: Hub, tenant: Tenant, email: str, password: str) -> LoginResponse | Exception:
    """Log in; repeats while the hub is overloaded. Returns the login or why there is none."""
    client = hub.client(tenant.key)
    while True:
        try:
            return await client.identity.login(LoginRequest(email=email, password=password))
        except errors.OverloadedError:
            await asyncio.sleep(0.01)  # as the hub advises
        except errors.LoginFailedError as error:
            return error


def _told(error: Any) -> tuple[Any, ...]:
    """Return all that a refusal tells, but for the pause it advises and its id."""
    return type(error), error.code, error.message, str(error.metadata), error.violations


def _stored(hub: Hub, user: User) -> bytes:
    ((text,),) = hub.sql("SELECT password_hash FROM users WHERE user_id = %s", user.user_id)
    return ("$" + str(text).split("$", 2)[2]).encode()


async def test_every_path_of_a_login_costs_one_hash_and_two_statements(
    quick: Hub, there: Tenant, verified: list[bytes]
) -> None:
    """Right, wrong, unknown, without a password, disabled, throttled: none differs."""
    await there.new_user(email="right@example.org", password=PASSWORD)
    disabled = await there.new_user(email="disabled@example.org", password=PASSWORD)
    await there.client.identity.deactivate_user(DeactivateUserRequest(user_id=disabled.user_id))
    await there.new_user(email="none@example.org")
    for _ in range(ALLOWED):
        await try_in(quick, there, "throttled@example.org", PASSWORD)
    told = set()
    for email, password in (
        ("right@example.org", PASSWORD),
        ("right@example.org", "a wrong horse"),
        ("unknown@example.org", PASSWORD),
        ("no address", PASSWORD),
        ("none@example.org", PASSWORD),
        ("disabled@example.org", PASSWORD),
        ("throttled@example.org", PASSWORD),
    ):
        verified.clear()
        with statements() as seen:
            answer = await try_in(quick, there, email, password)
        assert (len(verified), len(seen)) == (1, 2), email
        assert verified[0].startswith(b"$2b$04$"), email
        if isinstance(answer, Exception):
            told.add(_told(answer))
    assert len(told) == 1


async def test_of_200_guesses_at_once_no_more_than_allowed_are_compared(
    quick: Hub, there: Tenant, verified: list[bytes]
) -> None:
    """In two hubs together: the rest are compared with a dummy, even the right one, and told so."""
    user = await there.new_user(email="victim@example.org", password=PASSWORD)
    folder = quick.settings.data_dir / new_id()
    await asyncio.to_thread(folder.mkdir)
    async with running_hub(quick.owner_url, folder) as other:
        verified.clear()
        answers = await asyncio.gather(
            *(
                try_in((quick, other)[number % 2], there, user.email, f"guess number {number}")
                for number in range(200)
            )
        )
    assert all(isinstance(answer, errors.LoginFailedError) for answer in answers)
    assert verified.count(_stored(quick, user)) == ALLOWED
    waits = [getattr(answer, "retry_after", None) for answer in answers]
    assert waits.count(None) == ALLOWED
    assert all(0 < wait <= 900 for wait in waits if wait is not None)
    assert len({_told(answer) for answer in answers}) == 1
    assert isinstance(await try_in(quick, there, user.email, PASSWORD), errors.LoginFailedError)


async def test_the_count_survives_a_restart(
    owner_url: str, tmp_path: Path, verified: list[bytes]
) -> None:
    """A hub that starts anew knows what was guessed before."""
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(running_hub(owner_url, tmp_path))
        tenant = await hub.new_tenant()
        user = await tenant.new_user(email="victim@example.org", password=PASSWORD)
        for _ in range(ALLOWED):
            await try_in(hub, tenant, user.email, "a wrong horse")
        stored = _stored(hub, user)
    async with running_hub(owner_url, tmp_path) as hub:
        verified.clear()
        answer = await try_in(hub, tenant, user.email, PASSWORD)
    assert isinstance(answer, errors.LoginFailedError)
    assert answer.retry_after is not None
    assert stored not in verified


async def test_a_login_that_succeeds_and_a_window_that_ends_begin_anew(
    quick: Hub, there: Tenant
) -> None:
    """Nine wrong, one right, nine wrong, one right; and after ten wrong, a window later."""
    user = await there.new_user(email="forgetful@example.org", password=PASSWORD)
    for _ in range(2):
        for _ in range(ALLOWED - 1):
            await try_in(quick, there, user.email, "a wrong horse")
        assert isinstance(await try_in(quick, there, user.email, PASSWORD), LoginResponse)
    for _ in range(ALLOWED):
        await try_in(quick, there, user.email, "a wrong horse")
    assert isinstance(await try_in(quick, there, user.email, PASSWORD), errors.LoginFailedError)
    quick.sql(
        "UPDATE login_throttles SET window_start = window_start - interval '15 minutes'"
        " WHERE tenant_id = %s",
        there.tenant_id,
    )
    assert isinstance(await try_in(quick, there, user.email, PASSWORD), LoginResponse)


async def test_an_account_is_throttled_for_itself_however_it_is_spelt(
    quick: Hub, there: Tenant
) -> None:
    """Case does not help the guesser; another user and another tenant are not held up."""
    await there.new_user(email="victim@example.org", password=PASSWORD)
    await there.new_user(email="other@example.org", password=PASSWORD)
    elsewhere = await quick.new_tenant()
    await elsewhere.new_user(email="victim@example.org", password=PASSWORD)
    for number in range(ALLOWED):
        spelt = "Victim@example.org" if number % 2 else "victim@EXAMPLE.org"
        await try_in(quick, there, spelt, "a wrong horse")
    throttled = await try_in(quick, there, "victim@example.org", PASSWORD)
    assert isinstance(throttled, errors.LoginFailedError)
    assert isinstance(await try_in(quick, there, "other@example.org", PASSWORD), LoginResponse)
    assert isinstance(await try_in(quick, elsewhere, "victim@example.org", PASSWORD), LoginResponse)


async def test_no_email_stands_in_the_throttle(quick: Hub, there: Tenant) -> None:
    """Who was guessed at, and who mistyped his password as his email, is nobody's business."""
    await try_in(quick, there, "secret@example.org", PASSWORD)
    rows = quick.sql("SELECT t::text FROM login_throttles t WHERE tenant_id = %s", there.tenant_id)
    assert len(rows) == 1
    assert "secret" not in str(rows)
    assert b"secret".hex() not in str(rows)


async def test_the_old_password_of_a_change_cannot_be_guessed_either(
    quick: Hub, there: Tenant, verified: list[bytes]
) -> None:
    """Attempts to change a password and to log in are counted together; a reset forgives them."""
    user = await there.new_user(email="victim@example.org", password=PASSWORD)
    login = await try_in(quick, there, user.email, PASSWORD)
    assert isinstance(login, LoginResponse)
    own = quick.client(login.token)

    async def change(old: str, new: str) -> None:
        request = ChangePasswordRequest(old_password=old, new_password=new)
        await own.identity.change_password(request)

    stored = _stored(quick, user)
    verified.clear()
    for _ in range(ALLOWED + 5):
        with pytest.raises(errors.LoginFailedError):
            await change("a wrong horse", "another good one")
    assert verified.count(stored) == ALLOWED
    with pytest.raises(errors.LoginFailedError) as caught:
        await change(PASSWORD, "another good one")
    assert caught.value.retry_after is not None
    reset = await there.client.identity.create_password_reset(
        CreatePasswordResetRequest(user_id=user.user_id)
    )
    confirm = ConfirmPasswordResetRequest(
        reset_token=reset.reset_token, new_password="a third good one"
    )
    await quick.client().identity.confirm_password_reset(confirm)
    assert isinstance(await try_in(quick, there, user.email, "a third good one"), LoginResponse)
