"""Ends of access hold in every process, and after kill -9; and what `hub admin` does."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hub_client import HubClient, errors
from hub_client.v1 import (
    CreateApiKeyRequest,
    CreateTenantRequest,
    CreateUserRequest,
    DeactivateUserRequest,
    DeleteUserRequest,
    ListTenantsRequest,
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    RefreshTokenRequest,
    RevokeApiKeyRequest,
    RevokeLoginRequest,
    WhoAmIRequest,
)
from hub_client.v1.options_pb2 import Scope
from hub_server.migrations import migrate
from hub_server.settings import Settings
from tests.support import HubProcess, hub_process

COMMAND = [sys.executable, "-c", "from hub_server.cli import main; main()"]
PASSWORD = "a correct horse"


@pytest.fixture
def hubs(empty_database: str, tmp_path: Path) -> Iterator[tuple[HubProcess, HubProcess]]:
    """Two processes over one database; the service key is the first one's."""
    migrate(empty_database, Settings().server_role)
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(hub_process(tmp_path / name, database_url=empty_database))
            for name in ("one", "two")
        )
        yield one, two


def is_let_in(address: str, credential: str) -> bool:
    """Tell whether a call with this credential is let in."""
    with HubClient(address, credential) as client:
        try:
            client.identity.who_am_i(WhoAmIRequest())
        except errors.CredentialInvalidError:
            return False
        return True


def test_what_is_ended_in_one_process_is_refused_in_the_other_and_after_a_kill(
    hubs: tuple[HubProcess, HubProcess],
) -> None:
    """Logins, users and keys; the process that ended them is killed as soon as it has answered."""
    one, two = hubs
    addresses = one.start(), two.start()
    with HubClient(addresses[0], one.key) as admin, HubClient(addresses[0]) as anonymous:
        ends = list(_ends(admin, addresses[0]))
        old = _log_in(admin, "reuse@example.org")
        second = _refreshed(anonymous, old.refresh_token)
        newest = _refreshed(anonymous, second)
        for credential, _ in ends:
            assert all(is_let_in(address, credential) for address in addresses)
        for credential, end in ends:
            end()
            assert not is_let_in(addresses[1], credential)
        with pytest.raises(errors.CredentialInvalidError):
            _refreshed(anonymous, old.refresh_token)  # its reuse ends the login
    one.kill()
    again = one.start()
    for address in (again, addresses[1]):
        assert not any(is_let_in(address, credential) for credential, _ in ends)
        with HubClient(address) as client, pytest.raises(errors.CredentialInvalidError):
            _refreshed(client, newest)


def _log_in(admin: HubClient, email: str) -> LoginResponse:
    admin.identity.create_user(CreateUserRequest(email=email, password=PASSWORD))
    return admin.identity.login(LoginRequest(email=email, password=PASSWORD))


def _refreshed(client: HubClient, token: str) -> str:
    request = RefreshTokenRequest(refresh_token=token)
    return client.identity.refresh_token(request).refresh_token


def _ends(admin: HubClient, address: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield credentials, and what ends each."""
    identity = admin.identity
    out, revoked, disabled, deleted = (
        _log_in(admin, f"{name}@example.org") for name in ("out", "revoked", "disabled", "deleted")
    )

    def log_out() -> None:
        with HubClient(address, out.token) as own:
            own.identity.logout(LogoutRequest())

    key = identity.create_api_key(
        CreateApiKeyRequest(name="reader", scopes=[Scope.SCOPE_IDENTITY_READ])
    )
    yield out.token, log_out
    login = RevokeLoginRequest(login_id=revoked.login_id)
    yield revoked.token, lambda: identity.revoke_login(login)
    user = DeactivateUserRequest(user_id=disabled.user.user_id)
    yield disabled.token, lambda: identity.deactivate_user(user)
    gone = DeleteUserRequest(user_id=deleted.user.user_id)
    yield deleted.token, lambda: identity.delete_user(gone)
    revoke = RevokeApiKeyRequest(api_key_id=key.api_key.api_key_id)
    yield key.secret, lambda: identity.revoke_api_key(revoke)


def _admin(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("HUB_")}
    return subprocess.run(
        [*COMMAND, "admin", *arguments],
        env={**environment, "HUB_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_an_operator_is_made_on_the_machine(tmp_path: Path) -> None:
    """While the hub runs on its own Postgres and while it does not; and ends there, too."""
    with hub_process(tmp_path / "data") as hub:
        address = hub.start()
        made = _admin(hub.data_dir, "create-operator", "Ann")
        assert made.returncode == 0, made.stderr
        with HubClient(address, made.stdout.strip()) as operator:
            tenant = operator.identity.create_tenant(CreateTenantRequest(name="acme")).tenant
            listed = operator.identity.list_tenants(ListTenantsRequest())
            assert [one.name for one in listed] == ["acme", "default"]
            key = _admin(hub.data_dir, "create-key", "acme").stdout.strip()
            with HubClient(address, key) as client:
                told = client.identity.who_am_i(WhoAmIRequest())
                assert told.tenant_id == tenant.tenant_id
            hub.stop()
            shown = _admin(hub.data_dir, "list-operators").stdout
            operator_id, _, state, name = shown.split()
            assert (state, name) == ("valid", "Ann")
            assert _admin(hub.data_dir, "revoke-operator", operator_id).returncode == 0
    with hub_process(tmp_path / "data") as hub:
        refused = pytest.raises(errors.CredentialInvalidError)
        with HubClient(hub.start(), made.stdout.strip()) as operator, refused:
            operator.identity.create_tenant(CreateTenantRequest(name="other"))
        unknown = _admin(hub.data_dir, "revoke-operator", "nobody")
        assert (unknown.returncode, unknown.stderr) == (1, "hub: there is no operator nobody\n")
