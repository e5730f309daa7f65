"""Part of a score flows to what is beside a row, and to nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from hub_server.retrieval.neighbours import Place, lift

_PLACES = st.tuples(st.sampled_from("ab"), st.integers(1, 12))
_SCORES = st.dictionaries(_PLACES, st.floats(0, 1), max_size=20)


def test_a_row_lends_to_two_on_either_side() -> None:
    """Three tenths to the next, fifteen hundredths to the one after, nothing further on."""
    scores = {("a", place): 0.0 for place in range(1, 8)} | {("a", 4): 1.0}
    assert list(lift(scores).values()) == [0, 0.15, 0.3, 1, 0.3, 0.15, 0]


def test_rows_lend_to_one_another() -> None:
    """Two that fit beside each other stand above one that fits alone."""
    lifted = lift({("a", 1): 0.8, ("a", 2): 0.8, ("a", 9): 1.0})
    assert lifted == {("a", 1): 0.8 + 0.24, ("a", 2): 0.8 + 0.24, ("a", 9): 1.0}


def test_nothing_flows_from_one_text_to_another() -> None:
    """The last message of one session is not beside the first of the next."""
    assert lift({("a", 2): 1.0, ("b", 1): 0.5, ("b", 3): 0.5})["a", 2] == 1


def test_nothing_is_nothing() -> None:
    """No rows, no scores."""
    assert lift({}) == {}


@given(_SCORES)
def test_a_row_keeps_its_own_and_gains_at_most_nine_tenths(scores: dict[Place, float]) -> None:
    """No rows come or go; each has its score and at most 0.9 times the highest of all."""
    lifted = lift(scores)
    assert lifted.keys() == scores.keys()
    highest = max(scores.values(), default=0.0)
    for place, score in scores.items():
        assert score <= lifted[place] <= score + 0.9 * highest + 1e-9
