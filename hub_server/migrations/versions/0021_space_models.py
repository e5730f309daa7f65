"""Spaces of memories and of messages have a model, too."""

from alembic import op

revision = "0021"
down_revision = "0020"

# What was written last tells the model that a space was searched by.
_CHANGES = """
ALTER TABLE spaces NO FORCE ROW LEVEL SECURITY;
ALTER TABLE memory_store NO FORCE ROW LEVEL SECURITY;
ALTER TABLE chat_messages NO FORCE ROW LEVEL SECURITY;
UPDATE spaces s SET embedding_model = (
    SELECT m.embedding_model FROM memory_store m
    WHERE m.tenant_id = s.tenant_id AND m.user_id = s.user_id AND m.deleted_at IS NULL
    ORDER BY m.space_seq DESC LIMIT 1)
WHERE s.kind = 'memory';
UPDATE spaces s SET embedding_model = (
    SELECT m.embedding_model FROM chat_messages m
    WHERE m.tenant_id = s.tenant_id AND m.user_id = s.user_id AND m.space_seq IS NOT NULL
      AND m.embedding IS NOT NULL
    ORDER BY m.space_seq DESC LIMIT 1)
WHERE s.kind = 'messages';
ALTER TABLE spaces FORCE ROW LEVEL SECURITY;
ALTER TABLE memory_store FORCE ROW LEVEL SECURITY;
ALTER TABLE chat_messages FORCE ROW LEVEL SECURITY;
"""


def upgrade() -> None:
    """Name the models."""
    op.execute(_CHANGES)
