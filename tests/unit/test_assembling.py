"""What goes into a context: never above the budget, nothing said twice, nothing left untold."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from hub_server.context.assembling import (
    PARTS,
    SHARES,
    Considered,
    Item,
    Part,
    assemble,
    blocks,
    joined,
)

_EVEN = dict(SHARES)
_scores = st.sampled_from((0.0, 0.1, 0.5, 0.9))


def _item(part: Part, number: int, tokens: int, score: float, text: int, said_by: int) -> Item:
    return Item(
        part=part,
        item_id=f"{part}{number}",
        text=f"text {text}",
        tokens=tokens,
        score=score,
        content_hash=f"text {text}".encode(),
        said_by=f"history{said_by}" if part == "memory" else None,
        group=f"document{number % 3}",
        place=number,
    )


def _items(part: Part, most: int) -> st.SearchStrategy[list[Item]]:
    drawn = st.tuples(st.integers(0, 12), _scores, st.integers(0, 6), st.integers(0, 9))
    return st.lists(drawn, max_size=most).map(
        lambda many: [_item(part, number, *values) for number, values in enumerate(many)]
    )


def _best_first(items: Sequence[Item]) -> list[Item]:
    return sorted(items, key=lambda item: -item.score)


@settings(max_examples=300, deadline=None)
@given(
    memory=_items("memory", 6),
    knowledge=_items("knowledge", 6),
    history=_items("history", 12),
    budget=st.integers(1, 60),
    shares=st.tuples(*[st.sampled_from((0.0, 0.2, 0.33))] * 3),
    min_score=_scores,
)
def test_a_context_keeps_its_promises(
    memory: list[Item],
    knowledge: list[Item],
    history: list[Item],
    budget: int,
    shares: tuple[float, ...],
    min_score: float,
) -> None:
    """Tokens within the budget, a stable order, and a ledger of all that was considered."""
    newest_first = history[::-1]
    found = Considered(
        memory=_best_first(memory),
        knowledge=_best_first(knowledge),
        tail=newest_first[:8],
        older=_best_first(newest_first[6:]),
    )
    asked = (budget, dict(zip(PARTS, shares, strict=True)), min_score)
    kept, ledger = assemble(found, *asked)
    assert (kept, ledger) == assemble(found, *asked)
    assert sum(item.tokens for item in kept) <= budget
    ids = [item.item_id for item in kept]
    everything = {item.item_id for item in (*memory, *knowledge, *history)}
    assert sorted(entry.item_id for entry in ledger) == sorted(everything)
    assert {entry.item_id for entry in ledger if entry.reason == "kept"} == set(ids)
    assert len(set(ids)) == len(ids)

    parts = [PARTS.index(item.part) for item in kept]
    assert parts == sorted(parts)
    seqs = [item.place for item in kept if item.part == "history"]
    assert seqs == sorted(seqs)
    said = [item.content_hash for item in kept if item.part != "history"]
    told = {item.content_hash for item in kept if item.part == "history"}
    assert len(said) == len(set(said))
    for item in kept:
        if item.part == "memory":
            assert item.said_by not in ids
            assert item.content_hash not in told
        if item.part != "history":
            assert item.score >= min_score
    for entry in ledger:
        if entry.reason == "below_score":
            assert entry.score < min_score


@settings(max_examples=200, deadline=None)
@given(history=_items("history", 12), budget=st.integers(1, 60))
def test_a_tail_has_no_gaps(history: list[Item], budget: int) -> None:
    """Without older messages the history that is kept is the newest of it."""
    tail = history[::-1]
    kept, _ = assemble(Considered(tail=tail), budget, _EVEN, 0)
    assert kept[::-1] == tail[: len(kept)]
    if len(kept) < len(tail):
        assert sum(item.tokens for item in kept) + tail[len(kept)].tokens > budget


def test_what_one_part_leaves_another_may_take() -> None:
    """Shares are for the first round only; a part that is alone may have the whole budget."""
    memory = [_item("memory", number, 10, 0.5, number, 99) for number in range(10)]
    kept, ledger = assemble(Considered(memory=memory), 100, _EVEN, 0)
    assert kept == memory
    _, ledger = assemble(Considered(memory=memory, off=["knowledge"]), 55, _EVEN, 0)
    reasons = [(entry.part, entry.reason) for entry in ledger]
    assert reasons.count(("memory", "kept")) == 5
    assert reasons.count(("memory", "budget")) == 5
    assert reasons[0] == ("knowledge", "flag_off")


def test_chunks_that_follow_one_another_are_said_once() -> None:
    """An overlap is there once; chunks of another document or further on are their own block."""
    text = "One two three four five six seven."

    def chunk(place: int, start: int, end: int, group: str = "a") -> Item:
        return Item(
            part="knowledge",
            item_id=f"{group}{place}",
            text=text[start:end],
            tokens=1,
            score=1.0,
            content_hash=b"",
            group=group,
            place=place,
            start=start,
        )

    kept = [chunk(0, 0, 13), chunk(1, 8, 23), chunk(3, 24, 34), chunk(4, 0, 3, "b")]
    runs = list(blocks(kept))
    assert [[item.item_id for item in run] for run in runs] == [["a0", "a1"], ["a3"], ["b4"]]
    assert [joined(run) for run in runs] == [text[:23], text[24:], "One"]
