"""What is told of the indexes of users, of whatever room, and what is done about them."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from hub_server.caller import Caller
from hub_server.retrieval.stats import Check, Stats, Totals
from hub_server.search import Search, Source

Sources = Mapping[str, Callable[[Caller, str], Awaitable[Source]]]
"""By kind (knowledge | memory | messages): what a user's view is made of."""


@dataclass(frozen=True, slots=True)
class Told:
    """An index and what this process holds of it."""

    source: Source
    stats: Stats | None
    snapshot_bytes: int
    totals: Totals


class Indexes:
    """The indexes that this process searches."""

    def __init__(self, search: Search, sources: Sources) -> None:
        """``sources`` are those of every kind."""
        self._search = search
        self._sources = sources

    async def stats(self, caller: Caller, user_id: str, kind: str) -> Told:
        """Tell of an index. Raises NOT_FOUND, USER_DISABLED or FEATURE_DISABLED."""
        return await self._told(await self._sources[kind](caller, user_id))

    async def check(self, caller: Caller, user_id: str, kind: str) -> Check:
        """Compare an index with its rows. Raises NOT_FOUND, USER_DISABLED or FEATURE_DISABLED."""
        return await self._search.check(await self._sources[kind](caller, user_id))

    async def rebuild(self, caller: Caller, user_id: str, kind: str) -> Told:
        """Make an index anew. Raises NOT_FOUND, USER_DISABLED or FEATURE_DISABLED."""
        source = await self._sources[kind](caller, user_id)
        await self._search.rebuild(source)
        return await self._told(source)

    async def _told(self, source: Source) -> Told:
        stats = await self._search.stats(source.space)
        size = await self._search.snapshot_bytes(source.space)
        return Told(source, stats, size, self._search.totals)
