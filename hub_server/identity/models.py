"""Tables of identity: who is it, what is allowed."""

import sqlalchemy as sa

from hub_server.database import identifier, metadata, tenant_table, timestamp

tenants = tenant_table(
    "tenants",
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("is_active", sa.Boolean, nullable=False, server_default=sa.true()),
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

user_configs = tenant_table(
    "user_configs",
    identifier("config_id", nullable=False),
    identifier("user_id", nullable=False),
    sa.Column("enable_multichat", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("enable_chat_history", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("enable_rag", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("enable_tool", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("max_sessions", sa.Integer),
    sa.Column("preferred_language", sa.Text, nullable=False, server_default="en"),
    sa.Column("timezone", sa.Text, nullable=False, server_default="UTC"),
    sa.PrimaryKeyConstraint("tenant_id", "config_id"),
    sa.UniqueConstraint("tenant_id", "user_id"),
    sa.ForeignKeyConstraint(["tenant_id", "user_id"], ["users.tenant_id", "users.user_id"]),
)

credentials = tenant_table(
    "credentials",
    identifier("credential_id", nullable=False),
    sa.Column("kind", sa.Text, nullable=False),  # service_key | user_token
    identifier("user_id"),
    sa.Column("name", sa.Text, nullable=False, server_default=""),
    sa.Column("secret_hash", sa.LargeBinary, nullable=False),
    timestamp("expires_at"),
    timestamp("revoked_at"),
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

# Secrets all hubs over one database share; they belong to no tenant.
hub_keys = sa.Table(
    "hub_keys",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("secret", sa.LargeBinary, nullable=False),
)
