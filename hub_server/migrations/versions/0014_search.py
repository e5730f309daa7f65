"""Searches that are filtered by metadata, and retrievals that name the message they served.

Row security lets no index be used with an operator that could tell of other rows, and those of
JSON count among them: the filter of a search would read every chunk of its user. So it asks a
function of the owner, whom row security lets read, and that names the tenant itself.
"""

from alembic import context, op

revision = "0014"
down_revision = "0013"

# The document's metadata by itself meets `of_documents`, or the chunk's own `of_chunks`: see
# hub_server.knowledge.filters. Indexes cannot tell `exists` and ranges; that a chunk has one of
# the names they can, and nearly always it has none.
_CHANGES = """
ALTER TABLE retrievals ADD message_id uuid;
CREATE INDEX documents_metadata ON documents USING gin (metadata jsonb_path_ops);
CREATE INDEX chunks_metadata ON chunks USING gin (metadata);
CREATE POLICY owner_filters ON documents FOR SELECT TO CURRENT_USER USING (true);
CREATE POLICY owner_filters ON chunks FOR SELECT TO CURRENT_USER USING (true);

CREATE FUNCTION hub_filtered_chunks(
    of_user uuid, merged jsonpath, of_documents jsonpath, of_chunks jsonpath, names text[],
    most integer)
RETURNS SETOF uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    (SELECT c.chunk_id
     FROM documents d
     JOIN chunks c ON c.tenant_id = d.tenant_id AND c.document_id = d.document_id
         AND c.revision = d.revision
     WHERE d.tenant_id = hub_tenant() AND d.user_id = of_user AND d.deleted_at IS NULL
       AND d.metadata @@ of_documents AND (d.metadata || c.metadata) @@ merged
     LIMIT most)
    UNION
    (SELECT c.chunk_id
     FROM chunks c
     JOIN documents d ON d.tenant_id = c.tenant_id AND d.document_id = c.document_id
         AND d.revision = c.revision
     WHERE c.tenant_id = hub_tenant() AND c.user_id = of_user AND d.deleted_at IS NULL
       AND c.metadata ?| names AND c.metadata @@ of_chunks
       AND (d.metadata || c.metadata) @@ merged
     LIMIT most)
    LIMIT most
$$;
"""
_FUNCTION = "hub_filtered_chunks(uuid, jsonpath, jsonpath, jsonpath, text[], integer)"


def upgrade() -> None:
    """Change the tables, and let the server's role call the function."""
    server_role = context.config.attributes["server_role"]
    op.execute(_CHANGES)
    op.execute(f"REVOKE ALL ON FUNCTION {_FUNCTION} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {_FUNCTION} TO {server_role}")
