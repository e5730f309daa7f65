"""SQL of credentials, logins, tenants and the audit log. Returns rows; never commits."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server import audit
from hub_server.caller import Caller
from hub_server.identity.models import (
    audit_events,
    credentials,
    login_throttles,
    tenants,
    users,
)
from hub_server.ids import new_id
from hub_server.paging import Page
from hub_server.rows import Row

_ID: Final = sa.Uuid(as_uuid=False)
_TENANT: Final = (
    tenants.c.tenant_id,
    tenants.c.name,
    tenants.c.is_active,
    tenants.c.created_at,
    tenants.c.updated_at,
)
_LOGIN: Final = (
    credentials.c.credential_id,
    credentials.c.user_id,
    credentials.c.created_at,
    credentials.c.refreshed_at,
    credentials.c.refresh_expires_at,
)
_KEY: Final = (
    credentials.c.credential_id,
    credentials.c.name,
    credentials.c.scopes,
    credentials.c.created_at,
    credentials.c.expires_at,
    credentials.c.last_used_at,
    credentials.c.revoked_at,
)
_EVENT: Final = tuple(
    column for column in audit_events.c if column.name not in ("tenant_id", "updated_at")
)

# Charges an attempt to log in, and reads what decides it. The attempt is counted before anything
# is compared, so that guesses made at the same time are counted, too. A window that is over
# begins anew.
_CHARGE: Final = (
    sa.text("""
WITH charged AS (
    INSERT INTO login_throttles AS t (tenant_id, account_key, attempts, window_start)
    VALUES (:tenant_id, :account_key, 1, clock_timestamp())
    ON CONFLICT (tenant_id, account_key) DO UPDATE SET
        attempts = CASE WHEN t.window_start <= clock_timestamp() - :window THEN 1
                        ELSE least(t.attempts + 1, :allowed + 1) END,
        window_start = CASE WHEN t.window_start <= clock_timestamp() - :window
                            THEN clock_timestamp() ELSE t.window_start END,
        updated_at = clock_timestamp()
    RETURNING attempts, window_start
)
SELECT charged.attempts > :allowed AS is_throttled,
       charged.window_start + :window - clock_timestamp() AS wait,
       u.user_id, u.email, u.password_hash, u.is_active
FROM charged
LEFT JOIN users u
    ON u.tenant_id = :tenant_id AND u.email_key = :email_key AND u.deleted_at IS NULL
""")
    .bindparams(sa.bindparam("tenant_id", type_=_ID), sa.bindparam("window", type_=sa.Interval()))
    .columns(user_id=_ID, wait=sa.Interval())
)

# Ends an attempt to log in: lets the user in if the password fits that of his row and he is still
# active, or does nothing, and notes either. One statement whatever comes of it.
_SETTLE: Final = (
    sa.text("""
WITH entered AS (
    UPDATE users SET last_login = clock_timestamp()
    WHERE tenant_id = :tenant_id AND user_id = :user_id AND :fits
      AND is_active AND deleted_at IS NULL AND password_hash = :password_hash
    RETURNING user_id, email, display_name, is_active, last_login, created_at, updated_at,
              deleted_at
),
login AS (
    INSERT INTO credentials (tenant_id, credential_id, kind, user_id, secret_hash, expires_at,
                             refresh_hash, family_key, refresh_expires_at)
    SELECT :tenant_id, :login_id, 'user_token', user_id, :secret_hash, :expires_at,
           :refresh_hash, :family_key, :refresh_expires_at
    FROM entered
),
forgotten AS (
    DELETE FROM login_throttles
    WHERE tenant_id = :tenant_id AND account_key = :account_key
      AND EXISTS (SELECT FROM entered)
),
noted AS (
    INSERT INTO audit_events (tenant_id, event_id, event_type, outcome, actor_credential_id,
                              actor_user_id, target_type, target_id, created_at)
    SELECT :tenant_id, :event_id,
           CASE WHEN count(entered.user_id) > 0 THEN 'authn_login_success' ELSE :failure END,
           CASE WHEN count(entered.user_id) > 0 THEN 'success' ELSE 'failure' END,
           :actor_id, NULL, 'user',
           coalesce((SELECT u.user_id::text FROM users u
                     WHERE u.tenant_id = :tenant_id AND u.user_id = :user_id
                       AND u.erasure_id IS NULL), ''), clock_timestamp()
    FROM entered
    HAVING count(entered.user_id) > 0 OR NOT :may_retry
)
SELECT * FROM entered
""")
    .bindparams(
        sa.bindparam("tenant_id", type_=_ID),
        sa.bindparam("user_id", type_=_ID),
        sa.bindparam("login_id", type_=_ID),
        sa.bindparam("event_id", type_=_ID),
        sa.bindparam("actor_id", type_=_ID),
    )
    .columns(user_id=_ID)
)


class AccessRepository:
    """Credentials, logins and the audit log of the caller's tenant."""

    def __init__(self, connection: AsyncConnection, caller: Caller) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._caller = caller
        self._tenant_id = caller.tenant_id

    async def note(
        self, event_type: str, target_type: str, target_id: str, *, done: bool = True
    ) -> None:
        """Write down what the caller did, or tried to do."""
        caller = self._caller.within(self._tenant_id)
        await audit.note(self._connection, caller, event_type, target_type, target_id, done=done)

    async def list_events(
        self, page: Page, filters: Mapping[str, str], since: Any, until: Any
    ) -> Sequence[Row]:
        """Return a page of events and one more, newest first; ``filters`` by column."""
        query = sa.select(*_EVENT).where(audit_events.c.tenant_id == self._tenant_id)
        for column, value in filters.items():
            query = query.where(audit_events.c[column] == value)
        if since is not None:
            query = query.where(audit_events.c.created_at >= since)
        if until is not None:
            query = query.where(audit_events.c.created_at < until)
        if page.after:
            query = query.where(audit_events.c.event_id < page.after)
        query = query.order_by(audit_events.c.event_id.desc()).limit(page.size + 1)
        return (await self._connection.execute(query)).mappings().all()

    async def carry(self, tenant_id: str) -> None:
        """Work for another tenant until the transaction ends: only for one just being made."""
        setting = sa.select(sa.func.set_config("hub.tenant", tenant_id, True))  # noqa: FBT003
        await self._connection.execute(setting)
        self._tenant_id = tenant_id

    async def tenant(self) -> Row | None:
        """Return the caller's tenant, or None."""
        query = sa.select(*_TENANT).where(*self._tenant())
        return (await self._connection.execute(query)).mappings().first()

    async def set_tenant_active(self, *, is_active: bool) -> Row | None:
        """Disable or enable the tenant; return it, or None when it was so already."""
        statement = (
            sa.update(tenants)
            .where(*self._tenant(), tenants.c.is_active != is_active)
            .values(is_active=is_active, updated_at=sa.func.clock_timestamp())
            .returning(*_TENANT)
        )
        return (await self._connection.execute(statement)).mappings().first()

    async def add_tenant(self, name: str) -> Row | None:
        """Add this tenant; None when another bears the name already."""
        statement = insert(tenants).values(tenant_id=self._tenant_id, name=name)
        statement = statement.on_conflict_do_nothing(index_elements=["name"])
        result = await self._connection.execute(statement.returning(*_TENANT))
        return result.mappings().first()

    async def charge_login(
        self, email_key: str, account_key: bytes, allowed: int, window: dt.timedelta
    ) -> Row:
        """Charge an attempt to log in; return what decides it, and whether it is one too many."""
        parameters = {
            "tenant_id": self._tenant_id,
            "email_key": email_key,
            "account_key": account_key,
            "allowed": allowed,
            "window": window,
        }
        return (await self._connection.execute(_CHARGE, parameters)).mappings().one()

    async def settle_login(self, **values: Any) -> Row | None:
        """End an attempt to log in; return the user who is in, or None. See _SETTLE."""
        values |= {
            "tenant_id": self._tenant_id,
            "event_id": new_id(),
            "actor_id": self._caller.credential_id or None,
        }
        return (await self._connection.execute(_SETTLE, values)).mappings().first()

    async def forget_attempts(self, account_key: bytes) -> None:
        """Let attempts to log in to an account begin anew."""
        await self._connection.execute(
            sa.delete(login_throttles).where(
                login_throttles.c.tenant_id == self._tenant_id,
                login_throttles.c.account_key == account_key,
            )
        )

    async def add_credential(
        self, kind: str, secret_hash: bytes, credential_id: str | None = None, **values: Any
    ) -> Row:
        """Add a credential; return it as a service key is listed."""
        statement = sa.insert(credentials).values(
            tenant_id=self._tenant_id,
            credential_id=credential_id or new_id(),
            kind=kind,
            secret_hash=secret_hash,
            **values,
        )
        return (await self._connection.execute(statement.returning(*_KEY))).mappings().one()

    async def list_keys(self, page: Page, *, show_ended: bool) -> Sequence[Row]:
        """Return a page of service keys and one more, newest first."""
        query = sa.select(*_KEY).where(
            credentials.c.tenant_id == self._tenant_id, credentials.c.kind == "service_key"
        )
        if not show_ended:
            expires_at = credentials.c.expires_at
            query = query.where(
                credentials.c.revoked_at.is_(None),
                expires_at.is_(None) | (expires_at > sa.func.clock_timestamp()),
            )
        if page.after:
            query = query.where(credentials.c.credential_id < page.after)
        query = query.order_by(credentials.c.credential_id.desc()).limit(page.size + 1)
        return (await self._connection.execute(query)).mappings().all()

    async def lock_key(self, key_id: str) -> Row | None:
        """Return a service key and hold it until the transaction ends; or None."""
        query = sa.select(*_KEY).where(*self._key(key_id)).with_for_update()
        return (await self._connection.execute(query)).mappings().first()

    async def revoke_key(self, key_id: str) -> Row:
        """End a service key that exists; return it."""
        now = sa.func.clock_timestamp()
        statement = sa.update(credentials).where(*self._key(key_id))
        statement = statement.values(revoked_at=now, updated_at=now).returning(*_KEY)
        return (await self._connection.execute(statement)).mappings().one()

    def _key(self, key_id: str) -> tuple[sa.ColumnElement[bool], ...]:
        return (
            credentials.c.tenant_id == self._tenant_id,
            credentials.c.credential_id == key_id,
            credentials.c.kind == "service_key",
        )

    async def valid_credential(self, secret_hash: bytes) -> Row | None:
        """Return the credential with this hash if a call with it would be let in, or None."""
        expires_at = credentials.c.expires_at
        query = (
            sa.select(
                credentials.c.credential_id,
                credentials.c.kind,
                credentials.c.user_id,
                credentials.c.scopes,
                expires_at,
            )
            .outerjoin(users, _same_user(users, credentials))
            .where(
                credentials.c.tenant_id == self._tenant_id,
                credentials.c.secret_hash == secret_hash,
                credentials.c.kind.in_(["service_key", "user_token"]),
                credentials.c.revoked_at.is_(None),
                expires_at.is_(None) | (expires_at > sa.func.clock_timestamp()),
                credentials.c.user_id.is_(None)
                | (users.c.is_active & users.c.deleted_at.is_(None)),
            )
        )
        return (await self._connection.execute(query)).mappings().first()

    async def lock_login(self, login_id: str) -> Row | None:
        """Return a login that has not ended, of a user who may log in, and hold it; or None."""
        query = (
            sa.select(
                *_LOGIN,
                credentials.c.refresh_hash,
                credentials.c.previous_hash,
                credentials.c.reissue,
                credentials.c.family_key,
                credentials.c.expires_at,
            )
            .join(users, _same_user(users, credentials))
            .where(
                *self._living_logins(),
                credentials.c.credential_id == login_id,
                users.c.is_active,
                users.c.deleted_at.is_(None),
            )
            .with_for_update(of=credentials)
        )
        return (await self._connection.execute(query)).mappings().first()

    async def set_login(self, login_id: str, **values: Any) -> None:
        """Change a login that ``lock_login`` holds."""
        await self._connection.execute(
            sa.update(credentials)
            .where(
                credentials.c.tenant_id == self._tenant_id,
                credentials.c.credential_id == login_id,
            )
            .values(**values, updated_at=sa.func.clock_timestamp())
        )

    async def end_logins(
        self, user_id: str | None, login_id: str | None = None, *, but: str | None = None
    ) -> int:
        """End a user's logins, or the one named; ``user_id`` None = whoever's it is.

        The login ``but`` goes on.
        """
        statement = sa.update(credentials).where(*self._living_logins())
        if user_id is not None:
            statement = statement.where(credentials.c.user_id == user_id)
        if login_id is not None:
            statement = statement.where(credentials.c.credential_id == login_id)
        if but is not None:
            statement = statement.where(credentials.c.credential_id != but)
        now = sa.func.clock_timestamp()
        ended = await self._connection.execute(
            statement.values(revoked_at=now, updated_at=now).returning(credentials.c.credential_id)
        )
        return len(ended.all())

    async def list_logins(self, user_id: str, page: Page) -> Sequence[Row]:
        """Return a page of a user's living logins and one more, newest first.

        One row with no credential_id stands for a user without logins; no row, for no user.
        """
        found = sa.select(*_LOGIN).where(
            *self._living_logins(), credentials.c.user_id == users.c.user_id
        )
        if page.after:
            found = found.where(credentials.c.credential_id < page.after)
        found = found.order_by(credentials.c.credential_id.desc()).limit(page.size + 1)
        rows = found.lateral("page")
        query = (
            sa.select(users.c.is_active.label("user_is_active"), rows)
            .select_from(users.outerjoin(rows, sa.true()))
            .where(*self._user(user_id))
            .order_by(rows.c.credential_id.desc())
        )
        return (await self._connection.execute(query)).mappings().all()

    async def passwords(self, user_id: str) -> Row | None:
        """Return a user's email and password hash, or None."""
        query = sa.select(users.c.email, users.c.password_hash).where(*self._user(user_id))
        return (await self._connection.execute(query)).mappings().first()

    async def rehash(self, user_id: str, old_hash: str | None, new_hash: str) -> None:
        """Replace a hash by another of the same password; to callers the user is the same."""
        await self._connection.execute(
            sa.update(users)
            .where(*self._user(user_id), users.c.password_hash.is_not_distinct_from(old_hash))
            .values(password_hash=new_hash)
        )

    async def set_password(self, user_id: str, old_hash: str | None, new_hash: str) -> bool:
        """Replace a hash, unless it is no longer the old one; tell whether it was."""
        statement = (
            sa.update(users)
            .where(*self._user(user_id), users.c.password_hash.is_not_distinct_from(old_hash))
            .values(password_hash=new_hash, updated_at=sa.func.clock_timestamp())
            .returning(users.c.user_id)
        )
        return (await self._connection.execute(statement)).first() is not None

    async def end_resets(self, user_id: str, secret_hash: bytes | None = None) -> bool:
        """Void the password resets of a user, or the one named; tell whether there was any."""
        statement = sa.update(credentials).where(
            credentials.c.tenant_id == self._tenant_id,
            credentials.c.user_id == user_id,
            credentials.c.kind == "password_reset",
            credentials.c.revoked_at.is_(None),
        )
        if secret_hash is not None:
            statement = statement.where(credentials.c.secret_hash == secret_hash)
        now = sa.func.clock_timestamp()
        ended = await self._connection.execute(
            statement.values(revoked_at=now, updated_at=now).returning(credentials.c.credential_id)
        )
        return ended.first() is not None

    def _living_logins(self) -> tuple[sa.ColumnElement[bool], ...]:
        return (
            credentials.c.tenant_id == self._tenant_id,
            credentials.c.kind == "user_token",
            credentials.c.revoked_at.is_(None),
            credentials.c.refresh_expires_at > sa.func.clock_timestamp(),
        )

    def _tenant(self) -> tuple[sa.ColumnElement[bool], ...]:
        """Match the tenant, active or not, unless it is being erased."""
        return tenants.c.tenant_id == self._tenant_id, tenants.c.erasure_id.is_(None)

    def _user(self, user_id: str) -> tuple[sa.ColumnElement[bool], ...]:
        return (
            users.c.tenant_id == self._tenant_id,
            users.c.user_id == user_id,
            users.c.deleted_at.is_(None),
        )


def _same_user(left: sa.FromClause, right: sa.FromClause) -> sa.ColumnElement[bool]:
    return sa.and_(left.c.tenant_id == right.c.tenant_id, left.c.user_id == right.c.user_id)
