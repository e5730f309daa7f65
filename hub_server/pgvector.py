"""HUB_INDEX=pgvector: vectors are searched in Postgres, where all processes share them.

Words are searched in this process, by a view without vectors, since Postgres has no BM25. What a
search proposes is fused from both, as in a view.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final
from weakref import WeakValueDictionary

import numpy as np
import structlog

from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.retrieval.fusion import CANDIDATES, word_weight
from hub_server.retrieval.graph import ef_for
from hub_server.retrieval.matrix import Matrix, unit
from hub_server.retrieval.stats import Check, Stats, Totals
from hub_server.retrieval.view import Candidate, Change, Flaws, proposed, vector_of
from hub_server.retrieval.views import Pull, Space, Views
from hub_server.vector_store import MOST_INDEXED, Found, Page, VectorStore

__all__ = ["EXACT_COST", "PgVector"]

EXACT_COST: Final = 8
"""By how much smaller a space shall be for Postgres to search it exactly than for a view.

Postgres compares a row of 384 dimensions in 2.5 µs, a view in .1; their graphs take about as long.
"""

# Rows that enter the graph in one statement: some 50 ms, for which a change of them waits.
_STEP: Final = 32
# Rows not in the graph yet, as a share of what is searched exactly anyway; as in a view.
_MOST_BEHIND: Final = 0.25
_RECALL_SAMPLE: Final = 20
_RECALL_AT: Final = 10
_WORK_SECONDS: Final = 30.0
_MOST_TRIES: Final = 10
_NO_VECTOR: Final = 1  # dimension of a view that holds none

log: structlog.stdlib.BoundLogger = structlog.get_logger("hub.views")


class PgVector:
    """The engine; any number of processes over one database."""

    def __init__(self, database: Database, words: Views, exact_max_bytes: int) -> None:
        """Search vectors in ``database`` and words in ``words``, which belongs to this engine.

        A space whose vectors take more than ``exact_max_bytes`` is searched by pgvector's graph.
        """
        self._database = database
        self._words = words
        self._exact_max_bytes = exact_max_bytes
        # Searches of one space in this process do not follow its rows twice at once.
        self._locks: WeakValueDictionary[Space, asyncio.Lock] = WeakValueDictionary()
        self._to_build: dict[Space, int] = {}  # with their dimensions, in order of arrival
        self._builder: asyncio.Task[None] | None = None

    async def search(  # noqa: PLR0913 - what is searched and what is asked, all by name
        self,
        space: Space,
        *,
        dimension: int,
        language: str,
        last_seq: int,
        pull: Pull,
        query_text: str,
        query_vector: Matrix | None,
        limit: int,
        among: Sequence[str] | None = None,
    ) -> list[Candidate]:
        """Follow the rows up to ``last_seq``, here and in Postgres, then return the best.

        Raises:
            ValueError: the query vector is zero, not finite, or of another dimension.
            RuntimeError: ``pull`` returned changes, but none newer than asked for.
            HubError: what ``Database.transaction`` raises.

        """
        direction = None if query_vector is None else unit(query_vector[np.newaxis], dimension)[0]
        depth = max(CANDIDATES, limit)
        words = await self._words.search(
            _of_words(space),
            dimension=_NO_VECTOR,
            language=language,
            last_seq=last_seq,
            pull=_without_vectors(pull),
            query_text=query_text,
            query_vector=None,
            limit=depth,
            among=among,
        )
        nearest: Sequence[tuple[str, float]] = ()
        if direction is not None:
            found = await self._found(space, last_seq, pull, direction, depth, among)
            nearest = found.rows if found else ()
        weight = word_weight(has_words=bool(query_text), has_vector=direction is not None)
        by_words = [(one.row_id, one.word_score) for one in words]
        return proposed(by_words, nearest, weight, limit, depth)

    async def check(
        self, space: Space, *, dimension: int, language: str, last_seq: int, pull: Pull
    ) -> Check:
        """Compare the vectors in Postgres and the words here with all rows; measure the recall."""
        words = await self._words.check(
            _of_words(space),
            dimension=_NO_VECTOR,
            language=language,
            last_seq=last_seq,
            pull=_without_vectors(pull),
        )
        held = await self._followed(space, dimension, last_seq, pull)
        if not space.embedding_model or held is None:
            return words
        flaws = await self._flaws(space, dimension, pull)
        both = Flaws(
            *(
                sorted({*getattr(words.flaws, name), *getattr(flaws, name)})
                for name in ("missing", "ghost", "stale")
            )
        )
        return Check(words.rows, both, await self._recall(space))

    async def stats(self, space: Space) -> Stats | None:
        """Return what Postgres holds of a space, with what its words take here."""
        words = await self._words.stats(_of_words(space))
        is_at_work = space in self._to_build  # asked first: no graph is half built and done
        async with self._database.statement(_caller(space)) as connection:
            state = await VectorStore(connection, space).state()
        if state is None:
            return words
        return Stats(
            engine="pgvector",
            rows=words.rows if words else state["row_count"],
            in_graph=state["row_count"] - state["behind"],
            dead=0,
            nbytes=_bytes(state["row_count"], state["dimension"]) + (words.nbytes if words else 0),
            applied_seq=state["applied_seq"],
            is_at_work=is_at_work,
            built_at=state["built_at"],
            saved_at=words.saved_at if words else None,
        )

    async def snapshot_bytes(self, space: Space) -> int:
        """Return the size of the snapshot of a space's words; 0 = there is none."""
        return await self._words.snapshot_bytes(_of_words(space))

    @property
    def totals(self) -> Totals:
        """What this process holds in memory: words."""
        return self._words.totals

    async def rebuild(
        self, space: Space, *, dimension: int, language: str, last_seq: int, pull: Pull
    ) -> None:
        """Make vectors and words of a space anew. Searches wait until the vectors are there.

        The graph, if it needs one, is built after that.
        """
        await self._words.rebuild(
            _of_words(space),
            dimension=_NO_VECTOR,
            language=language,
            last_seq=last_seq,
            pull=_without_vectors(pull),
        )
        if space.embedding_model:
            async with self._database.statement(_caller(space)) as connection:
                await VectorStore(connection, space).forget()
            held = await self._followed(space, dimension, last_seq, pull)
            if held is not None:
                self._note(space, held)

    async def forget(self, space: Space) -> int:
        """Remove the vectors and words of a tenant's user's kind; return how many views of words.

        Vectors are rows, and counted as such where they are erased.
        """
        async with self._database.statement(_caller(space)) as connection:
            await VectorStore(connection, space).forget()
        return await self._words.forget(_of_words(space))

    async def owners(self) -> set[tuple[str, str]]:
        """Return the tenants' users of whose words there are views, in memory or in files."""
        return await self._words.owners()

    async def removed(self, space: Space, seq: int) -> None:
        """Remove the files of words; Postgres follows with the next search."""
        await self._words.removed(_of_words(space), seq)

    async def settled(self) -> None:
        """Wait until no rows go into the graph and no snapshot of words is written."""
        if self._builder is not None:
            await asyncio.wait([self._builder])
        await self._words.settled()

    async def close(self) -> None:
        """Give up what goes into the graph; the rest goes when the space is searched again."""
        if self._builder is not None:
            self._builder.cancel()
            await asyncio.gather(self._builder, return_exceptions=True)
        await self._words.close()

    # --- following the rows -----------------------------------------------------------------------

    async def _found(
        self,
        space: Space,
        last_seq: int,
        pull: Pull,
        query: Matrix,
        depth: int,
        among: Sequence[str] | None,
    ) -> Found | None:
        """Return the nearest rows once the space is not behind; None = its user is gone."""
        for _ in range(_MOST_TRIES):
            found = await self._nearest(space, query, depth, among)
            if found and found.dimension == len(query) and found.applied_seq >= last_seq:
                self._note(space, found)
                return found
            if await self._followed(space, len(query), last_seq, pull) is None:
                return None
        raise RuntimeError("a space was forgotten as often as it was followed")

    async def _followed(
        self, space: Space, dimension: int, last_seq: int, pull: Pull
    ) -> Found | None:
        """Bring a space up to ``last_seq``; None = its user is gone.

        No connection is held while changes are pulled on another one: a pool whose connections all
        wait for one more would stand still.
        """
        lock = self._locks.setdefault(space, asyncio.Lock())
        async with lock:
            while True:
                held = await self._begun(space, dimension)
                if held is None or held.applied_seq >= last_seq:
                    return held
                changes = await pull(held.applied_seq)
                if changes and changes[-1].seq <= held.applied_seq:
                    raise RuntimeError(f"pull({held.applied_seq}) returned no newer change")
                page = await asyncio.to_thread(_page, changes, dimension, last_seq)
                async with self._database.statement(_caller(space)) as connection:
                    await VectorStore(connection, space).apply(held, page)

    async def _begun(self, space: Space, dimension: int) -> Found | None:
        """Return the state of a space, which is begun anew where it is of another dimension."""
        for _ in range(3):
            async with self._database.statement(_caller(space)) as connection:
                state = await VectorStore(connection, space).state()
            if state is not None and state["dimension"] == dimension:
                return Found(
                    state["life"],
                    dimension,
                    state["applied_seq"],
                    state["row_count"],
                    state["behind"],
                    (),
                )
            async with self._database.transaction(_caller(space)) as connection:
                store = VectorStore(connection, space)
                if state is not None:
                    await store.end(state["life"])
                await store.begin(dimension)
        return None

    # --- searching --------------------------------------------------------------------------------

    async def _nearest(
        self, space: Space, query: Matrix, depth: int, among: Sequence[str] | None
    ) -> Found | None:
        how = "behind" if among is None else "among"
        async with self._database.statement(_caller(space)) as connection:
            found = await VectorStore(connection, space).exact(query, depth, how, among or ())
        if found is None or among is not None or found.behind == found.row_count:
            return found
        if self._is_large(found):
            by_graph = await self._by_graph(space, query, depth, found.row_count)
            # A graph may lead to fewer than there are: past rows of other spaces, or dead ones.
            if by_graph is None or len(by_graph.rows) >= min(depth, by_graph.row_count):
                return by_graph
        async with self._database.statement(_caller(space)) as connection:
            return await VectorStore(connection, space).exact(query, depth)

    async def _by_graph(
        self, space: Space, query: Matrix, depth: int, row_count: int
    ) -> Found | None:
        async with self._database.transaction(_caller(space)) as connection:
            store = VectorStore(connection, space)
            return await store.by_graph(query, depth, ef_for(row_count), row_count)

    def _is_large(self, found: Found) -> bool:
        return _bytes(found.row_count, found.dimension) > self._exact_max_bytes

    # --- the graph --------------------------------------------------------------------------------

    def _note(self, space: Space, found: Found) -> None:
        """Let rows go into the graph, where too many are searched exactly."""
        behind = _bytes(found.behind, found.dimension)
        if (
            not self._is_large(found)
            or behind <= _MOST_BEHIND * self._exact_max_bytes
            or found.dimension > MOST_INDEXED
        ):
            return
        self._to_build[space] = found.dimension
        if self._builder is None or self._builder.done():
            self._builder = asyncio.create_task(self._build())

    async def _build(self) -> None:
        while self._to_build:
            space, dimension = next(iter(self._to_build.items()))
            try:
                await self._put_into_graph(space, dimension)
            except Exception as error:  # noqa: BLE001 - a graph is only for speed
                cause = type(error).__name__
                log.warning("view not tended", kind=space.kind, user_id=space.user_id, cause=cause)
            finally:
                self._to_build.pop(space, None)

    async def _put_into_graph(self, space: Space, dimension: int) -> None:
        async with self._database.statement(_caller(space)) as connection:
            await VectorStore(connection, space).index(dimension)
        moved = _STEP
        while moved > 0:
            async with self._database.statement(_caller(space)) as connection:
                moved = await VectorStore(connection, space).move(_STEP)
        async with self._database.statement(_caller(space)) as connection:
            await VectorStore(connection, space).built()

    # --- checking ---------------------------------------------------------------------------------

    async def _flaws(self, space: Space, dimension: int, pull: Pull) -> Flaws:
        """Compare page by page what Postgres holds; what changes meanwhile is passed over."""
        living, missing, stale = set[str](), set[str](), set[str]()
        newest: dict[str, int] = {}
        seq = 0
        while changes := await pull(seq):
            seq = changes[-1].seq
            for change in changes:
                newest[change.group_id] = change.seq
                living.update(row.row_id for row in change.rows)
            for change, lacking, differing in await self._compared(space, dimension, changes):
                # Real if it is still what was compared.
                again = await pull(change.seq - 1)
                if again and (again[0].group_id, again[0].seq) == (change.group_id, change.seq):
                    missing.update(lacking)
                    stale.update(differing)
        async with self._database.statement(_caller(space)) as connection:
            state = await VectorStore(connection, space).state()
        async with self._database.statement(_caller(space)) as connection:
            held = await VectorStore(connection, space).ids()
        applied = state["applied_seq"] if state else 0
        ghost = {
            row["row_id"]
            for row in held
            if row["row_id"] not in living
            and row["seq"] <= newest.get(row["group_id"], seq) <= applied
        }
        return Flaws(sorted(missing), sorted(ghost), sorted(stale))

    async def _compared(
        self, space: Space, dimension: int, changes: Sequence[Change]
    ) -> Sequence[tuple[Change, set[str], set[str]]]:
        """Return the changes that Postgres has not followed, with rows lacking and stale."""
        group_ids = [change.group_id for change in changes]
        async with self._database.statement(_caller(space)) as connection:
            rows = await VectorStore(connection, space).groups(group_ids)
        held = {row["row_id"]: row for row in rows}
        applied = min((row["applied_seq"] for row in rows), default=0)
        found = []
        for change in changes:
            lacking, differing = set[str](), set[str]()
            for row in change.rows:
                vector, there = vector_of(row.vector, dimension), held.get(row.row_id)
                if vector is None or change.seq > applied:
                    continue
                if there is None:
                    lacking.add(row.row_id)
                elif there["seq"] != change.seq or not np.allclose(
                    there["embedding"], unit(vector[np.newaxis], dimension)[0], atol=1e-6
                ):
                    differing.add(row.row_id)
            if lacking or differing:
                found.append((change, lacking, differing))
        return found

    async def _recall(self, space: Space) -> float:
        """Return which share of the exact ten nearest of some own vectors a search finds."""
        async with self._database.statement(_caller(space)) as connection:
            queries = await VectorStore(connection, space).sample(_RECALL_SAMPLE)
        shares = []
        for query in queries:
            found = await self._nearest(space, query, CANDIDATES, None)
            async with self._database.statement(_caller(space)) as connection:
                exact = await VectorStore(connection, space).exact(query, _RECALL_AT)
            if found is None or exact is None or not exact.rows:
                continue
            if (found.life, found.applied_seq) != (exact.life, exact.applied_seq):
                continue  # written to meanwhile: they are the nearest of other rows
            # By score, not by id: of equal vectors either is right.
            right = [score >= exact.rows[-1][1] - 1e-6 for _, score in found.rows[:_RECALL_AT]]
            shares.append(sum(right) / len(exact.rows))
        return float(np.mean(shares)) if shares else 1.0


def _without_vectors(pull: Pull) -> Pull:
    async def pulled(after: int) -> Sequence[Change]:
        return [
            replace(change, rows=tuple(replace(row, vector=b"") for row in change.rows))
            for change in await pull(after)
        ]

    return pulled


def _of_words(space: Space) -> Space:
    """Return the space of the same words, which are of no model."""
    return replace(space, embedding_model="")


def _page(changes: Sequence[Change], dimension: int, last_seq: int) -> Page:
    """Return what to write of changes; none are left = up to ``last_seq`` only rows are gone."""
    newest = {change.group_id: change for change in changes}
    rows = {
        row.row_id: (change, vector)
        for change in newest.values()
        for row in change.rows
        if (vector := vector_of(row.vector, dimension)) is not None
    }
    matrix = np.zeros((0, dimension), dtype=np.float32)
    if rows:
        matrix = unit(np.stack([vector for _, vector in rows.values()]), dimension)
    return Page(
        seq=changes[-1].seq if changes else last_seq,
        changed=list(newest),
        row_ids=list(rows),
        group_ids=[change.group_id for change, _ in rows.values()],
        seqs=[change.seq for change, _ in rows.values()],
        embeddings=matrix.reshape(-1),
    )


def _bytes(rows: int, dimension: int) -> int:
    return rows * dimension * np.dtype(np.float32).itemsize


def _caller(space: Space) -> Caller:
    # Of as long as most calls: a connection that served one then need not change its limit.
    deadline = time.monotonic() + _WORK_SECONDS
    return replace(Caller.hub(space.tenant_id), deadline=deadline)
