"""ChatService on the wire: check, call, convert."""

from hub_client.v1 import chat_pb2 as pb
from hub_server.caller import Caller
from hub_server.chat.service import ChatService, NewMessage
from hub_server.convert import (
    enum_from_text,
    enum_to_text,
    struct_from_pb,
    struct_to_pb,
    timestamp_to_pb,
)
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
        sessions, after = await self._chat.list_sessions(caller, user_id, page)
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
    )
