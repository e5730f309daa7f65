"""Rules of logins: passwords for tokens, tokens for the next ones, and their end."""

import datetime as dt
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.errors import HubError, Reason
from hub_server.identity import refresh
from hub_server.identity.access_repository import AccessRepository
from hub_server.identity.refresh import RefreshToken
from hub_server.identity.secrets import PASSWORD_RESET, Secret
from hub_server.identity.service import email_key
from hub_server.identity.system_repository import SystemRepository
from hub_server.ids import new_id
from hub_server.paging import Page, split
from hub_server.passwords import Passwords
from hub_server.rows import Row

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


@dataclass(frozen=True, slots=True)
class Terms:
    """How long tokens and logins last, and how often a password may be guessed.

    ``token_ttl`` bounds a user token, ``refresh_ttl`` a login as a whole. Of one account
    ``attempts`` logins are judged in a ``window``; a login that succeeds begins a new one.
    ``account_key`` is the secret under which accounts are counted.
    """

    token_ttl: dt.timedelta
    refresh_ttl: dt.timedelta
    attempts: int
    window: dt.timedelta
    account_key: bytes


class Logins:
    """Logins and the tokens that descend from them."""

    def __init__(self, database: Database, passwords: Passwords, terms: Terms) -> None:
        """Keep logins in the given database, on these terms."""
        self._database = database
        self._passwords = passwords
        self._terms = terms

    async def login(self, caller: Caller | None, email: str, password: str) -> tuple[Tokens, Row]:
        """Exchange email and password for tokens; return them and the user. Raises LOGIN_FAILED.

        Whatever is wrong, it takes two statements and one hash, so that time tells nothing of the
        cause. Only a hash that is outdated costs more, and who knows its password alone is told.
        """
        caller = caller or await self._default_tenant()
        key = _key_or_nobody(email)
        row = await self._charge(caller, key)
        stored = None if row["is_throttled"] else row["password_hash"]
        fits = await self._passwords.verify(password, stored)
        may_retry = fits and self._passwords.is_outdated(row["password_hash"])
        tokens, user = await self._settle(caller, key, row, fits=fits, may_retry=may_retry)
        if user is None and may_retry:
            # Perhaps another login has replaced that hash by now, by one of the same password.
            row = await self._reread(caller, row)
            fits = await self._passwords.verify(password, row["password_hash"])
            tokens, user = await self._settle(caller, key, row, fits=fits, may_retry=False)
        if user is None:
            raise _refused(row)
        if self._passwords.is_outdated(row["password_hash"]):
            with suppress(HubError):  # the login stands; the next one tries again
                await self._rehash(caller, row, password)
        return tokens, user

    async def change_password(self, caller: Caller, user_id: str, old: str, new: str) -> int:
        """Change a password that is known; return how many other logins ended.

        Raises NOT_FOUND, LOGIN_FAILED or PASSWORD_REFUSED. It counts as an attempt to log in.
        """
        async with self._database.statement(caller) as connection:
            user = await AccessRepository(connection, caller).passwords(user_id)
        if user is None:
            raise HubError(Reason.REASON_NOT_FOUND, resource="user")
        key = email_key(user["email"])
        row = await self._charge(caller, key)
        stored = None if row["is_throttled"] else row["password_hash"]
        if not await self._passwords.verify(old, stored):
            await self._note(caller, "authn_password_change_fail", user_id, done=False)
            raise _refused(row)
        await self._passwords.check_new("new_password", new, user["email"])
        hashed = await self._passwords.hash(new)
        async with self._database.transaction(caller) as connection:
            access = AccessRepository(connection, caller)
            if not await access.set_password(user_id, stored, hashed):
                raise _refused(row)
            await access.forget_attempts(self._account(key))
            await access.end_resets(user_id)
            await access.note("authn_password_change", "user", user_id)
            return await access.end_logins(user_id, but=caller.credential_id)

    async def create_reset(self, caller: Caller, user_id: str) -> tuple[str, dt.datetime]:
        """Make a one-time token for a new password; return it and its end. Raises NOT_FOUND."""
        secret, expires_at = Secret.new(PASSWORD_RESET), dt.datetime.now(dt.UTC) + _RESET_TTL
        async with self._database.transaction(caller) as connection:
            access = AccessRepository(connection, caller)
            if await access.passwords(user_id) is None:
                raise HubError(Reason.REASON_NOT_FOUND, resource="user")
            await access.end_resets(user_id)
            await access.add_credential(
                "password_reset", secret.hash, user_id=user_id, expires_at=expires_at
            )
            await access.note("authn_token_created", "user", user_id)
        return secret.text, expires_at

    async def confirm_reset(self, text: str, new: str) -> int:
        """Set a new password by a reset token; return how many logins ended.

        Raises CREDENTIAL_INVALID or PASSWORD_REFUSED; a refused password does not spend the token.
        """
        secret = Secret.of(text)
        async with self._database.system() as connection:
            found = await SystemRepository(connection).authenticate([secret.hash], [None])
        if not found or found[0]["kind"] != "password_reset":
            raise HubError(Reason.REASON_CREDENTIAL_INVALID)
        caller, user_id = Caller.hub(found[0]["tenant_id"]), found[0]["user_id"]
        async with self._database.statement(caller) as connection:
            row = await AccessRepository(connection, caller).passwords(user_id)
        if row is None:
            raise HubError(Reason.REASON_CREDENTIAL_INVALID)
        await self._passwords.check_new("new_password", new, row["email"])
        hashed = await self._passwords.hash(new)
        async with self._database.transaction(caller) as connection:
            access = AccessRepository(connection, caller)
            # The user before the token, as everywhere: or two could wait for each other.
            changed = await access.set_password(user_id, row["password_hash"], hashed)
            if not changed or not await access.end_resets(user_id, secret.hash):
                raise HubError(Reason.REASON_CREDENTIAL_INVALID)
            await access.forget_attempts(self._account(email_key(row["email"])))
            await access.note("authn_password_change", "user", user_id)
            return await access.end_logins(user_id)

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
            tokens = await self._step(AccessRepository(connection, caller), token)
        if tokens is None:
            raise HubError(Reason.REASON_CREDENTIAL_INVALID)
        return tokens

    async def introspect(self, caller: Caller, text: str) -> Row | None:
        """Return the credential of the caller's tenant with this text if it is valid, or None."""
        async with self._database.statement(caller) as connection:
            access = AccessRepository(connection, caller)
            return await access.valid_credential(Secret.of(text).hash)

    async def end(self, caller: Caller, *, every: bool) -> int:
        """End the caller's login, or all logins of his; return how many ended."""
        if caller.user_id is None or caller.scopes is not None:
            raise HubError.invalid("authorization", "must be a user token")
        login_id = None if every else caller.credential_id
        async with self._database.transaction(caller) as connection:
            access = AccessRepository(connection, caller)
            target = ("user", caller.user_id) if login_id is None else ("login", login_id)
            await access.note("authn_token_revoked", *target)
            return await access.end_logins(caller.user_id, login_id)

    async def revoke(self, caller: Caller, login_id: str) -> None:
        """End a login the caller may see. Raises NOT_FOUND."""
        async with self._database.transaction(caller) as connection:
            access = AccessRepository(connection, caller)
            if not await access.end_logins(caller.user_id, login_id):
                raise HubError(Reason.REASON_NOT_FOUND, resource="login")
            await access.note("authn_token_revoked", "login", login_id)

    async def list_logins(
        self, caller: Caller, user_id: str, page: Page
    ) -> tuple[Sequence[Row], str | None]:
        """Return a page of living logins and the key of the next. Raises NOT_FOUND."""
        async with self._database.statement(caller) as connection:
            access = AccessRepository(connection, caller)
            rows = await access.list_logins(user_id, page)
        if not rows:
            raise HubError(Reason.REASON_NOT_FOUND, resource="user")
        logins = [row for row in rows if row["credential_id"] is not None]
        return split(logins, page.size, lambda row: str(row["credential_id"]))

    async def _default_tenant(self) -> Caller:
        async with self._database.system() as connection:
            tenant_id = await SystemRepository(connection).tenant_named(DEFAULT_TENANT)
        if tenant_id is None:
            raise HubError(Reason.REASON_LOGIN_FAILED)
        return Caller.hub(tenant_id)

    async def _reread(self, caller: Caller, row: Row) -> Row:
        """Return what decides an attempt with the hash that is stored now."""
        async with self._database.statement(caller) as connection:
            user = await AccessRepository(connection, caller).passwords(row["user_id"])
        return {**row, "password_hash": user["password_hash"] if user else None}

    async def _rehash(self, caller: Caller, user: Row, password: str) -> None:
        """Replace an outdated hash; a password that was changed meanwhile stays as it is."""
        hashed = await self._passwords.hash(password)
        async with self._database.statement(caller) as connection:
            access = AccessRepository(connection, caller)
            await access.rehash(user["user_id"], user["password_hash"], hashed)

    async def _charge(self, caller: Caller, key: str) -> Row:
        """Count an attempt against an account and return what decides it. Raises OVERLOADED."""
        self._passwords.check_room()  # a flood beyond it costs Postgres nothing
        async with self._database.statement(caller) as connection:
            return await AccessRepository(connection, caller).charge_login(
                key, self._account(key), self._terms.attempts, self._terms.window
            )

    async def _settle(
        self, caller: Caller, key: str, row: Row, *, fits: bool, may_retry: bool
    ) -> tuple[Tokens, Row | None]:
        """Begin a login if the password fits; return its tokens, void when the user is None.

        A failure after which it is tried again is not noted.
        """
        login_id, family_key, pair = new_id(), secrets.token_bytes(32), refresh.new_pair()
        ends = dt.datetime.now(dt.UTC) + self._terms.refresh_ttl
        tokens = self._tokens(login_id, family_key, pair, ends)
        async with self._database.statement(caller) as connection:
            user = await AccessRepository(connection, caller).settle_login(
                fits=fits,
                may_retry=may_retry,
                user_id=row["user_id"],
                password_hash=row["password_hash"],
                account_key=self._account(key),
                failure="authn_login_lock" if row["is_throttled"] else "authn_login_fail",
                login_id=login_id,
                secret_hash=Secret.of(tokens.token).hash,
                expires_at=tokens.expires_at,
                refresh_hash=Secret.of(tokens.refresh_token).hash,
                family_key=family_key,
                refresh_expires_at=ends,
            )
        return tokens, user

    async def _note(self, caller: Caller, event: str, user_id: str, *, done: bool) -> None:
        async with self._database.statement(caller) as connection:
            access = AccessRepository(connection, caller)
            await access.note(event, "user", user_id, done=done)

    def _account(self, key: str) -> bytes:
        return account_of(self._terms.account_key, key)

    async def _step(self, access: AccessRepository, token: RefreshToken) -> Tokens | None:
        """Return the pair this token buys, or None; ends a login whose old token is used."""
        login = await access.lock_login(token.login_id)
        if login is None or not token.is_genuine(login["family_key"]):
            return None
        ends: dt.datetime = login["refresh_expires_at"]
        if token.hash == login["previous_hash"]:
            pair = token.seal(login["reissue"])
            again = self._tokens(token.login_id, login["family_key"], pair, ends)
            return replace(again, expires_at=login["expires_at"])
        if token.hash != login["refresh_hash"]:
            await access.end_logins(login["user_id"], token.login_id)
            await access.note("authn_token_reuse", "login", token.login_id, done=False)
            return None
        pair = refresh.new_pair()
        tokens = self._tokens(token.login_id, login["family_key"], pair, ends)
        await access.set_login(
            token.login_id,
            secret_hash=Secret.of(tokens.token).hash,
            expires_at=tokens.expires_at,
            refresh_hash=Secret.of(tokens.refresh_token).hash,
            previous_hash=token.hash,
            reissue=token.seal(pair),
            refreshed_at=dt.datetime.now(dt.UTC),
        )
        await access.note("authn_token_created", "login", token.login_id)
        return tokens

    def _tokens(self, login_id: str, family_key: bytes, pair: bytes, ends: dt.datetime) -> Tokens:
        refresh_token = RefreshToken.of(login_id, refresh.refresh_secret(pair), family_key)
        return Tokens(
            login_id=login_id,
            token=refresh.user_token(pair),
            expires_at=min(dt.datetime.now(dt.UTC) + self._terms.token_ttl, ends),
            refresh_token=refresh_token.text,
            refresh_expires_at=ends,
        )


def account_of(account_key: bytes, email_key: str) -> bytes:
    """Return what stands for an email in the throttle: an HMAC, since it may be nobody's."""
    return hmac.digest(account_key, email_key.encode(), hashlib.sha256)


def _refused(row: Row) -> HubError:
    """Return the one answer to a login that failed; it tells only whether to wait."""
    wait = max(row["wait"].total_seconds(), 0.0) if row["is_throttled"] else None
    return HubError(Reason.REASON_LOGIN_FAILED, retry_after=wait)


def _key_or_nobody(email: str) -> str:
    """Return the key to look for; what cannot be an address is looked for too, in vain.

    A login costs the same whatever was typed.
    """
    try:
        return email_key(email)
    except HubError:
        return ""
