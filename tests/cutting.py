"""A proxy between client and hub that cuts connections, so that requests and answers are lost."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Final

_PIECE: Final = 1 << 16  # bytes


class Cut(StrEnum):
    """What was lost with a connection."""

    REQUEST = "requests that never reached the hub"
    ANSWER = "answers to what the hub had done"
    NEITHER = "the connection, right after requests were passed on"


class CuttingProxy:
    """Passes connections on to the hub, and cuts them at seeded random moments.

    It has several doors (addresses): the channels of gRPC share a connection to one address, and
    one cut should not stop all writers. While the hub is away, half of those who connect wait for
    it and half are turned away.
    """

    def __init__(self, seed: int, *, mean_pieces: int) -> None:
        """A connection is cut after ``mean_pieces`` reads from one side, on average."""
        self._random = random.Random(seed)  # noqa: S311 - to be repeated
        self._mean_pieces = mean_pieces
        self.address = ""
        self._is_up = asyncio.Event()
        self._connections: set[asyncio.Task[None] | None] = set()
        self.cuts: Counter[Cut] = Counter()

    def lead_to(self, address: str) -> None:
        """Pass connections on to a hub at this address, also those that wait."""
        self.address = address
        self._is_up.set()

    def lead_nowhere(self) -> None:
        """Hold or turn away who connects: the hub is gone."""
        self._is_up.clear()

    @asynccontextmanager
    async def doors(self, count: int) -> AsyncIterator[list[str]]:
        """Listen on so many addresses of this machine."""
        servers = [await asyncio.start_server(self._serve, "127.0.0.1", 0) for _ in range(count)]
        try:
            yield [f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]
        finally:
            for server in servers:
                server.close()
            for connection in self._connections:
                if connection is not None:
                    connection.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Join a client's connection with one of the hub, until either ends."""
        task = asyncio.current_task()
        self._connections.add(task)
        try:
            if self._is_up.is_set() or self._random.choice((True, False)):
                await self._is_up.wait()
                host, _, port = self.address.rpartition(":")
                await self._join(reader, writer, *await asyncio.open_connection(host, port))
        except OSError:
            pass  # the hub was killed a moment ago
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _join(
        self,
        client_reader: asyncio.StreamReader,
        client_writer: asyncio.StreamWriter,
        hub_reader: asyncio.StreamReader,
        hub_writer: asyncio.StreamWriter,
    ) -> None:
        cut = self._random.choice(list(Cut))
        pieces = 1 + round(self._random.expovariate(1 / self._mean_pieces))
        swallow = cut is not Cut.NEITHER
        requests = _pump(
            client_reader, hub_writer, None if cut is Cut.ANSWER else pieces, swallow=swallow
        )
        answers = _pump(
            hub_reader, client_writer, pieces if cut is Cut.ANSWER else None, swallow=swallow
        )
        pumps = {asyncio.create_task(requests), asyncio.create_task(answers)}
        try:
            ended, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            self.cuts[cut] += any(pump.result() for pump in ended)
        finally:
            hub_writer.transport.abort()
            for pump in pumps:
                pump.cancel()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pieces: int | None, *, swallow: bool
) -> bool:
    """Pass on what is read; tell whether it was time to cut, rather than the end.

    After so many pieces it is, None = never. With ``swallow`` the last of them is not passed on.
    """
    passed = 0
    try:
        while piece := await reader.read(_PIECE):
            passed += 1
            if passed == pieces and swallow:
                return True
            writer.write(piece)
            await writer.drain()
            if passed == pieces:
                return True
    except OSError:
        pass  # the other side is gone
    return False
