"""Tables of identity: who is it, what is allowed."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from hub_server.database import identifier, metadata, tenant_table, timestamp

tenants = tenant_table(
    "tenants",
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("is_active", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("message_search", sa.Text, nullable=False, server_default="off"),  # | words | hybrid
    identifier("erasure_id"),  # NULL = nobody is erasing it
    sa.PrimaryKeyConstraint("tenant_id"),
)

users = tenant_table(
    "users",
    identifier("user_id", nullable=False),
    sa.Column("email", sa.Text, nullable=False),
    sa.Column("email_key", sa.Text, nullable=False),
    sa.Column("password_hash", sa.Text),
    sa.Column("display_name", sa.Text, nullable=False, server_default=""),
    sa.Column("is_active", sa.Boolean, nullable=False, server_default=sa.true()),
    timestamp("last_login"),
    timestamp("deleted_at"),
    identifier("erasure_id"),  # NULL = nobody is erasing him; else he is deleted, too
    identifier("import_id"),  # NULL = nobody is importing him; else he is deleted, too
    sa.PrimaryKeyConstraint("tenant_id", "user_id"),
    sa.UniqueConstraint("tenant_id", "email_key"),
    sa.Index(
        "users_email_prefix",
        "tenant_id",
        "email_key",
        postgresql_ops={"email_key": "text_pattern_ops"},
    ),
    sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"]),
)


def _settings() -> Iterator[sa.Column[Any]]:
    """Yield the columns of a configuration."""
    for flag in ("enable_multichat", "enable_chat_history", "enable_rag", "enable_tool"):
        yield sa.Column(flag, sa.Boolean, nullable=False, server_default=sa.true())
    yield sa.Column("max_sessions", sa.Integer)
    yield sa.Column("max_tokens", sa.BigInteger)
    yield sa.Column("budget_period", sa.Text, nullable=False, server_default="lifetime")
    yield sa.Column("preferred_language", sa.Text, nullable=False, server_default="en")
    yield sa.Column("timezone", sa.Text, nullable=False, server_default="UTC")


user_configs = tenant_table(
    "user_configs",
    identifier("config_id", nullable=False),
    identifier("user_id", nullable=False),
    *_settings(),
    sa.PrimaryKeyConstraint("tenant_id", "config_id"),
    sa.UniqueConstraint("tenant_id", "user_id"),
    sa.ForeignKeyConstraint(["tenant_id", "user_id"], ["users.tenant_id", "users.user_id"]),
)

# What the configuration of a new user begins with; a tenant without a row has the hub's defaults.
default_configs = tenant_table(
    "default_configs",
    *_settings(),
    sa.PrimaryKeyConstraint("tenant_id"),
    sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"]),
)

user_usage = tenant_table(
    "user_usage",
    identifier("user_id", nullable=False),
    sa.Column("total_tokens_used", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("period_tokens_used", sa.BigInteger, nullable=False, server_default="0"),
    timestamp("period_start"),  # NULL = the user's lifetime
    sa.Column("reserved_tokens", sa.BigInteger, nullable=False, server_default="0"),
    sa.PrimaryKeyConstraint("tenant_id", "user_id"),
    sa.ForeignKeyConstraint(["tenant_id", "user_id"], ["users.tenant_id", "users.user_id"]),
    sa.Index("user_usage_by_tokens", "tenant_id", "total_tokens_used", "user_id"),
)

credentials = tenant_table(
    "credentials",
    identifier("credential_id", nullable=False),
    sa.Column("kind", sa.Text, nullable=False),  # service_key | user_token | password_reset
    identifier("user_id"),
    sa.Column("name", sa.Text, nullable=False, server_default=""),
    sa.Column("secret_hash", sa.LargeBinary, nullable=False),
    timestamp("expires_at"),
    timestamp("revoked_at"),
    sa.Column("scopes", ARRAY(sa.Text)),  # of service keys only, as is the next
    timestamp("last_used_at"),
    # Of logins only; see hub_server.identity.refresh.
    sa.Column("refresh_hash", sa.LargeBinary),
    sa.Column("previous_hash", sa.LargeBinary),
    sa.Column("reissue", sa.LargeBinary),
    sa.Column("family_key", sa.LargeBinary),
    timestamp("refreshed_at"),
    timestamp("refresh_expires_at"),
    sa.PrimaryKeyConstraint("tenant_id", "credential_id"),
    sa.ForeignKeyConstraint(["tenant_id", "user_id"], ["users.tenant_id", "users.user_id"]),
    sa.Index("credentials_secret_hash", "secret_hash"),
    sa.Index("credentials_credential_id", "credential_id"),
    sa.Index(
        "credentials_of_user",
        "tenant_id",
        "user_id",
        "credential_id",
        postgresql_where=sa.text("user_id IS NOT NULL"),
    ),
)

# Attempts to log in to an account, which need not exist; its email only as an HMAC.
login_throttles = tenant_table(
    "login_throttles",
    sa.Column("account_key", sa.LargeBinary, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    timestamp("window_start", nullable=False),
    sa.PrimaryKeyConstraint("tenant_id", "account_key"),
    sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"]),
    sa.Index("login_throttles_window_start", "window_start"),
)

# Append-only: the server's role may neither change nor delete them, unless somebody is erased.
audit_events = tenant_table(
    "audit_events",
    identifier("event_id", nullable=False),
    sa.Column("event_type", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),  # success | failure
    identifier("actor_credential_id"),
    identifier("actor_user_id"),
    sa.Column("target_type", sa.Text, nullable=False),
    sa.Column("target_id", sa.Text, nullable=False),
    sa.PrimaryKeyConstraint("tenant_id", "event_id"),
    sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"]),
    sa.Index(
        "audit_events_of_actor",
        "tenant_id",
        "actor_user_id",
        postgresql_where=sa.text("actor_user_id IS NOT NULL"),
    ),
    sa.Index("audit_events_of_target", "tenant_id", "target_id"),
)

# Whoever runs the hub; they belong to no tenant, and the server's role cannot see them.
operators = sa.Table(
    "operators",
    metadata,
    identifier("operator_id", primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("secret_hash", sa.LargeBinary, nullable=False, unique=True),
    timestamp("created_at", nullable=False, server_default=sa.func.now()),
    timestamp("revoked_at"),
)

# Secrets all hubs over one database share; they belong to no tenant.
hub_keys = sa.Table(
    "hub_keys",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("secret", sa.LargeBinary, nullable=False),
)
