"""Spaces that are asked to move to another model. Knows no gRPC."""

from collections.abc import Callable
from typing import Final

from hub_server import spaces
from hub_server.caller import Caller
from hub_server.database import Connection, Database
from hub_server.embedding.models import Models
from hub_server.errors import HubError, Reason
from hub_server.knowledge.reembed_repository import ReembedRepository
from hub_server.knowledge.service import KIND
from hub_server.rows import Row

_EVERYBODY: Final = ""


class Reembeddings:
    """Moves of the spaces of a user, or of a whole tenant (``user_id`` empty), of a kind or all."""

    def __init__(self, database: Database, models: Models, wake: Callable[[], None]) -> None:
        """``wake`` tells the job of this process that a space is to be moved."""
        self._database = database
        self._models = models
        self._wake = wake

    async def ask(self, caller: Caller, user_id: str, kind: str | None, model: str) -> Row:
        """Have spaces moved to a model; return how far they are.

        Raises INVALID_FIELD for a model that the hub does not have, and NOT_FOUND.
        """
        async with self._database.transaction(caller) as connection:
            repository = await self._repository(connection, caller, user_id, kind)
            if model not in self._models.names:
                fault = f"must be one of: {', '.join(self._models.names)}"
                raise HubError.invalid("embedding_model", fault)
            await repository.ask(model)
            progress = await repository.progress()
        self._wake()
        return progress

    async def progress(self, caller: Caller, user_id: str, kind: str | None) -> Row:
        """Return how far the spaces are. Raises NOT_FOUND."""
        async with self._database.transaction(caller) as connection:
            return await (await self._repository(connection, caller, user_id, kind)).progress()

    async def cancel(self, caller: Caller, user_id: str, kind: str | None) -> Row:
        """Leave the spaces that are not there yet where they are. Raises NOT_FOUND."""
        async with self._database.transaction(caller) as connection:
            repository = await self._repository(connection, caller, user_id, kind)
            await repository.cancel()
            progress = await repository.progress()
        self._wake()
        return progress

    async def _repository(
        self, connection: Connection, caller: Caller, user_id: str, kind: str | None
    ) -> ReembedRepository:
        if user_id == _EVERYBODY:
            return ReembedRepository(connection, caller.tenant_id, None, kind)
        if await spaces.state(connection, caller.tenant_id, user_id, KIND) is None:
            raise HubError(Reason.REASON_NOT_FOUND, resource="user")
        return ReembedRepository(connection, caller.tenant_id, user_id, kind)
