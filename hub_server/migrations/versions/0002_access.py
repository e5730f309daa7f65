"""Who may do what: logins that refresh, scoped keys, operators, throttle, audit; and usage."""

from alembic import context, op

revision = "0002"
down_revision = "0001"

_COMMON = """
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
"""

# The credential of a login holds the hash of its user token (secret_hash, expires_at) and of its
# refresh token. See hub_server/identity/refresh.py for what the others are for.
_CREDENTIALS = """
ALTER TABLE credentials
    DROP CONSTRAINT credentials_kind_check,
    ADD CONSTRAINT credentials_kind_check
        CHECK (kind IN ('service_key', 'user_token', 'password_reset')),
    DROP CONSTRAINT credentials_check,
    ADD CONSTRAINT credentials_check CHECK ((kind = 'service_key') = (user_id IS NULL)),
    ADD scopes text[],
    ADD last_used_at timestamptz,
    ADD refresh_hash bytea,
    ADD previous_hash bytea,
    ADD reissue bytea,
    ADD family_key bytea,
    ADD refreshed_at timestamptz,
    ADD refresh_expires_at timestamptz;
ALTER TABLE credentials NO FORCE ROW LEVEL SECURITY;
UPDATE credentials SET scopes = ARRAY['identity_admin', 'chat_admin', 'memory_admin',
                                      'knowledge_admin', 'act_as'] WHERE kind = 'service_key';
UPDATE credentials SET refresh_expires_at = expires_at WHERE kind = 'user_token';
ALTER TABLE credentials FORCE ROW LEVEL SECURITY;
ALTER TABLE credentials
    ADD CONSTRAINT credentials_scopes CHECK ((kind = 'service_key') = (scopes IS NOT NULL));
CREATE INDEX credentials_of_user ON credentials (tenant_id, user_id, credential_id)
    WHERE user_id IS NOT NULL;
CREATE INDEX credentials_credential_id ON credentials (credential_id);
CREATE INDEX users_email_prefix ON users (tenant_id, email_key text_pattern_ops);
"""

_CONFIG = """
    enable_multichat boolean NOT NULL DEFAULT true,
    enable_chat_history boolean NOT NULL DEFAULT true,
    enable_rag boolean NOT NULL DEFAULT true,
    enable_tool boolean NOT NULL DEFAULT true,
    max_sessions integer CHECK (max_sessions >= 0),
    max_tokens bigint CHECK (max_tokens >= 0),
    budget_period text NOT NULL DEFAULT 'lifetime'
        CHECK (budget_period IN ('lifetime', 'day', 'month')),
    preferred_language text NOT NULL DEFAULT 'en',
    timezone text NOT NULL DEFAULT 'UTC',
"""

_TABLES = {
    "default_configs": f"""
        tenant_id uuid PRIMARY KEY REFERENCES tenants,
        {_CONFIG}
    """,
    "user_usage": """
        tenant_id uuid NOT NULL,
        user_id uuid NOT NULL,
        total_tokens_used bigint NOT NULL DEFAULT 0,
        period_tokens_used bigint NOT NULL DEFAULT 0,
        period_start timestamptz,
        reserved_tokens bigint NOT NULL DEFAULT 0,
        PRIMARY KEY (tenant_id, user_id),
        FOREIGN KEY (tenant_id, user_id) REFERENCES users,
    """,
    "login_throttles": """
        tenant_id uuid NOT NULL REFERENCES tenants,
        account_key bytea NOT NULL,
        attempts integer NOT NULL,
        window_start timestamptz NOT NULL,
        PRIMARY KEY (tenant_id, account_key),
    """,
    "audit_events": """
        tenant_id uuid NOT NULL REFERENCES tenants,
        event_id uuid NOT NULL,
        event_type text NOT NULL,
        outcome text NOT NULL CHECK (outcome IN ('success', 'failure')),
        actor_credential_id uuid,
        actor_user_id uuid,
        target_type text NOT NULL,
        target_id text NOT NULL,
        PRIMARY KEY (tenant_id, event_id),
    """,
}

_COLUMNS = """
ALTER TABLE user_configs
    ADD max_tokens bigint CHECK (max_tokens >= 0),
    ADD budget_period text NOT NULL DEFAULT 'lifetime'
        CHECK (budget_period IN ('lifetime', 'day', 'month'));
-- Zones that Python knew and Postgres does not: from now on it computes with them.
ALTER TABLE user_configs NO FORCE ROW LEVEL SECURITY;
UPDATE user_configs SET timezone = 'UTC'
    WHERE timezone NOT IN (SELECT name FROM pg_timezone_names);
ALTER TABLE user_configs FORCE ROW LEVEL SECURITY;
CREATE INDEX user_usage_by_tokens ON user_usage (tenant_id, total_tokens_used, user_id);
CREATE INDEX login_throttles_window_start ON login_throttles (window_start);
"""

# When the current period of a budget began; NULL = it has no end.
_PERIOD = """
CREATE FUNCTION hub_period_start(period text, zone text) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN period <> 'lifetime'
            THEN date_trunc(period, now() AT TIME ZONE zone) AT TIME ZONE zone END;
"""

# What there is of users is counted once, so that every user has a row from now on.
_COUNT_USAGE = """
ALTER TABLE users NO FORCE ROW LEVEL SECURITY;
ALTER TABLE chat_sessions NO FORCE ROW LEVEL SECURITY;
ALTER TABLE user_usage NO FORCE ROW LEVEL SECURITY;
INSERT INTO user_usage (tenant_id, user_id, total_tokens_used, period_tokens_used)
SELECT u.tenant_id, u.user_id, coalesce(s.tokens, 0), coalesce(s.tokens, 0)
FROM users u
LEFT JOIN (SELECT tenant_id, user_id, sum(total_tokens_used) AS tokens
           FROM chat_sessions GROUP BY tenant_id, user_id) s
    ON s.tenant_id = u.tenant_id AND s.user_id = u.user_id;
ALTER TABLE users FORCE ROW LEVEL SECURITY;
ALTER TABLE chat_sessions FORCE ROW LEVEL SECURITY;
ALTER TABLE user_usage FORCE ROW LEVEL SECURITY;
"""

# Operators belong to no tenant. The server's role can neither read nor make them: `hub admin`
# does, as the owner.
_OPERATORS = """
CREATE TABLE operators (
    operator_id uuid PRIMARY KEY,
    name text NOT NULL,
    secret_hash bytea NOT NULL UNIQUE CHECK (length(secret_hash) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);
INSERT INTO hub_keys VALUES
    ('login_throttle', sha256((gen_random_uuid()::text || gen_random_uuid()::text)::bytea));
"""

# See 0001 for why these are functions of the owner.
_ACROSS_TENANTS = """
CREATE POLICY owner_purges ON login_throttles TO CURRENT_USER USING (true);
CREATE POLICY owner_works ON credentials TO CURRENT_USER USING (true);
CREATE POLICY owner_notes ON audit_events FOR INSERT TO CURRENT_USER WITH CHECK (true);

DROP FUNCTION hub_authenticate(bytea[]);
CREATE FUNCTION hub_authenticate(hashes bytea[], subjects uuid[])
RETURNS TABLE (place bigint, tenant_id uuid, credential_id uuid, kind text, user_id uuid,
               scopes text[], subject_is_active boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT asked.place, c.tenant_id, c.credential_id, c.kind, c.user_id, c.scopes, s.is_active
    FROM unnest(hashes, subjects) WITH ORDINALITY AS asked (secret_hash, subject, place)
    JOIN credentials c ON c.secret_hash = asked.secret_hash
    JOIN tenants t ON t.tenant_id = c.tenant_id AND t.is_active
    LEFT JOIN users u ON u.tenant_id = c.tenant_id AND u.user_id = c.user_id
    LEFT JOIN users s ON s.tenant_id = c.tenant_id AND s.user_id = asked.subject
        AND s.deleted_at IS NULL
    WHERE c.revoked_at IS NULL
      AND (c.expires_at IS NULL OR c.expires_at > clock_timestamp())
      AND (c.user_id IS NULL OR (u.is_active AND u.deleted_at IS NULL))
    UNION ALL
    SELECT asked.place, NULL, o.operator_id, 'operator', NULL, NULL, NULL
    FROM unnest(hashes) WITH ORDINALITY AS asked (secret_hash, place)
    JOIN operators o ON o.secret_hash = asked.secret_hash
    WHERE o.revoked_at IS NULL
$$;

CREATE FUNCTION hub_tenant_of_login(login uuid) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT c.tenant_id FROM credentials c JOIN tenants t ON t.tenant_id = c.tenant_id
    WHERE c.credential_id = login AND c.kind = 'user_token' AND t.is_active
$$;

CREATE FUNCTION hub_list_tenants(after uuid, most integer)
RETURNS TABLE (tenant_id uuid, name text, is_active boolean, created_at timestamptz,
               updated_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT t.tenant_id, t.name, t.is_active, t.created_at, t.updated_at FROM tenants t
    WHERE after IS NULL OR t.tenant_id < after
    ORDER BY t.tenant_id DESC LIMIT most
$$;

CREATE FUNCTION hub_note_used(ids uuid[], times timestamptz[]) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE credentials c SET last_used_at = used.at
    FROM unnest(ids, times) AS used (id, at)
    WHERE c.credential_id = used.id AND c.kind = 'service_key'
      AND (c.last_used_at IS NULL OR c.last_used_at < used.at)
$$;

CREATE FUNCTION hub_purge_credentials(kept interval) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH ended AS (
        DELETE FROM credentials
        WHERE kind IN ('user_token', 'password_reset')
          AND (revoked_at < now() - kept
               OR coalesce(refresh_expires_at, expires_at) < now() - kept)
        RETURNING 1),
    forgotten AS (DELETE FROM login_throttles WHERE window_start < now() - kept RETURNING 1)
    SELECT (SELECT count(*) FROM ended) + (SELECT count(*) FROM forgotten)
$$;
"""

_FUNCTIONS = (
    "hub_authenticate(bytea[], uuid[])",
    "hub_tenant_of_login(uuid)",
    "hub_list_tenants(uuid, integer)",
    "hub_note_used(uuid[], timestamptz[])",
    "hub_purge_credentials(interval)",
)


def upgrade() -> None:
    """Widen credentials, add the tables, and grant the server's role what it needs."""
    server_role = context.config.attributes["server_role"]
    op.execute(_CREDENTIALS)
    for table, columns in _TABLES.items():
        op.execute(f"CREATE TABLE {table} ({columns} {_COMMON})")
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        op.execute(
            f"CREATE POLICY tenant ON {table} TO {server_role} "
            "USING (tenant_id = hub_tenant()) WITH CHECK (tenant_id = hub_tenant())"
        )
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {server_role}")
    op.execute(f"REVOKE UPDATE, DELETE ON audit_events FROM {server_role}")
    op.execute(_COLUMNS)
    op.execute(_PERIOD)
    op.execute(_COUNT_USAGE)
    op.execute(_OPERATORS)
    op.execute(_ACROSS_TENANTS)
    for function in _FUNCTIONS:
        op.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {function} TO {server_role}")
