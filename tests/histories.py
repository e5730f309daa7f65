"""Judges a history of appends: whether each happened exactly once, in one order, and for good.

Nothing here waits or calls: what was asked and answered goes in beside what is stored at the end.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

# seq and content of each message of a session, as they are listed.
Stored = Sequence[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Append:
    """One append as its writer saw it, however often it was sent.

    Attributes:
        writer: who appended.
        session_id: where.
        content: what, and its request_id: no two appends of a history share one.
        invoked: when it was first sent, by a clock that all writers of the history share.
        acknowledged: when it was answered; None = it never was, and may be stored or not.
        seq: the seq that was acknowledged; None like ``acknowledged``.

    """

    writer: str
    session_id: str
    content: str
    invoked: float
    acknowledged: float | None = None
    seq: int | None = None


class Kind(StrEnum):
    """What can be wrong with a history."""

    LOST = "lost"
    MOVED = "acknowledged under another seq"
    DUPLICATED = "stored more than once"
    GAP = "seq that no message has"
    COLLISION = "seq that several messages have"
    ORDER = "out of order"
    UNSENT = "never sent"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and where."""

    kind: Kind
    session_id: str
    subject: str


def findings(appends: Sequence[Append], stored: Mapping[str, Stored]) -> list[Finding]:
    """Return all that is wrong with a history; empty = every append happened as promised."""
    by_session: dict[str, list[Append]] = defaultdict(list)
    for append in appends:
        by_session[append.session_id].append(append)
    return [
        Finding(kind, session_id, subject)
        for session_id in sorted({*by_session, *stored})
        for kind, subject in _faults(by_session[session_id], stored.get(session_id, ()))
    ]


def _faults(appends: Sequence[Append], stored: Stored) -> Iterator[tuple[Kind, str]]:
    """Yield what is wrong with one session."""
    places: dict[str, list[int]] = defaultdict(list)
    for seq, content in stored:
        places[content].append(seq)
    yield from _misplaced(appends, places)
    yield from ((Kind.DUPLICATED, text) for text, seqs in places.items() if len(seqs) > 1)
    yield from _misnumbered([seq for seq, _ in stored])
    yield from _disordered(appends, places)
    sent = {append.content for append in appends}
    yield from ((Kind.UNSENT, content) for content in places if content not in sent)


def _misplaced(
    appends: Sequence[Append], places: Mapping[str, Sequence[int]]
) -> Iterator[tuple[Kind, str]]:
    """Yield what was acknowledged and is not stored where that said."""
    for append in appends:
        if append.seq is None:
            continue
        if append.content not in places:
            yield Kind.LOST, append.content
        elif append.seq not in places[append.content]:
            yield Kind.MOVED, append.content


def _misnumbered(seqs: Sequence[int]) -> Iterator[tuple[Kind, str]]:
    """Yield where the seqs are not 1, 2, 3 … in the order of the list."""
    yield from ((Kind.COLLISION, str(seq)) for seq, count in Counter(seqs).items() if count > 1)
    expected = range(1, max(seqs, default=0) + 1)
    known = set(seqs)
    yield from ((Kind.GAP, str(seq)) for seq in expected if seq not in known)
    yield from ((Kind.GAP, str(seq)) for seq in known if seq not in expected)
    if list(seqs) != sorted(seqs):
        yield Kind.ORDER, "the list"


def _disordered(
    appends: Sequence[Append], places: Mapping[str, Sequence[int]]
) -> Iterator[tuple[Kind, str]]:
    """Yield what has no higher seq than something acknowledged before it was first sent."""
    ended = sorted(
        (append.acknowledged, append.seq)
        for append in appends
        if append.acknowledged is not None and append.seq is not None
    )
    highest = passed = 0
    for append in sorted(appends, key=lambda append: append.invoked):
        while passed < len(ended) and ended[passed][0] < append.invoked:
            highest = max(highest, ended[passed][1])
            passed += 1
        # What was never acknowledged may be stored all the same, and then has its place, too.
        seq = append.seq
        if seq is None:
            seq = min(places.get(append.content, ()), default=None)
        if seq is not None and seq <= highest:
            yield Kind.ORDER, append.content
