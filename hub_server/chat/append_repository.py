"""The one statement of every append. Returns rows; never commits."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.chat.token_repository import BUDGET
from hub_server.database import HotStatement
from hub_server.rows import Row
from hub_server.wakeups import CHANNEL

# Carries out a group of calls, each of which appends one message or a batch, each for itself, in
# one statement (DESIGN section 5). In order:
#
# session      locks the sessions by id, so that no two groups can wait for each other in a circle,
#              and reads each as the last group left it;
# budget       locks what their users have used, by id, and after all of the sessions (an array is
#              made before anything is looked up by it) for the same reason;
# reservation  reads what is set aside for calls; it changes under its user's lock alone, and holds
#              its tokens, though it may have expired, until somebody frees them under that lock;
# judged       says of each call what hinders it, or that it repeats an earlier one; what expects a
#              seq that an earlier call of the group may yet bring about comes out as RACED; of
#              several that name one reservation the first is judged and the others are QUEUED;
# weighed      lets as many calls in, in order of arrival, as their users have tokens left for; what
#              needs more than is then left is refused, and what might fit since another was refused
#              comes out as RACED;
# claimed      spends the request ids; one that a concurrent group has just spent is not returned,
#              and its call comes out as RACED, to be judged again by the next statement;
# accepted     numbers what is left, per session in the order of arrival;
# placed       takes the seqs of what searches will find, from the spaces of their users, by id; it
#              is the last lock, held by nobody who waits for another one.
#
# Answers a row for each call: where its messages begin, and when. All else is in the call itself;
# only of a repeated one (whose fingerprint is the same) it is looked up what the hub made then.
_APPEND: Final = HotStatement(
    """
WITH call AS (
    SELECT * FROM unnest(
        :session_id ::uuid[], :user_id ::uuid[], :request_id ::text[], :fingerprint ::bytea[],
        :expected_seq ::bigint[], :reservation_id ::uuid[], :first_id ::uuid[],
        :messages ::int[], :tokens ::bigint[], :uses_tool ::bool[]
    ) WITH ORDINALITY AS call (
        session_id, caller_id, request_id, fingerprint, expected_seq, reservation_id, first_id,
        messages, tokens, uses_tool, place)
),
setting AS (
    SELECT message_search FROM tenants WHERE tenant_id = :tenant_id ::uuid
),
message AS (
    SELECT * FROM unnest(
        :place ::bigint[], :position ::int[], :message_id ::uuid[], :role ::text[],
        :message_type ::text[], :content ::text[], :token_count ::int[], :model_name ::text[],
        :model_response_time ::int[], :metadata ::jsonb[]
    ) AS message (
        place, position, message_id, role, message_type, content, token_count, model_name,
        model_response_time, metadata)
),
session AS (
    SELECT s.session_id, s.user_id, s.last_seq, s.is_active, u.is_active AS user_is_active,
           c.enable_chat_history, c.enable_tool
    FROM chat_sessions s
    JOIN users u ON u.tenant_id = s.tenant_id AND u.user_id = s.user_id
    JOIN user_configs c ON c.tenant_id = s.tenant_id AND c.user_id = s.user_id
    WHERE s.tenant_id = :tenant_id ::uuid AND s.session_id = ANY (:session_id ::uuid[])
      AND s.deleted_at IS NULL AND u.deleted_at IS NULL
    ORDER BY s.session_id
    FOR NO KEY UPDATE OF s
),
budget AS (
    SELECT {budget}
    WHERE g.tenant_id = :tenant_id ::uuid AND g.user_id = ANY (ARRAY(SELECT user_id FROM session))
    ORDER BY g.user_id
    FOR NO KEY UPDATE OF g
),
reservation AS (
    SELECT r.reservation_id, r.user_id, r.settled_at, r.held_tokens
    FROM token_reservations r
    WHERE r.tenant_id = :tenant_id ::uuid AND r.reservation_id = ANY (:reservation_id ::uuid[])
      AND r.user_id = ANY (ARRAY(SELECT user_id FROM budget))
    FOR NO KEY UPDATE OF r
),
judged AS (
    SELECT call.*, session.user_id, session.last_seq, session.enable_chat_history,
           request.resource_id AS repeated_id, budget.max_tokens, budget.tokens_left,
           budget.reserved_tokens, budget.renewal,
           least(call.tokens, coalesce(reservation.held_tokens, 0)) AS drawn,
           CASE
               WHEN session.session_id IS NULL OR call.caller_id <> session.user_id
                   THEN 'NOT_FOUND'
               WHEN NOT session.user_is_active THEN 'USER_DISABLED'
               WHEN request.fingerprint = call.fingerprint THEN 'REPEATED'
               WHEN request.fingerprint IS NOT NULL THEN 'REUSED'
               WHEN NOT session.is_active THEN 'ENDED'
               WHEN call.uses_tool AND NOT session.enable_tool THEN 'NO_TOOL'
               WHEN call.reservation_id IS NOT NULL
                    AND reservation.user_id IS DISTINCT FROM session.user_id
                   THEN 'NO_RESERVATION'
               WHEN reservation.settled_at IS NOT NULL THEN 'SETTLED'
               WHEN call.request_id IS NOT NULL AND row_number() OVER (
                        PARTITION BY session.user_id, call.request_id ORDER BY call.place) > 1
                   THEN 'RACED'
               WHEN call.reservation_id IS NOT NULL AND row_number() OVER (
                        PARTITION BY session.user_id, call.reservation_id
                        ORDER BY call.place) > 1
                   THEN 'QUEUED'
               WHEN call.expected_seq < session.last_seq THEN 'STALE'
               WHEN call.expected_seq IS NOT NULL AND row_number() OVER (
                        PARTITION BY call.session_id ORDER BY call.place) > 1
                   THEN 'RACED'
               WHEN call.expected_seq > session.last_seq THEN 'STALE'
           END AS hindrance
    FROM call
    LEFT JOIN session ON session.session_id = call.session_id
    LEFT JOIN budget ON budget.user_id = session.user_id
    LEFT JOIN reservation ON reservation.reservation_id = call.reservation_id
    LEFT JOIN LATERAL (
        SELECT r.fingerprint, r.resource_id FROM request_ids r
        WHERE r.tenant_id = :tenant_id ::uuid AND r.user_id = session.user_id
          AND r.request_id = call.request_id AND r.created_at >= now() - :kept ::interval
        LIMIT 1  -- and so a look-up for each call, whatever Postgres believes of the table's size
    ) request ON true
),
summed AS (
    SELECT judged.*, tokens - drawn AS needed,
           sum(tokens - drawn) FILTER (WHERE hindrance IS NULL)
               OVER (PARTITION BY user_id ORDER BY place) AS needed_to_here
    FROM judged
),
weighed AS (
    SELECT summed.*,
           CASE
               WHEN hindrance IS NOT NULL THEN hindrance
               WHEN tokens_left IS NULL OR needed = 0 OR needed_to_here <= tokens_left
                   THEN 'ACCEPTED'
               WHEN needed > tokens_left - coalesce(
                        max(needed_to_here) FILTER (WHERE needed_to_here <= tokens_left)
                            OVER (PARTITION BY user_id), 0)
                   THEN 'NO_BUDGET'
               ELSE 'RACED'
           END AS outcome
    FROM summed
),
claimed AS (
    INSERT INTO request_ids AS known
        (tenant_id, user_id, request_id, fingerprint, resource_id)
    SELECT :tenant_id ::uuid, user_id, request_id, fingerprint, first_id
    FROM weighed WHERE outcome = 'ACCEPTED' AND request_id IS NOT NULL
    ON CONFLICT (tenant_id, user_id, request_id) DO UPDATE
        SET fingerprint = excluded.fingerprint, resource_id = excluded.resource_id,
            answer = NULL, created_at = now()
        WHERE known.created_at < now() - :kept ::interval
    RETURNING resource_id
),
accepted AS (
    SELECT weighed.*, clock_timestamp() AS moment,
           last_seq + sum(messages) OVER (PARTITION BY session_id ORDER BY place) - messages
               AS seq_before,
           sum(messages) OVER (PARTITION BY user_id ORDER BY place DESC) AS users_from_here,
           enable_chat_history AND (SELECT message_search FROM setting) <> 'off' AS is_found
    FROM weighed
    WHERE outcome = 'ACCEPTED'
      AND (request_id IS NULL OR first_id IN (SELECT resource_id FROM claimed))
),
placed AS (
    INSERT INTO spaces AS known (tenant_id, user_id, kind, last_seq)
    SELECT :tenant_id ::uuid, user_id, 'messages', sum(messages)
    FROM accepted WHERE is_found GROUP BY user_id ORDER BY user_id
    ON CONFLICT (tenant_id, user_id, kind) DO UPDATE
        SET last_seq = known.last_seq + excluded.last_seq, updated_at = clock_timestamp()
    RETURNING user_id, last_seq
),
written AS (
    INSERT INTO chat_messages
        (tenant_id, session_id, seq, message_id, role, message_type, content, token_count,
         model_name, model_response_time, metadata, created_at, user_id, space_seq)
    SELECT :tenant_id ::uuid, accepted.session_id, accepted.seq_before + message.position,
           message.message_id, message.role, message.message_type,
           CASE WHEN accepted.enable_chat_history THEN message.content END, message.token_count,
           message.model_name, message.model_response_time,
           CASE WHEN accepted.enable_chat_history THEN message.metadata END, accepted.moment,
           placed.user_id, placed.last_seq - accepted.users_from_here + message.position
    FROM accepted
    JOIN message ON message.place = accepted.place
    LEFT JOIN placed ON placed.user_id = accepted.user_id
),
advanced AS (
    UPDATE chat_sessions s
    SET last_seq = s.last_seq + added.messages,
        total_tokens_used = s.total_tokens_used + added.tokens,
        last_message_at = clock_timestamp(), updated_at = clock_timestamp()
    FROM (SELECT session_id, sum(messages) AS messages, sum(tokens) AS tokens
          FROM accepted GROUP BY session_id) added
    WHERE s.tenant_id = :tenant_id ::uuid AND s.session_id = added.session_id
    RETURNING s.session_id
),
used AS (
    UPDATE user_usage g
    SET total_tokens_used = g.total_tokens_used + added.tokens,
        period_tokens_used = added.tokens
            + CASE WHEN coalesce(g.period_start, '-infinity') < added.start THEN 0
                   ELSE g.period_tokens_used END,
        period_start = greatest(g.period_start, added.start),
        reserved_tokens = g.reserved_tokens - added.drawn,
        updated_at = clock_timestamp()
    FROM (SELECT accepted.user_id, budget.start, sum(accepted.tokens) AS tokens,
                 sum(accepted.drawn) AS drawn
          FROM accepted JOIN budget ON budget.user_id = accepted.user_id
          GROUP BY accepted.user_id, budget.start) added
    WHERE g.tenant_id = :tenant_id ::uuid AND g.user_id = added.user_id AND added.tokens > 0
),
drawn AS (
    UPDATE token_reservations r
    SET held_tokens = r.held_tokens - accepted.drawn,
        message_tokens = r.message_tokens + accepted.tokens,
        used_tokens = r.used_tokens + accepted.tokens, updated_at = clock_timestamp()
    FROM accepted
    WHERE r.tenant_id = :tenant_id ::uuid AND r.reservation_id = accepted.reservation_id
),
repeated AS (
    SELECT weighed.place, min(stored.seq) AS seq, min(stored.created_at) AS created_at,
           array_agg(stored.message_id::text ORDER BY stored.seq) AS message_ids,
           array_agg(stored.token_count ORDER BY stored.seq) AS token_counts,
           array_agg(stored.content IS NOT NULL ORDER BY stored.seq) AS are_kept,
           array_agg(stored.redacted_at ORDER BY stored.seq) AS redacted_at
    FROM weighed
    JOIN chat_messages start
        ON start.tenant_id = :tenant_id ::uuid AND start.message_id = weighed.repeated_id
    JOIN chat_messages stored
        ON stored.tenant_id = :tenant_id ::uuid AND stored.session_id = start.session_id
        AND stored.seq >= start.seq AND stored.seq < start.seq + weighed.messages
    WHERE weighed.outcome = 'REPEATED'
    GROUP BY weighed.place
)
SELECT CASE WHEN weighed.outcome = 'ACCEPTED' AND accepted.place IS NULL THEN 'RACED'
            ELSE weighed.outcome END AS outcome,
       weighed.max_tokens, weighed.tokens_left, weighed.renewal, weighed.reserved_tokens,
       weighed.last_seq,
       weighed.user_id::text AS user_id, weighed.enable_chat_history,
       (SELECT message_search FROM setting) AS message_search,
       coalesce(accepted.seq_before + 1, repeated.seq)::bigint AS seq,
       coalesce(accepted.moment, repeated.created_at) AS created_at,
       repeated.message_ids, repeated.token_counts, repeated.are_kept, repeated.redacted_at,
       (SELECT pg_notify('{channel}', string_agg(session_id::text, ' '))
        FROM advanced HAVING count(*) > 0) AS told
FROM weighed
LEFT JOIN accepted ON accepted.place = weighed.place
LEFT JOIN repeated ON repeated.place = weighed.place
ORDER BY weighed.place
""",
    budget=BUDGET,
    channel=CHANNEL,
)


class AppendRepository:
    """Appends to the sessions of one tenant."""

    def __init__(self, connection: AsyncConnection, tenant_id: str) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._tenant_id = tenant_id

    async def append(self, columns: Mapping[str, Sequence[Any]], kept: Any) -> Sequence[Row]:
        """Carry out a group of calls given as columns; return a row for each, in order."""
        parameters = {**columns, "tenant_id": self._tenant_id, "kept": kept}
        return await _APPEND.rows(self._connection, parameters)
