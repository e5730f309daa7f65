"""How many statements a call costs: each is a round trip, and without BEGIN a transaction."""

from typing import Final

import grpc
import pytest

from hub_client.v1 import AppendMessageRequest
from tests.contract.samples import World, make_world, sample
from tests.contract.wire import SERVICES, bearer, call, method_named
from tests.integration.test_database import statements
from tests.support import INDEX, Hub

# Beside authentication, which is one statement for all calls of a moment; and where the user has a
# limit of sessions, one more to count those that are active.
_COSTS: Final = {
    "CreateSession": 2,  # the user's limit is held, and one is added
    "GetSession": 1,
    "ListSessions": 1,
    "AppendMessage": 1,
    "BatchAppendMessages": 1,
    "ListMessages": 1,
    "GetMessage": 1,
    "EndSession": 2,  # the session is held and changed
    "ReopenSession": 4,  # whose it is; his limit is held; the session is held; change
    "UpdateSession": 2,
    "ArchiveSession": 2,
    "UnarchiveSession": 2,
    "DeleteSession": 2,
    "UndeleteSession": 4,
    "ForkSession": 5,  # whose it is; his limit; the session; the fork, and it as it is read
    "RedactMessage": 5,  # the lineage is held; the session; the change; its event; what is left
    "WatchSession": 2,  # the session and its messages
    "SearchMessages": 4,  # the state; what is new; where it is; the messages
    "BuildContext": 4,  # the state and the tail; new chunks; all that was found; the record
    "GetContextRecord": 2,  # the record, and what it held
    "ReserveTokens": 4,  # his usage is held; what expired is freed; what is left; the reservation
    "SettleTokens": 6,  # and whose it is, the reservation, and what was used
}


@pytest.fixture(scope="module")
async def world(hub: Hub) -> World:
    """A tenant of its own: what others have done with one would change what calls cost."""
    return await make_world(await hub.new_tenant(), with_erased=False)


def test_every_method_of_chat_has_a_cost() -> None:
    """No method is left out of the count."""
    (chat,) = (service for service in SERVICES if service.name == "ChatService")
    assert {method.name for method in chat.methods} == set(_COSTS)


@pytest.mark.parametrize("name", _COSTS)
async def test_a_call_costs_so_many_statements(
    channel: grpc.aio.Channel, world: World, name: str
) -> None:
    """Exactly those: one more is a round trip more for each call."""
    method, request = method_named(name), sample(name, world)
    if INDEX == "pgvector" and name == "BuildContext":
        pytest.skip("what is new goes to pgvector by statements, and so do searches")
    with statements() as seen:
        answer = await call(channel, method, request, bearer(world.tenant.key))
    assert answer.code == grpc.StatusCode.OK, answer
    assert len(seen) == _COSTS[name], seen


async def test_a_retried_append_costs_one_statement_too(
    channel: grpc.aio.Channel, world: World
) -> None:
    """With a request_id, the first time and again."""
    request = sample("AppendMessage", world)
    assert isinstance(request, AppendMessageRequest)
    request.request_id = "r"
    for _ in range(2):
        with statements() as seen:
            await call(channel, method_named("AppendMessage"), request, bearer(world.tenant.key))
        assert len(seen) == 1
