"""A watched session: its state and its messages, as they come. Knows no gRPC.

Nothing is queued for a reader: he is told to look again, and what he sees next is read from
Postgres, after what he was sent last. So a slow reader costs no memory, and one who comes back to
another process finds everything there.
"""

from collections.abc import Sequence
from typing import Final, Literal

from hub_server.caller import Caller
from hub_server.chat.service import ChatService, history_of, session_etag
from hub_server.chat.spans import Span
from hub_server.paging import Page
from hub_server.rows import Row
from hub_server.wakeups import Subscription, Wakeups

_PAGE: Final = 100

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
        self._state: tuple[str, int] | None = None
        self._is_behind = False
        self._is_quiet = False

    async def read(self, caller: Caller) -> Sequence[Event]:
        """Return what is new, with a heartbeat where nothing was for a while.

        Raises NOT_FOUND, USER_DISABLED or FEATURE_DISABLED.
        """
        self._subscription.looks()
        session = history_of(await self._chat.get_session(caller, self._session_id))
        if self._next_seq is None:
            self._next_seq = session["last_seq"] + 1
        events: list[Event] = []
        state = (session_etag(session), session["redaction_count"])
        if state != self._state:
            self._state = state
            events.append(("session", session))
        if session["last_seq"] >= self._next_seq:
            events += [("message", message) for message in await self._messages(caller)]
        self._is_behind = session["last_seq"] >= self._next_seq
        if not events and self._is_quiet:
            events.append(("heartbeat", {"next_seq": self._next_seq}))
        return events

    async def wait(self) -> None:
        """Return when there may be something new, and at the latest for a heartbeat."""
        if not self._is_behind:
            self._is_quiet = not await self._subscription.wait(self._heartbeat)

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
        self._next_seq += len(messages)
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
