"""Chunks whose vectors were made elsewhere."""

from alembic import op

revision = "0007"
down_revision = "0006"

_CHANGES = """
ALTER TABLE documents ADD own_model text NOT NULL DEFAULT '';
CREATE INDEX chunks_of_model ON chunks (tenant_id, user_id, embedding_model, chunk_id);
"""


def upgrade() -> None:
    """Change the tables."""
    op.execute(_CHANGES)
