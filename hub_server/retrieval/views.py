"""The views of one process: brought up to date before each search, evicted by bytes.

Beside the searches, two threads work for all of them: one builds graphs, one view at a time, one
writes snapshots. No search waits for either.
"""

import asyncio
import datetime as dt
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from hub_server.retrieval.matrix import Matrix
from hub_server.retrieval.snapshots import Snapshots, Space
from hub_server.retrieval.stats import Check, Stats, Totals
from hub_server.retrieval.threads import give_way, run
from hub_server.retrieval.view import Candidate, Change, View

__all__ = ["Pull", "Space", "Views"]

Pull = Callable[[int], Awaitable[Sequence[Change]]]
"""Returns the next page of changes with seq > the argument, in seq order; empty = none left."""

# Work on at most so much runs on the event loop, where it takes about a millisecond at most
# (measured on one core of two: searching 500 abstracts of 1,000 characters by a sentence 0.6 ms,
# applying 4,000 characters 1.1 ms); a thread would add its hop and the wait for the interpreter.
_INLINE_ROWS = 500
_INLINE_CHARS = 2_000

# A snapshot is loaded with the rows after it, so one that lacks few is as good as new.
_MOST_UNSAVED: Final = 0.05  # share of the rows of a view
_LARGE: Final = 4 << 20  # bytes from which a view is worth a snapshot
_MOST_LEAVING: Final = 4  # views kept over the budget until they are saved
_CLOSE_SECONDS: Final = 10.0  # for the snapshots at shutdown
_RECALL_SAMPLE: Final = 100

log: structlog.stdlib.BoundLogger = structlog.get_logger("hub.views")


@dataclass(slots=True)
class _Entry:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    view: View | None = None
    users: int = 0  # those that hold or await the lock: not to be evicted
    nbytes: int = 0
    epoch: str = ""  # see snapshots
    churn_saved: int | None = None  # of the view, when a snapshot was last tried; None = never
    refused_seq: int | None = None  # where it was when it was not saved, for rows it still has
    task: asyncio.Task[None] | None = None  # builds its graph or writes its snapshot
    built_at: dt.datetime | None = None
    saved_at: dt.datetime | None = None


class Views:
    """Holds the views of a process, on one event loop."""

    def __init__(
        self,
        exact_max_bytes: int,
        memory_bytes: int,
        folder: Path | None = None,
        *,
        large_bytes: int = _LARGE,
    ) -> None:
        """Start empty.

        Args:
            exact_max_bytes: Live vectors of one view up to which it searches exactly.
            memory_bytes: All views together; above, those unused for longest are dropped. A
                view in use stays, so one that is larger than this by itself still works.
            folder: Where snapshots are kept; None = nowhere.
            large_bytes: The size from which a view is worth one.

        """
        self._exact_max_bytes = exact_max_bytes
        self._memory_bytes = memory_bytes
        self._large_bytes = large_bytes
        self._entries: OrderedDict[Space, _Entry] = OrderedDict()  # least recently used first
        self._snapshots = None if folder is None else Snapshots(folder)
        if self._snapshots is not None:
            self._snapshots.clear()
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="build", initializer=give_way)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._closing = threading.Event()
        self._rebuilding = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Return the number of views held."""
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Estimate of the memory all views hold, in bytes."""
        return sum(entry.nbytes for entry in self._entries.values())

    @property
    def totals(self) -> Totals:
        """What all views come to."""
        return Totals(len(self), self.nbytes, self._memory_bytes)

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
        """Bring the view of `space` up to `last_seq`, then return its `limit` best rows.

        `among` confines it to the rows with these ids, searched exactly; see View. A view of
        another language or dimension is rebuilt, as is one that a change broke. Errors of `pull`
        pass through; what was applied before them stays.

        Raises:
            ValueError: the query vector is zero, not finite, or of another dimension.
            RuntimeError: `pull` returned changes, but none newer than asked for.

        """
        entry = self._entered(space)
        try:
            async with entry.lock:
                view = await self._view(space, entry, dimension, language, last_seq)
                try:
                    await _catch_up(view, last_seq, pull)
                    small = len(view) <= _INLINE_ROWS and len(query_text) <= _INLINE_CHARS
                    small = small and len(among or ()) <= _INLINE_ROWS
                    search = partial(view.search, query_text, query_vector, limit, among)
                    return await run(search, inline=small)
                finally:
                    entry.nbytes = view.nbytes
        finally:
            self._left(space, entry)

    async def check(
        self, space: Space, *, dimension: int, language: str, last_seq: int, pull: Pull
    ) -> Check:
        """Compare the view of `space`, brought up to date, with all rows, and measure its recall.

        Searches of the space wait while the newest rows are read, not while all are.
        """
        rows: dict[str, Change] = {}
        seq = await _read(rows, 0, pull, _without_texts)  # all texts were too much to hold
        entry = self._entered(space)
        try:
            async with entry.lock:
                view = await self._view(space, entry, dimension, language, last_seq)
                # No row may be newer here or there, so both follow to one end.
                await _catch_up(view, max(last_seq, seq), pull)
                newer: dict[str, Change] = {}
                end = max(await _read(newer, seq, pull), view.applied_seq)
                await run(partial(view.apply, list(newer.values())), inline=False)
                view.advance(end)
                rows |= newer
                flaws = await run(partial(view.flaws, rows.values()), inline=False)
                entry.nbytes = view.nbytes
            recall = await run(partial(view.recall, _RECALL_SAMPLE), inline=False)
            return Check(sum(len(change.rows) for change in rows.values()), flaws, recall)
        finally:
            self._left(space, entry)

    async def stats(self, space: Space) -> Stats | None:
        """Return what there is to know of the view of `space`; None = it is not in memory."""
        entry = self._entries.get(space)
        if entry is None or entry.view is None:
            return None
        view = entry.view
        return Stats(
            engine="hnswlib" if view.in_graph else "exact",
            rows=len(view),
            in_graph=view.in_graph,
            dead=view.dead,
            nbytes=view.nbytes,
            applied_seq=view.applied_seq,
            is_at_work=entry.task is not None,
            built_at=entry.built_at,
            saved_at=entry.saved_at,
        )

    async def snapshot_bytes(self, space: Space) -> int:
        """Return the size of the snapshot of `space`; 0 = there is none."""
        if self._snapshots is None:
            return 0
        return await asyncio.to_thread(self._snapshots.size, space)

    async def rebuild(
        self, space: Space, *, dimension: int, language: str, last_seq: int, pull: Pull
    ) -> None:
        """Make the view of `space` from its rows, whatever there was of it.

        Until it is complete, searches use the old one; its graph, if it needs one, is built after
        that. Its snapshots are removed first, and other processes' views are not saved any more.
        """
        async with self._rebuilding:  # one at a time: each needs the memory of a whole view
            epoch = ""
            if self._snapshots is not None:
                await asyncio.to_thread(self._snapshots.forget, space)
                epoch = await asyncio.to_thread(self._snapshots.epoch, space)
            entry = self._entered(space)
            try:
                view = View(dimension, language, self._exact_max_bytes)
                await _catch_up(view, last_seq, pull)
                # Forgotten meanwhile, this entry is one that no search enters any more.
                async with entry.lock:
                    entry.view, entry.epoch, entry.churn_saved = view, epoch, None
                    entry.nbytes, entry.built_at, entry.saved_at = view.nbytes, None, None
            finally:
                self._left(space, entry)

    def drop(self, space: Space) -> None:
        """Forget the view of `space`. A search that is using it ends on the forgotten one."""
        self._entries.pop(space, None)

    async def forget(self, space: Space) -> int:
        """Remove the views and snapshots of `space`, of whatever model; return how many it were.

        To be called after something of the space was erased: no file then holds any of it, nor
        will one that another process writes. The next search makes the view from the rows.
        """
        removed = self._drop_models(space)
        if self._snapshots is not None:
            removed += await asyncio.to_thread(self._snapshots.forget, space)
            removed += self._drop_models(space)  # those that were loaded meanwhile
        return removed

    async def owners(self) -> set[tuple[str, str]]:
        """Return the tenants' users of whom there are views, in memory or in files."""
        held = {(space.tenant_id, space.user_id) for space in self._entries}
        if self._snapshots is not None:
            held |= await asyncio.to_thread(self._snapshots.owners)
        return held

    async def removed(self, space: Space, seq: int) -> None:
        """Remove the snapshots of `space`, of whatever model: rows in them were removed at `seq`.

        Its views stay and follow that as they follow all else; they are saved again when a graph is
        built, or when they leave.
        """
        if self._snapshots is None:
            return
        self._unsaved(space)
        await asyncio.to_thread(self._snapshots.outdate, space, seq)
        self._unsaved(space)  # those that were loaded or saved meanwhile

    async def settled(self) -> None:
        """Wait until no graph is being built and no snapshot written."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Give up builds, write the snapshots that are worth it, end the threads."""
        self._closing.set()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.settled()
                for space, entry in reversed(list(self._entries.items())):
                    if self._is_to_save(entry):
                        self._start(space, entry, self._save)
                await self.settled()
        except TimeoutError:
            log.warning("some views were not saved")
        self._builder.shutdown(wait=False, cancel_futures=True)
        self._writer.shutdown(wait=False, cancel_futures=True)

    def _drop_models(self, space: Space) -> int:
        held = self._models(space)
        for one in held:
            self.drop(one)
        return len(held)

    def _unsaved(self, space: Space) -> None:
        for one in self._models(space):
            self._entries[one].churn_saved = None

    def _models(self, space: Space) -> Sequence[Space]:
        return [
            one
            for one in self._entries
            if replace(one, embedding_model=space.embedding_model) == space
        ]

    def _entered(self, space: Space) -> _Entry:
        entry = self._entries.setdefault(space, _Entry())
        self._entries.move_to_end(space)
        entry.users += 1
        return entry

    def _left(self, space: Space, entry: _Entry) -> None:
        entry.users -= 1
        if self._is_to_build(entry):
            self._start(space, entry, self._build)
        elif self._is_outdated(entry):
            self._start(space, entry, self._outdate)
        self._evict()

    async def _view(
        self, space: Space, entry: _Entry, dimension: int, language: str, last_seq: int
    ) -> View:
        view = entry.view
        fits = view is not None and (view.dimension, view.language) == (dimension, language)
        if view is not None and fits and view.is_whole:
            return view
        entry.churn_saved, entry.view = None, None
        if self._snapshots is not None:
            load = partial(self._loaded, self._snapshots, space)
            entry.epoch, view = await run(load, inline=False)
            # One that is ahead may be of another life of the database, and is not trusted.
            fits = view is not None and (view.dimension, view.language) == (dimension, language)
            if view is not None and fits and view.applied_seq <= last_seq:
                entry.view, entry.churn_saved = view, 0
                return view
        view = entry.view = View(dimension, language, self._exact_max_bytes)
        return view

    def _loaded(self, snapshots: Snapshots, space: Space) -> tuple[str, View | None]:
        epoch = snapshots.epoch(space)
        if (dump := snapshots.load(space)) is None:
            return epoch, None
        try:
            return epoch, View.load(dump, self._exact_max_bytes)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the rows are there
            snapshots.refuse(space, type(error).__name__)
            return epoch, None

    def _is_to_build(self, entry: _Entry) -> bool:
        view = entry.view
        return (
            view is not None
            and view.is_whole
            and entry.task is None
            and not self._closing.is_set()
            and view.is_behind
        )

    def _is_to_save(self, entry: _Entry) -> bool:
        view = entry.view
        if view is None or self._snapshots is None or entry.nbytes < self._large_bytes:
            return False
        if view.applied_seq == entry.refused_seq:  # it has to follow first
            return False
        unsaved = view.churn - (entry.churn_saved or 0)
        return entry.churn_saved is None or unsaved > _MOST_UNSAVED * len(view)

    def _is_outdated(self, entry: _Entry) -> bool:
        view = entry.view
        has_file = entry.churn_saved is not None and self._snapshots is not None
        return has_file and view is not None and view.has_lost and entry.task is None

    def _has_time(self) -> bool:
        return len(self._tasks) < _MOST_LEAVING and not self._closing.is_set()

    def _start(
        self, space: Space, entry: _Entry, work: Callable[[Space, _Entry], Awaitable[None]]
    ) -> None:
        async def tend() -> None:
            try:
                await work(space, entry)
            except Exception as error:  # noqa: BLE001 - a graph and a snapshot are only for speed
                cause = type(error).__name__
                log.warning("view not tended", kind=space.kind, user_id=space.user_id, cause=cause)
            finally:
                entry.task = None
                self._evict()

        entry.task = asyncio.create_task(tend())
        self._tasks.add(entry.task)
        entry.task.add_done_callback(self._tasks.discard)

    async def _build(self, space: Space, entry: _Entry) -> None:
        """Bring the graph up to date; save a view before, if it never was, and after."""
        view = entry.view
        if view is None:
            return

        def is_stopped() -> bool:
            return self._closing.is_set() or not self._holds(space, entry, view)

        if entry.churn_saved is None and self._is_to_save(entry):
            await self._save(space, entry)
        await run(partial(view.build, is_stopped), inline=False, executor=self._builder)
        if not is_stopped():
            entry.built_at, entry.nbytes = dt.datetime.now(dt.UTC), view.nbytes
            if self._is_to_save(entry):
                await self._save(space, entry)
        elif entry.view is not view and self._entries.get(space) is entry:
            await self._build(space, entry)  # of the one that has taken its place

    async def _outdate(self, space: Space, entry: _Entry) -> None:
        """Remove the snapshot that has rows the view lost; where they went, it may be unknown."""
        if entry.view is not None and entry.churn_saved is not None:
            await self.removed(space, entry.view.applied_seq)

    async def _save(self, space: Space, entry: _Entry) -> None:
        async with entry.lock:
            view = entry.view
            if view is None or not view.is_whole or self._snapshots is None:
                return
            entry.churn_saved, epoch = view.churn, entry.epoch
            dump = await run(view.dump, inline=False)
        save = partial(self._snapshots.save, space, epoch, dump)
        is_saved = await run(save, inline=False, executor=self._writer)
        if is_saved:
            entry.saved_at = dt.datetime.now(dt.UTC)
        elif is_saved is None:
            entry.churn_saved, entry.refused_seq = None, dump.facts["applied_seq"]
        elif self._holds(space, entry, view):
            self.drop(space)  # another process forgot it: of what is erased nothing may be kept

    def _holds(self, space: Space, entry: _Entry, view: View) -> bool:
        return self._entries.get(space) is entry and entry.view is view

    def _evict(self) -> None:
        total = self.nbytes
        for space in list(self._entries)[:-1]:  # the one used last stays, however large
            if total <= self._memory_bytes:
                return
            entry = self._entries[space]
            if entry.users > 0:
                continue
            total -= entry.nbytes
            if entry.task is None and self._is_to_save(entry) and self._has_time():
                self._start(space, entry, self._save)  # and then it goes
            else:
                del self._entries[space]


def _without_texts(change: Change) -> Change:
    return replace(change, rows=tuple(replace(row, text="") for row in change.rows))


async def _read(
    rows: dict[str, Change],
    seq: int,
    pull: Pull,
    kept: Callable[[Change], Change] = lambda one: one,
) -> int:
    """Read what is `kept` of all changes after `seq` into `rows`, by group; return the last seq."""
    while changes := await pull(seq):
        rows |= {change.group_id: kept(change) for change in changes}
        seq = _newer(seq, changes[-1].seq)
    return seq


def _newer(before: int, seq: int) -> int:
    if seq <= before:
        raise RuntimeError(f"pull({before}) returned no newer change")
    return seq


async def _catch_up(view: View, last_seq: int, pull: Pull) -> None:
    while view.applied_seq < last_seq:
        before = view.applied_seq
        changes = await pull(before)
        if not changes:
            view.advance(last_seq)  # the seqs in between belonged to rows that are gone
            return
        rows = [row for change in changes for row in change.rows]
        small = (
            len(view) + len(rows) <= _INLINE_ROWS
            and sum(len(row.text) for row in rows) <= _INLINE_CHARS
        )
        await run(partial(view.apply, changes), inline=small)
        _newer(before, view.applied_seq)
