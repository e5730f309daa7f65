"""Of which session and message callers tell that they are behind something."""

from typing import Final

from hub_server.database import HotStatement

# Whether a session is the user's, and has a message: one of its own, or one that it shares as a
# fork. NULL = no message is asked for.
SERVED: Final = HotStatement("""
WITH RECURSIVE lineage (session_id, parent_session_id, after, last) AS (
    SELECT s.session_id, s.parent_session_id, s.parent_seq, s.last_seq
    FROM chat_sessions s
    WHERE s.tenant_id = :tenant_id ::uuid AND s.session_id = :session_id ::uuid
      AND s.user_id = :user_id ::uuid AND s.deleted_at IS NULL
    UNION ALL
    SELECT p.session_id, p.parent_session_id, p.parent_seq, least(l.after, l.last)
    FROM lineage l
    JOIN chat_sessions p
        ON p.tenant_id = :tenant_id ::uuid AND p.session_id = l.parent_session_id
)
SELECT EXISTS (SELECT FROM lineage) AS has_session,
       :message_id ::uuid IS NULL OR EXISTS (
           SELECT FROM chat_messages m JOIN lineage l USING (session_id)
           WHERE m.tenant_id = :tenant_id ::uuid AND m.message_id = :message_id ::uuid
             AND m.seq <= l.last) AS has_message
""")
