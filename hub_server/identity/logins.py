"""Rules of logins: passwords for tokens, tokens for the next ones, and their end."""

import datetime as dt
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.errors import HubError, Reason
from hub_server.identity import refresh
from hub_server.identity.refresh import RefreshToken
from hub_server.identity.repository import IdentityRepository, SystemRepository
from hub_server.identity.secrets import PASSWORD_RESET, Secret
from hub_server.identity.service import email_key
from hub_server.ids import new_id
from hub_server.paging import Page, split
from hub_server.passwords import Passwords, check_new
from hub_server.rows import Row, active_user

DEFAULT_TENANT: Final = "default"
_RESET_TTL: Final = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A pair of tokens as it is shown once, and when each ends."""

    login_id: str
    token: str
    expires_at: dt.datetime
    refresh_token: str
    refresh_expires_at: dt.datetime


class Logins:
    """Logins and the tokens that descend from them."""

    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        token_ttl: dt.timedelta,
        refresh_ttl: dt.timedelta,
    ) -> None:
        """``token_ttl`` bounds a user token, ``refresh_ttl`` a login as a whole."""
        self._database = database
        self._passwords = passwords
        self._token_ttl = token_ttl
        self._refresh_ttl = refresh_ttl

    async def login(self, caller: Caller | None, email: str, password: str) -> tuple[Tokens, Row]:
        """Exchange email and password for tokens; return them and the user. Raises LOGIN_FAILED.

        Whatever is wrong, one hash is computed, so that time tells nothing of the cause.
        """
        caller = caller or await self._default_tenant()
        async with self._database.statement(caller) as connection:
            repository = IdentityRepository(connection, caller.tenant_id)
            row = await repository.login(_key_or_nobody(email))
        stored = None if row is None else row["password_hash"]
        fits = await self._passwords.verify(password, stored)
        if row is None or not fits or not row["is_active"]:
            raise HubError(Reason.REASON_LOGIN_FAILED)
        if self._passwords.is_outdated(row["password_hash"]):
            await self._rehash(caller, row, password)
        return await self._begin(caller, row["user_id"])

    async def change_password(self, caller: Caller, user_id: str, old: str, new: str) -> int:
        """Change a password that is known; return how many other logins ended.

        Raises NOT_FOUND, LOGIN_FAILED or PASSWORD_REFUSED.
        """
        async with self._database.statement(caller) as connection:
            row = await IdentityRepository(connection, caller.tenant_id).passwords(user_id)
        if row is None:
            raise HubError(Reason.REASON_NOT_FOUND, resource="user")
        if not await self._passwords.verify(old, row["password_hash"]):
            raise HubError(Reason.REASON_LOGIN_FAILED)
        check_new(new, row["email"])
        hashed = await self._passwords.hash(new)
        async with self._database.transaction(caller) as connection:
            repository = IdentityRepository(connection, caller.tenant_id)
            if not await repository.set_password(user_id, row["password_hash"], hashed):
                raise HubError(Reason.REASON_LOGIN_FAILED)
            await repository.end_resets(user_id)
            return await repository.end_logins(user_id, but=caller.credential_id)

    async def create_reset(self, caller: Caller, user_id: str) -> tuple[str, dt.datetime]:
        """Make a one-time token for a new password; return it and its end. Raises NOT_FOUND."""
        secret, expires_at = Secret.new(PASSWORD_RESET), dt.datetime.now(dt.UTC) + _RESET_TTL
        async with self._database.transaction(caller) as connection:
            repository = IdentityRepository(connection, caller.tenant_id)
            if await repository.user(user_id) is None:
                raise HubError(Reason.REASON_NOT_FOUND, resource="user")
            await repository.end_resets(user_id)
            await repository.add_credential(
                "password_reset", secret.hash, user_id=user_id, expires_at=expires_at
            )
        return secret.text, expires_at

    async def confirm_reset(self, text: str, new: str) -> int:
        """Set a new password by a reset token; return how many logins ended.

        Raises CREDENTIAL_INVALID or PASSWORD_REFUSED; a refused password does not spend the token.
        """
        secret = Secret.of(text)
        async with self._database.system() as connection:
            found = await SystemRepository(connection).authenticate([secret.hash])
        if not found or found[0]["kind"] != "password_reset":
            raise HubError(Reason.REASON_CREDENTIAL_INVALID)
        caller, user_id = Caller.hub(found[0]["tenant_id"]), found[0]["user_id"]
        async with self._database.statement(caller) as connection:
            row = await IdentityRepository(connection, caller.tenant_id).passwords(user_id)
        if row is None:
            raise HubError(Reason.REASON_CREDENTIAL_INVALID)
        check_new(new, row["email"])
        hashed = await self._passwords.hash(new)
        async with self._database.transaction(caller) as connection:
            repository = IdentityRepository(connection, caller.tenant_id)
            spent = await repository.end_resets(user_id, secret.hash)
            if not spent or not await repository.set_password(
                user_id, row["password_hash"], hashed
            ):
                raise HubError(Reason.REASON_CREDENTIAL_INVALID)
            return await repository.end_logins(user_id)

    async def refresh(self, text: str) -> Tokens:
        """Exchange a refresh token for the next pair. Raises CREDENTIAL_INVALID.

        The previous refresh token gets the current pair again. An older one ends the login, and
        that end is committed although the call fails.
        """
        token = RefreshToken.read(text)
        if token is None:
            raise HubError(Reason.REASON_CREDENTIAL_INVALID)
        async with self._database.system() as connection:
            tenant_id = await SystemRepository(connection).tenant_of_login(token.login_id)
        if tenant_id is None:
            raise HubError(Reason.REASON_CREDENTIAL_INVALID)
        caller = Caller.hub(tenant_id)
        async with self._database.transaction(caller) as connection:
            tokens = await self._step(IdentityRepository(connection, tenant_id), token)
        if tokens is None:
            raise HubError(Reason.REASON_CREDENTIAL_INVALID)
        return tokens

    async def introspect(self, caller: Caller, text: str) -> Row | None:
        """Return the credential of the caller's tenant with this text if it is valid, or None."""
        async with self._database.statement(caller) as connection:
            repository = IdentityRepository(connection, caller.tenant_id)
            return await repository.valid_credential(Secret.of(text).hash)

    async def end(self, caller: Caller, *, every: bool) -> int:
        """End the caller's login, or all logins of his; return how many ended."""
        if caller.user_id is None:
            raise HubError.invalid("authorization", "must be a user token")
        login_id = None if every else caller.credential_id
        async with self._database.statement(caller) as connection:
            repository = IdentityRepository(connection, caller.tenant_id)
            return await repository.end_logins(caller.user_id, login_id)

    async def revoke(self, caller: Caller, login_id: str) -> None:
        """End a login the caller may see. Raises NOT_FOUND."""
        async with self._database.statement(caller) as connection:
            repository = IdentityRepository(connection, caller.tenant_id)
            if not await repository.end_logins(caller.user_id, login_id):
                raise HubError(Reason.REASON_NOT_FOUND, resource="login")

    async def list_logins(
        self, caller: Caller, user_id: str, page: Page
    ) -> tuple[Sequence[Row], str | None]:
        """Return a page of living logins and the key of the next. Raises NOT_FOUND."""
        async with self._database.statement(caller) as connection:
            repository = IdentityRepository(connection, caller.tenant_id)
            rows = await repository.list_logins(user_id, page)
        active_user(rows[0] if rows else None)
        logins = [row for row in rows if row["credential_id"] is not None]
        return split(logins, page.size, lambda row: str(row["credential_id"]))

    async def _default_tenant(self) -> Caller:
        async with self._database.system() as connection:
            tenant_id = await SystemRepository(connection).tenant_named(DEFAULT_TENANT)
        if tenant_id is None:
            raise HubError(Reason.REASON_CREDENTIAL_MISSING)
        return Caller.hub(tenant_id)

    async def _rehash(self, caller: Caller, user: Row, password: str) -> None:
        """Replace an outdated hash; a password that was changed meanwhile stays as it is."""
        hashed = await self._passwords.hash(password)
        async with self._database.statement(caller) as connection:
            repository = IdentityRepository(connection, caller.tenant_id)
            await repository.set_password(user["user_id"], user["password_hash"], hashed)

    async def _begin(self, caller: Caller, user_id: str) -> tuple[Tokens, Row]:
        login_id, family_key, pair = new_id(), secrets.token_bytes(32), refresh.new_pair()
        ends = dt.datetime.now(dt.UTC) + self._refresh_ttl
        tokens = self._tokens(login_id, family_key, pair, ends)
        async with self._database.transaction(caller) as connection:
            repository = IdentityRepository(connection, caller.tenant_id)
            user = await repository.touch_login(user_id)
            if user is None:
                raise HubError(Reason.REASON_LOGIN_FAILED)
            await repository.add_credential(
                "user_token",
                Secret.of(tokens.token).hash,
                login_id,
                user_id=user_id,
                expires_at=tokens.expires_at,
                refresh_hash=Secret.of(tokens.refresh_token).hash,
                family_key=family_key,
                refresh_expires_at=ends,
            )
        return tokens, user

    async def _step(self, repository: IdentityRepository, token: RefreshToken) -> Tokens | None:
        """Return the pair this token buys, or None; ends a login whose old token is used."""
        login = await repository.lock_login(token.login_id)
        if login is None or not token.is_genuine(login["family_key"]):
            return None
        ends: dt.datetime = login["refresh_expires_at"]
        if token.hash == login["previous_hash"]:
            pair = token.seal(login["reissue"])
            again = self._tokens(token.login_id, login["family_key"], pair, ends)
            return replace(again, expires_at=login["expires_at"])
        if token.hash != login["refresh_hash"]:
            await repository.end_logins(login["user_id"], token.login_id)
            return None
        pair = refresh.new_pair()
        tokens = self._tokens(token.login_id, login["family_key"], pair, ends)
        await repository.set_login(
            token.login_id,
            secret_hash=Secret.of(tokens.token).hash,
            expires_at=tokens.expires_at,
            refresh_hash=Secret.of(tokens.refresh_token).hash,
            previous_hash=token.hash,
            reissue=token.seal(pair),
            refreshed_at=dt.datetime.now(dt.UTC),
        )
        return tokens

    def _tokens(self, login_id: str, family_key: bytes, pair: bytes, ends: dt.datetime) -> Tokens:
        refresh_token = RefreshToken.of(login_id, refresh.refresh_secret(pair), family_key)
        return Tokens(
            login_id=login_id,
            token=refresh.user_token(pair),
            expires_at=min(dt.datetime.now(dt.UTC) + self._token_ttl, ends),
            refresh_token=refresh_token.text,
            refresh_expires_at=ends,
        )


def _key_or_nobody(email: str) -> str:
    """Return the key to look for; what cannot be an address is looked for too, in vain.

    A login costs the same whatever was typed.
    """
    try:
        return email_key(email)
    except HubError:
        return ""
