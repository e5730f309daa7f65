"""Tables of chat: in which conversation, what was said."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from hub_server.database import identifier, tenant_table, timestamp

chat_sessions = tenant_table(
    "chat_sessions",
    identifier("session_id", nullable=False),
    identifier("user_id", nullable=False),
    sa.Column("session_title", sa.Text, nullable=False, server_default=""),
    sa.Column("model_name", sa.Text, nullable=False, server_default=""),
    sa.Column("is_active", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("is_archived", sa.Boolean, nullable=False, server_default=sa.false()),
    timestamp("ended_at"),
    timestamp("last_message_at"),
    sa.Column("last_seq", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("total_tokens_used", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("metadata", JSONB, nullable=False, server_default=sa.text("'{}'")),
    timestamp("deleted_at"),
    sa.PrimaryKeyConstraint("tenant_id", "session_id"),
    sa.ForeignKeyConstraint(["tenant_id", "user_id"], ["users.tenant_id", "users.user_id"]),
    sa.Index("chat_sessions_of_user", "tenant_id", "user_id", "session_id"),
    sa.Index(
        "chat_sessions_active",
        "tenant_id",
        "user_id",
        postgresql_where=sa.text("is_active AND deleted_at IS NULL"),
    ),
)

chat_messages = tenant_table(
    "chat_messages",
    identifier("session_id", nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    identifier("message_id", nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("message_type", sa.Text, nullable=False),
    sa.Column("content", sa.Text),
    sa.Column("token_count", sa.Integer, nullable=False),
    sa.Column("model_name", sa.Text, nullable=False),
    sa.Column("model_response_time", sa.Integer),  # milliseconds
    sa.Column("metadata", JSONB),
    sa.PrimaryKeyConstraint("tenant_id", "session_id", "seq"),
    sa.UniqueConstraint("tenant_id", "message_id"),
    sa.ForeignKeyConstraint(
        ["tenant_id", "session_id"], ["chat_sessions.tenant_id", "chat_sessions.session_id"]
    ),
)
