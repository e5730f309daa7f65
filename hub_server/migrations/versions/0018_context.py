"""Contexts that were built."""

from alembic import context, op

revision = "0018"
down_revision = "0017"

_TABLE = """
CREATE TABLE context_records (
    tenant_id uuid NOT NULL,
    context_id uuid NOT NULL,
    user_id uuid NOT NULL,
    session_id uuid NOT NULL,
    token_budget integer NOT NULL,
    model_name text NOT NULL,
    tools_allowed boolean NOT NULL,
    blocks jsonb NOT NULL,
    ledger jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, context_id),
    FOREIGN KEY (tenant_id, session_id) REFERENCES chat_sessions
);
CREATE INDEX context_records_of_user ON context_records (tenant_id, user_id, context_id);
CREATE INDEX context_records_of_session ON context_records (tenant_id, session_id);
ALTER TABLE context_records ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
"""


def upgrade() -> None:
    """Make the table, and let the server's role use it."""
    server_role = context.config.attributes["server_role"]
    op.execute(_TABLE)
    op.execute(
        f"CREATE POLICY tenant ON context_records TO {server_role} "
        "USING (tenant_id = hub_tenant()) WITH CHECK (tenant_id = hub_tenant())"
    )
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON context_records TO {server_role}")
