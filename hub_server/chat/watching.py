"""A watched session: its state and its messages, as they come. Knows no gRPC.

Nothing is queued for a reader: he is told to look again, and what he sees next is read from
Postgres, after what he was sent last. So a slow reader costs no memory, and one who comes back to
another process finds everything there.
"""

import time
from collections.abc import Sequence
from typing import Final, Literal

from hub_server.caller import Caller
from hub_server.chat.service import ChatService, history_of, session_etag
from hub_server.chat.spans import Span
from hub_server.paging import Page
from hub_server.rows import Row
from hub_server.wakeups import Subscription, Wakeups

_PAGE: Final = 100

_State = tuple[str, int] | None
Event = tuple[Literal["session", "message", "heartbeat"], Row]


class SessionFeed:
    """What one reader of a session has seen, and what comes next."""

    def __init__(
        self,
        chat: ChatService,
        subscription: Subscription,
        session_id: str,
        next_seq: int | None,
        heartbeat: float,
    ) -> None:
        """``next_seq`` None = after the last message there is; ``heartbeat`` is in seconds."""
        self._chat = chat
        self._subscription = subscription
        self._session_id = session_id
        self._next_seq = next_seq
        self._heartbeat = heartbeat
        self._state: _State = None
        # What is seen, and what comes next, after each of the events that were read last.
        self._progress: list[tuple[_State, int]] = []
        self._is_behind = False
        self._last_sent = time.monotonic()

    async def read(self, caller: Caller) -> Sequence[Event]:
        """Return what is new, with a heartbeat where nothing was for a while.

        Raises NOT_FOUND, USER_DISABLED or FEATURE_DISABLED.
        """
        self._subscription.looks()
        session = history_of(await self._chat.get_session(caller, self._session_id))
        if self._next_seq is None:
            self._next_seq = session["last_seq"] + 1
        events: list[Event] = []
        state, next_seq = (session_etag(session), session["redaction_count"]), self._next_seq
        if state != self._state:
            events.append(("session", session))
        if session["last_seq"] >= next_seq:
            events += [("message", message) for message in await self._messages(caller)]
        if not events and time.monotonic() - self._last_sent >= self._heartbeat:
            events.append(("heartbeat", {"next_seq": next_seq}))
        self._progress = []
        for kind, _ in events:
            next_seq += kind == "message"
            self._progress.append((state, next_seq))
        self._is_behind = session["last_seq"] >= next_seq
        return events

    def sent(self, count: int) -> None:
        """Note that so many of the events read last were sent; the others will be read again."""
        if count:
            self._state, self._next_seq = self._progress[count - 1]
            self._last_sent = time.monotonic()
        self._is_behind |= count < len(self._progress)

    async def wait(self) -> None:
        """Return when there may be something new, and at the latest for a heartbeat."""
        if not self._is_behind:
            left = self._last_sent + self._heartbeat - time.monotonic()
            await self._subscription.wait(max(left, 0.0))

    def close(self) -> None:
        """Wait no longer."""
        self._subscription.close()

    async def _messages(self, caller: Caller) -> Sequence[Row]:
        assert self._next_seq is not None  # noqa: S101 - set before anything is read
        span = Span(after=self._next_seq - 1)
        page = Page(_PAGE, None)
        messages, _ = await self._chat.list_messages(
            caller, self._session_id, page, span, newest_first=False
        )
        return messages


class Watches:
    """Makes the feeds of a process."""

    def __init__(self, chat: ChatService, wakeups: Wakeups, heartbeat: float) -> None:
        """``heartbeat`` is in seconds: so long a feed is quiet at most."""
        self._chat = chat
        self._wakeups = wakeups
        self._heartbeat = heartbeat

    def feed(self, session_id: str, next_seq: int | None) -> SessionFeed:
        """Return what follows a session from a seq on; None = after its last message."""
        subscription = self._wakeups.subscribe(session_id)
        return SessionFeed(self._chat, subscription, session_id, next_seq, self._heartbeat)
