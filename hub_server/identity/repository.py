"""SQL of identity. Returns rows; never commits."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.identity.models import (
    default_configs,
    tenants,
    user_configs,
    user_usage,
    users,
)
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
_SETTINGS: Final = tuple(
    column
    for column in default_configs.c
    if column.name not in ("tenant_id", "created_at", "updated_at")
)
_TENANT_SETTINGS: Final = (tenants.c.message_search, tenants.c.updated_at)

_RECOUNT: Final = sa.text("""
UPDATE user_usage g
SET period_start = period.start, period_tokens_used = period.tokens
FROM (SELECT this.start,
             (SELECT coalesce(sum(m.token_count), 0) FROM chat_messages m
              JOIN chat_sessions s ON s.tenant_id = m.tenant_id AND s.session_id = m.session_id
              WHERE s.tenant_id = :tenant_id AND s.user_id = :user_id
                AND (this.start IS NULL OR m.created_at >= this.start))
             + (SELECT coalesce(sum(r.used_tokens - r.message_tokens), 0) FROM token_reservations r
                WHERE r.tenant_id = :tenant_id AND r.user_id = :user_id
                  AND r.settled_at >= coalesce(this.start, '-infinity')) AS tokens
      FROM (SELECT hub_period_start(c.budget_period, c.timezone) AS start FROM user_configs c
            WHERE c.tenant_id = :tenant_id AND c.user_id = :user_id) this) period
WHERE g.tenant_id = :tenant_id AND g.user_id = :user_id
""").bindparams(
    sa.bindparam("tenant_id", type_=sa.Uuid(as_uuid=False)),
    sa.bindparam("user_id", type_=sa.Uuid(as_uuid=False)),
)
_INVALID_PARAMETER: Final = "22023"

# What users have used: of one of them or of a page, most tokens first. A period that is over
# counts as not begun, and an expired reservation as released; nothing is written for that.
_USAGE: Final = """
SELECT g.user_id, g.total_tokens_used, reserved.tokens AS reserved_tokens,
       period.start AS period_start, period.used AS period_tokens_used,
       CASE WHEN c.max_tokens IS NOT NULL  -- greatest() would make 0 of no limit
            THEN greatest(c.max_tokens - period.used - reserved.tokens, 0)
       END AS tokens_left,
       (SELECT count(*) FROM chat_sessions s WHERE s.tenant_id = g.tenant_id
            AND s.user_id = g.user_id AND s.is_active AND s.deleted_at IS NULL) AS active_sessions,
       (SELECT coalesce(sum(s.last_seq - s.parent_seq), 0) FROM chat_sessions s
        WHERE s.tenant_id = g.tenant_id AND s.user_id = g.user_id
            AND s.deleted_at IS NULL)::bigint AS messages,
       (SELECT count(*) FROM memory_store m WHERE m.tenant_id = g.tenant_id
            AND m.user_id = g.user_id AND m.deleted_at IS NULL) AS memories,
       (SELECT count(*) FROM documents d WHERE d.tenant_id = g.tenant_id
            AND d.user_id = g.user_id AND d.deleted_at IS NULL) AS documents,
       {bytes} AS bytes
FROM user_usage g
JOIN users u ON u.tenant_id = g.tenant_id AND u.user_id = g.user_id AND u.deleted_at IS NULL
JOIN user_configs c ON c.tenant_id = g.tenant_id AND c.user_id = g.user_id
CROSS JOIN LATERAL (
    SELECT start, CASE WHEN c.budget_period = 'lifetime' THEN g.total_tokens_used
                       WHEN g.period_start >= start THEN g.period_tokens_used
                       ELSE 0 END AS used
    FROM (SELECT hub_period_start(c.budget_period, c.timezone) AS start) this) period
CROSS JOIN LATERAL (
    SELECT (g.reserved_tokens - coalesce(sum(r.held_tokens), 0))::bigint AS tokens
    FROM token_reservations r
    WHERE r.tenant_id = g.tenant_id AND r.user_id = g.user_id AND r.expires_at <= now()
      AND r.held_tokens > 0) reserved
WHERE g.tenant_id = :tenant_id AND {which}
"""
_BYTES: Final = """
       (SELECT coalesce(sum(pg_column_size(m.content) + coalesce(pg_column_size(m.metadata), 0)
                             + coalesce(pg_column_size(m.embedding), 0)), 0)
        FROM chat_messages m
        JOIN chat_sessions s ON s.tenant_id = m.tenant_id AND s.session_id = m.session_id
        WHERE s.tenant_id = g.tenant_id AND s.user_id = g.user_id AND m.content IS NOT NULL)
     + (SELECT coalesce(sum(pg_column_size(m.memory_content) + pg_column_size(m.embedding)), 0)
        FROM memory_store m WHERE m.tenant_id = g.tenant_id AND m.user_id = g.user_id)
     + (SELECT coalesce(sum(pg_column_size(d.text)), 0)
        FROM documents d WHERE d.tenant_id = g.tenant_id AND d.user_id = g.user_id)
     + (SELECT coalesce(sum(pg_column_size(k.content) + pg_column_size(k.embedding)), 0)
        FROM documents d
        JOIN chunks k ON k.tenant_id = d.tenant_id AND k.document_id = d.document_id
        WHERE d.tenant_id = g.tenant_id AND d.user_id = g.user_id)
"""
_USAGE_PAGE: Final = """
(:after_tokens ::bigint IS NULL
 OR (g.total_tokens_used, g.user_id) < (:after_tokens ::bigint, :after_id ::uuid))
ORDER BY g.total_tokens_used DESC, g.user_id DESC LIMIT :most
"""


class IdentityRepository:
    """Users, their configurations and what they use, of one tenant."""

    def __init__(self, connection: AsyncConnection, tenant_id: str) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._tenant_id = tenant_id

    async def add_user(self, config: Mapping[str, Any], **values: Any) -> Row | None:
        """Add a user with this configuration; None when the email is taken."""
        user_id = new_id()
        statement = (
            insert(users)
            .values(tenant_id=self._tenant_id, user_id=user_id, **values)
            .on_conflict_do_nothing(index_elements=["tenant_id", "email_key"])
            .returning(*_USER)
        )
        row = (await self._connection.execute(statement)).mappings().first()
        if row is not None:
            own = {"tenant_id": self._tenant_id, "user_id": user_id}
            await self._connection.execute(
                sa.insert(user_configs).values(**own, config_id=new_id(), **config)
            )
            await self._connection.execute(sa.insert(user_usage).values(**own))
        return row

    async def user(self, user_id: str) -> Row | None:
        """Return a user, or None."""
        query = sa.select(*_USER).where(*self._is(user_id))
        return (await self._connection.execute(query)).mappings().first()

    async def password_of(self, email_key: str) -> Row | None:
        """Return the password hash of the user with this email, or None."""
        query = sa.select(users.c.password_hash).where(
            users.c.tenant_id == self._tenant_id,
            users.c.email_key == email_key,
            users.c.deleted_at.is_(None),
        )
        return (await self._connection.execute(query)).mappings().first()

    async def lock_user(self, user_id: str) -> Row | None:
        """Return a user, deleted or not, and hold him until the transaction ends; or None."""
        query = sa.select(*_USER, users.c.email_key).where(*self._names(user_id))
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
        query = sa.select(*_USER).where(
            users.c.tenant_id == self._tenant_id,
            users.c.erasure_id.is_(None),
            users.c.import_id.is_(None),
        )
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

    async def recount_period(self, user_id: str) -> None:
        """Count the tokens of the period that is current now that its terms have changed."""
        await self._connection.execute(
            sa.select(user_usage.c.user_id)
            .where(user_usage.c.tenant_id == self._tenant_id, user_usage.c.user_id == user_id)
            .with_for_update()
        )
        parameters = {"tenant_id": self._tenant_id, "user_id": user_id}
        await self._connection.execute(_RECOUNT, parameters)

    async def is_time_zone(self, name: str) -> bool:
        """Tell whether Postgres knows a time zone: its names and Python's are not all the same."""
        try:
            async with self._connection.begin_nested():
                await self._connection.execute(sa.select(sa.func.timezone(name, sa.func.now())))
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _INVALID_PARAMETER:
                raise
            return False
        return True

    async def default_config(self, *, lock: bool = False) -> Row | None:
        """Return the tenant's defaults, or None when it has none of its own.

        With ``lock`` nobody else changes them, or makes them, until the transaction ends.
        """
        if lock:
            tenant = sa.select(tenants.c.tenant_id).where(tenants.c.tenant_id == self._tenant_id)
            await self._connection.execute(tenant.with_for_update(key_share=True))
        query = sa.select(*_SETTINGS, default_configs.c.created_at, default_configs.c.updated_at)
        query = query.where(default_configs.c.tenant_id == self._tenant_id)
        return (await self._connection.execute(query)).mappings().first()

    async def set_default_config(self, values: Mapping[str, Any]) -> Row:
        """Change the tenant's defaults, or make them; return them."""
        now = sa.func.clock_timestamp()
        statement = insert(default_configs).values(tenant_id=self._tenant_id, **values)
        statement = statement.on_conflict_do_update(
            index_elements=["tenant_id"], set_={**values, "updated_at": now}
        )
        settings = (*_SETTINGS, default_configs.c.created_at, default_configs.c.updated_at)
        result = await self._connection.execute(statement.returning(*settings))
        return result.mappings().one()

    async def tenant_settings(self, *, lock: bool = False) -> Row:
        """Return what holds for the whole tenant; with ``lock`` nobody else changes it."""
        query = sa.select(*_TENANT_SETTINGS).where(tenants.c.tenant_id == self._tenant_id)
        if lock:
            query = query.with_for_update(key_share=True)
        return (await self._connection.execute(query)).mappings().one()

    async def set_tenant_settings(self, values: Mapping[str, Any]) -> Row:
        """Change what holds for the whole tenant; return it."""
        statement = (
            sa.update(tenants)
            .where(tenants.c.tenant_id == self._tenant_id)
            .values(**values, updated_at=sa.func.clock_timestamp())
            .returning(*_TENANT_SETTINGS)
        )
        return (await self._connection.execute(statement)).mappings().one()

    async def usage(self, user_id: str) -> Row | None:
        """Return what a user has used, or None."""
        query = sa.text(_USAGE.format(bytes=_BYTES, which="g.user_id = :user_id"))
        query = query.bindparams(
            sa.bindparam("tenant_id", self._tenant_id, sa.Uuid(as_uuid=False)),
            sa.bindparam("user_id", user_id, sa.Uuid(as_uuid=False)),
        )
        result = await self._connection.execute(query.columns(user_id=sa.Uuid(as_uuid=False)))
        return result.mappings().first()

    async def list_usage(self, after: tuple[int, str] | None, most: int) -> Sequence[Row]:
        """Return so many users' usage, most tokens first, after one of so many and that id."""
        query = sa.text(_USAGE.format(bytes="0", which=_USAGE_PAGE))
        tokens, user_id = after or (None, None)
        query = query.bindparams(
            sa.bindparam("tenant_id", self._tenant_id, sa.Uuid(as_uuid=False)),
            after_tokens=tokens,
            after_id=user_id,
            most=most,
        )
        result = await self._connection.execute(query.columns(user_id=sa.Uuid(as_uuid=False)))
        return result.mappings().all()

    def _is(self, user_id: str) -> tuple[sa.ColumnElement[bool], ...]:
        return (*self._names(user_id), users.c.deleted_at.is_(None))

    def _names(self, user_id: str) -> tuple[sa.ColumnElement[bool], ...]:
        """Match a user, deleted or not, unless he is being erased or imported."""
        return (
            users.c.tenant_id == self._tenant_id,
            users.c.user_id == user_id,
            users.c.erasure_id.is_(None),
            users.c.import_id.is_(None),
        )


def _same_user(left: sa.FromClause, right: sa.FromClause) -> sa.ColumnElement[bool]:
    return sa.and_(left.c.tenant_id == right.c.tenant_id, left.c.user_id == right.c.user_id)
