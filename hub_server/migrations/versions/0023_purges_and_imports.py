"""Purges leave alone who is being imported: at the end what was told must all be there."""

from alembic import op

revision = "0023"
down_revision = "0022"

_MEMORIES = """
CREATE OR REPLACE FUNCTION hub_due_memories(most integer)
RETURNS TABLE (tenant_id uuid, user_id uuid, memory_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT m.tenant_id, m.user_id, m.memory_id FROM memory_store m
    JOIN users u ON u.tenant_id = m.tenant_id AND u.user_id = m.user_id
    WHERE m.expires_at < clock_timestamp() - interval '30 days' AND m.deleted_at IS NULL
      AND u.import_id IS NULL
    ORDER BY m.expires_at
    LIMIT most
$$;
"""
_FILES = """
CREATE OR REPLACE FUNCTION hub_purge_files(kept interval) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH gone AS (
        DELETE FROM document_files f
        WHERE f.created_at < now() - kept AND NOT EXISTS (
            SELECT FROM documents d
            JOIN users u ON u.tenant_id = d.tenant_id AND u.user_id = d.user_id
            WHERE d.tenant_id = f.tenant_id AND d.document_id = f.document_id
              AND (u.import_id IS NOT NULL OR d.status = 'processing' AND d.deleted_at IS NULL))
        RETURNING f.part
    )
    SELECT count(*) FROM gone WHERE part = 0
$$;
"""


def upgrade() -> None:
    """Look at whose the rows are."""
    op.execute(_MEMORIES)
    op.execute(_FILES)
