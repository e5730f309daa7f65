"""One list out of two: weighted min-max of BM25 scores and cosines.

Each list is scaled to 0..1 by its own lowest and highest score, so neither the corpus-dependent
range of BM25 nor the range of a model's cosines matters. (Bruch, Gai, Ingber: "An analysis of
fusion functions for hybrid retrieval", 2023, on why this beats reciprocal ranks.)
"""

from typing import NamedTuple

import numpy as np

from hub_server.retrieval.ranking import Labels, Ranked, Scores

__all__ = ["CANDIDATES", "Fused", "fuse", "word_weight"]

_WORD_WEIGHT = 0.5

# Equal vectors can have cosines that differ in the last bits of a float32, depending on where
# they lie in memory. Scaling must not blow that difference up to the whole of 0..1.
_NOISE = 1e-5

# How many rows each list brings. nDCG@10 on Cranfield (title + text as one row, weight 0.5),
# words with MiniLM / with wordllama; BM25 alone .388, the models alone .400 / .343:
#     50  .429 / .396      200  .434 / .400      all 1,400  .434 / .400
#    100  .432 / .399      400  .434 / .401
# More than 200 gains nothing and costs hnswlib time (its ef is at least the depth).
CANDIDATES = 200


class Fused(NamedTuple):
    """Rows by their scores, best first; a score is what words and vectors add to it."""

    labels: Labels
    scores: Scores
    by_words: Scores
    by_vectors: Scores


def word_weight(*, has_words: bool, has_vector: bool) -> float:
    """Return what the words of a query weigh, 0..1: half, or all where it is asked by them alone.

    Words that no row has were asked for all the same: the score of the others does not depend on
    what is found.
    """
    return _WORD_WEIGHT if has_words and has_vector else float(has_words)


def fuse(
    words: Ranked, vectors: Ranked, weight: float = _WORD_WEIGHT, depth: int = CANDIDATES
) -> Fused:
    """Return the rows of either list: `weight` * scaled word score + the rest * scaled cosine.

    `depth` is how long both lists were allowed to be. A row absent from a list has 0 there: in a
    full list that is what the last row has, so nothing jumps where the list was cut. A shorter
    word list holds every row with a matching word, all others truly score 0, and so 0 is the
    lowest score it is scaled by (of two rows that match alike, neither becomes worthless).
    Rows whose scores are all equal have 1. Equal sums come in the order of their labels.
    """
    word_floor = 0.0 if len(words[0]) < depth else None
    if len(words[0]) == 0:
        scores = (1 - weight) * _scaled(vectors[1], None)
        return Fused(vectors[0], scores, np.zeros(len(scores)), scores)
    if len(vectors[0]) == 0:
        scores = weight * _scaled(words[1], word_floor)
        return Fused(words[0], scores, scores, np.zeros(len(scores)))
    labels = np.union1d(words[0], vectors[0])
    by_words, by_vectors = np.zeros(len(labels)), np.zeros(len(labels))
    by_words[np.searchsorted(labels, words[0])] = weight * _scaled(words[1], word_floor)
    by_vectors[np.searchsorted(labels, vectors[0])] = (1 - weight) * _scaled(vectors[1], None)
    scores = by_words + by_vectors
    order = np.lexsort((labels, -scores))
    return Fused(labels[order], scores[order], by_words[order], by_vectors[order])


def _scaled(scores: Scores, floor: float | None) -> Scores:
    if len(scores) == 0:
        return scores
    high, low = float(scores[0]), float(scores[-1])
    greatest = max(abs(high), abs(low))
    low = low if floor is None else floor
    span = high - low
    if span <= _NOISE * greatest:
        return np.ones_like(scores)
    scaled: Scores = (scores - low) / span
    return scaled
