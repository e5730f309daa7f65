"""Who may call what, by table: `authorization.csv` has a row for each method.

Its columns are those who call, its cells what they are answered: OK or the reason of the refusal.
Each call names the rows of one and the same user, `Ada`: they are her own, a neighbour's of the
same tenant, those of another tenant, and so on.
"""

import csv
import datetime as dt
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from hub_server.identity.secrets import SERVICE_KEY, USER_TOKEN, Secret
from tests.contract.credentials import issue
from tests.contract.samples import World, make_world, sample
from tests.contract.wire import METHODS, bearer, call
from tests.support import Hub

_TABLE: Final = Path(__file__).with_name("authorization.csv")
_PAST: Final = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)

# What may end the credential it is called with.
_ENDING: Final = ("Logout", "DeleteUser", "EraseUser", "DeactivateUser", "ChangePassword")

Present = Callable[[World, MethodDescriptor], Awaitable[str | None]]


async def _nobody(_: World, __: MethodDescriptor) -> str | None:
    return None


async def _own_user(world: World, _: MethodDescriptor) -> str | None:
    return world.token


async def _other_user(world: World, _: MethodDescriptor) -> str | None:
    return await issue(world.tenant, USER_TOKEN, await world.tenant.new_user())


async def _other_tenant(world: World, _: MethodDescriptor) -> str | None:
    return (await world.tenant.hub.new_tenant()).key


async def _disabled_user(world: World, _: MethodDescriptor) -> str | None:
    user = await world.tenant.new_user()
    token = await issue(world.tenant, USER_TOKEN, user)
    world.tenant.hub.sql("UPDATE users SET is_active = false WHERE user_id = %s", user.user_id)
    return token


async def _expired_token(world: World, _: MethodDescriptor) -> str | None:
    user = await world.tenant.new_user()
    return await issue(world.tenant, USER_TOKEN, user, expires_at=_PAST)


async def _revoked_key(world: World, _: MethodDescriptor) -> str | None:
    key = await issue(world.tenant, SERVICE_KEY)
    revoke = "UPDATE credentials SET revoked_at = now() WHERE secret_hash = %s"
    world.tenant.hub.sql(revoke, Secret.of(key).hash)
    return key


async def _key_without_scope(world: World, _: MethodDescriptor) -> str | None:
    return await issue(world.tenant, SERVICE_KEY, scopes=["act_as"])


async def _right_key(world: World, _: MethodDescriptor) -> str | None:
    return world.tenant.key


async def _operator(world: World, _: MethodDescriptor) -> str | None:
    return world.operator_key


_WHO: Final[Mapping[str, Present]] = {
    "none": _nobody,
    "own_user": _own_user,
    "other_user": _other_user,
    "other_tenant": _other_tenant,
    "disabled_user": _disabled_user,
    "expired_token": _expired_token,
    "revoked_key": _revoked_key,
    "key_without_scope": _key_without_scope,
    "right_key": _right_key,
    "operator": _operator,
}

_ERASING: Final = ("right_key", "operator")  # the others are refused, whoever was erased


def _rows() -> dict[str, dict[str, str]]:
    with _TABLE.open(newline="") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def presented() -> dict[str, str | None]:
    """What each who calls has presented before: a credential is good for more than one call."""
    return {}


@pytest.fixture(scope="module")
async def worlds(hub: Hub) -> Mapping[str, World]:
    """A world for each who calls: what one call uses up, another's still has."""
    return {
        who: await make_world(await hub.new_tenant(), with_erased=who in _ERASING) for who in _WHO
    }


def test_every_method_has_a_row() -> None:
    """A new method does not come into the world without saying who may call it."""
    assert list(_rows()) == [method.name for method in METHODS]
    assert all(list(row)[1:] == list(_WHO) for row in _rows().values())
    assert all(all(row.values()) for row in _rows().values())


@pytest.mark.parametrize("who", _WHO)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_who_may_call_what(
    channel: grpc.aio.Channel,
    worlds: Mapping[str, World],
    presented: dict[str, str | None],
    method: MethodDescriptor,
    who: str,
) -> None:
    """The answer is that of the table, with a request that is valid for whoever may call."""
    world = worlds[who]
    if method.name in _ENDING or who not in presented:
        presented[who] = await _WHO[who](world, method)
    credential = presented[who]
    if method.name in _ENDING:
        del presented[who]
    metadata = [] if credential is None else [bearer(credential)]
    answer = await call(channel, method, sample(method.name, world), *metadata)
    assert (answer.reason or "OK") == _rows()[method.name][who], answer.message
