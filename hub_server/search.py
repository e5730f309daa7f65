"""One search, whatever is searched: embed the query, ask the view, let Postgres decide.

A view only proposes. What it proposes is read from Postgres, under row security and with every
condition a row must meet, and only what that read returns is a hit.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from hub_server.embedding import EmbeddingError, window_of
from hub_server.embedding.models import Models
from hub_server.errors import HubError, Reason
from hub_server.retrieval.index import Index
from hub_server.retrieval.stats import Check, Stats, Totals
from hub_server.retrieval.view import Candidate, Change
from hub_server.retrieval.views import Space
from hub_server.rows import Row
from hub_server.workers import Workers

DEFAULT_TOP_K: Final = 10
_MOST_WAITING: Final = 128
# For a vector, its turn included. With a server that is away those who wait are told, and what
# they asked leaves the queue, before it grows old.
_EMBED_SECONDS: Final = 10.0
# Proposals beyond top_k, so that a few that Postgres refuses cost no second round.
_SPARE: Final = 10
WIDEN: Final = 4
# Ids that are found while a row is read, with its words and metadata.
_IDS_OF_A_ROW: Final = 16
# What changes under a search makes it look again; this often only where it changes all the time.
_MOST_LOOKS: Final = 20

T = TypeVar("T")
State = TypeVar("State")
Pull = Callable[[int], Awaitable[Sequence[Change]]]
Read = Callable[[Sequence[str]], Awaitable[Mapping[str, Row]]]
Choose = Callable[[Sequence["Hit"]], Sequence["Hit"]]
Narrow = Callable[[Sequence["Hit"], int], Awaitable[Sequence[str] | None]]
"""Returns the ids of all rows that may be wanted beside these hits, or None if there are more than
so many."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A row that Postgres stands for, and how well it fits."""

    row: Row
    candidate: Candidate


async def _not_known(_: Sequence[Hit], __: int) -> None:
    """Know of no rows among which the wanted ones are."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a view is made of: its space, the space's row of ``spaces.state``, its changes."""

    space: Space
    state: Row
    pull: Pull
    dimension: int | None = None
    """Of its vectors; None = that of its model."""


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for: a text and its vector; None = by words alone."""

    text: str
    vector: NDArray[np.float32] | None
    min_score: float = 0.0
    """The score below which a view is not asked for more: all the others score less, and the
    more are asked for, the higher the same rows are scaled."""


async def looked(
    state: State,
    look: Callable[[State], Awaitable[tuple[T, bool]]],
    again: Callable[[], Awaitable[State]],
) -> T:
    """Return what a look finds, and look again, with the state of then, where that is outdated.

    Of what changes after a view was brought up to date and before Postgres is read the old is
    shown no more, and the new was not proposed: so a look tells whether something is gone, and
    more was written since its state was read.
    """
    for _ in range(_MOST_LOOKS - 1):
        found, is_outdated = await look(state)
        if not is_outdated:
            return found
        state = await again()
    found, _ = await look(state)
    return found


class Search:
    """An index and the models that embed for it."""

    def __init__(self, models: Models, index: Index, threads: int = 2) -> None:
        """Search with the given models and index; so many threads embed, and as many count."""
        self.models = models
        self._index = index
        self._workers = Workers("embed", threads=threads, most_waiting=_MOST_WAITING)
        # Threads of their own: the 8 MiB of one call of AddChunks take them for seconds.
        self._counting = Workers(
            "count-chunks", threads=threads, most_waiting=_MOST_WAITING, yields=True
        )

    async def dimension_of(self, model: str) -> int | None:
        """Return the dimension of a model of the hub; None = it is none. Raises UNAVAILABLE."""
        if model not in self.models.names:
            return None
        try:
            return (await self.models.get(model)).dimension
        except EmbeddingError as error:
            raise HubError(Reason.REASON_UNAVAILABLE) from error

    async def count_tokens(self, texts: Sequence[str]) -> Sequence[int]:
        """Return the tokens of texts. Raises OVERLOADED."""
        return await self._counting.run(lambda: self.models.default.count_tokens(texts))

    def window(self, model: str | None) -> int | None:
        """Return how many tokens of a text are read for a space of some model, which is not loaded.

        None = no limit is known.
        """
        return window_of(self.models.in_use(model))

    async def embed(self, text: str, model: str) -> NDArray[np.float32]:
        """Return the vector of a text, shape (dimension,). Raises OVERLOADED and UNAVAILABLE."""
        vectors = await self.embed_all([text], model)
        vector: NDArray[np.float32] = vectors[0]
        return vector

    async def embed_all(self, texts: Sequence[str], model: str) -> NDArray[np.float32]:
        """Return the vectors of texts by a model of the hub, as rows.

        Raises OVERLOADED and UNAVAILABLE.
        """
        try:
            async with asyncio.timeout(_EMBED_SECONDS):
                embedder = await self.models.get(model)
                return await self._workers.run(lambda: embedder.embed(texts))
        except EmbeddingError as error:
            after = error.retry_after
            raise HubError(Reason.REASON_UNAVAILABLE, retry_after=after) from error
        except TimeoutError as error:
            raise HubError(Reason.REASON_UNAVAILABLE) from error

    async def hits(  # noqa: PLR0913 - what is searched, what is asked, what is wanted of it
        self,
        space: Space,
        state: Row,
        query: Query,
        top_k: int,
        pull: Pull,
        read: Read,
        chosen: Choose = lambda hits: hits,
        *,
        among: Sequence[str] | None = None,
        narrowed: Narrow = _not_known,
    ) -> Sequence[Hit]:
        """Return the best rows of a space, at most ``top_k``, best first.

        ``state`` is the space's row of ``spaces.state``: the view follows ``pull`` up to its
        last_seq before it is asked. ``read`` returns, by id, the rows that may be shown, and
        ``chosen`` those hits of them that are wanted; too few, and the view is asked for more.
        ``among`` confines the search to the rows with these ids; None = it is not confined.
        Before the view is asked for more, ``narrowed`` may tell that these are few, or none.
        """
        limit = top_k + _SPARE
        while True:
            candidates = await self.candidates(space, state, query, limit, pull, among)
            rows = await read([candidate.row_id for candidate in candidates])
            found = [Hit(rows[one.row_id], one) for one in candidates if one.row_id in rows]
            hits = chosen(found)
            is_all = len(candidates) < limit or candidates[-1].score < query.min_score
            if len(hits) >= top_k or is_all:
                return hits[:top_k]
            limit *= WIDEN
            if (few := await narrowed(hits, limit * _IDS_OF_A_ROW)) is not None:
                if not few:
                    return hits
                # With those by which scores are scaled.
                among = [*few, *(candidate.row_id for candidate in candidates)]

    async def candidates(
        self,
        space: Space,
        state: Row,
        query: Query,
        limit: int,
        pull: Pull,
        among: Sequence[str] | None = None,
    ) -> Sequence[Candidate]:
        """Return what the view of a space proposes, at most ``limit`` rows, best first.

        With ``among`` only rows with these ids are, and all of them that fit: none is missed.
        """
        given = None if query.vector is None else len(query.vector)
        return await self._index.search(
            space,
            dimension=given or await self._dimension(space),
            language=state["preferred_language"],
            last_seq=state["last_seq"],
            pull=pull,
            query_text=query.text,
            query_vector=query.vector,
            limit=limit,
            among=among,
        )

    async def check(self, source: Source) -> Check:
        """Compare the view of a space with its rows, and measure its recall."""
        return await self._index.check(
            source.space,
            dimension=source.dimension or await self._dimension(source.space),
            language=source.state["preferred_language"],
            last_seq=source.state["last_seq"],
            pull=source.pull,
        )

    async def rebuild(self, source: Source) -> None:
        """Make the view of a space anew; searches use the one there was until it is complete."""
        await self._index.rebuild(
            source.space,
            dimension=source.dimension or await self._dimension(source.space),
            language=source.state["preferred_language"],
            last_seq=source.state["last_seq"],
            pull=source.pull,
        )

    async def stats(self, space: Space) -> Stats | None:
        """Return what there is to know of the view of a space; None = there is none."""
        return await self._index.stats(space)

    async def snapshot_bytes(self, space: Space) -> int:
        """Return the size of the snapshot of a space; 0 = there is none."""
        return await self._index.snapshot_bytes(space)

    @property
    def totals(self) -> Totals:
        """What the views of this process come to."""
        return self._index.totals

    async def removed(self, tenant_id: str, user_id: str, kind: str, seq: int) -> None:
        """Let no file keep what was removed from a user's rows of a kind by the change ``seq``.

        To be called once that is committed.
        """
        await self._index.removed(Space(tenant_id, user_id, kind, ""), seq)

    async def _dimension(self, space: Space) -> int:
        """Return the dimension of a space's vectors; of one without, any will do."""
        known = await self.dimension_of(space.embedding_model)
        return known or self.models.default.dimension

    def close(self) -> None:
        """End the threads."""
        self._workers.close()
        self._counting.close()
