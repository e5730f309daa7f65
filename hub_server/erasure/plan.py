"""What is a user's: the list of all tables with his rows, made from the tables themselves.

A table that is added is on the list if its rows hang on users by foreign keys, however far, or
bear a ``user_id``. What is his in no such way is told below.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from hub_server.database import metadata
from hub_server.erasure.models import erasures
from hub_server.idempotency import NO_USER, request_ids
from hub_server.identity.models import audit_events, login_throttles, tenants, users

# Not named like columns, which are reserved in statements that set them.
TENANT: Final = sa.bindparam("of_tenant", type_=sa.Uuid(as_uuid=False))
USER: Final = sa.bindparam("of_user", type_=sa.Uuid(as_uuid=False))
ACCOUNT: Final = sa.bindparam("of_account", type_=sa.LargeBinary)

# Rows that are his beside those found by keys: the answers to calls that belonged to no user yet
# (CreateUser), and attempts to log in to his account.
_ALSO: Final[Mapping[sa.Table, sa.ColumnElement[bool]]] = {
    request_ids: (request_ids.c.user_id == NO_USER)
    & request_ids.c.answer.contains(sa.cast(USER, sa.Text)),
    login_throttles: login_throttles.c.account_key == ACCOUNT,
}
# The log stays, without his id; the erasure forgets the id when it is finished.
_APART: Final = (audit_events, erasures)


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a table that are a user's, or a tenant's."""

    table: sa.Table
    condition: sa.ColumnElement[bool]

    @property
    def links(self) -> Sequence[str]:
        """Columns by which rows of the table refer to others of it; they may be NULL."""
        return [
            element.parent.name
            for key in self.table.foreign_key_constraints
            for element in key.elements
            if key.referred_table is self.table and element.parent.nullable
        ]


EVENTS: Final = Part(
    audit_events,
    (audit_events.c.tenant_id == TENANT)
    & (
        (audit_events.c.actor_user_id == USER)
        | (audit_events.c.target_id == sa.cast(USER, sa.Text))
    ),
)
"""Of the audit log, the events that bear his id."""
LOG: Final = Part(audit_events, audit_events.c.tenant_id == TENANT)
"""The whole log of a tenant."""


def of_user(tables: sa.MetaData = metadata) -> Sequence[Part]:
    """Return all that is a user's, what refers to something before that; he himself is last."""
    found: dict[sa.Table, Sequence[sa.ColumnElement[bool]]] = {users: [users.c.user_id == USER]}
    for table in tables.sorted_tables:
        ways = [] if table in found or table in _APART else list(_ways(table, found))
        if ways:
            found[table] = ways
    return [
        Part(table, (table.c.tenant_id == TENANT) & way)
        for table in reversed(found)
        for way in found[table]
    ]


def of_tenant(tables: sa.MetaData = metadata) -> Sequence[Part]:
    """Return all that is a tenant's, in the same order, but its log; the tenant is last."""
    own = [
        table
        for table in reversed(tables.sorted_tables)
        if "tenant_id" in table.c and table not in (*_APART, tenants)
    ]
    return [Part(table, table.c.tenant_id == TENANT) for table in (*own, tenants)]


def _ways(
    table: sa.Table, found: Mapping[sa.Table, Sequence[sa.ColumnElement[bool]]]
) -> Iterator[sa.ColumnElement[bool]]:
    """Yield the conditions by which rows of a table are his, one of which each such row meets."""
    if table in _ALSO:
        yield _ALSO[table]
    keys = [
        key
        for key in table.foreign_key_constraints
        if key.referred_table in found and key.referred_table is not table
    ]
    # A key that every row has suffices; that to the user himself is the shortest way.
    keys.sort(key=lambda key: (_may_be_null(key), key.referred_table is not users))
    if keys and not _may_be_null(keys[0]):
        keys = keys[:1]
    for key in keys:
        yield _hangs(key, found)
    if not keys and "user_id" in table.c:
        yield table.c.user_id == USER


def _may_be_null(key: sa.ForeignKeyConstraint) -> bool:
    return any(column.nullable for column in key.columns)


def _hangs(
    key: sa.ForeignKeyConstraint, found: Mapping[sa.Table, Sequence[sa.ColumnElement[bool]]]
) -> sa.ColumnElement[bool]:
    """Return the condition that a row refers by this key to one that is his."""
    pairs = [(one.parent, one.column) for one in key.elements if one.parent.name != "tenant_id"]
    if key.referred_table is users:
        return pairs[0][0] == USER
    far = key.referred_table
    rows = sa.select(*(column for _, column in pairs)).where(
        far.c.tenant_id == TENANT, sa.or_(*found[far])
    )
    return sa.tuple_(*(column for column, _ in pairs)).in_(rows)
