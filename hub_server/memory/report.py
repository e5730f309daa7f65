"""What of a user's memories is worth cleaning; looks, and changes nothing."""

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby, islice
from typing import Final

import numpy as np

from hub_server.memory.scoring import confidence_now
from hub_server.rows import Row

MOST_MEMORIES: Final = 5_000
_MOST_FINDINGS: Final = 100  # of a kind
_ALIKE: Final = 0.9
_UNSURE: Final = 0.3
_STALE: Final = dt.timedelta(days=180)
_UNUSED: Final = dt.timedelta(days=30)
_BLOCK: Final = 512  # rows compared with all others at a time: some 10 MB


@dataclass(frozen=True, slots=True)
class Finding:
    """One or two memories to look at, and of duplicates their cosine, 1 = one text."""

    kind: str
    memories: Sequence[Row]
    similarity: float = 0.0


def findings(rows: Sequence[Row], now: dt.datetime, half_life: dt.timedelta) -> list[Finding]:
    """Return what is wrong with memories, the worst of each kind first."""
    active = [row for row in rows if row["status"] == "active"]

    def sure(row: Row) -> float:
        return confidence_now(row, now, half_life)

    found = [*_first(_duplicates(active)), *_first(_contradictions(rows))]
    unsure = sorted((row for row in active if sure(row) < _UNSURE), key=sure)
    found += _first(Finding("low_confidence", [row]) for row in unsure)
    stale = _older(active, lambda row: max(_moved(row), _recalled(row)), now - _STALE)
    found += _first(Finding("stale", [row]) for row in stale)
    unused = [row for row in active if row["last_recalled_at"] is None]
    unused = _older(unused, lambda row: row["created_at"], now - _UNUSED)
    return [*found, *_first(Finding("never_recalled", [row]) for row in unused)]


def _first(found: Iterator[Finding]) -> list[Finding]:
    return list(islice(found, _MOST_FINDINGS))


def _older(rows: Sequence[Row], when: Callable[[Row], dt.datetime], than: dt.datetime) -> list[Row]:
    return sorted((row for row in rows if when(row) < than), key=when)


def _moved(row: Row) -> dt.datetime:
    moved: dt.datetime = row["reinforced_at"] or row["created_at"]
    return moved


def _recalled(row: Row) -> dt.datetime:
    return row["last_recalled_at"] or _moved(row)


def _contradictions(rows: Sequence[Row]) -> Iterator[Finding]:
    about = {
        (row["memory_type"], row["memory_key"]): row for row in rows if row["status"] == "active"
    }
    for row in rows:
        against = about.get((row["memory_type"], row["memory_key"]))
        if row["status"] == "proposed" and against is not None:
            yield Finding("contradiction", [row, against])


def _duplicates(active: Sequence[Row]) -> Iterator[Finding]:
    """Yield pairs that are alike: those of one text first, whatever embedded them."""
    for _, same in groupby(sorted(active, key=_text), key=_text):
        for one, other in combinations(same, 2):
            yield _duplicate(1.0, one, other)

    def kind(row: Row) -> tuple[str, int]:
        return row["embedding_model"], len(row["embedding"])

    pairs: list[tuple[float, Row, Row]] = []
    for _, group in groupby(sorted(active, key=kind), key=kind):
        pairs += _alike(list(group))
    pairs.sort(key=lambda pair: -pair[0])
    for similarity, one, other in pairs:
        if _text(one) != _text(other):
            yield _duplicate(similarity, one, other)


def _text(row: Row) -> bytes:
    text: bytes = row["content_hash"]
    return text


def _duplicate(similarity: float, *rows: Row) -> Finding:
    newer_first = sorted(rows, key=lambda row: row["memory_id"], reverse=True)
    return Finding("duplicate", newer_first, similarity)


def _alike(rows: Sequence[Row]) -> list[tuple[float, Row, Row]]:
    matrix = np.array([np.frombuffer(row["embedding"], dtype="<f4") for row in rows])
    if matrix.shape[1] == 0:
        return []
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    matrix = np.divide(matrix, norms, out=np.zeros_like(matrix), where=norms > 0)
    found = []
    for start in range(0, len(rows), _BLOCK):
        cosines = matrix[start : start + _BLOCK] @ matrix.T
        for place, other in np.argwhere(np.triu(cosines, start + 1) >= _ALIKE):
            similarity = min(float(cosines[place, other]), 1.0)
            found.append((similarity, rows[start + place], rows[other]))
        found = sorted(found, key=lambda pair: -pair[0])[:_MOST_FINDINGS]
    return found
