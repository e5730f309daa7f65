"""Logins that refresh, and the search of users by the beginning of their email."""

from alembic import context, op

revision = "0002"
down_revision = "0001"

# The credential of a login holds the hash of its user token (secret_hash, expires_at) and of its
# refresh token. See hub_server/identity/refresh.py for what the others are for.
_LOGINS = """
ALTER TABLE credentials
    DROP CONSTRAINT credentials_kind_check,
    ADD CONSTRAINT credentials_kind_check
        CHECK (kind IN ('service_key', 'user_token', 'password_reset')),
    DROP CONSTRAINT credentials_check,
    ADD CONSTRAINT credentials_check CHECK ((kind = 'service_key') = (user_id IS NULL)),
    ADD refresh_hash bytea,
    ADD previous_hash bytea,
    ADD reissue bytea,
    ADD family_key bytea,
    ADD refreshed_at timestamptz,
    ADD refresh_expires_at timestamptz;
CREATE INDEX credentials_of_user ON credentials (tenant_id, user_id, credential_id)
    WHERE user_id IS NOT NULL;
CREATE INDEX users_email_prefix ON users (tenant_id, email_key text_pattern_ops);

CREATE FUNCTION hub_tenant_of_login(login uuid) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT c.tenant_id FROM credentials c JOIN tenants t ON t.tenant_id = c.tenant_id
    WHERE c.credential_id = login AND c.kind = 'user_token' AND t.is_active
$$;
REVOKE ALL ON FUNCTION hub_tenant_of_login(uuid) FROM PUBLIC;
CREATE INDEX credentials_credential_id ON credentials (credential_id);
"""


def upgrade() -> None:
    """Widen credentials."""
    op.execute(_LOGINS)
    server_role = context.config.attributes["server_role"]
    op.execute(f"GRANT EXECUTE ON FUNCTION hub_tenant_of_login(uuid) TO {server_role}")
