"""Spaces that have a model, and move to another."""

from alembic import context, op

revision = "0016"
down_revision = "0015"

# What was written last tells the model that a space was searched by. Only knowledge moves.
_CHANGES = """
ALTER TABLE spaces ADD embedding_model text;
ALTER TABLE chunks
    ADD next_embedding bytea,
    ADD next_model text,
    ADD CHECK ((next_model IS NULL) = (next_embedding IS NULL)),
    ALTER next_embedding SET STORAGE EXTERNAL;
CREATE INDEX chunks_moving ON chunks (tenant_id, user_id, chunk_id) WHERE next_model IS NOT NULL;
ALTER TABLE spaces NO FORCE ROW LEVEL SECURITY;
ALTER TABLE documents NO FORCE ROW LEVEL SECURITY;
ALTER TABLE chunks NO FORCE ROW LEVEL SECURITY;
UPDATE spaces s SET embedding_model = last.embedding_model
FROM (SELECT DISTINCT ON (c.tenant_id, c.user_id) c.tenant_id, c.user_id, c.embedding_model
      FROM chunks c JOIN documents d USING (tenant_id, document_id)
      WHERE d.own_model = ''
      ORDER BY c.tenant_id, c.user_id, c.chunk_id DESC) last
WHERE s.tenant_id = last.tenant_id AND s.user_id = last.user_id AND s.kind = 'knowledge';
ALTER TABLE spaces FORCE ROW LEVEL SECURITY;
ALTER TABLE documents FORCE ROW LEVEL SECURITY;
ALTER TABLE chunks FORCE ROW LEVEL SECURITY;
CREATE TABLE reembeddings (
    tenant_id uuid NOT NULL,
    user_id uuid NOT NULL,
    kind text NOT NULL,
    target_model text NOT NULL,
    status text NOT NULL CHECK (status IN ('moving', 'done', 'failed', 'cancelled')),
    error text NOT NULL DEFAULT '',
    rows_total bigint NOT NULL DEFAULT 0,
    rows_done bigint NOT NULL DEFAULT 0,
    rows_own bigint NOT NULL DEFAULT 0,
    is_untidy boolean NOT NULL DEFAULT true,
    attempt integer NOT NULL DEFAULT 0,
    lease_expires_at timestamptz,
    not_before timestamptz,
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, user_id, kind),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users
);
CREATE INDEX reembeddings_to_do ON reembeddings (asked_at) WHERE is_untidy;
ALTER TABLE reembeddings ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_works ON reembeddings TO CURRENT_USER USING (is_untidy);
"""

# Of a move in progress only a hub takes care that has the model; whoever worked on it last comes
# last again, so that a large space does not hold up the small ones.
_CLAIM = """
CREATE FUNCTION hub_claim_reembedding(lease interval, models text[])
RETURNS TABLE (tenant_id uuid, user_id uuid, kind text, attempt integer)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE reembeddings r
    SET attempt = r.attempt + 1, lease_expires_at = clock_timestamp() + lease,
        updated_at = clock_timestamp()
    WHERE (r.tenant_id, r.user_id, r.kind) = (
        SELECT w.tenant_id, w.user_id, w.kind FROM reembeddings w
        WHERE w.is_untidy AND w.status <> 'failed'
          AND (w.status <> 'moving' OR w.target_model = ANY (models))
          AND (w.lease_expires_at IS NULL OR w.lease_expires_at < clock_timestamp())
          AND (w.not_before IS NULL OR w.not_before < clock_timestamp())
        ORDER BY w.updated_at
        LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING r.tenant_id, r.user_id, r.kind, r.attempt
$$;
"""


def upgrade() -> None:
    """Change the tables, and let the server's role use the new one."""
    server_role = context.config.attributes["server_role"]
    op.execute(_CHANGES)
    op.execute(
        f"CREATE POLICY tenant ON reembeddings TO {server_role} "
        "USING (tenant_id = hub_tenant()) WITH CHECK (tenant_id = hub_tenant())"
    )
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON reembeddings TO {server_role}")
    op.execute(_CLAIM)
    function = "hub_claim_reembedding(interval, text[])"
    op.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {function} TO {server_role}")
