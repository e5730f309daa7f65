"""Rules of the token ledger: what is set aside, and what came of it. Knows no gRPC.

An expired reservation holds its tokens until somebody of that user's lacks them, or reserves or
settles: only then is it worth the lock under which they are freed.
"""

import datetime as dt
from typing import Final

from hub_server.caller import Caller
from hub_server.chat.token_repository import TokenRepository
from hub_server.database import Database
from hub_server.errors import HubError, Reason
from hub_server.idempotency import Claims, Retry
from hub_server.ids import new_id
from hub_server.rows import Row, active_user, owned

_DEFAULT_TTL: Final = dt.timedelta(minutes=10)


class Tokens:
    """Reservations of users' tokens."""

    def __init__(self, database: Database) -> None:
        """Keep everything in the given database."""
        self._database = database

    async def reserve(
        self, caller: Caller, retry: Retry, user_id: str, tokens: int, ttl: dt.timedelta
    ) -> Row:
        """Set tokens aside; a ``ttl`` of nothing is ten minutes.

        Raises NOT_FOUND, USER_DISABLED, TOKEN_BUDGET or REQUEST_ID_REUSED.
        """
        async with self._database.transaction(caller) as connection:
            repository = TokenRepository(connection, caller.tenant_id)
            active_user(await repository.lock(user_id))
            claims = Claims(connection, caller.tenant_id, user_id)
            if (answer := await claims.claim(retry)) is not None:
                return answer
            await repository.release_expired(user_id)
            _check(await repository.budget(user_id), tokens)
            reservation = await repository.reserve(
                user_id, tokens=tokens, ttl=ttl or _DEFAULT_TTL, reservation_id=new_id()
            )
            await claims.keep(retry, reservation)
            return reservation

    async def settle(self, caller: Caller, reservation_id: str, used: int | None) -> Row:
        """Close a reservation; ``used`` None = what its messages took.

        Raises NOT_FOUND, USER_DISABLED, INVALID_FIELD, TOKEN_BUDGET or RESERVATION_SETTLED.
        """
        async with self._database.transaction(caller) as connection:
            repository = TokenRepository(connection, caller.tenant_id)
            named = await repository.owner(reservation_id)
            user_id = owned(caller, named, "reservation")["user_id"]
            active_user(await repository.lock(user_id))
            await repository.release_expired(user_id)
            reservation = await repository.reservation(reservation_id)
            if reservation["settled_at"] is not None:
                if used not in (None, reservation["used_tokens"]):
                    raise HubError(Reason.REASON_RESERVATION_SETTLED)
                return reservation
            taken = reservation["message_tokens"]
            if used is not None and used < taken:
                raise HubError.invalid(
                    "used_tokens", f"must be at least {taken}, which its messages took"
                )
            budget = await repository.budget(user_id)
            more = (taken if used is None else used) - taken
            _check(budget, max(more - reservation["held_tokens"], 0))
            return await repository.settle(reservation_id, taken + more, budget["start"])

    async def release_expired(self, caller: Caller, user_id: str) -> None:
        """Free what the expired reservations of a user hold."""
        async with self._database.transaction(caller) as connection:
            repository = TokenRepository(connection, caller.tenant_id)
            await repository.lock(user_id)
            await repository.release_expired(user_id)


def over_budget(budget: Row) -> HubError:
    """Return the refusal of what a row of ``token_repository.BUDGET`` has no room for."""
    return HubError(
        Reason.REASON_TOKEN_BUDGET,
        retry_after=budget["renewal"] and budget["renewal"].total_seconds(),
        limit=str(budget["max_tokens"]),
        tokens_left=str(max(budget["tokens_left"], 0)),
        subject="max_tokens",
    )


def _check(budget: Row, tokens: int) -> None:
    """Refuse more tokens than are left. Raises TOKEN_BUDGET."""
    if budget["tokens_left"] is not None and tokens > max(budget["tokens_left"], 0):
        raise over_budget(budget)
