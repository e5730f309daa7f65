"""Sessions that can be put away."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the mark."""
    op.execute("ALTER TABLE chat_sessions ADD is_archived boolean NOT NULL DEFAULT false")
