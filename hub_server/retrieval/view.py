"""What one process holds of one search space, and how it follows the rows in Postgres."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hub_server.retrieval.bm25 import Bm25Index
from hub_server.retrieval.fusion import CANDIDATES, fuse, word_weight
from hub_server.retrieval.matrix import Matrix, unit
from hub_server.retrieval.packing import Parts, packed, unpacked
from hub_server.retrieval.ranking import Labels, Ranked, best, nothing
from hub_server.retrieval.text import analyzer
from hub_server.retrieval.vectors import VectorIndex

__all__ = ["Candidate", "Change", "Dump", "Flaws", "IndexedRow", "View", "proposed", "vector_of"]

# A row's and a group's entries here: ids, dict entries, tuples (sys.getsizeof, 64-bit CPython).
_ROW_BYTES = 320
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


class Candidate(NamedTuple):
    """A row the view proposes; whether it may be returned, Postgres decides."""

    row_id: str
    score: float
    """Fused, 0..1: what the list is ordered by."""
    vector_score: float
    """Cosine with the query; 0.0 when the row was not among the nearest."""
    word_score: float
    """BM25 score; 0.0 when the row was not among those with matching words."""
    vector_part: float
    """What the cosine adds to `score`."""
    word_part: float
    """What the BM25 score adds to it."""


@dataclass(frozen=True, slots=True)
class Dump:
    """All of a view, as a snapshot keeps it; nothing of it changes later."""

    facts: Mapping[str, Any]
    """What JSON can hold."""
    parts: Parts


@dataclass(frozen=True, slots=True)
class Flaws:
    """How a view differs from the rows: ids of rows, sorted."""

    missing: Sequence[str]
    """Are to be found, and the view lacks them."""
    ghost: Sequence[str]
    """The view has them, and they are gone."""
    stale: Sequence[str]
    """The view has an older state of them, or another vector."""


@dataclass(frozen=True, slots=True)
class _Group:
    seq: int
    labels: range


class View:
    """One search space in memory. Not thread safe, but for `build`: its owner holds a lock.

    Vectors are searched exactly while the live ones take at most `exact_max_bytes`, by a graph
    above, once `build` has made it.
    """

    def __init__(self, dimension: int, language: str, exact_max_bytes: int) -> None:
        """Start empty, for vectors of length `dimension` and texts in `language` (BCP 47)."""
        self.dimension = dimension
        self.language = language
        self.applied_seq = 0
        self.is_whole = True  # False: a change was applied in part, and the view is of no use
        self.has_lost = False  # rows that a snapshot may have, if one was made or loaded before
        self._churn = 0
        self._analyzer = analyzer(language)
        self._words = Bm25Index()
        self._vectors = VectorIndex(dimension, exact_max_bytes)
        self._row_ids: dict[int, str] = {}
        self._labels: dict[str, int] = {}
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

    @property
    def churn(self) -> int:
        """How many rows were added, removed, put into a graph since the view was made or loaded."""
        return self._churn + self._vectors.built

    @property
    def dead(self) -> int:
        """The number of vectors that were removed and still take memory."""
        return self._vectors.dead

    @property
    def in_graph(self) -> int:
        """The number of rows whose vectors are searched by a graph; 0 = there is none."""
        return self._vectors.in_graph

    @property
    def is_behind(self) -> bool:
        """Whether `build` has something to do."""
        return self._vectors.is_behind

    def build(self, is_stopped: Callable[[], bool]) -> None:
        """Bring the graph up to date; see VectorIndex. Any thread, while others use the view."""
        self._vectors.build(is_stopped)

    def recall(self, sample: int) -> float:
        """Return the recall@10 of a search by vectors, measured with some own rows. Any thread."""
        return self._vectors.recall(sample)

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
        self.advance(max((change.seq for change in changes), default=0))
        self.is_whole = True

    def advance(self, seq: int) -> None:
        """Note that nothing up to `seq` is missing from the view."""
        self.applied_seq = max(self.applied_seq, seq)

    def search(
        self,
        query_text: str,
        query_vector: Matrix | None,
        limit: int,
        among: Sequence[str] | None = None,
    ) -> list[Candidate]:
        """Return the `limit` best rows, best first; equal scores in the order of row ids.

        Without a query vector rows are found by words alone. `among` confines it to the rows
        with these ids, searched exactly; ids that are not here are passed over.

        Raises:
            ValueError: the query vector is zero, not finite, or of another dimension.

        """
        depth = max(CANDIDATES, limit)
        only = None
        if among is not None:
            only = _labels({self._labels[one] for one in among if one in self._labels})
        words = nothing()
        if query_text:
            words = self._words.top(self._analyzer.query_terms(query_text), depth, only)
        vectors = nothing()
        if query_vector is not None:
            vectors = self._vectors.search(query_vector, depth, only)
        weight = word_weight(has_words=bool(query_text), has_vector=query_vector is not None)
        return _proposed(words, vectors, weight, self._row_ids.__getitem__, limit, depth)

    def flaws(self, changes: Iterable[Change]) -> Flaws:
        """Compare the view with all there is: the newest change of every group."""
        labels = self._labels
        seqs = {label: group.seq for group in self._groups.values() for label in group.labels}
        living, missing, stale = set[str](), set[str](), set[str]()
        for change in changes:
            for row in change.rows:
                living.add(row.row_id)
                if row.row_id not in labels:
                    missing.add(row.row_id)
                elif seqs[labels[row.row_id]] != change.seq or not self._has(
                    labels[row.row_id], row
                ):
                    stale.add(row.row_id)
        return Flaws(sorted(missing), sorted(labels.keys() - living), sorted(stale))

    def dump(self) -> Dump:
        """Return all of the view, as `load` takes it, and nothing of rows that it lost."""
        self.has_lost = False
        vector_facts, vectors = self._vectors.dump()
        groups = self._groups.values()
        own: Parts = {
            "row_ids": packed(self._row_ids.values()),
            "row_labels": np.array(list(self._row_ids), dtype=np.int64),
            "without_vector": _labels(self._without_vector),
            "groups": packed(self._groups),
            "group_seqs": np.array([one.seq for one in groups], dtype=np.int64),
            "group_firsts": np.array([one.labels.start for one in groups], dtype=np.int64),
            "group_stops": np.array([one.labels.stop for one in groups], dtype=np.int64),
        }
        facts = {
            "dimension": self.dimension,
            "language": self.language,
            "applied_seq": self.applied_seq,
            "next_label": self._next_label,
            "vectors": vector_facts,
        }
        words = {f"words.{name}": part for name, part in self._words.dump().items()}
        return Dump(facts, {**own, **words, **vectors})

    @classmethod
    def load(cls, dump: Dump, exact_max_bytes: int) -> "View":
        """Return the view that was dumped."""
        facts, parts = dump.facts, dump.parts
        view = cls(facts["dimension"], facts["language"], exact_max_bytes)
        view.applied_seq, view._next_label = facts["applied_seq"], facts["next_label"]
        words = {
            name.removeprefix("words."): part
            for name, part in parts.items()
            if name.startswith("words.")
        }
        view._words = Bm25Index.load(words)
        view._vectors = VectorIndex.load(facts["vectors"], parts, exact_max_bytes)
        view._row_ids = dict(
            zip(parts["row_labels"].tolist(), unpacked(parts["row_ids"]), strict=True)
        )
        view._labels = {row_id: label for label, row_id in view._row_ids.items()}
        view._without_vector = set(parts["without_vector"].tolist())
        columns = (parts[f"group_{name}"].tolist() for name in ("seqs", "firsts", "stops"))
        for group, seq, first, stop in zip(unpacked(parts["groups"]), *columns, strict=True):
            view._groups[group] = _Group(seq, range(first, stop))
        return view

    def _has(self, label: int, row: IndexedRow) -> bool:
        vector = vector_of(row.vector, self.dimension)
        if vector is None or label in self._without_vector:
            return vector is None and label in self._without_vector
        if not self._vectors.have(_labels([label]))[0]:
            return False
        held = self._vectors.vectors(_labels([label]))
        return bool(np.allclose(held, unit(vector[np.newaxis], self.dimension), atol=1e-6))

    def _remove(self, group_ids: Iterable[str]) -> None:
        known = (self._groups[group] for group in group_ids if group in self._groups)
        labels = [label for group in known for label in group.labels]
        for label in labels:
            self._words.remove(label)
            row_id = self._row_ids.pop(label)
            if self._labels[row_id] == label:  # not where it went to another group meanwhile
                del self._labels[row_id]
        self._vectors.remove(_labels(set(labels) - self._without_vector))
        self._churn += len(labels)
        self.has_lost = self.has_lost or bool(labels)
        self._without_vector.difference_update(labels)

    def _insert(self, changes: Iterable[Change]) -> None:
        labels: list[int] = []
        vectors: list[Matrix] = []
        for change in changes:
            first = self._next_label
            for row in {row.row_id: row for row in change.rows}.values():
                label = self._insert_words(row)
                vector = vector_of(row.vector, self.dimension)
                if vector is None:
                    self._without_vector.add(label)
                else:
                    labels.append(label)
                    vectors.append(vector)
            added = range(first, self._next_label)
            self._churn += len(added)
            self._groups[change.group_id] = _Group(change.seq, added)
        if labels:
            self._vectors.add(_labels(labels), np.stack(vectors))

    def _insert_words(self, row: IndexedRow) -> int:
        label = self._next_label  # labels are never reused, hnswlib would not survive it
        self._next_label += 1
        self._words.add(label, self._analyzer.terms(row.text))
        self._row_ids[label], self._labels[row.row_id] = row.row_id, label
        return label


def vector_of(data: bytes, dimension: int) -> Matrix | None:
    """Return a row's vector; None = it has none that is of use."""
    if len(data) != dimension * np.dtype(np.float32).itemsize:
        return None
    vector = np.frombuffer(data, dtype="<f4").astype(np.float32)
    return vector if np.isfinite(vector).all() and vector.any() else None


def _labels(labels: Iterable[int]) -> Labels:
    return np.array(sorted(labels), dtype=np.int64)


def proposed(
    words: Sequence[tuple[str, float]],
    vectors: Sequence[tuple[str, float]],
    weight: float,
    limit: int,
    depth: int,
) -> list[Candidate]:
    """Return the `limit` best rows of two lists of at most `depth` row ids and scores, fused.

    `weight` is that of the words. Best first; equal scores in the order of row ids.
    """
    word, vector = dict(words), dict(vectors)
    ids = list(word | vector)
    labels = {row_id: label for label, row_id in enumerate(ids)}
    lists = _ranked(word, labels), _ranked(vector, labels)
    return _proposed(*lists, weight, ids.__getitem__, limit, depth)


def _proposed(
    words: Ranked,
    vectors: Ranked,
    weight: float,
    row_id: Callable[[int], str],
    limit: int,
    depth: int,
) -> list[Candidate]:
    fused = fuse(words, vectors, weight, depth)
    labels, scores = fused.labels, fused.scores
    if limit <= 0 or len(labels) == 0:
        return []
    places = np.rint(scores * -(10.0**_TIE_PLACES))
    # Beyond the limit only those that tie with the last: of no others an object is made.
    most = len(labels)
    if limit < most:
        most = int(places.searchsorted(places[limit - 1], side="right"))
    chosen = labels[:most].tolist()
    candidates = map(
        Candidate,
        map(row_id, chosen),
        scores[:most].tolist(),
        _scores_of(vectors, labels, chosen),
        _scores_of(words, labels, chosen),
        fused.by_vectors[:most].tolist(),
        fused.by_words[:most].tolist(),
    )
    ordered = sorted(zip(places[:most].tolist(), candidates, strict=True))
    return [candidate for _, candidate in ordered[:limit]]


def _scores_of(ranked: Ranked, labels: Labels, chosen: list[int]) -> list[float]:
    """Return the scores that one list gives the first of the fused, 0 where it lacks them."""
    if ranked[0] is labels:  # the only list that has any
        scores: list[float] = ranked[1][: len(chosen)].tolist()
        return scores
    of_label = dict(zip(ranked[0].tolist(), ranked[1].tolist(), strict=True))
    return [of_label.get(label, 0.0) for label in chosen]


def _ranked(scored: Mapping[str, float], labels: Mapping[str, int]) -> Ranked:
    """Return scores by row id as a list by label, highest first, whatever their order was."""
    ids = np.array([labels[row_id] for row_id in scored], dtype=np.int64)
    return best(ids, np.array(list(scored.values()), dtype=np.float64), len(ids))
