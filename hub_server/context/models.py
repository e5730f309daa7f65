"""The table of contexts that were built."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from hub_server.database import identifier, tenant_table

# Of what a context said only ids are kept: so a text that is deleted or redacted is gone here, too.
context_records = tenant_table(
    "context_records",
    identifier("context_id", nullable=False),
    identifier("user_id", nullable=False),
    identifier("session_id", nullable=False),
    sa.Column("token_budget", sa.Integer, nullable=False),
    sa.Column("model_name", sa.Text, nullable=False),
    sa.Column("tools_allowed", sa.Boolean, nullable=False),
    sa.Column("blocks", JSONB, nullable=False),
    sa.Column("ledger", JSONB, nullable=False),
    sa.PrimaryKeyConstraint("tenant_id", "context_id"),
    sa.ForeignKeyConstraint(
        ["tenant_id", "session_id"], ["chat_sessions.tenant_id", "chat_sessions.session_id"]
    ),
    sa.Index("context_records_of_user", "tenant_id", "user_id", "context_id"),
    sa.Index("context_records_of_session", "tenant_id", "session_id"),
)
