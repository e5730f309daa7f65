"""Messages that are searched: a setting of the tenant, and what views need of each message."""

from alembic import op

revision = "0005"
down_revision = "0004"

# What is searched bears a space_seq and names its user; all other messages are in neither index.
# The second index holds what is not embedded (yet): of a tenant that searches by words, everything.
_CHANGES = """
ALTER TABLE tenants ADD message_search text NOT NULL DEFAULT 'off'
    CHECK (message_search IN ('off', 'words', 'hybrid'));
ALTER TABLE spaces
    DROP CONSTRAINT spaces_kind_check,
    ADD CONSTRAINT spaces_kind_check CHECK (kind IN ('memory', 'knowledge', 'messages'));
ALTER TABLE chat_messages
    ADD user_id uuid,
    ADD space_seq bigint,
    ADD embedding bytea,
    ADD embedding_model text,
    ADD CHECK ((user_id IS NULL) = (space_seq IS NULL)),
    ADD FOREIGN KEY (tenant_id, user_id) REFERENCES users,
    ALTER embedding SET STORAGE EXTERNAL;
CREATE INDEX chat_messages_changes ON chat_messages (tenant_id, user_id, space_seq)
    WHERE space_seq IS NOT NULL;
CREATE INDEX chat_messages_to_embed ON chat_messages (tenant_id, user_id, space_seq)
    WHERE space_seq IS NOT NULL AND embedding IS NULL AND content IS NOT NULL;
"""


def upgrade() -> None:
    """Change the tables."""
    op.execute(_CHANGES)
