"""Retried creations: one row, one answer, whatever happened in between."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from psycopg import sql

from hub_client import AsyncHubClient
from hub_client.errors import (
    EmailTakenError,
    InternalError,
    InvalidFieldError,
    RequestIdReusedError,
    SessionLimitError,
    UserDisabledError,
)
from hub_client.v1 import (
    AppendMessageRequest,
    CreateSessionRequest,
    CreateUserRequest,
    IngestDocumentRequest,
    MemoryType,
    RememberRequest,
    Role,
    UpdateUserConfigRequest,
    User,
    UserConfig,
)
from hub_server.idempotency import NO_USER
from tests.integration.test_database import rewritten, until
from tests.support import Hub, Tenant, running_hub

_FACT = MemoryType.MEMORY_TYPE_FACT


@dataclass(frozen=True)
class Creation:
    """A method that creates: how it is called, and where its rows are."""

    name: str
    table: str
    requests: Callable[[str, str], tuple[Message, Message]]
    """For a user and a request id: a request, and one of other content."""
    call: Callable[[AsyncHubClient, Any], Awaitable[Message]]
    change: str
    """What changes the row afterwards."""

    async def first(self, client: AsyncHubClient, user: User, request_id: str) -> Message:
        """Make the call."""
        return await self.call(client, self.requests(user.user_id, request_id)[0])

    async def other(self, client: AsyncHubClient, user: User, request_id: str) -> Message:
        """Make the call with other content."""
        return await self.call(client, self.requests(user.user_id, request_id)[1])

    def rows(self, tenant: Tenant) -> int:
        """Return how many rows the tenant has, beside the user the tests begin with."""
        query = sql.SQL("SELECT count(*) FROM {} WHERE tenant_id = %s")
        text = query.format(sql.Identifier(self.table)).as_string()
        return int(tenant.hub.sql(text, tenant.tenant_id)[0][0]) - (self.table == "users")


def _session_request(user_id: str, name: str, request_id: str) -> CreateSessionRequest:
    return CreateSessionRequest(
        user_id=user_id, session_title="t", model_name=name, request_id=request_id
    )


_CREATE_USER = Creation(
    "CreateUser",
    "users",
    lambda user_id, request_id: (
        CreateUserRequest(email=f"new{user_id}@example.org", request_id=request_id),
        CreateUserRequest(email=f"other{user_id}@example.org", request_id=request_id),
    ),
    lambda client, request: client.identity.create_user(request),
    "UPDATE users SET display_name = 'changed', is_active = false, updated_at = now()",
)
_CREATE_SESSION = Creation(
    "CreateSession",
    "chat_sessions",
    lambda user_id, request_id: (
        # On the wire the same bytes as those of IngestDocument below.
        _session_request(user_id, "one", request_id),
        _session_request(user_id, "other", request_id),
    ),
    lambda client, request: client.chat.create_session(request),
    "UPDATE chat_sessions SET session_title = 'changed', is_active = false, ended_at = now()",
)
_REMEMBER = Creation(
    "Remember",
    "memory_store",
    lambda user_id, request_id: (
        RememberRequest(
            user_id=user_id, memory_type=_FACT, memory_content="one", request_id=request_id
        ),
        RememberRequest(
            user_id=user_id, memory_type=_FACT, memory_content="other", request_id=request_id
        ),
    ),
    lambda client, request: client.memory.remember(request),
    "UPDATE memory_store SET memory_content = 'changed', status = 'forgotten', expires_at = now()",
)
_INGEST = Creation(
    "IngestDocument",
    "documents",
    lambda user_id, request_id: (
        IngestDocumentRequest(
            user_id=user_id, title="t", text="one", request_id=request_id, allow_duplicate=True
        ),
        IngestDocumentRequest(
            user_id=user_id, title="t", text="other", request_id=request_id, allow_duplicate=True
        ),
    ),
    lambda client, request: client.knowledge.ingest_document(request),
    "UPDATE documents SET title = 'changed', status = 'ready', chunk_count = 3, updated_at = now()",
)
_OF_USERS = (_CREATE_SESSION, _REMEMBER, _INGEST)
_ALL = (_CREATE_USER, *_OF_USERS)


def _named(creation: Creation) -> str:
    return creation.name


every_creation = pytest.mark.parametrize("creation", _ALL, ids=_named)
every_creation_of_users = pytest.mark.parametrize("creation", _OF_USERS, ids=_named)


@pytest.fixture(scope="module")
async def second_hub(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hub]:
    """Another hub over the database of the first: its calls meet the first's in Postgres only."""
    async with running_hub(hub.owner_url, tmp_path_factory.mktemp("second")) as second:
        yield second


@pytest.fixture
async def user(tenant: Tenant) -> User:
    """The only user of the tenant."""
    return await tenant.new_user()


@every_creation
async def test_a_retry_returns_the_first_answer_though_the_row_changed(
    tenant: Tenant, user: User, creation: Creation
) -> None:
    """Retries one after another answer alike, also when what they created is different now."""
    first = await creation.first(tenant.client, user, "r")
    assert await creation.first(tenant.client, user, "r") == first
    changed = f"{creation.change} WHERE tenant_id = %s AND user_id <> ALL (%s::uuid[])"
    spared = [user.user_id] if creation is _CREATE_USER else []
    # In a thread: the hub, on this loop, may hold the row that is to be changed.
    await asyncio.to_thread(tenant.hub.sql, changed, tenant.tenant_id, spared)
    assert await creation.first(tenant.client, user, "r") == first
    assert creation.rows(tenant) == 1


@every_creation
async def test_16_retries_at_once_in_two_hubs_create_one_row(
    tenant: Tenant, second_hub: Hub, user: User, creation: Creation
) -> None:
    """The same call 16 times at once creates once, and all get the same answer."""
    clients = [tenant.client, second_hub.client(tenant.key)] * 8
    answers = await asyncio.gather(*(creation.first(client, user, "r") for client in clients))
    assert answers == [answers[0]] * 16
    assert creation.rows(tenant) == 1


@every_creation
async def test_the_same_id_with_other_content_is_refused(
    tenant: Tenant, user: User, creation: Creation
) -> None:
    """A spent id creates nothing else, one after another or at once."""
    answers = await asyncio.gather(
        creation.first(tenant.client, user, "r"),
        creation.other(tenant.client, user, "r"),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, RequestIdReusedError) for answer in answers) == 1
    refused = creation.first if isinstance(answers[0], Exception) else creation.other
    with pytest.raises(RequestIdReusedError):
        await refused(tenant.client, user, "r")
    assert creation.rows(tenant) == 1


@every_creation
async def test_calls_without_an_id_or_with_other_ids_create_each_for_itself(
    tenant: Tenant, user: User, creation: Creation
) -> None:
    """Only the id makes a retry: the same content under two ids is two rows."""
    await creation.first(tenant.client, user, "one")
    if creation is _CREATE_USER:
        with pytest.raises(EmailTakenError):
            await creation.first(tenant.client, user, "two")
    else:
        # What is remembered twice is one memory: see test_remembering.
        call = creation.other if creation is _REMEMBER else creation.first
        await call(tenant.client, user, "two")
        assert creation.rows(tenant) == 2


@every_creation
async def test_an_id_is_free_again_after_24_hours(
    tenant: Tenant, user: User, creation: Creation
) -> None:
    """A younger id answers its retries; an older one may be spent on other content."""
    first = await creation.first(tenant.client, user, "r")
    _age(tenant, "23:59:00")
    assert await creation.first(tenant.client, user, "r") == first
    _age(tenant, "24:00:01")
    other = await creation.other(tenant.client, user, "r")
    assert other != first
    assert await creation.other(tenant.client, user, "r") == other
    assert creation.rows(tenant) == 2


@pytest.mark.parametrize(
    ("first", "second"),
    list(permutations((*_OF_USERS, None), 2)),
    ids=lambda creation: creation.name if creation else "AppendMessage",
)
async def test_an_id_spent_by_one_method_is_refused_by_another(
    tenant: Tenant, user: User, first: Creation | None, second: Creation | None
) -> None:
    """The ids of a user are one set for all methods."""
    session = await tenant.new_session(user, request_id="another")

    async def call(creation: Creation | None) -> None:
        if creation:
            await creation.first(tenant.client, user, "r")
        else:
            await tenant.client.chat.append_message(
                AppendMessageRequest(
                    session_id=session.session_id, role=Role.ROLE_USER, request_id="r"
                )
            )

    await call(first)
    with pytest.raises(RequestIdReusedError):
        await call(second)
    await call(first)


async def test_the_ids_of_two_users_and_of_their_creation_are_apart(tenant: Tenant) -> None:
    """One id serves the creation of a user and a call for each of two users."""
    users = [(await tenant.new_user(request_id=name)) for name in ("r", "s")]
    sessions = [await tenant.new_session(user, request_id="r") for user in users]
    assert sessions[0].session_id != sessions[1].session_id
    assert [session.user_id for session in sessions] == [user.user_id for user in users]


@pytest.mark.parametrize("creation", [_CREATE_SESSION, _INGEST], ids=_named)
async def test_metadata_like_the_form_of_a_stored_answer_does_no_harm(
    tenant: Tenant, user: User, creation: Creation
) -> None:
    """What a caller keeps comes back untouched in the first answer and in that of a retry."""
    metadata = {
        "times": {"created_at": "2001-01-01T00:00:00+00:00", "nonsense": "x"},
        "rest": {"session_id": "mine", "user_id": None, "metadata": {"times": {}}},
        "created_at": "2001-01-01T00:00:00+00:00",
        "answer": '{"times": {}, "rest": {}}',
    }
    request: Any = creation.requests(user.user_id, "r")[0]
    request.metadata.update(metadata)
    first = await creation.call(tenant.client, request)
    assert await creation.call(tenant.client, request) == first
    kept: Any = getattr(first, "session" if creation is _CREATE_SESSION else "document")
    assert kept.metadata == request.metadata


@every_creation
@pytest.mark.parametrize("broken", ["the row", "the answer"])
async def test_a_call_that_breaks_midway_leaves_no_row_and_the_id_free(
    tenant: Tenant, user: User, creation: Creation, broken: str
) -> None:
    """When the row or its answer cannot be written, neither is, and the id may be spent anew."""
    statements = {
        "the row": rf"(WITH changed AS \s*\()?INSERT INTO {creation.table} ",
        "the answer": "UPDATE request_ids SET ",
    }
    with rewritten(f"^{statements[broken]}", "nonsense ") as changed:
        with pytest.raises(InternalError):
            await creation.first(tenant.client, user, "r")
        assert changed
    assert creation.rows(tenant) == 0
    await creation.other(tenant.client, user, "r")
    assert creation.rows(tenant) == 1


@every_creation_of_users
async def test_a_call_refused_for_a_disabled_user_leaves_the_id_free(
    tenant: Tenant, user: User, creation: Creation
) -> None:
    """Once the user is enabled again the id may be spent, even on other content."""
    switch = "UPDATE users SET is_active = NOT is_active WHERE user_id = %s"
    tenant.hub.sql(switch, user.user_id)
    with pytest.raises(UserDisabledError):
        await creation.first(tenant.client, user, "r")
    tenant.hub.sql(switch, user.user_id)
    await creation.other(tenant.client, user, "r")
    assert creation.rows(tenant) == 1


async def test_a_call_refused_by_its_rules_leaves_the_id_free(tenant: Tenant, user: User) -> None:
    """A taken email, a reached limit and a time gone by spend no id."""
    with pytest.raises(EmailTakenError):
        await tenant.new_user(email=user.email, request_id="r")
    await tenant.new_user(request_id="r")
    for limit, refusal in ((0, SessionLimitError), (1, None)):
        config = UserConfig(user_id=user.user_id, max_sessions=limit)
        await tenant.client.identity.update_user_config(UpdateUserConfigRequest(config=config))
        if refusal:
            with pytest.raises(refusal):
                await _CREATE_SESSION.first(tenant.client, user, "s")
        else:
            await _CREATE_SESSION.other(tenant.client, user, "s")
    request: Any = _REMEMBER.requests(user.user_id, "m")[0]
    request.expires_at.FromSeconds(1)
    with pytest.raises(InvalidFieldError):
        await tenant.client.memory.remember(request)
    await _REMEMBER.other(tenant.client, user, "m")


async def test_a_retry_after_the_memory_has_expired_is_still_a_retry(
    tenant: Tenant, user: User
) -> None:
    """That `expires_at` lies in the past by now does not make the retry a bad request."""
    expires_at = Timestamp()
    expires_at.FromDatetime(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1))
    request = RememberRequest(
        user_id=user.user_id,
        memory_type=_FACT,
        memory_content="soon over",
        expires_at=expires_at,
        request_id="r",
    )
    first = await tenant.client.memory.remember(request)
    over = "SELECT 1 WHERE %s < clock_timestamp()"
    await until(lambda: tenant.hub.sql(over, expires_at.ToDatetime(dt.UTC)))
    assert await tenant.client.memory.remember(request) == first


async def test_no_password_is_kept_with_an_answer(tenant: Tenant) -> None:
    """What is stored for a retry of CreateUser bears neither the password nor its hash."""
    await tenant.new_user(password="correct horse battery", request_id="r")
    stored = tenant.hub.sql(
        "SELECT t::text FROM request_ids t WHERE tenant_id = %s AND user_id = %s",
        tenant.tenant_id,
        NO_USER,
    )
    assert len(stored) == 1
    assert "correct horse" not in stored[0][0]
    assert "bcrypt" not in stored[0][0]


def _age(tenant: Tenant, age: str) -> None:
    """Make the request ids of a tenant as old as that."""
    statement = "UPDATE request_ids SET created_at = now() - %s::interval WHERE tenant_id = %s"
    tenant.hub.sql(statement, age, tenant.tenant_id)
