"""Memories and messages that move to another model."""

from alembic import op

revision = "0022"
down_revision = "0021"

_ROOM = """
ALTER TABLE {table}
    ADD next_embedding bytea,
    ADD next_model text,
    ADD CHECK ((next_model IS NULL) = (next_embedding IS NULL)),
    ALTER next_embedding SET STORAGE EXTERNAL;
CREATE INDEX {table}_moving ON {table} (tenant_id, user_id, {key}) WHERE next_model IS NOT NULL;
"""


def upgrade() -> None:
    """Make room for a second vector, as chunks have."""
    for table, key in (("memory_store", "memory_id"), ("chat_messages", "message_id")):
        op.execute(_ROOM.format(table=table, key=key))
