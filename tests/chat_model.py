"""What the contract of chat promises, in plain Python: sessions, messages and budgets of users.

The model answers every call out of what was asked before. What only the hub can know (ids, times,
versions) it takes over from the hub's answer when that first shows it, and from then on it has to
stay so. It knows nothing of tables, statements or locks.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import Message as ProtoMessage

from hub_client.v1 import chat_pb2 as pb
from hub_client.v1.identity_pb2 import Usage, UserConfig
from tests.token_model import Ledger, Refused, copy

# What the hub counts where the caller does not, by the vocabulary it names in the contract.
TOKENS: Final = {"": 0, "tea": 1, "Tea is hot.": 5, "é ☕ 茶": 7}
_VERSIONED: Final = (
    "session_title",
    "model_name",
    "metadata",
    "is_active",
    "is_archived",
    "deleted_at",
)
_CHANGEABLE: Final = _VERSIONED[:3]


@dataclass
class Talk:
    """One session: how it looks, what was said in it, and what it shares with its parent."""

    state: pb.Session
    activity: int
    parent: "Talk | None" = None
    own: list[pb.Message] = field(default_factory=list)
    unseen: set[str] = field(default_factory=set)
    """Fields that the hub has set to what its next answer will tell."""
    etags: dict[bytes, str] = field(default_factory=dict)

    @property
    def is_deleted(self) -> bool:
        """Whether it is deleted."""
        return self.state.HasField("deleted_at")

    @property
    def is_counted(self) -> bool:
        """Whether it counts as an active session of its user."""
        return self.state.is_active and not self.is_deleted

    def said(self) -> list[pb.Message]:
        """Return its messages, those it shares included; they are the same objects everywhere."""
        shared = self.parent.said()[: self.state.parent_seq] if self.parent else []
        return shared + self.own

    def messages(self) -> list[pb.Message]:
        """Return its messages as it shows them."""
        shown = [copy(message) for message in self.said()]
        for message in shown:
            message.session_id = self.state.session_id
        return shown

    def changes(self, *unseen: str) -> None:
        """Note that the hub has set these times anew, and when the session was changed."""
        self.unseen |= {*unseen, "updated_at"}

    def sees(self, shown: pb.Session) -> None:
        """Take over what the hub alone can know, where it may be new."""
        if "updated_at" in self.unseen:
            assert _time(shown.updated_at) > _time(self.state.updated_at), "updated_at stood still"
        for name in self.unseen:
            getattr(self.state, name).CopyFrom(getattr(shown, name))
            getattr(self.state, name).SetInParent()
        self.unseen.clear()
        version = pb.Session()
        for name in _VERSIONED:
            if name in ("metadata", "deleted_at"):
                getattr(version, name).CopyFrom(getattr(self.state, name))
            else:
                setattr(version, name, getattr(self.state, name))
        raw = version.SerializeToString(deterministic=True)
        self.state.etag = self.etags.setdefault(raw, shown.etag)
        assert len(set(self.etags.values())) == len(self.etags), "one etag of two versions"


@dataclass
class Person:
    """One user: his configuration, his tokens, and the request ids he has spent."""

    config: UserConfig
    ledger: Ledger = field(default_factory=Ledger)
    spent: dict[str, tuple[bytes, Any]] = field(default_factory=dict)

    def first(self, request: Any) -> Any:
        """Return what came of the first call with this request id; None = it is the first."""
        kept = self.spent.get(request.request_id)
        if kept is None:
            return None
        if kept[0] != _content(request):
            raise Refused("REQUEST_ID_REUSED")
        return kept[1]

    def spend(self, request: Any, outcome: Any) -> None:
        """Keep what came of a call for its retries."""
        if request.request_id:
            self.spent[request.request_id] = (_content(request), outcome)


def _content(request: ProtoMessage) -> bytes:
    return type(request).__name__.encode() + request.SerializeToString(deterministic=True)


class ChatModel:
    """Answers calls as the contract says; ``who`` is the user of a token, None = a service key."""

    def __init__(self, configs: Iterable[UserConfig]) -> None:
        """Begin with users who have done nothing yet."""
        self.people = {config.user_id: Person(config) for config in configs}
        self.talks: dict[str, Talk] = {}
        self._ids: set[str] = set()
        self._moments = 0

    def answer(self, who: str | None, request: ProtoMessage, made: ProtoMessage) -> ProtoMessage:
        """Return the answer to a request, with what the hub made taken from its own. Refuses."""
        name = type(request).__name__.removesuffix("Request")
        method = getattr(self, re.sub(r"(?<=.)([A-Z])", r"_\1", name).lower())
        answer: ProtoMessage = method(who, request, made)
        return answer

    # --- sessions

    def create_session(
        self, who: str | None, request: pb.CreateSessionRequest, made: pb.CreateSessionResponse
    ) -> pb.CreateSessionResponse:
        """Begin a session."""
        person = self._person(who, request.user_id)
        first: pb.CreateSessionResponse | None = person.first(request)
        if first is not None:
            return copy(first)
        self._check_limit(person)
        state = pb.Session(
            user_id=person.config.user_id,
            session_title=request.session_title,
            model_name=request.model_name,
            metadata=request.metadata if request.metadata.fields else None,
        )
        answer = pb.CreateSessionResponse(session=self._begin(state, None, made.session))
        person.spend(request, copy(answer))
        return answer

    def fork_session(
        self, who: str | None, request: pb.ForkSessionRequest, made: pb.ForkSessionResponse
    ) -> pb.ForkSessionResponse:
        """Begin a session that shares messages of another."""
        parent = self.talk(who, request.session_id, deleted=True)
        person = self.people[parent.state.user_id]
        first: pb.ForkSessionResponse | None = person.first(request)
        if first is not None:
            return copy(first)
        self.talk(who, request.session_id)
        at_seq = request.at_seq if request.HasField("at_seq") else parent.state.last_seq
        if at_seq > parent.state.last_seq:
            raise Refused.of("at_seq", f"must be at most {parent.state.last_seq}")
        self._check_limit(person)
        shared = parent.said()[:at_seq]
        state = pb.Session(
            user_id=parent.state.user_id,
            session_title=request.session_title or parent.state.session_title,
            model_name=parent.state.model_name,
            metadata=parent.state.metadata if parent.state.HasField("metadata") else None,
            parent_session_id=parent.state.session_id,
            parent_seq=at_seq,
            last_seq=at_seq,
            total_tokens_used=sum(message.token_count for message in shared),
            last_message_at=shared[-1].created_at if shared else None,
        )
        answer = pb.ForkSessionResponse(session=self._begin(state, parent, made.session))
        person.spend(request, copy(answer))
        return answer

    def get_session(
        self, who: str | None, request: pb.GetSessionRequest, made: pb.GetSessionResponse
    ) -> pb.GetSessionResponse:
        """Show a session."""
        return pb.GetSessionResponse(session=_seen(self.talk(who, request.session_id), made))

    def update_session(
        self, who: str | None, request: pb.UpdateSessionRequest, made: pb.UpdateSessionResponse
    ) -> pb.UpdateSessionResponse:
        """Change title, model or metadata."""
        given = [name for name in _CHANGEABLE if _is_given(request, name)]
        paths = list(request.update_mask.paths) or given
        paths = list(_CHANGEABLE) if paths == ["*"] else paths
        if not set(paths) <= set(_CHANGEABLE):
            raise Refused.of("update_mask", f"may name: {', '.join(_CHANGEABLE)}")
        talk = self.talk(who, request.session_id)
        _check_etag(talk, request.etag)
        wanted = copy(talk.state)
        for name in paths:
            wanted.ClearField(name)  # type: ignore[arg-type]  # one of _CHANGEABLE
            if _is_given(request, name):
                wanted.MergeFrom(pb.Session(**{name: getattr(request, name)}))
        if wanted != talk.state:
            talk.state = wanted
            talk.changes()
        return pb.UpdateSessionResponse(session=_seen(talk, made))

    def end_session(
        self, who: str | None, request: pb.EndSessionRequest, made: pb.EndSessionResponse
    ) -> pb.EndSessionResponse:
        """End a session."""
        talk = self.talk(who, request.session_id)
        if talk.state.is_active:
            talk.state.is_active = False
            talk.changes("ended_at")
        return pb.EndSessionResponse(session=_seen(talk, made))

    def reopen_session(
        self, who: str | None, request: pb.ReopenSessionRequest, made: pb.ReopenSessionResponse
    ) -> pb.ReopenSessionResponse:
        """Take messages again."""
        talk = self.talk(who, request.session_id)
        if not talk.state.is_active:
            self._check_limit(self.people[talk.state.user_id])
            talk.state.is_active = True
            talk.state.ClearField("ended_at")
            talk.changes()
        return pb.ReopenSessionResponse(session=_seen(talk, made))

    def archive_session(
        self, who: str | None, request: pb.ArchiveSessionRequest, made: pb.ArchiveSessionResponse
    ) -> pb.ArchiveSessionResponse:
        """Put a session away."""
        talk = self._archived(who, request.session_id, archived=True)
        return pb.ArchiveSessionResponse(session=_seen(talk, made))

    def unarchive_session(
        self,
        who: str | None,
        request: pb.UnarchiveSessionRequest,
        made: pb.UnarchiveSessionResponse,
    ) -> pb.UnarchiveSessionResponse:
        """Bring an archived session back."""
        talk = self._archived(who, request.session_id, archived=False)
        return pb.UnarchiveSessionResponse(session=_seen(talk, made))

    def delete_session(
        self, who: str | None, request: pb.DeleteSessionRequest, made: pb.DeleteSessionResponse
    ) -> pb.DeleteSessionResponse:
        """Delete a session."""
        talk = self.talk(who, request.session_id)
        _check_etag(talk, request.etag)
        talk.changes("deleted_at")
        return pb.DeleteSessionResponse(session=_seen(talk, made))

    def undelete_session(
        self,
        who: str | None,
        request: pb.UndeleteSessionRequest,
        made: pb.UndeleteSessionResponse,
    ) -> pb.UndeleteSessionResponse:
        """Bring a deleted session back."""
        talk = self.talk(who, request.session_id, deleted=True)
        if talk.is_deleted:
            if talk.state.is_active:
                self._check_limit(self.people[talk.state.user_id])
            talk.state.ClearField("deleted_at")
            talk.changes()
        return pb.UndeleteSessionResponse(session=_seen(talk, made))

    def listed_sessions(self, who: str | None, request: pb.ListSessionsRequest) -> list[pb.Session]:
        """Return all sessions that a list shows, whatever its page."""
        person = self._person(who, request.user_id)
        found = [
            talk
            for talk in self.talks.values()
            if talk.state.user_id == person.config.user_id and _is_listed(talk, request)
        ]
        found.sort(key=lambda talk: talk.activity, reverse=True)
        return [talk.state for talk in found]

    def sees(self, sessions: Iterable[pb.Session]) -> None:
        """Take over from a list what may be new in it."""
        for session in sessions:
            if session.session_id in self.talks:
                self.talks[session.session_id].sees(session)

    # --- messages

    def append_message(
        self, who: str | None, request: pb.AppendMessageRequest, made: pb.AppendMessageResponse
    ) -> pb.AppendMessageResponse:
        """Append a message."""
        (message,) = self._append(who, request, [_draft(request)], [made.message])
        return pb.AppendMessageResponse(message=message)

    def batch_append_messages(
        self,
        who: str | None,
        request: pb.BatchAppendMessagesRequest,
        made: pb.BatchAppendMessagesResponse,
    ) -> pb.BatchAppendMessagesResponse:
        """Append messages, all or none."""
        drafts = [_draft(message) for message in request.messages]
        hub = [
            pb.Message(message_id=one.message_id, created_at=made.created_at)
            for one in made.appended_messages
        ]
        messages = self._append(who, request, drafts, hub)
        return pb.BatchAppendMessagesResponse(
            appended_messages=[
                pb.AppendedMessage(
                    seq=message.seq, message_id=message.message_id, token_count=message.token_count
                )
                for message in messages
            ],
            created_at=messages[0].created_at,
        )

    def _append(
        self,
        who: str | None,
        request: pb.AppendMessageRequest | pb.BatchAppendMessagesRequest,
        drafts: Sequence[pb.Message],
        made: Sequence[pb.Message],
    ) -> Sequence[pb.Message]:
        """Return the messages as they are now, those of an earlier call when this one repeats."""
        talk = self.talk(who, request.session_id)
        person = self.people[talk.state.user_id]
        if (first := person.first(request)) is not None:
            messages: Sequence[pb.Message] = first
            return messages
        if not talk.state.is_active:
            raise Refused("SESSION_ENDED")
        if not person.config.enable_tool and any(one.role == pb.ROLE_TOOL for one in drafts):
            raise Refused("FEATURE_DISABLED", feature="enable_tool")
        person.ledger.check_reservation(request.reservation_id)
        last_seq = talk.state.last_seq
        if request.HasField("expected_seq") and request.expected_seq != last_seq:
            raise Refused("SEQ_MISMATCH", last_seq=str(last_seq))
        tokens = sum(draft.token_count for draft in drafts)
        person.ledger.draw(tokens, request.reservation_id, person.config)
        for draft, hub in zip(drafts, made, strict=False):
            self._say(talk, draft, hub, is_kept=person.config.enable_chat_history)
        person.spend(request, drafts)
        return drafts

    def get_message(
        self, who: str | None, request: pb.GetMessageRequest, _: pb.GetMessageResponse
    ) -> pb.GetMessageResponse:
        """Show a message."""
        talk = self._history(who, request.session_id)
        return pb.GetMessageResponse(message=_at(talk.messages(), request.seq))

    def redact_message(
        self, who: str | None, request: pb.RedactMessageRequest, made: pb.RedactMessageResponse
    ) -> pb.RedactMessageResponse:
        """Remove what a message says, in every session that shares it."""
        talk = self.talk(who, request.session_id)
        message = _at(talk.said(), request.seq)
        if not message.HasField("redacted_at"):
            message.ClearField("content")
            message.ClearField("metadata")
            message.redacted_at.CopyFrom(made.message.redacted_at)
            message.redacted_at.SetInParent()
            for one in self._counting(talk, message):
                one.state.redaction_count += 1
                one.changes()
        return pb.RedactMessageResponse(message=_at(talk.messages(), request.seq))

    def listed_messages(self, who: str | None, request: pb.ListMessagesRequest) -> list[pb.Message]:
        """Return all messages that a list shows, whatever its page."""
        talk = self._history(who, request.session_id)
        is_back = request.order == pb.MESSAGE_ORDER_NEWEST_FIRST
        found = [one for one in talk.messages() if _is_asked(one, request, is_back=is_back)]
        return found[::-1] if is_back else found

    def watched(self, who: str | None, request: pb.WatchSessionRequest) -> list[pb.Message]:
        """Return the stored messages that a new reader of a session is sent."""
        talk = self._history(who, request.session_id)
        after = request.from_seq - 1 if request.HasField("from_seq") else talk.state.last_seq
        return [message for message in talk.messages() if message.seq > after]

    # --- tokens

    def reserve_tokens(
        self, who: str | None, request: pb.ReserveTokensRequest, made: pb.ReserveTokensResponse
    ) -> pb.ReserveTokensResponse:
        """Set tokens aside."""
        person = self._person(who, request.user_id)
        first: pb.ReserveTokensResponse | None = person.first(request)
        if first is not None:
            return copy(first)
        reservation = person.ledger.reserve(request, made.reservation, person.config)
        self._is_new(made.reservation.reservation_id)
        answer = pb.ReserveTokensResponse(reservation=reservation)
        person.spend(request, copy(answer))
        return answer

    def settle_tokens(
        self, who: str | None, request: pb.SettleTokensRequest, made: pb.SettleTokensResponse
    ) -> pb.SettleTokensResponse:
        """Close a reservation."""
        for user_id, person in self.people.items():
            if request.reservation_id in person.ledger.reservations and who in (None, user_id):
                settled = person.ledger.settle(request, made.reservation, person.config)
                return pb.SettleTokensResponse(reservation=settled)
        raise Refused("NOT_FOUND", resource="reservation")

    def usage(self, user_id: str, made: Usage) -> Usage:
        """Return what a user has used; the bytes are the hub's affair."""
        person = self.people[user_id]
        theirs = [talk for talk in self.talks.values() if talk.state.user_id == user_id]
        return Usage(
            user_id=user_id,
            total_tokens_used=person.ledger.used,
            period_tokens_used=person.ledger.used,
            reserved_tokens=person.ledger.reserved,
            tokens_left=person.ledger.left(person.config),
            active_sessions=sum(talk.is_counted for talk in theirs),
            messages=sum(len(talk.own) for talk in theirs if not talk.is_deleted),
            bytes=made.bytes,
        )

    # --- what these share

    def talk(self, who: str | None, session_id: str, *, deleted: bool = False) -> Talk:
        """Return a session that the caller may know of; ``deleted`` ones when asked for."""
        talk = self.talks.get(session_id)
        if talk is None or who not in (None, talk.state.user_id):
            raise Refused("NOT_FOUND", resource="session")
        if talk.is_deleted and not deleted:
            raise Refused("NOT_FOUND", resource="session")
        return talk

    def _person(self, who: str | None, user_id: str) -> Person:
        if who is None and not user_id:
            raise Refused.of("user_id", "is required with a service key")
        if who is not None and user_id not in ("", who):
            raise Refused("NOT_FOUND", resource="user")
        return self.people[user_id or who or ""]

    def _history(self, who: str | None, session_id: str) -> Talk:
        talk = self.talk(who, session_id)
        if not self.people[talk.state.user_id].config.enable_chat_history:
            raise Refused("FEATURE_DISABLED", feature="enable_chat_history")
        return talk

    def _counting(self, talk: Talk, message: pb.Message) -> list[Talk]:
        """Return the sessions that count a redaction made in ``talk``: it and the message's own."""
        return [
            one
            for one in self.talks.values()
            if one is talk or any(own is message for own in one.own)
        ]

    def _check_limit(self, person: Person) -> None:
        config = person.config
        limits: Mapping[str, int | None] = {
            "max_sessions": config.max_sessions if config.HasField("max_sessions") else None,
            "enable_multichat": None if config.enable_multichat else 1,
        }
        bounds = [(limit, name) for name, limit in limits.items() if limit is not None]
        if not bounds:
            return
        limit, subject = min(bounds, key=lambda bound: bound[0])
        active = sum(
            talk.is_counted for talk in self.talks.values() if talk.state.user_id == config.user_id
        )
        if active >= limit:
            raise Refused("SESSION_LIMIT", limit=str(limit), subject=subject)

    def _begin(self, state: pb.Session, parent: Talk | None, made: pb.Session) -> pb.Session:
        self._is_new(made.session_id)
        state.session_id = made.session_id
        state.is_active = True
        talk = Talk(state, self._moment(), parent, unseen={"created_at", "updated_at"})
        talk.sees(made)
        self.talks[made.session_id] = talk
        return talk.state

    def _archived(self, who: str | None, session_id: str, *, archived: bool) -> Talk:
        talk = self.talk(who, session_id)
        if talk.state.is_archived != archived:
            talk.state.is_archived = archived
            talk.changes()
        return talk

    def _say(self, talk: Talk, draft: pb.Message, made: pb.Message, *, is_kept: bool) -> None:
        self._is_new(made.message_id)
        if not is_kept:
            draft.ClearField("content")
            draft.ClearField("metadata")
        talk.state.last_seq += 1
        talk.state.total_tokens_used += draft.token_count
        draft.session_id, draft.seq = talk.state.session_id, talk.state.last_seq
        draft.message_id = made.message_id
        draft.created_at.CopyFrom(made.created_at)
        talk.own.append(draft)
        talk.activity = self._moment()
        talk.changes("last_message_at")

    def _is_new(self, made: str) -> None:
        assert made not in self._ids, "an id was given twice"
        self._ids.add(made)

    def _moment(self) -> int:
        self._moments += 1
        return self._moments


def _seen(talk: Talk, made: Any) -> pb.Session:
    """Return how a session looks, given the answer that shows it."""
    talk.sees(made.session)
    return talk.state


def _check_etag(talk: Talk, etag: str) -> None:
    if etag not in ("", talk.state.etag):
        raise Refused("ETAG_MISMATCH")


def _is_given(request: pb.UpdateSessionRequest, name: str) -> bool:
    return bool(request.metadata.fields if name == "metadata" else getattr(request, name))


def _draft(said: pb.AppendMessageRequest | pb.BatchMessage) -> pb.Message:
    """Return a message as the caller gave it."""
    timed = said.HasField("model_response_time_ms")
    return pb.Message(
        role=said.role,
        message_type=said.message_type or pb.MESSAGE_TYPE_TEXT,
        content=said.content,
        token_count=said.token_count if said.HasField("token_count") else TOKENS[said.content],
        model_name=said.model_name,
        model_response_time_ms=said.model_response_time_ms if timed else None,
        metadata=said.metadata if said.metadata.fields else None,
    )


def _at(messages: Sequence[pb.Message], seq: int) -> pb.Message:
    if seq > len(messages):
        raise Refused("NOT_FOUND", resource="message")
    return messages[seq - 1]


def _is_listed(talk: Talk, request: pb.ListSessionsRequest) -> bool:
    state = talk.state
    active_at = max(_time(state.last_message_at), _time(state.created_at))
    return (
        (request.show_deleted or not talk.is_deleted)
        and (not request.HasField("is_active") or state.is_active == request.is_active)
        and (not request.HasField("is_archived") or state.is_archived == request.is_archived)
        and request.model_name in ("", state.model_name)
        and (not request.HasField("active_since") or active_at >= _time(request.active_since))
        and (not request.HasField("active_before") or active_at < _time(request.active_before))
    )


def _is_asked(message: pb.Message, request: pb.ListMessagesRequest, *, is_back: bool) -> bool:
    at, first = _time(message.created_at), request.from_seq
    return (
        (first == 0 or (message.seq <= first if is_back else message.seq >= first))
        and (not request.roles or message.role in request.roles)
        and (not request.message_types or message.message_type in request.message_types)
        and (not request.HasField("created_since") or at >= _time(request.created_since))
        and (not request.HasField("created_before") or at < _time(request.created_before))
    )


def _time(stamp: Any) -> tuple[int, int]:
    return stamp.seconds, stamp.nanos
