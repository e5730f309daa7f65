"""Spaces: the counter that lets every search see every earlier acknowledged write.

A space is what one user's searches of one kind look through. Each write of an indexed row takes
the next ``seq`` of its space in the same transaction; the counter's row lock makes the order of
seqs the order of commits, so a view that read up to seq n has seen everything before n.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.database import identifier, tenant_table
from hub_server.identity.models import user_configs, users
from hub_server.rows import Row

KINDS: Final = ("knowledge", "memory", "messages")

spaces = tenant_table(
    "spaces",
    identifier("user_id", nullable=False),
    sa.Column("kind", sa.Text, nullable=False),  # of KINDS
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("tenant_id", "user_id", "kind"),
    sa.ForeignKeyConstraint(["tenant_id", "user_id"], ["users.tenant_id", "users.user_id"]),
)


async def next_seq(connection: AsyncConnection, tenant_id: str, user_id: str, kind: str) -> int:
    """Take the next seq of a space; holds the space until the transaction ends."""
    statement = (
        insert(spaces)
        .values(tenant_id=tenant_id, user_id=user_id, kind=kind, last_seq=1)
        .on_conflict_do_update(
            index_elements=["tenant_id", "user_id", "kind"],
            set_={"last_seq": spaces.c.last_seq + 1, "updated_at": sa.func.now()},
        )
        .returning(spaces.c.last_seq)
    )
    return int((await connection.execute(statement)).scalar_one())


async def state(connection: AsyncConnection, tenant_id: str, user_id: str, kind: str) -> Row | None:
    """Return a space's ``last_seq`` with its user's flags in one statement; None = no such user.

    Columns: user_is_active, enable_rag, preferred_language, last_seq (0 = nothing written yet).
    """
    query = (
        sa.select(
            users.c.is_active.label("user_is_active"),
            user_configs.c.enable_rag,
            user_configs.c.preferred_language,
            sa.func.coalesce(spaces.c.last_seq, 0).label("last_seq"),
        )
        .select_from(
            users.join(user_configs, _same_user(user_configs)).outerjoin(
                spaces, sa.and_(_same_user(spaces), spaces.c.kind == kind)
            )
        )
        .where(
            users.c.tenant_id == tenant_id,
            users.c.user_id == user_id,
            users.c.deleted_at.is_(None),
        )
    )
    return (await connection.execute(query)).mappings().first()


def _same_user(table: sa.FromClause) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.tenant_id == users.c.tenant_id, table.c.user_id == users.c.user_id)
