"""Memories with keys, a status and their history."""

from alembic import context, op

revision = "0012"
down_revision = "0011"

# The hash is that of the text as it stands: what was remembered before is known again when it is
# said in the very same words, or by its vector.
_CHANGES = """
ALTER TABLE memory_store
    ADD memory_key text NOT NULL DEFAULT '',
    ADD status text NOT NULL DEFAULT 'active'
        CHECK (status IN ('active', 'superseded', 'proposed', 'rejected', 'forgotten')),
    ADD superseded_by uuid,
    ADD reinforcement_count integer NOT NULL DEFAULT 0,
    ADD reinforced_at timestamptz,
    ADD session_id uuid,
    ADD message_id uuid,
    ADD revision integer NOT NULL DEFAULT 1,
    ADD content_hash bytea,
    ADD last_recalled_at timestamptz;
ALTER TABLE memory_store NO FORCE ROW LEVEL SECURITY;
UPDATE memory_store
SET content_hash = sha256(convert_to(memory_content, 'UTF8')),
    status = CASE WHEN is_active THEN 'active' ELSE 'forgotten' END;
ALTER TABLE memory_store FORCE ROW LEVEL SECURITY;
ALTER TABLE memory_store
    ALTER content_hash SET NOT NULL,
    DROP is_active,
    ADD is_active boolean GENERATED ALWAYS AS (status = 'active') STORED;
CREATE INDEX memory_store_content ON memory_store (tenant_id, user_id, content_hash);
CREATE INDEX memory_store_superseded ON memory_store (tenant_id, superseded_by);
CREATE UNIQUE INDEX memory_store_one_active
    ON memory_store (tenant_id, user_id, memory_type, memory_key)
    WHERE status = 'active' AND memory_key <> '' AND deleted_at IS NULL;
CREATE INDEX memory_store_expiry ON memory_store (expires_at) WHERE deleted_at IS NULL;
CREATE TABLE memory_revisions (
    tenant_id uuid NOT NULL,
    memory_id uuid NOT NULL,
    user_id uuid NOT NULL,
    revision integer NOT NULL,
    event text NOT NULL,
    recorded_at timestamptz NOT NULL,
    memory_type text NOT NULL,
    memory_key text NOT NULL DEFAULT '',
    memory_content text NOT NULL,
    confidence_score double precision NOT NULL,
    status text NOT NULL DEFAULT 'active',
    expires_at timestamptz,
    source text NOT NULL,
    superseded_by uuid,
    reinforcement_count integer NOT NULL DEFAULT 0,
    reinforced_at timestamptz,
    session_id uuid,
    message_id uuid,
    space_seq bigint NOT NULL,
    embedding bytea,
    embedding_model text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, memory_id, revision),
    FOREIGN KEY (tenant_id, memory_id) REFERENCES memory_store
);
CREATE INDEX memory_revisions_of_user ON memory_revisions (tenant_id, user_id, recorded_at);
ALTER TABLE memory_revisions ALTER embedding SET STORAGE EXTERNAL;
ALTER TABLE memory_store NO FORCE ROW LEVEL SECURITY;
INSERT INTO memory_revisions (tenant_id, memory_id, user_id, revision, event, recorded_at,
                              memory_type, memory_content, confidence_score, status, expires_at,
                              source, space_seq, embedding, embedding_model)
SELECT tenant_id, memory_id, user_id, 1, 'created', created_at, memory_type, memory_content,
       confidence_score, status, expires_at, source, space_seq, embedding, embedding_model
FROM memory_store WHERE deleted_at IS NULL;
ALTER TABLE memory_store FORCE ROW LEVEL SECURITY;
ALTER TABLE memory_revisions ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
"""

# What expired long ago, or was deleted long ago and is now known to be gone everywhere.
_DUE = """
CREATE POLICY owner_reads ON memory_store FOR SELECT TO CURRENT_USER USING (true);
CREATE FUNCTION hub_due_memories(most integer)
RETURNS TABLE (tenant_id uuid, user_id uuid, memory_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT m.tenant_id, m.user_id, m.memory_id FROM memory_store m
    WHERE m.expires_at < clock_timestamp() - interval '30 days' AND m.deleted_at IS NULL
    ORDER BY m.expires_at
    LIMIT most
$$;
"""


def upgrade() -> None:
    """Change the tables, and let the server's role use the new one."""
    server_role = context.config.attributes["server_role"]
    op.execute(_CHANGES)
    op.execute(
        f"CREATE POLICY tenant ON memory_revisions TO {server_role} "
        "USING (tenant_id = hub_tenant()) WITH CHECK (tenant_id = hub_tenant())"
    )
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON memory_revisions TO {server_role}")
    op.execute(_DUE)
    op.execute("REVOKE EXECUTE ON FUNCTION hub_due_memories FROM public")
    op.execute(f"GRANT EXECUTE ON FUNCTION hub_due_memories TO {server_role}")
