"""From a presented credential to a ``Caller``: one indexed read, shared by calls that coincide.

Nothing is cached: a credential revoked, or a user or tenant disabled, is refused from the next
call on, in every process.
"""

import asyncio
import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from hub_client.v1.options_pb2 import Level, Scope
from hub_server.batching import Batcher
from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.errors import HubError, Reason
from hub_server.identity import scopes
from hub_server.identity.access_repository import AccessRepository
from hub_server.identity.secrets import Secret, is_well_formed
from hub_server.identity.system_repository import SystemRepository
from hub_server.rows import Row

LEVELS: Final = {
    "service_key": Level.LEVEL_ADMIN,  # bounded by its scopes
    "user_token": Level.LEVEL_USER,
    "operator": Level.LEVEL_OPERATOR,
}
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MOST_TOGETHER: Final = 256
_NOTE_SECONDS: Final = 60.0

log: structlog.stdlib.BoundLogger = structlog.get_logger("hub.authentication")


@dataclass(frozen=True, slots=True)
class _Asked:
    secret_hash: bytes
    act_as: str | None


class Authenticator:
    """Looks credentials up, many at a time."""

    def __init__(self, database: Database, most_waiting: int) -> None:
        """``most_waiting`` bounds the queue; beyond it calls are OVERLOADED."""
        self._database = database
        self._used: dict[str, dt.datetime] = {}
        self._batcher: Batcher[_Asked, Row | None] = Batcher(
            self._look_up, most_items=_MOST_TOGETHER, most_waiting=most_waiting, most_groups=2
        )

    async def __call__(self, authorization: str, act_as: str | None, deadline: float) -> Caller:
        """Return who presents this ``authorization`` metadata, or for whom he wants to act.

        Raises CREDENTIAL_INVALID; with ``act_as``, which needs a service key with scope ACT_AS,
        SCOPE_INSUFFICIENT, INVALID_FIELD, NOT_FOUND or USER_DISABLED.
        """
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer" or not is_well_formed(text):
            raise HubError(Reason.REASON_CREDENTIAL_INVALID)
        subject = act_as if act_as is not None and _UUID.fullmatch(act_as) else None
        row = await self._batcher.submit(_Asked(Secret.of(text).hash, subject))
        if row is None or row["kind"] not in LEVELS:
            raise HubError(Reason.REASON_CREDENTIAL_INVALID)
        caller = Caller(
            tenant_id=row["tenant_id"] or "",
            level=LEVELS[row["kind"]],
            credential_id=row["credential_id"],
            user_id=row["user_id"],
            deadline=deadline,
            scopes=None if row["scopes"] is None else scopes.expanded(tuple(row["scopes"])),
        )
        if caller.scopes is not None:
            self._used[caller.credential_id] = dt.datetime.now(dt.UTC)
        if act_as is None:
            return caller
        try:
            return _acting(caller, act_as, row)
        except HubError:
            await self.note_refusal(caller, "act-as")
            raise

    async def close(self) -> None:
        """Break off what is being looked up."""
        await self._batcher.close()

    async def note_refusal(self, caller: Caller, method: str) -> None:
        """Write down that the caller may not call the method; the refusal does not depend on it."""
        if not caller.tenant_id:
            return  # an operator's: no tenant's log is its place
        try:
            async with self._database.statement(caller) as connection:
                access = AccessRepository(connection, caller)
                await access.note("authz_fail", "method", method, done=False)
        except HubError as error:
            log.warning("refusal not noted", method=method, reason=str(error))

    async def note_used(self) -> None:
        """Write down now and then when service keys were used, until cancelled."""
        while True:
            await asyncio.sleep(_NOTE_SECONDS)
            await self.write_used()

    async def write_used(self) -> None:
        """Write down when service keys were used since the last time."""
        used, self._used = self._used, {}
        if not used:
            return
        try:
            async with self._database.system() as connection:
                await SystemRepository(connection).note_used(list(used), list(used.values()))
        except HubError as error:
            self._used = used | self._used
            log.warning("use of keys not noted", keys=len(used), reason=str(error))

    async def _look_up(self, asked: Sequence[_Asked]) -> Sequence[Row | None]:
        async with self._database.system() as connection:
            rows = await SystemRepository(connection).authenticate(
                [one.secret_hash for one in asked], [one.act_as for one in asked]
            )
        found = {row["place"]: row for row in rows}
        return [found.get(place) for place in range(1, len(asked) + 1)]


def _acting(caller: Caller, act_as: str, row: Row) -> Caller:
    """Return the caller with the rights of the user for whom a key acts, and no others."""
    if caller.scopes is None or Scope.SCOPE_ACT_AS not in caller.scopes:
        raise HubError(Reason.REASON_SCOPE_INSUFFICIENT, required="ACT_AS")
    if not _UUID.fullmatch(act_as):
        raise HubError.invalid("act-as", "must be a UUID")
    if row["subject_is_active"] is None:
        raise HubError(Reason.REASON_NOT_FOUND, resource="user")
    if not row["subject_is_active"]:
        raise HubError(Reason.REASON_USER_DISABLED)
    return caller.acting_as(act_as)
