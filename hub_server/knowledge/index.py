"""What is told of the indexes of users, of whatever room, and what is done about them."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from hub_server.caller import Caller
from hub_server.errors import HubError
from hub_server.knowledge.search import KnowledgeSearch
from hub_server.knowledge.service import KIND
from hub_server.retrieval.stats import Check, Stats, Totals
from hub_server.search import Search, Source

Sources = Mapping[str, Callable[[Caller, str], Awaitable[Source]]]
"""By kind (memory | messages): what a user's view is made of."""


@dataclass(frozen=True, slots=True)
class Told:
    """An index and what this process holds of it."""

    source: Source
    stats: Stats | None
    snapshot_bytes: int
    totals: Totals


class Indexes:
    """The indexes that this process searches."""

    def __init__(self, search: Search, knowledge: KnowledgeSearch, others: Sources) -> None:
        """``others`` are the sources of every other kind."""
        self._search = search
        self._knowledge = knowledge
        self._others = others

    async def source(self, caller: Caller, user_id: str, kind: str, model: str) -> Source:
        """Return what an index is made of; no model = the one that the space is searched by.

        Raises NOT_FOUND, USER_DISABLED, FEATURE_DISABLED or INVALID_FIELD.
        """
        if kind == KIND:
            return await self._knowledge.source(caller, user_id, model)
        source = await self._others[kind](caller, user_id)
        if model not in ("", source.space.embedding_model):
            raise HubError.invalid("embedding_model", "must be empty, or the one that they have")
        return source

    async def told(self, source: Source) -> Told:
        """Tell of an index."""
        stats = await self._search.stats(source.space)
        size = await self._search.snapshot_bytes(source.space)
        return Told(source, stats, size, self._search.totals)

    async def check(self, source: Source) -> Check:
        """Compare an index with its rows."""
        return await self._search.check(source)

    async def rebuild(self, source: Source) -> Told:
        """Make an index anew."""
        await self._search.rebuild(source)
        return await self.told(source)
