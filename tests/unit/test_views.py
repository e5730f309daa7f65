"""The views of a process: catching up, sharing, cancelling, evicting."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from hub_server.retrieval.graph import Graph
from hub_server.retrieval.matrix import Matrix
from hub_server.retrieval.ranking import Labels
from hub_server.retrieval.snapshots import Snapshots
from hub_server.retrieval.stats import Stats
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
    among: Sequence[str] | None = None,
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
        among=among,
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


async def test_a_search_may_be_confined_to_some_ids() -> None:
    """Only rows of the ids that were given come, the newest among them."""
    views, log = Views(_PLENTY, _PLENTY), _Log(*_many(1, 9))
    await _search(views, log)
    log.changes.append(_change(10, "new", "plum"))
    assert _ids(await _search(views, log, among=["r3", "new", "gone"])) == {"r3", "new"}
    assert _ids(await _search(views, log, among=[])) == set()


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


def _kept(folder: Path, *, memory_bytes: int = _PLENTY, exact_max_bytes: int = 0) -> Views:
    """Return views of which every one is worth a graph and a snapshot."""
    return Views(exact_max_bytes, memory_bytes, folder, large_bytes=0)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.view"))


async def _stats(views: Views, space: Space = _SPACE) -> Stats:
    stats = await views.stats(space)
    assert stats is not None
    return stats


async def test_searches_go_on_while_a_graph_is_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the builder held up, searches of this and other spaces see all there is at once."""
    views, log, go = _kept(tmp_path), _Log(*_many(1, 700), page=700), threading.Event()
    add = Graph.add

    def held(graph: Graph, labels: Labels, matrix: Matrix) -> None:
        assert go.wait(timeout=30)
        add(graph, labels, matrix)

    monkeypatch.setattr(Graph, "add", held)
    assert len(await _search(views, log)) == 700
    expected: set[str] = set()
    for seq in range(701, 711, 2):
        log.changes = [one for one in log.changes if one.group_id != f"r{seq - 700}"]
        log.changes += [_change(seq, f"r{seq - 700}", None), _change(seq + 1, f"n{seq}", "fig")]
        expected = {change.group_id for change in log.changes if change.rows}
        assert _ids(await _search(views, log)) == expected
        assert len(await _search(views, _Log(*_many(1, 9), page=9), space=_spaces(1)[0])) == 9
    stats = await _stats(views)
    assert (stats.in_graph, stats.is_at_work) == (0, True)
    go.set()
    await views.settled()
    await _search(views, log)
    await views.settled()
    stats = await _stats(views)
    assert (stats.in_graph, stats.rows, stats.is_at_work) == (700, 700, False)
    assert stats.built_at is not None
    assert _ids(await _search(views, log)) == expected
    await views.close()


async def test_closing_gives_up_a_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The end of the process waits for no graph, and the rows are saved without it."""
    views, log, began = _kept(tmp_path), _Log(*_many(1, 2_000), page=2_000), threading.Event()
    add, steps = Graph.add, list[int]()

    def slow(graph: Graph, labels: Labels, matrix: Matrix) -> None:
        began.set()
        assert views._closing.wait(timeout=30)
        steps.append(len(labels))
        add(graph, labels, matrix)

    monkeypatch.setattr(Graph, "add", slow)
    await _search(views, log)
    await asyncio.to_thread(began.wait, 30)
    await views.close()
    assert len(steps) == 1
    again = _kept(tmp_path)
    log.pulls.clear()
    assert len(await _search(again, log)) == 1_000
    assert log.pulls == []


@pytest.mark.parametrize("exact_max_bytes", [0, _PLENTY], ids=["graph", "exact"])
async def test_a_view_goes_on_from_its_snapshot(tmp_path: Path, exact_max_bytes: int) -> None:
    """After a restart only what is newer than the snapshot is pulled; the answers are the same."""
    log = _Log(*_many(1, 300), page=300)
    views = _kept(tmp_path, exact_max_bytes=exact_max_bytes)
    await _search(views, log)
    await views.close()
    log.changes[0] = _change(301, "r1", None)
    log.changes.append(_change(302, "new", "plum"))
    log.pulls.clear()
    again = _kept(tmp_path, exact_max_bytes=exact_max_bytes)
    found = await _search(again, log, "plum")
    assert log.pulls == [300]
    fresh = await _search(Views(exact_max_bytes, _PLENTY), log, "plum")
    assert [one.row_id for one in found] == [one.row_id for one in fresh]
    assert [one.score for one in found] == pytest.approx([one.score for one in fresh], abs=1e-5)
    await again.close()


async def test_an_evicted_view_is_saved_and_comes_back(tmp_path: Path) -> None:
    """What the budget drops is on disk first; unchanged, it is not written again."""
    views, log = _kept(tmp_path, memory_bytes=1, exact_max_bytes=_PLENTY), _Log(*_many(1, 50))
    log.page = 50
    one, two = _spaces(2)
    for _ in range(3):
        for space in (one, two):
            assert len(await _search(views, log, space=space)) == 50
            await views.settled()
    assert (len(views), log.pulls) == (1, [0, 0])
    written = {file: file.stat().st_mtime_ns for file in _files(tmp_path)}
    await _search(views, log, space=one)
    await views.close()
    assert {file: file.stat().st_mtime_ns for file in _files(tmp_path)} == written
    assert len(written) == 2


async def test_small_views_are_not_saved(tmp_path: Path) -> None:
    """A view that is built as fast as it is read from disk has no file."""
    views = Views(_PLENTY, _PLENTY, tmp_path)
    await _search(views, _Log(*_many(1, 50), page=50))
    await views.close()
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240


@pytest.mark.parametrize("damage", [b"", b"cortex hub view\n", b"\0" * 5_000])
async def test_a_bad_snapshot_means_a_rebuild(tmp_path: Path, damage: bytes) -> None:
    """Whatever is in its place, the view is made from the rows, and saved again."""
    views, log = _kept(tmp_path), _Log(*_many(1, 50), page=50)
    await _search(views, log)
    await views.close()
    (file,) = _files(tmp_path)
    file.write_bytes(damage)
    log.pulls.clear()
    again = _kept(tmp_path)
    assert len(await _search(again, log)) == 50
    assert log.pulls == [0]
    await again.close()
    assert file.stat().st_size > len(damage)


async def test_a_snapshot_that_cannot_be_taken_up_means_a_rebuild(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong in making a view of a whole snapshot, it is refused, and no error."""
    views, log = _kept(tmp_path), _Log(*_many(1, 50), page=50)
    await _search(views, log)
    await views.close()

    def broken(*_: object) -> View:
        raise IndexError

    monkeypatch.setattr(View, "load", broken)
    assert len(await _search(_kept(tmp_path), log)) == 50
    assert _files(tmp_path) == []


async def test_a_snapshot_ahead_of_the_rows_is_not_trusted(tmp_path: Path) -> None:
    """After the database went back in time, the view is made from the rows there are."""
    views, log = _kept(tmp_path), _Log(*_many(1, 50), page=50)
    await _search(views, log)
    await views.close()
    log.changes = log.changes[:20]
    again = _kept(tmp_path)
    assert len(await _search(again, log)) == 20
    await again.close()


async def test_forgetting_removes_view_and_files(tmp_path: Path) -> None:
    """Nothing of the space is left in memory or on disk, of whatever model; it is made anew."""
    views, log = _kept(tmp_path), _Log(*_many(1, 50), page=50)
    old = Space("tenant", "user", "memory", "old")
    for space in (_SPACE, old):
        await _search(views, log, space=space)
    await views.settled()
    assert len(_files(tmp_path)) == 2
    await views.forget(_SPACE)
    assert (len(views), _files(tmp_path)) == (0, [])
    log.changes = log.changes[1:]
    assert len(await _search(views, log)) == 49
    await views.close()
    assert len(_files(tmp_path)) == 1


async def test_what_a_view_lost_is_in_no_snapshot(tmp_path: Path) -> None:
    """A search that learns of a removal removes the snapshot; the next one lacks those words."""
    views, log = _kept(tmp_path), _Log(*_many(1, 50), page=50)
    log.changes.append(_change(51, "gone", "medlar"))
    await _search(views, log)
    await views.settled()
    (file,) = _files(tmp_path)
    assert b"medlar" in file.read_bytes()
    log.changes[-1] = _change(52, "gone", None)
    await _search(views, log)
    await views.settled()
    assert _files(tmp_path) == []
    assert len(views) == 1
    await views.close()
    assert b"medlar" not in file.read_bytes()


async def test_a_view_that_lags_is_kept_but_not_saved(tmp_path: Path) -> None:
    """Told of a removal it has not followed, it stays; once it has, it is saved again."""
    views, log = _kept(tmp_path, exact_max_bytes=_PLENTY), _Log(*_many(1, 50), page=50)
    await _search(views, log)
    await views.removed(_SPACE, 51)
    one, other = _SPACE, _spaces(1)[0]
    views._memory_bytes = 1
    await _search(views, log, space=other)  # which sends the first away
    await views.settled()
    assert len(_files(tmp_path)) == 0
    views._memory_bytes = _PLENTY
    log.changes[0] = _change(51, "r1", None)
    assert len(await _search(views, log, space=one)) == 49
    await views.close()
    assert len(_files(tmp_path)) == 2


async def test_a_view_that_another_process_forgot_is_not_saved(tmp_path: Path) -> None:
    """It is dropped in place of being saved, and what is made of the rows then is saved."""
    views, log = _kept(tmp_path, exact_max_bytes=_PLENTY), _Log(*_many(1, 50), page=50)
    await _search(views, log)
    Snapshots(tmp_path).forget(_SPACE)
    await views.close()
    assert (len(views), _files(tmp_path)) == (0, [])


async def test_a_full_disk_disturbs_no_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot that cannot be written is told in the log; views and eviction go on."""

    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Snapshots, "save", full)
    views, log = _kept(tmp_path, memory_bytes=1), _Log(*_many(1, 50), page=50)
    for space in _spaces(3) * 2:
        assert len(await _search(views, log, space=space)) == 50
        await views.settled()
    assert len(views) == 1
    await views.close()


async def test_a_check_tells_what_a_view_lacks_or_has_too_much() -> None:
    """A view that follows the rows has no flaws; one that was tampered with has them named."""
    views, log = Views(0, _PLENTY), _Log(*_many(1, 40), page=7)

    async def check() -> tuple[int, list[str], list[str], list[str], float]:
        told = await views.check(
            _SPACE, dimension=_DIMENSION, language="en", last_seq=log.last_seq, pull=log.pull
        )
        flaws = told.flaws
        return told.rows, [*flaws.missing], [*flaws.ghost], [*flaws.stale], told.recall

    assert await check() == (40, [], [], [], 1.0)
    await views.settled()
    log.changes.append(_change(41, "new", "fig"))
    assert await check() == (41, [], [], [], 1.0)
    view = views._entries[_SPACE].view
    assert view is not None
    view._groups["r1"] = view._groups["r1"].__class__(9, view._groups["r1"].labels)
    view._remove(["r2"])
    log.changes = [change for change in log.changes if change.group_id != "r3"]
    assert await check() == (40, ["r2"], ["r3"], ["r1"], 1.0)
    await views.close()


async def test_a_check_amid_writes_finds_no_flaws() -> None:
    """Rows that change while a view is compared with them are neither missing nor stale."""
    views, log = Views(_PLENTY, _PLENTY), _Log(*_many(1, 30), page=5)
    seqs = iter(range(31, 10_000))

    async def pull(after: int) -> Sequence[Change]:
        changes = await log.pull(after)
        if changes and (seq := next(seqs)) < 60:  # and another change comes right after the read
            name = f"r{seq - 30}" if seq % 2 else f"n{seq}"
            log.changes = [change for change in log.changes if change.group_id != name]
            log.changes.append(_change(seq, name, "fig"))
            if seq % 5 == 0:  # which a search may see before the check does
                searches.append(asyncio.create_task(_search(views, log)))
        return changes

    searches: list[asyncio.Task[list[Candidate]]] = []
    for _ in range(4):
        told = await views.check(
            _SPACE, dimension=_DIMENSION, language="en", last_seq=log.last_seq, pull=pull
        )
        assert (told.flaws.missing, told.flaws.ghost, told.flaws.stale) == ([], [], [])
    await asyncio.gather(*searches)
    assert _ids(await _search(views, log)) == {change.group_id for change in log.changes}


async def test_a_rebuild_takes_nothing_from_what_was(tmp_path: Path) -> None:
    """Made anew, a view holds what the rows do; until then searches use the one there was."""
    views, log = _kept(tmp_path, exact_max_bytes=0), _Log(*_many(1, 40), page=20)
    await _search(views, log)
    await views.settled()
    old = views._entries[_SPACE].view
    assert old is not None
    assert len(_files(tmp_path)) == 1
    old._remove(["r1"])  # a fault
    found: list[set[str]] = []

    async def pull(after: int) -> Sequence[Change]:
        assert not _files(tmp_path)
        found.append(_ids(await _search(views, log)))
        return await log.pull(after)

    log.changes.append(_change(41, "new", "fig"))
    await _rebuild(views, log, pull)
    flawed = {f"r{number}" for number in range(2, 41)} | {"new"}
    assert found == [flawed] * 3
    assert _ids(await _search(views, log)) == flawed | {"r1"}
    await views.settled()
    assert ((await _stats(views)).in_graph, len(_files(tmp_path))) == (41, 1)
    assert await views.snapshot_bytes(_SPACE) == _files(tmp_path)[0].stat().st_size
    await views.close()


async def test_what_is_erased_during_a_rebuild_is_not_in_it(tmp_path: Path) -> None:
    """What was begun before is forgotten with all else, and not saved either."""
    views, log = _kept(tmp_path), _Log(*_many(1, 40), page=20)

    async def pull(after: int) -> Sequence[Change]:
        changes = await log.pull(after)
        if len(log.pulls) == 1:
            log.changes = log.changes[1:]  # erased: no row is left to tell of it
            await views.forget(_SPACE)
        return changes

    await _rebuild(views, log, pull)
    await views.settled()
    assert not _files(tmp_path)
    assert _ids(await _search(views, log)) == {f"r{number}" for number in range(2, 41)}
    await views.close()


async def _rebuild(views: Views, log: _Log, pull: Pull) -> None:
    await views.rebuild(
        _SPACE, dimension=_DIMENSION, language="en", last_seq=log.last_seq, pull=pull
    )


class _Life:
    """One space through the lives of a process that keeps snapshots, beside what is true."""

    def __init__(self, data: st.DataObject, folder: Path) -> None:
        self.data, self.folder = data, folder
        self.log, self.truth = _Log(page=7), dict[str, IndexedRow]()
        self.views = self.begin()

    def begin(self) -> Views:
        # Ten rows are exact, so views of both kinds come and go.
        return _kept(self.folder, memory_bytes=40_000, exact_max_bytes=10 * _DIMENSION * 4)

    async def write(self) -> None:
        """Add, change or delete some groups."""
        for _ in range(self.data.draw(st.integers(1, 12))):
            group = f"g{self.data.draw(st.integers(0, 40))}"
            text = self.data.draw(st.sampled_from(["fig", "plum", "fig plum", None]))
            change = _change(self.log.last_seq + 1, group, text)
            # A deletion leaves its seq behind, as in Postgres.
            self.log.changes = [one for one in self.log.changes if one.group_id != group]
            self.log.changes.append(change)
            self.truth.pop(group, None)
            self.truth |= {row.row_id: row for row in change.rows}

    async def search(self) -> None:
        """Compare a search with the truth: every row, its cosine and whether it has the word."""
        found = await _search(self.views, self.log, "plum")
        vectors = {one: np.frombuffer(row.vector, "<f4") for one, row in self.truth.items()}
        assert {one.row_id: one.vector_score for one in found} == pytest.approx(
            {
                one: float(vector @ _QUERY / np.linalg.norm(vector) / np.linalg.norm(_QUERY))
                for one, vector in vectors.items()
            },
            abs=1e-5,
        )
        assert {one.row_id for one in found if one.word_score > 0} == {
            one for one, row in self.truth.items() if "plum" in row.text
        }

    async def build(self) -> None:
        await self.views.settled()

    async def evict(self) -> None:
        """Search another space, which takes all the memory there is."""
        await _search(self.views, _Log(*_many(1, 80), page=80), space=_spaces(1)[0])

    async def restart(self) -> None:
        await self.views.close()
        self.views = self.begin()

    async def crash(self) -> None:
        """Leave everything as it is, builds and writes under way included."""
        self.left = self.views
        self.views = self.begin()

    async def damage(self) -> None:
        # Drawn in any case: how many files there are by now, and how long, is up to threads.
        share = self.data.draw(st.integers(0, 999)) / 1_000
        for file in _files(self.folder):
            content = bytearray(file.read_bytes())
            content[int(share * len(content))] ^= 1
            file.write_bytes(content)

    async def forget(self) -> None:
        await self.views.forget(_SPACE)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_happens_a_search_is_right(data: st.DataObject) -> None:
    """Writes, searches, builds, evictions, restarts, crashes, damage, in any order."""

    async def run(folder: str) -> None:
        life = _Life(data, Path(folder))
        steps = [life.write, life.search, life.build, life.evict]
        steps += [life.restart, life.crash, life.damage, life.forget]
        weights = [*steps, life.write, life.search, life.write, life.search]
        for _ in range(data.draw(st.integers(3, 14))):
            await data.draw(st.sampled_from(weights))()
        await life.search()
        await life.views.close()

    with TemporaryDirectory() as folder:
        asyncio.run(run(folder))
