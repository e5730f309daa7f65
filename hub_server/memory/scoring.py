"""How sure, how recent and how fitting a memory is; computed when it is read, never stored."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hub_server.rows import Row
from hub_server.search import Hit

_RECENCY_HALF_LIFE: Final = dt.timedelta(days=180)


@dataclass(frozen=True, slots=True)
class Weights:
    """The powers to which the parts of a score are raised."""

    relevance: float = 1.0
    confidence: float = 1.0
    # An old preference is still one: after a year the score is .76 of a new one's.
    recency: float = 0.2


@dataclass(frozen=True, slots=True)
class Scored:
    """A memory with its score, the parts of that, and what relevance was made of."""

    hit: Hit
    score: float
    confidence: float
    recency: float


def confidence_now(memory: Row, now: dt.datetime, half_life: dt.timedelta) -> float:
    """Return how sure a memory is: what was inferred and never said again fades."""
    stored = float(memory["confidence_score"])
    if memory["source"] != "inferred" or memory["reinforcement_count"] > 0:
        return stored
    return stored * _faded(now - memory["created_at"], half_life)


def recency_now(memory: Row, now: dt.datetime) -> float:
    """Return how recent a memory is, 1 = new."""
    return _faded(now - (memory["reinforced_at"] or memory["created_at"]), _RECENCY_HALF_LIFE)


def scored(
    hits: Sequence[Hit], weights: Weights, now: dt.datetime, half_life: dt.timedelta
) -> list[Scored]:
    """Return the hits with their scores, best first; equal ones by their ids, newest first."""
    found = [_scored(hit, weights, now, half_life) for hit in hits]
    found.sort(key=lambda one: one.hit.candidate.row_id, reverse=True)
    return sorted(found, key=lambda one: one.score, reverse=True)


def reinforced(confidence: float, proof: float) -> float:
    """Return how sure a memory is after one more proof: half of it counts, as if independent."""
    return confidence + (1 - confidence) * proof / 2


def _scored(hit: Hit, weights: Weights, now: dt.datetime, half_life: dt.timedelta) -> Scored:
    confidence = confidence_now(hit.row, now, half_life)
    recency = recency_now(hit.row, now)
    relevance = float(min(max(hit.candidate.score, 0.0), 1.0))
    score = relevance**weights.relevance * confidence**weights.confidence * recency**weights.recency
    return Scored(hit, score, confidence, recency)


def _faded(age: dt.timedelta, half_life: dt.timedelta) -> float:
    return float(0.5 ** (max(age, dt.timedelta(0)) / half_life))
