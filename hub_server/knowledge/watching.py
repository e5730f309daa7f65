"""A watched document: as it is, and with each step of its processing. Knows no gRPC."""

from collections.abc import Sequence

from hub_server.caller import Caller
from hub_server.knowledge.service import KnowledgeService
from hub_server.rows import Row
from hub_server.wakeups import Subscription, Wakeups


class DocumentFeed:
    """What one reader of a document has seen."""

    def __init__(
        self,
        knowledge: KnowledgeService,
        subscription: Subscription,
        document_id: str,
        heartbeat: float,
    ) -> None:
        """``heartbeat`` is in seconds: after so long it looks again, whatever it was told."""
        self._knowledge = knowledge
        self._subscription = subscription
        self._document_id = document_id
        self._heartbeat = heartbeat
        self._seen: Row | None = None
        self._read: Row | None = None
        self.is_over = False

    async def read(self, caller: Caller) -> Sequence[Row]:
        """Return the document if it changed. Raises NOT_FOUND or USER_DISABLED."""
        self._subscription.looks()
        document = await self._knowledge.get_document(caller, self._document_id)
        self._read = document
        is_new = self._seen is None or dict(document) != dict(self._seen)
        return [document] if is_new else []

    def sent(self, _: int) -> None:
        """Note that what was read last was sent, if it was anything new."""
        self._seen = self._read
        self.is_over = self._seen is not None and self._seen["status"] != "processing"

    async def wait(self) -> None:
        """Return when there may be something new."""
        await self._subscription.wait(self._heartbeat)

    def close(self) -> None:
        """Wait no longer."""
        self._subscription.close()


class DocumentWatches:
    """Makes the feeds of a process."""

    def __init__(self, knowledge: KnowledgeService, wakeups: Wakeups, heartbeat: float) -> None:
        """``heartbeat`` is in seconds."""
        self._knowledge = knowledge
        self._wakeups = wakeups
        self._heartbeat = heartbeat

    def feed(self, document_id: str) -> DocumentFeed:
        """Return what follows a document until it is processed."""
        subscription = self._wakeups.subscribe(document_id)
        return DocumentFeed(self._knowledge, subscription, document_id, self._heartbeat)
