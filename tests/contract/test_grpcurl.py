"""The hub in the hands of a person with grpcurl: a real one, over reflection, knowing no proto."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.contract.breaches import limits_of
from tests.contract.samples import PASSWORD, World
from tests.contract.wire import METHODS, SERVICES
from tests.support import Tenant, settled

_GRPCURL: Final = Path(sys.executable).parent / "grpcurl"


async def _run(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        _GRPCURL,
        "-plaintext",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def _ask(tenant: Tenant, *arguments: str) -> str:
    code, out, err = await _run(tenant.hub.address, *arguments)
    assert code == 0, err
    return out


async def _call(tenant: Tenant, method: str, **request: Any) -> Any:
    code, out, err = await _run(
        *("-H", f"authorization: Bearer {tenant.key}", "-d", json.dumps(request)),
        *(tenant.hub.address, f"hub.v1.{method}"),
    )
    assert code == 0, err
    return json.loads(out)


async def test_grpcurl_lists_and_describes_every_service(tenant: Tenant) -> None:
    """Reflection tells of the four services, their methods and all that their messages hold."""
    listed = (await _ask(tenant, "list")).split()
    assert set(listed) >= {service.full_name for service in SERVICES}
    for service in SERVICES:
        methods = (await _ask(tenant, "list", service.full_name)).split()
        assert methods == sorted(method.full_name for method in service.methods)
        described = await _ask(tenant, "describe", service.full_name)
        assert all(f"rpc {method.name} (" in described for method in service.methods)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_grpcurl_describes_every_request(tenant: Tenant, method: Any) -> None:
    """Every field can be looked up, with its limits."""
    described = await _ask(tenant, "describe", method.input_type.full_name)
    for field in method.input_type.fields:
        (line,) = (line for line in described.splitlines() if f" {field.name} = " in line)
        assert all(f"{limit.name}:" in line for limit, _ in limits_of(field).ListFields())


async def test_grpcurl_creates_a_user_and_a_session_and_appends(tenant: Tenant) -> None:
    """Identity and Chat answer to JSON, with enums and metadata as people write them."""
    user = (await _call(tenant, "IdentityService/CreateUser", email="ada@example.org"))["user"]
    started = await _call(
        tenant, "ChatService/CreateSession", user_id=user["user_id"], metadata={"a": [1, None]}
    )
    assert started["session"]["metadata"] == {"a": [1, None]}
    session_id = started["session"]["session_id"]
    said: dict[str, Any] = {"session_id": session_id, "role": "ROLE_USER", "content": "Grüß Gott"}
    appended = await _call(tenant, "ChatService/AppendMessage", **said)
    assert (appended["message"]["seq"], appended["message"]["content"]) == ("1", "Grüß Gott")


async def test_grpcurl_remembers_and_recalls(tenant: Tenant) -> None:
    """Memory answers to JSON."""
    user = await tenant.new_user()
    about = {"user_id": user.user_id}
    text = "Ada takes no milk in her tea."
    await _call(
        tenant,
        "MemoryService/Remember",
        **about,
        memory_type="MEMORY_TYPE_PREFERENCE",
        memory_content=text,
    )
    found = await _call(tenant, "MemoryService/Recall", **about, query="How does Ada drink tea?")
    assert [hit["memory"]["memory_content"] for hit in found["hits"]] == [text]


async def test_grpcurl_ingests_and_searches(tenant: Tenant) -> None:
    """Knowledge answers to JSON."""
    user = await tenant.new_user()
    text = "The kettle boils at one hundred degrees."
    request = {"user_id": user.user_id, "title": "Kettle", "text": text}
    ingested = await _call(tenant, "KnowledgeService/IngestDocument", **request)
    await settled(tenant.client, ingested["document"]["document_id"])
    found = await _call(
        tenant, "KnowledgeService/Search", user_id=user.user_id, query="When does a kettle boil?"
    )
    assert [hit["chunk"]["content"] for hit in found["hits"]] == [text]


async def test_grpcurl_logs_in_and_acts_as_the_user(world: World) -> None:
    """The token of a login is a credential like a key, and needs no `user_id`."""
    login = await _call(world.tenant, "IdentityService/Login", email=world.email, password=PASSWORD)
    code, out, err = await _run(
        *("-H", f"authorization: Bearer {login['token']}"),
        *(world.tenant.hub.address, "hub.v1.IdentityService/GetUser"),
    )
    assert code == 0, err
    assert json.loads(out)["user"]["user_id"] == world.user_id


async def test_grpcurl_shows_an_error_with_its_details(tenant: Tenant) -> None:
    """A refusal shows status, reason and the bad fields, in words."""
    code, _, shown = await _run(
        *("-H", f"authorization: Bearer {tenant.key}", "-d", '{"email": "ada", "password": "x"}'),
        *(tenant.hub.address, "hub.v1.IdentityService/CreateUser"),
    )
    assert code != 0
    for text in ("InvalidArgument", "INVALID_FIELD", '"hub"', "email", "password", "request_id"):
        assert text in shown
