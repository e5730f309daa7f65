"""Tables of memory: what is remembered."""

import sqlalchemy as sa

from hub_server.database import identifier, tenant_table, timestamp

memory_store = tenant_table(
    "memory_store",
    identifier("memory_id", nullable=False),
    identifier("user_id", nullable=False),
    sa.Column("memory_type", sa.Text, nullable=False),
    sa.Column("memory_content", sa.Text, nullable=False),
    sa.Column("confidence_score", sa.Double, nullable=False),
    sa.Column("is_active", sa.Boolean, nullable=False, server_default=sa.true()),
    timestamp("expires_at"),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("embedding", sa.LargeBinary, nullable=False),  # float32, little-endian
    sa.Column("embedding_model", sa.Text, nullable=False),
    sa.Column("space_seq", sa.BigInteger, nullable=False),
    timestamp("deleted_at"),
    sa.PrimaryKeyConstraint("tenant_id", "memory_id"),
    sa.ForeignKeyConstraint(["tenant_id", "user_id"], ["users.tenant_id", "users.user_id"]),
    sa.Index("memory_store_of_user", "tenant_id", "user_id", "memory_id"),
    sa.Index("memory_store_changes", "tenant_id", "user_id", "space_seq"),
)
