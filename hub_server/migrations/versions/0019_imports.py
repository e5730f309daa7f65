"""Users who are being imported, whom nobody sees yet."""

from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Change the table."""
    op.execute("ALTER TABLE users ADD import_id uuid")
