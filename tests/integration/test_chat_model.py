"""Random calls of chat against a running hub and a plain model of it: they answer the same.

`make test` makes a few hundred calls, the same each time; `make campaign-model` many thousands.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import grpc
import hypothesis.strategies as st
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message as ProtoMessage
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from structlog.testing import capture_logs

from hub_client import errors
from hub_client.v1 import chat_pb2 as pb
from hub_client.v1 import identity_pb2
from hub_client.v1.identity_pb2 import Usage, UserConfig
from tests.chat_model import TOKENS, ChatModel, Talk
from tests.integration.test_database import token_of
from tests.integration.test_rpc import METHODS
from tests.support import Hub, Tenant
from tests.token_model import Refused

_ROLES: Final = (pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_SYSTEM, pb.ROLE_TOOL)
_TYPES: Final = (pb.MESSAGE_TYPE_TEXT, pb.MESSAGE_TYPE_ERROR, pb.MESSAGE_TYPE_NOTICE)
_CONFIGS: Final[Mapping[str, Sequence[Any]]] = {
    # What a user has already, and one more: of sessions and, with some room, of tokens.
    "max_sessions": (None, 0, "as many", "one more"),
    "max_tokens": (None, 0, "as many", "some more", "more"),
    "enable_multichat": (True, True, False),
    "enable_tool": (True, False),
    "enable_chat_history": (True, True, False),
}

_MORE: Final = {"as many": 0, "one more": 1, "some more": 6, "more": 20}
_CHANGES: Final = (
    "GetSession",
    "EndSession",
    "ReopenSession",
    "ArchiveSession",
    "UnarchiveSession",
    "UndeleteSession",
)

# Who calls: a service key, the user himself, or the other user, for whom nothing is there.
callers = st.sampled_from(("key", "key", "key", "key", "self", "self", "other"))
seqs = st.integers(1, 6)
maybe = st.none() | st.booleans()
titles = st.sampled_from(("", "Tea", "Coffee"))
models = st.sampled_from(("", "m1", "m2"))
kept = st.sampled_from(({}, {"a": 1}, {"b": [None, "é"]}))
request_ids = st.sampled_from(("", "", "r1", "r2", "r3"))
page_sizes = st.sampled_from((0, 1, 2, 3, 1000))
messages = st.builds(
    lambda **values: {name: value for name, value in values.items() if value is not None},
    role=st.sampled_from((*_ROLES[:3], *_ROLES)),
    content=st.sampled_from(tuple(TOKENS)),
    message_type=st.sampled_from((0, *_TYPES)),
    token_count=st.none() | st.integers(0, 8),
    model_name=models,
    model_response_time_ms=st.none() | st.integers(0, 1),
    metadata=kept,
)


@dataclass(frozen=True)
class Sent:
    """A call as it was made, to be made once more."""

    method: str
    request: Any
    user_id: str
    caller: str


class Line:
    """A channel to the hub without anything in between: no retries, no request ids of its own."""

    def __init__(self, hub: Hub, tenant: Tenant, loop: asyncio.AbstractEventLoop) -> None:
        """Call as people of the tenant; ``loop`` is the one the hub serves on."""
        self.hub = hub
        self.tenant = tenant
        self.loop = loop
        self.outcomes = Counter[str]()
        self._channel = grpc.insecure_channel(hub.address)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def ask(self, method: str, request: ProtoMessage, key: str) -> Any:
        """Return the answer, or the error that the hub refuses with."""
        return self.asked(method, request, key)()

    def asked(self, method: str, request: ProtoMessage, key: str) -> Callable[[], Any]:
        """Make a call, and return what waits for what ``ask`` returns."""
        multi = self._channel.unary_unary(
            _path(method),
            request_serializer=type(request).SerializeToString,
            response_deserializer=_answer_of(method).FromString,
        )
        call = multi.future(request, timeout=30, metadata=_bearer(key))

        def said() -> Any:
            try:
                answer = call.result()
            except grpc.RpcError as error:
                answer = _refusal(error)
            self.outcomes[f"{method} {getattr(answer, 'reason', 'OK')}"] += 1
            return answer

        return said

    def watch(self, request: pb.WatchSessionRequest, key: str, count: int) -> Any:
        """Return the first ``count`` events of a stream, or the error it begins with."""
        self.outcomes["WatchSession"] += 1
        call = self._channel.unary_stream(
            _path("WatchSession"),
            request_serializer=pb.WatchSessionRequest.SerializeToString,
            response_deserializer=pb.WatchSessionResponse.FromString,
        )
        events = call(request, timeout=30, metadata=_bearer(key))
        try:
            return [next(events) for _ in range(count)]
        except grpc.RpcError as error:
            return _refusal(error)
        finally:
            events.cancel()

    def token(self, user_id: str) -> str:
        """Return a token of a user."""
        work = token_of(self.tenant, user_id)
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)


def _path(method: str) -> str:
    return f"/{METHODS[method].containing_service.full_name}/{method}"


def _answer_of(method: str) -> Any:
    return GetMessageClass(METHODS[method].output_type)


def _bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def _refusal(error: Any) -> errors.HubError:
    return errors.from_rpc(error.code(), error.details(), dict(error.trailing_metadata() or ()))


class ChatMachine(RuleBasedStateMachine):
    """Two users of one tenant, in the hub and in the model."""

    sessions: Bundle[str] = Bundle("sessions")
    reservations: Bundle[str] = Bundle("reservations")
    sent: Bundle[Sent] = Bundle("sent")

    def __init__(self, line: Line) -> None:
        """Call the hub at the other end of the line."""
        super().__init__()
        # By itself Hypothesis leaves out about half of the rules in each life: too many for a few
        # lives. Without this, nothing but that changes.
        every: Any = SimpleNamespace(is_enabled=lambda _: True)
        self._rules_strategy.enabled_rules_strategy = st.just(every)
        self._line = line
        self._keys: dict[str, str] = {}
        self._touched = set[str]()
        self._calls_since = 0
        self._is_sound = True
        self._model = ChatModel([])

    # --- what a call is

    def _do(self, method: str, request: Any, user_id: str, caller: str) -> Any:
        """Make a call in the hub and in the model; return the answer, None = both refuse it."""
        who = self._who(user_id, caller)
        self._is_sound = False
        self._calls_since += 1
        said = self._line.ask(method, request, self._key(who))
        made = _answer_of(method)() if isinstance(said, errors.HubError) else said
        wanted: Any
        try:
            wanted = self._model.answer(who, request, made)
        except Refused as refusal:
            wanted = refusal
        except AssertionError:
            assert not isinstance(said, errors.HubError), f"refused: {said!r}"
            raise
        answer = self._same(said, wanted)
        if answer is not None and not method.startswith("Get"):
            self._touched.add(user_id)  # what a refusal did wrong is seen later
        return answer

    def _same(self, said: Any, wanted: Any) -> Any:
        """Compare what the hub and the model say; return it, None = they refuse."""
        if isinstance(wanted, Refused):
            assert isinstance(said, errors.HubError), (wanted, said)
            told = (said.reason, dict(said.metadata), said.violations)
            assert told == (wanted.reason, wanted.facts, wanted.violations)
            assert said.retry_after is None
            self._is_sound = True
            return None
        assert said == wanted
        self._is_sound = True
        return said

    def _who(self, user_id: str, caller: str) -> str | None:
        """Return the user whose token is presented; None = it is the service key."""
        if caller == "key":
            return None
        return next(one for one in self._keys if (one == user_id) == (caller == "self"))

    def _key(self, who: str | None) -> str:
        return self._line.tenant.key if who is None else self._keys[who]

    def _owner(self, session_id: str) -> str:
        return self._model.talks[session_id].state.user_id

    def _talk(self, method: str, session_id: str, caller: str, **values: Any) -> Any:
        """Make a call about a session."""
        kind: Any = GetMessageClass(METHODS[method].input_type)
        request = kind(session_id=session_id, **values)
        return self._do(method, request, self._owner(session_id), caller)

    # --- users

    def _move_in(self) -> None:
        """Two users, of whom the first has a budget."""
        key, configs = self._line.tenant.key, []
        for max_tokens in (30, None):
            email = f"{time.monotonic_ns()}@example.org"
            request = identity_pb2.CreateUserRequest(email=email)
            user_id = self._line.ask("CreateUser", request, key).user.user_id
            config = UserConfig(user_id=user_id, max_tokens=max_tokens)
            change = identity_pb2.UpdateUserConfigRequest(config=config)
            configs.append(self._line.ask("UpdateUserConfig", change, key).config)
            self._keys[user_id] = self._line.token(user_id)
        self._model = ChatModel(configs)

    @initialize(target=sessions, tool=st.booleans(), history=st.booleans())
    def begin(self, *, tool: bool, history: bool) -> MultipleResults[str]:
        """Each has a session of four messages and a fork of it; the second may lack features."""
        if not self._keys:
            self._move_in()
        begun = [one for user_id in self._keys for one in self._begin(user_id)]
        self._configure(self._user(1), "enable_tool", tool)
        self._configure(self._user(1), "enable_chat_history", history)
        return multiple(*begun)

    @initialize(target=reservations)
    def set_aside(self) -> MultipleResults[str]:
        """Each has a few tokens set aside."""
        if not self._keys:
            self._move_in()
        asked = [pb.ReserveTokensRequest(user_id=user_id, tokens=8) for user_id in self._keys]
        made = [self._do("ReserveTokens", one, one.user_id, "key") for one in asked]
        return multiple(*(one.reservation.reservation_id for one in made))

    def _begin(self, user_id: str) -> Sequence[str]:
        begun = self._do("CreateSession", pb.CreateSessionRequest(user_id=user_id), user_id, "key")
        trunk = begun.session.session_id
        said = [
            pb.BatchMessage(role=role, message_type=kind, content="tea", token_count=1)
            for role, kind in zip(_ROLES, (*_TYPES, pb.MESSAGE_TYPE_TEXT), strict=True)
        ]
        for message in said:
            message.metadata.update({"a": 1})
        self._talk("BatchAppendMessages", trunk, "key", messages=said)
        branch = self._talk("ForkSession", trunk, "key", at_seq=3).session.session_id
        return trunk, branch

    def _user(self, place: int) -> str:
        return list(self._keys)[place]

    @precondition(lambda self: self._calls_since > 2)  # or little else happens
    @rule(place=st.integers(0, 1), data=st.data(), name=st.sampled_from(("max_tokens", *_CONFIGS)))
    def configure(self, place: int, data: st.DataObject, name: str) -> None:
        """One value of a configuration is changed, or returns to its default."""
        value = data.draw(st.sampled_from(_CONFIGS[name]), label=name)
        self._calls_since = 0
        user_id = self._user(place)
        if isinstance(value, str):
            usage = self._model.usage(user_id, Usage())
            taken = usage.total_tokens_used + usage.reserved_tokens
            base = taken if name == "max_tokens" else usage.active_sessions
            value = base + _MORE[value]
        self._configure(user_id, name, value)

    def _configure(self, user_id: str, name: str, value: Any) -> None:
        config = UserConfig(user_id=user_id, **{name: value})
        mask = FieldMask(paths=[name])
        request = identity_pb2.UpdateUserConfigRequest(config=config, update_mask=mask)
        said = self._line.ask("UpdateUserConfig", request, self._line.tenant.key)
        self._touched.add(user_id)
        own = self._model.people[user_id].config
        if value is None:
            own.ClearField(name)  # type: ignore[arg-type]  # one of _CONFIGS
        else:
            setattr(own, name, value)
        assert [getattr(said.config, one) for one in _CONFIGS] == [
            getattr(own, one) for one in _CONFIGS
        ]

    # --- sessions

    @rule(
        target=sessions,
        place=st.integers(0, 1),
        caller=callers,
        session_title=titles,
        model_name=models,
        metadata=kept,
    )
    def create(self, place: int, caller: str, **values: Any) -> str | MultipleResults[str]:
        """A session begins."""
        user_id = self._user(place)
        request = pb.CreateSessionRequest(user_id=user_id, **values)
        answer = self._do("CreateSession", request, user_id, caller)
        return answer.session.session_id if answer else multiple()

    @rule(
        target=sessions,
        session=sessions,
        caller=callers,
        at_seq=st.none() | st.integers(0, 6),
        session_title=titles,
    )
    def fork(self, session: str, caller: str, **values: Any) -> str | MultipleResults[str]:
        """A session goes on from another's history."""
        answer = self._talk("ForkSession", session, caller, **values)
        return answer.session.session_id if answer else multiple()

    @rule(method=st.sampled_from(_CHANGES), session=sessions, caller=callers)
    def change(self, method: str, session: str, caller: str) -> None:
        """A session is ended, reopened, put away, brought back, or only shown."""
        self._talk(method, session, caller)

    @rule(
        session=sessions,
        caller=callers,
        session_title=titles,
        model_name=models,
        metadata=kept,
        paths=st.none()
        | st.lists(
            st.sampled_from(("session_title", "model_name", "metadata")), unique=True, min_size=1
        )
        | st.sampled_from((["*"], ["is_active"], ["session_title", "session_id"])),
        etag=st.sampled_from(("", "", "now", "before", "another")),
    )
    def update(self, session: str, caller: str, paths: Any, etag: str, **values: Any) -> None:
        """A session is changed, perhaps one version of it only."""
        mask = None if paths is None else FieldMask(paths=paths)
        etag = self._etag(session, etag)
        self._talk("UpdateSession", session, caller, update_mask=mask, etag=etag, **values)

    @rule(session=sessions, caller=callers, etag=st.sampled_from(("", "now", "before")))
    def delete(self, session: str, caller: str, etag: str) -> None:
        """A session is deleted."""
        self._talk("DeleteSession", session, caller, etag=self._etag(session, etag))

    def _etag(self, session: str, which: str) -> str:
        state, etags = self._model.talks[session].state, self._model.talks[session].etags
        known = {"": "", "now": state.etag, "before": next(iter(etags.values()))}
        return known.get(which, which)

    @rule(
        place=st.integers(0, 1),
        caller=callers,
        page_size=page_sizes,
        is_active=maybe,
        is_archived=maybe,
        model_name=models,
        show_deleted=st.booleans(),
        since=st.none() | st.integers(0, 3),
        before=st.none() | st.integers(0, 3),
    )
    def list_sessions(
        self, place: int, caller: str, since: int | None, before: int | None, **values: Any
    ) -> None:
        """Sessions are listed, page by page."""
        user_id = self._user(place)
        request = pb.ListSessionsRequest(user_id=user_id, **values)
        talks = [one for one in self._model.talks.values() if one.state.user_id == user_id]
        for name, number in (("active_since", since), ("active_before", before)):
            if number is not None and number < len(talks):
                getattr(request, name).CopyFrom(_activity(talks[number]))
        self._list("ListSessions", request, user_id, caller)

    def _list(self, method: str, request: Any, user_id: str, caller: str) -> None:
        """Compare all pages of a list."""
        who = self._who(user_id, caller)
        self._is_sound = False
        items = method.removeprefix("List").lower()
        listed = getattr(self._model, f"listed_{items}")
        wanted: Any
        try:
            wanted = listed(who, request)
        except Refused as refusal:
            wanted = refusal
        size = request.page_size or 50
        while True:
            said = self._line.ask(method, request, self._key(who))
            if isinstance(wanted, Refused):
                self._same(said, wanted)
                return
            assert not isinstance(said, errors.HubError), said
            assert list(getattr(said, items)) == wanted[:size]
            assert bool(said.next_page_token) == (len(wanted) > size)
            if not said.next_page_token:
                break
            wanted = wanted[size:]
            request.page_token = said.next_page_token
        self._is_sound = True

    # --- messages

    @rule(
        target=sent,
        session=sessions,
        caller=callers,
        batch=st.lists(messages, min_size=1, max_size=3),
        alone=st.booleans(),
        request_id=request_ids,
        expected=st.sampled_from((None, None, None, 0, "last")),
        reservation=st.sampled_from((None, "own")) | reservations,
        over=st.sampled_from((None, None, 0, 1)),
    )
    def say(
        self, session: str, caller: str, batch: Any, over: int | None, *, alone: bool, **values: Any
    ) -> Sent | MultipleResults[Sent]:
        """A message is appended, or several together; with all tokens there are, or one more."""
        bounds = self._bounds(session, **values)
        left = self._left(self._owner(session), bounds["reservation_id"])
        if over is not None and left is not None:
            counts = [0] * (len(batch) - 1) + [left + over]
            counts = counts[-1:] if alone else counts
            batch = [{**one, "token_count": n} for one, n in zip(batch, counts, strict=False)]
        request: Any
        if alone:
            request = pb.AppendMessageRequest(session_id=session, **batch[0], **bounds)
            return self._send("AppendMessage", request, self._owner(session), caller)
        request = pb.BatchAppendMessagesRequest(
            session_id=session,
            messages=[pb.BatchMessage(**message) for message in batch],
            **bounds,
        )
        return self._send("BatchAppendMessages", request, self._owner(session), caller)

    def _bounds(
        self, session: str, request_id: str, expected: Any, reservation: str | None
    ) -> dict[str, Any]:
        last = self._model.talks[session].state.last_seq
        own = self._model.people[self._owner(session)].ledger.reservations
        if reservation == "own":
            reservation = next(reversed(own), None)
        return {
            "request_id": request_id,
            "expected_seq": last if expected == "last" else expected,
            "reservation_id": reservation,
        }

    def _left(self, user_id: str, reservation: str | None = None) -> int | None:
        """Return how many tokens a user has left, with those of a reservation; None = any."""
        person = self._model.people[user_id]
        left, kept = person.ledger.left(person.config), person.ledger.reservations
        if left is not None and reservation in kept:
            left += kept[reservation].held_tokens
        return left

    def _send(
        self, method: str, request: Any, user_id: str, caller: str
    ) -> Sent | MultipleResults[Sent]:
        """Make a call, and keep it for ``retry`` if it is served and not to be done twice."""
        is_kept = self._do(method, request, user_id, caller) and _is_once(request)
        return Sent(method, request, user_id, caller) if is_kept else multiple()

    @rule(
        target=sent,
        place=st.integers(0, 1),
        session=sessions,
        caller=callers,
        method=st.sampled_from(("CreateSession", "ForkSession", "ReserveTokens")),
        request_id=st.sampled_from(("r1", "r2", "r3")),
    )
    def make(
        self, place: int, session: str, caller: str, method: str, request_id: str
    ) -> Sent | MultipleResults[Sent]:
        """Something is made whose first answer is kept."""
        user_id = self._user(place)
        request: Any
        if method == "ForkSession":
            user_id = self._owner(session)
            request = pb.ForkSessionRequest(session_id=session, request_id=request_id)
        elif method == "CreateSession":
            request = pb.CreateSessionRequest(user_id=user_id, request_id=request_id)
        else:
            request = pb.ReserveTokensRequest(user_id=user_id, request_id=request_id, tokens=10)
        return self._send(method, request, user_id, caller)

    @rule(call=sent)
    def retry(self, call: Sent) -> None:
        """A call is made once more, as it was."""
        self._do(call.method, call.request, call.user_id, call.caller)

    @rule(
        target=sent,
        method=st.sampled_from(("GetMessage", "RedactMessage", "RedactMessage")),
        session=sessions,
        caller=callers,
        seq=seqs,
    )
    def pick(
        self, method: str, session: str, caller: str, seq: int
    ) -> Sent | MultipleResults[Sent]:
        """A message is shown, or what it says is removed."""
        kind: Any = GetMessageClass(METHODS[method].input_type)
        request = kind(session_id=session, seq=seq)
        return self._send(method, request, self._owner(session), caller)

    @rule(
        session=sessions,
        caller=callers,
        page_size=page_sizes,
        order=st.sampled_from(pb.MessageOrder.values()),
        from_seq=st.integers(0, 9),
        roles=st.lists(st.sampled_from(_ROLES), max_size=2),
        message_types=st.lists(st.sampled_from(_TYPES), max_size=2),
        since=st.none() | seqs,
        before=st.none() | seqs,
    )
    def list_messages(
        self, session: str, caller: str, since: int | None, before: int | None, **values: Any
    ) -> None:
        """Messages are listed, page by page."""
        request = pb.ListMessagesRequest(session_id=session, **values)
        said = self._model.talks[session].said()
        for name, seq in (("created_since", since), ("created_before", before)):
            if seq is not None and seq <= len(said):
                getattr(request, name).CopyFrom(said[seq - 1].created_at)
        self._list("ListMessages", request, self._owner(session), caller)

    @rule(session=sessions, caller=callers, from_seq=st.none() | seqs)
    def watch(self, session: str, caller: str, from_seq: int | None) -> None:
        """A session is watched, until all that is stored has come."""
        who = self._who(self._owner(session), caller)
        request = pb.WatchSessionRequest(session_id=session, from_seq=from_seq)
        self._is_sound = False
        try:
            stored = self._model.watched(who, request)
        except Refused as refusal:
            self._same(self._line.watch(request, self._key(who), 1), refusal)
            return
        state = pb.WatchSessionResponse(session=self._model.talks[session].state)
        wanted = [state, *(pb.WatchSessionResponse(message=message) for message in stored)]
        self._same(self._line.watch(request, self._key(who), len(wanted)), wanted)

    # --- tokens

    @rule(
        target=reservations,
        place=st.integers(0, 1),
        caller=callers,
        tokens=st.integers(1, 20) | st.sampled_from(("all", "too many")),
        ttl_seconds=st.sampled_from((0, 60)),
    )
    def reserve(
        self, place: int, caller: str, tokens: int | str, ttl_seconds: int
    ) -> str | MultipleResults[str]:
        """Tokens are set aside, perhaps all there are, or one more."""
        user_id = self._user(place)
        if isinstance(tokens, str):
            tokens = max((self._left(user_id) or 0) + (tokens == "too many"), 1)
        request = pb.ReserveTokensRequest(user_id=user_id, tokens=tokens, ttl_seconds=ttl_seconds)
        answer = self._do("ReserveTokens", request, user_id, caller)
        return answer.reservation.reservation_id if answer else multiple()

    @rule(
        target=sent,
        reservation=reservations,
        caller=callers,
        used=st.sampled_from((None, 0, "drawn", "drawn", "all", "too many")),
        more=st.integers(-1, 5),
    )
    def settle(
        self, reservation: str, caller: str, used: Any, more: int
    ) -> Sent | MultipleResults[Sent]:
        """A reservation is closed, with about what its messages took, or all there is left."""
        holder = self._holder(reservation)
        drawn = self._model.people[holder].ledger.drawn[reservation]
        left = self._left(holder, reservation) or 0
        known = {"drawn": max(drawn + more, 0), "all": drawn + left, "too many": drawn + left + 1}
        used_tokens = known.get(used, used)
        request = pb.SettleTokensRequest(reservation_id=reservation, used_tokens=used_tokens)
        return self._send("SettleTokens", request, holder, caller)

    @rule(reservation=reservations)
    def expire(self, reservation: str) -> None:
        """The time of a reservation is over."""
        holder = self._holder(reservation)
        ((expires_at,),) = self._line.hub.sql(
            "UPDATE token_reservations SET expires_at = now() - interval '1 second'"
            " WHERE reservation_id = %s RETURNING expires_at",
            reservation,
        )
        self._touched.add(holder)
        one = self._model.people[holder].ledger.reservations[reservation]
        one.held_tokens = 0
        one.expires_at.FromDatetime(expires_at)

    def _holder(self, reservation: str) -> str:
        people = self._model.people.items()
        return next(name for name, one in people if reservation in one.ledger.reservations)

    # --- what always holds

    @precondition(lambda self: self._touched)
    @invariant()
    def all_is_as_it_should_be(self) -> None:
        """Every session of who was touched last, and what he has used."""
        while self._touched:
            self._look(self._touched.pop())

    def _look(self, user_id: str) -> None:
        request = pb.ListSessionsRequest(user_id=user_id, show_deleted=True, page_size=1000)
        self._is_sound = False
        asked = identity_pb2.GetUsageRequest(user_id=user_id)
        listing = self._line.asked("ListSessions", request, self._line.tenant.key)
        usage = self._line.ask("GetUsage", asked, self._line.tenant.key).usage
        said = listing()
        self._model.sees(said.sessions)
        assert list(said.sessions) == self._model.listed_sessions(None, request)
        assert usage == self._model.usage(user_id, usage)
        self._is_sound = True

    def teardown(self) -> None:
        """At the end both users are looked at, and all messages of theirs."""
        if not self._is_sound:
            return
        for user_id in self._keys:
            self._look(user_id)
        for session_id in self._model.talks:
            request = pb.ListMessagesRequest(session_id=session_id)
            self._list("ListMessages", request, self._owner(session_id), "key")


def _is_once(request: Any) -> bool:
    """Tell whether a call, made once more, changes nothing."""
    names = request.DESCRIPTOR.fields_by_name
    return bool(request.request_id) if "request_id" in names else True


def _activity(talk: Talk) -> Any:
    stamps = (talk.state.created_at, talk.state.last_message_at)
    return max(stamps, key=lambda stamp: (stamp.seconds, stamp.nanos))


@pytest.fixture
async def line(hub: Hub, tenant: Tenant) -> AsyncIterator[Line]:
    """A line of a new tenant to the session's hub."""
    line = Line(hub, tenant, asyncio.get_running_loop())
    yield line
    line.close()


async def run_machine(machine: Any, **values: Any) -> None:
    """Run the machine in a thread, while the hub serves on this loop."""
    how = settings(
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        **values,
    )
    with capture_logs():  # hundreds of calls are tried to find the shortest failure
        await asyncio.to_thread(run_state_machine_as_test, machine, settings=how)


async def test_the_hub_answers_as_the_model_does(line: Line) -> None:
    """In 12 lives of two users, each of up to 40 calls."""
    await run_machine(
        lambda: ChatMachine(line),
        max_examples=12,
        stateful_step_count=40,
        derandomize=True,
    )


@pytest.mark.slow
async def test_the_hub_answers_as_the_model_does_for_long(line: Line) -> None:
    """The campaign; its seed and the calls made are printed."""
    number = int(os.environ.get("CAMPAIGN_SEED") or time.time_ns() % 1_000_000)
    lives = int(os.environ.get("CAMPAIGN_LIVES") or 500)
    print(f"\nseed {number}")  # noqa: T201
    machine = seed(number)(lambda: ChatMachine(line))
    await run_machine(machine, max_examples=lives, stateful_step_count=80)
    print(f"{line.outcomes.total():,} calls: {dict(sorted(line.outcomes.items()))}")  # noqa: T201
