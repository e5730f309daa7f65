"""Which of what was considered goes into a context, and why the rest does not.

Nothing here knows Postgres or gRPC: items in, blocks and a ledger out, the same every time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Part = Literal["memory", "knowledge", "history"]
Reason = Literal["kept", "budget", "duplicate", "below_score", "flag_off"]

PARTS: Final[tuple[Part, ...]] = ("memory", "knowledge", "history")
# What a part may take before the others are asked; what it leaves goes to whoever has more.
SHARES: Final[Mapping[Part, float]] = {"memory": 0.2, "knowledge": 0.3, "history": 0.5}


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that may go into a context."""

    part: Part
    item_id: str
    text: str
    tokens: int
    score: float
    content_hash: bytes
    said_by: str | None = None
    """The message a memory comes from: where that stands, the memory need not."""
    revision: int = 0
    """Of a memory: which state of it."""
    group: str = ""
    """Of a chunk: its document."""
    place: int = 0
    """Where it stands: a chunk in its document, a message in its session."""
    start: int | None = None
    """Of a chunk: where it begins in the text of its document, in code points."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one item; an empty id stands for a part that is switched off."""

    part: Part
    item_id: str
    score: float
    tokens: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Block:
    """Items that stand together, in order: chunks that follow one another, or one other item."""

    part: Part
    items: Sequence[Item]
    tokens: int

    @property
    def text(self) -> str:
        """What the block says; what two chunks share is said once."""
        return joined(self.items)


@dataclass(frozen=True, slots=True)
class Considered:
    """All that was found, each part best first; history has its tail, newest first, and others."""

    memory: Sequence[Item] = ()
    knowledge: Sequence[Item] = ()
    tail: Sequence[Item] = ()
    older: Sequence[Item] = ()
    off: Sequence[Part] = ()
    """Parts that the user's configuration switches off."""


@dataclass(slots=True)
class _Choice:
    """What is kept so far, and why the rest is not."""

    left: int
    kept: dict[str, Item] = field(default_factory=dict)
    dropped: dict[str, Reason] = field(default_factory=dict)
    said: set[bytes] = field(default_factory=set)

    def offer(self, item: Item, room: int) -> bool:
        """Keep an item if it says something new and fits in the room; tell whether it is there."""
        if item.item_id in self.kept:
            return True
        if self._is_said(item):
            self.dropped[item.item_id] = "duplicate"
            return True
        if item.tokens > min(room, self.left):
            self.dropped[item.item_id] = "budget"
            return False
        self.dropped.pop(item.item_id, None)
        self.kept[item.item_id] = item
        self.said.add(item.content_hash)
        self.left -= item.tokens
        return True

    def _is_said(self, item: Item) -> bool:
        """Tell whether something kept says this already; messages may repeat one another."""
        if item.part == "history":
            return False
        return item.content_hash in self.said or item.said_by in self.kept

    def drop_said(self) -> None:
        """Let go of memories that a message says which was kept after them."""
        said = {one.content_hash for one in self.kept.values() if one.part == "history"}
        for item in [one for one in self.kept.values() if one.part == "memory"]:
            if item.content_hash in said or item.said_by in self.kept:
                del self.kept[item.item_id]
                self.dropped[item.item_id] = "duplicate"
                self.left += item.tokens

    def fill(self, items: Iterable[Item], room: int) -> None:
        """Keep of the items what fits, in their order."""
        for item in items:
            before = self.left
            self.offer(item, room)
            room -= before - self.left

    def extend(self, tail: Iterable[Item], room: int) -> None:
        """Keep of a tail what fits without a gap: no message without the one after it."""
        for item in tail:
            before = self.left
            if not self.offer(item, room):
                return
            room -= before - self.left


def assemble(
    found: Considered, budget: int, shares: Mapping[Part, float], min_score: float
) -> tuple[list[Item], list[Entry]]:
    """Return what is kept, in the order of a context, and an entry for each item considered.

    First each part takes up to its share: history from its end backwards without gaps, the others
    from the best down. What is left then goes to memory, knowledge, more of the tail, and older
    messages by their score. The tokens of what is kept never exceed the budget.
    """
    choice = _Choice(budget)
    memory = [item for item in found.memory if item.score >= min_score]
    knowledge = [item for item in found.knowledge if item.score >= min_score]
    choice.extend(found.tail, int(budget * shares["history"]))
    choice.fill(memory, int(budget * shares["memory"]))
    choice.fill(knowledge, int(budget * shares["knowledge"]))
    choice.fill(memory, choice.left)
    choice.fill(knowledge, choice.left)
    choice.extend(found.tail, choice.left)
    in_tail = {item.item_id for item in found.tail}
    choice.fill((item for item in found.older if item.item_id not in in_tail), choice.left)
    choice.drop_said()
    return _ordered(found, choice), list(_ledger(found, choice))


def blocks(kept: Sequence[Item]) -> Iterator[list[Item]]:
    """Yield the items of each block: chunks that follow one another in a document are one."""
    run: list[Item] = []
    for item in kept:
        last = run[-1] if run else None
        follows = (
            last is not None
            and item.part == "knowledge" == last.part
            and item.group == last.group
            and item.place == last.place + 1
        )
        if run and not follows:
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def joined(items: Sequence[Item]) -> str:
    """Return the text of chunks that follow one another; an overlap is there once."""
    text, end = "", None
    for item in items:
        if end is None or item.start is None:
            text += ("\n\n" if text else "") + item.text
        elif item.start <= end:
            text += item.text[end - item.start :]
        else:
            text += "\n\n" + item.text
        end = None if item.start is None else item.start + len(item.text)
    return text


def _ordered(found: Considered, choice: _Choice) -> list[Item]:
    """Memories best first; chunks by document, best document first; messages as they were said."""
    documents: dict[str, int] = {}
    for item in found.knowledge:
        if item.item_id in choice.kept:
            documents.setdefault(item.group, len(documents))
    kept = choice.kept.values()
    memory = [item for item in found.memory if item.item_id in choice.kept]
    knowledge = sorted(
        (item for item in kept if item.part == "knowledge"),
        key=lambda item: (documents[item.group], item.place),
    )
    history = sorted((item for item in kept if item.part == "history"), key=lambda one: one.place)
    return [*memory, *knowledge, *history]


def _ledger(found: Considered, choice: _Choice) -> Iterator[Entry]:
    for part in PARTS:
        if part in found.off:
            yield Entry(part, "", 0.0, 0, "flag_off")
    seen: set[str] = set()
    for item in (*found.memory, *found.knowledge, *found.tail, *found.older):
        if item.item_id in seen:
            continue
        seen.add(item.item_id)
        reason = choice.dropped.get(item.item_id, "below_score")
        if item.item_id in choice.kept:
            reason = "kept"
        elif item.part == "history" and item.item_id not in choice.dropped:
            reason = "budget"  # behind a gap in the tail
        yield Entry(item.part, item.item_id, item.score, item.tokens, reason)
