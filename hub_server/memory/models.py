"""Tables of memory: what is remembered, and how that came about."""

from typing import Any, Final

import sqlalchemy as sa

from hub_server.database import identifier, tenant_table, timestamp

ACTIVE: Final = "active"


def _state() -> list[sa.Column[Any]]:
    """Return the columns of what a memory is at a time: a revision keeps them all."""
    return [
        sa.Column("memory_type", sa.Text, nullable=False),  # preference | fact | habit
        sa.Column("memory_key", sa.Text, nullable=False, server_default=""),
        sa.Column("memory_content", sa.Text, nullable=False),
        sa.Column("confidence_score", sa.Double, nullable=False),
        # active | superseded | proposed | rejected | forgotten
        sa.Column("status", sa.Text, nullable=False, server_default=ACTIVE),
        timestamp("expires_at"),
        sa.Column("source", sa.Text, nullable=False),  # user | inferred | system
        identifier("superseded_by"),
        sa.Column("reinforcement_count", sa.Integer, nullable=False, server_default="0"),
        timestamp("reinforced_at"),
        # Where it was said: in a memory for the first time, in a revision for this one.
        identifier("session_id"),
        identifier("message_id"),
        sa.Column("space_seq", sa.BigInteger, nullable=False),
    ]


memory_store = tenant_table(
    "memory_store",
    identifier("memory_id", nullable=False),
    identifier("user_id", nullable=False),
    *_state(),
    sa.Column("is_active", sa.Boolean, sa.Computed("status = 'active'", persisted=True)),
    sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
    sa.Column("content_hash", sa.LargeBinary, nullable=False),  # see sameness.content_hash
    sa.Column("embedding", sa.LargeBinary, nullable=False),  # float32, little-endian
    sa.Column("embedding_model", sa.Text, nullable=False),
    # The vector of the model that the space moves to, or moved to a moment ago.
    sa.Column("next_embedding", sa.LargeBinary),
    sa.Column("next_model", sa.Text),
    timestamp("last_recalled_at"),
    timestamp("deleted_at"),
    sa.PrimaryKeyConstraint("tenant_id", "memory_id"),
    sa.ForeignKeyConstraint(["tenant_id", "user_id"], ["users.tenant_id", "users.user_id"]),
    sa.Index("memory_store_of_user", "tenant_id", "user_id", "memory_id"),
    sa.Index("memory_store_changes", "tenant_id", "user_id", "space_seq"),
    sa.Index("memory_store_content", "tenant_id", "user_id", "content_hash"),
    sa.Index("memory_store_superseded", "tenant_id", "superseded_by"),
    # The rules never make a second one; should they fail, Postgres refuses it.
    sa.Index(
        "memory_store_one_active",
        "tenant_id",
        "user_id",
        "memory_type",
        "memory_key",
        unique=True,
        postgresql_where=sa.text("status = 'active' AND memory_key <> '' AND deleted_at IS NULL"),
    ),
    sa.Index(
        "memory_store_moving",
        "tenant_id",
        "user_id",
        "memory_id",
        postgresql_where=sa.text("next_model IS NOT NULL"),
    ),
    sa.Index("memory_store_expiry", "expires_at", postgresql_where=sa.text("deleted_at IS NULL")),
)

# What each memory was from when on; append-only, until the memory is deleted or erased.
memory_revisions = tenant_table(
    "memory_revisions",
    identifier("memory_id", nullable=False),
    identifier("user_id", nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),  # 1, 2, 3 … of this memory
    # created | proposed | reinforced | superseded | restored | updated | forgotten | accepted
    # | rejected
    sa.Column("event", sa.Text, nullable=False),
    timestamp("recorded_at", nullable=False),
    *_state(),
    # NULL = the same as in the revision before.
    sa.Column("embedding", sa.LargeBinary),
    sa.Column("embedding_model", sa.Text),
    sa.PrimaryKeyConstraint("tenant_id", "memory_id", "revision"),
    sa.ForeignKeyConstraint(
        ["tenant_id", "memory_id"],
        ["memory_store.tenant_id", "memory_store.memory_id"],
    ),
    sa.Index("memory_revisions_of_user", "tenant_id", "user_id", "recorded_at"),
)
