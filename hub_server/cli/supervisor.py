"""``hub serve`` with several workers: the parent, which serves nothing itself.

It holds the port, does what must be done once, starts the workers as processes of their own (never
forked: gRPC would not survive that), starts those again that end, and ends them all.
"""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import structlog

from hub_server import server
from hub_server.cli import worker
from hub_server.cli.port import reserved
from hub_server.settings import Settings

# A worker that served for so long was sound, and what ended it is no reason to wait.
_SOUND_SECONDS: Final = 10.0
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 30.0
# What a worker may need to end beyond the time that its calls get.
_END_SECONDS: Final = 10.0

log: structlog.stdlib.BoundLogger = structlog.get_logger("hub.supervisor")


class WorkerError(RuntimeError):
    """A worker ended before it served."""


async def run(settings: Settings, database_url: str) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises what ``server.serving`` raises, and WorkerError when a worker does not come to serve.
    """
    stopped = server.stop_signal()
    with reserved(settings.listen) as address:
        await server.prepare(settings, database_url)
        orders = worker.orders(address, database_url)
        # The command that started this process, with the same interpreter and the same code.
        command = (sys.executable, *sys.orig_argv[1:-1], "worker")
        workers = [Worker(command, orders) for _ in range(settings.workers)]
        try:
            if await all_serve(workers, stopped):
                with server.announced(settings, address):
                    await _keep(workers, stopped)
        finally:
            seconds = settings.drain + _END_SECONDS
            await asyncio.gather(*(each.stop(seconds) for each in workers))


async def all_serve(workers: "list[Worker]", stopped: asyncio.Event) -> bool:
    """Start all workers; False = the end was asked for meanwhile. Raises WorkerError."""
    starting = asyncio.gather(*(each.start() for each in workers))
    stopping = asyncio.ensure_future(stopped.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
        return starting.done()
    finally:
        starting.cancel()
        stopping.cancel()


async def _keep(workers: "list[Worker]", stopped: asyncio.Event) -> None:
    """Start workers that end again, until the end of all is asked for."""
    keepers = [asyncio.create_task(each.keep()) for each in workers]
    await stopped.wait()
    for keeper in keepers:
        keeper.cancel()
    await asyncio.gather(*keepers, return_exceptions=True)


def next_pause(pause: float, lasted: float) -> float:
    """Return how long to wait before the next start of a worker that lasted so many seconds."""
    return _FIRST_PAUSE if lasted >= _SOUND_SECONDS else min(2 * pause, _LONGEST_PAUSE)


class Worker:
    """A place among the workers, and the process that fills it."""

    def __init__(self, command: Sequence[str], orders: bytes) -> None:
        """The command reads its orders, then writes a line when it serves."""
        self._command = command
        self._orders = orders
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start a process and wait until it serves. Raises WorkerError when it ends before."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            process_group=0,  # Ctrl-C is for the parent, which then ends the workers in order
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("both are pipes")
        self._process.stdin.write(self._orders)
        if not await self._process.stdout.readline():
            message = "a worker ended before it served; what it said stands above"
            raise WorkerError(message)
        log.info("worker serves", worker=self._process.pid)

    async def keep(self) -> None:
        """Start the process again whenever it ended, later and later if it does not last."""
        loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE / 2
        while self._process is not None:
            began = loop.time()
            code = await self._process.wait()
            pause = next_pause(pause, loop.time() - began)
            log.error("worker ended", worker=self._process.pid, code=code, pause=pause)
            await asyncio.sleep(pause)
            with suppress(WorkerError, OSError):
                await self.start()

    async def stop(self, seconds: float) -> None:
        """End the process in order, or after so many seconds by force."""
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(seconds):
                code = await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            code = await process.wait()
        log.info("worker stopped", worker=process.pid, code=code)
