"""Who may call what: every method of every service, with every kind of wrong credential."""

import asyncio
import datetime as dt
import secrets
from typing import Final

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from hub_client.v1 import options_pb2
from hub_client.v1.options_pb2 import Level
from hub_server.identity.secrets import OPERATOR_KEY, SERVICE_KEY, USER_TOKEN, Secret
from hub_server.ids import new_id
from tests.contract.credentials import issue, operator_of
from tests.contract.wire import METHODS, Answer, bearer, call
from tests.support import Hub, Tenant

# Authentication comes first: what cannot be decoded is not even looked at before it.
_NO_REQUEST: Final = b"\xff"
_AN_HOUR: Final = dt.timedelta(hours=1)

of_each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def _level(method: MethodDescriptor) -> Level.ValueType:
    level: Level.ValueType = method.GetOptions().Extensions[options_pb2.level]
    return level


async def _refused(
    channel: grpc.aio.Channel, method: MethodDescriptor, *metadata: tuple[str, str]
) -> tuple[grpc.StatusCode, str]:
    answer = await call(channel, method, _NO_REQUEST, *metadata)
    return answer.code, answer.reason


_INSUFFICIENT: Final = (grpc.StatusCode.PERMISSION_DENIED, "LEVEL_INSUFFICIENT")
_INVALID: Final = (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_INVALID")
_PASSED: Final = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")  # of the bytes above


@of_each_method
async def test_without_a_credential_only_a_public_method_answers(
    channel: grpc.aio.Channel, method: MethodDescriptor
) -> None:
    """Every other method is CREDENTIAL_MISSING, before the request is read."""
    is_public = _level(method) == Level.LEVEL_PUBLIC
    missing = (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING")
    assert await _refused(channel, method) == (_PASSED if is_public else missing)


_MALFORMED: Final = (
    "",
    "Bearer",
    "Bearer ",
    "Basic aHViOmh1Yg==",
    f"{SERVICE_KEY}{'x' * 43}",
    "Bearer nonsense",
    f"Bearer {SERVICE_KEY}",
    f"Bearer  {SERVICE_KEY}{'x' * 43}",
    f"Bearer {USER_TOKEN}{'x' * 5000}",
)


@of_each_method
async def test_a_malformed_credential_is_invalid(
    channel: grpc.aio.Channel, method: MethodDescriptor
) -> None:
    """What does not look like a credential is refused, also by a public method."""
    for text in _MALFORMED:
        assert await _refused(channel, method, ("authorization", text)) == _INVALID, text


@of_each_method
async def test_an_unknown_credential_is_invalid(
    channel: grpc.aio.Channel, method: MethodDescriptor
) -> None:
    """A well-formed key or token that the hub never issued is refused."""
    tokens = (prefix + secrets.token_urlsafe(32) for prefix in (OPERATOR_KEY, USER_TOKEN))
    for made_up in (*tokens, Secret.service_key(new_id()).text):
        assert await _refused(channel, method, bearer(made_up)) == _INVALID


@of_each_method
async def test_a_service_key_may_call_everything(
    channel: grpc.aio.Channel, tenant: Tenant, method: MethodDescriptor
) -> None:
    """No method needs more than the key of the first start gives, but for an operator's."""
    is_operators = _level(method) == Level.LEVEL_OPERATOR
    expected = _INSUFFICIENT if is_operators else _PASSED
    assert await _refused(channel, method, bearer(tenant.key)) == expected


@of_each_method
async def test_an_operator_may_call_what_is_declared_for_him(
    channel: grpc.aio.Channel, hub: Hub, method: MethodDescriptor
) -> None:
    """An operator belongs to no tenant: what is a tenant's, and what is everybody's, is not his."""
    key = await asyncio.to_thread(operator_of, hub)
    is_operators = _level(method) == Level.LEVEL_OPERATOR
    expected = _PASSED if is_operators else _INSUFFICIENT
    assert await _refused(channel, method, bearer(key)) == expected
    hub.sql("UPDATE operators SET revoked_at = now() WHERE secret_hash = %s", Secret.of(key).hash)
    assert await _refused(channel, method, bearer(key)) == _INVALID


@of_each_method
async def test_a_user_token_may_call_what_is_declared_for_users(
    channel: grpc.aio.Channel, tenant: Tenant, method: MethodDescriptor
) -> None:
    """A method of level SERVICE is LEVEL_INSUFFICIENT for a user, and tells what it needs."""
    token = await issue(tenant, USER_TOKEN, await tenant.new_user())
    answer = await call(channel, method, _NO_REQUEST, bearer(token))
    if _level(method) <= Level.LEVEL_USER:
        assert (answer.code, answer.reason) == _PASSED
        return
    assert answer.code == grpc.StatusCode.PERMISSION_DENIED
    assert answer.reason == "LEVEL_INSUFFICIENT"
    assert answer.info.metadata["required"] == Level.Name(_level(method)).removeprefix("LEVEL_")


@of_each_method
async def test_an_expired_credential_is_invalid(
    channel: grpc.aio.Channel, tenant: Tenant, method: MethodDescriptor
) -> None:
    """A token or key is refused from the moment it expires, and valid before."""
    user, now = await tenant.new_user(), dt.datetime.now(dt.UTC)
    old = await issue(tenant, USER_TOKEN, user, expires_at=now)
    old_key = await issue(tenant, SERVICE_KEY, expires_at=now - _AN_HOUR)
    new_key = await issue(tenant, SERVICE_KEY, expires_at=now + _AN_HOUR)
    assert await _refused(channel, method, bearer(old)) == _INVALID
    assert await _refused(channel, method, bearer(old_key)) == _INVALID
    assert await _refused(channel, method, bearer(new_key)) != _INVALID


@of_each_method
async def test_a_revoked_key_is_invalid_on_the_next_call(
    channel: grpc.aio.Channel, hub: Hub, tenant: Tenant, method: MethodDescriptor
) -> None:
    """A key that just worked is refused once it is revoked; another of the tenant still works."""
    revoked = await issue(tenant, SERVICE_KEY)
    assert await _refused(channel, method, bearer(revoked)) != _INVALID
    hub.sql(
        "UPDATE credentials SET revoked_at = now() WHERE secret_hash = %s", Secret.of(revoked).hash
    )
    assert await _refused(channel, method, bearer(revoked)) == _INVALID
    assert await _refused(channel, method, bearer(tenant.key)) != _INVALID


@pytest.mark.parametrize("change", ["is_active = false", "deleted_at = now()"])
@of_each_method
async def test_the_token_of_a_disabled_user_is_invalid_on_the_next_call(
    channel: grpc.aio.Channel, hub: Hub, tenant: Tenant, method: MethodDescriptor, change: str
) -> None:
    """Disabling or deleting a user ends his token at once."""
    user = await tenant.new_user()
    token = await issue(tenant, USER_TOKEN, user)
    assert await _refused(channel, method, bearer(token)) != _INVALID
    hub.sql(f"UPDATE users SET {change} WHERE user_id = %s", user.user_id)  # noqa: S608 - ours
    assert await _refused(channel, method, bearer(token)) == _INVALID


@of_each_method
async def test_no_credential_of_a_disabled_tenant_is_valid(
    channel: grpc.aio.Channel, hub: Hub, tenant: Tenant, method: MethodDescriptor
) -> None:
    """Disabling a tenant ends its keys and the tokens of its users at once."""
    token = await issue(tenant, USER_TOKEN, await tenant.new_user())
    hub.sql("UPDATE tenants SET is_active = false WHERE tenant_id = %s", tenant.tenant_id)
    assert await _refused(channel, method, bearer(tenant.key)) == _INVALID
    assert await _refused(channel, method, bearer(token)) == _INVALID


async def test_no_answer_tells_what_was_wrong_with_a_credential(
    channel: grpc.aio.Channel, tenant: Tenant
) -> None:
    """Unknown, expired and malformed credentials get the same words, and none is repeated."""
    expired = await issue(tenant, SERVICE_KEY, expires_at=dt.datetime.now(dt.UTC) - _AN_HOUR)
    unknown = Secret.service_key(new_id()).text
    answers: list[Answer] = [
        await call(channel, METHODS[0], b"", bearer(text)) for text in (expired, unknown, "junk")
    ]
    assert len({answer.message for answer in answers}) == 1
    assert all(set(answer.info.metadata) == {"request_id"} for answer in answers)
