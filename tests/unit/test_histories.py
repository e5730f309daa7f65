"""The judge of histories: it passes good ones, and names each kind of fault in a bad one."""

import random
from collections.abc import Sequence

import pytest

from tests.histories import Append, Finding, Kind, Stored, findings

_SESSION = "session"


def _history(*appends: tuple[str, float, float | None, int | None]) -> list[Append]:
    """Make a history of one session out of content, invocation, acknowledgement and seq."""
    return [
        Append(f"writer of {content}", _SESSION, content, invoked, acknowledged, seq)
        for content, invoked, acknowledged, seq in appends
    ]


def _found(appends: Sequence[Append], stored: Stored) -> set[tuple[Kind, str]]:
    found = findings(appends, {_SESSION: stored})
    return {(finding.kind, finding.subject) for finding in found}


_TWO = _history(("a", 1, 2, 1), ("b", 3, 4, 2))


def test_a_history_that_kept_its_promises_has_no_findings() -> None:
    """Appends one after the other stand in that order; those at the same time in any order."""
    assert _found(_TWO, [(1, "a"), (2, "b")]) == set()
    together = _history(("a", 1, 9, 2), ("b", 2, 8, 1), ("c", 9, 10, 3))
    assert _found(together, [(1, "b"), (2, "a"), (3, "c")]) == set()
    assert findings([], {_SESSION: []}) == []


@pytest.mark.parametrize("stored", [[(1, "a"), (2, "b")], [(1, "a")]])
def test_what_was_never_acknowledged_may_be_stored_or_not(stored: Stored) -> None:
    """A writer without an answer knows nothing, so nothing was promised to it."""
    assert _found(_history(("a", 1, 2, 1), ("b", 3, None, None)), stored) == set()


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([(1, "a")], {(Kind.LOST, "b")}),
        ([], {(Kind.LOST, "a"), (Kind.LOST, "b")}),
        ([(1, "b"), (2, "a")], {(Kind.MOVED, "a"), (Kind.MOVED, "b")}),
        ([(1, "a"), (2, "b"), (3, "a")], {(Kind.DUPLICATED, "a")}),
        ([(1, "a"), (2, "b"), (3, "x")], {(Kind.UNSENT, "x")}),
        ([(1, "a"), (2, "b"), (2, "x")], {(Kind.COLLISION, "2"), (Kind.UNSENT, "x")}),
        ([(1, "a"), (3, "b")], {(Kind.GAP, "2"), (Kind.MOVED, "b")}),
        ([(0, "x"), (1, "a"), (2, "b")], {(Kind.GAP, "0"), (Kind.UNSENT, "x")}),
        ([(2, "b"), (1, "a")], {(Kind.ORDER, "the list")}),
    ],
)
def test_a_bad_store_is_told_by_its_fault(stored: Stored, expected: set[tuple[Kind, str]]) -> None:
    """Each fault is named as what it is, with the message or the seq that has it."""
    assert _found(_TWO, stored) == expected


def test_a_gap_below_what_is_stored_is_found_though_nothing_acknowledged_is_missing() -> None:
    """A rolled back append must not leave a hole in the numbers."""
    appends = _history(("a", 1, 2, 1), ("b", 3, 4, 3))
    assert _found(appends, [(1, "a"), (3, "b")]) == {(Kind.GAP, "2")}


def test_two_acknowledgements_of_one_seq_are_found() -> None:
    """If two were told the same seq, one of them is not where it was said to be."""
    appends = _history(("a", 1, 4, 1), ("b", 2, 3, 1))
    assert _found(appends, [(1, "a"), (2, "b")]) == {(Kind.MOVED, "b")}


def test_what_was_acknowledged_before_another_was_sent_must_have_the_lower_seq() -> None:
    """Otherwise a caller that saw the first acknowledged would find it after its own."""
    appends = _history(("a", 1, 2, 2), ("b", 3, 4, 1))
    assert _found(appends, [(1, "b"), (2, "a")]) == {(Kind.ORDER, "b")}


def test_what_was_sent_at_the_very_moment_of_an_acknowledgement_may_stand_before_it() -> None:
    """A clock that shows the same for both does not tell which came first."""
    appends = _history(("a", 1, 3, 2), ("b", 3, 4, 1))
    assert _found(appends, [(1, "b"), (2, "a")]) == set()


def test_the_order_is_held_against_the_highest_seq_not_the_latest() -> None:
    """A low seq acknowledged in between does not hide a higher one from before."""
    appends = _history(("a", 1, 2, 3), ("b", 1, 3, 1), ("c", 4, 5, 2))
    assert _found(appends, [(1, "b"), (2, "c"), (3, "a")]) == {(Kind.ORDER, "c")}


def test_what_was_stored_without_an_answer_stands_in_the_order_too() -> None:
    """It was sent after an acknowledgement, so it cannot stand before it."""
    appends = _history(("a", 1, 2, 2), ("b", 3, None, None))
    assert _found(appends, [(1, "b"), (2, "a")]) == {(Kind.ORDER, "b")}


def test_sessions_are_judged_each_for_itself() -> None:
    """What was sent to one session and stored in another is lost there and unsent here."""
    appends = [Append("w", "one", "a", 1, 2, 1)]
    assert findings(appends, {"one": [], "two": [(1, "a")]}) == [
        Finding(Kind.LOST, "one", "a"),
        Finding(Kind.UNSENT, "two", "a"),
    ]
    assert findings(appends, {}) == [Finding(Kind.LOST, "one", "a")]


def test_every_reordering_of_a_serial_history_is_found() -> None:
    """Of a hundred appends one after another, any two that change places are seen."""
    rng = random.Random(7)  # noqa: S311 - a seed, not a secret
    for _ in range(50):
        one, two = rng.sample(range(100), 2)
        seqs = list(range(1, 101))
        seqs[one], seqs[two] = seqs[two], seqs[one]
        appends = _history(*((str(n), 2 * n, 2 * n + 1, seqs[n]) for n in range(100)))
        stored = sorted((seq, str(number)) for number, seq in enumerate(seqs))
        assert {kind for kind, _ in _found(appends, stored)} == {Kind.ORDER}
