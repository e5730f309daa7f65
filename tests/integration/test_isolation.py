"""Nobody ever sees another's rows, ids or scores, and can tell no foreign id from a made-up one."""

import datetime as dt
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from psycopg import sql

from hub_client import AsyncHubClient
from hub_client.v1 import (
    ApiKey,
    AppendMessageRequest,
    BuildContextRequest,
    CreateApiKeyRequest,
    CreateSessionRequest,
    IngestDocumentRequest,
    Level,
    MemoryType,
    MessageSearch,
    RememberRequest,
    ReserveTokensRequest,
    Role,
    TenantSettings,
    UpdateTenantSettingsRequest,
    options_pb2,
)
from hub_client.v1.options_pb2 import Scope
from hub_server.caller import Caller
from hub_server.database import metadata
from hub_server.identity.access_repository import AccessRepository
from hub_server.identity.secrets import USER_TOKEN, Secret
from hub_server.ids import new_id
from tests.contract.breaches import VECTOR
from tests.integration.test_database import own_hub, rewritten, token_of
from tests.integration.test_rpc import METHODS, Answer, ask
from tests.support import Hub, Tenant, settled

_FILTERS = (".actor_credential_id", ".ListRetrievalsRequest.message_id")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# One WHERE each: of GetSession, AppendMessage, GetMemory, GetDocument, GetUser and ListUsers.
_FORGOTTEN = (
    r"\bchat_sessions\.tenant_id = %\(tenant_id_1\)s::UUID AND (?=chat_sessions\.session_id)",
    r"\bs\.tenant_id = \$\d+ ::uuid AND (?=s\.session_id = ANY)",
    r"\bmemory_store\.tenant_id = %\(tenant_id_1\)s::UUID AND (?=memory_store\.memory_id)",
    r"\bdocuments\.tenant_id = %\(tenant_id_1\)s::UUID AND (?=documents\.document_id)",
    r"\busers\.tenant_id = %\(tenant_id_1\)s::UUID AND (?=users\.user_id)",
    r"\busers\.tenant_id = %\(tenant_id_1\)s::UUID AND (?=users\.erasure_id)",
)
# What can be called in any order without ending whoever calls; what needs more than an id is
# refused.
_ENDING = (
    "DeactivateUser",
    "DeleteUser",
    "EraseUser",
    "RevokeApiKey",
    "DeactivateTenant",
    "EraseTenant",
    "DeleteSession",
)
_MENDING = [method for name, method in METHODS.items() if name not in _ENDING]
_NOT_MET = {
    "Login": ("LOGIN_FAILED",),
    "ChangePassword": ("LOGIN_FAILED", "INVALID_FIELD"),
    "RefreshToken": ("CREDENTIAL_INVALID",),
    "ConfirmPasswordReset": ("CREDENTIAL_INVALID",),
    "Logout": ("INVALID_FIELD",),
    "UpdateDefaultConfig": ("INVALID_FIELD",),
    "ImportUser": ("INVALID_FIELD",),
    "GetErasure": ("NOT_FOUND",),  # who is not erased has none
    "AddChunks": ("INVALID_FIELD",),
    "AcceptMemory": ("MEMORY_STATUS",),
    "RejectMemory": ("MEMORY_STATUS",),
    "ReembedSpace": ("INVALID_FIELD",),
}
# The score of a memory changes with its age; its relevance does not.
_SCORES = ("vector_score", "word_score")
_QUERY = "Which green tea is brewed in the morning?"
_SEARCHES = ("Recall", "Search", "SearchMessages")
_SAID = ("Good morning.", "Shall I brew green tea?", "Yes, please.")
_REMEMBERED = ("Drinks green tea in the morning.", "Never drinks coffee.", "Lives in Lisbon.")
_KNOWN = (
    ("Brewing tea", "Green tea is brewed at eighty degrees.\n\nBlack tea takes boiling water."),
    ("Mornings", "In the morning most people want something warm to drink."),
)


@dataclass
class Person:
    """A user with a token, all that is theirs, and one id of each kind."""

    tenant: Tenant
    token: str
    ids: dict[str, str]
    rows: frozenset[str]

    def scores(self, hits: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Return what was found with its scores, without the ids."""
        return [
            (
                _text(hit),
                hit.relevance if hasattr(hit, "relevance") else hit.score,
                *(getattr(hit, name, 0.0) for name in _SCORES),
            )
            for hit in hits
        ]


@dataclass
class People:
    """Two users in each of two tenants with identical texts, and how they are reached."""

    hub: Hub
    channel: grpc.aio.Channel
    persons: list[Person]
    alone: list[Any]
    """The scores of the first, seen while nobody else was in the hub."""


@pytest.fixture
async def people(
    request: pytest.FixtureRequest, empty_database: str, tmp_path: Path
) -> AsyncIterator[People]:
    """Four persons in a hub of their own; the parameter is its setting `pooler`."""
    async with AsyncExitStack() as stack:
        pooler = getattr(request, "param", "none")
        hub = await stack.enter_async_context(
            own_hub(empty_database, tmp_path, pooler=pooler, pool_size=2)
        )
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(hub.address))
        tenants = [await hub.new_tenant() for _ in range(2)]
        for tenant in tenants:
            settings = TenantSettings(message_search=MessageSearch.MESSAGE_SEARCH_WORDS)
            await tenant.client.identity.update_tenant_settings(
                UpdateTenantSettingsRequest(tenant_settings=settings)
            )
        first = await _move_in(tenants[0], 0)
        people = People(hub, channel, [first], [])
        people.alone = await _scores(people, first)
        for tenant, number in ((tenants[0], 1), (tenants[1], 0), (tenants[1], 1)):
            people.persons.append(await _move_in(tenant, number))
        yield people


@pytest.mark.parametrize("people", ["none", "transaction"], indirect=True)
async def test_users_with_identical_texts_see_their_own_rows_and_scores_only(
    people: People,
) -> None:
    """Each of four users gets exactly his rows, with the scores he gets when alone in the hub."""
    await assert_isolated(people)


async def test_one_protection_suffices_and_without_both_isolation_is_seen_to_fail(
    people: People,
) -> None:
    """The check above holds with a WHERE removed, holds without row security, fails without both.

    So it can fail, and row security is what stands when a statement forgets its tenant.
    """
    await assert_isolated(people)
    with rewritten("|".join(_FORGOTTEN)) as changed:
        await assert_isolated(people)
    for pattern in _FORGOTTEN:
        assert any(re.search(pattern, before) for before, _ in changed), pattern
    _switch_row_security_off(people.hub)
    await assert_isolated(people)
    for pattern in _FORGOTTEN:
        with rewritten(pattern), pytest.raises(AssertionError):
            await assert_isolated(people)


async def test_every_id_of_another_answers_like_one_that_does_not_exist(people: People) -> None:
    """No call changes anything of another, and each is refused as for an id nobody has.

    Every field of every method that names an id is tried: with a token on another user's, with a
    service key on another tenant's. The same calls with one's own ids are served.
    """
    own, neighbour, foreign, _ = people.persons
    before = _everything_of(people.hub, neighbour, foreign)
    for other in (neighbour, foreign):
        await _assert_foreign_ids_are_unknown(people, own.token, own, other)
    await _assert_foreign_ids_are_unknown(people, own.tenant.key, own, foreign)
    # A key that names one user and the session of another of its tenant.
    for name in ("Search", "SearchMessages"):
        searches = [
            _of(METHODS[name], query=_QUERY, user_id=own.ids["user_id"], session_id=session_id)
            for session_id in (neighbour.ids["session_id"], new_id())
        ]
        answers = [
            await ask(people.channel, METHODS[name], one, own.tenant.key) for one in searches
        ]
        assert answers[0].reason == "NOT_FOUND"
        assert answers[0] == answers[1]
    assert _everything_of(people.hub, neighbour, foreign) == before
    for person, key in ((own, own.token), (neighbour, neighbour.tenant.key)):
        for method in _MENDING:
            answer = await ask(people.channel, method, _request(method, person.ids), key)
            greatest = Level.LEVEL_USER if key == own.token else Level.LEVEL_ADMIN
            served = ("", *_NOT_MET.get(method.name, ()))
            refusals = served if _level(method) <= greatest else ("LEVEL_INSUFFICIENT",)
            assert answer.reason in refusals, method.full_name


async def assert_isolated(people: People) -> None:
    """Assert that each sees what is theirs and nothing else, by token and by service key."""
    own, neighbour, foreign, _ = people.persons
    await _assert_foreign_ids_are_unknown(people, own.token, own, neighbour)
    await _assert_foreign_ids_are_unknown(people, own.tenant.key, own, foreign)
    for person in people.persons:
        for key, user_id in ((person.token, ""), (person.tenant.key, person.ids["user_id"])):
            answers = [
                await ask(people.channel, method, request, key)
                for method, request in _reads(person, user_id)
            ]
            assert all(answer.code == grpc.StatusCode.OK for answer in answers)
            assert _ids_in(answers) == person.rows
        assert await _scores(people, person) == people.alone
        listing = METHODS["ListUsers"]
        listed = await ask(people.channel, listing, _of(listing), person.tenant.key)
        assert _ids_in([listed]) == {
            one.ids["user_id"] for one in people.persons if one.tenant is person.tenant
        }


async def _assert_foreign_ids_are_unknown(
    people: People, key: str, own: Person, other: Person
) -> None:
    tried = set()
    for method in METHODS.values():
        for path in _id_fields(method.input_type):
            if method.name in ("UpdateDefaultConfig", "ImportUser"):
                continue  # it names no user: to do so is INVALID_FIELD; see test_transfers
            answers = []
            for stranger in (other.ids[path[-1]], new_id()):
                request = _request(method, own.ids)
                target: Any = request
                for name in path[:-1]:
                    target = getattr(target, name)
                setattr(target, path[-1], stranger)
                answers.append(await ask(people.channel, method, request, key))
            assert answers[0] == answers[1], (method.full_name, path)
            greatest = Level.LEVEL_USER if key == own.token else Level.LEVEL_ADMIN
            is_open = _level(method) <= greatest
            refusal = "NOT_FOUND" if is_open else "LEVEL_INSUFFICIENT"
            assert answers[0].reason == refusal, method.full_name
            tried.add(path[-1])
    assert tried == set(own.ids)


async def _move_in(tenant: Tenant, number: int) -> Person:
    """Make a user with the texts and request ids that all users here have."""
    client = tenant.client
    user = await tenant.new_user(email=f"u{number}@example.org", request_id=f"user {number}")
    user_id = user.user_id
    session = (
        await client.chat.create_session(
            CreateSessionRequest(user_id=user_id, session_title="Tea", request_id="session")
        )
    ).session
    said = [
        await client.chat.append_message(
            AppendMessageRequest(
                session_id=session.session_id,
                role=Role.ROLE_USER,
                content=content,
                request_id=f"message {place}",
            )
        )
        for place, content in enumerate(_SAID)
    ]
    memories = [
        await client.memory.remember(
            RememberRequest(
                user_id=user_id,
                memory_type=MemoryType.MEMORY_TYPE_HABIT,
                memory_content=content,
                request_id=f"memory {place}",
            )
        )
        for place, content in enumerate(_REMEMBERED)
    ]
    documents = [
        await client.knowledge.ingest_document(
            IngestDocumentRequest(
                user_id=user_id, title=title, text=text, request_id=f"document {place}"
            )
        )
        for place, (title, text) in enumerate(_KNOWN)
    ]
    for taken in documents:
        await settled(client, taken.document.document_id)
    ids = {
        "user_id": user_id,
        "session_id": session.session_id,
        "message_id": said[0].message.message_id,
        "context_id": await _built(client, session.session_id),
        "memory_id": memories[0].memory.memory_id,
        "document_id": documents[0].document.document_id,
        "reservation_id": await _reserved(client, user_id),
        "login_id": await _logged_in(tenant, user_id),
        "api_key_id": (await _new_key(tenant)).api_key_id,
        "tenant_id": tenant.tenant_id,
    }
    return Person(tenant, await token_of(tenant, user_id), ids, _ids_of(tenant.hub, user_id))


async def _built(client: AsyncHubClient, session_id: str) -> str:
    request = BuildContextRequest(session_id=session_id, token_budget=100)
    return (await client.chat.build_context(request)).context.context_id


async def _reserved(client: AsyncHubClient, user_id: str) -> str:
    request = ReserveTokensRequest(user_id=user_id, tokens=1, request_id="reservation")
    return (await client.chat.reserve_tokens(request)).reservation.reservation_id


async def _logged_in(tenant: Tenant, user_id: str) -> str:
    """Return the id of a login, as Login makes it, without the cost of a password."""
    caller = Caller.hub(tenant.tenant_id)
    async with tenant.hub.database.transaction(caller) as connection:
        login = await AccessRepository(connection, caller).add_credential(
            "user_token",
            Secret.new(USER_TOKEN).hash,
            user_id=user_id,
            refresh_expires_at=dt.datetime(2100, 1, 1, tzinfo=dt.UTC),
        )
    return str(login["credential_id"])


async def _new_key(tenant: Tenant) -> ApiKey:
    request = CreateApiKeyRequest(name="a program", scopes=[Scope.SCOPE_CHAT_READ])
    return (await tenant.client.identity.create_api_key(request)).api_key


def _ids_of(hub: Hub, user_id: str) -> frozenset[str]:
    """Return every id that is a user's, as a superuser sees them."""
    query = """
        SELECT session_id FROM chat_sessions WHERE user_id = %s
        UNION ALL SELECT message_id FROM chat_messages JOIN chat_sessions USING (session_id)
                  WHERE chat_sessions.user_id = %s
        UNION ALL SELECT memory_id FROM memory_store WHERE user_id = %s
        UNION ALL SELECT document_id FROM documents WHERE user_id = %s
        UNION ALL SELECT chunk_id FROM chunks WHERE user_id = %s
    """
    return frozenset({user_id, *(str(row) for (row,) in hub.sql(query, *[user_id] * 5))})


def _everything_of(hub: Hub, *persons: Person) -> list[tuple[Any, ...]]:
    """Return all rows of persons that a call of another might change."""
    users = [person.ids["user_id"] for person in persons]
    tables = [table.name for table in metadata.sorted_tables if "user_id" in table.c]
    query = sql.SQL("SELECT t::text FROM {} t WHERE user_id = ANY (%s::uuid[]) ORDER BY 1")
    return [
        row
        for table in tables
        for row in hub.sql(query.format(sql.Identifier(table)).as_string(), users)
    ]


def _switch_row_security_off(hub: Hub) -> None:
    for (table,) in hub.sql("SELECT relname FROM pg_class WHERE relrowsecurity"):
        hub.sql(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY")


def _reads(person: Person, user_id: str) -> Iterator[tuple[MethodDescriptor, Message]]:
    """Yield the calls that together return everything a person has."""
    ids = person.ids | {"user_id": user_id}
    for name in (
        "GetUser",
        "GetUserConfig",
        "GetUsage",
        "ListSessions",
        "GetSession",
        "ListMessages",
        "ListMemories",
        "GetMemory",
        "ListDocuments",
        "GetDocument",
    ):
        yield METHODS[name], _of(METHODS[name], **ids)
    for name in _SEARCHES:
        yield METHODS[name], _of(METHODS[name], user_id=user_id, query=_QUERY, top_k=200)


async def _scores(people: People, person: Person) -> list[Any]:
    scores = []
    for name in _SEARCHES:
        request = _of(METHODS[name], query=_QUERY, top_k=200)
        answer = await ask(people.channel, METHODS[name], request, person.token)
        scores.append(person.scores(answer.response.hits))
    assert all(scores)
    return scores


def _level(method: MethodDescriptor) -> int:
    level: int = method.GetOptions().Extensions[options_pb2.level]
    return level


def _of(method: MethodDescriptor, **values: Any) -> Message:
    """Return a request of a method with those of the values that it has fields for."""
    known = method.input_type.fields_by_name
    return GetMessageClass(method.input_type)(
        **{name: value for name, value in values.items() if name in known}
    )


def _request(method: MethodDescriptor, ids: dict[str, str]) -> Message:
    """Return a request with these ids and something in every field that is required."""
    request = GetMessageClass(method.input_type)()
    _fill(request, ids)
    return request


def _fill(message: Message, ids: dict[str, str]) -> None:
    for field in message.DESCRIPTOR.fields:
        limits = field.GetOptions().Extensions[options_pb2.limits]
        if field.name in ids:
            setattr(message, field.name, ids[field.name])
        elif field.name == "data":  # no upload is empty
            setattr(message, field.name, b"some text")
        elif limits.required and field.message_type is not None:
            inner = getattr(message, field.name)
            if field.is_repeated:
                inner = inner.add()
            inner.SetInParent()  # given, though nothing in it need be
            _fill(inner, ids)
        elif limits.required and field.is_repeated:
            getattr(message, field.name).append(1)
        elif limits.required or field.name == "query":
            text = f"{new_id()}@example.org" if limits.email else "some text"
            values = {FieldDescriptor.TYPE_STRING: text, FieldDescriptor.TYPE_BYTES: VECTOR}
            setattr(message, field.name, values.get(field.type, 1))


def _id_fields(descriptor: Descriptor) -> Iterator[tuple[str, ...]]:
    """Yield the paths of all fields that hold an id."""
    for field in descriptor.fields:
        if field.full_name.endswith(_FILTERS) or field.is_repeated:
            continue  # a filter: what it does not find is an empty list
        if field.GetOptions().Extensions[options_pb2.limits].uuid:
            yield (field.name,)
        elif field.message_type is not None and field.message_type.file.package == "hub.v1":
            for path in _id_fields(field.message_type):
                yield (field.name, *path)


def _text(hit: Any) -> str:
    if hasattr(hit, "memory"):
        return str(hit.memory.memory_content)
    return str(hit.message.content if hasattr(hit, "message") else hit.chunk.content)


def _ids_in(answers: Sequence[Answer]) -> set[str]:
    """Return everything in some answers that looks like an id."""
    return {
        found
        for answer in answers
        for found in _UUID.findall(json.dumps(json_format.MessageToDict(answer.response)))
    }
