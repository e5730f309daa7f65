"""ChatService on the wire: check, call, convert."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from hub_client.v1 import chat_pb2 as pb
from hub_server.caller import Caller
from hub_server.chat.appends import Append, Appends, NewMessage
from hub_server.chat.context_wire import asked_from_pb, check_scopes, context_to_pb
from hub_server.chat.search import Asked, MessageSearch
from hub_server.chat.service import ChatService, session_etag
from hub_server.chat.spans import Span
from hub_server.chat.tokens import Tokens
from hub_server.chat.watching import Event, SessionFeed, Watches
from hub_server.context.service import Contexts
from hub_server.convert import (
    enum_from_text,
    enum_to_text,
    struct_from_pb,
    struct_to_pb,
    timestamp_from_pb,
    timestamp_to_pb,
)
from hub_server.errors import HubError
from hub_server.idempotency import retry_of
from hub_server.paging import PageTokens
from hub_server.rows import Row


class ChatServicer:
    """Serves hub.v1.ChatService."""

    def __init__(
        self,
        service: ChatService,
        appends: Appends,
        tokens: Tokens,
        watches: Watches,
        search: MessageSearch,
        contexts: Contexts,
        pages: PageTokens,
    ) -> None:
        """Serve the given rules."""
        self._chat = service
        self._appends = appends
        self._tokens = tokens
        self._watches = watches
        self._search = search
        self._contexts = contexts
        self._pages = pages

    async def CreateSession(
        self, request: pb.CreateSessionRequest, caller: Caller
    ) -> pb.CreateSessionResponse:
        """Start a session."""
        values = {
            "session_title": request.session_title,
            "model_name": request.model_name,
            "metadata": struct_from_pb("metadata", request.metadata),
        }
        user_id = caller.acting_for(request.user_id)
        session = await self._chat.create_session(caller, retry_of(request), user_id, values)
        return pb.CreateSessionResponse(session=_session_to_pb(session))

    async def GetSession(
        self, request: pb.GetSessionRequest, caller: Caller
    ) -> pb.GetSessionResponse:
        """Return a session."""
        session = await self._chat.get_session(caller, request.session_id)
        return pb.GetSessionResponse(session=_session_to_pb(session))

    async def ListSessions(
        self, request: pb.ListSessionsRequest, caller: Caller
    ) -> pb.ListSessionsResponse:
        """List sessions."""
        page = self._pages.read(caller, request, request.page_size, request.page_token)
        user_id = caller.acting_for(request.user_id)
        filters = {
            name: getattr(request, name)
            for name in ("is_active", "is_archived")
            if request.HasField(name)
        }
        if request.model_name:
            filters["model_name"] = request.model_name
        sessions, after = await self._chat.list_sessions(
            caller,
            user_id,
            page,
            filters,
            _times(request, "active_since", "active_before"),
            show_deleted=request.show_deleted,
        )
        return pb.ListSessionsResponse(
            sessions=map(_session_to_pb, sessions),
            next_page_token=self._pages.next(caller, request, after),
        )

    async def AppendMessage(
        self, request: pb.AppendMessageRequest, caller: Caller
    ) -> pb.AppendMessageResponse:
        """Append a message."""
        append = _append_from_pb(request, [_message_from_pb("metadata", request)])
        (message,) = await self._appends.append(caller, retry_of(request), append)
        return pb.AppendMessageResponse(message=_message_to_pb(message))

    async def BatchAppendMessages(
        self, request: pb.BatchAppendMessagesRequest, caller: Caller
    ) -> pb.BatchAppendMessagesResponse:
        """Append messages, all or none."""
        messages = [
            _message_from_pb(f"messages[{place}].metadata", message)
            for place, message in enumerate(request.messages)
        ]
        append = _append_from_pb(request, messages)
        rows = await self._appends.append(caller, retry_of(request), append)
        return pb.BatchAppendMessagesResponse(
            appended_messages=[
                pb.AppendedMessage(
                    seq=row["seq"], message_id=row["message_id"], token_count=row["token_count"]
                )
                for row in rows
            ],
            created_at=timestamp_to_pb(rows[0]["created_at"]),
        )

    async def ListMessages(
        self, request: pb.ListMessagesRequest, caller: Caller
    ) -> pb.ListMessagesResponse:
        """List messages."""
        page = self._pages.read(caller, request, request.page_size, request.page_token)
        newest_first = request.order == pb.MESSAGE_ORDER_NEWEST_FIRST
        messages, after = await self._chat.list_messages(
            caller,
            request.session_id,
            page,
            _span_from_pb(request, newest_first=newest_first),
            newest_first=newest_first,
        )
        return pb.ListMessagesResponse(
            messages=map(_message_to_pb, messages),
            next_page_token=self._pages.next(caller, request, after),
        )

    async def ForkSession(
        self, request: pb.ForkSessionRequest, caller: Caller
    ) -> pb.ForkSessionResponse:
        """Start a session that shares the history of another."""
        session = await self._chat.fork_session(
            caller,
            retry_of(request),
            request.session_id,
            request.at_seq if request.HasField("at_seq") else None,
            request.session_title,
        )
        return pb.ForkSessionResponse(session=_session_to_pb(session))

    async def RedactMessage(
        self, request: pb.RedactMessageRequest, caller: Caller
    ) -> pb.RedactMessageResponse:
        """Remove the content of a message."""
        message = await self._chat.redact_message(caller, request.session_id, request.seq)
        return pb.RedactMessageResponse(message=_message_to_pb(message))

    async def WatchSession(self, request: pb.WatchSessionRequest, _: Caller) -> "WatchFeed":
        """Stream a session."""
        next_seq = request.from_seq if request.HasField("from_seq") else None
        return WatchFeed(self._watches.feed(request.session_id, next_seq))

    async def BuildContext(
        self, request: pb.BuildContextRequest, caller: Caller
    ) -> pb.BuildContextResponse:
        """Build a context."""
        check_scopes(caller)
        context = await self._contexts.build(caller, asked_from_pb(request))
        return pb.BuildContextResponse(context=context_to_pb(context))

    async def GetContextRecord(
        self, request: pb.GetContextRecordRequest, caller: Caller
    ) -> pb.GetContextRecordResponse:
        """Return a context as it was built."""
        check_scopes(caller)
        context = await self._contexts.get(caller, request.context_id)
        return pb.GetContextRecordResponse(context=context_to_pb(context))

    async def SearchMessages(
        self, request: pb.SearchMessagesRequest, caller: Caller
    ) -> pb.SearchMessagesResponse:
        """Find messages."""
        since, until = _times(request, "created_since", "created_before")
        roles = [enum_to_text(pb.Role, role) for role in request.roles]
        span = Span(roles=roles, since=since, until=until)
        asked = Asked(request.query, request.top_k, request.session_id, span)
        user_id = caller.acting_for(request.user_id)
        hits = await self._search.search(caller, user_id, asked)
        return pb.SearchMessagesResponse(
            hits=[pb.MessageHit(message=_message_to_pb(row), score=score) for row, score in hits]
        )

    async def ReserveTokens(
        self, request: pb.ReserveTokensRequest, caller: Caller
    ) -> pb.ReserveTokensResponse:
        """Set tokens aside."""
        user_id = caller.acting_for(request.user_id)
        ttl = dt.timedelta(seconds=request.ttl_seconds)
        reservation = await self._tokens.reserve(
            caller, retry_of(request), user_id, request.tokens, ttl
        )
        return pb.ReserveTokensResponse(reservation=_reservation_to_pb(reservation))

    async def SettleTokens(
        self, request: pb.SettleTokensRequest, caller: Caller
    ) -> pb.SettleTokensResponse:
        """Close a reservation."""
        used = request.used_tokens if request.HasField("used_tokens") else None
        reservation = await self._tokens.settle(caller, request.reservation_id, used)
        return pb.SettleTokensResponse(reservation=_reservation_to_pb(reservation))

    async def EndSession(
        self, request: pb.EndSessionRequest, caller: Caller
    ) -> pb.EndSessionResponse:
        """End a session."""
        session = await self._chat.end_session(caller, request.session_id)
        return pb.EndSessionResponse(session=_session_to_pb(session))

    async def ReopenSession(
        self, request: pb.ReopenSessionRequest, caller: Caller
    ) -> pb.ReopenSessionResponse:
        """Take messages again."""
        session = await self._chat.reopen_session(caller, request.session_id)
        return pb.ReopenSessionResponse(session=_session_to_pb(session))

    async def UpdateSession(
        self, request: pb.UpdateSessionRequest, caller: Caller
    ) -> pb.UpdateSessionResponse:
        """Change title, model or metadata."""
        session = await self._chat.update_session(
            caller, request.session_id, _changes(request), request.etag
        )
        return pb.UpdateSessionResponse(session=_session_to_pb(session))

    async def ArchiveSession(
        self, request: pb.ArchiveSessionRequest, caller: Caller
    ) -> pb.ArchiveSessionResponse:
        """Put a session away."""
        values = {"is_archived": True}
        session = await self._chat.update_session(caller, request.session_id, values)
        return pb.ArchiveSessionResponse(session=_session_to_pb(session))

    async def UnarchiveSession(
        self, request: pb.UnarchiveSessionRequest, caller: Caller
    ) -> pb.UnarchiveSessionResponse:
        """Bring an archived session back."""
        values = {"is_archived": False}
        session = await self._chat.update_session(caller, request.session_id, values)
        return pb.UnarchiveSessionResponse(session=_session_to_pb(session))

    async def DeleteSession(
        self, request: pb.DeleteSessionRequest, caller: Caller
    ) -> pb.DeleteSessionResponse:
        """Delete a session so that it can be brought back."""
        session = await self._chat.delete_session(caller, request.session_id, request.etag)
        return pb.DeleteSessionResponse(session=_session_to_pb(session))

    async def UndeleteSession(
        self, request: pb.UndeleteSessionRequest, caller: Caller
    ) -> pb.UndeleteSessionResponse:
        """Bring a deleted session back."""
        session = await self._chat.undelete_session(caller, request.session_id)
        return pb.UndeleteSessionResponse(session=_session_to_pb(session))

    async def GetMessage(
        self, request: pb.GetMessageRequest, caller: Caller
    ) -> pb.GetMessageResponse:
        """Return a message."""
        message = await self._chat.get_message(caller, request.session_id, request.seq)
        return pb.GetMessageResponse(message=_message_to_pb(message))


class WatchFeed:
    """A watched session on the wire."""

    is_over = False  # it goes on until it fails

    def __init__(self, feed: SessionFeed) -> None:
        """Send what the feed yields."""
        self._feed = feed
        self.sent = feed.sent
        self.wait = feed.wait
        self.close = feed.close

    async def read(self, caller: Caller) -> Sequence[Message]:
        """Return what to send next."""
        return [_event_to_pb(event) for event in await self._feed.read(caller)]


def _changes(request: pb.UpdateSessionRequest) -> dict[str, Any]:
    """Return the values to set. Raises INVALID_FIELD."""
    given = {
        "session_title": request.session_title,
        "model_name": request.model_name,
        "metadata": struct_from_pb("metadata", request.metadata),
    }
    paths = list(request.update_mask.paths) or [name for name, value in given.items() if value]
    if paths == ["*"]:
        paths = list(given)
    if not set(paths) <= set(given):
        raise HubError.invalid("update_mask", f"may name: {', '.join(given)}")
    return {name: given[name] for name in paths}


def _message_from_pb(
    metadata: str, message: pb.AppendMessageRequest | pb.BatchMessage
) -> NewMessage:
    """Return a message as given; ``metadata`` is how an error names that field."""
    timed = message.HasField("model_response_time_ms")
    return NewMessage(
        role=enum_to_text(pb.Role, message.role),
        message_type=enum_to_text(pb.MessageType, message.message_type, pb.MESSAGE_TYPE_TEXT),
        content=message.content,
        token_count=message.token_count if message.HasField("token_count") else None,
        model_name=message.model_name,
        model_response_time=message.model_response_time_ms if timed else None,
        metadata=struct_from_pb(metadata, message.metadata),
    )


def _append_from_pb(
    request: pb.AppendMessageRequest | pb.BatchAppendMessagesRequest, messages: Sequence[NewMessage]
) -> Append:
    return Append(
        session_id=request.session_id,
        messages=messages,
        expected_seq=request.expected_seq if request.HasField("expected_seq") else None,
        reservation_id=request.reservation_id or None,
    )


def _span_from_pb(request: pb.ListMessagesRequest, *, newest_first: bool) -> Span:
    """Return which messages a list asks for. Raises INVALID_FIELD."""
    since, until = _times(request, "created_since", "created_before")
    roles = [enum_to_text(pb.Role, role) for role in request.roles]
    types = [enum_to_text(pb.MessageType, one) for one in request.message_types]
    first = request.from_seq
    if first and newest_first:
        return Span(last=first, roles=roles, types=types, since=since, until=until)
    after = max(first - 1, 0)
    return Span(after=after, roles=roles, types=types, since=since, until=until)


def _times(request: Any, *names: str) -> list[dt.datetime | None]:
    """Return the named times, None where absent. Raises INVALID_FIELD."""
    return [
        timestamp_from_pb(name, getattr(request, name)) if request.HasField(name) else None
        for name in names
    ]


def _message_to_pb(message: Row) -> pb.Message:
    return pb.Message(
        session_id=message["session_id"],
        seq=message["seq"],
        message_id=message["message_id"],
        role=enum_from_text(pb.Role, message["role"]),
        message_type=enum_from_text(pb.MessageType, message["message_type"]),
        content=message["content"] or "",
        token_count=message["token_count"],
        model_name=message["model_name"],
        model_response_time_ms=message["model_response_time"],
        metadata=struct_to_pb(message["metadata"]),
        created_at=timestamp_to_pb(message["created_at"]),
        redacted_at=timestamp_to_pb(message["redacted_at"]),
    )


def _event_to_pb(event: Event) -> pb.WatchSessionResponse:
    kind, row = event
    if kind == "message":
        return pb.WatchSessionResponse(message=_message_to_pb(row))
    if kind == "session":
        return pb.WatchSessionResponse(session=_session_to_pb(row))
    return pb.WatchSessionResponse(heartbeat=pb.Heartbeat(next_seq=row["next_seq"]))


def _reservation_to_pb(reservation: Row) -> pb.Reservation:
    return pb.Reservation(
        reservation_id=reservation["reservation_id"],
        user_id=reservation["user_id"],
        tokens=reservation["tokens"],
        held_tokens=reservation["held_tokens"],
        used_tokens=reservation["used_tokens"],
        expires_at=timestamp_to_pb(reservation["expires_at"]),
        settled_at=timestamp_to_pb(reservation["settled_at"]),
        created_at=timestamp_to_pb(reservation["created_at"]),
    )


def _session_to_pb(session: Row) -> pb.Session:
    return pb.Session(
        session_id=session["session_id"],
        user_id=session["user_id"],
        session_title=session["session_title"],
        model_name=session["model_name"],
        is_active=session["is_active"],
        ended_at=timestamp_to_pb(session["ended_at"]),
        last_message_at=timestamp_to_pb(session["last_message_at"]),
        last_seq=session["last_seq"],
        total_tokens_used=session["total_tokens_used"],
        metadata=struct_to_pb(session["metadata"]),
        created_at=timestamp_to_pb(session["created_at"]),
        updated_at=timestamp_to_pb(session["updated_at"]),
        is_archived=session["is_archived"],
        deleted_at=timestamp_to_pb(session["deleted_at"]),
        etag=session_etag(session),
        parent_session_id=session["parent_session_id"] or "",
        parent_seq=session["parent_seq"],
        redaction_count=session["redaction_count"],
    )
