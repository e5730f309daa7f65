"""Group commit: calls that wait at the same moment go to Postgres as one statement.

No timer: an idle batcher flushes at once, and whatever arrives while it works makes up the next
group, so the delay under load is that of one flush and the delay when idle is none.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from hub_server.errors import HubError, Reason

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

Flush = Callable[[Sequence[Item]], Awaitable[Sequence[Outcome]]]
Group = list[tuple[Item, asyncio.Future[Outcome]]]


class Batcher(Generic[Item, Outcome]):
    """Collects items and flushes them in groups, one group at a time, in order of arrival."""

    def __init__(self, flush: Flush[Item, Outcome], *, most_items: int, most_waiting: int) -> None:
        """``flush`` answers a group item by item, in the group's order."""
        self._flush = flush
        self._most_items = most_items
        self._most_waiting = most_waiting
        self._waiting: deque[tuple[Item, asyncio.Future[Outcome]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being flushed."""
        return self._worker is None

    async def submit(self, item: Item) -> Outcome:
        """Return the item's own outcome. Raises OVERLOADED when too many wait, or flush's error.

        When Postgres refuses a whole group, its items are flushed again one by one, so that an
        item fails only by its own fault.
        """
        if len(self._waiting) >= self._most_waiting:
            raise HubError(Reason.REASON_OVERLOADED)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        try:
            while self._waiting:
                count = min(len(self._waiting), self._most_items)
                await self._settle([self._waiting.popleft() for _ in range(count)])
        finally:
            self._worker = None
            _fail(list(self._waiting), HubError(Reason.REASON_UNAVAILABLE))
            self._waiting.clear()

    async def _settle(self, group: Group[Item, Outcome]) -> None:
        try:
            outcomes = await self._flush([item for item, _ in group])
            pairs = list(zip(group, outcomes, strict=True))
        except HubError as error:
            if len(group) == 1 or error.reason != Reason.REASON_INTERNAL:
                _fail(group, error)
                return
            for pair in group:
                await self._settle([pair])
        except Exception as error:  # noqa: BLE001 - a fault of ours must not end the worker
            # Whether the items are on disk is unknown, so none is flushed again.
            fault = HubError(Reason.REASON_INTERNAL)
            fault.__cause__ = error
            _fail(group, fault)
        except BaseException:
            # Cancelled while the flush ran: whether its items are on disk is unknown.
            _fail(group, HubError(Reason.REASON_UNAVAILABLE))
            raise
        else:
            for (_, future), outcome in pairs:
                if not future.done():
                    future.set_result(outcome)


def _fail(group: Group[Item, Outcome], error: HubError) -> None:
    for _, future in group:
        if not future.done():
            future.set_exception(error)
