"""Writers who append, each message until it is acknowledged, and the history of what they saw."""

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

from hub_client import AsyncHubClient
from hub_client.errors import (
    DeadlineExceededError,
    HubError,
    OverloadedError,
    UnavailableError,
)
from hub_client.v1 import (
    AppendMessageRequest,
    CreateSessionRequest,
    CreateUserRequest,
    GetSessionRequest,
    ListMessagesRequest,
    Role,
)
from tests.histories import Append, Finding, findings

_USERS: Final = 2
_TIMEOUT_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.1
_MOST_TRIES: Final = 1_000


class Work:
    """So many appends to a few sessions, shared out among writers."""

    def __init__(self, sessions: Sequence[str], *, total: int, seed: int) -> None:
        """All writers append to the first session; the others belong to groups of them."""
        self._sessions = sessions
        self._seed = seed
        self._taken = 0
        self.total = total
        self._mark, self._marked = 0, asyncio.Event()
        self.history: list[Append] = []
        self.retries: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()

    async def write(self, addresses: Sequence[str], key: str, writers: int) -> None:
        """Let so many writers do the work at the same time."""
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    AsyncHubClient(address, key, timeout=_TIMEOUT_SECONDS)
                )
                for address in addresses
            ]
            async with asyncio.TaskGroup() as group:
                for number in range(writers):
                    group.create_task(self._writer(clients[number % len(clients)], number))

    async def until(self, count: int) -> None:
        """Wait until so many appends are acknowledged. One may wait at a time."""
        self._mark = count
        self._marked.clear()
        if len(self.history) < count:
            await self._marked.wait()

    async def _writer(self, client: AsyncHubClient, number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")  # noqa: S311 - to be repeated
        others = self._sessions[1:]
        own = (self._sessions[0], others[number % len(others)] if others else self._sessions[0])
        while self._taken < self.total:
            self._taken += 1
            content = f"writer {number}, append {self._taken}"
            self.history.append(await self._append(client, number, chance.choice(own), content))
            if len(self.history) == self._mark:
                self._marked.set()

    async def _append(
        self, client: AsyncHubClient, number: int, session_id: str, content: str
    ) -> Append:
        """Append one message, with one request_id, until it is acknowledged."""
        request = AppendMessageRequest(
            session_id=session_id,
            role=Role.ROLE_USER,
            content=content,
            request_id=content,
            token_count=1,
        )
        invoked = time.monotonic()
        for _ in range(_MOST_TRIES):
            try:
                message = (await client.chat.append_message(request)).message
            except HubError as error:
                await self._pause(error)
            else:
                now = time.monotonic()
                return Append(f"{number}", session_id, content, invoked, now, message.seq)
        raise TimeoutError(f"{content!r} was never acknowledged")

    async def _pause(self, error: HubError) -> None:
        """Wait as one is advised to before a retry; note what advises none."""
        self.retries[error.reason or error.code.name] += 1
        if not isinstance(error, UnavailableError | DeadlineExceededError | OverloadedError):
            self.refusals[str(error)] += 1
        await asyncio.sleep(error.retry_after or _PAUSE_SECONDS)


async def new_sessions(client: AsyncHubClient, count: int) -> list[str]:
    """Start sessions, in turn of each of a few new users; return their ids."""
    new_users = [CreateUserRequest(email=f"{uuid.uuid4().hex}@example.org") for _ in range(_USERS)]
    users = [(await client.identity.create_user(request)).user for request in new_users]
    requests = [CreateSessionRequest(user_id=users[n % _USERS].user_id) for n in range(count)]
    return [(await client.chat.create_session(request)).session.session_id for request in requests]


async def judge(client: AsyncHubClient, work: Work) -> list[Finding]:
    """Return what is wrong with the work's history, given what the hub lists now."""
    sessions = {append.session_id for append in work.history}
    return findings(work.history, {one: await _listed(client, one) for one in sessions})


async def miscounted(client: AsyncHubClient, work: Work) -> list[str]:
    """Return the sessions whose counters are not those of one message, one token each."""
    expected = Counter(append.session_id for append in work.history)
    found = []
    for session_id, count in expected.items():
        request = GetSessionRequest(session_id=session_id)
        session = (await client.chat.get_session(request)).session
        if (session.last_seq, session.total_tokens_used) != (count, count):
            found.append(session_id)
    return found


async def _listed(client: AsyncHubClient, session_id: str) -> list[tuple[int, str]]:
    request = ListMessagesRequest(session_id=session_id, page_size=1000)
    return [(one.seq, one.content) async for one in client.chat.list_messages(request)]
