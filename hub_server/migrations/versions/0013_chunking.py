"""Chunks that know where in the text they stand, and below which headings."""

from alembic import op

revision = "0013"
down_revision = "0012"

_CHANGES = """
ALTER TABLE documents
    ADD max_tokens integer NOT NULL DEFAULT 200,
    ADD overlap_tokens integer NOT NULL DEFAULT 0;
ALTER TABLE chunks
    ADD heading_path text[] NOT NULL DEFAULT '{}',
    ADD start_char integer,
    ADD end_char integer;
"""


def upgrade() -> None:
    """Change the tables."""
    op.execute(_CHANGES)
