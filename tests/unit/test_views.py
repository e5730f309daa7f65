"""The views of a process: catching up, sharing, cancelling, evicting."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from hub_server.retrieval.view import Candidate, Change, IndexedRow, View
from hub_server.retrieval.views import Pull, Space, Views

_DIMENSION = 8
_QUERY = np.ones(_DIMENSION, dtype=np.float32)
_SPACE = Space("tenant", "user", "memory", "model")
_PLENTY = 1 << 30


def _change(seq: int, group: str, text: str | None) -> Change:
    vector = np.random.default_rng(seq).standard_normal(_DIMENSION).astype("<f4").tobytes()
    return Change(group, seq, (IndexedRow(group, text, vector),) if text is not None else ())


class _Log:
    """Stands for the rows in Postgres: a change log read in pages."""

    def __init__(self, *changes: Change, page: int = 2) -> None:
        self.changes = list(changes)
        self.page = page
        self.pulls: list[int] = []

    async def pull(self, applied_seq: int) -> Sequence[Change]:
        self.pulls.append(applied_seq)
        await asyncio.sleep(0)
        return [change for change in self.changes if change.seq > applied_seq][: self.page]

    @property
    def last_seq(self) -> int:
        return max((change.seq for change in self.changes), default=0)


async def _search(
    views: Views,
    log: _Log,
    text: str = "",
    *,
    space: Space = _SPACE,
    language: str = "en",
    last_seq: int | None = None,
    pull: Pull | None = None,
) -> list[Candidate]:
    return await views.search(
        space,
        dimension=_DIMENSION,
        language=language,
        last_seq=log.last_seq if last_seq is None else last_seq,
        pull=pull or log.pull,
        query_text=text,
        query_vector=_QUERY,
        limit=1_000,
    )


def _ids(found: Sequence[Candidate]) -> set[str]:
    return {candidate.row_id for candidate in found}


def _many(first: int, rows: int) -> list[Change]:
    """Return so many changes that their work goes to a thread."""
    return [_change(seq, f"r{seq}", "plum") for seq in range(first, first + rows)]


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_search_sees_every_change_before_it(data: st.DataObject) -> None:
    """Whatever was written before a search, in whatever pages it comes, the search sees."""

    async def run() -> None:
        views, log = Views(_PLENTY, _PLENTY), _Log(page=data.draw(st.integers(1, 4)))
        truth: dict[str, str | None] = {}
        for seq in range(1, data.draw(st.integers(1, 15))):
            group = data.draw(st.sampled_from("abcd"))
            truth[group] = data.draw(st.sampled_from(["fig", "plum", None]))
            # As in Postgres: a group's row bears only its latest seq.
            log.changes = [change for change in log.changes if change.group_id != group]
            log.changes.append(_change(seq, group, truth[group]))
            if data.draw(st.booleans()):
                found = await _search(views, log)
                assert _ids(found) == {name for name, text in truth.items() if text is not None}

    asyncio.run(run())


async def test_only_what_is_new_is_pulled() -> None:
    """A view that is up to date pulls nothing; one that is behind, from where it stands."""
    views, log = Views(_PLENTY, _PLENTY), _Log(_change(1, "a", "fig"), _change(2, "b", "fig"))
    await _search(views, log)
    await _search(views, log)
    log.changes.append(_change(5, "c", "fig"))
    assert _ids(await _search(views, log)) == {"a", "b", "c"}
    assert log.pulls == [0, 2]


async def test_seqs_of_rows_that_are_gone_are_passed_over() -> None:
    """When nothing is left to pull, the view counts as up to date and does not ask again."""
    views, log = Views(_PLENTY, _PLENTY), _Log(_change(1, "a", "fig"))
    for _ in range(2):
        assert _ids(await _search(views, log, last_seq=9)) == {"a"}
    assert log.pulls == [0, 1]


async def test_a_pull_without_progress_is_an_error() -> None:
    """Changes that are not newer than asked for raise; they do not loop for ever."""
    views, log = Views(_PLENTY, _PLENTY), _Log(_change(1, "a", "fig"))

    async def stuck(_: int) -> Sequence[Change]:
        return log.changes

    with pytest.raises(RuntimeError, match=r"pull\(1\) returned no newer change"):
        await _search(views, log, last_seq=2, pull=stuck)


async def test_a_failed_pull_leaves_the_view_usable() -> None:
    """What came before the failure stays, and the next search goes on from there."""
    views, log = Views(_PLENTY, _PLENTY), _Log(*_many(1, 4))

    async def fails_at_second_page(applied_seq: int) -> Sequence[Change]:
        if applied_seq:
            raise ConnectionError
        return await log.pull(applied_seq)

    with pytest.raises(ConnectionError):
        await _search(views, log, pull=fails_at_second_page)
    assert _ids(await _search(views, log)) == {"r1", "r2", "r3", "r4"}
    assert log.pulls == [0, 2]


async def test_spaces_do_not_mix() -> None:
    """A row is found in its own space only: not by another tenant, user, kind or model."""
    views, log = Views(_PLENTY, _PLENTY), _Log(_change(1, "mine", "fig"))
    await _search(views, log)
    for space in (
        Space("other", "user", "memory", "model"),
        Space("tenant", "other", "memory", "model"),
        Space("tenant", "user", "messages", "model"),
        Space("tenant", "user", "memory", "other"),
    ):
        assert await _search(views, _Log(), space=space) == []
    assert _ids(await _search(views, log)) == {"mine"}


async def test_another_language_rebuilds_the_view() -> None:
    """After a user's language changed, words are found by the new language's stems."""
    views, log = Views(_PLENTY, _PLENTY), _Log(_change(1, "a", "die Häuser"))
    english = await _search(views, log, "Haus", language="en")
    german = await _search(views, log, "Haus", language="de")
    assert [one.word_score > 0 for one in (*english, *german)] == [False, True]
    assert log.pulls == [0, 0]


async def test_concurrent_searches_catch_up_once() -> None:
    """Searches of one space that start together pull and apply each change once."""
    views, log = Views(_PLENTY, _PLENTY), _Log(*_many(1, 1_000), page=600)
    found = await asyncio.gather(*(_search(views, log) for _ in range(8)))
    assert [len(one) for one in found] == [1_000] * 8
    assert log.pulls == [0, 600]


class _Gate:
    """Holds a method of every View in its thread until opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.entered = asyncio.Event()
        self.open = threading.Event()
        self.inside = 0
        self.together = 0
        loop, method = asyncio.get_running_loop(), getattr(View, name)

        def held(view: View, *arguments: Any) -> Any:
            self.inside += 1
            self.together = max(self.together, self.inside)
            loop.call_soon_threadsafe(self.entered.set)
            assert self.open.wait(timeout=30)
            try:
                return method(view, *arguments)
            finally:
                self.inside -= 1

        monkeypatch.setattr(View, name, held)


async def test_a_large_apply_leaves_the_event_loop_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a view applies many changes, other work of the process goes on."""
    views, log = Views(_PLENTY, _PLENTY), _Log(*_many(1, 1_000), page=1_000)
    gate = _Gate(monkeypatch, "apply")
    large = asyncio.create_task(_search(views, log))
    await gate.entered.wait()  # the loop runs, although the apply cannot end
    other = Space("tenant", "other", "memory", "model")
    assert await _search(views, _Log(), space=other) == []
    gate.open.set()
    assert len(await large) == 1_000


async def test_cancelling_waits_for_the_apply_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled search ends only after its apply, and the next finds the view whole."""
    views, log = Views(_PLENTY, _PLENTY), _Log(*_many(1, 1_000), page=1_000)
    gate = _Gate(monkeypatch, "apply")
    first = asyncio.create_task(_search(views, log))
    await gate.entered.wait()
    second = asyncio.create_task(_search(views, log))
    for _ in range(3):  # cancelling again must not break what cancelling once does not
        first.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not first.done()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert len(await second) == 1_000
    assert gate.together == 1
    assert log.pulls == [0]  # what the cancelled search applied was kept


async def test_cancelling_waits_for_the_search_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """No change is applied while the thread of a cancelled search still reads the view."""
    views, log = Views(_PLENTY, _PLENTY), _Log(*_many(1, 1_000), page=1_000)
    gate = _Gate(monkeypatch, "search")
    first = asyncio.create_task(_search(views, log))
    await gate.entered.wait()
    first.cancel()
    log.changes.append(_change(1_001, "new", "plum"))
    second = asyncio.create_task(_search(views, log))
    for _ in range(5):
        await asyncio.sleep(0)
    assert log.pulls == [0]
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    assert gate.together == 1


async def test_cancelling_a_pull_leaves_the_view_usable() -> None:
    """A search cancelled while it waits for changes gives the view free."""
    views, log, waiting = Views(_PLENTY, _PLENTY), _Log(_change(1, "a", "fig")), asyncio.Event()

    async def never(_: int) -> Sequence[Change]:
        waiting.set()
        await asyncio.Event().wait()
        return []

    search = asyncio.create_task(_search(views, log, pull=never))
    await waiting.wait()
    search.cancel()
    with pytest.raises(asyncio.CancelledError):
        await search
    assert _ids(await _search(views, log)) == {"a"}


def _spaces(count: int) -> list[Space]:
    return [Space("tenant", f"user{number}", "memory", "model") for number in range(count)]


async def _bytes_of_one() -> int:
    views = Views(_PLENTY, _PLENTY)
    await _search(views, _Log(*_many(1, 50), page=50))
    return views.nbytes


async def test_the_views_used_least_recently_go_first() -> None:
    """Over the budget, the view unused for longest is dropped, and rebuilt when asked again."""
    views, log = Views(_PLENTY, 3 * await _bytes_of_one()), _Log(*_many(1, 50), page=50)
    first, second, third, fourth = _spaces(4)
    for space in (first, second, third, first, fourth):
        assert len(await _search(views, log, space=space)) == 50
    assert len(views) == 3
    log.pulls.clear()
    for space in (first, third, fourth):
        await _search(views, log, space=space)
    assert log.pulls == []
    await _search(views, log, space=second)
    assert log.pulls == [0]


async def test_one_view_over_the_budget_alone_works() -> None:
    """A view larger than the whole budget is kept until another space is searched."""
    views, log = Views(_PLENTY, 1), _Log(*_many(1, 50), page=50)
    for _ in range(2):
        assert len(await _search(views, log)) == 50
    assert log.pulls == [0]
    await _search(views, log, space=_spaces(1)[0])
    assert len(views) == 1


async def test_a_view_in_use_is_not_evicted() -> None:
    """Another space's search over the budget does not take away a view that is catching up."""
    views, log = Views(_PLENTY, 1), _Log(*_many(1, 50), page=25)
    waiting, go = asyncio.Event(), asyncio.Event()

    async def slow(applied_seq: int) -> Sequence[Change]:
        if applied_seq:
            waiting.set()
            await go.wait()
        return await log.pull(applied_seq)

    search = asyncio.create_task(_search(views, log, pull=slow))
    await waiting.wait()
    await _search(views, _Log(*_many(1, 50)), space=_spaces(1)[0])
    same = asyncio.create_task(_search(views, log))
    go.set()
    assert len(await search) == len(await same) == 50
    assert log.pulls.count(25) == 1


async def test_a_dropped_view_is_built_anew() -> None:
    """After drop nothing of the view is held; a search in flight ends and does not revive it."""
    views, log = Views(_PLENTY, _PLENTY), _Log(_change(1, "a", "fig"))
    views.drop(_SPACE)
    await _search(views, log)
    waiting, go = asyncio.Event(), asyncio.Event()

    async def slow(_: int) -> Sequence[Change]:
        waiting.set()
        await go.wait()
        return []

    search = asyncio.create_task(_search(views, log, pull=slow, last_seq=2))
    await waiting.wait()
    views.drop(_SPACE)
    go.set()
    assert _ids(await search) == {"a"}
    assert (len(views), views.nbytes) == (0, 0)
    log.changes = []
    assert await _search(views, log) == []
