"""Wakes whoever waits for a change of a row, in whichever process it was made.

One connection per process listens; whoever waits costs none. A wake-up says no more than "look
again", so none has to be kept, and a lost one only costs the time until the next look.
"""

import asyncio
from contextlib import suppress
from typing import Final

import structlog

from hub_server.database import Database
from hub_server.errors import HubError

# Postgres tells on it, when a transaction commits, the ids of the rows it changed, with spaces
# between.
CHANNEL: Final = "hub_changes"
_POLL_SECONDS: Final = 1.0

log: structlog.stdlib.BoundLogger = structlog.get_logger("hub.wakeups")


class Subscription:
    """One who waits for changes of one row."""

    def __init__(self, wakeups: "Wakeups", key: str) -> None:
        """Wait for changes of the row ``key``, from the first look on; made by ``Wakeups``."""
        self._wakeups = wakeups
        self._key = key
        self._is_closed = False
        self.changed = asyncio.Event()

    def looks(self) -> None:
        """To be called before each look at the row: later changes wake, earlier ones are seen."""
        if not self._is_closed:
            self._wakeups.remember(self._key, self)
        self.changed.clear()

    async def wait(self, seconds: float) -> bool:
        """Return once the row changed, or after so long; tell whether it was a change.

        Without a listener the wait is short: looking again and again is what remains.
        """
        most = seconds if self._wakeups.is_listening else min(seconds, _POLL_SECONDS)
        with suppress(TimeoutError):
            await asyncio.wait_for(self.changed.wait(), most)
        return self.changed.is_set()

    def close(self) -> None:
        """Wait no longer, whoever may still look."""
        self._is_closed = True
        self._wakeups.forget(self._key, self)


class Wakeups:
    """The listener of a process, and those who wait for what it hears."""

    def __init__(self, database: Database) -> None:
        """Listen to what the given database tells."""
        self._database = database
        self._waiting: dict[str, set[Subscription]] = {}
        self.is_listening = False

    def subscribe(self, key: str) -> Subscription:
        """Return one who waits for changes of a row."""
        return Subscription(self, key)

    def remember(self, key: str, subscription: Subscription) -> None:
        """Wake this one from now on."""
        self._waiting.setdefault(key, set()).add(subscription)

    def forget(self, key: str, subscription: Subscription) -> None:
        """Wake this one no longer."""
        waiting = self._waiting.get(key, set())
        waiting.discard(subscription)
        if not waiting:
            self._waiting.pop(key, None)

    async def run(self) -> None:
        """Listen until cancelled; when the connection is lost, listen anew."""
        while True:
            try:
                await self._listen()
            except HubError as error:
                log.warning("listener lost", reason=error.reason)
            self.is_listening = False
            self._wake(list(self._waiting))  # nobody sleeps on where nobody listens
            await asyncio.sleep(_POLL_SECONDS)

    async def _listen(self) -> None:
        async with self._database.listening(CHANNEL) as notes:
            self.is_listening = True  # who waits since before it was looks again within a second
            async for note in notes:
                self._wake(note.split())

    def _wake(self, keys: list[str]) -> None:
        for key in keys:
            for subscription in self._waiting.get(key, ()):
                subscription.changed.set()
