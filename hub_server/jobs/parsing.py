"""The parsing of uploaded files: each in a process of its own, which may crash, hang or swell.

The process gets the file through a pipe, none of the hub's environment, and limits of the kernel;
see ``hub_server.parsers``. Nothing that it says reaches a log: it may be words of the file.
"""

import asyncio
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from typing import Final

from hub_server import parsers

_TOGETHER: Final = 2  # processes at a time; the other documents wait for their turn
_CLOCK: Final = 4  # seconds by the clock for one of a processor, which others want too
_BLOCK: Final = 1 << 16
_LONGEST_ANSWER: Final = parsers.LONGEST_TEXT + _BLOCK  # the text and its title
_REASONS: Final = {
    parsers.DAMAGED: "the file is damaged: it cannot be read as what it says it is",
    parsers.ENCRYPTED: "the file is encrypted",
    parsers.TOO_LONG: f"the text of the file is longer than {parsers.LONGEST_TEXT >> 20} MiB",
}


class UnreadableError(Exception):
    """A file cannot be read; the text says why, to people, with no word of the file."""


class Parsing:
    """The parsing of one process of the hub."""

    def __init__(self, *, megabytes: int = 1024, seconds: int = 30) -> None:
        """A parser gets so much memory and so many processor seconds; four times that by clock."""
        self._megabytes = megabytes
        self._seconds = seconds
        self.turn = asyncio.Semaphore(_TOGETHER)

    async def read(self, media_type: str, content: bytes | bytearray) -> tuple[str, str]:
        """Return title and text of a file; the title may be empty. Raises UnreadableError.

        To be called by who has a ``turn``, which he waits for before he has the file in memory.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", parsers.__file__),
            *(media_type, str(self._megabytes), str(self._seconds)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env={},
        )
        try:
            async with asyncio.timeout(_CLOCK * self._seconds):
                answer = await _exchange(process, content)
                code = await process.wait()
        except TimeoutError:
            raise UnreadableError(self._too_slow()) from None
        finally:
            await _end(process)
        if code != 0:
            raise UnreadableError(self._reason(code))
        title, _, text = answer.decode().partition("\n")
        return title, text

    def _reason(self, code: int) -> str:
        if code == -signal.SIGXCPU:
            return self._too_slow()
        if code == parsers.OUT_OF_MEMORY:
            return f"to read the file takes more than {self._megabytes} MB of memory (HUB_PARSE_MB)"
        return _REASONS.get(code, f"the parser of the file broke down ({code})")

    def _too_slow(self) -> str:
        return f"to read the file takes more than {self._seconds} seconds (HUB_PARSE_SECONDS)"


async def _exchange(process: Process, content: bytes | bytearray) -> bytes:
    """Send the file and return the answer, which is bounded whatever the process does."""
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - pipes
    with suppress(ConnectionError):  # it ended before it had read everything
        for start in range(0, len(content), _BLOCK):
            process.stdin.write(content[start : start + _BLOCK])
            await process.stdin.drain()
    process.stdin.close()
    answer = bytearray()
    while block := await process.stdout.read(_BLOCK):
        answer += block
        if len(answer) > _LONGEST_ANSWER:
            process.kill()
            break
    return bytes(answer)


async def _end(process: Process) -> None:
    """Leave no process behind, whoever gave up."""
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
