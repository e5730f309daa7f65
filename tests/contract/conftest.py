"""A bare channel to the session's hub, and rows to call about."""

from collections.abc import AsyncIterator

import grpc
import pytest

from tests.contract.samples import World, make_world
from tests.support import Hub


@pytest.fixture(scope="session")
async def channel(hub: Hub) -> AsyncIterator[grpc.aio.Channel]:
    """A channel of gRPC's own, without anything that hub_client adds."""
    async with grpc.aio.insecure_channel(hub.address) as channel:
        yield channel


@pytest.fixture(scope="module")
async def world(hub: Hub) -> World:
    """A tenant that all contract tests share, with one row of each kind."""
    return await make_world(await hub.new_tenant())
