"""The views of one process: brought up to date before each search, evicted by bytes."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from hub_server.retrieval.matrix import Matrix
from hub_server.retrieval.view import Candidate, Change, View

__all__ = ["Pull", "Space", "Views"]

Pull = Callable[[int], Awaitable[Sequence[Change]]]
"""Returns the next page of changes with seq > the argument, in seq order; empty = none left."""

_Result = TypeVar("_Result")

# Work on at most so much runs on the event loop, where it takes about a millisecond at most
# (measured on one core of two: searching 500 abstracts of 1,000 characters by a sentence 0.6 ms,
# applying 4,000 characters 1.1 ms); a thread would add its hop and the wait for the interpreter.
_INLINE_ROWS = 500
_INLINE_CHARS = 2_000


@dataclass(frozen=True, slots=True)
class Space:
    """What a view is of: one user's rows of one kind, embedded by one model."""

    tenant_id: str
    user_id: str
    kind: str
    embedding_model: str


@dataclass(slots=True)
class _Entry:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    view: View | None = None
    users: int = 0  # searches that hold or await the lock: not to be evicted
    nbytes: int = 0


class Views:
    """Holds the views of a process, on one event loop."""

    def __init__(self, exact_max_bytes: int, memory_bytes: int) -> None:
        """Start empty.

        Args:
            exact_max_bytes: Live vectors of one view up to which it searches exactly.
            memory_bytes: All views together; above, those unused for longest are dropped. A
                view in use stays, so one that is larger than this by itself still works.

        """
        self._exact_max_bytes = exact_max_bytes
        self._memory_bytes = memory_bytes
        self._entries: OrderedDict[Space, _Entry] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        """Return the number of views held."""
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Estimate of the memory all views hold, in bytes."""
        return sum(entry.nbytes for entry in self._entries.values())

    async def search(
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
    ) -> list[Candidate]:
        """Bring the view of `space` up to `last_seq`, then return its `limit` best rows.

        A view of another language or dimension is rebuilt, as is one that a change broke. Errors
        of `pull` pass through; what was applied before them stays.

        Raises:
            ValueError: the query vector is zero, not finite, or of another dimension.
            RuntimeError: `pull` returned changes, but none newer than asked for.

        """
        entry = self._entries.setdefault(space, _Entry())
        self._entries.move_to_end(space)
        entry.users += 1
        try:
            async with entry.lock:
                view = self._view(entry, dimension, language)
                try:
                    await _catch_up(view, last_seq, pull)
                    small = len(view) <= _INLINE_ROWS and len(query_text) <= _INLINE_CHARS
                    search = partial(view.search, query_text, query_vector, limit)
                    return await _run(search, inline=small)
                finally:
                    entry.nbytes = view.nbytes
        finally:
            entry.users -= 1
            self._evict(keep=space)

    def drop(self, space: Space) -> None:
        """Forget the view of `space`. A search that is using it ends on the forgotten one."""
        self._entries.pop(space, None)

    def _view(self, entry: _Entry, dimension: int, language: str) -> View:
        view = entry.view
        fits = view is not None and (view.dimension, view.language) == (dimension, language)
        if view is None or not fits or not view.is_whole:
            view = entry.view = View(dimension, language, self._exact_max_bytes)
        return view

    def _evict(self, keep: Space) -> None:
        total = self.nbytes
        for space in list(self._entries):
            if total <= self._memory_bytes:
                return
            entry = self._entries[space]
            if space != keep and entry.users == 0:
                total -= entry.nbytes
                del self._entries[space]


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
        await _run(partial(view.apply, changes), inline=small)
        if view.applied_seq <= before:
            raise RuntimeError(f"pull({before}) returned no newer change")


async def _run(work: Callable[[], _Result], *, inline: bool) -> _Result:
    """Run `work` here or in a thread; when cancelled, first wait for the thread to end.

    A thread cannot be stopped. If its caller left the lock while it still changed the view, the
    next search would read a view in mid-change. Nor can anyone else cancel the wait: what is
    awaited is the executor's future, which is no task.
    """
    if inline:
        return work()
    future = asyncio.get_running_loop().run_in_executor(None, work)
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
