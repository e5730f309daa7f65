"""The tables of the four services, under forced row-level security."""

from alembic import context, op

revision = "0001"
down_revision = None

_COMMON = """
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
"""

_TABLES = {
    "tenants": """
        tenant_id uuid PRIMARY KEY,
        name text NOT NULL UNIQUE,
        is_active boolean NOT NULL DEFAULT true,
    """,
    "users": """
        tenant_id uuid NOT NULL REFERENCES tenants,
        user_id uuid NOT NULL,
        email text NOT NULL,
        email_key text NOT NULL,
        password_hash text,
        display_name text NOT NULL DEFAULT '',
        is_active boolean NOT NULL DEFAULT true,
        last_login timestamptz,
        deleted_at timestamptz,
        PRIMARY KEY (tenant_id, user_id),
        UNIQUE (tenant_id, email_key),
    """,
    "user_configs": """
        tenant_id uuid NOT NULL,
        config_id uuid NOT NULL,
        user_id uuid NOT NULL,
        enable_multichat boolean NOT NULL DEFAULT true,
        enable_chat_history boolean NOT NULL DEFAULT true,
        enable_rag boolean NOT NULL DEFAULT true,
        enable_tool boolean NOT NULL DEFAULT true,
        max_sessions integer CHECK (max_sessions >= 0),
        preferred_language text NOT NULL DEFAULT 'en',
        timezone text NOT NULL DEFAULT 'UTC',
        PRIMARY KEY (tenant_id, config_id),
        UNIQUE (tenant_id, user_id),
        FOREIGN KEY (tenant_id, user_id) REFERENCES users,
    """,
    "credentials": """
        tenant_id uuid NOT NULL,
        credential_id uuid NOT NULL,
        kind text NOT NULL CHECK (kind IN ('service_key', 'user_token')),
        user_id uuid CHECK ((kind = 'user_token') = (user_id IS NOT NULL)),
        name text NOT NULL DEFAULT '',
        secret_hash bytea NOT NULL CHECK (length(secret_hash) = 32),
        expires_at timestamptz,
        revoked_at timestamptz,
        PRIMARY KEY (tenant_id, credential_id),
        FOREIGN KEY (tenant_id, user_id) REFERENCES users,
    """,
    "request_ids": """
        tenant_id uuid NOT NULL,
        user_id uuid NOT NULL,
        request_id text NOT NULL,
        fingerprint bytea NOT NULL,
        resource_id uuid,
        answer text,
        PRIMARY KEY (tenant_id, user_id, request_id),
    """,
    "spaces": """
        tenant_id uuid NOT NULL,
        user_id uuid NOT NULL,
        kind text NOT NULL CHECK (kind IN ('memory', 'knowledge')),
        last_seq bigint NOT NULL,
        PRIMARY KEY (tenant_id, user_id, kind),
        FOREIGN KEY (tenant_id, user_id) REFERENCES users,
    """,
    "chat_sessions": """
        tenant_id uuid NOT NULL,
        session_id uuid NOT NULL,
        user_id uuid NOT NULL,
        session_title text NOT NULL DEFAULT '',
        model_name text NOT NULL DEFAULT '',
        is_active boolean NOT NULL DEFAULT true,
        ended_at timestamptz,
        last_message_at timestamptz,
        last_seq bigint NOT NULL DEFAULT 0,
        total_tokens_used bigint NOT NULL DEFAULT 0,
        metadata jsonb NOT NULL DEFAULT '{}',
        deleted_at timestamptz,
        PRIMARY KEY (tenant_id, session_id),
        FOREIGN KEY (tenant_id, user_id) REFERENCES users,
    """,
    "chat_messages": """
        tenant_id uuid NOT NULL,
        session_id uuid NOT NULL,
        seq bigint NOT NULL,
        message_id uuid NOT NULL,
        role text NOT NULL CHECK (role IN ('user', 'assistant', 'system', 'tool')),
        message_type text NOT NULL CHECK (message_type IN ('text', 'error', 'notice')),
        content text,
        token_count integer NOT NULL,
        model_name text NOT NULL,
        model_response_time integer,
        metadata jsonb,
        PRIMARY KEY (tenant_id, session_id, seq),
        UNIQUE (tenant_id, message_id),
        FOREIGN KEY (tenant_id, session_id) REFERENCES chat_sessions,
    """,
    "memory_store": """
        tenant_id uuid NOT NULL,
        memory_id uuid NOT NULL,
        user_id uuid NOT NULL,
        memory_type text NOT NULL CHECK (memory_type IN ('preference', 'fact', 'habit')),
        memory_content text NOT NULL,
        confidence_score double precision NOT NULL CHECK (confidence_score BETWEEN 0 AND 1),
        is_active boolean NOT NULL DEFAULT true,
        expires_at timestamptz,
        source text NOT NULL CHECK (source IN ('user', 'inferred', 'system')),
        embedding bytea NOT NULL,
        embedding_model text NOT NULL,
        space_seq bigint NOT NULL,
        deleted_at timestamptz,
        PRIMARY KEY (tenant_id, memory_id),
        FOREIGN KEY (tenant_id, user_id) REFERENCES users,
    """,
    "documents": """
        tenant_id uuid NOT NULL,
        document_id uuid NOT NULL,
        user_id uuid NOT NULL,
        title text NOT NULL,
        text text NOT NULL,
        source_url text NOT NULL DEFAULT '',
        author text NOT NULL DEFAULT '',
        status text NOT NULL CHECK (status IN ('processing', 'ready', 'failed')),
        error text NOT NULL DEFAULT '',
        content_hash bytea NOT NULL,
        chunk_count integer NOT NULL DEFAULT 0,
        metadata jsonb NOT NULL DEFAULT '{}',
        space_seq bigint,
        attempt integer NOT NULL DEFAULT 0,
        lease_expires_at timestamptz,
        deleted_at timestamptz,
        PRIMARY KEY (tenant_id, document_id),
        FOREIGN KEY (tenant_id, user_id) REFERENCES users,
    """,
    "chunks": """
        tenant_id uuid NOT NULL,
        chunk_id uuid NOT NULL,
        document_id uuid NOT NULL,
        user_id uuid NOT NULL,
        chunk_index integer NOT NULL,
        content text NOT NULL,
        token_count integer NOT NULL,
        embedding bytea NOT NULL,
        embedding_model text NOT NULL,
        metadata jsonb NOT NULL,
        PRIMARY KEY (tenant_id, chunk_id),
        UNIQUE (tenant_id, document_id, chunk_index),
        FOREIGN KEY (tenant_id, document_id) REFERENCES documents,
    """,
    "retrievals": """
        tenant_id uuid NOT NULL,
        retrieval_id uuid NOT NULL,
        rank integer NOT NULL,
        session_id uuid NOT NULL,
        user_id uuid NOT NULL,
        chunk_id uuid NOT NULL,
        query text NOT NULL,
        score double precision NOT NULL,
        embedding_model text NOT NULL,
        PRIMARY KEY (tenant_id, retrieval_id, rank),
        FOREIGN KEY (tenant_id, session_id) REFERENCES chat_sessions,
    """,
}

_INDEXES = """
CREATE INDEX credentials_secret_hash ON credentials (secret_hash);
CREATE INDEX request_ids_created_at ON request_ids (created_at);
CREATE INDEX chat_sessions_of_user ON chat_sessions (tenant_id, user_id, session_id);
CREATE INDEX chat_sessions_active ON chat_sessions (tenant_id, user_id)
    WHERE is_active AND deleted_at IS NULL;
CREATE INDEX memory_store_of_user ON memory_store (tenant_id, user_id, memory_id);
CREATE INDEX memory_store_changes ON memory_store (tenant_id, user_id, space_seq);
CREATE INDEX documents_of_user ON documents (tenant_id, user_id, document_id);
CREATE INDEX documents_changes ON documents (tenant_id, user_id, space_seq);
CREATE INDEX documents_processing ON documents (document_id) WHERE status = 'processing';
CREATE INDEX retrievals_of_session ON retrievals (tenant_id, session_id, retrieval_id);
"""

# NULL when unset, and nothing equals NULL: a connection without a tenant sees and writes no row.
_TENANT = """
CREATE FUNCTION hub_tenant() RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(current_setting('hub.tenant', true), '')::uuid;
"""

# Embeddings do not compress, and messages are read whole far more often than in part.
_STORAGE = """
ALTER TABLE memory_store ALTER embedding SET STORAGE EXTERNAL;
ALTER TABLE chunks ALTER embedding SET STORAGE EXTERNAL;
"""

_KEYS = """
CREATE TABLE hub_keys (name text PRIMARY KEY, secret bytea NOT NULL);
INSERT INTO hub_keys VALUES
    ('page_token', sha256((gen_random_uuid()::text || gen_random_uuid()::text)::bytea));
"""

# What looks across tenants. Forced row security binds the owner too, so the policies below let
# the owner read, and the functions, which run as the owner, answer one narrow question each.
_ACROSS_TENANTS = """
CREATE POLICY owner_reads ON tenants FOR SELECT TO CURRENT_USER USING (true);
CREATE POLICY owner_reads ON users FOR SELECT TO CURRENT_USER USING (true);
CREATE POLICY owner_reads ON credentials FOR SELECT TO CURRENT_USER USING (true);
CREATE POLICY owner_works ON documents TO CURRENT_USER USING (status = 'processing');
CREATE POLICY owner_purges ON request_ids TO CURRENT_USER USING (true);

CREATE FUNCTION hub_authenticate(hashes bytea[])
RETURNS TABLE (secret_hash bytea, tenant_id uuid, credential_id uuid, kind text, user_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT c.secret_hash, c.tenant_id, c.credential_id, c.kind, c.user_id
    FROM credentials c
    JOIN tenants t ON t.tenant_id = c.tenant_id AND t.is_active
    LEFT JOIN users u ON u.tenant_id = c.tenant_id AND u.user_id = c.user_id
    WHERE c.secret_hash = ANY (hashes)
      AND c.revoked_at IS NULL
      AND (c.expires_at IS NULL OR c.expires_at > clock_timestamp())
      AND (c.user_id IS NULL OR (u.is_active AND u.deleted_at IS NULL))
$$;

CREATE FUNCTION hub_tenant_named(wanted text) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT t.tenant_id FROM tenants t WHERE t.name = wanted AND t.is_active
$$;

CREATE FUNCTION hub_has_tenants() RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT EXISTS (SELECT FROM tenants)
$$;

CREATE FUNCTION hub_claim_document(lease interval)
RETURNS TABLE (tenant_id uuid, document_id uuid, attempt integer)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE documents d
    SET attempt = d.attempt + 1, lease_expires_at = clock_timestamp() + lease
    WHERE (d.tenant_id, d.document_id) = (
        SELECT w.tenant_id, w.document_id FROM documents w
        WHERE w.status = 'processing' AND w.deleted_at IS NULL
          AND (w.lease_expires_at IS NULL OR w.lease_expires_at < clock_timestamp())
        ORDER BY w.document_id
        LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING d.tenant_id, d.document_id, d.attempt
$$;

CREATE FUNCTION hub_purge_request_ids(kept interval) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH gone AS (DELETE FROM request_ids WHERE created_at < now() - kept RETURNING 1)
    SELECT count(*) FROM gone
$$;
"""

_FUNCTIONS = (
    "hub_authenticate(bytea[])",
    "hub_tenant_named(text)",
    "hub_has_tenants()",
    "hub_claim_document(interval)",
    "hub_purge_request_ids(interval)",
)


def upgrade() -> None:
    """Create everything as the owner, and grant the server's role what it needs."""
    server_role = context.config.attributes["server_role"]
    op.execute(_TENANT)
    for table, columns in _TABLES.items():
        op.execute(f"CREATE TABLE {table} ({columns} {_COMMON})")
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        op.execute(
            f"CREATE POLICY tenant ON {table} TO {server_role} "
            "USING (tenant_id = hub_tenant()) WITH CHECK (tenant_id = hub_tenant())"
        )
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {server_role}")
    op.execute(_INDEXES)
    op.execute(_STORAGE)
    op.execute(_KEYS)
    op.execute(_ACROSS_TENANTS)
    for function in _FUNCTIONS:
        op.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {function} TO {server_role}")
    op.execute(f"GRANT SELECT ON hub_keys, alembic_version TO {server_role}")
