"""One valid request for each method, over rows that exist."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from google.protobuf import struct_pb2, timestamp_pb2
from google.protobuf.message import Message

from hub_client.v1 import (
    AppendMessageRequest,
    CreateSessionRequest,
    CreateUserRequest,
    DeleteDocumentRequest,
    EndSessionRequest,
    GetDocumentRequest,
    GetMemoryRequest,
    GetSessionRequest,
    GetUserConfigRequest,
    GetUserRequest,
    IngestDocumentRequest,
    ListDocumentsRequest,
    ListMemoriesRequest,
    ListMessagesRequest,
    ListSessionsRequest,
    ListUsersRequest,
    LoginRequest,
    MemoryType,
    RecallRequest,
    RememberRequest,
    Role,
    SearchRequest,
    UpdateUserConfigRequest,
    UserConfig,
)
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
    # These two are used up by a valid request.
    open_session_id: str
    spare_document_id: str


def sample(name: str, world: World) -> Message:
    """Return a valid request of a method."""
    return _SAMPLES[name](world)


async def make_world(tenant: Tenant) -> World:
    """Make one row of each kind, and a second of those that a valid request uses up."""
    client = tenant.client
    user = await tenant.new_user(password=PASSWORD, display_name="Ada")
    session, other = await tenant.new_session(user), await tenant.new_session(user)
    memory = await client.memory.remember(_remember(user.user_id))
    document = await tenant.ingest(user, "Tea", "Tea is made of leaves.")
    spare = await tenant.ingest(user, "Coffee", "Coffee is made of beans.")
    return World(
        tenant=tenant,
        email=user.email,
        user_id=user.user_id,
        session_id=session.session_id,
        memory_id=memory.memory.memory_id,
        document_id=document.document_id,
        open_session_id=other.session_id,
        spare_document_id=spare.document_id,
    )


def _metadata() -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    struct.update({"colour": "green"})
    return struct


def _new_user(_: World) -> Message:
    return CreateUserRequest(
        email=f"{uuid.uuid4().hex}@example.org", display_name="Grace", request_id=uuid.uuid4().hex
    )


def _append(world: World) -> Message:
    return AppendMessageRequest(
        session_id=world.session_id,
        role=Role.ROLE_USER,
        content="Hello",
        token_count=1,
        model_name="a model",
        model_response_time_ms=5,
        metadata=_metadata(),
    )


def _remember(user_id: str) -> RememberRequest:
    return RememberRequest(
        user_id=user_id,
        memory_type=MemoryType.MEMORY_TYPE_FACT,
        memory_content="Ada drinks tea.",
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
    )


_SAMPLES: Final[dict[str, Callable[[World], Message]]] = {
    "CreateUser": _new_user,
    "GetUser": lambda world: GetUserRequest(user_id=world.user_id),
    "ListUsers": lambda _: ListUsersRequest(page_size=1),
    "Login": lambda world: LoginRequest(email=world.email, password=PASSWORD),
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
    "ListMessages": lambda world: ListMessagesRequest(session_id=world.session_id),
    "EndSession": lambda world: EndSessionRequest(session_id=world.open_session_id),
    "Remember": lambda world: _remember(world.user_id),
    "GetMemory": lambda world: GetMemoryRequest(memory_id=world.memory_id),
    "ListMemories": lambda world: ListMemoriesRequest(user_id=world.user_id),
    "Recall": lambda world: RecallRequest(user_id=world.user_id, query="What does Ada drink?"),
    "IngestDocument": _ingest,
    "GetDocument": lambda world: GetDocumentRequest(document_id=world.document_id),
    "ListDocuments": lambda world: ListDocumentsRequest(user_id=world.user_id),
    "DeleteDocument": lambda world: DeleteDocumentRequest(document_id=world.spare_document_id),
    "Search": lambda world: SearchRequest(
        user_id=world.user_id, query="leaves", session_id=world.session_id
    ),
}
