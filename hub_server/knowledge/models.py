"""Tables of knowledge: what is known, and which of it was shown to whom."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from hub_server.database import identifier, tenant_table, timestamp

# What was written lately is in no order, and searched whole by every filter. Of the 4 MB that
# Postgres lets it grow to a filter reads for 8 ms.
_UNORDERED: Final = {"gin_pending_list_limit": 256}  # kB

documents = tenant_table(
    "documents",
    identifier("document_id", nullable=False),
    identifier("user_id", nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("source_url", sa.Text, nullable=False, server_default=""),
    sa.Column("author", sa.Text, nullable=False, server_default=""),
    sa.Column("status", sa.Text, nullable=False),  # processing | ready | failed
    sa.Column("error", sa.Text, nullable=False, server_default=""),
    # SHA-256 of the text, or of the file it was uploaded as.
    sa.Column("content_hash", sa.LargeBinary, nullable=False),
    sa.Column("chunk_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("metadata", JSONB, nullable=False, server_default=sa.text("'{}'")),
    # How it is cut into chunks.
    sa.Column("max_tokens", sa.Integer, nullable=False, server_default="200"),
    sa.Column("overlap_tokens", sa.Integer, nullable=False, server_default="0"),
    # The seq in its user's knowledge space at which searches last had to learn of a change; all
    # chunks of a document come and go with it. NULL = searches never saw it.
    sa.Column("space_seq", sa.BigInteger),
    # Who may work on it until when: the lease of the worker that made this attempt. Given up is
    # what comes no further in too many of them, counted from the first.
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    sa.Column("first_attempt", sa.Integer, nullable=False, server_default="1"),
    timestamp("lease_expires_at"),
    # Whose chunks searches find: 0 = none yet. The next one is written beside it, and takes its
    # place when it is whole.
    sa.Column("revision", sa.Integer, nullable=False, server_default="0"),
    sa.Column("chunks_done", sa.Integer, nullable=False, server_default="0"),
    sa.Column("chunks_total", sa.Integer, nullable=False, server_default="0"),
    # The model of its chunks' vectors, where callers made them; empty = the hub does.
    sa.Column("own_model", sa.Text, nullable=False, server_default=""),
    sa.Column("file_name", sa.Text, nullable=False, server_default=""),
    sa.Column("media_type", sa.Text, nullable=False, server_default=""),  # '' = not uploaded
    timestamp("deleted_at"),
    sa.PrimaryKeyConstraint("tenant_id", "document_id"),
    sa.ForeignKeyConstraint(["tenant_id", "user_id"], ["users.tenant_id", "users.user_id"]),
    sa.Index("documents_of_user", "tenant_id", "user_id", "document_id"),
    sa.Index("documents_content", "tenant_id", "user_id", "content_hash"),
    sa.Index("documents_changes", "tenant_id", "user_id", "space_seq"),
    # For hub_filtered_chunks alone: row security keeps these operators from indexes elsewhere.
    sa.Index(
        "documents_metadata",
        "metadata",
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
        postgresql_with=_UNORDERED,
    ),
    sa.Index(
        "documents_processing", "document_id", postgresql_where=sa.text("status = 'processing'")
    ),
)

# Uploaded files whose text is not read yet, in parts: a connection keeps, as long as it lives, as
# much memory as the largest message took that it ever carried.
document_files = tenant_table(
    "document_files",
    identifier("document_id", nullable=False),
    sa.Column("part", sa.Integer, nullable=False, server_default="0"),
    identifier("user_id", nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("names_document", sa.Boolean, nullable=False),  # no title was given
    sa.PrimaryKeyConstraint("tenant_id", "document_id", "part"),
    sa.ForeignKeyConstraint(
        ["tenant_id", "document_id"], ["documents.tenant_id", "documents.document_id"]
    ),
)

# "vector_db" in the seed vocabulary.
chunks = tenant_table(
    "chunks",
    identifier("chunk_id", nullable=False),
    identifier("document_id", nullable=False),
    identifier("user_id", nullable=False),
    sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
    sa.Column("chunk_index", sa.Integer, nullable=False),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("heading_path", ARRAY(sa.Text), nullable=False, server_default="{}"),
    # Where in the document's text it stands, in characters. NULL = not known.
    sa.Column("start_char", sa.Integer),
    sa.Column("end_char", sa.Integer),
    sa.Column("token_count", sa.Integer, nullable=False),
    sa.Column("embedding", sa.LargeBinary, nullable=False),  # float32, little-endian
    sa.Column("embedding_model", sa.Text, nullable=False),
    # The vector of the model that the space moves to, or moved to a moment ago.
    sa.Column("next_embedding", sa.LargeBinary),
    sa.Column("next_model", sa.Text),
    sa.Column("metadata", JSONB, nullable=False),
    sa.PrimaryKeyConstraint("tenant_id", "chunk_id"),
    sa.UniqueConstraint("tenant_id", "document_id", "revision", "chunk_index"),
    sa.ForeignKeyConstraint(
        ["tenant_id", "document_id"], ["documents.tenant_id", "documents.document_id"]
    ),
    sa.Index("chunks_of_model", "tenant_id", "user_id", "embedding_model", "chunk_id"),
    sa.Index("chunks_metadata", "metadata", postgresql_using="gin", postgresql_with=_UNORDERED),
    sa.Index(
        "chunks_moving",
        "tenant_id",
        "user_id",
        "chunk_id",
        postgresql_where=sa.text("next_model IS NOT NULL"),
    ),
)

# "vector_metadata" in the seed vocabulary: one row for each hit of a recorded search.
retrievals = tenant_table(
    "retrievals",
    identifier("retrieval_id", nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),  # 1 = best
    identifier("session_id", nullable=False),
    identifier("message_id"),  # what the search served; NULL = not told
    identifier("user_id", nullable=False),
    identifier("chunk_id", nullable=False),
    sa.Column("query", sa.Text, nullable=False),
    sa.Column("score", sa.Double, nullable=False),
    sa.Column("embedding_model", sa.Text, nullable=False),
    sa.PrimaryKeyConstraint("tenant_id", "retrieval_id", "rank"),
    sa.ForeignKeyConstraint(
        ["tenant_id", "session_id"], ["chat_sessions.tenant_id", "chat_sessions.session_id"]
    ),
    sa.Index("retrievals_of_session", "tenant_id", "session_id", "retrieval_id"),
    sa.Index("retrievals_of_chunk", "tenant_id", "chunk_id"),
)
