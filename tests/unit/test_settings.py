"""Settings from the environment, and those that contradict each other."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy.pool import AsyncAdaptedQueuePool

from hub_server.database import Database
from hub_server.settings import Settings

_CERTIFICATE: dict[str, Any] = {"tls_cert": Path("cert.pem"), "tls_key": Path("key.pem")}


def test_a_hub_without_settings_is_safe() -> None:
    """By default a hub is reached from its own machine only, and runs its own Postgres."""
    settings = Settings()
    assert settings.listen == "127.0.0.1:50051"
    assert settings.on_loopback
    assert settings.with_reflection
    assert settings.database_url is None


def test_the_environment_sets_what_is_named_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables are HUB_ and the name of the setting; others are not looked at."""
    monkeypatch.setenv("HUB_LISTEN", "[::1]:0")
    monkeypatch.setenv("HUB_POOL_SIZE", "7")
    monkeypatch.setenv("POOL_SIZE", "9")
    monkeypatch.setenv("HUB_UNHEARD_OF", "x")
    settings = Settings()
    assert (settings.listen, settings.pool_size) == ("[::1]:0", 7)


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """`HUB_DATABASE_URL=` means what `make run` takes it for: the hub's own Postgres."""
    for name in ("HUB_DATABASE_URL", "HUB_TLS_CERT", "HUB_POOL_SIZE", "HUB_REFLECTION"):
        monkeypatch.setenv(name, "")
    assert Settings() == Settings.model_construct()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:50051", "[::1]:50051"])
def test_loopback_needs_no_encryption(listen: str) -> None:
    """Nobody can listen in on a machine's own loopback."""
    assert Settings(listen=listen).on_loopback


@pytest.mark.parametrize(
    "listen",
    ["0.0.0.0:50051", "[::]:50051", "10.0.0.7:50051", "hub.example.org:443", ":50051"],
)
def test_plaintext_beyond_loopback_is_refused(listen: str) -> None:
    """Credentials and messages do not cross a network unencrypted by oversight."""
    with pytest.raises(ValidationError, match="is not loopback: set HUB_TLS_CERT and HUB_TLS_KEY"):
        Settings(listen=listen)
    assert not Settings(listen=listen, allow_plaintext=True).with_reflection
    assert not Settings(listen=listen, **_CERTIFICATE).with_reflection


@pytest.mark.parametrize("listen", ["50051", "127.0.0.1", "127.0.0.1:80000", "::1:5", "a:b", ""])
def test_what_is_no_address_is_refused(listen: str) -> None:
    """A forgotten or impossible port is told as what it is."""
    with pytest.raises(ValidationError, match="must be host:port"):
        Settings(listen=listen)


def test_a_misspelt_variable_is_found() -> None:
    """What begins like a setting and is none is named, so that it can be told."""
    assert Settings.unknown({"HUB_POOLSIZE": "3", "HUB_POOL_SIZE": "3", "PATH": ""}) == [
        "HUB_POOLSIZE"
    ]


@pytest.mark.parametrize("half", _CERTIFICATE)
def test_half_a_certificate_is_refused(half: str) -> None:
    """A forgotten key is told at start, also on loopback, instead of plaintext being served."""
    with pytest.raises(ValidationError, match="HUB_TLS_CERT and HUB_TLS_KEY go together"):
        Settings(**{half: _CERTIFICATE[half]})


@pytest.mark.parametrize("reflection", [True, False])
def test_reflection_follows_its_setting(*, reflection: bool) -> None:
    """Who sets it decides, on loopback and elsewhere."""
    assert Settings(reflection=reflection).with_reflection is reflection
    settings = Settings(reflection=reflection, listen="0.0.0.0:1", allow_plaintext=True)
    assert settings.with_reflection is reflection


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("server_role", "hub; DROP TABLE users"),
        ("server_role", "Hub"),
        ("server_role", ""),
        ("embedding", "unheard-of"),
        ("pooler", "session"),
        ("pool_size", 0),
        ("workers", 0),
        ("workers", 65),
        ("max_calls", 0),
        ("default_deadline", 0),
        ("default_deadline", 65),
        ("token_ttl", 0),
        ("ingestion_lease", 0),
        ("log_level", "LOUD"),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, value: Any) -> None:
    """A wrong setting is told at start by its name."""
    with pytest.raises(ValidationError) as caught:
        Settings(**{name: value})
    assert [error["loc"] for error in caught.value.errors()] == [(name,)]


def test_more_connections_than_the_own_postgres_has_are_refused() -> None:
    """What all pools together may need is told at start, not when the last one fills."""
    assert Settings(workers=10, pool_size=95).connections == 1000
    with pytest.raises(ValidationError, match="may need 1010 connections"):
        Settings(workers=10, pool_size=96)
    given = SecretStr("postgresql://db/hub")
    assert Settings(workers=10, pool_size=96, database_url=given).connections == 1010


def test_the_connections_counted_are_those_that_are_made() -> None:
    """A worker has the pool for calls, the one that looks across tenants, and who listens."""
    settings = Settings(pool_size=7)
    database = Database("postgresql://db/hub", role="hub_server", pool_size=settings.pool_size)
    pools = [database._tenants.pool, database._system.pool]
    sizes = [pool.size() for pool in pools if isinstance(pool, AsyncAdaptedQueuePool)]
    assert len(sizes) == 2
    assert sum(sizes) + 1 == settings.connections


def test_settings_do_not_show_the_password_of_the_database() -> None:
    """What a log or a traceback shows of the settings has no secret in it."""
    url = "postgresql://hub:letmein@db/hub"
    settings = Settings.model_validate({"database_url": url, "owner_url": url})
    assert "letmein" not in repr(settings)
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == url


def test_settings_cannot_change_under_a_running_hub() -> None:
    """What was checked at start holds."""
    with pytest.raises(ValidationError, match="frozen"):
        Settings().listen = "0.0.0.0:1"
