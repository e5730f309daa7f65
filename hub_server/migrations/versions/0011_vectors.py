"""Vectors in Postgres, for HUB_INDEX=pgvector; the tables are there without pgvector, too."""

from alembic import context, op

revision = "0011"
down_revision = "0007"

# The index of a dimension is made when it is first needed. Its rows are those of large spaces.
_TABLES = """
CREATE TABLE vector_spaces (
    tenant_id uuid NOT NULL,
    user_id uuid NOT NULL,
    kind text NOT NULL,
    embedding_model text NOT NULL,
    life uuid NOT NULL,
    dimension integer NOT NULL,
    applied_seq bigint NOT NULL DEFAULT 0,
    row_count bigint NOT NULL DEFAULT 0,
    built_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, user_id, kind, embedding_model),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users ON DELETE CASCADE
);
CREATE TABLE vectors (
    tenant_id uuid NOT NULL,
    user_id uuid NOT NULL,
    kind text NOT NULL,
    embedding_model text NOT NULL,
    row_id uuid NOT NULL,
    group_id uuid NOT NULL,
    seq bigint NOT NULL,
    in_graph boolean NOT NULL DEFAULT false,
    embedding real[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, row_id, embedding_model),
    FOREIGN KEY (tenant_id, user_id, kind, embedding_model)
        REFERENCES vector_spaces ON DELETE CASCADE
);
ALTER TABLE vectors ALTER embedding SET STORAGE EXTERNAL;
CREATE INDEX vectors_group ON vectors (tenant_id, user_id, kind, embedding_model, group_id);
CREATE INDEX vectors_exact ON vectors (tenant_id, user_id, kind, embedding_model)
    WHERE NOT in_graph;
CREATE FUNCTION hub_index_vectors(dimension integer) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    name text := format('vectors_graph_%s', dimension);
BEGIN
    IF dimension NOT BETWEEN 1 AND 2000 THEN
        RAISE EXCEPTION 'no index for % dimensions', dimension;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended(name, 0));
    IF to_regclass(name) IS NULL THEN
        EXECUTE format(
            'CREATE INDEX %I ON vectors USING hnsw ((embedding::vector(%s)) vector_ip_ops)'
            ' WITH (m = 16, ef_construction = 128)'
            ' WHERE in_graph AND cardinality(embedding) = %s', name, dimension, dimension);
    END IF;
END
$$;
REVOKE ALL ON FUNCTION hub_index_vectors FROM PUBLIC;
"""


def upgrade() -> None:
    """Make the tables, and let the server's role use them and ask for an index."""
    server_role = context.config.attributes["server_role"]
    op.execute(_TABLES)
    for table in ("vector_spaces", "vectors"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        op.execute(
            f"CREATE POLICY tenant ON {table} TO {server_role} "
            "USING (tenant_id = hub_tenant()) WITH CHECK (tenant_id = hub_tenant())"
        )
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {server_role}")
    op.execute(f"GRANT EXECUTE ON FUNCTION hub_index_vectors TO {server_role}")
