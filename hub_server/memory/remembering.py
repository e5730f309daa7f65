"""The rules of Remember: what becomes of one more statement, given what is remembered.

No language model is asked. Everything is decided while the user's memory space is locked, from rows
that nobody else can change meanwhile; so of two writers who say the same one reinforces what the
other created.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from hub_server.memory.sameness import cosine, says_the_same, words
from hub_server.memory.scoring import reinforced
from hub_server.rows import Row

Outcome = Literal["created", "reinforced", "superseded", "unchanged", "proposed"]
_INFERRED: Final = "inferred"
_TIE_PLACES: Final = 6


@dataclass(frozen=True, slots=True)
class Statement:
    """What is to be remembered, and where it was said."""

    memory_type: str
    memory_content: str
    confidence_score: float
    source: str
    expires_at: dt.datetime | None
    memory_key: str
    session_id: str | None
    message_id: str | None
    embedding: bytes
    embedding_model: str
    content_hash: bytes

    def values(self) -> dict[str, Any]:
        """Return the columns of a memory that this makes."""
        return {
            "memory_type": self.memory_type,
            "memory_content": self.memory_content,
            "confidence_score": self.confidence_score,
            "source": self.source,
            "expires_at": self.expires_at,
            "memory_key": self.memory_key,
            "session_id": self.session_id,
            "message_id": self.message_id,
            "embedding": self.embedding,
            "embedding_model": self.embedding_model,
            "content_hash": self.content_hash,
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do: change the memory it is about, or add one that supersedes others."""

    outcome: Outcome
    memory: Row | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    status: str = "active"
    supersedes: Sequence[Row] = ()


@dataclass(frozen=True, slots=True)
class Judge:
    """Decides; knows the time, the user's language and how near a near duplicate is."""

    now: dt.datetime
    language: str
    near: float

    def decide(self, new: Statement, known: Sequence[Row]) -> Decision:
        """Return what becomes of a statement.

        ``known`` holds at least: every memory of its user and type that has its key, its content
        hash or a near vector, whatever the status.
        """
        known = [one for one in known if one["memory_type"] == new.memory_type]
        # Of those that fit alike the newest is taken, in whatever order they were read.
        known.sort(key=lambda one: one["memory_id"], reverse=True)
        if new.source == _INFERRED and (old := self._rejected(new, known)) is not None:
            return Decision("unchanged", old)
        if new.memory_key:
            return self._keyed(new, [one for one in known if one["memory_key"] == new.memory_key])
        same = [one for one in known if self._is_alive(one) and self._is_same(new, one)]
        if same:
            return self._again(new, max(same, key=lambda one: self._closeness(new, one)))
        return Decision("created")

    def _keyed(self, new: Statement, known: Sequence[Row]) -> Decision:
        active = [one for one in known if one["status"] == "active"]
        proposed = [one for one in known if one["status"] == "proposed"]
        for old in active:
            if self._is_alive(old) and _is_equal(new, old):
                return self._again(new, old)
        outranked = new.source == _INFERRED and any(
            self._is_alive(old) and old["source"] != _INFERRED for old in active
        )
        if not outranked:
            outcome: Outcome = "superseded" if active else "created"
            return Decision(outcome, supersedes=[*active, *proposed])
        for old in proposed:
            if _is_equal(new, old):
                return self._again(new, old)
        return Decision("proposed", status="proposed", supersedes=proposed)

    def _again(self, new: Statement, old: Row) -> Decision:
        """Reinforce a memory, unless this message did so before."""
        if new.message_id is not None and new.message_id in old["proofs"]:
            return Decision("unchanged", old)
        ends = (old["expires_at"], new.expires_at)
        changes = {
            "confidence_score": reinforced(old["confidence_score"], new.confidence_score),
            "reinforcement_count": old["reinforcement_count"] + 1,
            "reinforced_at": self.now,
            "expires_at": None if None in ends else max(ends),
            "source": "user" if new.source == "user" else old["source"],
        }
        return Decision("reinforced", old, changes)

    def _rejected(self, new: Statement, known: Sequence[Row]) -> Row | None:
        for old in known:
            is_about = old["memory_key"] == new.memory_key
            if old["status"] == "rejected" and is_about and _is_equal(new, old):
                return old
        return None

    def _is_alive(self, memory: Row) -> bool:
        ends = memory["expires_at"]
        return memory["status"] == "active" and (ends is None or ends > self.now)

    def _is_same(self, new: Statement, old: Row) -> bool:
        return self._closeness(new, old) >= self.near and says_the_same(
            new.memory_content, old["memory_content"], self.language
        )

    def _closeness(self, new: Statement, old: Row) -> float:
        if old["content_hash"] == new.content_hash and _is_equal(new, old):
            return 2.0  # nearer than any vector: of vectors that are alike the words decide
        if old["embedding_model"] != new.embedding_model:
            return 0.0
        # Of equal texts the vectors may differ in the last bits, by what they were embedded with.
        return round(cosine(new.embedding, old["embedding"]), _TIE_PLACES)


def _is_equal(new: Statement, old: Row) -> bool:
    """Compare the texts: a hash only finds them, and may be of older rules or of an import.

    Of such rows, equal texts without a key are the same by their cosine.
    """
    return words(new.memory_content) == words(old["memory_content"])
