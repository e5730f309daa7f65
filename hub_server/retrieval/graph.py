"""hnswlib, fenced in: the nearest vectors of many, almost always all of them."""

from collections.abc import Mapping
from typing import Any, Final

import hnswlib
import numpy as np
from numpy.typing import NDArray

from hub_server.retrieval.matrix import MAX_DEAD, Matrix
from hub_server.retrieval.packing import Parts
from hub_server.retrieval.ranking import Labels, Ranked, best, nothing

__all__ = ["EF_CONSTRUCTION", "Graph", "M", "ef_for"]

# Malkov & Yashunin (2016): M 16 suits embeddings; a wider ef_construction costs build time only.
M: Final = 16
EF_CONSTRUCTION: Final = 200

_LEAST_EF: Final = 150
_MOST_EF: Final = 2_000

# Beside a row's vector: its links on the lowest level, its label, its share of the upper levels,
# and what hnswlib keeps of each row (a lock, a level, an entry by label, a mark of visits).
_ROW_BYTES: Final = (2 * M * 4 + 4) + 8 + 5 + 120
_GROWTH: Final = 1.25


class Graph:
    """A graph of vectors of length 1. Not thread safe: its owner holds a lock.

    hnswlib 0.8 must not add and search at once; reusing a deleted label or slot corrupts its graph;
    it raises when it cannot reach k live rows. Hence the owner's lock, labels that only rise, and
    never `replace_deleted`. One thread builds: the same rows in the same order, the same graph.
    """

    def __init__(self, dimension: int, capacity: int) -> None:
        """Start empty, with room for so many rows; it grows past them."""
        self._dimension = dimension
        self._index = hnswlib.Index(space="ip", dim=dimension)
        capacity = int(_GROWTH * capacity) + 1
        self._index.init_index(capacity, M=M, ef_construction=EF_CONSTRUCTION)
        self._capacity = capacity
        self._given: list[Labels] = []  # labels of all rows, dead ones too, ascending
        self._count = 0
        self._last = -1
        self.dead = 0

    def __len__(self) -> int:
        """Return the number of live rows."""
        return self._count - self.dead

    @property
    def last(self) -> int:
        """The highest label it was given; -1 = none yet."""
        return self._last

    @property
    def labels(self) -> Labels:
        """All labels it was given, ascending."""
        self._given = [np.concatenate((*self._given, np.empty(0, dtype=np.int64)))]
        return self._given[0]

    @property
    def is_worn(self) -> bool:
        """Whether so many of its rows are dead that it should be built anew."""
        return self.dead > MAX_DEAD * self._count

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes. Not index_file_size: that walks through all rows."""
        return self._count * (self._dimension * 4 + _ROW_BYTES)

    def add(self, labels: Labels, matrix: Matrix) -> None:
        """Add rows of length 1, labels ascending from above `last`."""
        needed = self._count + len(labels)
        if needed > self._capacity:
            self._capacity = int(_GROWTH * needed) + 1
            self._index.resize_index(self._capacity)
        self._index.add_items(matrix, labels, num_threads=1)
        self._given.append(labels)
        self._count = needed
        self._last = int(labels[-1])

    def remove(self, labels: Labels) -> None:
        """Take live rows out."""
        for label in labels.tolist():
            self._index.mark_deleted(label)
        self.dead += len(labels)

    def nearest(self, query: Matrix, k: int) -> Ranked | None:
        """Return the `k` rows nearest to `query`, or all if fewer; None = it cannot tell.

        Its links may not lead to k rows, most of all where many vectors are equal.
        """
        k = min(k, len(self))
        if k <= 0:
            return nothing()
        self._index.set_ef(max(ef_for(self._count), k))
        try:
            labels, distances = self._index.knn_query(query, k=k, num_threads=1)
        except RuntimeError as error:
            if "Cannot return the results" not in str(error):
                raise
            return None
        return best(labels[0].astype(np.int64), 1.0 - distances[0].astype(np.float64), k)

    def dump(self) -> tuple[dict[str, Any], Parts]:
        """Return what `restore` takes: facts for a manifest, and copies of all that is large.

        Not save_index and load_index: they hold the interpreter for as long as a disk takes.
        """
        (state,) = self._index.__getstate__()
        parts = {name: one for name, one in state.items() if isinstance(one, np.ndarray)}
        facts = {name: one for name, one in state.items() if name not in parts}
        if self.dead > 0:
            _overwrite_dead(facts, parts["data_level0"])
        return facts | {"dead": self.dead}, parts

    def restore(self, facts: Mapping[str, Any], parts: Parts) -> None:
        """Become the graph that was dumped: what `dump` returned, of the same dimension."""
        state = {name: fact for name, fact in facts.items() if name != "dead"}
        self._index = hnswlib.Index.__new__(hnswlib.Index)
        self._index.__setstate__(({**state, **parts},))
        self._capacity = facts["max_elements"]
        self._given = [np.sort(parts["label_lookup_external"].astype(np.int64))]
        self._count, self._last = len(self._given[0]), int(self._given[0][-1])
        self.dead = facts["dead"]


def _overwrite_dead(facts: Mapping[str, Any], data: NDArray[np.generic]) -> None:
    """Put the vector of a living neighbour in the place of each dead one.

    A dump may tell nothing of what was removed; the links of the dead still lead where they did.
    """
    rows = data[: facts["cur_element_count"] * facts["size_data_per_element"]].view(np.uint8)
    rows = rows.reshape(-1, facts["size_data_per_element"])
    header = rows[:, facts["offset_level0"] :]  # how many links, whether dead, and the links
    count, is_dead = (
        np.ascontiguousarray(header[:, :2]).view(np.uint16)[:, 0],
        header[:, 2] & 1 == 1,
    )
    dead = np.flatnonzero(is_dead)
    links = np.ascontiguousarray(header[dead, 4 : 4 + 4 * facts["max_M0"]]).view(np.uint32)
    taken = np.full(len(dead), np.flatnonzero(~is_dead)[:1].sum())  # where all neighbours are dead
    for place in range(facts["max_M0"] - 1, -1, -1):  # so the first, the nearest, has the last word
        is_link = place < count[dead]
        live = is_link & ~is_dead[np.where(is_link, links[:, place], 0)]
        taken[live] = links[live, place]
    vector = slice(facts["offset_data"], facts["label_offset"])
    rows[dead, vector] = rows[taken, vector]


def ef_for(rows: int) -> int:
    """Return how widely to search a graph of so many rows for a recall@10 of .99 and more.

    Measured with 384 dimensions, in clusters of up to 5,000 rows that their noise outweighs (1.2
    times), 200 queries. Of smaller clusters more is found: of 1,000 rows .97 at 64, .999 at 150.

        ef            64   100   150   200   300   400   600
          1,000 rows .964  .989  .999 1.0
         10,000 rows .877  .945  .983  .992  .998  .999 1.0
        100,000 rows .770  .876  .930  .961  .984  .989  .999
    """
    return int(min(max(_LEAST_EF, 200 * (rows / 10_000) ** 0.4), _MOST_EF))
