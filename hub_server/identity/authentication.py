"""From a presented credential to a ``Caller``: one indexed read, shared by calls that coincide.

Nothing is cached: a credential revoked, or a user or tenant disabled, is refused from the next
call on, in every process.
"""

from collections.abc import Sequence
from typing import Final

from hub_client.v1.options_pb2 import Level
from hub_server.batching import Batcher
from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.errors import HubError, Reason
from hub_server.identity.repository import SystemRepository
from hub_server.identity.secrets import SERVICE_KEY, USER_TOKEN, Secret
from hub_server.rows import Row

LEVELS: Final = {"service_key": Level.LEVEL_ADMIN, "user_token": Level.LEVEL_USER}
_MOST_TOGETHER: Final = 256


class Authenticator:
    """Looks credentials up, many at a time."""

    def __init__(self, database: Database, most_waiting: int) -> None:
        """``most_waiting`` bounds the queue; beyond it calls are OVERLOADED."""
        self._database = database
        self._batcher: Batcher[bytes, Row | None] = Batcher(
            self._look_up, most_items=_MOST_TOGETHER, most_waiting=most_waiting, most_groups=2
        )

    async def __call__(self, authorization: str, deadline: float) -> Caller:
        """Return who presents this ``authorization`` metadata. Raises CREDENTIAL_INVALID."""
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer" or not text.startswith((SERVICE_KEY, USER_TOKEN)):
            raise HubError(Reason.REASON_CREDENTIAL_INVALID)
        row = await self._batcher.submit(Secret.of(text).hash)
        if row is None:
            raise HubError(Reason.REASON_CREDENTIAL_INVALID)
        level = LEVELS[row["kind"]]
        return Caller(row["tenant_id"], level, row["credential_id"], row["user_id"], deadline)

    async def close(self) -> None:
        """Break off what is being looked up."""
        await self._batcher.close()

    async def _look_up(self, hashes: Sequence[bytes]) -> Sequence[Row | None]:
        async with self._database.system() as connection:
            rows = await SystemRepository(connection).authenticate(hashes)
        found = {bytes(row["secret_hash"]): row for row in rows}
        return [found.get(hashed) for hashed in hashes]
