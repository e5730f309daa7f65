"""SQL of the token ledger. Returns rows; never commits.

What a user has used and reserved changes under the lock of his row of user_usage alone, and so do
his reservations. Since a statement sees other rows as they were when it began, before it waited
for that lock, they are read by the statement after the one that took it.
"""

from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.database import HotStatement
from hub_server.rows import Row

# What is left of a user's budget, g = user_usage: NULL = no limit. A period that is over counts as
# not begun; nothing is written for that. One that began while the statement waited for a lock is
# the user's from then on: periods never go back.
BUDGET: Final = """
           g.user_id, period.start, c.max_tokens, g.reserved_tokens,
           c.max_tokens - g.reserved_tokens
               - CASE WHEN c.budget_period = 'lifetime' THEN g.total_tokens_used
                      WHEN g.period_start >= period.start THEN g.period_tokens_used
                      ELSE 0 END AS tokens_left,
           CASE WHEN c.budget_period <> 'lifetime'
                THEN (period.start AT TIME ZONE c.timezone + ('1 ' || c.budget_period)::interval)
                         AT TIME ZONE c.timezone - now() END AS renewal
    FROM user_usage g
    JOIN user_configs c ON c.tenant_id = g.tenant_id AND c.user_id = g.user_id
    CROSS JOIN LATERAL (SELECT hub_period_start(c.budget_period, c.timezone) AS start) period"""
_RESERVATION: Final = """
    reservation_id::text, user_id::text, tokens, held_tokens, message_tokens, used_tokens,
    expires_at, settled_at, created_at"""

_LOCK: Final = HotStatement("""
SELECT u.user_id::text, u.is_active AS user_is_active
FROM user_usage g
JOIN users u ON u.tenant_id = g.tenant_id AND u.user_id = g.user_id
WHERE g.tenant_id = :tenant_id ::uuid AND g.user_id = :user_id ::uuid AND u.deleted_at IS NULL
FOR NO KEY UPDATE OF g
""")
_OWNER: Final = HotStatement("""
SELECT u.user_id::text, u.is_active AS user_is_active
FROM token_reservations r
JOIN users u ON u.tenant_id = r.tenant_id AND u.user_id = r.user_id
WHERE r.tenant_id = :tenant_id ::uuid AND r.reservation_id = :reservation_id ::uuid
  AND u.deleted_at IS NULL
""")
_RELEASE: Final = HotStatement("""
WITH expired AS (
    SELECT reservation_id, held_tokens FROM token_reservations
    WHERE tenant_id = :tenant_id ::uuid AND user_id = :user_id ::uuid
      AND expires_at <= clock_timestamp() AND held_tokens > 0
),
closed AS (
    UPDATE token_reservations r SET held_tokens = 0, updated_at = clock_timestamp()
    FROM expired
    WHERE r.tenant_id = :tenant_id ::uuid AND r.reservation_id = expired.reservation_id
)
UPDATE user_usage
SET reserved_tokens = reserved_tokens - (SELECT coalesce(sum(held_tokens), 0) FROM expired)
WHERE tenant_id = :tenant_id ::uuid AND user_id = :user_id ::uuid
  AND EXISTS (SELECT FROM expired)
RETURNING reserved_tokens
""")
_BUDGET: Final = HotStatement(
    """
SELECT {budget}
WHERE g.tenant_id = :tenant_id ::uuid AND g.user_id = :user_id ::uuid
""",
    budget=BUDGET,
)
_RESERVE: Final = HotStatement(
    """
WITH counted AS (
    UPDATE user_usage
    SET reserved_tokens = reserved_tokens + :tokens ::bigint, updated_at = clock_timestamp()
    WHERE tenant_id = :tenant_id ::uuid AND user_id = :user_id ::uuid
)
INSERT INTO token_reservations
    (tenant_id, reservation_id, user_id, tokens, held_tokens, expires_at, created_at)
VALUES (:tenant_id ::uuid, :reservation_id ::uuid, :user_id ::uuid, :tokens ::bigint,
        :tokens ::bigint, clock_timestamp() + :ttl ::interval, clock_timestamp())
RETURNING {reservation}
""",
    reservation=_RESERVATION,
)
_GET: Final = HotStatement(
    """
SELECT {reservation}
FROM token_reservations
WHERE tenant_id = :tenant_id ::uuid AND reservation_id = :reservation_id ::uuid
""",
    reservation=_RESERVATION,
)
_SETTLE: Final = HotStatement(
    """
WITH counted AS (
    UPDATE user_usage g
    SET total_tokens_used = g.total_tokens_used + (:used ::bigint - r.used_tokens),
        period_tokens_used = :used ::bigint - r.used_tokens
            + CASE WHEN coalesce(g.period_start, '-infinity') < :start ::timestamptz THEN 0
                   ELSE g.period_tokens_used END,
        period_start = greatest(g.period_start, :start ::timestamptz),
        reserved_tokens = g.reserved_tokens - r.held_tokens, updated_at = clock_timestamp()
    FROM token_reservations r
    WHERE r.tenant_id = :tenant_id ::uuid AND r.reservation_id = :reservation_id ::uuid
      AND g.tenant_id = r.tenant_id AND g.user_id = r.user_id
)
UPDATE token_reservations
SET held_tokens = 0, used_tokens = :used ::bigint, settled_at = clock_timestamp(),
    updated_at = clock_timestamp()
WHERE tenant_id = :tenant_id ::uuid AND reservation_id = :reservation_id ::uuid
RETURNING {reservation}
""",
    reservation=_RESERVATION,
)


class TokenRepository:
    """What users of one tenant have used and reserved."""

    def __init__(self, connection: AsyncConnection, tenant_id: str) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._tenant_id = tenant_id

    async def lock(self, user_id: str) -> Row | None:
        """Hold what a user has used; return him with ``user_is_active``, or None."""
        return await self._first(_LOCK, user_id=user_id)

    async def release_expired(self, user_id: str) -> bool:
        """Free what expired reservations of a locked user hold; tell whether any did."""
        return await self._first(_RELEASE, user_id=user_id) is not None

    async def budget(self, user_id: str) -> Row:
        """Return what is left for a locked user: ``tokens_left``, ``max_tokens``, ``renewal``."""
        return await self._one(_BUDGET, user_id=user_id)

    async def reserve(self, user_id: str, **values: Any) -> Row:
        """Set ``tokens`` of a locked user aside for ``ttl``; return the reservation."""
        return await self._one(_RESERVE, user_id=user_id, **values)

    async def owner(self, reservation_id: str) -> Row | None:
        """Return whose a reservation is, with ``user_is_active``, or None."""
        return await self._first(_OWNER, reservation_id=reservation_id)

    async def reservation(self, reservation_id: str) -> Row:
        """Return a reservation of a locked user."""
        return await self._one(_GET, reservation_id=reservation_id)

    async def settle(self, reservation_id: str, used: int, start: Any) -> Row:
        """Close a reservation of a locked user; ``start`` is that of his period."""
        return await self._one(_SETTLE, reservation_id=reservation_id, used=used, start=start)

    async def _one(self, statement: HotStatement, **values: Any) -> Row:
        rows = await statement.rows(self._connection, {"tenant_id": self._tenant_id, **values})
        return rows[0]

    async def _first(self, statement: HotStatement, **values: Any) -> Row | None:
        rows = await statement.rows(self._connection, {"tenant_id": self._tenant_id, **values})
        return rows[0] if rows else None
