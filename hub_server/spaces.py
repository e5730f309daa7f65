"""Spaces: the counter that lets every search see every earlier acknowledged write.

A space is what one user's searches of one kind look through. Each write of an indexed row takes
the next ``seq`` of its space in the same transaction; the counter's row lock makes the order of
seqs the order of commits, so a view that read up to seq n has seen everything before n.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.database import HotStatement, identifier, tenant_table, timestamp
from hub_server.rows import Row

KINDS: Final = ("knowledge", "memory", "messages")

spaces = tenant_table(
    "spaces",
    identifier("user_id", nullable=False),
    sa.Column("kind", sa.Text, nullable=False),  # of KINDS
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    # What its rows are searched by; NULL = nothing that the hub embeds was written yet.
    sa.Column("embedding_model", sa.Text),
    sa.PrimaryKeyConstraint("tenant_id", "user_id", "kind"),
    sa.ForeignKeyConstraint(["tenant_id", "user_id"], ["users.tenant_id", "users.user_id"]),
)

# A space on its way to another model, or once there: the last one asked for.
reembeddings = tenant_table(
    "reembeddings",
    identifier("user_id", nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("target_model", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),  # moving | done | failed | cancelled
    sa.Column("error", sa.Text, nullable=False, server_default=""),
    sa.Column("rows_total", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("rows_done", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("rows_own", sa.BigInteger, nullable=False, server_default="0"),
    # Whether rows hold vectors of two models.
    sa.Column("is_untidy", sa.Boolean, nullable=False, server_default=sa.true()),
    # As of a document: who may work on it until when, and not before when anyone may.
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    timestamp("lease_expires_at"),
    timestamp("not_before"),
    timestamp("asked_at", nullable=False, server_default=sa.func.clock_timestamp()),
    sa.PrimaryKeyConstraint("tenant_id", "user_id", "kind"),
    sa.ForeignKeyConstraint(["tenant_id", "user_id"], ["users.tenant_id", "users.user_id"]),
    sa.Index("reembeddings_to_do", "asked_at", postgresql_where=sa.text("is_untidy")),
)


class OtherModelError(Exception):
    """The space names another model than the one that rows were embedded by for it."""


# Every search begins with it.
_STATE: Final = HotStatement("""
SELECT u.is_active AS user_is_active, f.enable_rag, f.preferred_language,
       coalesce(s.last_seq, 0) AS last_seq, s.embedding_model
FROM users u
JOIN user_configs f ON f.tenant_id = u.tenant_id AND f.user_id = u.user_id
LEFT JOIN spaces s
    ON s.tenant_id = u.tenant_id AND s.user_id = u.user_id AND s.kind = :kind ::text
WHERE u.tenant_id = :tenant_id ::uuid AND u.user_id = :user_id ::uuid AND u.deleted_at IS NULL
""")


async def next_seq(
    connection: AsyncConnection,
    tenant_id: str,
    user_id: str,
    kind: str,
    count: int = 1,
    *,
    model: str | None = None,
) -> int:
    """Take the next seqs of a space, and return the last; holds the space until the commit.

    ``model`` is what the space is believed to name, and it does from now on if it named none; None
    = nothing is written that was embedded. Raises OtherModelError.
    """
    named = sa.func.coalesce(spaces.c.embedding_model, model)
    statement = (
        insert(spaces)
        .values(
            tenant_id=tenant_id, user_id=user_id, kind=kind, last_seq=count, embedding_model=model
        )
        .on_conflict_do_update(
            index_elements=["tenant_id", "user_id", "kind"],
            set_={
                "last_seq": spaces.c.last_seq + count,
                "embedding_model": named,
                "updated_at": sa.func.now(),
            },
        )
        .returning(spaces.c.last_seq, spaces.c.embedding_model)
    )
    last_seq, found = (await connection.execute(statement)).one()
    if model not in (None, found):
        raise OtherModelError
    return int(last_seq)


async def state(connection: AsyncConnection, tenant_id: str, user_id: str, kind: str) -> Row | None:
    """Return a space's ``last_seq`` with its user's flags in one statement; None = no such user.

    Columns: user_is_active, enable_rag, preferred_language, last_seq (0 = nothing written yet),
    embedding_model (None = none yet).
    """
    parameters = {"tenant_id": tenant_id, "user_id": user_id, "kind": kind}
    rows = await _STATE.rows(connection, parameters)
    return rows[0] if rows else None
