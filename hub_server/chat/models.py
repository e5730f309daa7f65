"""Tables of chat: in which conversation, what was said."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from hub_server.database import identifier, tenant_table, timestamp

# As much of a message as is embedded: more than models read (MiniLM 256 tokens).
EMBEDDED_CHARACTERS: Final = 4000

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
    # A fork shares its parent's messages up to parent_seq, and those its parent shares.
    identifier("parent_session_id"),
    sa.Column("parent_seq", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("redaction_count", sa.BigInteger, nullable=False, server_default="0"),
    timestamp("deleted_at"),
    sa.PrimaryKeyConstraint("tenant_id", "session_id"),
    sa.ForeignKeyConstraint(["tenant_id", "user_id"], ["users.tenant_id", "users.user_id"]),
    sa.ForeignKeyConstraint(
        ["tenant_id", "parent_session_id"], ["chat_sessions.tenant_id", "chat_sessions.session_id"]
    ),
    sa.Index("chat_sessions_of_user", "tenant_id", "user_id", "session_id"),
    sa.Index(
        "chat_sessions_active",
        "tenant_id",
        "user_id",
        postgresql_where=sa.text("is_active AND deleted_at IS NULL"),
    ),
    sa.Index(
        "chat_sessions_forks",
        "tenant_id",
        "parent_session_id",
        postgresql_where=sa.text("parent_session_id IS NOT NULL"),
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
    timestamp("redacted_at"),
    # Of messages that can be searched only: those kept while the tenant's message_search was on.
    identifier("user_id"),
    sa.Column("space_seq", sa.BigInteger),
    sa.Column("embedding", sa.LargeBinary),  # float32, little-endian; NULL = not embedded (yet)
    sa.Column("embedding_model", sa.Text),
    # The vector of the model that the space moves to, or moved to a moment ago.
    sa.Column("next_embedding", sa.LargeBinary),
    sa.Column("next_model", sa.Text),
    sa.PrimaryKeyConstraint("tenant_id", "session_id", "seq"),
    sa.UniqueConstraint("tenant_id", "message_id"),
    sa.ForeignKeyConstraint(
        ["tenant_id", "session_id"], ["chat_sessions.tenant_id", "chat_sessions.session_id"]
    ),
    sa.ForeignKeyConstraint(["tenant_id", "user_id"], ["users.tenant_id", "users.user_id"]),
    sa.Index(
        "chat_messages_changes",
        "tenant_id",
        "user_id",
        "space_seq",
        postgresql_where=sa.text("user_id IS NOT NULL"),
    ),
    sa.Index(
        "chat_messages_to_embed",
        "tenant_id",
        "user_id",
        "space_seq",
        postgresql_where=sa.text(
            "space_seq IS NOT NULL AND embedding IS NULL AND content IS NOT NULL"
        ),
    ),
    sa.Index(
        "chat_messages_moving",
        "tenant_id",
        "user_id",
        "message_id",
        postgresql_where=sa.text("next_model IS NOT NULL"),
    ),
)

# What reservations hold is counted in user_usage.reserved_tokens, under whose lock every change of
# a reservation is made.
token_reservations = tenant_table(
    "token_reservations",
    identifier("reservation_id", nullable=False),
    identifier("user_id", nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("held_tokens", sa.BigInteger, nullable=False),
    sa.Column("message_tokens", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("used_tokens", sa.BigInteger, nullable=False, server_default="0"),
    timestamp("expires_at", nullable=False),
    timestamp("settled_at"),
    sa.PrimaryKeyConstraint("tenant_id", "reservation_id"),
    sa.ForeignKeyConstraint(["tenant_id", "user_id"], ["users.tenant_id", "users.user_id"]),
    sa.Index(
        "token_reservations_held",
        "tenant_id",
        "user_id",
        "expires_at",
        postgresql_where=sa.text("held_tokens > 0"),
    ),
    sa.Index("token_reservations_of_user", "tenant_id", "user_id"),
)
