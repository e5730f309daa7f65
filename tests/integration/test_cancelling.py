"""Callers who go away at any moment: nothing is mixed up, lost, done twice or left behind."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from hub_client import HubClient, errors
from hub_client.v1 import (
    AppendMessageRequest,
    BatchAppendMessagesRequest,
    BatchMessage,
    CreateSessionRequest,
    ForkSessionRequest,
    GetSessionRequest,
    ListMessagesRequest,
    ReserveTokensRequest,
    Role,
    Session,
    UpdateSessionRequest,
    User,
    WatchSessionRequest,
    WatchSessionResponse,
)
from hub_server.caller import Caller
from hub_server.chat.watching import Watches
from hub_server.database import Database
from hub_server.ids import new_id
from hub_server.rpc import Rpc
from tests.integration.test_database import own_hub, until
from tests.support import Hub, Tenant

_ROUNDS: Final = 16
_TOGETHER: Final = 32
_MOST_TURNS: Final = 120
_LONGEST_WAIT: Final = 0.03


@dataclass
class Inside:
    """Parts of a hub in this process that nobody outside can see."""

    hub: Hub
    rpc: Rpc
    watches: Watches
    database: Database

    async def backend(self, tenant: Tenant) -> int:
        """Return which connection the hub's only one for tenants is."""
        async with self.database.statement(Caller.hub(tenant.tenant_id)) as connection:
            return int(await connection.scalar(sa.text("SELECT pg_backend_pid()")) or 0)

    def connections(self) -> list[str]:
        """Return the states of all connections of hubs to the database."""
        query = """
            SELECT state FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'cortex-hub'
        """
        return [state for (state,) in self.hub.sql(query)]

    async def quiet(self) -> None:
        """Return once no work, pause or stream of anybody's is left."""
        rpc = self.rpc
        try:
            await until(lambda: not (rpc._tasks or rpc._pauses or rpc._streams))
        except TimeoutError:
            raise AssertionError(rpc._tasks, rpc._pauses, rpc._streams) from None

    @property
    def subscriptions(self) -> dict[str, Any]:
        """Who waits for changes, by session; the hub itself waits for erasures."""
        waiting = dict(self.watches._wakeups._waiting)
        waiting.pop("erasures")
        return waiting


@pytest.fixture
async def inside(
    empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Inside]:
    """A hub with one connection for tenants, which only looks for readers when it sends."""
    rpcs, watches, databases = (_made(monkeypatch, kind) for kind in (Rpc, Watches, Database))
    with capture_logs():
        async with own_hub(empty_database, tmp_path, pool_size=1, heartbeat=3600) as hub:
            # The second database is the tests' own way to Postgres.
            (rpc,), (watch,), database = (
                rpcs,
                watches,
                next(d for d in databases if d is not hub.database),
            )
            yield Inside(hub, rpc, watch, database)


def _made(monkeypatch: pytest.MonkeyPatch, kind: type[Any]) -> list[Any]:
    """Return a list that grows with each value of a kind that is made."""
    made: list[Any] = []
    begin = kind.__init__

    def noted(self: Any, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        made.append(self)

    monkeypatch.setattr(kind, "__init__", noted)
    return made


@dataclass
class Side:
    """One tenant's user, his session and what was acknowledged to him."""

    tenant: Tenant
    user: User
    session: Session
    canary: str
    acknowledged: dict[str, int] = field(default_factory=dict)
    """The seqs of messages by their content."""
    outcomes: Counter[str] = field(default_factory=Counter)

    @classmethod
    async def begin(cls, hub: Hub) -> "Side":
        """Move into a new tenant."""
        tenant, canary = await hub.new_tenant(), f"canary{new_id()}"
        user = await tenant.new_user(display_name=canary)
        session = await tenant.new_session(user, session_title=canary)
        return cls(tenant, user, session, canary)

    def calls(self) -> list[Callable[[str, float | None], Awaitable[Any]]]:
        """Return the ways to call: each takes what it says and the seconds it has."""
        writing = [self._append, self._append, self._batch, self._create, self._fork, self._reserve]
        return [*writing, self._list, self._get]

    async def _append(self, text: str, timeout: float | None) -> Any:  # noqa: ASYNC109
        request = AppendMessageRequest(
            session_id=self.session.session_id, role=Role.ROLE_USER, content=text, request_id=text
        )
        answer = await self.tenant.client.chat.append_message(request, timeout=timeout)
        self.acknowledged[text] = answer.message.seq
        return answer

    async def _batch(self, text: str, timeout: float | None) -> Any:  # noqa: ASYNC109
        texts = [f"{text}-{place}" for place in range(3)]
        request = BatchAppendMessagesRequest(
            session_id=self.session.session_id,
            messages=[BatchMessage(role=Role.ROLE_USER, content=one) for one in texts],
            request_id=text,
        )
        answer = await self.tenant.client.chat.batch_append_messages(request, timeout=timeout)
        seqs = [one.seq for one in answer.appended_messages]
        self.acknowledged |= dict(zip(texts, seqs, strict=True))
        return answer

    async def _list(self, _: str, timeout: float | None) -> Any:  # noqa: ASYNC109
        request = ListMessagesRequest(session_id=self.session.session_id, page_size=1000)
        pages = self.tenant.client.chat.list_messages(request, timeout=timeout)
        return [message async for message in pages]

    async def _get(self, _: str, timeout: float | None) -> Any:  # noqa: ASYNC109
        request = GetSessionRequest(session_id=self.session.session_id)
        return await self.tenant.client.chat.get_session(request, timeout=timeout)

    async def _create(self, text: str, timeout: float | None) -> Any:  # noqa: ASYNC109
        request = CreateSessionRequest(user_id=self.user.user_id, session_title=text)
        return await self.tenant.client.chat.create_session(request, timeout=timeout)

    async def _fork(self, text: str, timeout: float | None) -> Any:  # noqa: ASYNC109
        request = ForkSessionRequest(session_id=self.session.session_id, session_title=text)
        return await self.tenant.client.chat.fork_session(request, timeout=timeout)

    async def _reserve(self, _: str, timeout: float | None) -> Any:  # noqa: ASYNC109
        request = ReserveTokensRequest(user_id=self.user.user_id, tokens=1)
        return await self.tenant.client.chat.reserve_tokens(request, timeout=timeout)

    async def kept(self) -> dict[str, int]:
        """Return the seqs of what is stored by its content; each content is there once."""
        messages = await self._list("", None)
        assert [message.seq for message in messages] == list(range(1, len(messages) + 1))
        seqs = {message.content: message.seq for message in messages}
        assert len(seqs) == len(messages)
        return seqs


async def _later(chance: random.Random) -> None:
    """Return at some moment of a call's life: after some turns of the loop, or some time."""
    if chance.random() < 0.5:
        for _ in range(chance.randrange(_MOST_TURNS)):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(chance.random() * _LONGEST_WAIT)


async def _one(chance: random.Random, sides: list[Side], number: int) -> None:
    """Make a call that may be given up; nothing of the other side may be in what it answers."""
    own, other = chance.sample(sides, 2)
    call = chance.choice(own.calls())
    timeout = 0.001 + chance.random() * _LONGEST_WAIT if chance.random() < 0.25 else None
    text = f"{own.canary} {number}"
    task = asyncio.ensure_future(call(text, timeout))
    if chance.random() < 0.6:
        await _later(chance)
        task.cancel()
    try:
        said = repr(await task)
    except asyncio.CancelledError:
        own.outcomes["cancelled"] += 1
        said = repr(await call(text, None)) if chance.random() < 0.5 else ""
    except errors.DeadlineExceededError as error:
        own.outcomes["late"] += 1
        said = repr(error)
    else:
        own.outcomes["answered"] += 1
    for secret in (
        other.canary,
        other.tenant.tenant_id,
        other.user.user_id,
        other.session.session_id,
    ):
        assert secret not in said, (number, said)


async def _storm(chance: random.Random, sides: list[Side]) -> None:
    for start in range(0, _ROUNDS * _TOGETHER, _TOGETHER):
        numbers = range(start, start + _TOGETHER)
        await asyncio.gather(*(_one(chance, sides, number) for number in numbers))


async def test_calls_given_up_at_any_moment_do_no_harm(inside: Inside) -> None:
    """512 calls of two tenants over one connection, most of them given up on the way.

    None is answered with anything of the other tenant; what was acknowledged, perhaps when it was
    tried again, is there once; and the connection is the one it was: no work on it was cut off.
    """
    sides = [await Side.begin(inside.hub) for _ in range(2)]
    backend, tasks = await inside.backend(sides[0].tenant), asyncio.all_tasks()
    await _storm(random.Random(5), sides)  # noqa: S311 - to be repeated
    for side in sides:
        assert min(side.outcomes[one] for one in ("cancelled", "late", "answered")) > 10
        await asyncio.wait_for(side._get("", None), 5)
    await inside.quiet()
    for side in sides:
        kept = await side.kept()
        assert {text: kept.get(text) for text in side.acknowledged} == side.acknowledged
        assert await inside.backend(side.tenant) == backend
    pool: Any = inside.database.engine.pool
    assert (pool.checkedout(), pool.checkedin()) == (0, 1)
    await until(lambda: set(inside.connections()) == {"idle"})
    # One for calls, four at most for what has no tenant, a listener and one of the test's own.
    assert len(inside.connections()) <= 1 + 4 + 1 + 1
    await _ended(tasks)


async def _ended(before: set[asyncio.Task[Any]]) -> None:
    """Return once there are no more tasks than before: gRPC's own take turns."""
    try:
        await until(lambda: len(asyncio.all_tasks()) <= len(before))
    except TimeoutError:
        raise AssertionError(asyncio.all_tasks() - before) from None


async def _watch(chance: random.Random, side: Side) -> int:
    """Watch a session and leave at some moment; return how many events came."""
    request = WatchSessionRequest(session_id=side.session.session_id, from_seq=1)
    some, most, seen = asyncio.Event(), chance.choice((1, 2, 3, 5)), 0

    async def read() -> None:
        nonlocal seen
        async for event in side.tenant.client.chat.watch_session(request):
            assert side.session.session_id in repr(event)
            seen += 1
            if seen == most:
                some.set()

    task = asyncio.ensure_future(read())
    if chance.random() < 0.5:
        await some.wait()
    await _later(chance)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return seen


async def test_streams_left_at_any_moment_leave_nothing_behind(inside: Inside) -> None:
    """160 readers who come and go while messages come: no stream and no task remains."""
    sides = [await Side.begin(inside.hub) for _ in range(2)]
    chance, tasks = random.Random(6), asyncio.all_tasks()  # noqa: S311 - to be repeated
    seen = []
    for number in range(20):
        title = UpdateSessionRequest(
            session_id=sides[0].session.session_id, session_title=f"Title {number}"
        )
        texts = [f"{number}-{place}" for place in range(5)]
        changes = [
            sides[0].tenant.client.chat.update_session(title),
            *(side._append(text, None) for text in texts for side in sides),
        ]
        watching = [_watch(chance, side) for side in sides for _ in range(4)]
        seen += (await asyncio.gather(*watching, *changes))[: len(watching)]
    assert 0 in seen
    assert max(seen) > 20
    await inside.quiet()
    assert inside.subscriptions == {}
    await _ended(tasks)


async def test_readers_who_leave_as_messages_come_are_noticed(inside: Inside) -> None:
    """They leave from a thread of their own, and so at any moment of the hub's."""
    side = await Side.begin(inside.hub)
    for place in range(4):
        await side._append(str(place), None)

    def read(most: int) -> None:
        request = WatchSessionRequest(session_id=side.session.session_id, from_seq=1)
        events = client.chat.watch_session(request)
        for _ in range(most):
            next(events)
        events.close()  # type: ignore[attr-defined]  # a generator

    with HubClient(inside.hub.address, side.tenant.key) as client:
        for _ in range(25):
            await asyncio.gather(*(asyncio.to_thread(read, most) for most in (1, 2, 3, 4, 5, 5)))
    await inside.quiet()
    assert inside.subscriptions == {}


async def test_readers_who_leave_at_once_leave_no_subscription(inside: Inside) -> None:
    """40 readers who leave while the hub looks up who they are."""
    side, chance = await Side.begin(inside.hub), random.Random(7)  # noqa: S311 - to be repeated
    for _ in range(40):
        task = asyncio.ensure_future(anext(_events(side)))
        for _ in range(chance.randrange(_MOST_TURNS)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await inside.quiet()
    assert inside.subscriptions == {}


def _events(side: Side) -> AsyncIterator[WatchSessionResponse]:
    request = WatchSessionRequest(session_id=side.session.session_id)
    return side.tenant.client.chat.watch_session(request)
