"""Work in threads, for an event loop that must neither wait for it nor lose sight of it."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, TypeVar

__all__ = ["give_way", "run"]

_NICENESS: Final = 10

_Result = TypeVar("_Result")


async def run(
    work: Callable[[], _Result], *, inline: bool, executor: Executor | None = None
) -> _Result:
    """Run `work` here or in a thread; when cancelled, first wait for the thread to end.

    A thread cannot be stopped. If its caller left the lock while it still changed the view, the
    next search would read a view in mid-change. Nor can anyone else cancel the wait: what is
    awaited is the executor's future, which is no task.
    """
    if inline:
        return work()
    future = asyncio.get_running_loop().run_in_executor(executor, work)
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        future.exception()  # seen, or asyncio would report it as never retrieved
        raise asyncio.CancelledError
    return future.result()


def give_way() -> None:
    """Let the other threads of this process go first; only Linux has niceness by thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
