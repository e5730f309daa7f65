"""Users and tenants that are erased, and what stays of that."""

from alembic import context, op

revision = "0015"
down_revision = "0014"

# Whoever removes a row asks by index who refers to it, or a user of a large tenant could not be
# removed in time. For chat_messages_changes it is the same condition in other words: a message
# bears a user_id just if it bears a space_seq.
_CHANGES = """
ALTER TABLE users ADD erasure_id uuid;
ALTER TABLE tenants ADD erasure_id uuid;
CREATE TABLE erasures (
    tenant_id uuid NOT NULL,
    erasure_id uuid NOT NULL,
    user_id uuid CHECK (user_id IS NULL OR finished_at IS NULL AND NOT is_of_tenant),
    is_of_tenant boolean NOT NULL,
    subject_key bytea NOT NULL CHECK (length(subject_key) = 32),
    credential_id uuid,
    lease_expires_at timestamptz,
    erased jsonb NOT NULL DEFAULT '{}',
    forgotten jsonb NOT NULL DEFAULT '{}',
    probe jsonb CHECK ((probe IS NULL) = (finished_at IS NULL)),
    finished_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, erasure_id)
);
ALTER TABLE erasures ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE INDEX erasures_of_subject ON erasures (tenant_id, subject_key, erasure_id);
CREATE INDEX erasures_under_way ON erasures (erasure_id) WHERE finished_at IS NULL;
CREATE INDEX audit_events_of_actor ON audit_events (tenant_id, actor_user_id)
    WHERE actor_user_id IS NOT NULL;
CREATE INDEX audit_events_of_target ON audit_events (tenant_id, target_id);
CREATE INDEX chat_sessions_forks ON chat_sessions (tenant_id, parent_session_id)
    WHERE parent_session_id IS NOT NULL;
CREATE INDEX token_reservations_of_user ON token_reservations (tenant_id, user_id);
DROP INDEX chat_messages_changes;
CREATE INDEX chat_messages_changes ON chat_messages (tenant_id, user_id, space_seq)
    WHERE user_id IS NOT NULL;
INSERT INTO hub_keys VALUES
    ('erasure', sha256((gen_random_uuid()::text || gen_random_uuid()::text)::bytea));
"""

# See 0001 for why these are functions of the owner. The log is append-only for the server's role;
# of what a user who is being erased did, and of what was done to him, it may have his id replaced,
# and it may have the log of a tenant that is being erased removed.
_FUNCTIONS = {
    "hub_claim_erasure(interval)": """
CREATE FUNCTION hub_claim_erasure(lease interval)
RETURNS TABLE (tenant_id uuid, erasure_id uuid, user_id uuid, is_of_tenant boolean,
               begun_at timestamptz)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE erasures e SET lease_expires_at = clock_timestamp() + lease
    WHERE (e.tenant_id, e.erasure_id) = (
        SELECT w.tenant_id, w.erasure_id FROM erasures w
        WHERE w.finished_at IS NULL
          AND (w.lease_expires_at IS NULL OR w.lease_expires_at < clock_timestamp())
        ORDER BY w.erasure_id
        LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING e.tenant_id, e.erasure_id, e.user_id, e.is_of_tenant, e.created_at
$$;
""",
    "hub_gone(uuid[], uuid[])": """
CREATE FUNCTION hub_gone(of_tenants uuid[], of_users uuid[])
RETURNS TABLE (tenant_id uuid, user_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT owner.tenant_id, owner.user_id
    FROM unnest(of_tenants, of_users) AS owner (tenant_id, user_id)
    WHERE NOT EXISTS (
        SELECT FROM users u JOIN tenants t ON t.tenant_id = u.tenant_id AND t.erasure_id IS NULL
        WHERE u.tenant_id = owner.tenant_id AND u.user_id = owner.user_id
          AND u.erasure_id IS NULL)
$$;
""",
    "hub_blind_events(uuid, integer)": """
CREATE FUNCTION hub_blind_events(erasure uuid, most integer) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH erased AS MATERIALIZED (
        SELECT e.user_id FROM erasures e
        WHERE e.tenant_id = hub_tenant() AND e.erasure_id = erasure AND e.finished_at IS NULL
    ),
    found AS MATERIALIZED (
        SELECT v.event_id FROM erased JOIN audit_events v
            ON v.tenant_id = hub_tenant() AND v.actor_user_id = erased.user_id
        UNION
        SELECT v.event_id FROM erased JOIN audit_events v
            ON v.tenant_id = hub_tenant() AND v.target_id = erased.user_id::text
        LIMIT most
    ),
    blinded AS (
        UPDATE audit_events v
        SET actor_user_id = CASE WHEN v.actor_user_id = erased.user_id THEN erasure
                                 ELSE v.actor_user_id END,
            target_id = CASE WHEN v.target_id = erased.user_id::text THEN erasure::text
                             ELSE v.target_id END
        FROM erased, found
        WHERE v.tenant_id = hub_tenant() AND v.event_id = found.event_id
        RETURNING 1
    )
    SELECT count(*) FROM blinded
$$;
""",
    "hub_erase_events(integer)": """
CREATE FUNCTION hub_erase_events(most integer) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH gone AS (
        DELETE FROM audit_events
        WHERE (tenant_id, event_id) IN (
            SELECT v.tenant_id, v.event_id FROM audit_events v
            JOIN tenants t ON t.tenant_id = v.tenant_id AND t.erasure_id IS NOT NULL
            WHERE v.tenant_id = hub_tenant()
            LIMIT most)
        RETURNING 1
    )
    SELECT count(*) FROM gone
$$;
""",
}

_POLICIES = """
CREATE POLICY owner_works ON erasures TO CURRENT_USER USING (finished_at IS NULL);
CREATE POLICY owner_erases ON audit_events TO CURRENT_USER USING (tenant_id = hub_tenant());
"""
_LIST = """
CREATE OR REPLACE FUNCTION hub_list_tenants(after uuid, most integer)
RETURNS TABLE (tenant_id uuid, name text, is_active boolean, created_at timestamptz,
               updated_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT t.tenant_id, t.name, t.is_active, t.created_at, t.updated_at FROM tenants t
    WHERE (after IS NULL OR t.tenant_id < after) AND t.erasure_id IS NULL
    ORDER BY t.tenant_id DESC LIMIT most
$$;
"""


def upgrade() -> None:
    """Change the tables, and let the server's role use them."""
    server_role = context.config.attributes["server_role"]
    op.execute(_CHANGES)
    op.execute(
        f"CREATE POLICY tenant ON erasures TO {server_role} "
        "USING (tenant_id = hub_tenant()) WITH CHECK (tenant_id = hub_tenant())"
    )
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON erasures TO {server_role}")
    op.execute(_POLICIES)
    op.execute(_LIST)
    for function, text in _FUNCTIONS.items():
        op.execute(text)
        op.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {function} TO {server_role}")
