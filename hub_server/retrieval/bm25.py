"""BM25 over an in-memory inverted index whose statistics always are those of its live rows.

The variant is Lucene's, "accurate" form (Kamphuis, de Vries, Boytsov, Lin: "Which BM25 do you
mean?", ECIR 2020), with the constants and thus the scores of the package bm25s by default:

    idf(t)      = ln(1 + (N - df + 0.5) / (df + 0.5))
    score(t, d) = idf(t) * tf / (tf + k1 * (1 - b + b * |d| / avgdl))
"""

import math
from array import array
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hub_server.retrieval.packing import Parts, packed, unpacked
from hub_server.retrieval.ranking import Labels, Ranked, Scores, best, nothing

__all__ = ["Bm25Index"]

_K1 = 1.5
_B = 0.75
_MAX_DEAD = 0.2  # share of dead postings at which the index is compacted

# Bytes beside the postings themselves, from sys.getsizeof on 64-bit CPython: a term's string,
# dict entry and array header; a row's length, label, flag and dict entry.
_TERM_BYTES = 180
_ROW_BYTES = 150


class Bm25Index:
    """An inverted index with integer labels. Not thread safe: its owner holds a lock.

    A row lives in a slot. Removing only marks the slot dead; df is counted over live slots at
    query time, so no removal ever has to find the row's terms.
    """

    def __init__(self) -> None:
        """Start empty."""
        # Per term its (slot, tf) pairs, flat. array grows in place and lends numpy its buffer.
        self._postings: dict[str, array[int]] = {}
        self._slots: dict[int, int] = {}
        self._labels = array("q")
        self._lengths = array("i")
        self._alive = bytearray()
        self._live_terms = 0  # sum of live lengths
        self._live_pairs = 0
        self._pairs = 0
        self._pairs_of = array("i")

    def __len__(self) -> int:
        """Return the number of live rows."""
        return len(self._slots)

    @property
    def nbytes(self) -> int:
        """Estimate of the memory held, in bytes."""
        terms = len(self._postings) * _TERM_BYTES
        return terms + self._pairs * 2 * array("i").itemsize + len(self._alive) * _ROW_BYTES

    def add(self, label: int, terms: Sequence[str]) -> None:
        """Index a row under `label`. A row without terms counts in N and avgdl.

        Raises:
            ValueError: a live row has that label.

        """
        if label in self._slots:
            raise ValueError(f"label {label} is in the index already")
        slot = len(self._alive)
        counts = Counter(terms)
        for term, count in counts.items():
            self._postings.setdefault(term, array("i")).extend((slot, count))
        self._slots[label] = slot
        self._labels.append(label)
        self._lengths.append(len(terms))
        self._pairs_of.append(len(counts))
        self._alive.append(True)
        self._live_terms += len(terms)
        self._live_pairs += len(counts)
        self._pairs += len(counts)

    def remove(self, label: int) -> None:
        """Take the row `label` out, and compact the index once 20 % of its postings are dead.

        Raises:
            KeyError: no live row has that label.

        """
        slot = self._slots.pop(label)
        self._alive[slot] = False
        self._live_terms -= self._lengths[slot]
        self._live_pairs -= self._pairs_of[slot]
        # Rows without terms have no postings, but their slots count too.
        dead = self._pairs - self._live_pairs + len(self._alive) - len(self._slots)
        if dead > _MAX_DEAD * (self._pairs + len(self._alive)):
            self._compact()

    def top(self, query_terms: Sequence[str], k: int, among: Labels | None = None) -> Ranked:
        """Return the labels and scores of the `k` best rows that share a term with the query.

        A term asked twice counts twice. Equal scores come in the order of their labels. `among`
        confines it to these labels, of live rows; the statistics stay those of all.
        """
        if self._live_terms == 0:
            return nothing()
        scores = np.zeros(len(self._alive))
        for term, times in Counter(query_terms).items():
            self._score(term, times, scores)
        if among is None:
            found = np.flatnonzero(scores)
        else:
            slots = np.array([self._slots[label] for label in among.tolist()], dtype=np.int64)
            found = slots[scores[slots] > 0]
        return best(np.frombuffer(self._labels, dtype=np.int64)[found], scores[found], k)

    def dump(self) -> Parts:
        """Return copies of all that lives, as `load` takes them.

        Building this anew from texts would take longer than anything else in a view.
        """
        if len(self._slots) < len(self._alive):
            self._compact()  # of what was removed no word may be kept
        flat = array("i")
        for posting in self._postings.values():
            flat.extend(posting)
        return {
            "terms": packed(self._postings),
            "counts": np.array([len(one) for one in self._postings.values()], dtype=np.int64),
            "postings": np.frombuffer(flat, dtype=np.int32),
            "labels": np.array(self._labels, dtype=np.int64),
            "lengths": np.array(self._lengths, dtype=np.int32),
            "pairs_of": np.array(self._pairs_of, dtype=np.int32),
            "alive": np.frombuffer(bytes(self._alive), dtype=np.uint8),
        }

    @classmethod
    def load(cls, parts: Parts) -> "Bm25Index":
        """Return the index that was dumped."""
        index = cls()
        postings, first = parts["postings"].view(np.uint8).data, 0
        for term, count in zip(unpacked(parts["terms"]), parts["counts"].tolist(), strict=True):
            posting = index._postings[term] = array("i")
            posting.frombytes(postings[first : first + count * posting.itemsize])
            first += count * posting.itemsize
        index._labels = array("q", parts["labels"].tobytes())
        index._lengths = array("i", parts["lengths"].tobytes())
        index._pairs_of = array("i", parts["pairs_of"].tobytes())
        index._alive = bytearray(parts["alive"].tobytes())
        alive = np.flatnonzero(parts["alive"]).tolist()
        index._slots = {index._labels[slot]: slot for slot in alive}
        index._live_terms = sum(index._lengths[slot] for slot in alive)
        index._live_pairs = sum(index._pairs_of[slot] for slot in alive)
        index._pairs = sum(index._pairs_of)
        return index

    def _score(self, term: str, times: int, scores: Scores) -> None:
        posting = self._postings.get(term)
        if posting is None:
            return
        slots, tf = _columns(posting)
        if len(self._slots) < len(self._alive):
            live = self._alive_slots()[slots]
            slots, tf = slots[live], tf[live]
        if (df := len(slots)) == 0:
            return
        idf = math.log(1 + (len(self._slots) - df + 0.5) / (df + 0.5))
        average = self._live_terms / len(self._slots)
        lengths = np.frombuffer(self._lengths, dtype=np.int32)[slots].astype(np.float64)
        scores[slots] += times * idf * tf / (tf + _K1 * (1 - _B + _B * lengths / average))

    def _alive_slots(self) -> NDArray[np.bool_]:
        return np.frombuffer(self._alive, dtype=np.bool_)

    def _compact(self) -> None:
        alive = self._alive_slots().copy()  # a copy: a lent buffer could not be resized
        moved = (np.cumsum(alive) - 1).astype(np.int32)
        postings: dict[str, array[int]] = {}
        for term, posting in self._postings.items():
            slots, tf = _columns(posting)
            live = alive[slots]
            if live.any():
                kept = np.column_stack((moved[slots[live]], tf[live]))
                postings[term] = array("i", kept.tobytes())
        self._postings = postings
        self._labels = array("q", np.frombuffer(self._labels, dtype=np.int64)[alive].tobytes())
        self._lengths = array("i", np.frombuffer(self._lengths, np.int32)[alive].tobytes())
        self._pairs_of = array("i", np.frombuffer(self._pairs_of, np.int32)[alive].tobytes())
        self._slots = {label: slot for slot, label in enumerate(self._labels)}
        self._alive = bytearray(b"\1" * len(self._slots))
        self._pairs = self._live_pairs


def _columns(posting: "array[int]") -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    pairs = np.frombuffer(posting, dtype=np.int32).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]
