"""What one process holds of one search space, and how it follows the rows in Postgres."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hub_server.retrieval.bm25 import Bm25Index
from hub_server.retrieval.fusion import CANDIDATES, fuse
from hub_server.retrieval.ranking import Labels, Ranked, nothing
from hub_server.retrieval.text import Analyzer
from hub_server.retrieval.vectors import ExactVectors, HnswVectors, Matrix, VectorIndex

__all__ = ["Candidate", "Change", "IndexedRow", "View"]

# A row's and a group's entries here: ids, dict entries, tuples (sys.getsizeof, 64-bit CPython).
_ROW_BYTES = 250
_GROUP_BYTES = 350

# BLAS and hnswlib answer the same vectors with sums that differ in the last bits, depending on
# where a row lies. Scores equal to this many places are a tie, which the row id decides.
_TIE_PLACES = 6


@dataclass(frozen=True, slots=True)
class IndexedRow:
    """One row to find: a chunk, a memory, a message."""

    row_id: str
    text: str
    vector: bytes
    """float32, little-endian."""


@dataclass(frozen=True, slots=True)
class Change:
    """All there is of one group from `seq` on.

    A group is what changes together: a document with its chunks, or one memory. `rows`
    replaces everything the view holds of the group; empty = the group is gone.
    """

    group_id: str
    seq: int
    rows: tuple[IndexedRow, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row the view proposes; whether it may be returned, Postgres decides."""

    row_id: str
    score: float
    """Fused, 0..1: what the list is ordered by."""
    vector_score: float
    """Cosine with the query; 0.0 when the row was not among the nearest."""
    word_score: float
    """BM25 score; 0.0 when the row was not among those with matching words."""


@dataclass(frozen=True, slots=True)
class _Group:
    seq: int
    labels: tuple[int, ...]


class View:
    """One search space in memory. Not thread safe: its owner holds a lock.

    Vectors are searched exactly while the live ones take at most `exact_max_bytes`, by hnswlib
    above; and exactly again only under half of it, so that a space at the border does not flap.
    """

    def __init__(self, dimension: int, language: str, exact_max_bytes: int) -> None:
        """Start empty, for vectors of length `dimension` and texts in `language` (BCP 47)."""
        self.dimension = dimension
        self.language = language
        self.applied_seq = 0
        self.is_whole = True  # False: a change was applied in part, and the view is of no use
        self._exact_max_bytes = exact_max_bytes
        self._analyzer = Analyzer(language)
        self._words = Bm25Index()
        self._vectors: VectorIndex = ExactVectors(dimension)
        self._row_ids: dict[int, str] = {}
        # A group that is gone stays, without labels, so that its seq still stops a stale change.
        self._groups: dict[str, _Group] = {}
        self._without_vector: set[int] = set()
        self._next_label = 0

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._row_ids)

    @property
    def nbytes(self) -> int:
        """Estimate of the memory held, in bytes."""
        ids = len(self._row_ids) * _ROW_BYTES + len(self._groups) * _GROUP_BYTES
        return ids + self._words.nbytes + self._vectors.nbytes

    def apply(self, changes: Sequence[Change]) -> None:
        """Follow `changes`; one that is not newer than what the view has of its group is skipped.

        A row whose vector is unusable (of another length, zero, not finite) is found by words
        only.
        """
        self.is_whole = False
        newest: dict[str, Change] = {}
        for change in changes:
            known = newest.get(change.group_id) or self._groups.get(change.group_id)
            if known is None or change.seq > known.seq:
                newest[change.group_id] = change
        self._remove(newest)
        self._insert(newest.values())
        self._choose_index()
        self.advance(max((change.seq for change in changes), default=0))
        self.is_whole = True

    def advance(self, seq: int) -> None:
        """Note that nothing up to `seq` is missing from the view."""
        self.applied_seq = max(self.applied_seq, seq)

    def search(self, query_text: str, query_vector: Matrix | None, limit: int) -> list[Candidate]:
        """Return the `limit` best rows, best first; equal scores in the order of row ids.

        Without a query vector rows are found by words alone.

        Raises:
            ValueError: the query vector is zero, not finite, or of another dimension.

        """
        depth = max(CANDIDATES, limit)
        words = self._words.top(self._analyzer.query_terms(query_text), depth)
        vectors = nothing()
        if query_vector is not None:
            vectors = self._vectors.search(query_vector, depth)
        labels, scores = fuse(words, vectors, depth=depth)
        ranked = sorted(
            zip(np.round(-scores, _TIE_PLACES).tolist(), labels.tolist(), strict=True),
            key=lambda pair: (pair[0], self._row_ids[pair[1]]),
        )
        fused = dict(zip(labels.tolist(), scores.tolist(), strict=True))
        word, vector = _by_label(words), _by_label(vectors)
        return [
            Candidate(
                row_id=self._row_ids[label],
                score=fused[label],
                vector_score=vector.get(label, 0.0),
                word_score=word.get(label, 0.0),
            )
            for _, label in ranked[: max(limit, 0)]
        ]

    def _remove(self, group_ids: Iterable[str]) -> None:
        known = (self._groups[group] for group in group_ids if group in self._groups)
        labels = [label for group in known for label in group.labels]
        for label in labels:
            self._words.remove(label)
            del self._row_ids[label]
        self._vectors.remove(_labels(set(labels) - self._without_vector))
        self._without_vector.difference_update(labels)

    def _insert(self, changes: Iterable[Change]) -> None:
        labels: list[int] = []
        vectors: list[Matrix] = []
        for change in changes:
            first = self._next_label
            for row in {row.row_id: row for row in change.rows}.values():
                label = self._insert_words(row)
                vector = _vector(row.vector, self.dimension)
                if vector is None:
                    self._without_vector.add(label)
                else:
                    labels.append(label)
                    vectors.append(vector)
            added = tuple(range(first, self._next_label))
            self._groups[change.group_id] = _Group(change.seq, added)
        if labels:
            self._vectors.add(_labels(labels), np.stack(vectors))

    def _insert_words(self, row: IndexedRow) -> int:
        label = self._next_label  # labels are never reused, hnswlib would not survive it
        self._next_label += 1
        self._words.add(label, self._analyzer.terms(row.text))
        self._row_ids[label] = row.row_id
        return label

    def _choose_index(self) -> None:
        size = len(self._vectors) * self.dimension * np.dtype(np.float32).itemsize
        exact = isinstance(self._vectors, ExactVectors)
        if exact and size > self._exact_max_bytes:
            self._move(HnswVectors(self.dimension))
        elif not exact and size < self._exact_max_bytes / 2:
            self._move(ExactVectors(self.dimension))

    def _move(self, index: VectorIndex) -> None:
        index.add(*self._vectors.export())
        self._vectors = index


def _vector(data: bytes, dimension: int) -> Matrix | None:
    if len(data) != dimension * np.dtype(np.float32).itemsize:
        return None
    vector = np.frombuffer(data, dtype="<f4").astype(np.float32)
    return vector if np.isfinite(vector).all() and vector.any() else None


def _labels(labels: Iterable[int]) -> Labels:
    return np.array(sorted(labels), dtype=np.int64)


def _by_label(ranked: Ranked) -> dict[int, float]:
    labels, scores = ranked
    return dict(zip(labels.tolist(), scores.tolist(), strict=True))
