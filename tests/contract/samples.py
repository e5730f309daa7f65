"""One valid request for each method, over rows that exist."""

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import struct_pb2, timestamp_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from hub_client.v1 import (
    AcceptMemoryRequest,
    ActivateTenantRequest,
    ActivateUserRequest,
    AddChunksRequest,
    AppendMessageRequest,
    ArchiveSessionRequest,
    BatchAppendMessagesRequest,
    BatchMessage,
    BatchRememberRequest,
    BatchSearchRequest,
    BuildContextRequest,
    CancelReembeddingRequest,
    ChangePasswordRequest,
    CheckIndexRequest,
    Chunking,
    ConfirmPasswordResetRequest,
    CreateApiKeyRequest,
    CreatePasswordResetRequest,
    CreateSessionRequest,
    CreateTenantRequest,
    CreateUserRequest,
    DeactivateTenantRequest,
    DeactivateUserRequest,
    DeleteDocumentRequest,
    DeleteMemoryRequest,
    DeleteSessionRequest,
    DeleteUserRequest,
    EndSessionRequest,
    EraseTenantRequest,
    EraseUserRequest,
    ExportUserRequest,
    ForgetMemoryRequest,
    ForkSessionRequest,
    GetContextRecordRequest,
    GetDefaultConfigRequest,
    GetDocumentRequest,
    GetErasureRequest,
    GetIndexStatsRequest,
    GetMemoryHistoryRequest,
    GetMemoryReportRequest,
    GetMemoryRequest,
    GetMessageRequest,
    GetReembeddingRequest,
    GetSessionRequest,
    GetTenantErasureRequest,
    GetTenantRequest,
    GetTenantSettingsRequest,
    GetUsageRequest,
    GetUserConfigRequest,
    GetUserRequest,
    IndexKind,
    IngestDocumentRequest,
    IntrospectTokenRequest,
    ListApiKeysRequest,
    ListAuditEventsRequest,
    ListChunksRequest,
    ListDocumentsRequest,
    ListLoginsRequest,
    ListMemoriesRequest,
    ListMessagesRequest,
    ListRetrievalsRequest,
    ListSessionsRequest,
    ListTenantsRequest,
    ListUsageRequest,
    ListUsersRequest,
    LoginRequest,
    LogoutRequest,
    MemorySource,
    MemoryType,
    MessageSearch,
    NewMemory,
    OwnChunk,
    RebuildIndexRequest,
    RecallRequest,
    RedactMessageRequest,
    ReembedSpaceRequest,
    RefreshTokenRequest,
    RejectMemoryRequest,
    RememberRequest,
    ReopenSessionRequest,
    ReserveTokensRequest,
    RestoreMemoryRequest,
    RetryDocumentRequest,
    RevokeApiKeyRequest,
    RevokeLoginRequest,
    Role,
    SearchMessagesRequest,
    SearchQuery,
    SearchRequest,
    SettleTokensRequest,
    TenantSettings,
    UnarchiveSessionRequest,
    UndeleteDocumentRequest,
    UndeleteSessionRequest,
    UndeleteUserRequest,
    UpdateDefaultConfigRequest,
    UpdateDocumentRequest,
    UpdateMemoryRequest,
    UpdateSessionRequest,
    UpdateTenantSettingsRequest,
    UpdateUserConfigRequest,
    UpdateUserRequest,
    UploadDocumentRequest,
    User,
    UserConfig,
    WatchDocumentRequest,
    WatchSessionRequest,
    WhoAmIRequest,
    options_pb2,
)
from hub_client.v1.options_pb2 import Level, Scope
from hub_server.identity.secrets import USER_TOKEN
from hub_server.ids import new_id
from tests.contract.breaches import VECTOR
from tests.contract.credentials import issue, operator_of
from tests.contract.imports import first_message
from tests.support import Tenant

PASSWORD: Final = "a correct horse"


@dataclass(frozen=True)
class World:
    """A tenant and the ids of rows in it."""

    tenant: Tenant
    email: str
    user_id: str
    session_id: str
    memory_id: str
    document_id: str
    message_id: str
    reservation_id: str
    login_id: str
    refresh_token: str
    reset_token: str
    api_key_id: str
    token: str
    operator_key: str
    context_id: str
    # What a valid request uses up.
    proposal_ids: tuple[str, str]
    spare_memory_id: str
    open_session_id: str
    spare_reservation_id: str
    spare_document_id: str
    spare_user_id: str
    spare_tenant_id: str
    erased_user_id: str
    erased_tenant_id: str

    def credential(self, method: MethodDescriptor) -> str:
        """Return what a method is called with."""
        if method.GetOptions().Extensions[options_pb2.level] == Level.LEVEL_OPERATOR:
            return self.operator_key
        return self.token if method.name == "Logout" else self.tenant.key


def sample(name: str, world: World) -> Message:
    """Return a valid request of a method."""
    return _SAMPLES[name](world)


async def make_world(tenant: Tenant, *, with_erased: bool = True) -> World:
    """Make one row of each kind, and a second of those that a valid request uses up.

    Who is erased is made up unless asked for: to erase costs more than all the others.
    """
    client = tenant.client
    await client.identity.update_tenant_settings(_search_words())
    user = await tenant.new_user(password=PASSWORD, display_name="Ada")
    spare_user = await tenant.new_user(password=PASSWORD)
    login = await client.identity.login(LoginRequest(email=user.email, password=PASSWORD))
    reset = await client.identity.create_password_reset(
        CreatePasswordResetRequest(user_id=spare_user.user_id)
    )
    key = await client.identity.create_api_key(_new_key(None))
    session, other = await tenant.new_session(user), await tenant.new_session(user)
    message = await client.chat.append_message(
        AppendMessageRequest(session_id=session.session_id, role=Role.ROLE_USER, content="Hello")
    )
    memory, spare_memory, *proposals = [
        (await client.memory.remember(one)).memory.memory_id for one in _memories(user.user_id)
    ]
    reserve = ReserveTokensRequest(user_id=user.user_id, tokens=1)
    reserved, spare_reserved = [await client.chat.reserve_tokens(reserve) for _ in range(2)]
    document = await tenant.ingest(user, "Tea", "Tea is made of leaves.")
    built = await client.chat.build_context(
        BuildContextRequest(session_id=session.session_id, token_budget=100)
    )
    spare = await tenant.ingest(user, "Coffee", "Coffee is made of beans.")
    return World(
        tenant=tenant,
        email=user.email,
        user_id=user.user_id,
        session_id=session.session_id,
        memory_id=memory,
        message_id=message.message.message_id,
        context_id=built.context.context_id,
        proposal_ids=(proposals[1], proposals[3]),
        spare_memory_id=spare_memory,
        document_id=document.document_id,
        reservation_id=reserved.reservation.reservation_id,
        login_id=login.login_id,
        refresh_token=login.refresh_token,
        reset_token=reset.reset_token,
        api_key_id=key.api_key.api_key_id,
        token=await issue(tenant, USER_TOKEN, user),
        operator_key=await asyncio.to_thread(operator_of, tenant.hub),
        open_session_id=other.session_id,
        spare_reservation_id=spare_reserved.reservation.reservation_id,
        spare_user_id=spare_user.user_id,
        spare_tenant_id=(await tenant.hub.new_tenant()).tenant_id,
        spare_document_id=spare.document_id,
        erased_user_id=await _erased_user(tenant) if with_erased else new_id(),
        erased_tenant_id=await _erased_tenant(tenant) if with_erased else new_id(),
    )


async def _erased_user(tenant: Tenant) -> str:
    user_id = (await tenant.new_user()).user_id
    await tenant.client.identity.erase_user(EraseUserRequest(user_id=user_id))
    return user_id


async def _erased_tenant(tenant: Tenant) -> str:
    tenant_id = (await tenant.hub.new_tenant()).tenant_id
    operator = tenant.hub.client(await asyncio.to_thread(operator_of, tenant.hub))
    await operator.identity.erase_tenant(EraseTenantRequest(tenant_id=tenant_id))
    return tenant_id


def _metadata() -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    struct.update({"colour": "green"})
    return struct


def _new_user(_: World) -> Message:
    return CreateUserRequest(
        email=f"{uuid.uuid4().hex}@example.org", display_name="Grace", request_id=uuid.uuid4().hex
    )


def _new_key(_: World | None) -> CreateApiKeyRequest:
    return CreateApiKeyRequest(
        name="A program",
        scopes=[Scope.SCOPE_CHAT_READ],
        expires_at=timestamp_pb2.Timestamp(seconds=4_000_000_000),
    )


def _search_words(_: World | None = None) -> UpdateTenantSettingsRequest:
    settings = TenantSettings(message_search=MessageSearch.MESSAGE_SEARCH_WORDS)
    return UpdateTenantSettingsRequest(tenant_settings=settings)


def _append(world: World) -> Message:
    return AppendMessageRequest(
        session_id=world.session_id,
        role=Role.ROLE_USER,
        content="Hello",
        token_count=1,
        model_name="a model",
        model_response_time_ms=5,
        metadata=_metadata(),
        reservation_id=world.reservation_id,
    )


def _batch(world: World) -> Message:
    message = BatchMessage(
        role=Role.ROLE_USER,
        content="Hello",
        token_count=1,
        model_name="a model",
        model_response_time_ms=5,
        metadata=_metadata(),
    )
    return BatchAppendMessagesRequest(
        session_id=world.session_id,
        messages=[message, message],
        reservation_id=world.reservation_id,
    )


def _memories(user_id: str) -> list[RememberRequest]:
    """Return what makes a memory, a spare one, and twice a memory with a proposal against it."""
    inferred = MemorySource.MEMORY_SOURCE_INFERRED
    about: dict[str, Any] = {"user_id": user_id, "memory_type": MemoryType.MEMORY_TYPE_FACT}
    spoken = [("cup", "A blue cup."), ("pot", "A tin pot.")]
    guessed = [("cup", "A white mug."), ("pot", "A copper kettle.")]
    return [
        RememberRequest(memory_content="Ada reads a lot.", **about),
        RememberRequest(memory_content="Ada owns a bicycle.", **about),
        *(
            RememberRequest(memory_key=key, memory_content=text, source=source, **about)
            for pair in zip(spoken, guessed, strict=True)
            for (key, text), source in zip(
                pair, (MemorySource.MEMORY_SOURCE_USER, inferred), strict=True
            )
        ),
    ]


def _remember(world: World) -> RememberRequest:
    return RememberRequest(
        user_id=world.user_id,
        memory_type=MemoryType.MEMORY_TYPE_FACT,
        memory_content="Ada drinks tea.",
        memory_key="drink.favourite",
        session_id=world.session_id,
        message_id=world.message_id,
        confidence_score=0.5,
        expires_at=timestamp_pb2.Timestamp(seconds=4_000_000_000),
    )


def _ingest(world: World) -> Message:
    return IngestDocumentRequest(
        user_id=world.user_id,
        title="Milk",
        text="Milk comes from cows.",
        source_url="https://example.org/milk",
        author="Ada",
        metadata=_metadata(),
        chunking=Chunking(max_tokens=2048),
    )


def _add_chunks(world: World) -> Message:
    chunk = OwnChunk(content="Milk comes from cows.", embedding=VECTOR, metadata=_metadata())
    return AddChunksRequest(
        user_id=world.user_id,
        title="Milk",
        source_url="https://example.org/milk",
        author="Ada",
        metadata=_metadata(),
        # As often as it is called the dimension may be another one.
        embedding_model=uuid.uuid4().hex,
        chunks=[chunk],
    )


def _upload(world: World) -> Message:
    return UploadDocumentRequest(
        user_id=world.user_id,
        title="Oats",
        file_name="oats.md",
        source_url="https://example.org/oats",
        author="Ada",
        metadata=_metadata(),
        chunking=Chunking(max_tokens=2048),
        data=b"Oats grow on fields.",
    )


_SAMPLES: Final[dict[str, Callable[[World], Message]]] = {
    "CreateUser": _new_user,
    "GetUser": lambda world: GetUserRequest(user_id=world.user_id),
    "ListUsers": lambda _: ListUsersRequest(page_size=1),
    "Login": lambda world: LoginRequest(email=world.email, password=PASSWORD),
    "WhoAmI": lambda _: WhoAmIRequest(),
    "UpdateUser": lambda world: UpdateUserRequest(
        user=User(user_id=world.spare_user_id, display_name="Alan")
    ),
    "DeactivateUser": lambda world: DeactivateUserRequest(user_id=world.spare_user_id),
    "ActivateUser": lambda world: ActivateUserRequest(user_id=world.spare_user_id),
    "DeleteUser": lambda world: DeleteUserRequest(user_id=world.spare_user_id),
    "UndeleteUser": lambda world: UndeleteUserRequest(user_id=world.spare_user_id),
    "ExportUser": lambda world: ExportUserRequest(user_id=world.user_id),
    "EraseUser": lambda world: EraseUserRequest(user_id=world.erased_user_id),
    "GetErasure": lambda world: GetErasureRequest(user_id=world.erased_user_id),
    "EraseTenant": lambda world: EraseTenantRequest(tenant_id=world.erased_tenant_id),
    "GetTenantErasure": lambda world: GetTenantErasureRequest(tenant_id=world.erased_tenant_id),
    "ImportUser": lambda _: first_message(),
    "RefreshToken": lambda world: RefreshTokenRequest(refresh_token=world.refresh_token),
    "Logout": lambda _: LogoutRequest(),
    "ListLogins": lambda world: ListLoginsRequest(user_id=world.user_id),
    "RevokeLogin": lambda world: RevokeLoginRequest(login_id=world.login_id),
    "IntrospectToken": lambda world: IntrospectTokenRequest(token=world.token),
    "ChangePassword": lambda world: ChangePasswordRequest(
        user_id=world.user_id, old_password=PASSWORD, new_password=PASSWORD
    ),
    "CreatePasswordReset": lambda world: CreatePasswordResetRequest(user_id=world.user_id),
    "ConfirmPasswordReset": lambda world: ConfirmPasswordResetRequest(
        reset_token=world.reset_token, new_password=PASSWORD
    ),
    "GetDefaultConfig": lambda _: GetDefaultConfigRequest(),
    "UpdateDefaultConfig": lambda _: UpdateDefaultConfigRequest(
        config=UserConfig(preferred_language="en")
    ),
    "GetTenantSettings": lambda _: GetTenantSettingsRequest(),
    "UpdateTenantSettings": _search_words,
    "GetUsage": lambda world: GetUsageRequest(user_id=world.user_id),
    "ListUsage": lambda _: ListUsageRequest(page_size=1),
    "CreateApiKey": _new_key,
    "ListApiKeys": lambda _: ListApiKeysRequest(page_size=1),
    "RevokeApiKey": lambda world: RevokeApiKeyRequest(api_key_id=world.api_key_id),
    "ListAuditEvents": lambda _: ListAuditEventsRequest(page_size=1),
    "CreateTenant": lambda _: CreateTenantRequest(name=uuid.uuid4().hex),
    "GetTenant": lambda world: GetTenantRequest(tenant_id=world.tenant.tenant_id),
    "ListTenants": lambda _: ListTenantsRequest(page_size=1),
    "DeactivateTenant": lambda world: DeactivateTenantRequest(tenant_id=world.spare_tenant_id),
    "ActivateTenant": lambda world: ActivateTenantRequest(tenant_id=world.spare_tenant_id),
    "GetUserConfig": lambda world: GetUserConfigRequest(user_id=world.user_id),
    "UpdateUserConfig": lambda world: UpdateUserConfigRequest(
        config=UserConfig(user_id=world.user_id, preferred_language="en")
    ),
    "CreateSession": lambda world: CreateSessionRequest(
        user_id=world.user_id, session_title="Tea", model_name="a model", metadata=_metadata()
    ),
    "GetSession": lambda world: GetSessionRequest(session_id=world.session_id),
    "ListSessions": lambda world: ListSessionsRequest(user_id=world.user_id),
    "AppendMessage": _append,
    "BatchAppendMessages": _batch,
    "ForkSession": lambda world: ForkSessionRequest(session_id=world.session_id),
    "RedactMessage": lambda world: RedactMessageRequest(session_id=world.session_id, seq=1),
    "WatchSession": lambda world: WatchSessionRequest(session_id=world.session_id, from_seq=1),
    "SearchMessages": lambda world: SearchMessagesRequest(
        user_id=world.user_id, query="Hello", session_id=world.session_id
    ),
    "ReserveTokens": lambda world: ReserveTokensRequest(user_id=world.user_id, tokens=1),
    "SettleTokens": lambda world: SettleTokensRequest(reservation_id=world.spare_reservation_id),
    "ListMessages": lambda world: ListMessagesRequest(session_id=world.session_id),
    "ReopenSession": lambda world: ReopenSessionRequest(session_id=world.open_session_id),
    "UpdateSession": lambda world: UpdateSessionRequest(
        session_id=world.session_id, session_title="Tea", metadata=_metadata()
    ),
    "ArchiveSession": lambda world: ArchiveSessionRequest(session_id=world.open_session_id),
    "UnarchiveSession": lambda world: UnarchiveSessionRequest(session_id=world.open_session_id),
    "DeleteSession": lambda world: DeleteSessionRequest(session_id=world.open_session_id),
    "UndeleteSession": lambda world: UndeleteSessionRequest(session_id=world.open_session_id),
    "GetMessage": lambda world: GetMessageRequest(session_id=world.session_id, seq=1),
    "EndSession": lambda world: EndSessionRequest(session_id=world.open_session_id),
    "BuildContext": lambda world: BuildContextRequest(
        session_id=world.session_id, token_budget=100
    ),
    "GetContextRecord": lambda world: GetContextRecordRequest(context_id=world.context_id),
    "Remember": _remember,
    "BatchRemember": lambda world: BatchRememberRequest(
        user_id=world.user_id,
        memories=[
            NewMemory(
                memory_type=MemoryType.MEMORY_TYPE_HABIT,
                memory_content=f"Ada has {what} tea.",
                memory_key="drink.daily",
                session_id=world.session_id,
                message_id=world.message_id,
            )
            for what in ("green", "black")
        ],
    ),
    "GetMemory": lambda world: GetMemoryRequest(memory_id=world.memory_id),
    "ListMemories": lambda world: ListMemoriesRequest(user_id=world.user_id),
    "Recall": lambda world: RecallRequest(user_id=world.user_id, query="What does Ada drink?"),
    "GetMemoryHistory": lambda world: GetMemoryHistoryRequest(memory_id=world.memory_id),
    "UpdateMemory": lambda world: UpdateMemoryRequest(
        memory_id=world.memory_id, memory_content="Ada reads much."
    ),
    "AcceptMemory": lambda world: AcceptMemoryRequest(memory_id=world.proposal_ids[0]),
    "RejectMemory": lambda world: RejectMemoryRequest(memory_id=world.proposal_ids[1]),
    "ForgetMemory": lambda world: ForgetMemoryRequest(memory_id=world.memory_id),
    "RestoreMemory": lambda world: RestoreMemoryRequest(memory_id=world.memory_id),
    "DeleteMemory": lambda world: DeleteMemoryRequest(memory_id=world.spare_memory_id),
    "GetMemoryReport": lambda world: GetMemoryReportRequest(user_id=world.user_id),
    "IngestDocument": _ingest,
    "AddChunks": _add_chunks,
    "UploadDocument": _upload,
    "GetDocument": lambda world: GetDocumentRequest(document_id=world.document_id),
    "ListDocuments": lambda world: ListDocumentsRequest(user_id=world.user_id),
    "UpdateDocument": lambda world: UpdateDocumentRequest(
        document_id=world.document_id,
        author="Ann",
        metadata=_metadata(),
        chunking=Chunking(max_tokens=2048),
    ),
    "UndeleteDocument": lambda world: UndeleteDocumentRequest(document_id=world.document_id),
    "RetryDocument": lambda world: RetryDocumentRequest(document_id=world.document_id),
    "WatchDocument": lambda world: WatchDocumentRequest(document_id=world.document_id),
    "ListChunks": lambda world: ListChunksRequest(document_id=world.document_id),
    "ListRetrievals": lambda world: ListRetrievalsRequest(session_id=world.session_id),
    "DeleteDocument": lambda world: DeleteDocumentRequest(document_id=world.spare_document_id),
    "ReembedSpace": lambda world: ReembedSpaceRequest(
        user_id=world.user_id, embedding_model="wordllama-l2-256"
    ),
    "GetReembedding": lambda world: GetReembeddingRequest(user_id=world.user_id),
    "CancelReembedding": lambda world: CancelReembeddingRequest(user_id=world.user_id),
    "Search": lambda world: SearchRequest(
        user_id=world.user_id, query="leaves", session_id=world.session_id
    ),
    "BatchSearch": lambda world: BatchSearchRequest(
        user_id=world.user_id, queries=[SearchQuery(query="leaves")], session_id=world.session_id
    ),
    "GetIndexStats": lambda world: GetIndexStatsRequest(
        user_id=world.user_id, kind=IndexKind.INDEX_KIND_KNOWLEDGE
    ),
    "CheckIndex": lambda world: CheckIndexRequest(
        user_id=world.user_id, kind=IndexKind.INDEX_KIND_MEMORY
    ),
    "RebuildIndex": lambda world: RebuildIndexRequest(
        user_id=world.user_id, kind=IndexKind.INDEX_KIND_MEMORY
    ),
}
