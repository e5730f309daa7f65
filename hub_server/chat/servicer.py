"""ChatService on the wire: check, call, convert."""

from typing import Any

from hub_client.v1 import chat_pb2 as pb
from hub_server.caller import Caller
from hub_server.chat.service import ChatService, NewMessage, session_etag
from hub_server.convert import (
    enum_from_text,
    enum_to_text,
    struct_from_pb,
    struct_to_pb,
    timestamp_to_pb,
)
from hub_server.errors import HubError
from hub_server.idempotency import retry_of
from hub_server.paging import PageTokens
from hub_server.rows import Row


class ChatServicer:
    """Serves hub.v1.ChatService."""

    def __init__(self, service: ChatService, pages: PageTokens) -> None:
        """Serve the given rules."""
        self._chat = service
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
            caller, user_id, page, filters, show_deleted=request.show_deleted
        )
        return pb.ListSessionsResponse(
            sessions=map(_session_to_pb, sessions),
            next_page_token=self._pages.next(caller, request, after),
        )

    async def AppendMessage(
        self, request: pb.AppendMessageRequest, caller: Caller
    ) -> pb.AppendMessageResponse:
        """Append a message."""
        message = await self._chat.append(caller, retry_of(request), _message_from_pb(request))
        return pb.AppendMessageResponse(message=_message_to_pb(message))

    async def ListMessages(
        self, request: pb.ListMessagesRequest, caller: Caller
    ) -> pb.ListMessagesResponse:
        """List messages."""
        page = self._pages.read(caller, request, request.page_size, request.page_token)
        messages, after = await self._chat.list_messages(
            caller,
            request.session_id,
            page,
            newest_first=request.order == pb.MESSAGE_ORDER_NEWEST_FIRST,
        )
        return pb.ListMessagesResponse(
            messages=map(_message_to_pb, messages),
            next_page_token=self._pages.next(caller, request, after),
        )

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


def _message_from_pb(request: pb.AppendMessageRequest) -> NewMessage:
    timed = request.HasField("model_response_time_ms")
    return NewMessage(
        session_id=request.session_id,
        role=enum_to_text(pb.Role, request.role),
        message_type=enum_to_text(pb.MessageType, request.message_type, pb.MESSAGE_TYPE_TEXT),
        content=request.content,
        token_count=request.token_count,
        model_name=request.model_name,
        model_response_time=request.model_response_time_ms if timed else None,
        metadata=struct_from_pb("metadata", request.metadata),
        expected_seq=request.expected_seq if request.HasField("expected_seq") else None,
    )


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
    )
