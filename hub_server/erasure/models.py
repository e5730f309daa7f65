"""The table of erasures: those under way, and what stays of those that are done."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from hub_server.database import identifier, tenant_table, timestamp

# It outlives users and tenants, and so refers to neither.
erasures = tenant_table(
    "erasures",
    identifier("erasure_id", nullable=False),
    # Who is being erased. NULL once nothing is left of him, and where it is a whole tenant.
    identifier("user_id"),
    sa.Column("is_of_tenant", sa.Boolean, nullable=False),
    # An HMAC of the id: who knows the id finds the receipt, and nobody finds the id.
    sa.Column("subject_key", sa.LargeBinary, nullable=False),
    identifier("credential_id"),  # with which it was asked for
    timestamp("lease_expires_at"),
    sa.Column("erased", JSONB, nullable=False, server_default=sa.text("'{}'")),  # rows by table
    sa.Column("forgotten", JSONB, nullable=False, server_default=sa.text("'{}'")),  # by kind
    sa.Column("probe", JSONB),  # what was looked for afterwards; NULL = not yet
    timestamp("finished_at"),
    sa.PrimaryKeyConstraint("tenant_id", "erasure_id"),
    sa.Index("erasures_of_subject", "tenant_id", "subject_key", "erasure_id"),
    sa.Index("erasures_under_way", "erasure_id", postgresql_where=sa.text("finished_at IS NULL")),
)
