"""Random calls of memory against a running hub and a plain model of it: they answer the same.

Time is the machine's: it stands still during a call, and leaps by months between two. `make test`
makes a few hundred calls, the same each time; `make campaign-model` many thousands.
"""

import asyncio
import datetime as dt
import os
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import hypothesis.strategies as st
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message as ProtoMessage
from google.protobuf.message_factory import GetMessageClass
from hypothesis import seed
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from hub_client import errors
from hub_client.v1 import chat_pb2, identity_pb2
from hub_client.v1 import memory_pb2 as pb
from tests.integration.test_chat_model import Line, callers, run_machine
from tests.integration.test_rpc import METHODS
from tests.memory_model import DAY, TEXTS, MemoryModel
from tests.support import Hub, running_hub
from tests.token_model import Refused

_STATUSES: Final = pb.MemoryStatus.values()[1:]
_SOURCES: Final = pb.MemorySource.values()[1:]
_FACT: Final = pb.MEMORY_TYPE_FACT
_TICK: Final = dt.timedelta(seconds=1)
_ABOUT: Final[Any] = {"rel": 1e-9, "abs": 1e-12}
_PARTS: Final = ("score", "confidence", "recency")

# Of which statuses a memory is to be for each of these to change it.
_CHANGES: Final[Any] = {
    pb.RestoreMemoryRequest: (pb.MEMORY_STATUS_SUPERSEDED, pb.MEMORY_STATUS_FORGOTTEN),
    pb.AcceptMemoryRequest: (pb.MEMORY_STATUS_PROPOSED,),
    pb.RejectMemoryRequest: (pb.MEMORY_STATUS_PROPOSED,),
    pb.ForgetMemoryRequest: (pb.MEMORY_STATUS_ACTIVE,),
    pb.DeleteMemoryRequest: _STATUSES,
}

texts = st.sampled_from([text for same in TEXTS for text in same])
types = st.sampled_from((_FACT, _FACT, _FACT, pb.MEMORY_TYPE_HABIT))
request_ids = st.sampled_from(("", "", "", "r1", "r2"))
# Days from now on; what has passed, and None = never.
expiries = st.sampled_from((None, None, None, -1, 1, 50, 200))
# A time in the past, by its place; one that is yet to come; and None = now.
pasts = st.none() | st.integers(-30, -1) | st.just("future")
filters: Any = {
    "memory_types": st.lists(types, max_size=1),
    "sources": st.lists(st.sampled_from(_SOURCES), max_size=2),
}
news = st.fixed_dictionaries(
    {
        "memory_type": types,
        "memory_content": texts,
        "memory_key": st.sampled_from(("", "a", "a", "b")),
        "source": st.sampled_from((0, *_SOURCES, pb.MEMORY_SOURCE_INFERRED)),
        "confidence_score": st.sampled_from((None, 0.0, 0.2, 0.5, 1.0)),
        "expires_at": expiries,
        "origin": st.sampled_from(
            (None, None, None, "session", "first", "first", "second", "foreign", "mixed", "bare")
        ),
    }
)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        """Begin in a future that no purge has reached."""
        self.now = dt.datetime(2040, 1, 1, tzinfo=dt.UTC)

    def __call__(self) -> dt.datetime:
        """Return the time."""
        return self.now


class MemoryMachine(RuleBasedStateMachine):
    """Two users of one tenant, in the hub and in the model."""

    memories: Bundle[str] = Bundle("memories")
    sent: Bundle[tuple[str, Any, str]] = Bundle("sent")

    def __init__(self, line: Line, clock: Clock) -> None:
        """Call the hub at the other end of the line, which goes by the clock."""
        super().__init__()
        # See ChatMachine.
        every: Any = SimpleNamespace(is_enabled=lambda _: True)
        self._rules_strategy.enabled_rules_strategy = st.just(every)
        self._line = line
        self._clock = clock
        self._keys: dict[str, str] = {}
        self._origins: dict[str, dict[str, list[str]]] = {}
        self._moments: list[dt.datetime] = []
        self._touched = set[str]()
        self._is_sound = True
        self._model = MemoryModel({})

    # --- what a call is

    def _do(self, request: Any, user_id: str, caller: str) -> Any:
        """Make a call in the hub and in the model; return the answer, None = both refuse it."""
        method = type(request).__name__.removesuffix("Request")
        who = self._who(user_id, caller)
        said = self._ask(method, request, who)
        made = GetMessageClass(METHODS[method].output_type)()
        if not isinstance(said, errors.HubError):
            made.CopyFrom(said)
        wanted: Any
        try:
            wanted = self._model.answer(who, request, made)
        except Refused as refusal:
            wanted = refusal
        except (AssertionError, ValueError):
            assert not isinstance(said, errors.HubError), f"refused: {said!r}"
            raise
        return self._same(said, wanted)

    def _ask(self, method: str, request: ProtoMessage, who: str | None) -> Any:
        """Return what the hub says, some time after the call before."""
        self._is_sound = False
        self._clock.now += _TICK
        self._model.now = self._clock.now
        self._moments.append(self._clock.now)
        return self._line.ask(method, request, self._key(who))

    def _same(self, said: Any, wanted: Any) -> Any:
        """Compare what the hub and the model say; return it, None = they refuse."""
        if isinstance(wanted, Refused):
            assert isinstance(said, errors.HubError), (wanted, said)
            told = (said.reason, dict(said.metadata), said.violations)
            assert told == (wanted.reason, wanted.facts, wanted.violations)
            said = None
        else:
            assert not isinstance(said, errors.HubError), (said, wanted)
            assert _numbers(said) == pytest.approx(_numbers(wanted), **_ABOUT)
            assert _rest(said) == _rest(wanted)
        self._is_sound = True
        return said

    def _who(self, user_id: str, caller: str) -> str | None:
        """Return the user whose token is presented; None = it is the service key."""
        if caller == "key":
            return None
        return next(one for one in self._keys if (one == user_id) == (caller == "self"))

    def _key(self, who: str | None) -> str:
        return self._line.tenant.key if who is None else self._keys[who]

    def _user(self, place: int) -> str:
        return list(self._keys)[place]

    def _owner(self, memory_id: str) -> str:
        people = self._model.people.items()
        return next((who for who, one in people if memory_id in one.memories), self._user(0))

    # --- users

    @initialize(target=memories)
    def begin(self) -> MultipleResults[str]:
        """Each has a session of two messages, and a chain of three memories, and a proposal."""
        key = self._line.tenant.key
        for _ in range(2):
            email = f"{time.monotonic_ns()}@example.org"
            asked = identity_pb2.CreateUserRequest(email=email)
            user_id = self._line.ask("CreateUser", asked, key).user.user_id
            self._keys[user_id] = self._line.token(user_id)
            begun = self._line.ask(
                "CreateSession", chat_pb2.CreateSessionRequest(user_id=user_id), key
            )
            session_id = begun.session.session_id
            tea = [chat_pb2.BatchMessage(role=chat_pb2.ROLE_USER, content="tea")] * 2
            request = chat_pb2.BatchAppendMessagesRequest(session_id=session_id, messages=tea)
            answer = self._line.ask("BatchAppendMessages", request, key)
            self._origins[user_id] = {
                session_id: [one.message_id for one in answer.appended_messages]
            }
        self._model = MemoryModel(self._origins)
        made = [str(uuid.uuid4())]
        for user_id in self._keys:
            chain = [
                pb.NewMemory(memory_type=_FACT, memory_content=same[0], memory_key="a")
                for same in TEXTS[:3]
            ]
            guess: Any = {"memory_content": TEXTS[4][0], "source": pb.MEMORY_SOURCE_INFERRED}
            chain.append(pb.NewMemory(memory_type=_FACT, memory_key="a", **guess))
            said = pb.BatchRememberRequest(user_id=user_id, memories=chain)
            results = self._do(said, user_id, "key").remember_results
            made += [one.memory.memory_id for one in results]
        return multiple(*made)

    @rule(leap=st.sampled_from((1, 10, 40, 100, "expiry", "expiry")))
    def wait(self, leap: Any) -> None:
        """Time passes: days, or until the very moment at which something expires."""
        if leap != "expiry":
            self._clock.now += leap * DAY
            return
        ends = [
            one.state.expires_at.ToDatetime(tzinfo=dt.UTC)
            for person in self._model.people.values()
            for one in person.living()
            if one.state.HasField("expires_at")
        ]
        self._clock.now = min(
            (end - _TICK for end in ends if end - _TICK > self._clock.now), default=self._clock.now
        )

    # --- remembering

    @rule(target=sent, place=st.integers(0, 1), caller=callers, new=news, request_id=request_ids)
    def remember(self, place: int, caller: str, new: Any, request_id: str) -> Any:
        """Something is remembered."""
        user_id = self._user(place)
        values = self._values(user_id, new)
        request = pb.RememberRequest(user_id=user_id, request_id=request_id, **values)
        return self._send(request, user_id, caller)

    @rule(
        target=sent,
        place=st.integers(0, 1),
        caller=callers,
        many=st.lists(news, min_size=1, max_size=3),
        request_id=request_ids,
    )
    def batch_remember(self, place: int, caller: str, many: Sequence[Any], request_id: str) -> Any:
        """Several things are remembered."""
        user_id = self._user(place)
        request = pb.BatchRememberRequest(
            user_id=user_id,
            memories=[pb.NewMemory(**self._values(user_id, one)) for one in many],
            request_id=request_id,
        )
        return self._send(request, user_id, caller)

    @rule(target=memories, call=sent)
    def retry(self, call: tuple[str, Any, str]) -> Any:
        """A call is made once more, as it was; what it made is named from now on."""
        user_id, request, caller = call
        answer = self._do(request, user_id, caller)
        self._touched.add(user_id)
        if answer is None:
            return multiple()
        results = getattr(answer, "remember_results", None) or [answer]
        return multiple(*(one.memory.memory_id for one in results))

    def _send(self, request: Any, user_id: str, caller: str) -> Any:
        answer = self._do(request, user_id, caller)
        self._touched.add(user_id)
        return multiple() if answer is None else (user_id, request, caller)

    def _values(self, user_id: str, new: Any) -> dict[str, Any]:
        """Return the fields of what is to be remembered."""
        values = {name: value for name, value in new.items() if value is not None}
        if "expires_at" in values:
            values["expires_at"] = self._clock.now + values["expires_at"] * DAY
        ((own, messages),) = self._origins[user_id].items()
        other = next(one for one in self._origins if one != user_id)
        ((foreign, theirs),) = self._origins[other].items()
        origins = {
            "session": (own, ""),
            "first": (own, messages[0]),
            "second": (own, messages[1]),
            "foreign": (foreign, theirs[0]),
            "mixed": (own, theirs[0]),
            "bare": ("", messages[0]),
        }
        session_id, message_id = origins.get(values.pop("origin", ""), ("", ""))
        return {**values, "session_id": session_id, "message_id": message_id}

    # --- reading

    @rule(
        kind=st.sampled_from((pb.GetMemoryRequest, pb.GetMemoryHistoryRequest)),
        memory=memories,
        caller=callers,
    )
    def show(self, kind: Any, memory: str, caller: str) -> None:
        """A memory is shown, or what became of it."""
        self._do(kind(memory_id=memory), self._owner(memory), caller)

    @rule(
        place=st.integers(0, 1),
        caller=callers,
        page_size=st.sampled_from((0, 1, 2, 1000)),
        as_of=pasts,
        memory_key=st.sampled_from(("", "", "a")),
        statuses=st.lists(st.sampled_from(_STATUSES), max_size=2),
        **filters,
    )
    def list_memories(self, place: int, caller: str, as_of: Any, **values: Any) -> None:
        """Memories are listed, page by page."""
        user_id = self._user(place)
        request = pb.ListMemoriesRequest(user_id=user_id, **values, **self._then(as_of))
        self._list(request, user_id, caller)

    def _list(self, request: pb.ListMemoriesRequest, user_id: str, caller: str) -> None:
        who = self._who(user_id, caller)
        size = request.page_size or 50
        while True:
            said = self._ask("ListMemories", request, who)
            try:
                wanted = self._model.listed(who, request)
            except Refused as refusal:
                self._same(said, refusal)
                return
            assert not isinstance(said, errors.HubError), said
            before = [place for place, one in enumerate(wanted) if one.memory_id == self._last]
            left = wanted[before[0] + 1 if before and request.page_token else 0 :]
            token = said.next_page_token
            assert bool(token) == (len(left) > size)
            self._same(said, pb.ListMemoriesResponse(memories=left[:size], next_page_token=token))
            if not token:
                return
            request.page_token, self._last = token, said.memories[-1].memory_id

    _last = ""

    @rule(
        place=st.integers(0, 1),
        caller=callers,
        query=st.sampled_from(("tea", "Is allergic to nuts", "dark mode for chess")),
        top_k=st.sampled_from((0, 1, 2, 200, 200)),
        min_confidence=st.sampled_from((0, 0, 0.1, 0.3, 0.6)),
        as_of=pasts,
        weights=st.fixed_dictionaries(
            {},
            optional={
                name: st.sampled_from((0.0, 0.5, 2.0))
                for name in ("relevance", "confidence", "recency")
            },
        ),
        **filters,
    )
    def recall(
        self, place: int, caller: str, as_of: Any, weights: Any, top_k: int, **values: Any
    ) -> None:
        """Memories are recalled: a few are the best of all."""
        user_id = self._user(place)
        request = pb.RecallRequest(
            user_id=user_id,
            top_k=top_k,
            weights=pb.RecallWeights(**weights),
            **values,
            **self._then(as_of),
        )
        few = self._do(request, user_id, caller)
        if few is None:
            return
        request.top_k = 200
        self._clock.now -= _TICK  # the same moment once more
        every = self._do(request, user_id, caller)
        ids = [[one.memory.memory_id for one in answer.hits] for answer in (few, every)]
        assert ids[0] == ids[1][: len(ids[0])]

    def _then(self, as_of: Any) -> dict[str, Any]:
        """Return the field for a time: one of a call before, or one that is yet to come."""
        if as_of is None:
            return {}
        if as_of == "future":
            return {"as_of": self._clock.now + 2 * _TICK}
        return {"as_of": self._moments[max(as_of, -len(self._moments))]}

    @rule(place=st.integers(0, 1), caller=callers)
    def report(self, place: int, caller: str) -> None:
        """It is told what to clean."""
        user_id = self._user(place)
        who = self._who(user_id, caller)
        request = pb.GetMemoryReportRequest(user_id=user_id)
        said = self._ask("GetMemoryReport", request, who)
        try:
            count, found = self._model.report(who, request)
        except Refused as refusal:
            self._same(said, refusal)
            return
        report = said.memory_report
        told = [
            (one.kind, tuple(memory.memory_id for memory in one.memories))
            for one in report.findings
        ]
        assert (report.memory_count, set(told), len(told)) == (count, found, len(found))
        kinds = [kind for kind, _ in told]
        assert kinds == sorted(kinds)
        self._is_sound = True

    # --- changing

    @rule(
        kind=st.sampled_from(tuple(_CHANGES)),
        place=st.integers(0, 1),
        caller=callers,
        which=st.integers(0, 99),
        is_apt=st.sampled_from((True, True, True, False)),
    )
    def change(self, kind: Any, place: int, caller: str, which: int, *, is_apt: bool) -> None:
        """A memory gets another status, mostly one that it may get, or is deleted."""
        user_id = self._user(place)
        person = self._model.people[user_id]
        apt = [one.state.memory_id for one in person.living() if one.state.status in _CHANGES[kind]]
        some = apt if apt and is_apt else [*person.memories, str(uuid.uuid4())]
        self._do(kind(memory_id=some[which % len(some)]), user_id, caller)
        self._touched.add(user_id)

    @rule(
        memory=memories,
        caller=callers,
        text=st.just("") | texts,
        confidence=st.sampled_from((None, 0.1, 0.9)),
        expiry=expiries,
        paths=st.sampled_from(
            ((), (), (), ("*",), ("expires_at",), ("memory_content", "confidence_score"), ("x",))
        ),
        etag=st.sampled_from(("", "", "current", "current", "0")),
    )
    def update(
        self,
        memory: str,
        caller: str,
        text: str,
        confidence: float | None,
        expiry: int | None,
        paths: Sequence[str],
        etag: str,
    ) -> None:
        """A memory is changed."""
        user_id = self._owner(memory)
        kept = self._model.people[user_id].memories.get(memory)
        ends: Any = None if expiry is None else self._clock.now + expiry * DAY
        request = pb.UpdateMemoryRequest(
            memory_id=memory,
            memory_content=text,
            confidence_score=confidence,
            expires_at=ends,
            update_mask=FieldMask(paths=paths),
            etag=kept.state.etag if kept and etag == "current" else etag,
        )
        self._do(request, user_id, caller)
        self._touched.add(user_id)

    # --- what always holds

    @precondition(lambda self: self._touched)
    @invariant()
    def all_is_as_it_should_be(self) -> None:
        """Every memory of who was touched last."""
        while self._touched:
            self._look(self._touched.pop())

    def _look(self, user_id: str) -> None:
        request = pb.ListMemoriesRequest(user_id=user_id, statuses=_STATUSES, page_size=1000)
        self._list(request, user_id, "key")

    def teardown(self) -> None:
        """At the end all is looked at, also as it was at some of the times gone by."""
        if not self._is_sound:
            return
        for user_id, person in self._model.people.items():
            self._look(user_id)
            for one in person.living()[:5]:
                request = pb.GetMemoryHistoryRequest(memory_id=one.state.memory_id)
                self._do(request, user_id, "key")
            for moment in self._moments[:: max(len(self._moments) // 5, 1)]:
                past = pb.ListMemoriesRequest(user_id=user_id)
                past.as_of.FromDatetime(moment)
                self._list(past, user_id, "key")


def _numbers(answer: Any) -> list[float]:
    """Return all that is computed of powers, in the order of the fields."""
    found: list[float] = []
    for field, value in answer.ListFields():
        if field.type == field.TYPE_MESSAGE and "Timestamp" not in field.message_type.name:
            for one in value if field.is_repeated else [value]:
                found += _numbers(one)
    names = [*_PARTS, "confidence_score", "current_confidence"]
    return found + [getattr(answer, name) for name in names if hasattr(answer, name)]


def _rest(answer: Any) -> Any:
    """Return an answer without those numbers."""
    bare = type(answer)()
    bare.CopyFrom(answer)
    _bare(bare)
    return bare


def _bare(answer: Any) -> None:
    for name in (*_PARTS, "confidence_score", "current_confidence"):
        if hasattr(answer, name):
            answer.ClearField(name)
    for field, value in answer.ListFields():
        if field.type == field.TYPE_MESSAGE and "Timestamp" not in field.message_type.name:
            for one in value if field.is_repeated else [value]:
                _bare(one)


@pytest.fixture
async def timed(owner_url: str, hub: Hub, tmp_path: Path) -> AsyncIterator[tuple[Line, Clock]]:
    """A line of a new tenant to a hub with a clock of its own."""
    clock = Clock()
    async with running_hub(owner_url, tmp_path, clock=clock) as own:
        line = Line(own, await own.new_tenant(), asyncio.get_running_loop())
        yield line, clock
        line.close()


async def test_the_hub_remembers_as_the_model_does(timed: tuple[Line, Clock]) -> None:
    """In 8 lives of two users, each of up to 40 calls."""
    await run_machine(
        lambda: MemoryMachine(*timed), max_examples=8, stateful_step_count=40, derandomize=True
    )


@pytest.mark.slow
async def test_the_hub_remembers_as_the_model_does_for_long(timed: tuple[Line, Clock]) -> None:
    """The campaign; its seed and the calls made are printed."""
    number = int(os.environ.get("CAMPAIGN_SEED") or time.time_ns() % 1_000_000)
    lives = int(os.environ.get("CAMPAIGN_LIVES") or 300)
    print(f"\nseed {number}")  # noqa: T201
    machine = seed(number)(lambda: MemoryMachine(*timed))
    await run_machine(machine, max_examples=lives, stateful_step_count=80)
    outcomes = timed[0].outcomes
    print(f"{outcomes.total():,} calls: {dict(sorted(outcomes.items()))}")  # noqa: T201
