"""Rules of identity. Opens the transactions; knows no gRPC."""

import base64
import datetime as dt
import functools
import hashlib
import re
import unicodedata
import zoneinfo
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import idna

from hub_server.caller import Caller
from hub_server.database import Connection, Database
from hub_server.errors import HubError, Reason
from hub_server.idempotency import NO_USER, Claims, Retry
from hub_server.identity.access_repository import AccessRepository
from hub_server.identity.repository import IdentityRepository
from hub_server.paging import Page, split
from hub_server.passwords import Passwords
from hub_server.rows import Row

# A well-formed tag of RFC 5646, section 2.1, but for the grandfathered ones (`i-klingon`).
_LANGUAGE: Final = re.compile(
    r"""
    (?: (?: [a-z]{2,3} (?:-[a-z]{3}){0,3} | [a-z]{4,8} )    # language
        (?: -[a-z]{4} )?                                   # script
        (?: -(?: [a-z]{2} | [0-9]{3} ) )?                   # region
        (?: -(?: [a-z0-9]{5,8} | [0-9][a-z0-9]{3} ) )*      # variants
        (?: -[0-9a-wyz] (?:-[a-z0-9]{2,8})+ )*              # extensions
        (?: -x (?:-[a-z0-9]{1,8})+ )?                       # private use
      | x (?:-[a-z0-9]{1,8})+ )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_DEFAULTS: Final[Mapping[str, Any]] = {
    "enable_multichat": True,
    "enable_chat_history": True,
    "enable_rag": True,
    "enable_tool": True,
    "max_sessions": None,
    "max_tokens": None,
    "budget_period": "lifetime",
    "preferred_language": "en",
    "timezone": "UTC",
}
_TENANT_DEFAULTS: Final[Mapping[str, Any]] = {"message_search": "off"}
# As the row of a tenant without defaults of its own would be.
_HUBS_OWN: Final[Row] = {**_DEFAULTS, "created_at": None, "updated_at": None}


class IdentityService:
    """Users, their configurations and what they have used."""

    def __init__(self, database: Database, passwords: Passwords) -> None:
        """Keep users in the given database, their passwords hashed."""
        self._database = database
        self._passwords = passwords

    async def create_user(
        self, caller: Caller, retry: Retry, email: str, password: str | None, display_name: str
    ) -> Row:
        """Create a user. Raises EMAIL_TAKEN or REQUEST_ID_REUSED."""
        if password is not None:
            await self._passwords.check_new("password", password, email)
        hashed = None if password is None else await self._passwords.hash(password)
        async with self._database.transaction(caller) as connection:
            claims = Claims(connection, caller.tenant_id, NO_USER)
            answer = await claims.claim(retry)
            if answer is None:
                user = await self._add_user(connection, caller, email, hashed, display_name)
                await claims.keep(retry, user)
                return user
        await self._check_repeated(caller, email, password)
        return answer

    async def _add_user(
        self,
        connection: Connection,
        caller: Caller,
        email: str,
        hashed: str | None,
        display_name: str,
    ) -> Row:
        repository = IdentityRepository(connection, caller.tenant_id)
        user = await repository.add_user(
            _settings(await repository.default_config()),
            email=email,
            email_key=email_key(email),
            password_hash=hashed,
            display_name=display_name,
        )
        if user is None:
            raise HubError(Reason.REASON_EMAIL_TAKEN)
        await AccessRepository(connection, caller).note("user_created", "user", user["user_id"])
        return user

    async def _check_repeated(self, caller: Caller, email: str, password: str | None) -> None:
        """Refuse a retry that brings another password, which its fingerprint does not tell."""
        async with self._database.statement(caller) as connection:
            repository = IdentityRepository(connection, caller.tenant_id)
            user = await repository.password_of(email_key(email))
        stored = None if user is None else user["password_hash"]
        same = (
            stored is None if password is None else await self._passwords.verify(password, stored)
        )
        if not same:
            raise HubError(Reason.REASON_REQUEST_ID_REUSED)

    async def get_user(self, caller: Caller, user_id: str) -> Row:
        """Return a user. Raises NOT_FOUND."""
        async with self._database.statement(caller) as connection:
            user = await IdentityRepository(connection, caller.tenant_id).user(user_id)
        return _found(user)

    async def list_users(
        self,
        caller: Caller,
        page: Page,
        *,
        is_active: bool | None,
        email_prefix: str,
        show_deleted: bool,
    ) -> tuple[Sequence[Row], str | None]:
        """Return a page of users and the key of the next."""
        async with self._database.statement(caller) as connection:
            rows = await IdentityRepository(connection, caller.tenant_id).list_users(
                page,
                is_active=is_active,
                email_key_prefix=email_prefix_key(email_prefix),
                show_deleted=show_deleted,
            )
        return split(rows, page.size, lambda row: str(row["user_id"]))

    async def update_user(
        self, caller: Caller, user_id: str, changes: Mapping[str, str], etag: str
    ) -> Row:
        """Change email or name. Raises INVALID_FIELD, NOT_FOUND, ETAG_MISMATCH or EMAIL_TAKEN."""
        values = dict(changes)
        if "email" in values:
            values["email_key"] = email_key(values["email"])
        return await self._change_user(caller, user_id, "user_updated", values, etag)

    async def set_active(self, caller: Caller, user_id: str, *, is_active: bool) -> Row:
        """Disable a user or enable him again. Raises NOT_FOUND."""
        event = "user_activated" if is_active else "user_archived"
        return await self._change_user(caller, user_id, event, {"is_active": is_active})

    async def delete_user(self, caller: Caller, user_id: str, etag: str) -> Row:
        """Delete a user so that he can be brought back. Raises NOT_FOUND or ETAG_MISMATCH."""
        values = {"deleted_at": dt.datetime.now(dt.UTC)}
        return await self._change_user(caller, user_id, "user_deleted", values, etag)

    async def undelete_user(self, caller: Caller, user_id: str) -> Row:
        """Bring a deleted user back. Raises NOT_FOUND."""
        values = {"deleted_at": None}
        return await self._change_user(caller, user_id, "user_undeleted", values, deleted=True)

    async def _change_user(
        self,
        caller: Caller,
        user_id: str,
        event: str,
        values: Mapping[str, Any],
        etag: str = "",
        *,
        deleted: bool = False,
    ) -> Row:
        """Change a user if that changes anything; ``deleted`` ones only when asked for."""
        async with self._database.transaction(caller) as connection:
            repository = IdentityRepository(connection, caller.tenant_id)
            current = await repository.lock_user(user_id)
            if current is None or (current["deleted_at"] is not None and not deleted):
                raise HubError(Reason.REASON_NOT_FOUND, resource="user")
            if etag not in ("", user_etag(current)):
                raise HubError(Reason.REASON_ETAG_MISMATCH)
            if all(current.get(name) == value for name, value in values.items()):
                return current
            changed = await repository.set_user(user_id, values)
            if changed is None:
                raise HubError(Reason.REASON_EMAIL_TAKEN)
            await AccessRepository(connection, caller).note(event, "user", user_id)
            return changed

    async def get_config(self, caller: Caller, user_id: str) -> Row:
        """Return a user's configuration. Raises NOT_FOUND."""
        async with self._database.statement(caller) as connection:
            config = await IdentityRepository(connection, caller.tenant_id).config(user_id)
        return _found(config)

    async def update_config(
        self, caller: Caller, user_id: str, changes: Mapping[str, Any], etag: str
    ) -> Row:
        """Change a configuration; None as a value stands for the tenant's default.

        Raises INVALID_FIELD, NOT_FOUND or ETAG_MISMATCH.
        """
        async with self._database.transaction(caller) as connection:
            repository = IdentityRepository(connection, caller.tenant_id)
            current = _found(await repository.config(user_id, lock=True))
            if etag not in ("", config_etag(current)):
                raise HubError(Reason.REASON_ETAG_MISMATCH)
            values = dict(changes)
            if None in values.values():
                values = _filled(values, _settings(await repository.default_config()))
            await _check_config(repository, values)
            if not values:
                return current
            await AccessRepository(connection, caller).note("authz_change", "config", user_id)
            config = await repository.set_config(user_id, values)
            if {"budget_period", "timezone"} & values.keys():
                await repository.recount_period(user_id)
            return config

    async def get_default_config(self, caller: Caller) -> Row:
        """Return what the configuration of a new user begins with."""
        async with self._database.statement(caller) as connection:
            own = await IdentityRepository(connection, caller.tenant_id).default_config()
        return _HUBS_OWN if own is None else own

    async def update_default_config(
        self, caller: Caller, changes: Mapping[str, Any], etag: str
    ) -> Row:
        """Change the tenant's defaults; None as a value stands for the hub's own.

        Raises INVALID_FIELD or ETAG_MISMATCH.
        """
        values = _filled(changes, _DEFAULTS)
        async with self._database.transaction(caller) as connection:
            repository = IdentityRepository(connection, caller.tenant_id)
            current = await repository.default_config(lock=True) or _HUBS_OWN
            if etag not in ("", config_etag(current)):
                raise HubError(Reason.REASON_ETAG_MISMATCH)
            await _check_config(repository, values)
            if not values:
                return current
            access = AccessRepository(connection, caller)
            await access.note("authz_change", "config", caller.tenant_id)
            return await repository.set_default_config(values)

    async def get_tenant_settings(self, caller: Caller) -> Row:
        """Return what holds for all users of the tenant."""
        async with self._database.statement(caller) as connection:
            return await IdentityRepository(connection, caller.tenant_id).tenant_settings()

    async def update_tenant_settings(
        self, caller: Caller, changes: Mapping[str, Any], etag: str
    ) -> Row:
        """Change what holds for all; None as a value stands for the default.

        Raises ETAG_MISMATCH.
        """
        values = _filled(changes, _TENANT_DEFAULTS)
        async with self._database.transaction(caller) as connection:
            repository = IdentityRepository(connection, caller.tenant_id)
            current = await repository.tenant_settings(lock=True)
            if etag not in ("", tenant_settings_etag(current)):
                raise HubError(Reason.REASON_ETAG_MISMATCH)
            if all(current[name] == value for name, value in values.items()):
                return current
            access = AccessRepository(connection, caller)
            await access.note("tenant_updated", "tenant", caller.tenant_id)
            return await repository.set_tenant_settings(values)

    async def get_usage(self, caller: Caller, user_id: str) -> Row:
        """Return what a user has used. Raises NOT_FOUND."""
        async with self._database.statement(caller) as connection:
            return _found(await IdentityRepository(connection, caller.tenant_id).usage(user_id))

    async def list_usage(self, caller: Caller, page: Page) -> tuple[Sequence[Row], str | None]:
        """Return a page of what users have used, most tokens first, and the key of the next."""
        after = None
        if page.after is not None:
            tokens, _, user_id = page.after.partition(",")
            after = int(tokens), user_id
        async with self._database.statement(caller) as connection:
            repository = IdentityRepository(connection, caller.tenant_id)
            rows = await repository.list_usage(after, page.size + 1)
        return split(rows, page.size, lambda row: f"{row['total_tokens_used']},{row['user_id']}")


def email_key(email: str) -> str:
    """Return the form in which emails are compared.

    Case and width of letters do not count, and a domain is compared as IDNA spells it. Raises
    INVALID_FIELD for a domain that IDNA does not admit.
    """
    local, _, domain = _fold(email).removesuffix(".").rpartition("@")
    try:
        return f"{local}@{idna.encode(domain, uts46=True).decode()}"
    except idna.IDNAError as error:
        raise HubError.invalid("email", "must have a valid domain") from error


def email_prefix_key(prefix: str) -> str:
    """Return what the compared form of an email begins with when the email begins so.

    A whole domain is spelt as IDNA does; half of an international one has no such form.
    """
    folded = _fold(prefix)
    try:
        return email_key(prefix) if "@" in folded else folded
    except HubError:
        return folded


def _fold(email: str) -> str:
    return unicodedata.normalize("NFKC", email).casefold()


def config_etag(config: Row) -> str:
    """Return the version of a configuration: 22 characters that change with every update."""
    return _etag(config, _DEFAULTS)


def user_etag(user: Row) -> str:
    """Return the version of a user: 22 characters that change with every update."""
    return _etag(user, ("email", "display_name", "is_active", "deleted_at"))


def tenant_settings_etag(settings: Row) -> str:
    """Return the version of a tenant's settings: 22 characters that change with every update."""
    return _etag(settings, _TENANT_DEFAULTS)


def _etag(row: Row, names: Iterable[str]) -> str:
    version = row["updated_at"] and row["updated_at"].timestamp()
    text = repr([*(row[name] for name in names), version])
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:16])[:22].decode()


def _settings(defaults: Row | None) -> Mapping[str, Any]:
    """Return the defaults of a tenant, which are the hub's own unless it has some."""
    return _DEFAULTS if defaults is None else {name: defaults[name] for name in _DEFAULTS}


def _filled(changes: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {name: defaults[name] if value is None else value for name, value in changes.items()}


async def check_config(
    connection: Connection, caller: Caller, values: Mapping[str, Any], field: str
) -> None:
    """Refuse a configuration that comes from elsewhere under a field. Raises INVALID_FIELD."""
    await _check_config(IdentityRepository(connection, caller.tenant_id), values, field)


async def _check_config(
    repository: IdentityRepository, values: Mapping[str, Any], field: str = "config"
) -> None:
    bad: list[tuple[str, str]] = []
    zone = values.get("timezone")
    if zone is not None and not (zone in _timezones() and await repository.is_time_zone(zone)):
        bad.append((f"{field}.timezone", "must be an IANA time zone"))
    if not _LANGUAGE.fullmatch(values.get("preferred_language", "en")):
        bad.append((f"{field}.preferred_language", "must be a BCP 47 language tag"))
    if bad:
        raise HubError(Reason.REASON_INVALID_FIELD, violations=bad)


@functools.cache
def _timezones() -> set[str]:
    """Return the names of all time zones; reading them takes some 50 ms, once."""
    return zoneinfo.available_timezones()


def _found(row: Row | None) -> Row:
    if row is None:
        raise HubError(Reason.REASON_NOT_FOUND, resource="user")
    return row
