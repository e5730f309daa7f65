"""The embedding of messages, in tenants whose messages are searched by their meaning, too.

What is to be embedded stands in Postgres: a message without a vector. Appends tell this job whose
messages to look at, and so do searches that see such messages, which makes up for a job that died,
failed, or had too many users waiting. Two hubs that embed the same messages do no harm: the second
finds them embedded.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from hub_server.caller import Caller
from hub_server.chat.search_repository import SearchRepository
from hub_server.database import Database
from hub_server.embedding import EmbeddingError, TextRefusedError
from hub_server.embedding.models import Models
from hub_server.logs import causes
from hub_server.rows import Row
from hub_server.workers import Workers

_MOST_WAITING: Final = 10_000
_BATCH: Final = 16  # half a second of MiniLM, as in ingestion
_PAUSE_SECONDS: Final = 2.0  # before a server of embeddings that is away is asked again

log: structlog.stdlib.BoundLogger = structlog.get_logger("hub.message_embedding")


class MessageEmbedding:
    """The embedding of messages of one process."""

    def __init__(self, database: Database, models: Models) -> None:
        """Work on the messages of a database with the models that searches use."""
        self._database = database
        self._models = models
        # A thread that yields to those that embed queries.
        self._threads = Workers("messages", threads=1, most_waiting=1, yields=True)
        self._waiting: dict[tuple[str, str], None] = {}  # in order of arrival
        self._has_work = asyncio.Event()

    def wake(self, tenant_id: str, user_id: str) -> None:
        """Look at the messages of a user soon; when too many users wait, his next search asks."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting[tenant_id, user_id] = None
            self._has_work.set()

    async def run(self) -> None:
        """Work until cancelled, a batch of each user in turn."""
        try:
            while True:
                await self._has_work.wait()
                tenant_id, user_id = user = next(iter(self._waiting))
                del self._waiting[user]
                if await self._work(tenant_id, user_id):
                    self.wake(tenant_id, user_id)
                if not self._waiting:
                    self._has_work.clear()
        finally:
            self._threads.close()

    async def _work(self, tenant_id: str, user_id: str) -> bool:
        """Embed a batch; tell whether there may be more. Whatever its fault, the others go on."""
        try:
            messages = await self._to_embed(tenant_id, user_id)
            embedded = await self._embed(tenant_id, user_id, messages) if messages else 0
        except Exception as error:  # noqa: BLE001 - one user's fault must not end the others
            log.warning("messages not embedded", tenant_id=tenant_id, cause=causes(error))
            return await _may_pass(error)
        # None are where the space has moved meanwhile.
        return len(messages) == _BATCH or embedded < len(messages)

    async def _to_embed(self, tenant_id: str, user_id: str) -> Sequence[Row]:
        async with self._database.statement(Caller.hub(tenant_id)) as connection:
            return await SearchRepository(connection, tenant_id, user_id).to_embed(_BATCH)

    async def _embed(self, tenant_id: str, user_id: str, messages: Sequence[Row]) -> int:
        space_model = messages[0]["space_model"]
        embedder = await self._models.get(self._models.in_use(space_model))
        texts = [message["content"] for message in messages]
        vectors = await self._threads.run(lambda: embedder.embed(texts))
        by_id = {
            message["message_id"]: vector.astype("<f4").tobytes()
            for message, vector in zip(messages, vectors, strict=True)
        }
        async with self._database.statement(Caller.hub(tenant_id)) as connection:
            repository = SearchRepository(connection, tenant_id, user_id)
            return await repository.embed(by_id, embedder.model, space_model)


async def _may_pass(error: Exception) -> bool:
    """Tell, after a pause, whether the same work is worth another try."""
    if not isinstance(error, EmbeddingError) or isinstance(error, TextRefusedError):
        return False
    await asyncio.sleep(error.retry_after or _PAUSE_SECONDS)  # nobody else's could be embedded
    return True
