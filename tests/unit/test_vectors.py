"""One suite for the vector index: exact, with a graph, with a graph that lacks the last rows."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from hub_server.retrieval.graph import Graph
from hub_server.retrieval.matrix import Matrix
from hub_server.retrieval.ranking import Labels
from hub_server.retrieval.vectors import VectorIndex

_DIMENSION = 16
_New = Callable[[int], VectorIndex]
_PLENTY = 1 << 30


class Grown(VectorIndex):
    """Has all its rows in a graph, whatever is done to it."""

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension, 0)

    def add(self, labels: Labels, matrix: Matrix) -> None:
        """Add, and build."""
        super().add(labels, matrix)
        self.build(_never)

    def remove(self, labels: Labels) -> None:
        """Remove, and build."""
        super().remove(labels)
        self.build(_never)


class Behind(VectorIndex):
    """Has only its first rows in a graph, as while one is built."""

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension, 0)

    def add(self, labels: Labels, matrix: Matrix) -> None:
        """Add, and build."""
        super().add(labels, matrix)
        if self._graph is None:
            self.build(_never)


def _never() -> bool:
    return False


def _exact(dimension: int) -> VectorIndex:
    return VectorIndex(dimension, _PLENTY)


_ALL = pytest.mark.parametrize("new", [_exact, Grown, Behind])


def _random(rows: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((rows, _DIMENSION)).astype(np.float32)


def _filled(new: _New, matrix: Matrix) -> VectorIndex:
    index = new(matrix.shape[1])
    index.add(np.arange(len(matrix)), matrix)
    return index


def _cosines(matrix: Matrix, query: Matrix) -> Matrix:
    lengths = np.linalg.norm(matrix, axis=1) * np.linalg.norm(query)
    cosines: Matrix = matrix @ query / lengths
    return cosines


@_ALL
def test_finds_the_nearest_with_their_cosines(new: _New) -> None:
    """The nearest rows come first, scored by cosine, whatever the vectors' lengths."""
    matrix, query = _random(200) * 7, _random(1, seed=1)[0]
    labels, scores = _filled(new, matrix).search(query, 10)
    expected = _cosines(matrix, query)
    assert labels.tolist() == np.argsort(-expected)[:10].tolist()
    assert scores == pytest.approx(expected[labels], abs=1e-5)


@_ALL
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_live_rows_and_only_they_are_found(new: _New, data: st.DataObject) -> None:
    """After any adds and removes, asking for all gives every live row once, with its cosine."""
    index, rows, first = new(_DIMENSION), dict[int, Matrix](), 0
    query = _random(1, seed=99)[0]
    for step in range(data.draw(st.integers(1, 6))):
        matrix = _random(data.draw(st.integers(0, 25)), seed=step)
        labels = np.arange(first, first + len(matrix))
        index.add(labels, matrix)
        rows.update(zip(labels.tolist(), matrix, strict=True))
        first += len(matrix)
        gone = data.draw(st.sets(st.sampled_from(sorted(rows)))) if rows else set[int]()
        index.remove(np.array(sorted(gone), dtype=np.int64))
        rows = {label: row for label, row in rows.items() if label not in gone}
        found = dict(zip(*(part.tolist() for part in index.search(query, 500)), strict=True))
        assert len(index) == len(rows) == len(found)
        expected = {label: float(_cosines(row[None], query)[0]) for label, row in rows.items()}
        assert found == pytest.approx(expected, abs=1e-5)


@_ALL
@pytest.mark.parametrize("k", [1, 5, 40, 1_000])
def test_deleted_rows_do_not_crowd_out_live_ones(new: _New, k: int) -> None:
    """With deleted rows nearer to the query than any live one, k live rows still come back."""
    far, near = _random(300), _random(70, seed=1) * 0.01 + np.float32(1)
    index = _filled(new, np.vstack([far, near]))
    index.remove(np.arange(300, 370))  # just under a fifth: no rebuild helps
    labels, _ = index.search(np.ones(_DIMENSION, dtype=np.float32), k)
    assert len(labels) == min(k, 300)
    assert labels.max() < 300


@_ALL
def test_many_copies_of_one_vector_are_all_found(new: _New) -> None:
    """Equal vectors, which hnswlib's graph links badly, are all returned, lower labels first."""
    index = _filled(new, np.ones((150, _DIMENSION), dtype=np.float32))
    labels, scores = index.search(np.ones(_DIMENSION, dtype=np.float32), 150)
    assert sorted(labels.tolist()) == list(range(150))
    assert scores == pytest.approx(np.ones(150), abs=1e-5)


@_ALL
@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, -np.inf])
def test_vectors_without_direction_are_refused_whole(new: _New, bad: float) -> None:
    """A zero, infinite or NaN row is a ValueError, and none of its batch is added."""
    index, matrix = new(_DIMENSION), _random(3)
    matrix[1] = bad
    with pytest.raises(ValueError, match="zero, infinite or not a number"):
        index.add(np.arange(3), matrix)
    assert len(index) == 0
    index.add(np.arange(3), _random(3))
    with pytest.raises(ValueError, match="zero, infinite or not a number"):
        index.search(np.full(_DIMENSION, bad, dtype=np.float32), 1)


@_ALL
def test_extreme_lengths_are_no_obstacle(new: _New) -> None:
    """Vectors whose squares leave float32 are indexed by their direction."""
    matrix = np.eye(2, _DIMENSION, dtype=np.float32)
    matrix[0, 0], matrix[1, 1] = 1e30, 1e-30
    labels, scores = _filled(new, matrix).search(matrix[1], 1)
    assert (labels.tolist(), scores.tolist()) == ([1], pytest.approx([1.0]))


@_ALL
def test_shapes_are_checked(new: _New) -> None:
    """Rows of another dimension, or not as many as labels, are a ValueError."""
    index = new(_DIMENSION)
    with pytest.raises(ValueError, match="shape"):
        index.add(np.arange(2), np.ones((2, _DIMENSION + 1), dtype=np.float32))
    with pytest.raises(ValueError, match="labels"):
        index.add(np.arange(3), _random(2))
    with pytest.raises(ValueError, match="shape"):
        index.search(np.ones(_DIMENSION - 1, dtype=np.float32), 1)


@_ALL
@pytest.mark.parametrize("labels", [[1, 2], [4, 4], [3, 5]])
def test_a_label_is_never_used_twice(new: _New, labels: list[int]) -> None:
    """A label, live or removed, cannot be added again, even after a rebuild."""
    index = _filled(new, _random(4))
    index.remove(np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="labels must ascend"):
        index.add(np.array(labels), _random(2))
    assert len(index) == 1


@_ALL
def test_removing_an_unknown_row_removes_nothing(new: _New) -> None:
    """One unknown or already removed label fails the whole removal."""
    index = _filled(new, _random(10))
    index.remove(np.array([4]))
    for labels in ([5, 4], [5, 99]):
        with pytest.raises(KeyError):
            index.remove(np.array(labels))
    assert index.search(_random(1)[0], 10)[0].size == len(index) == 9


@_ALL
def test_dead_rows_are_rebuilt_away(new: _New) -> None:
    """Past a fifth dead, memory goes back to what the live rows need."""
    index = _filled(new, _random(1_000))
    full = index.nbytes
    index.remove(np.arange(900))
    index.build(_never)
    assert index.nbytes < full / 5
    assert index.dead == 0


@_ALL
def test_empty_answers(new: _New) -> None:
    """An empty index, and a k of zero or less, answer with nothing."""
    assert new(_DIMENSION).search(_random(1)[0], 5)[0].size == 0
    for k in (0, -3):
        assert _filled(new, _random(5)).search(_random(1)[0], k)[0].size == 0


def test_hnsw_finds_nearly_all_of_the_nearest() -> None:
    """A graph finds at least 95 % of the true ten nearest, a tenth of the rows being dead."""
    matrix = _random(3_000)
    exact, hnsw = _filled(_exact, matrix), _filled(Grown, matrix)
    for index in (exact, hnsw):
        index.remove(np.arange(0, 3_000, 10))
    hits = [
        len(set(exact.search(query, 10)[0]) & set(hnsw.search(query, 10)[0]))
        for query in _random(100, seed=1)
    ]
    assert np.mean(hits) >= 9.5


def _graph(index: VectorIndex) -> Graph:
    assert index._graph is not None
    return index._graph


def test_an_exact_answer_where_the_library_gives_up() -> None:
    """When hnswlib cannot reach k rows, the answer is the exact one, not an error."""
    matrix, query = _random(50), _random(1, seed=1)[0]
    index = _filled(Grown, matrix)
    expected = _filled(_exact, matrix).search(query, 5)[0].tolist()
    library = _graph(index)._index
    message = "Cannot return the results"
    with pytest.raises(RuntimeError, match=message):  # what it says, so that we can tell
        library.knn_query(query, k=51)

    class GivesUp:
        def __getattr__(self, name: str) -> Any:
            return getattr(library, name)

        def knn_query(self, *_: Any, **__: Any) -> None:
            raise RuntimeError(message + " in a contiguous 2D array")

    _graph(index)._index = GivesUp()
    assert index.search(query, 5)[0].tolist() == expected


class _Gate:
    """Holds whoever adds to a graph until opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        add = Graph.add

        def held(graph: Graph, labels: Labels, matrix: Matrix) -> None:
            self.entered.set()
            assert self.open.wait(timeout=30)
            add(graph, labels, matrix)

        monkeypatch.setattr(Graph, "add", held)


def _assert_exact(index: VectorIndex, rows: dict[int, Matrix], seed: int) -> None:
    """Every live row is found once, with its cosine; and the ten nearest, in order."""
    query = _random(1, seed=seed)[0]
    expected = {label: float(_cosines(row[None], query)[0]) for label, row in rows.items()}
    found = dict(zip(*(part.tolist() for part in index.search(query, 5_000)), strict=True))
    assert found == pytest.approx(expected, abs=1e-5)
    nearest = sorted(expected, key=lambda label: -expected[label])[:10]
    assert index.search(query, 10)[0].tolist() == nearest


@pytest.mark.parametrize("has_graph", [False, True], ids=["first build", "rebuild"])
def test_no_search_waits_for_a_build_or_misses_a_row(
    has_graph: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While a graph is built, rows come, go and are found at once, and so they are after it."""
    index, rows = VectorIndex(_DIMENSION, 0), dict(enumerate(_random(600)))
    index.add(np.arange(600), _random(600))
    if has_graph:
        index.build(_never)
        index.remove(np.arange(200))  # over a fifth
        rows = {label: row for label, row in rows.items() if label >= 200}
    gate = _Gate(monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        try:
            built = pool.submit(index.build, _never)
            assert gate.entered.wait(timeout=30)
            for step in range(5):
                new, labels = _random(20, seed=step + 1), np.arange(20) + 600 + 20 * step
                index.add(labels, new)
                rows.update(zip(labels.tolist(), new, strict=True))
                gone = np.array([300 + step, 601 + 20 * step])
                index.remove(gone)
                rows = {label: row for label, row in rows.items() if label not in gone}
                _assert_exact(index, rows, seed=step)
            assert not built.done()
        finally:
            gate.open.set()
        built.result()
    assert (index.in_graph, len(index)) == (len(rows), len(rows))
    assert not index.is_behind
    _assert_exact(index, rows, seed=9)


def test_a_second_build_leaves_it_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """One build at a time: another returns at once and does nothing."""
    index, gate = VectorIndex(_DIMENSION, 0), _Gate(monkeypatch)
    index.add(np.arange(30), _random(30))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(index.build, _never)
        assert gate.entered.wait(timeout=30)
        index.build(_never)
        assert (index.in_graph, first.done()) == (0, False)
        gate.open.set()
    assert index.in_graph == 30


@pytest.mark.parametrize("rows", [1_000, 1_100], ids=["first build", "growth"])
def test_a_build_that_is_stopped_can_go_on(rows: int) -> None:
    """A build ends soon after it is stopped; the index stays right, and the next one finishes."""
    index, matrix = VectorIndex(_DIMENSION, 0), _random(1_100)
    index.add(np.arange(1_000), matrix[:1_000])
    if rows > 1_000:
        index.build(_never)
        index.add(np.arange(1_000, rows), matrix[1_000:rows])
    asked = iter([False] * 3 + [True] * 9)
    index.build(lambda: next(asked))
    assert index.is_behind
    _assert_exact(index, dict(enumerate(matrix[:rows])), seed=5)
    index.build(_never)
    assert (index.in_graph, index.is_behind) == (rows, False)
    _assert_exact(index, dict(enumerate(matrix[:rows])), seed=5)


def test_a_graph_comes_and_goes_with_the_size() -> None:
    """Above the limit there is a graph, until the live rows take less than half of it."""
    index = VectorIndex(_DIMENSION, exact_max_bytes=100 * _DIMENSION * 4)

    def graph_after(added: range, removed: range) -> bool:
        index.add(np.arange(added.start, added.stop), _random(len(added), seed=added.start))
        index.remove(np.arange(removed.start, removed.stop))
        index.build(_never)
        assert index.search(_random(1)[0], 500)[0].size == len(index)
        return index.in_graph > 0

    assert not graph_after(range(100), range(0))
    assert graph_after(range(100, 101), range(0))
    assert graph_after(range(0), range(51))  # 50 are left: just half
    assert not graph_after(range(0), range(51, 52))
    assert not graph_after(range(101, 150), range(0))
    assert graph_after(range(150, 160), range(0))


def test_few_new_rows_start_no_build() -> None:
    """Rows behind the graph are searched exactly until they take a quarter of what is exact."""
    index = VectorIndex(_DIMENSION, exact_max_bytes=100 * _DIMENSION * 4)
    index.add(np.arange(200), _random(200))
    index.build(_never)
    index.add(np.arange(200, 225), _random(25, seed=1))
    assert [index.is_behind] == [False]
    index.add(np.arange(225, 226), _random(1, seed=2))
    assert index.is_behind
    _assert_exact(
        index, dict(enumerate(np.vstack([_random(200), _random(25, 1), _random(1, 2)]))), 7
    )


def test_ninety_percent_deleted_leaves_the_rest_to_be_found() -> None:
    """With nine tenths gone and no rebuild yet, k live rows are found, or all there are."""
    index, matrix = _filled(Behind, _random(2_000)), _random(2_000)
    index.remove(np.setdiff1d(np.arange(2_000), np.arange(0, 2_000, 10)))
    assert index.is_behind
    _assert_exact(index, dict(zip(range(0, 2_000, 10), matrix[::10], strict=True)), seed=3)


def test_hnswlib_is_never_entered_by_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adding, removing, searching and building from many threads takes turns and loses nothing."""
    index, inside, together = _filled(Grown, _random(500)), threading.Lock(), list[str]()

    def watch(name: str) -> None:
        method = getattr(Graph, name)

        def call(graph: Graph, *arguments: Any) -> Any:
            if graph is not index._graph:  # one that is not in use yet belongs to its builder
                return method(graph, *arguments)
            if not inside.acquire(blocking=False):
                together.append(name)
                return method(graph, *arguments)
            try:
                time.sleep(0.0005)  # or nobody would meet
                return method(graph, *arguments)
            finally:
                inside.release()

        monkeypatch.setattr(Graph, name, call)

    for name in ("add", "remove", "nearest"):
        watch(name)
    ended = threading.Event()

    def search(seed: int) -> int:
        return len(index.search(_random(1, seed=seed)[0], 20)[0])

    def build() -> None:
        while not ended.is_set():
            VectorIndex.build(index, _never)

    with ThreadPoolExecutor(4) as pool:
        builder = pool.submit(build)
        found = [pool.submit(search, seed) for seed in range(200)]
        for first in range(500, 1_500, 50):
            VectorIndex.add(index, np.arange(first, first + 50), _random(50, seed=first))
            VectorIndex.remove(index, np.arange(first - 500, first - 475))
        assert {future.result() for future in found} == {20}
        ended.set()
        builder.result()
    assert together == []
    assert len(index) == index.search(_random(1)[0], 2_000)[0].size == 1_000


@_ALL
def test_a_dump_is_the_index_at_one_moment(new: _New) -> None:
    """What was dumped and loaded answers as the index did then, whatever has happened since."""
    index, query = _filled(new, _random(300)), _random(1, seed=4)[0]
    index.remove(np.arange(40))
    before = index.search(query, 300)
    facts, parts = index.dump()
    index.remove(np.arange(100, 105))  # without moving the others
    index.add(np.arange(300, 400), _random(100, seed=2))
    index.remove(np.arange(105, 390))
    loaded = VectorIndex.load(facts, parts, index._exact_max_bytes)
    assert loaded.in_graph == (0 if new is _exact else 260)
    for ours, theirs in zip(loaded.search(query, 300), before, strict=True):
        assert ours.tolist() == theirs.tolist()
    loaded.add(np.arange(300, 400), _random(100, seed=2))
    loaded.remove(np.arange(100, 390))
    loaded.build(_never)
    assert loaded.search(query, 300)[0].tolist() == index.search(query, 300)[0].tolist()


def test_recall_is_measured_against_exact_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """A good graph finds all of the nearest; one that finds others says so."""
    index = _filled(Grown, _random(500))
    assert index.recall(50) == 1.0
    monkeypatch.setattr(Graph, "nearest", lambda *_: (np.arange(5), np.full(5, -1.0)))
    assert index.recall(50) == 0.0
