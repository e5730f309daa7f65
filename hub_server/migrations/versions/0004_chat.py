"""Sessions that fork, messages that are redacted, tokens that are reserved."""

from alembic import context, op

revision = "0004"
down_revision = "0003"

_CHANGES = """
ALTER TABLE chat_sessions
    ADD parent_session_id uuid,
    ADD parent_seq bigint NOT NULL DEFAULT 0,
    ADD redaction_count bigint NOT NULL DEFAULT 0,
    ADD FOREIGN KEY (tenant_id, parent_session_id) REFERENCES chat_sessions;
ALTER TABLE chat_messages ADD redacted_at timestamptz;
CREATE TABLE token_reservations (
    tenant_id uuid NOT NULL,
    reservation_id uuid NOT NULL,
    user_id uuid NOT NULL,
    tokens bigint NOT NULL,
    held_tokens bigint NOT NULL CHECK (held_tokens >= 0),
    message_tokens bigint NOT NULL DEFAULT 0,
    used_tokens bigint NOT NULL DEFAULT 0,
    expires_at timestamptz NOT NULL,
    settled_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, reservation_id),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users
);
CREATE INDEX token_reservations_held ON token_reservations (tenant_id, user_id, expires_at)
    WHERE held_tokens > 0;
ALTER TABLE token_reservations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE user_usage ADD CHECK (reserved_tokens >= 0);
"""


def upgrade() -> None:
    """Change the tables, and let the server's role use the new one."""
    server_role = context.config.attributes["server_role"]
    op.execute(_CHANGES)
    op.execute(
        f"CREATE POLICY tenant ON token_reservations TO {server_role} "
        "USING (tenant_id = hub_tenant()) WITH CHECK (tenant_id = hub_tenant())"
    )
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON token_reservations TO {server_role}")
