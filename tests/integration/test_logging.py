"""What a hub process writes down: every call, and nothing that anybody said."""

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Struct

from hub_client import AsyncHubClient
from hub_client.v1 import (
    AppendMessageRequest,
    BuildContextRequest,
    CreateSessionRequest,
    CreateUserRequest,
    IngestDocumentRequest,
    LoginRequest,
    MemoryType,
    RememberRequest,
    ReserveTokensRequest,
    Role,
    UploadDocumentRequest,
    options_pb2,
)
from hub_server.ids import new_id
from hub_server.migrations import migrate
from hub_server.settings import Settings
from tests.integration.test_database import new_database, until
from tests.integration.test_rpc import METHODS, Answer, ask
from tests.support import HubProcess, hub_process, settled

_CANARY = "canary"
# Postgres quotes the whole row when one of these breaks.
_CONSTRAINTS = """
    ALTER TABLE users ADD CHECK (display_name NOT LIKE '%explode%');
    ALTER TABLE chat_sessions ADD CHECK (session_title NOT LIKE '%explode%');
    ALTER TABLE chat_messages ADD CHECK (content NOT LIKE '%explode%');
    ALTER TABLE memory_store ADD CHECK (memory_content NOT LIKE '%explode%');
    ALTER TABLE documents ADD CHECK (author NOT LIKE '%explode%');
    ALTER TABLE chunks ADD CHECK (content NOT LIKE '%explode%');
    ALTER TABLE retrievals ADD CHECK (query NOT LIKE '%explode%');
"""


@dataclass
class Logged:
    """A hub process, the calls made of it, and what of them must not be written down."""

    process: HubProcess
    client: AsyncHubClient
    channel: grpc.aio.Channel
    ids: dict[str, str]
    answers: dict[str, tuple[str, Answer]] = field(default_factory=dict)
    """By request id: the method and its answer."""

    async def ask(self, name: str, request: Message | bytes, key: str | None) -> Answer:
        """Make a call and remember it."""
        method, request_id = METHODS[name], new_id()
        answer = await ask(self.channel, method, request, key, request_id=request_id)
        path = f"/{method.containing_service.full_name}/{method.name}"
        self.answers[request_id] = (path, answer)
        return answer

    def lines(self) -> list[dict[str, Any]]:
        """Return what the process logged; every line is one JSON object."""
        return [json.loads(line) for line in self.process.log.read_text().splitlines()]


@pytest.fixture(scope="module")
async def logged(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Logged]:
    """`hub serve` over a database in which some rows break constraints, logging all it can."""
    with new_database(postgres_url) as url:
        migrate(url, Settings().server_role)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(_CONSTRAINTS)
        folder = tmp_path_factory.mktemp("logged") / "hub"
        with hub_process(folder, database_url=url, log_level="DEBUG") as process:
            address = process.start()
            async with (
                AsyncHubClient(address, process.key) as client,
                grpc.aio.insecure_channel(address) as channel,
            ):
                yield Logged(process, client, channel, await _resources(client))


async def test_every_call_is_logged_and_nothing_sensitive_ever_is(logged: Logged) -> None:
    """Canaries in every sensitive field of every call are in no line, however the call ended.

    And each call has one line with its method, its code, its request id and its milliseconds.
    """
    key = logged.process.key
    login = LoginRequest(email="canary@example.org", password="canary password")
    token = (await logged.ask("Login", login, None)).response.token
    for name, method in METHODS.items():
        ids = logged.ids | ({"user_id": logged.ids["erased_id"]} if "Eras" in name else {})
        for text, caller in (
            (_CANARY, key),
            ("explode", key),
            (_CANARY, None),
            (_CANARY, f"hub_sk_{_CANARY}"),
            (_CANARY, f"{_CANARY} of no kind"),
        ):
            await logged.ask(name, _filled(method, ids, text), caller)
        unknown = dict.fromkeys(logged.ids, new_id())
        await logged.ask(name, _filled(method, unknown, _CANARY), key)
        await logged.ask(name, f"\xff{_CANARY}".encode(), key)
        for one in _beyond_limits(method, logged.ids):
            refused = await logged.ask(name, one, key)
            assert refused.reason in ("INVALID_FIELD", "LEVEL_INSUFFICIENT")
    await logged.ask("GetUser", _filled(METHODS["GetUser"], logged.ids, _CANARY), token)

    reasons = {answer.reason for _, answer in logged.answers.values()}
    assert reasons >= {
        "",
        "INVALID_FIELD",
        "NOT_FOUND",
        "INTERNAL",
        "CREDENTIAL_MISSING",
        "CREDENTIAL_INVALID",
        "LOGIN_FAILED",
    }
    for path, answer in logged.answers.values():
        assert _CANARY.encode() not in answer.raw, path
        assert b"explode" not in answer.raw, path
    await until(lambda: _logged_calls(logged) >= logged.answers.keys())
    text = logged.process.log.read_text()
    for secret in (_CANARY, "explode", token, key, "bcrypt"):
        assert secret not in text
    lines = [line for line in logged.lines() if line.get("request_id") in logged.answers]
    assert len(lines) == len(logged.answers)
    for line in lines:
        path, answer = logged.answers[line["request_id"]]
        # A stream that is left after its first answer may have ended by itself just then.
        codes = {answer.code.name} | ({"OK"} if answer.code.name == "CANCELLED" else set())
        assert line["method"] == path
        assert line["code"] in codes
        assert line.get("reason", "") == answer.reason
        assert line["ms"] >= 0


async def test_the_log_tells_the_cause_of_what_the_wire_hides(logged: Logged) -> None:
    """A fault is one line under the call's request id: kind, SQL state and place, no values."""
    request = CreateSessionRequest(user_id=logged.ids["user_id"], session_title="explode")
    answer = await logged.ask("CreateSession", request, logged.process.key)
    assert answer.reason == "INTERNAL"
    await until(lambda: _logged_calls(logged) >= {answer.request_id})
    (line,) = [one for one in logged.lines() if one.get("request_id") == answer.request_id]
    assert line["level"] == "error"
    assert any(cause.startswith("CheckViolation 23514") for cause in line["cause"])
    assert any("repository.py:" in cause for cause in line["cause"])
    assert "explode" not in json.dumps(line)


async def test_ingestion_logs_no_text_however_it_ends(logged: Logged) -> None:
    """A document that is ingested, one without text, and one that Postgres refuses."""
    user_id = logged.ids["user_id"]
    knowledge = logged.client.knowledge
    request = IngestDocumentRequest(user_id=user_id, title=_CANARY, text=f"{_CANARY} " * 50)
    blank = UploadDocumentRequest(user_id=user_id, title=_CANARY)
    for document in (
        (await knowledge.ingest_document(request)).document,
        await logged.client.upload(b" ", blank),
    ):
        await settled(logged.client, document.document_id)
    request = IngestDocumentRequest(user_id=user_id, title=_CANARY, text=f"explode {_CANARY}")
    document = (await knowledge.ingest_document(request)).document
    await until(lambda: any(_is_refused(line, document.document_id) for line in logged.lines()))
    text = logged.process.log.read_text()
    assert _CANARY not in text
    assert "explode" not in text
    assert any(line["event"] == "ingested" for line in logged.lines())


def _is_refused(line: dict[str, Any], document_id: str) -> bool:
    return line.get("document_id") == document_id and "23514" in "".join(line.get("cause", ()))


def _logged_calls(logged: Logged) -> set[str]:
    return {line["request_id"] for line in logged.lines() if "request_id" in line}


async def _resources(client: AsyncHubClient) -> dict[str, str]:
    """Make one of everything that calls can name; return the ids by field name."""
    created = await client.identity.create_user(
        CreateUserRequest(email="canary@example.org", password="canary password")
    )
    user_id = created.user.user_id
    session = await client.chat.create_session(CreateSessionRequest(user_id=user_id))
    said = await client.chat.append_message(
        AppendMessageRequest(
            session_id=session.session.session_id, role=Role.ROLE_USER, content=_CANARY
        )
    )
    memory = await client.memory.remember(
        RememberRequest(
            user_id=user_id, memory_type=MemoryType.MEMORY_TYPE_FACT, memory_content=_CANARY
        )
    )
    taken = await client.knowledge.ingest_document(
        IngestDocumentRequest(user_id=user_id, title=_CANARY, text=_CANARY)
    )
    await settled(client, taken.document.document_id)
    reserved = await client.chat.reserve_tokens(ReserveTokensRequest(user_id=user_id, tokens=1))
    other = await client.identity.create_user(CreateUserRequest(email="other@example.org"))
    return {
        "user_id": user_id,
        "session_id": session.session.session_id,
        "message_id": said.message.message_id,
        "context_id": await _built(client, session.session.session_id),
        "memory_id": memory.memory.memory_id,
        "document_id": taken.document.document_id,
        "reservation_id": reserved.reservation.reservation_id,
        "erased_id": other.user.user_id,
    }


async def _built(client: AsyncHubClient, session_id: str) -> str:
    request = BuildContextRequest(session_id=session_id, token_budget=100)
    return (await client.chat.build_context(request)).context.context_id


def _filled(method: MethodDescriptor, ids: dict[str, str], text: str) -> Message:
    """Return a valid request with the text in every sensitive field."""
    request = GetMessageClass(method.input_type)()
    _fill(request, ids, text)
    return request


def _fill(message: Message, ids: dict[str, str], text: str) -> None:
    for one in message.DESCRIPTOR.fields:
        options = one.GetOptions().Extensions
        limits, is_sensitive = options[options_pb2.limits], options[options_pb2.sensitive]
        if one.name in ids:
            setattr(message, one.name, ids[one.name])
        elif (
            one.message_type is not None and one.message_type.full_name == "google.protobuf.Struct"
        ):
            assert is_sensitive
            struct: Struct = getattr(message, one.name)
            struct.update({f"{text} key": [f"{text} value"]})
        elif is_sensitive:
            made = f"{text}{new_id()}@example.org" if limits.email else f"{text} {new_id()}"
            is_bytes = one.type == FieldDescriptor.TYPE_BYTES
            setattr(message, one.name, made.encode() if is_bytes else made)
        elif limits.required and one.message_type is not None:
            inner = getattr(message, one.name)
            _fill(inner.add() if one.is_repeated else inner, ids, text)
        elif limits.required and one.is_repeated:
            getattr(message, one.name).append(1)
        elif limits.required:
            setattr(message, one.name, "x" if one.type == FieldDescriptor.TYPE_STRING else 1)


def _beyond_limits(method: MethodDescriptor, ids: dict[str, str]) -> Iterator[Message]:
    """Yield requests that break the limit of one sensitive field each, with the canary in it."""
    for one in method.input_type.fields:
        options = one.GetOptions().Extensions
        limits = options[options_pb2.limits]
        if options[options_pb2.sensitive] and one.type == FieldDescriptor.TYPE_STRING:
            request = _filled(method, ids, _CANARY)
            most = limits.max_length or limits.max_bytes or 300
            setattr(request, one.name, _CANARY * (most // len(_CANARY) + 1))
            yield request
