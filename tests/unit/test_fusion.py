"""Two lists of candidates made one."""

import numpy as np
import pytest

from hub_server.retrieval.fusion import fuse, word_weight
from hub_server.retrieval.ranking import Ranked, best, nothing


def _list(scores: dict[int, float]) -> Ranked:
    labels = np.array(list(scores), dtype=np.int64)
    return best(labels, np.array(list(scores.values()), dtype=np.float64), len(scores))


def _fused(
    words: dict[int, float], vectors: dict[int, float], weight: float = 0.5, depth: int = 200
) -> dict[int, float]:
    fused = fuse(_list(words), _list(vectors), weight, depth)
    assert fused.scores == pytest.approx(fused.by_words + fused.by_vectors)
    return dict(zip(fused.labels.tolist(), fused.scores.tolist(), strict=True))


def test_each_list_is_scaled_by_its_own_range() -> None:
    """A score counts by its place between lowest and highest, not by its size."""
    fused = _fused({1: 30.0, 2: 20.0, 3: 10.0}, {1: 0.70, 2: 0.71, 3: 0.72}, depth=3)
    assert fused == pytest.approx({1: 0.5, 2: 0.5, 3: 0.5})


def test_a_row_in_both_lists_beats_a_row_in_one() -> None:
    """Rows absent from a list have 0 there."""
    fused = _fused({1: 8.0, 2: 8.0, 9: 4.0}, {1: 0.9, 3: 0.9, 4: 0.1})
    assert fused == pytest.approx({1: 1.0, 2: 0.5, 3: 0.5, 9: 0.25, 4: 0.0})


def test_a_full_word_list_is_cut_without_a_jump() -> None:
    """In a word list cut at the depth the last row has 0, as have those beyond it."""
    assert _fused({1: 9.0, 2: 6.0, 3: 3.0}, {}, depth=3) == pytest.approx({1: 0.5, 2: 0.25, 3: 0})


def test_a_short_word_list_is_scaled_from_zero() -> None:
    """Of two rows that match about alike, the second keeps its worth."""
    assert _fused({1: 10.0, 2: 9.0}, {}) == pytest.approx({1: 0.5, 2: 0.45})


def test_the_weight_is_that_of_the_words() -> None:
    """Weight 1 is words only, weight 0 vectors only."""
    words, vectors = {1: 5.0, 2: 2.5}, {2: 0.5, 1: 0.25}
    assert _fused(words, vectors, weight=1) == pytest.approx({1: 1.0, 2: 0.5})
    assert _fused(words, vectors, weight=0) == pytest.approx({2: 1.0, 1: 0.0})


def test_equal_rows_come_in_the_order_of_labels() -> None:
    """Ties are decided by label, whichever list a row is in."""
    fused = fuse(_list({7: 2.0, 3: 2.0}), _list({5: 0.4, 1: 0.4}))
    assert fused.labels.tolist() == [1, 3, 5, 7]


def test_rounding_noise_is_not_scaled_up() -> None:
    """Cosines that differ by no more than float32 sums do count as equal."""
    assert _fused({}, {1: 0.8, 2: 0.8 + 1e-7}) == pytest.approx({1: 0.5, 2: 0.5})


def test_lists_without_range_or_rows() -> None:
    """A lone row has 1 in its list, and empty lists give an empty one."""
    assert _fused({1: 0.1}, {2: -0.3}) == pytest.approx({1: 0.5, 2: 0.5})
    assert fuse(nothing(), nothing()).labels.size == 0


def test_what_was_not_asked_for_weighs_nothing() -> None:
    """By words or a vector alone scores reach 1; what was asked for and found nowhere weighs."""
    assert _fused({1: 10.0, 2: 9.0}, {}, word_weight(has_words=True, has_vector=False)) == {
        1: 1.0,
        2: 0.9,
    }
    assert _fused({}, {1: 0.8}, word_weight(has_words=False, has_vector=True)) == {1: 1.0}
    assert _fused({}, {1: 0.8}, word_weight(has_words=True, has_vector=True)) == {1: 0.5}
