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
from hub_server.database import Database
from hub_server.errors import HubError, Reason
from hub_server.idempotency import NO_USER, Claims, Retry
from hub_server.identity.repository import IdentityRepository
from hub_server.paging import Page, split
from hub_server.passwords import Passwords, check_new
from hub_server.rows import Row

_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")
_DEFAULTS: Final[Mapping[str, Any]] = {
    "enable_multichat": True,
    "enable_chat_history": True,
    "enable_rag": True,
    "enable_tool": True,
    "max_sessions": None,
    "preferred_language": "en",
    "timezone": "UTC",
}


class IdentityService:
    """Users and their configurations."""

    def __init__(self, database: Database, passwords: Passwords) -> None:
        """Keep users in the given database, their passwords hashed."""
        self._database = database
        self._passwords = passwords

    async def create_user(
        self, caller: Caller, retry: Retry, email: str, password: str | None, display_name: str
    ) -> Row:
        """Create a user. Raises EMAIL_TAKEN or REQUEST_ID_REUSED."""
        if password is not None:
            check_new(password, email)
        hashed = None if password is None else await self._passwords.hash(password)
        async with self._database.transaction(caller) as connection:
            claims = Claims(connection, caller.tenant_id, NO_USER)
            answer = await claims.claim(retry)
            if answer is None:
                user = await IdentityRepository(connection, caller.tenant_id).add_user(
                    email=email,
                    email_key=email_key(email),
                    password_hash=hashed,
                    display_name=display_name,
                )
                if user is None:
                    raise HubError(Reason.REASON_EMAIL_TAKEN)
                await claims.keep(retry, user)
                return user
        await self._check_repeated(caller, email, password)
        return answer

    async def _check_repeated(self, caller: Caller, email: str, password: str | None) -> None:
        """Refuse a retry that brings another password, which its fingerprint does not tell."""
        async with self._database.statement(caller) as connection:
            repository = IdentityRepository(connection, caller.tenant_id)
            user = await repository.login(email_key(email))
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
        return await self._change_user(caller, user_id, values, etag)

    async def set_active(self, caller: Caller, user_id: str, *, is_active: bool) -> Row:
        """Disable a user or enable him again. Raises NOT_FOUND."""
        return await self._change_user(caller, user_id, {"is_active": is_active})

    async def delete_user(self, caller: Caller, user_id: str, etag: str) -> Row:
        """Delete a user so that he can be brought back. Raises NOT_FOUND or ETAG_MISMATCH."""
        values = {"deleted_at": dt.datetime.now(dt.UTC)}
        return await self._change_user(caller, user_id, values, etag)

    async def undelete_user(self, caller: Caller, user_id: str) -> Row:
        """Bring a deleted user back. Raises NOT_FOUND."""
        return await self._change_user(caller, user_id, {"deleted_at": None}, deleted=True)

    async def _change_user(
        self,
        caller: Caller,
        user_id: str,
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
            return changed

    async def get_config(self, caller: Caller, user_id: str) -> Row:
        """Return a user's configuration. Raises NOT_FOUND."""
        async with self._database.statement(caller) as connection:
            config = await IdentityRepository(connection, caller.tenant_id).config(user_id)
        return _found(config)

    async def update_config(
        self, caller: Caller, user_id: str, changes: Mapping[str, Any], etag: str
    ) -> Row:
        """Change a configuration; None as a value stands for the default.

        Raises INVALID_FIELD, NOT_FOUND or ETAG_MISMATCH.
        """
        values = {
            name: _DEFAULTS[name] if value is None else value for name, value in changes.items()
        }
        _check_config(values)
        async with self._database.transaction(caller) as connection:
            repository = IdentityRepository(connection, caller.tenant_id)
            current = _found(await repository.config(user_id, lock=True))
            if etag not in ("", config_etag(current)):
                raise HubError(Reason.REASON_ETAG_MISMATCH)
            return await repository.set_config(user_id, values) if values else current


def email_key(email: str) -> str:
    """Return the form in which emails are compared.

    Case and width of letters do not count, and a domain is compared as IDNA spells it. Raises
    INVALID_FIELD for a domain that IDNA does not admit.
    """
    local, _, domain = _fold(email).rpartition("@")
    try:
        return f"{local}@{idna.encode(domain, uts46=True).decode()}"
    except idna.IDNAError as error:
        raise HubError.invalid("email", "must have a valid domain") from error


def email_prefix_key(prefix: str) -> str:
    """Return what the compared form of an email begins with when the email begins so.

    A domain in the prefix is taken as it stands: half of an international one has no IDNA form.
    """
    return _fold(prefix)


def _fold(email: str) -> str:
    return unicodedata.normalize("NFKC", email).casefold()


def config_etag(config: Row) -> str:
    """Return the version of a configuration: 22 characters that change with every update."""
    return _etag(config, _DEFAULTS)


def user_etag(user: Row) -> str:
    """Return the version of a user: 22 characters that change with every update."""
    return _etag(user, ("email", "display_name", "is_active", "deleted_at"))


def _etag(row: Row, names: Iterable[str]) -> str:
    text = repr([*(row[name] for name in names), row["updated_at"].timestamp()])
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:16])[:22].decode()


def _check_config(values: Mapping[str, Any]) -> None:
    bad: list[tuple[str, str]] = []
    if values.get("timezone", "UTC") not in _timezones():
        bad.append(("config.timezone", "must be an IANA time zone"))
    if not _LANGUAGE.fullmatch(values.get("preferred_language", "en")):
        bad.append(("config.preferred_language", "must be a BCP 47 language tag"))
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
