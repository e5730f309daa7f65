"""Vectors as rows of one matrix: every search among them is exact."""

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hub_server.retrieval.packing import Parts
from hub_server.retrieval.ranking import Labels, Ranked, best, nothing

__all__ = ["MAX_DEAD", "Matrix", "Rows", "direction", "unit"]

_Scalar = TypeVar("_Scalar", bound=np.generic)

Matrix = NDArray[np.float32]

MAX_DEAD = 0.2  # share of dead rows at which the live ones move into a new place


class Rows:
    """Live and dead vectors of length 1 in the order of their labels. Not thread safe.

    Rows are only ever written behind those in use: what `dump` returned does not change.
    """

    def __init__(self, dimension: int) -> None:
        """Start empty, for vectors of length `dimension`."""
        self._matrix: Matrix = np.empty((0, dimension), dtype=np.float32)
        self._labels: Labels = np.empty(0, dtype=np.int64)
        self._alive = np.empty(0, dtype=np.bool_)
        self._used = 0  # rows in use, dead ones included; beyond it is spare capacity
        self._live = 0
        self._last = -1

    def __len__(self) -> int:
        """Return the number of live rows."""
        return self._live

    @property
    def dead(self) -> int:
        """The number of rows that were removed and still take memory."""
        return self._used - self._live

    @property
    def dimension(self) -> int:
        """The length of each vector."""
        return int(self._matrix.shape[1])

    @property
    def live_bytes(self) -> int:
        """What the live vectors alone take, in bytes."""
        return self._live * self.dimension * self._matrix.itemsize

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes, dead rows included; spare rows were never touched."""
        per_row = self.dimension * self._matrix.itemsize + self._labels.itemsize + 1
        return self._used * per_row

    def add(self, labels: Labels, matrix: Matrix) -> None:
        """Add rows; see VectorIndex."""
        rows = unit(matrix, self.dimension)
        self._last = _last_label(labels, len(rows), self._last)
        self._reserve(self._used + len(rows))
        place = slice(self._used, self._used + len(rows))
        self._matrix[place], self._labels[place], self._alive[place] = rows, labels, True
        self._used += len(rows)
        self._live += len(rows)

    def remove(self, labels: Labels) -> None:
        """Take rows out; see VectorIndex."""
        labels = np.unique(labels)
        if not (found := self.have(labels)).all():
            raise KeyError(labels[~found].tolist())
        self._alive[np.searchsorted(self._labels[: self._used], labels)] = False
        self._live -= len(labels)
        if self.dead > MAX_DEAD * self._used:
            self._compact()

    def have(self, labels: Labels) -> NDArray[np.bool_]:
        """Tell of each label whether its row lives."""
        used = self._labels[: self._used]
        rows = np.searchsorted(used, labels)  # labels only ever ascend
        found = rows < self._used
        found[found] = (used[rows[found]] == labels[found]) & self._alive[rows[found]]
        return found

    def nearest(self, query: Matrix, k: int, after: int = -1) -> Ranked:
        """Return the `k` rows nearest to `query`, of length 1, of those with labels above `after`.

        Scores are cosines, highest first; equal ones in the order of their labels.
        """
        if after >= self._last:
            return nothing()
        rows = self._behind(after)
        labels, scores = self._labels[rows], self._matrix[rows] @ query
        if self._live < self._used:
            alive = self._alive[rows]
            labels, scores = labels[alive], scores[alive]
        return best(labels, scores, k)

    def nearest_among(self, query: Matrix, k: int, labels: Labels) -> Ranked:
        """As `nearest`, of those of the given labels whose rows live."""
        labels = labels[self.have(labels)]
        return best(labels, self.vectors(labels) @ query, k)

    def after(self, label: int, most: int) -> tuple[Labels, Matrix]:
        """Return copies of the first `most` live rows with labels above `label`."""
        rows = self._behind(label)
        found = rows.start + np.flatnonzero(self._alive[rows])[:most]
        return self._labels[found], self._matrix[found]

    def count_after(self, label: int) -> int:
        """Return how many live rows have labels above `label`."""
        return int(np.count_nonzero(self._alive[self._behind(label)]))

    def vectors(self, labels: Labels) -> Matrix:
        """Return copies of live rows, by their labels."""
        return self._matrix[np.searchsorted(self._labels[: self._used], labels)]

    def labels(self) -> Labels:
        """Return the labels of the live rows, ascending."""
        return self._labels[: self._used][self._alive[: self._used]]

    def dump(self) -> Parts:
        """Return what `load` takes, of live rows. Nothing of it changes later."""
        if self.dead > 0:
            self._compact()
        used = slice(self._used)
        return {
            "labels": self._labels[used],
            "matrix": self._matrix[used],
            "alive": self._alive[used].copy(),
        }

    @classmethod
    def load(cls, parts: Parts) -> "Rows":
        """Return the rows that were dumped."""
        rows = cls(parts["matrix"].shape[1])
        rows._matrix = parts["matrix"].astype(np.float32, copy=False)
        rows._labels = parts["labels"].astype(np.int64, copy=False)
        rows._alive = parts["alive"].astype(np.bool_, copy=False)
        rows._used = len(rows._labels)
        rows._live = int(np.count_nonzero(rows._alive))
        rows._last = int(rows._labels[-1]) if rows._used else -1
        return rows

    def _behind(self, label: int) -> slice:
        first = int(self._labels[: self._used].searchsorted(label, side="right"))
        return slice(first, self._used)

    def _reserve(self, rows: int) -> None:
        if rows > len(self._alive):
            capacity = max(rows, 2 * len(self._alive))
            self._labels = _resized(self._labels, capacity, self._used)
            self._alive = _resized(self._alive, capacity, self._used)
            self._matrix = _resized(self._matrix, capacity, self._used)

    def _compact(self) -> None:
        alive = self._alive[: self._used]
        self._matrix = self._matrix[: self._used][alive]
        self._labels = self._labels[: self._used][alive]
        self._used = len(self._labels)
        self._alive = np.ones(self._used, dtype=np.bool_)


def unit(matrix: Matrix, dimension: int) -> Matrix:
    """Return the rows scaled to length 1, or raise ValueError for what has no direction."""
    if matrix.shape != (len(matrix), dimension):
        raise ValueError(f"vectors must have shape (n, {dimension}), not {matrix.shape}")
    # In float64: the square of a large or tiny float32 would overflow or vanish.
    norms = np.linalg.norm(matrix.astype(np.float64), axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not (norms > 0).all():
        raise ValueError("a vector is zero, infinite or not a number")
    scaled: Matrix = (matrix / norms).astype(np.float32)
    return scaled


def direction(vector: Matrix, dimension: int) -> Matrix:
    """As `unit`, for one vector: for a search of few rows it is a part of the time that counts."""
    if vector.shape != (dimension,):
        raise ValueError(f"a vector must have shape ({dimension},), not {vector.shape}")
    wide = vector.astype(np.float64)
    norm = math.sqrt(wide @ wide)
    if not 0 < norm < math.inf:
        raise ValueError("a vector is zero, infinite or not a number")
    return (wide / norm).astype(np.float32)


def _resized(array: NDArray[_Scalar], capacity: int, used: int) -> NDArray[_Scalar]:
    # Not np.pad: that would write to the spare rows, and so take their memory at once.
    larger = np.empty((capacity, *array.shape[1:]), dtype=array.dtype)
    larger[:used] = array[:used]
    return larger


def _last_label(labels: Labels, rows: int, last: int) -> int:
    """Return the highest label, or raise ValueError where one is not above those before it."""
    if labels.shape != (rows,):
        raise ValueError(f"{rows} vectors need {rows} labels, not {labels.shape}")
    if rows == 0:
        return last
    if labels[0] <= last or (np.diff(labels) <= 0).any():
        raise ValueError(f"labels must ascend from above {last}: one is never used twice")
    return int(labels[-1])
