# GENERATED from protos/hub/v1 by scripts/gen_protos.py (`make protos`). Do not edit.
"""A typed client per service, sync and async.

A list call returns an iterator that fetches pages as it goes: `page_size` is how much it fetches at
a time, `page_token` where it starts. A stream ends when the hub or the time limit ends it. A call
that takes several requests sends them as one stream.
"""

from collections.abc import AsyncIterator, Iterable, Iterator

from hub_client._transport import AsyncTransport, Transport
from hub_client.v1.chat_pb2 import (
    AppendMessageRequest,
    AppendMessageResponse,
    ArchiveSessionRequest,
    ArchiveSessionResponse,
    BatchAppendMessagesRequest,
    BatchAppendMessagesResponse,
    BuildContextRequest,
    BuildContextResponse,
    CreateSessionRequest,
    CreateSessionResponse,
    DeleteSessionRequest,
    DeleteSessionResponse,
    EndSessionRequest,
    EndSessionResponse,
    ForkSessionRequest,
    ForkSessionResponse,
    GetContextRecordRequest,
    GetContextRecordResponse,
    GetMessageRequest,
    GetMessageResponse,
    GetSessionRequest,
    GetSessionResponse,
    ListMessagesRequest,
    ListMessagesResponse,
    ListSessionsRequest,
    ListSessionsResponse,
    Message,
    RedactMessageRequest,
    RedactMessageResponse,
    ReopenSessionRequest,
    ReopenSessionResponse,
    ReserveTokensRequest,
    ReserveTokensResponse,
    SearchMessagesRequest,
    SearchMessagesResponse,
    Session,
    SettleTokensRequest,
    SettleTokensResponse,
    UnarchiveSessionRequest,
    UnarchiveSessionResponse,
    UndeleteSessionRequest,
    UndeleteSessionResponse,
    UpdateSessionRequest,
    UpdateSessionResponse,
    WatchSessionRequest,
    WatchSessionResponse,
)
from hub_client.v1.identity_pb2 import (
    ActivateTenantRequest,
    ActivateTenantResponse,
    ActivateUserRequest,
    ActivateUserResponse,
    ApiKey,
    AuditEvent,
    ChangePasswordRequest,
    ChangePasswordResponse,
    ConfirmPasswordResetRequest,
    ConfirmPasswordResetResponse,
    CreateApiKeyRequest,
    CreateApiKeyResponse,
    CreatePasswordResetRequest,
    CreatePasswordResetResponse,
    CreateTenantRequest,
    CreateTenantResponse,
    CreateUserRequest,
    CreateUserResponse,
    DeactivateTenantRequest,
    DeactivateTenantResponse,
    DeactivateUserRequest,
    DeactivateUserResponse,
    DeleteUserRequest,
    DeleteUserResponse,
    EraseTenantRequest,
    EraseTenantResponse,
    EraseUserRequest,
    EraseUserResponse,
    ExportUserRequest,
    ExportUserResponse,
    GetDefaultConfigRequest,
    GetDefaultConfigResponse,
    GetErasureRequest,
    GetErasureResponse,
    GetTenantErasureRequest,
    GetTenantErasureResponse,
    GetTenantRequest,
    GetTenantResponse,
    GetTenantSettingsRequest,
    GetTenantSettingsResponse,
    GetUsageRequest,
    GetUsageResponse,
    GetUserConfigRequest,
    GetUserConfigResponse,
    GetUserRequest,
    GetUserResponse,
    ImportUserRequest,
    ImportUserResponse,
    IntrospectTokenRequest,
    IntrospectTokenResponse,
    ListApiKeysRequest,
    ListApiKeysResponse,
    ListAuditEventsRequest,
    ListAuditEventsResponse,
    ListLoginsRequest,
    ListLoginsResponse,
    ListTenantsRequest,
    ListTenantsResponse,
    ListUsageRequest,
    ListUsageResponse,
    ListUsersRequest,
    ListUsersResponse,
    Login,
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    LogoutResponse,
    RefreshTokenRequest,
    RefreshTokenResponse,
    RevokeApiKeyRequest,
    RevokeApiKeyResponse,
    RevokeLoginRequest,
    RevokeLoginResponse,
    Tenant,
    UndeleteUserRequest,
    UndeleteUserResponse,
    UpdateDefaultConfigRequest,
    UpdateDefaultConfigResponse,
    UpdateTenantSettingsRequest,
    UpdateTenantSettingsResponse,
    UpdateUserConfigRequest,
    UpdateUserConfigResponse,
    UpdateUserRequest,
    UpdateUserResponse,
    Usage,
    User,
    WhoAmIRequest,
    WhoAmIResponse,
)
from hub_client.v1.knowledge_pb2 import (
    AddChunksRequest,
    AddChunksResponse,
    BatchSearchRequest,
    BatchSearchResponse,
    CancelReembeddingRequest,
    CancelReembeddingResponse,
    CheckIndexRequest,
    CheckIndexResponse,
    Chunk,
    DeleteDocumentRequest,
    DeleteDocumentResponse,
    Document,
    GetDocumentRequest,
    GetDocumentResponse,
    GetIndexStatsRequest,
    GetIndexStatsResponse,
    GetReembeddingRequest,
    GetReembeddingResponse,
    IngestDocumentRequest,
    IngestDocumentResponse,
    ListChunksRequest,
    ListChunksResponse,
    ListDocumentsRequest,
    ListDocumentsResponse,
    ListRetrievalsRequest,
    ListRetrievalsResponse,
    RebuildIndexRequest,
    RebuildIndexResponse,
    ReembedSpaceRequest,
    ReembedSpaceResponse,
    Retrieval,
    RetryDocumentRequest,
    RetryDocumentResponse,
    SearchRequest,
    SearchResponse,
    UndeleteDocumentRequest,
    UndeleteDocumentResponse,
    UpdateDocumentRequest,
    UpdateDocumentResponse,
    UploadDocumentRequest,
    UploadDocumentResponse,
    WatchDocumentRequest,
    WatchDocumentResponse,
)
from hub_client.v1.memory_pb2 import (
    AcceptMemoryRequest,
    AcceptMemoryResponse,
    BatchRememberRequest,
    BatchRememberResponse,
    DeleteMemoryRequest,
    DeleteMemoryResponse,
    ForgetMemoryRequest,
    ForgetMemoryResponse,
    GetMemoryHistoryRequest,
    GetMemoryHistoryResponse,
    GetMemoryReportRequest,
    GetMemoryReportResponse,
    GetMemoryRequest,
    GetMemoryResponse,
    ListMemoriesRequest,
    ListMemoriesResponse,
    Memory,
    RecallRequest,
    RecallResponse,
    RejectMemoryRequest,
    RejectMemoryResponse,
    RememberRequest,
    RememberResponse,
    RestoreMemoryRequest,
    RestoreMemoryResponse,
    UpdateMemoryRequest,
    UpdateMemoryResponse,
)


class ChatClient:
    """Keeps sessions and their messages in one order without gaps.

    A `request_id` belongs to the user, whatever the session or method it is used
    with; one whose call was refused may be used again.

    Any method errors with INVALID_FIELD, CREDENTIAL_MISSING, CREDENTIAL_INVALID,
    LEVEL_INSUFFICIENT, SCOPE_INSUFFICIENT, USER_DISABLED, OVERLOADED, DEADLINE_EXCEEDED, UNAVAILABLE
    or INTERNAL; what else it may answer is told beside it.
    """

    def __init__(self, transport: Transport) -> None:
        """Sends every call through `transport`; HubClient makes one."""
        self._transport = transport

    def create_session(
        self, request: CreateSessionRequest, *, timeout: float | None = None
    ) -> CreateSessionResponse:
        """Starts a session.

        Errors include: NOT_FOUND (the user), SESSION_LIMIT, REQUEST_ID_REUSED.
        """
        return self._transport.call(
            "/hub.v1.ChatService/CreateSession", request, CreateSessionResponse, timeout
        )

    def get_session(
        self, request: GetSessionRequest, *, timeout: float | None = None
    ) -> GetSessionResponse:
        """Returns one session.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.ChatService/GetSession", request, GetSessionResponse, timeout
        )

    def list_sessions(
        self, request: ListSessionsRequest, *, timeout: float | None = None
    ) -> Iterator[Session]:
        """Lists the sessions of a user, the one with the latest activity first: its last
        message, or its start where there is none. A session that becomes active while
        a caller turns pages moves to the front, and is not on the pages left.

        Errors include: NOT_FOUND (the user), PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.ChatService/ListSessions", request, ListSessionsResponse, "sessions", timeout
        )

    def append_message(
        self, request: AppendMessageRequest, *, timeout: float | None = None
    ) -> AppendMessageResponse:
        """Appends a message to a session and gives it the next `seq`. The answer
        comes after the message is on disk.

        Errors include: NOT_FOUND (the session), SESSION_ENDED, FEATURE_DISABLED
        (role `tool`), TOKEN_BUDGET, SEQ_MISMATCH, RESERVATION_SETTLED, REQUEST_ID_REUSED.
        """
        return self._transport.call(
            "/hub.v1.ChatService/AppendMessage", request, AppendMessageResponse, timeout
        )

    def batch_append_messages(
        self, request: BatchAppendMessagesRequest, *, timeout: float | None = None
    ) -> BatchAppendMessagesResponse:
        """Appends messages to one session, all of them or none; they get seqs that
        follow one another.

        Errors include: what AppendMessage answers.
        """
        return self._transport.call(
            "/hub.v1.ChatService/BatchAppendMessages", request, BatchAppendMessagesResponse, timeout
        )

    def list_messages(
        self, request: ListMessagesRequest, *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Lists the messages of a session in the order of their `seq`. A page of long
        messages ends early, so that an answer stays below 4 MiB; this holds for
        every list.

        Errors include: NOT_FOUND (the session), FEATURE_DISABLED, PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.ChatService/ListMessages", request, ListMessagesResponse, "messages", timeout
        )

    def end_session(
        self, request: EndSessionRequest, *, timeout: float | None = None
    ) -> EndSessionResponse:
        """Ends a session: it takes no more messages and no longer counts as active.
        Ending an ended session changes nothing.

        Errors include: NOT_FOUND (the session).
        """
        return self._transport.call(
            "/hub.v1.ChatService/EndSession", request, EndSessionResponse, timeout
        )

    def reopen_session(
        self, request: ReopenSessionRequest, *, timeout: float | None = None
    ) -> ReopenSessionResponse:
        """Takes messages in an ended session again. It counts as active from then on.
        Reopening an active session changes nothing.

        Errors include: NOT_FOUND (the session), SESSION_LIMIT.
        """
        return self._transport.call(
            "/hub.v1.ChatService/ReopenSession", request, ReopenSessionResponse, timeout
        )

    def update_session(
        self, request: UpdateSessionRequest, *, timeout: float | None = None
    ) -> UpdateSessionResponse:
        """Changes title, model or metadata of a session.

        Errors include: NOT_FOUND (the session), ETAG_MISMATCH.
        """
        return self._transport.call(
            "/hub.v1.ChatService/UpdateSession", request, UpdateSessionResponse, timeout
        )

    def archive_session(
        self, request: ArchiveSessionRequest, *, timeout: float | None = None
    ) -> ArchiveSessionResponse:
        """Puts a session away: lists can leave it out, and nothing else changes.
        Archiving an archived session changes nothing.

        Errors include: NOT_FOUND (the session).
        """
        return self._transport.call(
            "/hub.v1.ChatService/ArchiveSession", request, ArchiveSessionResponse, timeout
        )

    def unarchive_session(
        self, request: UnarchiveSessionRequest, *, timeout: float | None = None
    ) -> UnarchiveSessionResponse:
        """Brings an archived session back.

        Errors include: NOT_FOUND (the session).
        """
        return self._transport.call(
            "/hub.v1.ChatService/UnarchiveSession", request, UnarchiveSessionResponse, timeout
        )

    def delete_session(
        self, request: DeleteSessionRequest, *, timeout: float | None = None
    ) -> DeleteSessionResponse:
        """Deletes a session so that UndeleteSession can bring it back: it answers
        NOT_FOUND, lists leave it out and it does not count as active, but nothing of
        it is removed.

        Errors include: NOT_FOUND (also when it is deleted already), ETAG_MISMATCH.
        """
        return self._transport.call(
            "/hub.v1.ChatService/DeleteSession", request, DeleteSessionResponse, timeout
        )

    def undelete_session(
        self, request: UndeleteSessionRequest, *, timeout: float | None = None
    ) -> UndeleteSessionResponse:
        """Brings a deleted session back as it was. A session that is not deleted stays
        as it is.

        Errors include: NOT_FOUND, SESSION_LIMIT (when it is an active one).
        """
        return self._transport.call(
            "/hub.v1.ChatService/UndeleteSession", request, UndeleteSessionResponse, timeout
        )

    def get_message(
        self, request: GetMessageRequest, *, timeout: float | None = None
    ) -> GetMessageResponse:
        """Returns one message.

        Errors include: NOT_FOUND (the session or the message), FEATURE_DISABLED
        (`enable_chat_history`).
        """
        return self._transport.call(
            "/hub.v1.ChatService/GetMessage", request, GetMessageResponse, timeout
        )

    def fork_session(
        self, request: ForkSessionRequest, *, timeout: float | None = None
    ) -> ForkSessionResponse:
        """Starts a session that shares the history of another one up to a message. The
        shared messages are not copied: redacting one redacts it in every session
        that shares it. They count in the new session's totals, and not once more in
        what the user has used.

        Errors include: NOT_FOUND (the session), SESSION_LIMIT, REQUEST_ID_REUSED.
        """
        return self._transport.call(
            "/hub.v1.ChatService/ForkSession", request, ForkSessionResponse, timeout
        )

    def redact_message(
        self, request: RedactMessageRequest, *, timeout: float | None = None
    ) -> RedactMessageResponse:
        """Removes content and metadata of a message for good. Its `seq`, role and
        token count stay. Redacting a redacted message changes nothing. An audit
        event tells who did it.

        Errors include: NOT_FOUND (the session or the message).
        """
        return self._transport.call(
            "/hub.v1.ChatService/RedactMessage", request, RedactMessageResponse, timeout
        )

    def watch_session(
        self, request: WatchSessionRequest, *, timeout: float | None = None
    ) -> Iterator[WatchSessionResponse]:
        """Streams a session: first its state, then its messages from `from_seq` on, those
        stored and then those to come, each once and in order; and its state again
        whenever that changed. A reader that was cut off asks again with the `seq` after
        the last one it has seen, of any hub, and misses nothing.

        The stream ends with NOT_FOUND when the session is deleted, with what refused
        the call when access is lost, with READER_TOO_SLOW when the reader does not keep
        up, and with UNAVAILABLE when the hub stops; the last two may be resumed. No
        message follows lost access; a quiet stream ends with its next heartbeat.

        Errors include: NOT_FOUND (the session), FEATURE_DISABLED
        (`enable_chat_history`), READER_TOO_SLOW.
        """
        return self._transport.stream(
            "/hub.v1.ChatService/WatchSession", request, WatchSessionResponse, timeout
        )

    def build_context(
        self, request: BuildContextRequest, *, timeout: float | None = None
    ) -> BuildContextResponse:
        """Builds what a model needs to answer: memories, knowledge and the session's
        history, within a budget of tokens, and keeps a record of it.

        Considered are the 50 memories and 50 chunks that fit the query best, the newest
        messages (of the type `text`) as far as the budget could reach and at most 400,
        and up to 50 older ones that fit the query (where the tenant's `message_search`
        is on).

        First each part takes up to its share: history from its newest message backwards
        without gaps, memories and chunks from the best down. What is left goes to more
        memories, more chunks, more history, and then to older messages that fit the
        query. Nothing is cut: what does not fit whole is left out.
        Chunks that follow one another in a document are one block, in which an overlap
        is said once. A memory whose text is in the context already is left out, and so is
        one whose own message is, unless its text was changed since. The blocks come in a fixed order: memories best first,
        chunks by document, messages as they were said.

        With `enable_rag` false no knowledge is looked for, with `enable_chat_history`
        false no history: the ledger says so. The chunks are recorded as retrieved for
        the session. A service key needs the scopes MEMORY_READ and KNOWLEDGE_READ, too.

        Errors include: NOT_FOUND (the session).
        """
        return self._transport.call(
            "/hub.v1.ChatService/BuildContext", request, BuildContextResponse, timeout
        )

    def get_context_record(
        self, request: GetContextRecordRequest, *, timeout: float | None = None
    ) -> GetContextRecordResponse:
        """Returns a context as it was built, with memories as they were then. Only ids are
        kept of what it said: the text of what was deleted, redacted, erased or ingested
        anew since is missing from its block, and that of messages where
        `enable_chat_history` is false now. It needs the scopes that BuildContext does.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.ChatService/GetContextRecord", request, GetContextRecordResponse, timeout
        )

    def search_messages(
        self, request: SearchMessagesRequest, *, timeout: float | None = None
    ) -> SearchMessagesResponse:
        """Finds messages in a user's sessions, best first. It finds what was appended
        while the tenant's `message_search` was on and the user's history was kept: by
        its words at once, with HYBRID also by its meaning, a moment later. A message
        that fits lifts those beside it, up to two before and after it in its session,
        so that a reply is found with its question.

        An answer of long messages ends early, as a page of ListMessages does.

        Errors include: NOT_FOUND (the user or the session), FEATURE_DISABLED
        (`enable_chat_history`, or `message_search` where the tenant's is OFF).
        """
        return self._transport.call(
            "/hub.v1.ChatService/SearchMessages", request, SearchMessagesResponse, timeout
        )

    def reserve_tokens(
        self, request: ReserveTokensRequest, *, timeout: float | None = None
    ) -> ReserveTokensResponse:
        """Sets tokens of a user's budget aside for work that is about to begin. What is
        neither used nor settled until `ttl` is over is free again.

        Errors include: NOT_FOUND (the user), TOKEN_BUDGET, REQUEST_ID_REUSED.
        """
        return self._transport.call(
            "/hub.v1.ChatService/ReserveTokens", request, ReserveTokensResponse, timeout
        )

    def settle_tokens(
        self, request: SettleTokensRequest, *, timeout: float | None = None
    ) -> SettleTokensResponse:
        """Closes a reservation: counts what was used, and frees the rest. What was used
        beyond the reservation, or after it expired, must fit the budget: what does not
        is TOKEN_BUDGET, and can be settled as far as `tokens_left` goes. Settling
        once more with the same `used_tokens` changes nothing.

        Errors include: NOT_FOUND, TOKEN_BUDGET, RESERVATION_SETTLED (with other
        `used_tokens`).
        """
        return self._transport.call(
            "/hub.v1.ChatService/SettleTokens", request, SettleTokensResponse, timeout
        )


class AsyncChatClient:
    """Keeps sessions and their messages in one order without gaps.

    A `request_id` belongs to the user, whatever the session or method it is used
    with; one whose call was refused may be used again.

    Any method errors with INVALID_FIELD, CREDENTIAL_MISSING, CREDENTIAL_INVALID,
    LEVEL_INSUFFICIENT, SCOPE_INSUFFICIENT, USER_DISABLED, OVERLOADED, DEADLINE_EXCEEDED, UNAVAILABLE
    or INTERNAL; what else it may answer is told beside it.
    """

    def __init__(self, transport: AsyncTransport) -> None:
        """Sends every call through `transport`; HubClient makes one."""
        self._transport = transport

    async def create_session(
        self, request: CreateSessionRequest, *, timeout: float | None = None
    ) -> CreateSessionResponse:
        """Starts a session.

        Errors include: NOT_FOUND (the user), SESSION_LIMIT, REQUEST_ID_REUSED.
        """
        return await self._transport.call(
            "/hub.v1.ChatService/CreateSession", request, CreateSessionResponse, timeout
        )

    async def get_session(
        self, request: GetSessionRequest, *, timeout: float | None = None
    ) -> GetSessionResponse:
        """Returns one session.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.ChatService/GetSession", request, GetSessionResponse, timeout
        )

    def list_sessions(
        self, request: ListSessionsRequest, *, timeout: float | None = None
    ) -> AsyncIterator[Session]:
        """Lists the sessions of a user, the one with the latest activity first: its last
        message, or its start where there is none. A session that becomes active while
        a caller turns pages moves to the front, and is not on the pages left.

        Errors include: NOT_FOUND (the user), PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.ChatService/ListSessions", request, ListSessionsResponse, "sessions", timeout
        )

    async def append_message(
        self, request: AppendMessageRequest, *, timeout: float | None = None
    ) -> AppendMessageResponse:
        """Appends a message to a session and gives it the next `seq`. The answer
        comes after the message is on disk.

        Errors include: NOT_FOUND (the session), SESSION_ENDED, FEATURE_DISABLED
        (role `tool`), TOKEN_BUDGET, SEQ_MISMATCH, RESERVATION_SETTLED, REQUEST_ID_REUSED.
        """
        return await self._transport.call(
            "/hub.v1.ChatService/AppendMessage", request, AppendMessageResponse, timeout
        )

    async def batch_append_messages(
        self, request: BatchAppendMessagesRequest, *, timeout: float | None = None
    ) -> BatchAppendMessagesResponse:
        """Appends messages to one session, all of them or none; they get seqs that
        follow one another.

        Errors include: what AppendMessage answers.
        """
        return await self._transport.call(
            "/hub.v1.ChatService/BatchAppendMessages", request, BatchAppendMessagesResponse, timeout
        )

    def list_messages(
        self, request: ListMessagesRequest, *, timeout: float | None = None
    ) -> AsyncIterator[Message]:
        """Lists the messages of a session in the order of their `seq`. A page of long
        messages ends early, so that an answer stays below 4 MiB; this holds for
        every list.

        Errors include: NOT_FOUND (the session), FEATURE_DISABLED, PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.ChatService/ListMessages", request, ListMessagesResponse, "messages", timeout
        )

    async def end_session(
        self, request: EndSessionRequest, *, timeout: float | None = None
    ) -> EndSessionResponse:
        """Ends a session: it takes no more messages and no longer counts as active.
        Ending an ended session changes nothing.

        Errors include: NOT_FOUND (the session).
        """
        return await self._transport.call(
            "/hub.v1.ChatService/EndSession", request, EndSessionResponse, timeout
        )

    async def reopen_session(
        self, request: ReopenSessionRequest, *, timeout: float | None = None
    ) -> ReopenSessionResponse:
        """Takes messages in an ended session again. It counts as active from then on.
        Reopening an active session changes nothing.

        Errors include: NOT_FOUND (the session), SESSION_LIMIT.
        """
        return await self._transport.call(
            "/hub.v1.ChatService/ReopenSession", request, ReopenSessionResponse, timeout
        )

    async def update_session(
        self, request: UpdateSessionRequest, *, timeout: float | None = None
    ) -> UpdateSessionResponse:
        """Changes title, model or metadata of a session.

        Errors include: NOT_FOUND (the session), ETAG_MISMATCH.
        """
        return await self._transport.call(
            "/hub.v1.ChatService/UpdateSession", request, UpdateSessionResponse, timeout
        )

    async def archive_session(
        self, request: ArchiveSessionRequest, *, timeout: float | None = None
    ) -> ArchiveSessionResponse:
        """Puts a session away: lists can leave it out, and nothing else changes.
        Archiving an archived session changes nothing.

        Errors include: NOT_FOUND (the session).
        """
        return await self._transport.call(
            "/hub.v1.ChatService/ArchiveSession", request, ArchiveSessionResponse, timeout
        )

    async def unarchive_session(
        self, request: UnarchiveSessionRequest, *, timeout: float | None = None
    ) -> UnarchiveSessionResponse:
        """Brings an archived session back.

        Errors include: NOT_FOUND (the session).
        """
        return await self._transport.call(
            "/hub.v1.ChatService/UnarchiveSession", request, UnarchiveSessionResponse, timeout
        )

    async def delete_session(
        self, request: DeleteSessionRequest, *, timeout: float | None = None
    ) -> DeleteSessionResponse:
        """Deletes a session so that UndeleteSession can bring it back: it answers
        NOT_FOUND, lists leave it out and it does not count as active, but nothing of
        it is removed.

        Errors include: NOT_FOUND (also when it is deleted already), ETAG_MISMATCH.
        """
        return await self._transport.call(
            "/hub.v1.ChatService/DeleteSession", request, DeleteSessionResponse, timeout
        )

    async def undelete_session(
        self, request: UndeleteSessionRequest, *, timeout: float | None = None
    ) -> UndeleteSessionResponse:
        """Brings a deleted session back as it was. A session that is not deleted stays
        as it is.

        Errors include: NOT_FOUND, SESSION_LIMIT (when it is an active one).
        """
        return await self._transport.call(
            "/hub.v1.ChatService/UndeleteSession", request, UndeleteSessionResponse, timeout
        )

    async def get_message(
        self, request: GetMessageRequest, *, timeout: float | None = None
    ) -> GetMessageResponse:
        """Returns one message.

        Errors include: NOT_FOUND (the session or the message), FEATURE_DISABLED
        (`enable_chat_history`).
        """
        return await self._transport.call(
            "/hub.v1.ChatService/GetMessage", request, GetMessageResponse, timeout
        )

    async def fork_session(
        self, request: ForkSessionRequest, *, timeout: float | None = None
    ) -> ForkSessionResponse:
        """Starts a session that shares the history of another one up to a message. The
        shared messages are not copied: redacting one redacts it in every session
        that shares it. They count in the new session's totals, and not once more in
        what the user has used.

        Errors include: NOT_FOUND (the session), SESSION_LIMIT, REQUEST_ID_REUSED.
        """
        return await self._transport.call(
            "/hub.v1.ChatService/ForkSession", request, ForkSessionResponse, timeout
        )

    async def redact_message(
        self, request: RedactMessageRequest, *, timeout: float | None = None
    ) -> RedactMessageResponse:
        """Removes content and metadata of a message for good. Its `seq`, role and
        token count stay. Redacting a redacted message changes nothing. An audit
        event tells who did it.

        Errors include: NOT_FOUND (the session or the message).
        """
        return await self._transport.call(
            "/hub.v1.ChatService/RedactMessage", request, RedactMessageResponse, timeout
        )

    def watch_session(
        self, request: WatchSessionRequest, *, timeout: float | None = None
    ) -> AsyncIterator[WatchSessionResponse]:
        """Streams a session: first its state, then its messages from `from_seq` on, those
        stored and then those to come, each once and in order; and its state again
        whenever that changed. A reader that was cut off asks again with the `seq` after
        the last one it has seen, of any hub, and misses nothing.

        The stream ends with NOT_FOUND when the session is deleted, with what refused
        the call when access is lost, with READER_TOO_SLOW when the reader does not keep
        up, and with UNAVAILABLE when the hub stops; the last two may be resumed. No
        message follows lost access; a quiet stream ends with its next heartbeat.

        Errors include: NOT_FOUND (the session), FEATURE_DISABLED
        (`enable_chat_history`), READER_TOO_SLOW.
        """
        return self._transport.stream(
            "/hub.v1.ChatService/WatchSession", request, WatchSessionResponse, timeout
        )

    async def build_context(
        self, request: BuildContextRequest, *, timeout: float | None = None
    ) -> BuildContextResponse:
        """Builds what a model needs to answer: memories, knowledge and the session's
        history, within a budget of tokens, and keeps a record of it.

        Considered are the 50 memories and 50 chunks that fit the query best, the newest
        messages (of the type `text`) as far as the budget could reach and at most 400,
        and up to 50 older ones that fit the query (where the tenant's `message_search`
        is on).

        First each part takes up to its share: history from its newest message backwards
        without gaps, memories and chunks from the best down. What is left goes to more
        memories, more chunks, more history, and then to older messages that fit the
        query. Nothing is cut: what does not fit whole is left out.
        Chunks that follow one another in a document are one block, in which an overlap
        is said once. A memory whose text is in the context already is left out, and so is
        one whose own message is, unless its text was changed since. The blocks come in a fixed order: memories best first,
        chunks by document, messages as they were said.

        With `enable_rag` false no knowledge is looked for, with `enable_chat_history`
        false no history: the ledger says so. The chunks are recorded as retrieved for
        the session. A service key needs the scopes MEMORY_READ and KNOWLEDGE_READ, too.

        Errors include: NOT_FOUND (the session).
        """
        return await self._transport.call(
            "/hub.v1.ChatService/BuildContext", request, BuildContextResponse, timeout
        )

    async def get_context_record(
        self, request: GetContextRecordRequest, *, timeout: float | None = None
    ) -> GetContextRecordResponse:
        """Returns a context as it was built, with memories as they were then. Only ids are
        kept of what it said: the text of what was deleted, redacted, erased or ingested
        anew since is missing from its block, and that of messages where
        `enable_chat_history` is false now. It needs the scopes that BuildContext does.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.ChatService/GetContextRecord", request, GetContextRecordResponse, timeout
        )

    async def search_messages(
        self, request: SearchMessagesRequest, *, timeout: float | None = None
    ) -> SearchMessagesResponse:
        """Finds messages in a user's sessions, best first. It finds what was appended
        while the tenant's `message_search` was on and the user's history was kept: by
        its words at once, with HYBRID also by its meaning, a moment later. A message
        that fits lifts those beside it, up to two before and after it in its session,
        so that a reply is found with its question.

        An answer of long messages ends early, as a page of ListMessages does.

        Errors include: NOT_FOUND (the user or the session), FEATURE_DISABLED
        (`enable_chat_history`, or `message_search` where the tenant's is OFF).
        """
        return await self._transport.call(
            "/hub.v1.ChatService/SearchMessages", request, SearchMessagesResponse, timeout
        )

    async def reserve_tokens(
        self, request: ReserveTokensRequest, *, timeout: float | None = None
    ) -> ReserveTokensResponse:
        """Sets tokens of a user's budget aside for work that is about to begin. What is
        neither used nor settled until `ttl` is over is free again.

        Errors include: NOT_FOUND (the user), TOKEN_BUDGET, REQUEST_ID_REUSED.
        """
        return await self._transport.call(
            "/hub.v1.ChatService/ReserveTokens", request, ReserveTokensResponse, timeout
        )

    async def settle_tokens(
        self, request: SettleTokensRequest, *, timeout: float | None = None
    ) -> SettleTokensResponse:
        """Closes a reservation: counts what was used, and frees the rest. What was used
        beyond the reservation, or after it expired, must fit the budget: what does not
        is TOKEN_BUDGET, and can be settled as far as `tokens_left` goes. Settling
        once more with the same `used_tokens` changes nothing.

        Errors include: NOT_FOUND, TOKEN_BUDGET, RESERVATION_SETTLED (with other
        `used_tokens`).
        """
        return await self._transport.call(
            "/hub.v1.ChatService/SettleTokens", request, SettleTokensResponse, timeout
        )


class IdentityClient:
    """Keeps the users of a tenant, their configuration and their credentials.

    Any method errors with INVALID_FIELD, CREDENTIAL_MISSING, CREDENTIAL_INVALID,
    LEVEL_INSUFFICIENT, SCOPE_INSUFFICIENT, OVERLOADED, DEADLINE_EXCEEDED, UNAVAILABLE or INTERNAL;
    what else it may answer is told beside it. A service key may read and change
    disabled users here, as whoever manages them must.
    """

    def __init__(self, transport: Transport) -> None:
        """Sends every call through `transport`; HubClient makes one."""
        self._transport = transport

    def create_user(
        self, request: CreateUserRequest, *, timeout: float | None = None
    ) -> CreateUserResponse:
        """Creates a user with a default configuration.

        Errors include: EMAIL_TAKEN, PASSWORD_REFUSED, REQUEST_ID_REUSED.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/CreateUser", request, CreateUserResponse, timeout
        )

    def get_user(self, request: GetUserRequest, *, timeout: float | None = None) -> GetUserResponse:
        """Returns one user.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/GetUser", request, GetUserResponse, timeout
        )

    def list_users(
        self, request: ListUsersRequest, *, timeout: float | None = None
    ) -> Iterator[User]:
        """Lists the users of the tenant, newest first.

        Errors include: PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.IdentityService/ListUsers", request, ListUsersResponse, "users", timeout
        )

    def who_am_i(self, request: WhoAmIRequest, *, timeout: float | None = None) -> WhoAmIResponse:
        """Tells who the caller is."""
        return self._transport.call(
            "/hub.v1.IdentityService/WhoAmI", request, WhoAmIResponse, timeout
        )

    def update_user(
        self, request: UpdateUserRequest, *, timeout: float | None = None
    ) -> UpdateUserResponse:
        """Changes the email or the name of a user.

        Errors include: NOT_FOUND, ETAG_MISMATCH, EMAIL_TAKEN.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/UpdateUser", request, UpdateUserResponse, timeout
        )

    def deactivate_user(
        self, request: DeactivateUserRequest, *, timeout: float | None = None
    ) -> DeactivateUserResponse:
        """Refuses every call of and for a user from the next one on, in every process.
        Deactivating such a user again changes nothing.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/DeactivateUser", request, DeactivateUserResponse, timeout
        )

    def activate_user(
        self, request: ActivateUserRequest, *, timeout: float | None = None
    ) -> ActivateUserResponse:
        """Takes the calls of and for a user again. Tokens that have neither expired
        nor been revoked meanwhile are valid again.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/ActivateUser", request, ActivateUserResponse, timeout
        )

    def delete_user(
        self, request: DeleteUserRequest, *, timeout: float | None = None
    ) -> DeleteUserResponse:
        """Deletes a user so that UndeleteUser can bring him back: his ids answer
        NOT_FOUND and lists leave him out, but nothing of his is removed, and his
        email stays taken.

        Errors include: NOT_FOUND (also when he is deleted already), ETAG_MISMATCH.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/DeleteUser", request, DeleteUserResponse, timeout
        )

    def undelete_user(
        self, request: UndeleteUserRequest, *, timeout: float | None = None
    ) -> UndeleteUserResponse:
        """Brings a deleted user back with all that is his. A user who is not deleted
        stays as he is.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/UndeleteUser", request, UndeleteUserResponse, timeout
        )

    def export_user(
        self, request: ExportUserRequest, *, timeout: float | None = None
    ) -> Iterator[ExportUserResponse]:
        """Streams a user, disabled or deleted ones too, with all that is his: what he
        said, what is remembered and known of him, with the vectors. His credentials, the
        audit log and what other hubs make for themselves are not in it.

        What was acknowledged before the export began is in it, as it is when its turn
        comes; what is made later is not. The last record is a summary: a stream that
        ends without it is not whole. The hub holds no more than a page of it, and waits
        for a reader who is slow.

        Errors include: NOT_FOUND, READER_TOO_SLOW, ETAG_MISMATCH (meanwhile a document
        was processed anew, its file was read, or ReembedSpace was done: ask again).
        """
        return self._transport.stream(
            "/hub.v1.IdentityService/ExportUser", request, ExportUserResponse, timeout
        )

    def erase_user(
        self, request: EraseUserRequest, *, timeout: float | None = None
    ) -> EraseUserResponse:
        """Erases a user for ever: his rows in every table, the views and files that
        searches keep of them, and his id in the audit log.

        From this call on every call of and for him is answered as if he did not
        exist, in every process, and what watches his sessions ends. The rows go a few
        at a time, in the background, through restarts of the hub. The answer comes
        when nothing is left, or shortly before the call's deadline, with the state
        RUNNING then: see GetErasure. His email is free again once it is FINISHED.

        Calling it again returns the same erasure. Who is deleted may be erased, too.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/EraseUser", request, EraseUserResponse, timeout
        )

    def get_erasure(
        self, request: GetErasureRequest, *, timeout: float | None = None
    ) -> GetErasureResponse:
        """Returns how far the erasure of a user is, and its receipt: the latest one, if
        somebody of that id was erased more than once.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/GetErasure", request, GetErasureResponse, timeout
        )

    def import_user(
        self, requests: Iterable[ImportUserRequest], *, timeout: float | None = None
    ) -> ImportUserResponse:
        """Takes in a user as ExportUser told him, with the same ids and times; whose hub it
        was does not matter. All of it is there at once, when the summary has come and
        fits: before that nobody sees any of it, and searches find it right after.

        To be sent in the order of the export, and not before the time at which the rows
        were made: a `created_at` that is yet to come is INVALID_ARGUMENT, but a memory's.
        A user who is here already, whole and
        the same, stays as he is. One who was cut off sends all of it again; what an
        import that did not end has left is never shown, goes with the next one that
        begins, and with EraseUser.

        The user has no password and no logins: see CreatePasswordReset. What of the
        hub's documents was `processing` is processed anew, and vectors of other models
        than this hub's are kept, and searched as ReembedSpace says.

        Errors include: EMAIL_TAKEN, IMPORT_CONFLICT (a record of an id that is here with
        other content, or is not the user's), ETAG_MISMATCH (another import of this
        user has begun), NOT_FOUND (he was erased meanwhile), SENDER_TOO_SLOW.
        """
        return self._transport.upload(
            "/hub.v1.IdentityService/ImportUser", requests, ImportUserResponse, timeout
        )

    def login(self, request: LoginRequest, *, timeout: float | None = None) -> LoginResponse:
        """Exchanges an email and a password for a user token and a refresh token.

        The tenant is the one of the service key the call presents; without a
        credential it is the tenant `default`. Unknown emails, wrong passwords and
        disabled users are answered alike, and each costs one password hash.

        Errors include: LOGIN_FAILED.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/Login", request, LoginResponse, timeout
        )

    def refresh_token(
        self, request: RefreshTokenRequest, *, timeout: float | None = None
    ) -> RefreshTokenResponse:
        """Exchanges a refresh token for the next pair of tokens; the pair before is
        void from then on.

        A client that lost the answer presents the same refresh token again and gets
        the same pair, as long as nobody used the newer one. A refresh token that is
        older than that was stolen or copied: the login ends, with all its tokens.

        To be called without a credential: an expired token in the metadata would
        refuse the call.

        Errors include: CREDENTIAL_INVALID.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/RefreshToken", request, RefreshTokenResponse, timeout
        )

    def logout(self, request: LogoutRequest, *, timeout: float | None = None) -> LogoutResponse:
        """Ends the login whose user token the call presents, or all logins of that
        user. With a service key it is INVALID_FIELD: see RevokeLogin.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/Logout", request, LogoutResponse, timeout
        )

    def list_logins(
        self, request: ListLoginsRequest, *, timeout: float | None = None
    ) -> Iterator[Login]:
        """Lists the logins of a user that have not ended, newest first.

        Errors include: NOT_FOUND (the user), PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.IdentityService/ListLogins", request, ListLoginsResponse, "logins", timeout
        )

    def revoke_login(
        self, request: RevokeLoginRequest, *, timeout: float | None = None
    ) -> RevokeLoginResponse:
        """Ends a login: its tokens are refused from the next call on, in every process.

        Errors include: NOT_FOUND (also when it has ended already).
        """
        return self._transport.call(
            "/hub.v1.IdentityService/RevokeLogin", request, RevokeLoginResponse, timeout
        )

    def introspect_token(
        self, request: IntrospectTokenRequest, *, timeout: float | None = None
    ) -> IntrospectTokenResponse:
        """Tells whether a token or key of this tenant is valid now, and whose it is
        (RFC 7662). Of any other it tells only that it is not active.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/IntrospectToken", request, IntrospectTokenResponse, timeout
        )

    def change_password(
        self, request: ChangePasswordRequest, *, timeout: float | None = None
    ) -> ChangePasswordResponse:
        """Changes the password of a user who knows the old one. His other logins end.
        A wrong old password counts as an attempt to log in: too many are throttled.

        Errors include: NOT_FOUND, LOGIN_FAILED (the old password is wrong),
        PASSWORD_REFUSED.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/ChangePassword", request, ChangePasswordResponse, timeout
        )

    def create_password_reset(
        self, request: CreatePasswordResetRequest, *, timeout: float | None = None
    ) -> CreatePasswordResetResponse:
        """Makes a one-time token with which a user who forgot his password sets a new
        one. The hub sends no mail: the caller brings the token to the user. A newer
        token voids the one before.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/CreatePasswordReset",
            request,
            CreatePasswordResetResponse,
            timeout,
        )

    def confirm_password_reset(
        self, request: ConfirmPasswordResetRequest, *, timeout: float | None = None
    ) -> ConfirmPasswordResetResponse:
        """Sets a new password with a token of CreatePasswordReset. All logins of the
        user end, and the token is spent.

        Errors include: CREDENTIAL_INVALID (the token), PASSWORD_REFUSED.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/ConfirmPasswordReset",
            request,
            ConfirmPasswordResetResponse,
            timeout,
        )

    def get_user_config(
        self, request: GetUserConfigRequest, *, timeout: float | None = None
    ) -> GetUserConfigResponse:
        """Returns the configuration of a user.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/GetUserConfig", request, GetUserConfigResponse, timeout
        )

    def update_user_config(
        self, request: UpdateUserConfigRequest, *, timeout: float | None = None
    ) -> UpdateUserConfigResponse:
        """Changes the configuration of a user. The next call for that user obeys it.

        Errors include: NOT_FOUND, ETAG_MISMATCH.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/UpdateUserConfig", request, UpdateUserConfigResponse, timeout
        )

    def get_default_config(
        self, request: GetDefaultConfigRequest, *, timeout: float | None = None
    ) -> GetDefaultConfigResponse:
        """Returns what a new user's configuration begins with, and what a field that
        is reset returns to.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/GetDefaultConfig", request, GetDefaultConfigResponse, timeout
        )

    def update_default_config(
        self, request: UpdateDefaultConfigRequest, *, timeout: float | None = None
    ) -> UpdateDefaultConfigResponse:
        """Changes the defaults of the tenant. Configurations that exist stay as they are.

        Errors include: ETAG_MISMATCH.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/UpdateDefaultConfig",
            request,
            UpdateDefaultConfigResponse,
            timeout,
        )

    def get_tenant_settings(
        self, request: GetTenantSettingsRequest, *, timeout: float | None = None
    ) -> GetTenantSettingsResponse:
        """Returns what holds for all users of the tenant."""
        return self._transport.call(
            "/hub.v1.IdentityService/GetTenantSettings", request, GetTenantSettingsResponse, timeout
        )

    def update_tenant_settings(
        self, request: UpdateTenantSettingsRequest, *, timeout: float | None = None
    ) -> UpdateTenantSettingsResponse:
        """Changes what holds for all users of the tenant. The next call obeys it.

        Errors include: ETAG_MISMATCH.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/UpdateTenantSettings",
            request,
            UpdateTenantSettingsResponse,
            timeout,
        )

    def get_usage(
        self, request: GetUsageRequest, *, timeout: float | None = None
    ) -> GetUsageResponse:
        """Returns what a user has used.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/GetUsage", request, GetUsageResponse, timeout
        )

    def list_usage(
        self, request: ListUsageRequest, *, timeout: float | None = None
    ) -> Iterator[Usage]:
        """Lists what the users of the tenant have used, most tokens in total first. A
        user whose count changes between two pages may be left out or come twice.

        Errors include: PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.IdentityService/ListUsage", request, ListUsageResponse, "usages", timeout
        )

    def create_api_key(
        self, request: CreateApiKeyRequest, *, timeout: float | None = None
    ) -> CreateApiKeyResponse:
        """Makes a service key of the tenant. Its secret is in this answer and nowhere
        else: a retry with the same `request_id` returns the key without it.

        Errors include: SCOPE_INSUFFICIENT (a key cannot grant what it lacks),
        REQUEST_ID_REUSED.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/CreateApiKey", request, CreateApiKeyResponse, timeout
        )

    def list_api_keys(
        self, request: ListApiKeysRequest, *, timeout: float | None = None
    ) -> Iterator[ApiKey]:
        """Lists the service keys of the tenant, newest first.

        Errors include: PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.IdentityService/ListApiKeys", request, ListApiKeysResponse, "api_keys", timeout
        )

    def revoke_api_key(
        self, request: RevokeApiKeyRequest, *, timeout: float | None = None
    ) -> RevokeApiKeyResponse:
        """Ends a service key: it is refused from the next call on, in every process.
        A key that has ended stays as it is.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/RevokeApiKey", request, RevokeApiKeyResponse, timeout
        )

    def list_audit_events(
        self, request: ListAuditEventsRequest, *, timeout: float | None = None
    ) -> Iterator[AuditEvent]:
        """Lists audit events of the tenant, newest first.

        Errors include: PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.IdentityService/ListAuditEvents",
            request,
            ListAuditEventsResponse,
            "audit_events",
            timeout,
        )

    def create_tenant(
        self, request: CreateTenantRequest, *, timeout: float | None = None
    ) -> CreateTenantResponse:
        """Creates a tenant and its first service key, which has every scope. The key's
        secret is in this answer and nowhere else: a retry with the same `request_id`
        returns the tenant without it.

        Errors include: TENANT_EXISTS, REQUEST_ID_REUSED.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/CreateTenant", request, CreateTenantResponse, timeout
        )

    def get_tenant(
        self, request: GetTenantRequest, *, timeout: float | None = None
    ) -> GetTenantResponse:
        """Returns a tenant.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/GetTenant", request, GetTenantResponse, timeout
        )

    def list_tenants(
        self, request: ListTenantsRequest, *, timeout: float | None = None
    ) -> Iterator[Tenant]:
        """Lists all tenants, newest first.

        Errors include: PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.IdentityService/ListTenants", request, ListTenantsResponse, "tenants", timeout
        )

    def deactivate_tenant(
        self, request: DeactivateTenantRequest, *, timeout: float | None = None
    ) -> DeactivateTenantResponse:
        """Refuses every key and token of a tenant from the next call on, in every
        process. Nothing of the tenant is removed.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/DeactivateTenant", request, DeactivateTenantResponse, timeout
        )

    def activate_tenant(
        self, request: ActivateTenantRequest, *, timeout: float | None = None
    ) -> ActivateTenantResponse:
        """Takes the keys and tokens of a tenant again.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/ActivateTenant", request, ActivateTenantResponse, timeout
        )

    def erase_tenant(
        self, request: EraseTenantRequest, *, timeout: float | None = None
    ) -> EraseTenantResponse:
        """Erases a tenant for ever: its users with all that is theirs, its keys, its
        settings, its audit log and the receipts of users who were erased before. In
        all else as EraseUser. Its name is free again once it is FINISHED.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/EraseTenant", request, EraseTenantResponse, timeout
        )

    def get_tenant_erasure(
        self, request: GetTenantErasureRequest, *, timeout: float | None = None
    ) -> GetTenantErasureResponse:
        """Returns how far the erasure of a tenant is, and its receipt.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.IdentityService/GetTenantErasure", request, GetTenantErasureResponse, timeout
        )


class AsyncIdentityClient:
    """Keeps the users of a tenant, their configuration and their credentials.

    Any method errors with INVALID_FIELD, CREDENTIAL_MISSING, CREDENTIAL_INVALID,
    LEVEL_INSUFFICIENT, SCOPE_INSUFFICIENT, OVERLOADED, DEADLINE_EXCEEDED, UNAVAILABLE or INTERNAL;
    what else it may answer is told beside it. A service key may read and change
    disabled users here, as whoever manages them must.
    """

    def __init__(self, transport: AsyncTransport) -> None:
        """Sends every call through `transport`; HubClient makes one."""
        self._transport = transport

    async def create_user(
        self, request: CreateUserRequest, *, timeout: float | None = None
    ) -> CreateUserResponse:
        """Creates a user with a default configuration.

        Errors include: EMAIL_TAKEN, PASSWORD_REFUSED, REQUEST_ID_REUSED.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/CreateUser", request, CreateUserResponse, timeout
        )

    async def get_user(
        self, request: GetUserRequest, *, timeout: float | None = None
    ) -> GetUserResponse:
        """Returns one user.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/GetUser", request, GetUserResponse, timeout
        )

    def list_users(
        self, request: ListUsersRequest, *, timeout: float | None = None
    ) -> AsyncIterator[User]:
        """Lists the users of the tenant, newest first.

        Errors include: PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.IdentityService/ListUsers", request, ListUsersResponse, "users", timeout
        )

    async def who_am_i(
        self, request: WhoAmIRequest, *, timeout: float | None = None
    ) -> WhoAmIResponse:
        """Tells who the caller is."""
        return await self._transport.call(
            "/hub.v1.IdentityService/WhoAmI", request, WhoAmIResponse, timeout
        )

    async def update_user(
        self, request: UpdateUserRequest, *, timeout: float | None = None
    ) -> UpdateUserResponse:
        """Changes the email or the name of a user.

        Errors include: NOT_FOUND, ETAG_MISMATCH, EMAIL_TAKEN.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/UpdateUser", request, UpdateUserResponse, timeout
        )

    async def deactivate_user(
        self, request: DeactivateUserRequest, *, timeout: float | None = None
    ) -> DeactivateUserResponse:
        """Refuses every call of and for a user from the next one on, in every process.
        Deactivating such a user again changes nothing.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/DeactivateUser", request, DeactivateUserResponse, timeout
        )

    async def activate_user(
        self, request: ActivateUserRequest, *, timeout: float | None = None
    ) -> ActivateUserResponse:
        """Takes the calls of and for a user again. Tokens that have neither expired
        nor been revoked meanwhile are valid again.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/ActivateUser", request, ActivateUserResponse, timeout
        )

    async def delete_user(
        self, request: DeleteUserRequest, *, timeout: float | None = None
    ) -> DeleteUserResponse:
        """Deletes a user so that UndeleteUser can bring him back: his ids answer
        NOT_FOUND and lists leave him out, but nothing of his is removed, and his
        email stays taken.

        Errors include: NOT_FOUND (also when he is deleted already), ETAG_MISMATCH.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/DeleteUser", request, DeleteUserResponse, timeout
        )

    async def undelete_user(
        self, request: UndeleteUserRequest, *, timeout: float | None = None
    ) -> UndeleteUserResponse:
        """Brings a deleted user back with all that is his. A user who is not deleted
        stays as he is.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/UndeleteUser", request, UndeleteUserResponse, timeout
        )

    def export_user(
        self, request: ExportUserRequest, *, timeout: float | None = None
    ) -> AsyncIterator[ExportUserResponse]:
        """Streams a user, disabled or deleted ones too, with all that is his: what he
        said, what is remembered and known of him, with the vectors. His credentials, the
        audit log and what other hubs make for themselves are not in it.

        What was acknowledged before the export began is in it, as it is when its turn
        comes; what is made later is not. The last record is a summary: a stream that
        ends without it is not whole. The hub holds no more than a page of it, and waits
        for a reader who is slow.

        Errors include: NOT_FOUND, READER_TOO_SLOW, ETAG_MISMATCH (meanwhile a document
        was processed anew, its file was read, or ReembedSpace was done: ask again).
        """
        return self._transport.stream(
            "/hub.v1.IdentityService/ExportUser", request, ExportUserResponse, timeout
        )

    async def erase_user(
        self, request: EraseUserRequest, *, timeout: float | None = None
    ) -> EraseUserResponse:
        """Erases a user for ever: his rows in every table, the views and files that
        searches keep of them, and his id in the audit log.

        From this call on every call of and for him is answered as if he did not
        exist, in every process, and what watches his sessions ends. The rows go a few
        at a time, in the background, through restarts of the hub. The answer comes
        when nothing is left, or shortly before the call's deadline, with the state
        RUNNING then: see GetErasure. His email is free again once it is FINISHED.

        Calling it again returns the same erasure. Who is deleted may be erased, too.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/EraseUser", request, EraseUserResponse, timeout
        )

    async def get_erasure(
        self, request: GetErasureRequest, *, timeout: float | None = None
    ) -> GetErasureResponse:
        """Returns how far the erasure of a user is, and its receipt: the latest one, if
        somebody of that id was erased more than once.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/GetErasure", request, GetErasureResponse, timeout
        )

    async def import_user(
        self, requests: Iterable[ImportUserRequest], *, timeout: float | None = None
    ) -> ImportUserResponse:
        """Takes in a user as ExportUser told him, with the same ids and times; whose hub it
        was does not matter. All of it is there at once, when the summary has come and
        fits: before that nobody sees any of it, and searches find it right after.

        To be sent in the order of the export, and not before the time at which the rows
        were made: a `created_at` that is yet to come is INVALID_ARGUMENT, but a memory's.
        A user who is here already, whole and
        the same, stays as he is. One who was cut off sends all of it again; what an
        import that did not end has left is never shown, goes with the next one that
        begins, and with EraseUser.

        The user has no password and no logins: see CreatePasswordReset. What of the
        hub's documents was `processing` is processed anew, and vectors of other models
        than this hub's are kept, and searched as ReembedSpace says.

        Errors include: EMAIL_TAKEN, IMPORT_CONFLICT (a record of an id that is here with
        other content, or is not the user's), ETAG_MISMATCH (another import of this
        user has begun), NOT_FOUND (he was erased meanwhile), SENDER_TOO_SLOW.
        """
        return await self._transport.upload(
            "/hub.v1.IdentityService/ImportUser", requests, ImportUserResponse, timeout
        )

    async def login(self, request: LoginRequest, *, timeout: float | None = None) -> LoginResponse:
        """Exchanges an email and a password for a user token and a refresh token.

        The tenant is the one of the service key the call presents; without a
        credential it is the tenant `default`. Unknown emails, wrong passwords and
        disabled users are answered alike, and each costs one password hash.

        Errors include: LOGIN_FAILED.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/Login", request, LoginResponse, timeout
        )

    async def refresh_token(
        self, request: RefreshTokenRequest, *, timeout: float | None = None
    ) -> RefreshTokenResponse:
        """Exchanges a refresh token for the next pair of tokens; the pair before is
        void from then on.

        A client that lost the answer presents the same refresh token again and gets
        the same pair, as long as nobody used the newer one. A refresh token that is
        older than that was stolen or copied: the login ends, with all its tokens.

        To be called without a credential: an expired token in the metadata would
        refuse the call.

        Errors include: CREDENTIAL_INVALID.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/RefreshToken", request, RefreshTokenResponse, timeout
        )

    async def logout(
        self, request: LogoutRequest, *, timeout: float | None = None
    ) -> LogoutResponse:
        """Ends the login whose user token the call presents, or all logins of that
        user. With a service key it is INVALID_FIELD: see RevokeLogin.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/Logout", request, LogoutResponse, timeout
        )

    def list_logins(
        self, request: ListLoginsRequest, *, timeout: float | None = None
    ) -> AsyncIterator[Login]:
        """Lists the logins of a user that have not ended, newest first.

        Errors include: NOT_FOUND (the user), PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.IdentityService/ListLogins", request, ListLoginsResponse, "logins", timeout
        )

    async def revoke_login(
        self, request: RevokeLoginRequest, *, timeout: float | None = None
    ) -> RevokeLoginResponse:
        """Ends a login: its tokens are refused from the next call on, in every process.

        Errors include: NOT_FOUND (also when it has ended already).
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/RevokeLogin", request, RevokeLoginResponse, timeout
        )

    async def introspect_token(
        self, request: IntrospectTokenRequest, *, timeout: float | None = None
    ) -> IntrospectTokenResponse:
        """Tells whether a token or key of this tenant is valid now, and whose it is
        (RFC 7662). Of any other it tells only that it is not active.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/IntrospectToken", request, IntrospectTokenResponse, timeout
        )

    async def change_password(
        self, request: ChangePasswordRequest, *, timeout: float | None = None
    ) -> ChangePasswordResponse:
        """Changes the password of a user who knows the old one. His other logins end.
        A wrong old password counts as an attempt to log in: too many are throttled.

        Errors include: NOT_FOUND, LOGIN_FAILED (the old password is wrong),
        PASSWORD_REFUSED.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/ChangePassword", request, ChangePasswordResponse, timeout
        )

    async def create_password_reset(
        self, request: CreatePasswordResetRequest, *, timeout: float | None = None
    ) -> CreatePasswordResetResponse:
        """Makes a one-time token with which a user who forgot his password sets a new
        one. The hub sends no mail: the caller brings the token to the user. A newer
        token voids the one before.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/CreatePasswordReset",
            request,
            CreatePasswordResetResponse,
            timeout,
        )

    async def confirm_password_reset(
        self, request: ConfirmPasswordResetRequest, *, timeout: float | None = None
    ) -> ConfirmPasswordResetResponse:
        """Sets a new password with a token of CreatePasswordReset. All logins of the
        user end, and the token is spent.

        Errors include: CREDENTIAL_INVALID (the token), PASSWORD_REFUSED.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/ConfirmPasswordReset",
            request,
            ConfirmPasswordResetResponse,
            timeout,
        )

    async def get_user_config(
        self, request: GetUserConfigRequest, *, timeout: float | None = None
    ) -> GetUserConfigResponse:
        """Returns the configuration of a user.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/GetUserConfig", request, GetUserConfigResponse, timeout
        )

    async def update_user_config(
        self, request: UpdateUserConfigRequest, *, timeout: float | None = None
    ) -> UpdateUserConfigResponse:
        """Changes the configuration of a user. The next call for that user obeys it.

        Errors include: NOT_FOUND, ETAG_MISMATCH.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/UpdateUserConfig", request, UpdateUserConfigResponse, timeout
        )

    async def get_default_config(
        self, request: GetDefaultConfigRequest, *, timeout: float | None = None
    ) -> GetDefaultConfigResponse:
        """Returns what a new user's configuration begins with, and what a field that
        is reset returns to.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/GetDefaultConfig", request, GetDefaultConfigResponse, timeout
        )

    async def update_default_config(
        self, request: UpdateDefaultConfigRequest, *, timeout: float | None = None
    ) -> UpdateDefaultConfigResponse:
        """Changes the defaults of the tenant. Configurations that exist stay as they are.

        Errors include: ETAG_MISMATCH.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/UpdateDefaultConfig",
            request,
            UpdateDefaultConfigResponse,
            timeout,
        )

    async def get_tenant_settings(
        self, request: GetTenantSettingsRequest, *, timeout: float | None = None
    ) -> GetTenantSettingsResponse:
        """Returns what holds for all users of the tenant."""
        return await self._transport.call(
            "/hub.v1.IdentityService/GetTenantSettings", request, GetTenantSettingsResponse, timeout
        )

    async def update_tenant_settings(
        self, request: UpdateTenantSettingsRequest, *, timeout: float | None = None
    ) -> UpdateTenantSettingsResponse:
        """Changes what holds for all users of the tenant. The next call obeys it.

        Errors include: ETAG_MISMATCH.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/UpdateTenantSettings",
            request,
            UpdateTenantSettingsResponse,
            timeout,
        )

    async def get_usage(
        self, request: GetUsageRequest, *, timeout: float | None = None
    ) -> GetUsageResponse:
        """Returns what a user has used.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/GetUsage", request, GetUsageResponse, timeout
        )

    def list_usage(
        self, request: ListUsageRequest, *, timeout: float | None = None
    ) -> AsyncIterator[Usage]:
        """Lists what the users of the tenant have used, most tokens in total first. A
        user whose count changes between two pages may be left out or come twice.

        Errors include: PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.IdentityService/ListUsage", request, ListUsageResponse, "usages", timeout
        )

    async def create_api_key(
        self, request: CreateApiKeyRequest, *, timeout: float | None = None
    ) -> CreateApiKeyResponse:
        """Makes a service key of the tenant. Its secret is in this answer and nowhere
        else: a retry with the same `request_id` returns the key without it.

        Errors include: SCOPE_INSUFFICIENT (a key cannot grant what it lacks),
        REQUEST_ID_REUSED.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/CreateApiKey", request, CreateApiKeyResponse, timeout
        )

    def list_api_keys(
        self, request: ListApiKeysRequest, *, timeout: float | None = None
    ) -> AsyncIterator[ApiKey]:
        """Lists the service keys of the tenant, newest first.

        Errors include: PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.IdentityService/ListApiKeys", request, ListApiKeysResponse, "api_keys", timeout
        )

    async def revoke_api_key(
        self, request: RevokeApiKeyRequest, *, timeout: float | None = None
    ) -> RevokeApiKeyResponse:
        """Ends a service key: it is refused from the next call on, in every process.
        A key that has ended stays as it is.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/RevokeApiKey", request, RevokeApiKeyResponse, timeout
        )

    def list_audit_events(
        self, request: ListAuditEventsRequest, *, timeout: float | None = None
    ) -> AsyncIterator[AuditEvent]:
        """Lists audit events of the tenant, newest first.

        Errors include: PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.IdentityService/ListAuditEvents",
            request,
            ListAuditEventsResponse,
            "audit_events",
            timeout,
        )

    async def create_tenant(
        self, request: CreateTenantRequest, *, timeout: float | None = None
    ) -> CreateTenantResponse:
        """Creates a tenant and its first service key, which has every scope. The key's
        secret is in this answer and nowhere else: a retry with the same `request_id`
        returns the tenant without it.

        Errors include: TENANT_EXISTS, REQUEST_ID_REUSED.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/CreateTenant", request, CreateTenantResponse, timeout
        )

    async def get_tenant(
        self, request: GetTenantRequest, *, timeout: float | None = None
    ) -> GetTenantResponse:
        """Returns a tenant.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/GetTenant", request, GetTenantResponse, timeout
        )

    def list_tenants(
        self, request: ListTenantsRequest, *, timeout: float | None = None
    ) -> AsyncIterator[Tenant]:
        """Lists all tenants, newest first.

        Errors include: PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.IdentityService/ListTenants", request, ListTenantsResponse, "tenants", timeout
        )

    async def deactivate_tenant(
        self, request: DeactivateTenantRequest, *, timeout: float | None = None
    ) -> DeactivateTenantResponse:
        """Refuses every key and token of a tenant from the next call on, in every
        process. Nothing of the tenant is removed.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/DeactivateTenant", request, DeactivateTenantResponse, timeout
        )

    async def activate_tenant(
        self, request: ActivateTenantRequest, *, timeout: float | None = None
    ) -> ActivateTenantResponse:
        """Takes the keys and tokens of a tenant again.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/ActivateTenant", request, ActivateTenantResponse, timeout
        )

    async def erase_tenant(
        self, request: EraseTenantRequest, *, timeout: float | None = None
    ) -> EraseTenantResponse:
        """Erases a tenant for ever: its users with all that is theirs, its keys, its
        settings, its audit log and the receipts of users who were erased before. In
        all else as EraseUser. Its name is free again once it is FINISHED.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/EraseTenant", request, EraseTenantResponse, timeout
        )

    async def get_tenant_erasure(
        self, request: GetTenantErasureRequest, *, timeout: float | None = None
    ) -> GetTenantErasureResponse:
        """Returns how far the erasure of a tenant is, and its receipt.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.IdentityService/GetTenantErasure", request, GetTenantErasureResponse, timeout
        )


class KnowledgeClient:
    """Keeps a user's documents and finds the passages that answer a query.

    Any method errors with INVALID_FIELD, CREDENTIAL_MISSING, CREDENTIAL_INVALID,
    LEVEL_INSUFFICIENT, SCOPE_INSUFFICIENT, USER_DISABLED, OVERLOADED, DEADLINE_EXCEEDED, UNAVAILABLE
    or INTERNAL; what else it may answer is told beside it.
    """

    def __init__(self, transport: Transport) -> None:
        """Sends every call through `transport`; HubClient makes one."""
        self._transport = transport

    def ingest_document(
        self, request: IngestDocumentRequest, *, timeout: float | None = None
    ) -> IngestDocumentResponse:
        """Stores a document and begins to split and embed it in the background. The
        document is `processing` first, then `ready` or `failed`; a restart of the
        hub resumes the work. A text that the user has already, in a document that is
        neither deleted nor failed, returns that document.

        Errors include: NOT_FOUND (the user), REQUEST_ID_REUSED.
        """
        return self._transport.call(
            "/hub.v1.KnowledgeService/IngestDocument", request, IngestDocumentResponse, timeout
        )

    def upload_document(
        self, requests: Iterable[UploadDocumentRequest], *, timeout: float | None = None
    ) -> UploadDocumentResponse:
        """Stores a document that is a file, as IngestDocument does a text: a PDF, a DOCX, an
        HTML page, or a text (plain or Markdown, in UTF-8, or in UTF-16 with its byte order
        mark), of at most HUB_UPLOAD_MB, 32 unless set. What it is is told by its content,
        not by its name: what begins with a tag of HTML is a page or a part of one, unless
        it has headings or fences of Markdown, or does not end with a tag. It is read in
        the background; a file that cannot be makes the document `failed`, and is kept for
        7 days from the upload, in which RetryDocument tries it again. No file is kept once
        its text, at most 4 MiB, is read.

        The first message says what is uploaded and may bear the first bytes, the others
        bear bytes alone; the end of the stream is the end of the file. A stream that is cut
        off leaves nothing. A file whose very bytes the user has already, in a document that is
        neither deleted nor failed, returns that document. Without a deadline of the
        caller's it may take 10 minutes, which is also the longest.

        Errors include: NOT_FOUND (the user), REQUEST_ID_REUSED, SENDER_TOO_SLOW.
        """
        return self._transport.upload(
            "/hub.v1.KnowledgeService/UploadDocument", requests, UploadDocumentResponse, timeout
        )

    def add_chunks(
        self, request: AddChunksRequest, *, timeout: float | None = None
    ) -> AddChunksResponse:
        """Stores chunks whose vectors were made elsewhere: as a new document, or at the
        end of one that was made so. All of them are stored or none; the document is
        `ready`, and the next search finds them. The hub makes no vectors for such a
        document: its text cannot be changed, and ReembedSpace leaves it as it is. A new
        title is shown, and found by its words, and the vectors stay.

        Errors include: NOT_FOUND (the user or the document), REQUEST_ID_REUSED.
        """
        return self._transport.call(
            "/hub.v1.KnowledgeService/AddChunks", request, AddChunksResponse, timeout
        )

    def get_document(
        self, request: GetDocumentRequest, *, timeout: float | None = None
    ) -> GetDocumentResponse:
        """Returns one document with its status.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.KnowledgeService/GetDocument", request, GetDocumentResponse, timeout
        )

    def list_documents(
        self, request: ListDocumentsRequest, *, timeout: float | None = None
    ) -> Iterator[Document]:
        """Lists the documents of a user, newest first.

        Errors include: NOT_FOUND (the user), PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.KnowledgeService/ListDocuments",
            request,
            ListDocumentsResponse,
            "documents",
            timeout,
        )

    def delete_document(
        self, request: DeleteDocumentRequest, *, timeout: float | None = None
    ) -> DeleteDocumentResponse:
        """Deletes a document with its chunks, so that UndeleteDocument can bring them
        back. No Search that begins after the answer returns any of them. Deleting a
        document again is NOT_FOUND.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.KnowledgeService/DeleteDocument", request, DeleteDocumentResponse, timeout
        )

    def undelete_document(
        self, request: UndeleteDocumentRequest, *, timeout: float | None = None
    ) -> UndeleteDocumentResponse:
        """Brings a deleted document back as it was; one that is not deleted stays as it
        is.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.KnowledgeService/UndeleteDocument", request, UndeleteDocumentResponse, timeout
        )

    def update_document(
        self, request: UpdateDocumentRequest, *, timeout: float | None = None
    ) -> UpdateDocumentResponse:
        """Changes a document. Another text, title, source or chunking is split and
        embedded anew in the background; until that is done searches find what they
        found before, and from then on the new. Where it fails they go on finding what
        they did: the document is `failed` until RetryDocument or another change is done.

        Errors include: NOT_FOUND, ETAG_MISMATCH.
        """
        return self._transport.call(
            "/hub.v1.KnowledgeService/UpdateDocument", request, UpdateDocumentResponse, timeout
        )

    def retry_document(
        self, request: RetryDocumentRequest, *, timeout: float | None = None
    ) -> RetryDocumentResponse:
        """Tries a failed document again. One that has not failed stays as it is. One that
        was uploaded, could not be read, and whose file is no longer kept, fails again.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.KnowledgeService/RetryDocument", request, RetryDocumentResponse, timeout
        )

    def watch_document(
        self, request: WatchDocumentRequest, *, timeout: float | None = None
    ) -> Iterator[WatchDocumentResponse]:
        """Streams a document: as it is now, and again with each step of its processing;
        the stream ends once it is `ready` or `failed`.

        Errors include: NOT_FOUND, READER_TOO_SLOW.
        """
        return self._transport.stream(
            "/hub.v1.KnowledgeService/WatchDocument", request, WatchDocumentResponse, timeout
        )

    def list_chunks(
        self, request: ListChunksRequest, *, timeout: float | None = None
    ) -> Iterator[Chunk]:
        """Lists the chunks of a document that searches may find, in their order.

        Errors include: NOT_FOUND, PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.KnowledgeService/ListChunks", request, ListChunksResponse, "chunks", timeout
        )

    def list_retrievals(
        self, request: ListRetrievalsRequest, *, timeout: float | None = None
    ) -> Iterator[Retrieval]:
        """Lists what searches returned for a session, latest first.

        Errors include: NOT_FOUND (the session), PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.KnowledgeService/ListRetrievals",
            request,
            ListRetrievalsResponse,
            "retrievals",
            timeout,
        )

    def reembed_space(
        self, request: ReembedSpaceRequest, *, timeout: float | None = None
    ) -> ReembedSpaceResponse:
        """Moves the documents, memories and messages of a user, or of all users of the
        tenant, to another embedding model: every chunk, memory and message is embedded
        anew in the background, and searches go on with the old model until the last one
        of its kind is. Then they use the new one, all at once, and what is written is
        embedded by it. A hub that is started again goes on. Asked for again a move goes
        on, or stays done; another model takes the place of the first. One that failed goes
        on where it stopped. What AddChunks brought stays as it is. Recall with `as_of`
        finds what UpdateMemory replaced before the move by its words alone.

        Errors include: NOT_FOUND (the user).
        """
        return self._transport.call(
            "/hub.v1.KnowledgeService/ReembedSpace", request, ReembedSpaceResponse, timeout
        )

    def get_reembedding(
        self, request: GetReembeddingRequest, *, timeout: float | None = None
    ) -> GetReembeddingResponse:
        """Returns how far the last ReembedSpace is.

        Errors include: NOT_FOUND (the user).
        """
        return self._transport.call(
            "/hub.v1.KnowledgeService/GetReembedding", request, GetReembeddingResponse, timeout
        )

    def cancel_reembedding(
        self, request: CancelReembeddingRequest, *, timeout: float | None = None
    ) -> CancelReembeddingResponse:
        """Ends what ReembedSpace began, where it is not done: what did not arrive keeps the
        model it has.

        Errors include: NOT_FOUND (the user).
        """
        return self._transport.call(
            "/hub.v1.KnowledgeService/CancelReembedding",
            request,
            CancelReembeddingResponse,
            timeout,
        )

    def search(self, request: SearchRequest, *, timeout: float | None = None) -> SearchResponse:
        """Finds the chunks of a user's documents that fit a query in words or in meaning,
        best first. It sees every document that was `ready` before it began, as it was
        then: while another text of it is processed, and where that fails, the one before
        is found, whole. A chunk whose vector is of another model than the query's is found by
        its words alone.

        Errors include: NOT_FOUND (the user, the session or the message), FEATURE_DISABLED,
        ANSWER_TOO_LARGE (chunks of AddChunks with neighbours).
        """
        return self._transport.call(
            "/hub.v1.KnowledgeService/Search", request, SearchResponse, timeout
        )

    def batch_search(
        self, request: BatchSearchRequest, *, timeout: float | None = None
    ) -> BatchSearchResponse:
        """Makes several searches of one user at once: as many calls of Search would,
        but the queries are embedded together, and all of them see one state. What is
        recorded for a session is recorded for all of them or for none.

        Errors include: NOT_FOUND (the user, the session or the message), FEATURE_DISABLED,
        ANSWER_TOO_LARGE.
        """
        return self._transport.call(
            "/hub.v1.KnowledgeService/BatchSearch", request, BatchSearchResponse, timeout
        )

    def get_index_stats(
        self, request: GetIndexStatsRequest, *, timeout: float | None = None
    ) -> GetIndexStatsResponse:
        """Tells of the index that serves the searches of one space: what the process that
        answers holds of it. Where a hub has several workers, each holds views of its
        own: another call may be answered by another worker, with other figures. With
        HUB_INDEX=pgvector the vectors are in Postgres and the same for all.

        Errors include: NOT_FOUND (the user), FEATURE_DISABLED (messages are not searched).
        """
        return self._transport.call(
            "/hub.v1.KnowledgeService/GetIndexStats", request, GetIndexStatsResponse, timeout
        )

    def check_index(
        self, request: CheckIndexRequest, *, timeout: float | None = None
    ) -> CheckIndexResponse:
        """Compares the index of one space with its rows, and measures its recall. It
        reads all rows of the space, so it may take seconds for 100,000 of them: give it a
        deadline. It is the index of the process that answers; others are not looked at.

        Errors include: NOT_FOUND (the user), FEATURE_DISABLED (messages are not searched).
        """
        return self._transport.call(
            "/hub.v1.KnowledgeService/CheckIndex", request, CheckIndexResponse, timeout
        )

    def rebuild_index(
        self, request: RebuildIndexRequest, *, timeout: float | None = None
    ) -> RebuildIndexResponse:
        """Makes the index of one space anew from its rows, and removes its snapshots.
        Searches use the old one until the new one holds every row; the answer comes when
        they use the new. A graph, where the space is large enough for one, is built after
        that: until then vectors are searched exactly, and `is_building` is told. At the
        deadline of the call the old one stays. It is the index of the process that
        answers; other workers keep theirs, but save none of them any more.

        Errors include: NOT_FOUND (the user), FEATURE_DISABLED (messages are not searched).
        """
        return self._transport.call(
            "/hub.v1.KnowledgeService/RebuildIndex", request, RebuildIndexResponse, timeout
        )


class AsyncKnowledgeClient:
    """Keeps a user's documents and finds the passages that answer a query.

    Any method errors with INVALID_FIELD, CREDENTIAL_MISSING, CREDENTIAL_INVALID,
    LEVEL_INSUFFICIENT, SCOPE_INSUFFICIENT, USER_DISABLED, OVERLOADED, DEADLINE_EXCEEDED, UNAVAILABLE
    or INTERNAL; what else it may answer is told beside it.
    """

    def __init__(self, transport: AsyncTransport) -> None:
        """Sends every call through `transport`; HubClient makes one."""
        self._transport = transport

    async def ingest_document(
        self, request: IngestDocumentRequest, *, timeout: float | None = None
    ) -> IngestDocumentResponse:
        """Stores a document and begins to split and embed it in the background. The
        document is `processing` first, then `ready` or `failed`; a restart of the
        hub resumes the work. A text that the user has already, in a document that is
        neither deleted nor failed, returns that document.

        Errors include: NOT_FOUND (the user), REQUEST_ID_REUSED.
        """
        return await self._transport.call(
            "/hub.v1.KnowledgeService/IngestDocument", request, IngestDocumentResponse, timeout
        )

    async def upload_document(
        self, requests: Iterable[UploadDocumentRequest], *, timeout: float | None = None
    ) -> UploadDocumentResponse:
        """Stores a document that is a file, as IngestDocument does a text: a PDF, a DOCX, an
        HTML page, or a text (plain or Markdown, in UTF-8, or in UTF-16 with its byte order
        mark), of at most HUB_UPLOAD_MB, 32 unless set. What it is is told by its content,
        not by its name: what begins with a tag of HTML is a page or a part of one, unless
        it has headings or fences of Markdown, or does not end with a tag. It is read in
        the background; a file that cannot be makes the document `failed`, and is kept for
        7 days from the upload, in which RetryDocument tries it again. No file is kept once
        its text, at most 4 MiB, is read.

        The first message says what is uploaded and may bear the first bytes, the others
        bear bytes alone; the end of the stream is the end of the file. A stream that is cut
        off leaves nothing. A file whose very bytes the user has already, in a document that is
        neither deleted nor failed, returns that document. Without a deadline of the
        caller's it may take 10 minutes, which is also the longest.

        Errors include: NOT_FOUND (the user), REQUEST_ID_REUSED, SENDER_TOO_SLOW.
        """
        return await self._transport.upload(
            "/hub.v1.KnowledgeService/UploadDocument", requests, UploadDocumentResponse, timeout
        )

    async def add_chunks(
        self, request: AddChunksRequest, *, timeout: float | None = None
    ) -> AddChunksResponse:
        """Stores chunks whose vectors were made elsewhere: as a new document, or at the
        end of one that was made so. All of them are stored or none; the document is
        `ready`, and the next search finds them. The hub makes no vectors for such a
        document: its text cannot be changed, and ReembedSpace leaves it as it is. A new
        title is shown, and found by its words, and the vectors stay.

        Errors include: NOT_FOUND (the user or the document), REQUEST_ID_REUSED.
        """
        return await self._transport.call(
            "/hub.v1.KnowledgeService/AddChunks", request, AddChunksResponse, timeout
        )

    async def get_document(
        self, request: GetDocumentRequest, *, timeout: float | None = None
    ) -> GetDocumentResponse:
        """Returns one document with its status.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.KnowledgeService/GetDocument", request, GetDocumentResponse, timeout
        )

    def list_documents(
        self, request: ListDocumentsRequest, *, timeout: float | None = None
    ) -> AsyncIterator[Document]:
        """Lists the documents of a user, newest first.

        Errors include: NOT_FOUND (the user), PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.KnowledgeService/ListDocuments",
            request,
            ListDocumentsResponse,
            "documents",
            timeout,
        )

    async def delete_document(
        self, request: DeleteDocumentRequest, *, timeout: float | None = None
    ) -> DeleteDocumentResponse:
        """Deletes a document with its chunks, so that UndeleteDocument can bring them
        back. No Search that begins after the answer returns any of them. Deleting a
        document again is NOT_FOUND.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.KnowledgeService/DeleteDocument", request, DeleteDocumentResponse, timeout
        )

    async def undelete_document(
        self, request: UndeleteDocumentRequest, *, timeout: float | None = None
    ) -> UndeleteDocumentResponse:
        """Brings a deleted document back as it was; one that is not deleted stays as it
        is.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.KnowledgeService/UndeleteDocument", request, UndeleteDocumentResponse, timeout
        )

    async def update_document(
        self, request: UpdateDocumentRequest, *, timeout: float | None = None
    ) -> UpdateDocumentResponse:
        """Changes a document. Another text, title, source or chunking is split and
        embedded anew in the background; until that is done searches find what they
        found before, and from then on the new. Where it fails they go on finding what
        they did: the document is `failed` until RetryDocument or another change is done.

        Errors include: NOT_FOUND, ETAG_MISMATCH.
        """
        return await self._transport.call(
            "/hub.v1.KnowledgeService/UpdateDocument", request, UpdateDocumentResponse, timeout
        )

    async def retry_document(
        self, request: RetryDocumentRequest, *, timeout: float | None = None
    ) -> RetryDocumentResponse:
        """Tries a failed document again. One that has not failed stays as it is. One that
        was uploaded, could not be read, and whose file is no longer kept, fails again.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.KnowledgeService/RetryDocument", request, RetryDocumentResponse, timeout
        )

    def watch_document(
        self, request: WatchDocumentRequest, *, timeout: float | None = None
    ) -> AsyncIterator[WatchDocumentResponse]:
        """Streams a document: as it is now, and again with each step of its processing;
        the stream ends once it is `ready` or `failed`.

        Errors include: NOT_FOUND, READER_TOO_SLOW.
        """
        return self._transport.stream(
            "/hub.v1.KnowledgeService/WatchDocument", request, WatchDocumentResponse, timeout
        )

    def list_chunks(
        self, request: ListChunksRequest, *, timeout: float | None = None
    ) -> AsyncIterator[Chunk]:
        """Lists the chunks of a document that searches may find, in their order.

        Errors include: NOT_FOUND, PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.KnowledgeService/ListChunks", request, ListChunksResponse, "chunks", timeout
        )

    def list_retrievals(
        self, request: ListRetrievalsRequest, *, timeout: float | None = None
    ) -> AsyncIterator[Retrieval]:
        """Lists what searches returned for a session, latest first.

        Errors include: NOT_FOUND (the session), PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.KnowledgeService/ListRetrievals",
            request,
            ListRetrievalsResponse,
            "retrievals",
            timeout,
        )

    async def reembed_space(
        self, request: ReembedSpaceRequest, *, timeout: float | None = None
    ) -> ReembedSpaceResponse:
        """Moves the documents, memories and messages of a user, or of all users of the
        tenant, to another embedding model: every chunk, memory and message is embedded
        anew in the background, and searches go on with the old model until the last one
        of its kind is. Then they use the new one, all at once, and what is written is
        embedded by it. A hub that is started again goes on. Asked for again a move goes
        on, or stays done; another model takes the place of the first. One that failed goes
        on where it stopped. What AddChunks brought stays as it is. Recall with `as_of`
        finds what UpdateMemory replaced before the move by its words alone.

        Errors include: NOT_FOUND (the user).
        """
        return await self._transport.call(
            "/hub.v1.KnowledgeService/ReembedSpace", request, ReembedSpaceResponse, timeout
        )

    async def get_reembedding(
        self, request: GetReembeddingRequest, *, timeout: float | None = None
    ) -> GetReembeddingResponse:
        """Returns how far the last ReembedSpace is.

        Errors include: NOT_FOUND (the user).
        """
        return await self._transport.call(
            "/hub.v1.KnowledgeService/GetReembedding", request, GetReembeddingResponse, timeout
        )

    async def cancel_reembedding(
        self, request: CancelReembeddingRequest, *, timeout: float | None = None
    ) -> CancelReembeddingResponse:
        """Ends what ReembedSpace began, where it is not done: what did not arrive keeps the
        model it has.

        Errors include: NOT_FOUND (the user).
        """
        return await self._transport.call(
            "/hub.v1.KnowledgeService/CancelReembedding",
            request,
            CancelReembeddingResponse,
            timeout,
        )

    async def search(
        self, request: SearchRequest, *, timeout: float | None = None
    ) -> SearchResponse:
        """Finds the chunks of a user's documents that fit a query in words or in meaning,
        best first. It sees every document that was `ready` before it began, as it was
        then: while another text of it is processed, and where that fails, the one before
        is found, whole. A chunk whose vector is of another model than the query's is found by
        its words alone.

        Errors include: NOT_FOUND (the user, the session or the message), FEATURE_DISABLED,
        ANSWER_TOO_LARGE (chunks of AddChunks with neighbours).
        """
        return await self._transport.call(
            "/hub.v1.KnowledgeService/Search", request, SearchResponse, timeout
        )

    async def batch_search(
        self, request: BatchSearchRequest, *, timeout: float | None = None
    ) -> BatchSearchResponse:
        """Makes several searches of one user at once: as many calls of Search would,
        but the queries are embedded together, and all of them see one state. What is
        recorded for a session is recorded for all of them or for none.

        Errors include: NOT_FOUND (the user, the session or the message), FEATURE_DISABLED,
        ANSWER_TOO_LARGE.
        """
        return await self._transport.call(
            "/hub.v1.KnowledgeService/BatchSearch", request, BatchSearchResponse, timeout
        )

    async def get_index_stats(
        self, request: GetIndexStatsRequest, *, timeout: float | None = None
    ) -> GetIndexStatsResponse:
        """Tells of the index that serves the searches of one space: what the process that
        answers holds of it. Where a hub has several workers, each holds views of its
        own: another call may be answered by another worker, with other figures. With
        HUB_INDEX=pgvector the vectors are in Postgres and the same for all.

        Errors include: NOT_FOUND (the user), FEATURE_DISABLED (messages are not searched).
        """
        return await self._transport.call(
            "/hub.v1.KnowledgeService/GetIndexStats", request, GetIndexStatsResponse, timeout
        )

    async def check_index(
        self, request: CheckIndexRequest, *, timeout: float | None = None
    ) -> CheckIndexResponse:
        """Compares the index of one space with its rows, and measures its recall. It
        reads all rows of the space, so it may take seconds for 100,000 of them: give it a
        deadline. It is the index of the process that answers; others are not looked at.

        Errors include: NOT_FOUND (the user), FEATURE_DISABLED (messages are not searched).
        """
        return await self._transport.call(
            "/hub.v1.KnowledgeService/CheckIndex", request, CheckIndexResponse, timeout
        )

    async def rebuild_index(
        self, request: RebuildIndexRequest, *, timeout: float | None = None
    ) -> RebuildIndexResponse:
        """Makes the index of one space anew from its rows, and removes its snapshots.
        Searches use the old one until the new one holds every row; the answer comes when
        they use the new. A graph, where the space is large enough for one, is built after
        that: until then vectors are searched exactly, and `is_building` is told. At the
        deadline of the call the old one stays. It is the index of the process that
        answers; other workers keep theirs, but save none of them any more.

        Errors include: NOT_FOUND (the user), FEATURE_DISABLED (messages are not searched).
        """
        return await self._transport.call(
            "/hub.v1.KnowledgeService/RebuildIndex", request, RebuildIndexResponse, timeout
        )


class MemoryClient:
    """Keeps what an assistant learned about a user.

    Any method errors with INVALID_FIELD, CREDENTIAL_MISSING, CREDENTIAL_INVALID,
    LEVEL_INSUFFICIENT, SCOPE_INSUFFICIENT, USER_DISABLED, OVERLOADED, DEADLINE_EXCEEDED, UNAVAILABLE
    or INTERNAL; what else it may answer is told beside it.
    """

    def __init__(self, transport: Transport) -> None:
        """Sends every call through `transport`; HubClient makes one."""
        self._transport = transport

    def remember(
        self, request: RememberRequest, *, timeout: float | None = None
    ) -> RememberResponse:
        """Remembers something about a user: a new memory, or one more proof of what is
        remembered already. No language model is asked; these rules decide:

        With a `memory_key`, the new memory supersedes the active one of the same user,
        type and key: that one is kept, inactive, with `superseded_by`. The same text
        reinforces it instead. What the assistant inferred never supersedes what the
        user or a system said: it is kept, inactive, as a proposal (AcceptMemory,
        RejectMemory); one proposal for a key at a time, the newest.

        Keys are equal to the letter: `Drink` is another key than `drink`. A text with a
        key is compared with those of its key alone, and none with those of other types;
        so equal ones may stand beside each other, which GetMemoryReport shows.

        Without a key, a text that is remembered in the same type already, active and
        not expired, reinforces that memory. It is the same text when it is equal, or
        when its embedding has a cosine of .95 (HUB_NEAR_DUPLICATE) or more and one of
        the two only leaves out the definite article where the other has it, in the
        user's language: en, de, fr, es, it, nl or pt. All else that differs is new, so
        that nothing that was said is lost; GetMemoryReport shows what is alike.

        Texts are equal that differ in nothing but case, spaces, quotes, parentheses and
        the marks . , ; : ! and …, unless one of `.`, `,` and `:` stands directly before
        a letter or digit (ann.lee@x.org, 3.5), or several marks stand by themselves, as
        a smiley does. Any other character counts: C is not C++, -5 is not 5.

        To reinforce counts one up, keeps the later expiry, takes `user` as the source
        if the user said it now, and raises the confidence c to c + (1 - c) * n / 2,
        with n the confidence of what was said. One message proves a thing once only.
        What was rejected and is inferred again stays rejected.

        Writes of one user's memories take their turns, so all of this holds among
        callers, too. Every Recall that begins after the answer sees it.

        Errors include: NOT_FOUND (the user, the session or the message),
        REQUEST_ID_REUSED, MEMORY_RATE.
        """
        return self._transport.call(
            "/hub.v1.MemoryService/Remember", request, RememberResponse, timeout
        )

    def batch_remember(
        self, request: BatchRememberRequest, *, timeout: float | None = None
    ) -> BatchRememberResponse:
        """Remembers up to 100 things of one user in their order, all or none, each by the
        rules of Remember. More than HUB_REMEMBER_RATE allows within an hour are
        INVALID_FIELD.

        Errors include: NOT_FOUND (the user, a session or a message), REQUEST_ID_REUSED,
        MEMORY_RATE.
        """
        return self._transport.call(
            "/hub.v1.MemoryService/BatchRemember", request, BatchRememberResponse, timeout
        )

    def get_memory(
        self, request: GetMemoryRequest, *, timeout: float | None = None
    ) -> GetMemoryResponse:
        """Returns one memory, whatever its status.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.MemoryService/GetMemory", request, GetMemoryResponse, timeout
        )

    def list_memories(
        self, request: ListMemoriesRequest, *, timeout: float | None = None
    ) -> Iterator[Memory]:
        """Lists the memories of a user, newest first: the active ones that have not
        expired, unless other statuses are asked for.

        Errors include: NOT_FOUND (the user), PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.MemoryService/ListMemories", request, ListMemoriesResponse, "memories", timeout
        )

    def get_memory_history(
        self, request: GetMemoryHistoryRequest, *, timeout: float | None = None
    ) -> GetMemoryHistoryResponse:
        """Returns what became of a memory, and of those it superseded or that superseded
        it: every change with what the memory was after it.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.MemoryService/GetMemoryHistory", request, GetMemoryHistoryResponse, timeout
        )

    def recall(self, request: RecallRequest, *, timeout: float | None = None) -> RecallResponse:
        """Finds the memories of a user that fit a query in words or in meaning, best
        first. Memories that are inactive or expired are never returned.

        The score is relevance^a * confidence^b * recency^c. Relevance is that of the
        hybrid search. Confidence is the memory's `current_confidence`. Recency is
        2^(-age / 180 days), the age that since it was stored or last reinforced. The
        weights a, b, c are 1, 1 and .2 unless given; 0 leaves a part out.

        Errors include: NOT_FOUND (the user).
        """
        return self._transport.call(
            "/hub.v1.MemoryService/Recall", request, RecallResponse, timeout
        )

    def update_memory(
        self, request: UpdateMemoryRequest, *, timeout: float | None = None
    ) -> UpdateMemoryResponse:
        """Changes the text, the confidence or the expiry of a memory, whatever its status.
        The text is taken as it is, also when another memory says the same:
        GetMemoryReport shows such pairs.

        Errors include: NOT_FOUND, ETAG_MISMATCH.
        """
        return self._transport.call(
            "/hub.v1.MemoryService/UpdateMemory", request, UpdateMemoryResponse, timeout
        )

    def restore_memory(
        self, request: RestoreMemoryRequest, *, timeout: float | None = None
    ) -> RestoreMemoryResponse:
        """Makes a superseded or forgotten memory active again. The active one of the same
        type and key, if any, is superseded by it. An active memory stays as it is. What
        has expired needs a later `expires_at` first: see UpdateMemory.

        Errors include: NOT_FOUND, MEMORY_STATUS (it is a proposal, rejected or expired).
        """
        return self._transport.call(
            "/hub.v1.MemoryService/RestoreMemory", request, RestoreMemoryResponse, timeout
        )

    def accept_memory(
        self, request: AcceptMemoryRequest, *, timeout: float | None = None
    ) -> AcceptMemoryResponse:
        """Makes a proposal an active memory with the source `user`, which supersedes the
        active one of the same type and key.

        Errors include: NOT_FOUND, MEMORY_STATUS (it is not a proposal, or expired).
        """
        return self._transport.call(
            "/hub.v1.MemoryService/AcceptMemory", request, AcceptMemoryResponse, timeout
        )

    def reject_memory(
        self, request: RejectMemoryRequest, *, timeout: float | None = None
    ) -> RejectMemoryResponse:
        """Turns a proposal down: the same text, inferred again for the same type and key,
        stays rejected.

        Errors include: NOT_FOUND, MEMORY_STATUS (it is not a proposal).
        """
        return self._transport.call(
            "/hub.v1.MemoryService/RejectMemory", request, RejectMemoryResponse, timeout
        )

    def forget_memory(
        self, request: ForgetMemoryRequest, *, timeout: float | None = None
    ) -> ForgetMemoryResponse:
        """Makes a memory inactive; RestoreMemory brings it back. A forgotten memory stays
        as it is.

        Errors include: NOT_FOUND, MEMORY_STATUS (it is not active).
        """
        return self._transport.call(
            "/hub.v1.MemoryService/ForgetMemory", request, ForgetMemoryResponse, timeout
        )

    def delete_memory(
        self, request: DeleteMemoryRequest, *, timeout: float | None = None
    ) -> DeleteMemoryResponse:
        """Deletes a memory for good: its text, embedding and history are gone with the
        answer, from the time travel of `as_of`, too. Deleting it again is NOT_FOUND.

        Errors include: NOT_FOUND.
        """
        return self._transport.call(
            "/hub.v1.MemoryService/DeleteMemory", request, DeleteMemoryResponse, timeout
        )

    def get_memory_report(
        self, request: GetMemoryReportRequest, *, timeout: float | None = None
    ) -> GetMemoryReportResponse:
        """Tells what of a user's memories to clean: (near) duplicates, proposals that
        contradict, low confidence, stale ones, and ones that were never recalled. Looks
        at the newest 5,000 active memories, and returns at most 100 findings of a kind.

        Errors include: NOT_FOUND (the user).
        """
        return self._transport.call(
            "/hub.v1.MemoryService/GetMemoryReport", request, GetMemoryReportResponse, timeout
        )


class AsyncMemoryClient:
    """Keeps what an assistant learned about a user.

    Any method errors with INVALID_FIELD, CREDENTIAL_MISSING, CREDENTIAL_INVALID,
    LEVEL_INSUFFICIENT, SCOPE_INSUFFICIENT, USER_DISABLED, OVERLOADED, DEADLINE_EXCEEDED, UNAVAILABLE
    or INTERNAL; what else it may answer is told beside it.
    """

    def __init__(self, transport: AsyncTransport) -> None:
        """Sends every call through `transport`; HubClient makes one."""
        self._transport = transport

    async def remember(
        self, request: RememberRequest, *, timeout: float | None = None
    ) -> RememberResponse:
        """Remembers something about a user: a new memory, or one more proof of what is
        remembered already. No language model is asked; these rules decide:

        With a `memory_key`, the new memory supersedes the active one of the same user,
        type and key: that one is kept, inactive, with `superseded_by`. The same text
        reinforces it instead. What the assistant inferred never supersedes what the
        user or a system said: it is kept, inactive, as a proposal (AcceptMemory,
        RejectMemory); one proposal for a key at a time, the newest.

        Keys are equal to the letter: `Drink` is another key than `drink`. A text with a
        key is compared with those of its key alone, and none with those of other types;
        so equal ones may stand beside each other, which GetMemoryReport shows.

        Without a key, a text that is remembered in the same type already, active and
        not expired, reinforces that memory. It is the same text when it is equal, or
        when its embedding has a cosine of .95 (HUB_NEAR_DUPLICATE) or more and one of
        the two only leaves out the definite article where the other has it, in the
        user's language: en, de, fr, es, it, nl or pt. All else that differs is new, so
        that nothing that was said is lost; GetMemoryReport shows what is alike.

        Texts are equal that differ in nothing but case, spaces, quotes, parentheses and
        the marks . , ; : ! and …, unless one of `.`, `,` and `:` stands directly before
        a letter or digit (ann.lee@x.org, 3.5), or several marks stand by themselves, as
        a smiley does. Any other character counts: C is not C++, -5 is not 5.

        To reinforce counts one up, keeps the later expiry, takes `user` as the source
        if the user said it now, and raises the confidence c to c + (1 - c) * n / 2,
        with n the confidence of what was said. One message proves a thing once only.
        What was rejected and is inferred again stays rejected.

        Writes of one user's memories take their turns, so all of this holds among
        callers, too. Every Recall that begins after the answer sees it.

        Errors include: NOT_FOUND (the user, the session or the message),
        REQUEST_ID_REUSED, MEMORY_RATE.
        """
        return await self._transport.call(
            "/hub.v1.MemoryService/Remember", request, RememberResponse, timeout
        )

    async def batch_remember(
        self, request: BatchRememberRequest, *, timeout: float | None = None
    ) -> BatchRememberResponse:
        """Remembers up to 100 things of one user in their order, all or none, each by the
        rules of Remember. More than HUB_REMEMBER_RATE allows within an hour are
        INVALID_FIELD.

        Errors include: NOT_FOUND (the user, a session or a message), REQUEST_ID_REUSED,
        MEMORY_RATE.
        """
        return await self._transport.call(
            "/hub.v1.MemoryService/BatchRemember", request, BatchRememberResponse, timeout
        )

    async def get_memory(
        self, request: GetMemoryRequest, *, timeout: float | None = None
    ) -> GetMemoryResponse:
        """Returns one memory, whatever its status.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.MemoryService/GetMemory", request, GetMemoryResponse, timeout
        )

    def list_memories(
        self, request: ListMemoriesRequest, *, timeout: float | None = None
    ) -> AsyncIterator[Memory]:
        """Lists the memories of a user, newest first: the active ones that have not
        expired, unless other statuses are asked for.

        Errors include: NOT_FOUND (the user), PAGE_TOKEN_INVALID.
        """
        return self._transport.pages(
            "/hub.v1.MemoryService/ListMemories", request, ListMemoriesResponse, "memories", timeout
        )

    async def get_memory_history(
        self, request: GetMemoryHistoryRequest, *, timeout: float | None = None
    ) -> GetMemoryHistoryResponse:
        """Returns what became of a memory, and of those it superseded or that superseded
        it: every change with what the memory was after it.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.MemoryService/GetMemoryHistory", request, GetMemoryHistoryResponse, timeout
        )

    async def recall(
        self, request: RecallRequest, *, timeout: float | None = None
    ) -> RecallResponse:
        """Finds the memories of a user that fit a query in words or in meaning, best
        first. Memories that are inactive or expired are never returned.

        The score is relevance^a * confidence^b * recency^c. Relevance is that of the
        hybrid search. Confidence is the memory's `current_confidence`. Recency is
        2^(-age / 180 days), the age that since it was stored or last reinforced. The
        weights a, b, c are 1, 1 and .2 unless given; 0 leaves a part out.

        Errors include: NOT_FOUND (the user).
        """
        return await self._transport.call(
            "/hub.v1.MemoryService/Recall", request, RecallResponse, timeout
        )

    async def update_memory(
        self, request: UpdateMemoryRequest, *, timeout: float | None = None
    ) -> UpdateMemoryResponse:
        """Changes the text, the confidence or the expiry of a memory, whatever its status.
        The text is taken as it is, also when another memory says the same:
        GetMemoryReport shows such pairs.

        Errors include: NOT_FOUND, ETAG_MISMATCH.
        """
        return await self._transport.call(
            "/hub.v1.MemoryService/UpdateMemory", request, UpdateMemoryResponse, timeout
        )

    async def restore_memory(
        self, request: RestoreMemoryRequest, *, timeout: float | None = None
    ) -> RestoreMemoryResponse:
        """Makes a superseded or forgotten memory active again. The active one of the same
        type and key, if any, is superseded by it. An active memory stays as it is. What
        has expired needs a later `expires_at` first: see UpdateMemory.

        Errors include: NOT_FOUND, MEMORY_STATUS (it is a proposal, rejected or expired).
        """
        return await self._transport.call(
            "/hub.v1.MemoryService/RestoreMemory", request, RestoreMemoryResponse, timeout
        )

    async def accept_memory(
        self, request: AcceptMemoryRequest, *, timeout: float | None = None
    ) -> AcceptMemoryResponse:
        """Makes a proposal an active memory with the source `user`, which supersedes the
        active one of the same type and key.

        Errors include: NOT_FOUND, MEMORY_STATUS (it is not a proposal, or expired).
        """
        return await self._transport.call(
            "/hub.v1.MemoryService/AcceptMemory", request, AcceptMemoryResponse, timeout
        )

    async def reject_memory(
        self, request: RejectMemoryRequest, *, timeout: float | None = None
    ) -> RejectMemoryResponse:
        """Turns a proposal down: the same text, inferred again for the same type and key,
        stays rejected.

        Errors include: NOT_FOUND, MEMORY_STATUS (it is not a proposal).
        """
        return await self._transport.call(
            "/hub.v1.MemoryService/RejectMemory", request, RejectMemoryResponse, timeout
        )

    async def forget_memory(
        self, request: ForgetMemoryRequest, *, timeout: float | None = None
    ) -> ForgetMemoryResponse:
        """Makes a memory inactive; RestoreMemory brings it back. A forgotten memory stays
        as it is.

        Errors include: NOT_FOUND, MEMORY_STATUS (it is not active).
        """
        return await self._transport.call(
            "/hub.v1.MemoryService/ForgetMemory", request, ForgetMemoryResponse, timeout
        )

    async def delete_memory(
        self, request: DeleteMemoryRequest, *, timeout: float | None = None
    ) -> DeleteMemoryResponse:
        """Deletes a memory for good: its text, embedding and history are gone with the
        answer, from the time travel of `as_of`, too. Deleting it again is NOT_FOUND.

        Errors include: NOT_FOUND.
        """
        return await self._transport.call(
            "/hub.v1.MemoryService/DeleteMemory", request, DeleteMemoryResponse, timeout
        )

    async def get_memory_report(
        self, request: GetMemoryReportRequest, *, timeout: float | None = None
    ) -> GetMemoryReportResponse:
        """Tells what of a user's memories to clean: (near) duplicates, proposals that
        contradict, low confidence, stale ones, and ones that were never recalled. Looks
        at the newest 5,000 active memories, and returns at most 100 findings of a kind.

        Errors include: NOT_FOUND (the user).
        """
        return await self._transport.call(
            "/hub.v1.MemoryService/GetMemoryReport", request, GetMemoryReportResponse, timeout
        )
