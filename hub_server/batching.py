"""Group commit: calls that wait at the same moment go to Postgres as one statement.

No timer: an idle batcher flushes at once, and whatever arrives while it works makes up the next
group, so the delay under load is that of one flush and the delay when idle is none. Under load a
group also waits for those who are just arriving: grpc.aio admits one call in about three turns of
a busy event loop, and a statement costs much the same for two items as for twenty. Only a flush
that is held up (by a lock, or a connection that fell silent) is not waited for: another group
then goes its own way.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from hub_server.errors import HubError, Reason

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

Flush = Callable[[Sequence[Item]], Awaitable[Sequence[Outcome]]]
Group = list[tuple[Item, asyncio.Future[Outcome]]]

# A flush that takes longer counts as held up. Shorter, and groups would be small under load: a
# statement's cost is mostly our own processor's, and two groups at a time pay it twice.
PATIENCE_SECONDS: Final = 0.05
# A group waits for no more items when it has so many, by when another costs what it would cost in
# the next group, or when so many turns of the event loop brought none. An idle turn takes some 15
# microseconds, and under load the next call follows within some 200.
_ENOUGH: Final = 32
_QUIET_TURNS: Final = 30


class Batcher(Generic[Item, Outcome]):
    """Collects items and flushes them in groups, in order of arrival."""

    def __init__(
        self,
        flush: Flush[Item, Outcome],
        *,
        most_items: int,
        most_waiting: int,
        most_groups: int = 1,
        weigh: Callable[[Item], int] | None = None,
        most_weight: int = 0,
    ) -> None:
        """``flush`` answers a group item by item, in the group's order.

        ``most_groups`` may be under way at a time, all but one of them held up. With ``weigh`` a
        group weighs at most ``most_weight``, unless it is of one item.
        """
        self._flush = flush
        self._most_items = most_items
        self._most_waiting = most_waiting
        self._most_groups = most_groups
        self._weigh = weigh
        self._most_weight = most_weight
        self._last_size = 1  # of the last group
        self._waiting: deque[tuple[Item, asyncio.Future[Outcome]]] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._held_up: set[asyncio.Task[None] | None] = set()

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being flushed."""
        return not self._workers

    async def close(self) -> None:
        """Break off what is being flushed; whoever waits is answered UNAVAILABLE."""
        workers = set(self._workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    async def submit(self, item: Item) -> Outcome:
        """Return the item's own outcome. Raises OVERLOADED when too many wait, or flush's error.

        When Postgres refuses a whole group, its items are flushed again one by one, so that an
        item fails only by its own fault.
        """
        if len(self._waiting) >= self._most_waiting:
            raise HubError(Reason.REASON_OVERLOADED)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._staff()
        return await future

    def _staff(self) -> None:
        """Start a worker if something waits and whoever works is held up."""
        count = len(self._workers)
        if self._waiting and count == len(self._held_up) and count < self._most_groups:
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._ended)

    def _lose_patience(self, worker: asyncio.Task[None] | None) -> None:
        self._held_up.add(worker)
        self._staff()

    def _ended(self, worker: asyncio.Task[None] | None) -> None:
        if worker is not None:
            self._workers.discard(worker)
        if not self._workers:
            _fail(list(self._waiting), HubError(Reason.REASON_UNAVAILABLE))
            self._waiting.clear()

    def _group(self) -> Group[Item, Outcome]:
        """Take the next group off the queue."""
        group = [self._waiting.popleft()]
        weight = self._weight(group[0])
        while self._waiting and len(group) < self._most_items:
            weight += self._weight(self._waiting[0])
            if weight > self._most_weight:
                break
            group.append(self._waiting.popleft())
        self._last_size = len(group)
        return group

    async def _gathered(self) -> bool:
        """Wait while items are arriving; return whether any waits.

        An item that comes alone, after another that did, is not delayed.
        """
        quiet = _QUIET_TURNS if max(self._last_size, len(self._waiting)) == 1 else 0
        while quiet < _QUIET_TURNS and 0 < len(self._waiting) < _ENOUGH:
            before = len(self._waiting)
            await asyncio.sleep(0)
            quiet = 0 if len(self._waiting) > before else quiet + 1
        return bool(self._waiting)

    def _weight(self, pair: tuple[Item, asyncio.Future[Outcome]]) -> int:
        return self._weigh(pair[0]) if self._weigh else 0

    async def _work(self) -> None:
        worker, loop = asyncio.current_task(), asyncio.get_running_loop()
        try:
            while await self._gathered():
                patience = loop.call_later(PATIENCE_SECONDS, self._lose_patience, worker)
                try:
                    await self._settle(self._group())
                finally:
                    patience.cancel()
                    self._held_up.discard(worker)
        finally:
            # At once: who submits before the task's callbacks run must find that it has ended.
            self._ended(worker)

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
