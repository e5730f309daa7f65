"""Documents that change while searches go on finding what they were."""

from alembic import op

revision = "0006"
down_revision = "0005"

_CHANGES = """
ALTER TABLE documents
    ADD first_attempt integer NOT NULL DEFAULT 1,
    ADD revision integer NOT NULL DEFAULT 0,
    ADD chunks_done integer NOT NULL DEFAULT 0,
    ADD chunks_total integer NOT NULL DEFAULT 0;
ALTER TABLE chunks
    ADD revision integer NOT NULL DEFAULT 1,
    DROP CONSTRAINT chunks_tenant_id_document_id_chunk_index_key,
    ADD UNIQUE (tenant_id, document_id, revision, chunk_index);
ALTER TABLE documents NO FORCE ROW LEVEL SECURITY;
UPDATE documents SET revision = 1 WHERE status = 'ready';
ALTER TABLE documents FORCE ROW LEVEL SECURITY;
CREATE INDEX documents_content ON documents (tenant_id, user_id, content_hash);
CREATE INDEX retrievals_of_chunk ON retrievals (tenant_id, chunk_id);
"""


def upgrade() -> None:
    """Change the tables."""
    op.execute(_CHANGES)
