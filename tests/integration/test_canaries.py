"""Random calls of two tenants: what one of them said never reaches the other.

`make campaign-isolation` makes 10,000 calls; `make test` a few hundred.
"""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from structlog.testing import capture_logs

from hub_client import AsyncHubClient
from hub_client.v1 import (
    AppendMessageRequest,
    BuildContextRequest,
    CreateApiKeyRequest,
    CreateSessionRequest,
    IngestDocumentRequest,
    LoginRequest,
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
from hub_server import passwords
from hub_server.ids import new_id
from tests.contract.breaches import VECTOR
from tests.integration.test_database import own_hub
from tests.integration.test_rpc import METHODS, Answer, ask
from tests.support import Hub, Tenant, settled

_PASSWORD: Final = "a correct horse"
# With ids of one's own these end what later calls are to meet.
_ENDING: Final = {
    "DeactivateUser",
    "DeleteUser",
    "EraseUser",
    "RevokeLogin",
    "RevokeApiKey",
    "DeleteDocument",
    "EndSession",
    "DeleteSession",
    "UpdateSession",
    "ChangePassword",
    "UpdateUser",
}
_TOGETHER: Final = 8


@dataclass(frozen=True)
class Side:
    """One of two tenants: its canary, its ids, and how its people call."""

    canary: str
    ids: dict[str, str]
    neighbour: dict[str, str]
    credentials: Sequence[str]


@pytest.fixture
async def sides(
    empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Hub, list[Side]]]:
    """A hub of its own with two tenants, each with its canary in everything it said."""
    monkeypatch.setattr(passwords, "ROUNDS", 4)
    async with own_hub(empty_database, tmp_path, max_calls=64) as hub:
        yield hub, [await _move_in(await hub.new_tenant(), f"canary{new_id()}") for _ in range(2)]


async def _move_in(tenant: Tenant, canary: str) -> Side:
    settings = TenantSettings(message_search=MessageSearch.MESSAGE_SEARCH_HYBRID)
    await tenant.client.identity.update_tenant_settings(
        UpdateTenantSettingsRequest(tenant_settings=settings)
    )
    ids = await _person(tenant, canary, "one")
    neighbour = await _person(tenant, canary, "two")
    login = await tenant.client.identity.login(
        LoginRequest(email=f"one@{canary}.org", password=_PASSWORD)
    )
    return Side(canary, ids, neighbour, (tenant.key, login.token))


async def _person(tenant: Tenant, canary: str, name: str) -> dict[str, str]:
    client = tenant.client
    user = await tenant.new_user(
        email=f"{name}@{canary}.org", display_name=canary, password=_PASSWORD
    )
    user_id = user.user_id
    session = await client.chat.create_session(
        CreateSessionRequest(user_id=user_id, session_title=canary, model_name=canary)
    )
    session_id = session.session.session_id
    said = await client.chat.append_message(
        AppendMessageRequest(session_id=session_id, role=Role.ROLE_USER, content=f"Tea {canary}")
    )
    memory = await client.memory.remember(
        RememberRequest(
            user_id=user_id,
            memory_type=MemoryType.MEMORY_TYPE_FACT,
            memory_content=f"Likes tea {canary}",
        )
    )
    taken = await client.knowledge.ingest_document(
        IngestDocumentRequest(user_id=user_id, title=canary, text=f"Tea is hot {canary}")
    )
    await settled(client, taken.document.document_id)
    reserved = await client.chat.reserve_tokens(ReserveTokensRequest(user_id=user_id, tokens=1))
    login = await client.identity.login(LoginRequest(email=user.email, password=_PASSWORD))
    key = await client.identity.create_api_key(
        CreateApiKeyRequest(name=canary, scopes=[Scope.SCOPE_CHAT_READ])
    )
    return {
        "user_id": user_id,
        "session_id": session_id,
        "message_id": said.message.message_id,
        "context_id": await _built(client, session_id),
        "memory_id": memory.memory.memory_id,
        "document_id": taken.document.document_id,
        "reservation_id": reserved.reservation.reservation_id,
        "login_id": login.login_id,
        "api_key_id": key.api_key.api_key_id,
        "tenant_id": tenant.tenant_id,
        "actor_credential_id": login.login_id,
        "target_id": user_id,
    }


async def _built(client: AsyncHubClient, session_id: str) -> str:
    request = BuildContextRequest(session_id=session_id, token_budget=100)
    return (await client.chat.build_context(request)).context.context_id


def _generated(chance: random.Random, method: MethodDescriptor, own: Side, other: Side) -> Message:
    """Return a request with ids of anybody's, and the caller's own words."""
    whose = [other.ids, other.neighbour, own.neighbour]
    whose += [] if method.name in _ENDING else [own.ids] * 3
    request = GetMessageClass(method.input_type)()
    _fill(chance, request, whose if method.name not in _ENDING else whose[:2], own.canary)
    return request


# Made up they only keep a call from what is tested here.
_LEFT_OUT: Final = ("page_token", "request_id", "etag")
# Conditions of conditions: seldom, or they would have no end.
_NESTED: Final = ("all_of", "any_of", "none_of")


def _fill(
    chance: random.Random, message: Message, whose: Sequence[dict[str, str]], canary: str
) -> None:
    for field in message.DESCRIPTOR.fields:
        limits = field.GetOptions().Extensions[options_pb2.limits]
        if field.name in _LEFT_OUT:
            continue
        if not limits.required and chance.random() < (0.9 if field.name in _NESTED else 0.4):
            continue
        if field.is_repeated and field.message_type is not None:
            _fill(chance, getattr(message, field.name).add(), whose, canary)
        elif field.is_repeated:
            is_id = field.type == field.TYPE_STRING
            item = chance.choice(whose)["document_id"] if is_id else chance.randint(1, 13)
            getattr(message, field.name).append(item)
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            if field.message_type.file.package == "hub.v1":
                _fill(chance, inner, whose, canary)
            elif field.message_type.name == "Struct":
                inner.update({canary: canary})
            elif field.message_type.name == "Timestamp":
                inner.FromSeconds(chance.randint(1_000_000_000, 4_000_000_000))
        else:
            setattr(message, field.name, _value(chance, field, whose, canary))


def _value(chance: random.Random, field: Any, whose: Sequence[dict[str, str]], canary: str) -> Any:
    limits = field.GetOptions().Extensions[options_pb2.limits]
    if field.name in whose[0]:
        return chance.choice([chance.choice(whose)[field.name], new_id()])
    if field.type == FieldDescriptor.TYPE_STRING or field.name == "data":
        text = _text(chance, limits, canary)
        return text if field.type == FieldDescriptor.TYPE_STRING else text.encode()
    if field.enum_type is not None:
        return chance.choice(field.enum_type.values).number
    if field.type == FieldDescriptor.TYPE_BOOL:
        return chance.random() < 0.5
    return VECTOR if field.type == FieldDescriptor.TYPE_BYTES else chance.randint(0, 1)


def _text(chance: random.Random, limits: options_pb2.FieldLimits, canary: str) -> str:
    if limits.email:
        return f"{new_id()}@{canary}.org"
    text = chance.choice(["tea", canary, f"What is hot? {canary}", new_id()])
    return text[: limits.max_length or None]


def _said(answer: Answer) -> bytes:
    """Return all bytes of an answer: response, status, message, trailers."""
    response = b"" if answer.response is None else answer.response.SerializeToString()
    return response + answer.raw


async def _campaign(hub: Hub, sides: list[Side], calls: int, seed: int) -> Counter[str]:
    """Make so many random calls; assert of each that it tells nothing of the other side."""
    chance, outcomes = random.Random(seed), Counter[str]()  # noqa: S311 - to be repeated
    methods = [method for name, method in METHODS.items() if name != "Logout"]

    async def one(number: int) -> None:
        own, other = sides[number % 2], sides[1 - number % 2]
        method = chance.choice(methods)
        request = _generated(chance, method, own, other)
        key = None if chance.random() < 0.05 else chance.choice(own.credentials)
        answer = await ask(channel, method, request, key)
        outcomes[answer.reason or "OK"] += 1
        assert other.canary.encode() not in _said(answer), (seed, number, method.name)
        assert answer.reason != "INTERNAL", (seed, number, method.name, request)

    async with grpc.aio.insecure_channel(hub.address) as channel:
        with capture_logs() as lines:
            for start in range(0, calls, _TOGETHER):
                await asyncio.gather(*map(one, range(start, min(start + _TOGETHER, calls))))
    # A line may bear names of models and time zones, which are no words: of its own tenant only.
    for line in lines:
        for side in sides:
            assert side.canary not in repr(line) or line["tenant_id"] == side.ids["tenant_id"]
    return outcomes


async def test_no_canary_reaches_the_other_tenant(sides: tuple[Hub, list[Side]]) -> None:
    """In a few hundred random calls, many of which are served."""
    outcomes = await _campaign(*sides, calls=400, seed=1)
    assert outcomes["OK"] > 40
    assert outcomes["NOT_FOUND"] > 40


async def test_the_check_would_see_a_canary(sides: tuple[Hub, list[Side]]) -> None:
    """The control: a tenant that bears the other's canary in its own rows is noticed."""
    hub, (one, two) = sides
    hub.sql("UPDATE users SET display_name = %s WHERE user_id = %s", two.canary, one.ids["user_id"])
    with pytest.raises(AssertionError, match=r"GetUser|ListUsers|WhoAmI|User"):
        await _campaign(hub, [one, two], calls=2_000, seed=1)


@pytest.mark.slow
async def test_no_canary_reaches_the_other_tenant_in_10_000_calls(
    sides: tuple[Hub, list[Side]],
) -> None:
    """The campaign; its seed and what came of the calls are printed."""
    seed = int(os.environ.get("CAMPAIGN_SEED") or time.time_ns() % 1_000_000)
    outcomes = await _campaign(*sides, calls=10_000, seed=seed)
    print(f"\n{sum(outcomes.values()):,} calls, seed {seed}: {dict(outcomes.most_common())}")  # noqa: T201
