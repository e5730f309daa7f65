"""One suite for both vector indexes, exact and hnswlib."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from hub_server.retrieval.vectors import ExactVectors, HnswVectors, Matrix, VectorIndex

_DIMENSION = 16
_New = Callable[[int], VectorIndex]
_Index = TypeVar("_Index", bound=VectorIndex)
_BOTH = pytest.mark.parametrize("new", [ExactVectors, HnswVectors])


def _random(rows: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((rows, _DIMENSION)).astype(np.float32)


def _filled(new: Callable[[int], _Index], matrix: Matrix) -> _Index:
    index = new(matrix.shape[1])
    index.add(np.arange(len(matrix)), matrix)
    return index


def _cosines(matrix: Matrix, query: Matrix) -> Matrix:
    lengths = np.linalg.norm(matrix, axis=1) * np.linalg.norm(query)
    cosines: Matrix = matrix @ query / lengths
    return cosines


@_BOTH
def test_finds_the_nearest_with_their_cosines(new: _New) -> None:
    """The nearest rows come first, scored by cosine, whatever the vectors' lengths."""
    matrix, query = _random(200) * 7, _random(1, seed=1)[0]
    labels, scores = _filled(new, matrix).search(query, 10)
    expected = _cosines(matrix, query)
    assert labels.tolist() == np.argsort(-expected)[:10].tolist()
    assert scores == pytest.approx(expected[labels], abs=1e-5)


@_BOTH
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
        assert index.export()[0].tolist() == sorted(rows)


@_BOTH
@pytest.mark.parametrize("k", [1, 5, 40, 1_000])
def test_deleted_rows_do_not_crowd_out_live_ones(new: _New, k: int) -> None:
    """With deleted rows nearer to the query than any live one, k live rows still come back."""
    far, near = _random(300), _random(70, seed=1) * 0.01 + np.float32(1)
    index = _filled(new, np.vstack([far, near]))
    index.remove(np.arange(300, 370))  # just under a fifth: no rebuild helps
    labels, _ = index.search(np.ones(_DIMENSION, dtype=np.float32), k)
    assert len(labels) == min(k, 300)
    assert labels.max() < 300


@_BOTH
def test_many_copies_of_one_vector_are_all_found(new: _New) -> None:
    """Equal vectors, which hnswlib's graph links badly, are all returned, lower labels first."""
    index = _filled(new, np.ones((150, _DIMENSION), dtype=np.float32))
    labels, scores = index.search(np.ones(_DIMENSION, dtype=np.float32), 150)
    assert sorted(labels.tolist()) == list(range(150))
    assert scores == pytest.approx(np.ones(150), abs=1e-5)


@_BOTH
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


@_BOTH
def test_extreme_lengths_are_no_obstacle(new: _New) -> None:
    """Vectors whose squares leave float32 are indexed by their direction."""
    matrix = np.eye(2, _DIMENSION, dtype=np.float32)
    matrix[0, 0], matrix[1, 1] = 1e30, 1e-30
    labels, scores = _filled(new, matrix).search(matrix[1], 1)
    assert (labels.tolist(), scores.tolist()) == ([1], pytest.approx([1.0]))


@_BOTH
def test_shapes_are_checked(new: _New) -> None:
    """Rows of another dimension, or not as many as labels, are a ValueError."""
    index = new(_DIMENSION)
    with pytest.raises(ValueError, match="shape"):
        index.add(np.arange(2), np.ones((2, _DIMENSION + 1), dtype=np.float32))
    with pytest.raises(ValueError, match="labels"):
        index.add(np.arange(3), _random(2))
    with pytest.raises(ValueError, match="shape"):
        index.search(np.ones(_DIMENSION - 1, dtype=np.float32), 1)


@_BOTH
@pytest.mark.parametrize("labels", [[1, 2], [4, 4], [3, 5]])
def test_a_label_is_never_used_twice(new: _New, labels: list[int]) -> None:
    """A label, live or removed, cannot be added again, even after a rebuild."""
    index = _filled(new, _random(4))
    index.remove(np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="labels must ascend"):
        index.add(np.array(labels), _random(2))
    assert len(index) == 1


@_BOTH
def test_removing_an_unknown_row_removes_nothing(new: _New) -> None:
    """One unknown or already removed label fails the whole removal."""
    index = _filled(new, _random(10))
    index.remove(np.array([4]))
    for labels in ([5, 4], [5, 99]):
        with pytest.raises(KeyError):
            index.remove(np.array(labels))
    assert index.search(_random(1)[0], 10)[0].size == len(index) == 9


@_BOTH
def test_dead_rows_are_rebuilt_away(new: _New) -> None:
    """Past a fifth dead, memory goes back to what the live rows need."""
    index = _filled(new, _random(1_000))
    full = index.nbytes
    index.remove(np.arange(900))
    assert index.nbytes < full / 5


@_BOTH
def test_empty_answers(new: _New) -> None:
    """An empty index, and a k of zero or less, answer with nothing."""
    assert new(_DIMENSION).search(_random(1)[0], 5)[0].size == 0
    for k in (0, -3):
        assert _filled(new, _random(5)).search(_random(1)[0], k)[0].size == 0


def test_hnsw_finds_nearly_all_of_the_nearest() -> None:
    """A graph finds at least 95 % of the true ten nearest, a tenth of the rows being dead."""
    matrix = _random(3_000)
    exact, hnsw = _filled(ExactVectors, matrix), _filled(HnswVectors, matrix)
    for index in (exact, hnsw):
        index.remove(np.arange(0, 3_000, 10))
    hits = [
        len(set(exact.search(query, 10)[0]) & set(hnsw.search(query, 10)[0]))
        for query in _random(100, seed=1)
    ]
    assert np.mean(hits) >= 9.5


def test_hnsw_answers_exactly_where_the_library_gives_up() -> None:
    """When hnswlib cannot reach k rows, the answer is the exact one, not an error."""
    matrix, query = _random(50), _random(1, seed=1)[0]
    index = _filled(HnswVectors, matrix)
    expected = _filled(ExactVectors, matrix).search(query, 5)[0].tolist()
    library = index._index
    message = "Cannot return the results"
    with pytest.raises(RuntimeError, match=message):  # what it says, so that we can tell
        library.knn_query(query, k=51)

    class GivesUp:
        def __getattr__(self, name: str) -> Any:
            return getattr(library, name)

        def knn_query(self, *_: Any, **__: Any) -> None:
            raise RuntimeError(message + " in a contiguous 2D array")

    index._index = GivesUp()
    assert index.search(query, 5)[0].tolist() == expected


def test_hnsw_is_never_entered_by_two_threads() -> None:
    """Concurrent adds and searches take turns in hnswlib, and lose nothing."""
    index = _filled(HnswVectors, _random(50))
    library, inside, together = index._index, threading.Lock(), list[str]()

    class Watched:
        def __getattr__(self, name: str) -> Any:
            value = getattr(library, name)
            if name not in {"add_items", "knn_query"}:
                return value

            def call(*arguments: Any, **named: Any) -> Any:
                if not inside.acquire(blocking=False):
                    together.append(name)
                    return value(*arguments, **named)
                try:
                    return value(*arguments, **named)
                finally:
                    inside.release()

            return call

    index._index = Watched()

    def search(seed: int) -> int:
        return len(index.search(_random(1, seed=seed)[0], 20)[0])

    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(search, seed) for seed in range(200)]
        for first in range(50, 1_050, 50):
            index.add(np.arange(first, first + 50), _random(50, seed=first))
        assert {future.result() for future in found} == {20}
    assert together == []
    assert len(index) == index.search(_random(1)[0], 2_000)[0].size == 1_050
