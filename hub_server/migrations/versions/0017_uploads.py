"""Documents that are uploaded as files, which are kept until their text is read."""

from alembic import context, op

revision = "0017"
down_revision = "0016"

_CHANGES = """
ALTER TABLE documents
    ADD file_name text NOT NULL DEFAULT '',
    ADD media_type text NOT NULL DEFAULT '';
CREATE TABLE document_files (
    tenant_id uuid NOT NULL,
    document_id uuid NOT NULL,
    part integer NOT NULL DEFAULT 0,
    user_id uuid NOT NULL,
    content bytea NOT NULL,
    names_document boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, document_id, part),
    FOREIGN KEY (tenant_id, document_id) REFERENCES documents
);
ALTER TABLE document_files
    ALTER content SET STORAGE EXTERNAL,
    ENABLE ROW LEVEL SECURITY,
    FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_purges ON document_files TO CURRENT_USER USING (true);

CREATE FUNCTION hub_purge_files(kept interval) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH gone AS (
        DELETE FROM document_files f
        WHERE f.created_at < now() - kept AND NOT EXISTS (
            SELECT FROM documents d
            WHERE d.tenant_id = f.tenant_id AND d.document_id = f.document_id
              AND d.status = 'processing' AND d.deleted_at IS NULL)
        RETURNING f.part
    )
    SELECT count(*) FROM gone WHERE part = 0
$$;
"""


def upgrade() -> None:
    """Change the tables, and let the server's role use what is new."""
    server_role = context.config.attributes["server_role"]
    op.execute(_CHANGES)
    op.execute(
        f"CREATE POLICY tenant ON document_files TO {server_role} "
        "USING (tenant_id = hub_tenant()) WITH CHECK (tenant_id = hub_tenant())"
    )
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON document_files TO {server_role}")
    op.execute("REVOKE ALL ON FUNCTION hub_purge_files(interval) FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION hub_purge_files(interval) TO {server_role}")
