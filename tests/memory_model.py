"""What the contract of memory promises, in plain Python: what is remembered of users, and when.

The model answers every call out of what was asked before, at the time its machine says it is. Of
the hub's answers it takes over nothing but the ids of new memories and how relevant a hit is. It
knows nothing of tables, vectors or locks.
"""

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import Message as ProtoMessage
from google.protobuf.timestamp_pb2 import Timestamp

from hub_client.v1 import memory_pb2 as pb
from tests.token_model import Refused, copy

DAY: Final = dt.timedelta(days=1)
# Texts that say the same, in the same place: equal but for case and marks, or but for an article.
TEXTS: Final = (
    ("Drinks tea.", "drinks  TEA!"),
    ("Prefers dark mode in all apps", "Prefers the dark mode in all apps!"),
    ("Is allergic to nuts.",),
    ("Is not allergic to nuts.",),
    ("Plays chess.",),
)
_MEANING: Final = {text: place for place, texts in enumerate(TEXTS) for text in texts}
# Those whose vectors are alike, as a report has it.
_ALIKE: Final = [set(TEXTS[1]), {*TEXTS[2], *TEXTS[3]}]

_OPEN: Final = (pb.MEMORY_STATUS_ACTIVE, pb.MEMORY_STATUS_SUPERSEDED, pb.MEMORY_STATUS_FORGOTTEN)
_CHANGEABLE: Final = ("memory_content", "confidence_score", "expires_at")
_INFERRED: Final = pb.MEMORY_SOURCE_INFERRED


@dataclass
class Kept:
    """One memory: how it is, what it was after each change, and what proved it."""

    state: pb.Memory
    revisions: list[tuple[int, dt.datetime, "pb.MemoryEvent.ValueType", pb.Memory]] = field(
        default_factory=list
    )
    proofs: set[str] = field(default_factory=set)
    recalled_at: dt.datetime | None = None
    is_deleted: bool = False

    def lasts(self, now: dt.datetime) -> bool:
        """Whether it has not expired."""
        return _lasts(self.state, now)


@dataclass
class Person:
    """One user: his memories in the order they were made, his origins, his spent request ids."""

    origins: Mapping[str, Sequence[str]]
    """The messages of each of his sessions."""
    memories: dict[str, Kept] = field(default_factory=dict)
    seq: int = 0
    spent: dict[str, tuple[bytes, Any]] = field(default_factory=dict)

    def living(self) -> list[Kept]:
        """Return his memories that are not deleted, newest first."""
        return [one for one in reversed(self.memories.values()) if not one.is_deleted]


class MemoryModel:
    """Answers calls as the contract says; ``who`` is the user of a token, None = a service key."""

    def __init__(self, origins: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Begin with users of whom nothing is remembered, and their sessions with messages."""
        self.people = {user_id: Person(theirs) for user_id, theirs in origins.items()}
        self.now = dt.datetime.min.replace(tzinfo=dt.UTC)

    def answer(self, who: str | None, request: ProtoMessage, made: ProtoMessage) -> ProtoMessage:
        """Return the answer to a request, with what the hub made taken from its own. Refuses."""
        name = type(request).__name__.removesuffix("Request")
        method = getattr(self, re.sub(r"(?<=.)([A-Z])", r"_\1", name).lower())
        answer: ProtoMessage = method(who, request, made)
        return answer

    # --- remembering

    def remember(
        self, who: str | None, request: pb.RememberRequest, made: pb.RememberResponse
    ) -> pb.RememberResponse:
        """Remember something."""
        (result,) = self._remember(who, request, [request], [made], "")
        return pb.RememberResponse(
            memory=result.memory, outcome=result.outcome, superseded_id=result.superseded_id
        )

    def batch_remember(
        self, who: str | None, request: pb.BatchRememberRequest, made: pb.BatchRememberResponse
    ) -> pb.BatchRememberResponse:
        """Remember several things."""
        results = self._remember(
            who, request, request.memories, made.remember_results, "memories[{}]."
        )
        return pb.BatchRememberResponse(remember_results=results)

    def _remember(
        self,
        who: str | None,
        request: Any,
        said: Sequence[Any],
        made: Sequence[Any],
        prefix: str,
    ) -> list[pb.RememberResult]:
        person = self._person(who, request.user_id)
        content = type(request).__name__.encode() + request.SerializeToString(deterministic=True)
        if (spent := person.spent.get(request.request_id)) is not None:
            if spent[0] != content:
                raise Refused("REQUEST_ID_REUSED")
            return [self._again(person, one) for one in spent[1]]
        for place, one in enumerate(said):
            self._check(person, one, prefix.format(place))
        results = [
            self._settle(request.user_id, one, hub.memory.memory_id)
            for one, hub in zip(said, made, strict=True)
        ]
        if request.request_id:
            person.spent[request.request_id] = (content, [copy(one) for one in results])
        return results

    def _check(self, person: Person, new: Any, prefix: str) -> None:
        if new.HasField("expires_at") and _time(new.expires_at) <= self.now:
            raise Refused.of(f"{prefix}expires_at", "must lie in the future")
        if new.message_id and not new.session_id:
            raise Refused.of(f"{prefix}message_id", "needs session_id")
        if new.session_id and new.session_id not in person.origins:
            raise Refused("NOT_FOUND", resource="session")
        if new.message_id and new.message_id not in person.origins[new.session_id]:
            raise Refused("NOT_FOUND", resource="message")

    def _again(self, person: Person, first: pb.RememberResult) -> pb.RememberResult:
        """Return what a retry is told: the memory as it was then, or what is left of it."""
        kept = person.memories[first.memory.memory_id]
        told = copy(first)
        if kept.is_deleted:
            told.memory.CopyFrom(kept.state)
            told.memory.etag = kept.state.etag
        told.memory.current_confidence = self._sure(told.memory, self.now)
        return told

    def _settle(self, user_id: str, new: Any, memory_id: str) -> pb.RememberResult:
        """Do what the rules of Remember say."""
        source = new.source or pb.MEMORY_SOURCE_USER
        known = [
            one for one in self.people[user_id].living() if one.state.memory_type == new.memory_type
        ]
        if source == _INFERRED:
            for one in known:
                is_about = one.state.memory_key == new.memory_key
                is_rejected = one.state.status == pb.MEMORY_STATUS_REJECTED
                if is_rejected and is_about and _is_equal(one.state, new):
                    return self._result(one, pb.REMEMBER_OUTCOME_UNCHANGED)
        if new.memory_key:
            known = [one for one in known if one.state.memory_key == new.memory_key]
            return self._settle_keyed(user_id, new, source, known, memory_id)
        same = [
            one
            for one in known
            if self._is_recalled(one.state, self.now)
            and _MEANING[one.state.memory_content] == _MEANING[new.memory_content]
        ]
        same.sort(key=lambda one: not _is_equal(one.state, new))
        if same:
            return self._reinforce(same[0], new, source)
        made = self._add(user_id, new, source, memory_id, pb.MEMORY_STATUS_ACTIVE)
        return self._result(made, pb.REMEMBER_OUTCOME_CREATED)

    def _settle_keyed(
        self, user_id: str, new: Any, source: int, known: list[Kept], memory_id: str
    ) -> pb.RememberResult:
        active = [one for one in known if one.state.status == pb.MEMORY_STATUS_ACTIVE]
        assert len(active) <= 1, "two active memories of one key"
        proposed = [one for one in known if one.state.status == pb.MEMORY_STATUS_PROPOSED]
        assert len(proposed) <= 1, "two proposals of one key"
        lasting = [one for one in active if one.lasts(self.now)]
        for one in lasting:
            if _is_equal(one.state, new):
                return self._reinforce(one, new, source)
        if source == _INFERRED and any(one.state.source != _INFERRED for one in lasting):
            for one in proposed:
                if _is_equal(one.state, new):
                    return self._reinforce(one, new, source)
            self._supersede(proposed, memory_id)
            made = self._add(user_id, new, source, memory_id, pb.MEMORY_STATUS_PROPOSED)
            return self._result(made, pb.REMEMBER_OUTCOME_PROPOSED)
        self._supersede([*active, *proposed], memory_id)
        made = self._add(user_id, new, source, memory_id, pb.MEMORY_STATUS_ACTIVE)
        if not active:
            return self._result(made, pb.REMEMBER_OUTCOME_CREATED)
        took = active[0].state.memory_id
        return self._result(made, pb.REMEMBER_OUTCOME_SUPERSEDED, took)

    def _reinforce(self, old: Kept, new: Any, source: int) -> pb.RememberResult:
        if new.message_id and new.message_id in old.proofs:
            return self._result(old, pb.REMEMBER_OUTCOME_UNCHANGED)
        state = old.state
        proof = new.confidence_score if new.HasField("confidence_score") else 1.0
        state.confidence_score += (1 - state.confidence_score) * proof / 2
        state.reinforcement_count += 1
        state.reinforced_at.FromDatetime(self.now)
        if not new.HasField("expires_at"):
            state.ClearField("expires_at")
        elif state.HasField("expires_at") and _time(state.expires_at) < _time(new.expires_at):
            state.expires_at.CopyFrom(new.expires_at)
        if source == pb.MEMORY_SOURCE_USER:
            state.source = pb.MEMORY_SOURCE_USER
        old.proofs.add(new.message_id)
        self._note(old, pb.MEMORY_EVENT_REINFORCED)
        return self._result(old, pb.REMEMBER_OUTCOME_REINFORCED)

    def _add(self, user_id: str, new: Any, source: int, memory_id: str, status: int) -> Kept:
        everyone = [one for person in self.people.values() for one in person.memories]
        assert all(memory_id > one for one in everyone), "an id that is not a new one"
        state = pb.Memory(
            memory_id=memory_id,
            user_id=user_id,
            memory_type=new.memory_type,
            memory_content=new.memory_content,
            confidence_score=new.confidence_score if new.HasField("confidence_score") else 1.0,
            expires_at=new.expires_at if new.HasField("expires_at") else None,
            source=source,  # type: ignore[arg-type]  # a MemorySource is an int
            created_at=_stamp(self.now),
            memory_key=new.memory_key,
            status=status,  # type: ignore[arg-type]  # so is a MemoryStatus
            session_id=new.session_id,
            message_id=new.message_id,
        )
        kept = self.people[user_id].memories[memory_id] = Kept(state, proofs={new.message_id})
        is_active = status == pb.MEMORY_STATUS_ACTIVE
        self._note(kept, pb.MEMORY_EVENT_CREATED if is_active else pb.MEMORY_EVENT_PROPOSED)
        return kept

    def _supersede(self, old: Iterable[Kept], by: str) -> None:
        for one in old:
            one.state.status = pb.MEMORY_STATUS_SUPERSEDED
            one.state.superseded_by = by
            self._note(one, pb.MEMORY_EVENT_SUPERSEDED)

    def _result(
        self, kept: Kept, outcome: "pb.RememberOutcome.ValueType", superseded_id: str = ""
    ) -> pb.RememberResult:
        return pb.RememberResult(
            memory=self._shown(kept.state), outcome=outcome, superseded_id=superseded_id
        )

    # --- reading

    def get_memory(
        self, who: str | None, request: pb.GetMemoryRequest, _: pb.GetMemoryResponse
    ) -> pb.GetMemoryResponse:
        """Show a memory."""
        return pb.GetMemoryResponse(memory=self._shown(self.kept(who, request.memory_id).state))

    def listed(self, who: str | None, request: pb.ListMemoriesRequest) -> list[pb.Memory]:
        """Return all memories that a list shows, whatever its page."""
        person = self._person(who, request.user_id)
        then = self._then(request)
        return [
            self._shown(one, then)
            for one in _at(person, then)
            if _is_wanted(one, request)
            and request.memory_key in ("", one.memory_key)
            and (one.status in request.statuses or not request.statuses)
            and (request.statuses or self._is_recalled(one, then))
        ]

    def get_memory_history(
        self, who: str | None, request: pb.GetMemoryHistoryRequest, _: ProtoMessage
    ) -> pb.GetMemoryHistoryResponse:
        """Show what became of a memory and of all it is linked with."""
        named = self.kept(who, request.memory_id)
        person = self.people[named.state.user_id]
        chain = {request.memory_id}
        while True:
            links = [(one, kept.state.superseded_by) for one, kept in person.memories.items()]
            more = {one for link in links if chain & set(link) for one in link if one}
            if more <= chain:
                break
            chain |= more
        steps = [
            step
            for one in chain
            if not person.memories[one].is_deleted
            for step in person.memories[one].revisions
        ]
        revisions = [
            pb.MemoryRevision(
                memory=self._shown(state, when), event=event, recorded_at=_stamp(when)
            )
            for _, when, event, state in sorted(steps, key=lambda step: step[0])
        ]
        history = pb.MemoryHistory(revisions=revisions)
        return pb.GetMemoryHistoryResponse(memory_history=history)

    def recall(
        self, who: str | None, request: pb.RecallRequest, made: pb.RecallResponse
    ) -> pb.RecallResponse:
        """Find memories; which of those that are wanted are best, their relevance decides."""
        person = self._person(who, request.user_id)
        then = self._then(request)
        wanted = {
            one.memory_id: one
            for one in _at(person, then)
            if self._is_recalled(one, then)
            and _is_wanted(one, request)
            and self._sure(one, then) >= request.min_confidence
        }
        assert len(made.hits) == min(request.top_k or 10, len(wanted)), "too few hits, or too many"
        hits = [self._hit(wanted, one, request, then) for one in made.hits]
        order = [(one.score, one.memory.memory_id) for one in made.hits]
        assert order == sorted(order, reverse=True), "not the best first"
        if not request.HasField("as_of"):
            for one in made.hits:
                kept = person.memories[one.memory.memory_id]
                if kept.recalled_at is None or kept.recalled_at <= self.now - DAY:
                    kept.recalled_at = self.now
        return pb.RecallResponse(hits=hits)

    def _hit(
        self,
        wanted: Mapping[str, pb.Memory],
        made: pb.MemoryHit,
        request: pb.RecallRequest,
        then: dt.datetime,
    ) -> pb.MemoryHit:
        state = wanted[made.memory.memory_id]
        moved = state.reinforced_at if state.HasField("reinforced_at") else state.created_at
        sure, recency = self._sure(state, then), 0.5 ** ((then - _time(moved)) / (180 * DAY))
        assert 0 <= made.relevance <= 1
        given = {one.name: power for one, power in request.weights.ListFields()}
        score = made.relevance ** given.get("relevance", 1) * sure ** given.get("confidence", 1)
        score *= recency ** given.get("recency", 0.2)
        return pb.MemoryHit(
            memory=self._shown(state, then),
            score=score,
            vector_score=made.vector_score,
            word_score=made.word_score,
            relevance=made.relevance,
            confidence=sure,
            recency=recency,
        )

    def report(self, who: str | None, request: pb.GetMemoryReportRequest) -> Any:
        """Return how many memories are looked at, and the ids of what is found, by kind."""
        person = self._person(who, request.user_id)
        lasting = [one for one in person.living() if one.lasts(self.now)]
        active = [one for one in lasting if one.state.status == pb.MEMORY_STATUS_ACTIVE]
        proposed = [one for one in lasting if one.state.status == pb.MEMORY_STATUS_PROPOSED]
        about = {(one.state.memory_type, one.state.memory_key): one for one in active}
        found: dict[int, list[list[Kept]]] = {
            pb.MEMORY_FINDING_KIND_DUPLICATE: [
                [newer, older]
                for place, newer in enumerate(active)
                for older in active[place + 1 :]
                if _are_alike(newer.state.memory_content, older.state.memory_content)
            ],
            pb.MEMORY_FINDING_KIND_CONTRADICTION: [
                [one, about[one.state.memory_type, one.state.memory_key]]
                for one in proposed
                if (one.state.memory_type, one.state.memory_key) in about
            ],
            pb.MEMORY_FINDING_KIND_LOW_CONFIDENCE: [
                [one] for one in active if self._sure(one.state, self.now) < 0.3
            ],
            pb.MEMORY_FINDING_KIND_STALE: [
                [one] for one in active if _moved(one) < self.now - 180 * DAY
            ],
            pb.MEMORY_FINDING_KIND_NEVER_RECALLED: [
                [one]
                for one in active
                if not one.recalled_at and _time(one.state.created_at) < self.now - 30 * DAY
            ],
        }
        ids = {
            (kind, tuple(one.state.memory_id for one in group))
            for kind, groups in found.items()
            for group in groups
        }
        return len(active) + len(proposed), ids

    # --- changing

    def update_memory(
        self, who: str | None, request: pb.UpdateMemoryRequest, _: pb.UpdateMemoryResponse
    ) -> pb.UpdateMemoryResponse:
        """Change text, confidence or expiry."""
        given = {name for name in _CHANGEABLE if _is_given(request, name)}
        paths = set(request.update_mask.paths) or given
        paths = set(_CHANGEABLE) if paths == {"*"} else paths
        if not paths <= set(_CHANGEABLE):
            raise Refused.of("update_mask", f"may name: {', '.join(_CHANGEABLE)}")
        for name, what in (("memory_content", "not be empty"), ("confidence_score", "be given")):
            if name in paths - given:
                raise Refused.of(name, f"must {what}")
        kept = self.kept(who, request.memory_id)
        if request.etag not in ("", kept.state.etag):
            raise Refused("ETAG_MISMATCH")
        if "expires_at" in paths & given and _time(request.expires_at) <= self.now:
            raise Refused.of("expires_at", "must lie in the future")
        for name in paths:
            kept.state.ClearField(name)  # type: ignore[arg-type]  # one of _CHANGEABLE
            if name in given:
                kept.state.MergeFrom(pb.Memory(**{name: getattr(request, name)}))
        self._note(kept, pb.MEMORY_EVENT_UPDATED)
        return pb.UpdateMemoryResponse(memory=self._shown(kept.state))

    def restore_memory(
        self, who: str | None, request: pb.RestoreMemoryRequest, _: pb.RestoreMemoryResponse
    ) -> pb.RestoreMemoryResponse:
        """Make a memory active again."""
        kept = self.kept(who, request.memory_id)
        self._check_status(kept, *_OPEN)
        self._check_lasts(kept)
        if kept.state.status != pb.MEMORY_STATUS_ACTIVE:
            self._enthrone(kept, pb.MEMORY_EVENT_RESTORED)
        return pb.RestoreMemoryResponse(memory=self._shown(kept.state))

    def accept_memory(
        self, who: str | None, request: pb.AcceptMemoryRequest, _: pb.AcceptMemoryResponse
    ) -> pb.AcceptMemoryResponse:
        """Make a proposal active."""
        kept = self.kept(who, request.memory_id)
        self._check_status(kept, pb.MEMORY_STATUS_PROPOSED)
        self._check_lasts(kept)
        kept.state.source = pb.MEMORY_SOURCE_USER
        self._enthrone(kept, pb.MEMORY_EVENT_ACCEPTED)
        return pb.AcceptMemoryResponse(memory=self._shown(kept.state))

    def reject_memory(
        self, who: str | None, request: pb.RejectMemoryRequest, _: pb.RejectMemoryResponse
    ) -> pb.RejectMemoryResponse:
        """Turn a proposal down."""
        kept = self.kept(who, request.memory_id)
        self._check_status(kept, pb.MEMORY_STATUS_PROPOSED)
        kept.state.status = pb.MEMORY_STATUS_REJECTED
        self._note(kept, pb.MEMORY_EVENT_REJECTED)
        return pb.RejectMemoryResponse(memory=self._shown(kept.state))

    def forget_memory(
        self, who: str | None, request: pb.ForgetMemoryRequest, _: pb.ForgetMemoryResponse
    ) -> pb.ForgetMemoryResponse:
        """Make a memory inactive."""
        kept = self.kept(who, request.memory_id)
        if kept.state.status != pb.MEMORY_STATUS_FORGOTTEN:
            self._check_status(kept, pb.MEMORY_STATUS_ACTIVE)
            kept.state.status = pb.MEMORY_STATUS_FORGOTTEN
            self._note(kept, pb.MEMORY_EVENT_FORGOTTEN)
        return pb.ForgetMemoryResponse(memory=self._shown(kept.state))

    def delete_memory(
        self, who: str | None, request: pb.DeleteMemoryRequest, _: pb.DeleteMemoryResponse
    ) -> pb.DeleteMemoryResponse:
        """Delete a memory; nothing that it said is left."""
        kept = self.kept(who, request.memory_id)
        kept.is_deleted = True
        kept.revisions.clear()
        kept.state.ClearField("memory_content")
        kept.state.ClearField("memory_key")
        kept.state.updated_at.FromDatetime(self.now)
        return pb.DeleteMemoryResponse()

    # --- what these share

    def kept(self, who: str | None, memory_id: str) -> Kept:
        """Return a memory that a caller may see. Refuses."""
        for user_id, person in self.people.items():
            kept = person.memories.get(memory_id)
            if kept is not None and not kept.is_deleted and who in (None, user_id):
                return kept
        raise Refused("NOT_FOUND", resource="memory")

    def _person(self, who: str | None, user_id: str) -> Person:
        if user_id not in self.people or who not in (None, user_id):
            raise Refused("NOT_FOUND", resource="user")
        return self.people[user_id]

    def _enthrone(self, kept: Kept, event: "pb.MemoryEvent.ValueType") -> None:
        """Make a memory active, in the place of the one of its type and key that is."""
        state = kept.state
        self._supersede(
            [
                one
                for one in self.people[state.user_id].living()
                if state.memory_key
                and one.state.status == pb.MEMORY_STATUS_ACTIVE
                and one.state.memory_type == state.memory_type
                and one.state.memory_key == state.memory_key
            ],
            state.memory_id,
        )
        state.status = pb.MEMORY_STATUS_ACTIVE
        state.ClearField("superseded_by")
        self._note(kept, event)

    def _check_status(self, kept: Kept, *allowed: int) -> None:
        if kept.state.status not in allowed:
            name = pb.MemoryStatus.Name(kept.state.status).removeprefix("MEMORY_STATUS_")
            raise Refused("MEMORY_STATUS", status=name.lower())

    def _check_lasts(self, kept: Kept) -> None:
        if not kept.lasts(self.now):
            raise Refused("MEMORY_STATUS", status="expired")

    def _note(self, kept: Kept, event: "pb.MemoryEvent.ValueType") -> None:
        """Keep what a memory is after a change of it."""
        person = self.people[kept.state.user_id]
        person.seq += 1
        kept.state.is_active = kept.state.status == pb.MEMORY_STATUS_ACTIVE
        kept.state.updated_at.FromDatetime(self.now)
        kept.state.etag = str(len(kept.revisions) + 1)
        kept.revisions.append((person.seq, self.now, event, copy(kept.state)))

    def _shown(self, state: pb.Memory, then: dt.datetime | None = None) -> pb.Memory:
        shown = copy(state)
        shown.current_confidence = self._sure(state, then or self.now)
        return shown

    def _sure(self, state: pb.Memory, then: dt.datetime) -> float:
        """Return how sure a memory was at a time: inferences that nothing proved fade."""
        if state.source != _INFERRED or state.reinforcement_count:
            return state.confidence_score
        age: float = (then - _time(state.created_at)) / (90 * DAY)
        return float(state.confidence_score * 0.5 ** max(age, 0))

    def _is_recalled(self, state: pb.Memory, then: dt.datetime) -> bool:
        return state.status == pb.MEMORY_STATUS_ACTIVE and _lasts(state, then)

    def _then(self, request: pb.ListMemoriesRequest | pb.RecallRequest) -> dt.datetime:
        """Return the time that is asked for."""
        if not request.HasField("as_of"):
            return self.now
        if _time(request.as_of) > self.now:
            raise Refused.of("as_of", "must not lie in the future")
        return _time(request.as_of)


def _at(person: Person, then: dt.datetime) -> list[pb.Memory]:
    """Return a user's memories as they were at a time, newest first."""
    pasts = [
        [state for _, when, _, state in one.revisions if when <= then] for one in person.living()
    ]
    return [past[-1] for past in pasts if past]


def _is_wanted(state: pb.Memory, request: pb.ListMemoriesRequest | pb.RecallRequest) -> bool:
    return (not request.memory_types or state.memory_type in request.memory_types) and (
        not request.sources or state.source in request.sources
    )


def _is_equal(state: pb.Memory, new: Any) -> bool:
    return _words(state.memory_content) == _words(new.memory_content)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _are_alike(one: str, other: str) -> bool:
    return _words(one) == _words(other) or any({one, other} <= texts for texts in _ALIKE)


def _moved(kept: Kept) -> dt.datetime:
    """Return when a memory was last stored, reinforced or recalled."""
    state = kept.state
    moved = _time(state.reinforced_at if state.HasField("reinforced_at") else state.created_at)
    return max(moved, kept.recalled_at or moved)


def _is_given(request: pb.UpdateMemoryRequest, name: str) -> bool:
    return bool(request.memory_content) if name == "memory_content" else request.HasField(name)  # type: ignore[arg-type]


def _lasts(state: pb.Memory, then: dt.datetime) -> bool:
    return not state.HasField("expires_at") or _time(state.expires_at) > then


def _stamp(moment: dt.datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def _time(stamp: Any) -> dt.datetime:
    moment: dt.datetime = stamp.ToDatetime(tzinfo=dt.UTC)
    return moment
