"""Indexes of metadata that keep little of what was written lately unordered."""

from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Change the indexes; what is unordered by now goes with the next write or vacuum."""
    op.execute("ALTER INDEX documents_metadata SET (gin_pending_list_limit = 256)")
    op.execute("ALTER INDEX chunks_metadata SET (gin_pending_list_limit = 256)")
