"""SQL of identity. Returns rows; never commits."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.identity.models import credentials, hub_keys, tenants, user_configs, users
from hub_server.ids import new_id
from hub_server.paging import Page
from hub_server.rows import Row

_USER: Final = (
    users.c.user_id,
    users.c.email,
    users.c.display_name,
    users.c.is_active,
    users.c.last_login,
    users.c.created_at,
    users.c.updated_at,
    users.c.deleted_at,
)
_CONFIG: Final = tuple(
    column for column in user_configs.c if column.name not in ("tenant_id", "config_id")
)
_AUTHENTICATE: Final = sa.text(
    "SELECT secret_hash, tenant_id, credential_id, kind, user_id FROM hub_authenticate(:hashes)"
).columns(
    tenant_id=sa.Uuid(as_uuid=False),
    credential_id=sa.Uuid(as_uuid=False),
    user_id=sa.Uuid(as_uuid=False),
)
_TENANT_NAMED: Final = sa.text("SELECT hub_tenant_named(:name) AS tenant_id").columns(
    tenant_id=sa.Uuid(as_uuid=False)
)
_TENANT_OF_LOGIN: Final = sa.text("SELECT hub_tenant_of_login(:login) AS tenant_id").columns(
    tenant_id=sa.Uuid(as_uuid=False)
)
_LOGIN: Final = (
    credentials.c.credential_id,
    credentials.c.user_id,
    credentials.c.created_at,
    credentials.c.refreshed_at,
    credentials.c.refresh_expires_at,
)


class SystemRepository:
    """What is asked before a tenant is known; each is a function of the owner."""

    def __init__(self, connection: AsyncConnection) -> None:
        """Work on a connection that carries no tenant."""
        self._connection = connection

    async def authenticate(self, hashes: Sequence[bytes]) -> Sequence[Row]:
        """Return the credentials among these hashes that are valid now."""
        result = await self._connection.execute(_AUTHENTICATE, {"hashes": list(hashes)})
        return result.mappings().all()

    async def tenant_named(self, name: str) -> str | None:
        """Return the id of an active tenant, or None."""
        tenant: str | None = await self._connection.scalar(_TENANT_NAMED, {"name": name})
        return tenant

    async def tenant_of_login(self, login_id: str) -> str | None:
        """Return the tenant in which a login was made, or None."""
        tenant: str | None = await self._connection.scalar(_TENANT_OF_LOGIN, {"login": login_id})
        return tenant

    async def has_tenants(self) -> bool:
        """Tell whether any tenant exists."""
        return bool(await self._connection.scalar(sa.text("SELECT hub_has_tenants()")))

    async def key(self, name: str) -> bytes:
        """Return a secret that all hubs over this database share."""
        query = sa.select(hub_keys.c.secret).where(hub_keys.c.name == name)
        return bytes((await self._connection.execute(query)).scalar_one())


class IdentityRepository:
    """Users, configurations and credentials of one tenant."""

    def __init__(self, connection: AsyncConnection, tenant_id: str) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._tenant_id = tenant_id

    async def add_tenant(self, name: str) -> bool:
        """Add this tenant; False when another bears the name already."""
        statement = insert(tenants).values(tenant_id=self._tenant_id, name=name)
        statement = statement.on_conflict_do_nothing(index_elements=["name"])
        added = await self._connection.execute(statement.returning(tenants.c.tenant_id))
        return added.first() is not None

    async def add_credential(
        self, kind: str, secret_hash: bytes, credential_id: str | None = None, **values: Any
    ) -> str:
        """Add a service key or user token; return its id."""
        credential_id = credential_id or new_id()
        await self._connection.execute(
            sa.insert(credentials).values(
                tenant_id=self._tenant_id,
                credential_id=credential_id,
                kind=kind,
                secret_hash=secret_hash,
                **values,
            )
        )
        return credential_id

    async def valid_credential(self, secret_hash: bytes) -> Row | None:
        """Return the credential with this hash if a call with it would be let in, or None."""
        expires_at = credentials.c.expires_at
        query = (
            sa.select(
                credentials.c.credential_id, credentials.c.kind, credentials.c.user_id, expires_at
            )
            .outerjoin(users, _same_user(users, credentials))
            .where(
                credentials.c.tenant_id == self._tenant_id,
                credentials.c.secret_hash == secret_hash,
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
            .where(*self._is(user_id))
            .order_by(rows.c.credential_id.desc())
        )
        return (await self._connection.execute(query)).mappings().all()

    async def add_user(self, **values: Any) -> Row | None:
        """Add a user with a default configuration; None when the email is taken."""
        user_id = new_id()
        statement = (
            insert(users)
            .values(tenant_id=self._tenant_id, user_id=user_id, **values)
            .on_conflict_do_nothing(index_elements=["tenant_id", "email_key"])
            .returning(*_USER)
        )
        row = (await self._connection.execute(statement)).mappings().first()
        if row is not None:
            config = {"tenant_id": self._tenant_id, "config_id": new_id(), "user_id": user_id}
            await self._connection.execute(sa.insert(user_configs).values(config))
        return row

    async def user(self, user_id: str) -> Row | None:
        """Return a user, or None."""
        query = sa.select(*_USER).where(*self._is(user_id))
        return (await self._connection.execute(query)).mappings().first()

    async def lock_user(self, user_id: str) -> Row | None:
        """Return a user, deleted or not, and hold him until the transaction ends; or None."""
        query = sa.select(*_USER).where(*self._names(user_id))
        query = query.with_for_update(key_share=True)
        return (await self._connection.execute(query)).mappings().first()

    async def set_user(self, user_id: str, values: Mapping[str, Any]) -> Row | None:
        """Change a user who exists; return him, or None when his new email is taken."""
        statement = (
            sa.update(users)
            .where(*self._names(user_id))
            .values(**values, updated_at=sa.func.clock_timestamp())
            .returning(*_USER)
        )
        try:
            # The unique key decides, since a look beforehand could be overtaken.
            async with self._connection.begin_nested():
                return (await self._connection.execute(statement)).mappings().one()
        except IntegrityError:
            return None

    async def list_users(
        self, page: Page, *, is_active: bool | None, email_key_prefix: str, show_deleted: bool
    ) -> Sequence[Row]:
        """Return a page of users and one more, newest first; ``is_active`` None = both."""
        query = sa.select(*_USER).where(users.c.tenant_id == self._tenant_id)
        if not show_deleted:
            query = query.where(users.c.deleted_at.is_(None))
        if is_active is not None:
            query = query.where(users.c.is_active == is_active)
        if email_key_prefix:
            query = query.where(users.c.email_key.startswith(email_key_prefix, autoescape=True))
        if page.after:
            query = query.where(users.c.user_id < page.after)
        query = query.order_by(users.c.user_id.desc()).limit(page.size + 1)
        return (await self._connection.execute(query)).mappings().all()

    async def login(self, email_key: str) -> Row | None:
        """Return what a login decides by, or None when the email is unknown."""
        query = sa.select(users.c.user_id, users.c.password_hash, users.c.is_active).where(
            users.c.tenant_id == self._tenant_id,
            users.c.email_key == email_key,
            users.c.deleted_at.is_(None),
        )
        return (await self._connection.execute(query)).mappings().first()

    async def passwords(self, user_id: str) -> Row | None:
        """Return a user's email and password hash, or None."""
        query = sa.select(users.c.email, users.c.password_hash).where(*self._is(user_id))
        return (await self._connection.execute(query)).mappings().first()

    async def set_password(self, user_id: str, old_hash: str | None, new_hash: str) -> bool:
        """Replace a hash, unless it is no longer the old one; tell whether it was."""
        statement = (
            sa.update(users)
            .where(*self._is(user_id), users.c.password_hash.is_not_distinct_from(old_hash))
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

    async def touch_login(self, user_id: str) -> Row | None:
        """Note that a user logged in; return the user, or None when disabled meanwhile."""
        statement = (
            sa.update(users)
            .where(*self._is(user_id), users.c.is_active)
            .values(last_login=sa.func.now())
            .returning(*_USER)
        )
        return (await self._connection.execute(statement)).mappings().first()

    async def config(self, user_id: str, *, lock: bool = False) -> Row | None:
        """Return a user's configuration, or None; with ``lock`` nobody else changes it."""
        query = (
            sa.select(*_CONFIG)
            .join(users, sa.and_(*self._is(user_id), _same_user(users, user_configs)))
            .where(user_configs.c.tenant_id == self._tenant_id)
        )
        if lock:
            query = query.with_for_update(of=user_configs)
        return (await self._connection.execute(query)).mappings().first()

    async def set_config(self, user_id: str, values: dict[str, Any]) -> Row:
        """Change a configuration that exists; return it."""
        statement = (
            sa.update(user_configs)
            .where(user_configs.c.tenant_id == self._tenant_id, user_configs.c.user_id == user_id)
            .values(**values, updated_at=sa.func.clock_timestamp())
            .returning(*_CONFIG)
        )
        return (await self._connection.execute(statement)).mappings().one()

    def _living_logins(self) -> tuple[sa.ColumnElement[bool], ...]:
        return (
            credentials.c.tenant_id == self._tenant_id,
            credentials.c.kind == "user_token",
            credentials.c.revoked_at.is_(None),
            credentials.c.refresh_expires_at > sa.func.clock_timestamp(),
        )

    def _is(self, user_id: str) -> tuple[sa.ColumnElement[bool], ...]:
        return (*self._names(user_id), users.c.deleted_at.is_(None))

    def _names(self, user_id: str) -> tuple[sa.ColumnElement[bool], ...]:
        """Match a user, deleted or not."""
        return users.c.tenant_id == self._tenant_id, users.c.user_id == user_id


def _same_user(left: sa.FromClause, right: sa.FromClause) -> sa.ColumnElement[bool]:
    return sa.and_(left.c.tenant_id == right.c.tenant_id, left.c.user_id == right.c.user_id)
