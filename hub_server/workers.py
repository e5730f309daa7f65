"""Small pools of threads with bounded queues, for work that would hold up the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from hub_server.errors import HubError, Reason
from hub_server.retrieval.threads import give_way

T = TypeVar("T")


class Workers:
    """A fixed number of threads; what cannot be queued is refused, not piled up."""

    def __init__(self, name: str, *, threads: int, most_waiting: int, yields: bool = False) -> None:
        """``most_waiting`` counts what runs too. Threads that yield run when no others want to."""
        begin = give_way if yields else None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=begin)
        self._most_waiting = most_waiting
        self._waiting = 0

    def check_room(self) -> None:
        """Refuse early what ``run`` would refuse. Raises OVERLOADED."""
        if self._waiting >= self._most_waiting:
            raise HubError(Reason.REASON_OVERLOADED)

    async def run(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns. Raises OVERLOADED when too many wait."""
        self.check_room()
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the pool without waiting for work nobody waits for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
