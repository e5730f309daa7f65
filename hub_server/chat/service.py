"""Rules of chat. Opens the transactions; knows no gRPC."""

import base64
import datetime as dt
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hub_server.batching import Batcher
from hub_server.caller import Caller
from hub_server.chat.repository import ChatRepository
from hub_server.database import Database
from hub_server.errors import HubError, Reason
from hub_server.idempotency import KEPT, Claims, Retry
from hub_server.ids import new_id
from hub_server.paging import Page, split
from hub_server.rows import Row, active_user, owned

_MOST_TOGETHER: Final = 128
_MOST_WAITING: Final = 1024
_MOST_CHARACTERS: Final = 4 << 20
# A raced item lost its request id to another, or might fit a budget since another did not: the
# next statement sees what came of that.
_MOST_RACES: Final = 10


# Nobody waits for it any more, so it is not stored.
_LATE: Final[Row] = {"outcome": "LATE"}


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to append, as the caller gave it."""

    session_id: str
    role: str
    message_type: str
    content: str
    token_count: int
    model_name: str
    model_response_time: int | None
    metadata: Mapping[str, Any]
    expected_seq: int | None = None


_REFUSALS: Final[Mapping[str, Reason.ValueType]] = {
    "LATE": Reason.REASON_DEADLINE_EXCEEDED,
    "NOT_FOUND": Reason.REASON_NOT_FOUND,
    "USER_DISABLED": Reason.REASON_USER_DISABLED,
    "REUSED": Reason.REASON_REQUEST_ID_REUSED,
    "ENDED": Reason.REASON_SESSION_ENDED,
    "NO_TOOL": Reason.REASON_FEATURE_DISABLED,
}
_FACTS: Final[Mapping[str, Any]] = {
    "NOT_FOUND": {"resource": "session"},
    "NO_TOOL": {"feature": "enable_tool"},
}


@dataclass(frozen=True, slots=True)
class PendingAppend:
    """One append on its way to Postgres."""

    caller: Caller
    message: NewMessage
    message_id: str
    retry: Retry


class ChatService:
    """Sessions and the messages in them."""

    def __init__(self, database: Database) -> None:
        """Keep everything in the given database."""
        self._database = database
        self._batchers: dict[str, Batcher[PendingAppend, Row]] = {}

    async def close(self) -> None:
        """Break off the appends under way."""
        for batcher in self._batchers.values():
            await batcher.close()

    async def create_session(
        self, caller: Caller, retry: Retry, user_id: str, values: Mapping[str, Any]
    ) -> Row:
        """Start a session with the given title, model and metadata.

        Raises NOT_FOUND, USER_DISABLED, SESSION_LIMIT or REQUEST_ID_REUSED.
        """
        async with self._database.transaction(caller) as connection:
            repository = ChatRepository(connection, caller.tenant_id)
            user = active_user(await repository.lock_user(user_id))
            claims = Claims(connection, caller.tenant_id, user_id)
            if (answer := await claims.claim(retry)) is not None:
                return answer
            await _check_limit(repository, user_id, user)
            session = await repository.add_session(user_id=user_id, **values)
            await claims.keep(retry, session)
            return session

    async def get_session(self, caller: Caller, session_id: str) -> Row:
        """Return a session. Raises NOT_FOUND or USER_DISABLED."""
        async with self._database.statement(caller) as connection:
            session = await ChatRepository(connection, caller.tenant_id).session(session_id)
        return owned(caller, session, "session")

    async def list_sessions(
        self,
        caller: Caller,
        user_id: str,
        page: Page,
        filters: Mapping[str, Any],
        *,
        show_deleted: bool,
    ) -> tuple[Sequence[Row], str | None]:
        """Return a page of sessions and the key of the next; ``filters`` by column.

        Raises NOT_FOUND or USER_DISABLED.
        """
        async with self._database.statement(caller) as connection:
            rows = await ChatRepository(connection, caller.tenant_id).list_sessions(
                user_id, page, filters, show_deleted=show_deleted
            )
        active_user(rows[0] if rows else None)
        sessions = [row for row in rows if row["session_id"] is not None]
        return split(sessions, page.size, lambda row: str(row["session_id"]))

    async def update_session(
        self, caller: Caller, session_id: str, values: Mapping[str, Any], etag: str = ""
    ) -> Row:
        """Change a session that is not deleted. Raises NOT_FOUND, USER_DISABLED, ETAG_MISMATCH."""
        async with self._database.transaction(caller) as connection:
            repository = ChatRepository(connection, caller.tenant_id)
            session = owned(caller, await repository.lock_session(session_id), "session")
            if session["deleted_at"] is not None:
                raise HubError(Reason.REASON_NOT_FOUND, resource="session")
            if etag not in ("", session_etag(session)):
                raise HubError(Reason.REASON_ETAG_MISMATCH)
            if _is_so(session, values):
                return session
            return await repository.set_session(session_id, values)

    async def end_session(self, caller: Caller, session_id: str) -> Row:
        """End a session; one that has ended stays as it is. Raises NOT_FOUND or USER_DISABLED."""
        values = {"is_active": False, "ended_at": dt.datetime.now(dt.UTC)}
        return await self.update_session(caller, session_id, values)

    async def delete_session(self, caller: Caller, session_id: str, etag: str) -> Row:
        """Delete a session so that it can be brought back.

        Raises NOT_FOUND, USER_DISABLED or ETAG_MISMATCH.
        """
        values = {"deleted_at": dt.datetime.now(dt.UTC)}
        return await self.update_session(caller, session_id, values, etag)

    async def reopen_session(self, caller: Caller, session_id: str) -> Row:
        """Take messages again. Raises NOT_FOUND, USER_DISABLED or SESSION_LIMIT."""
        values = {"is_active": True, "ended_at": None}
        return await self._revive(caller, session_id, values, deleted=False)

    async def undelete_session(self, caller: Caller, session_id: str) -> Row:
        """Bring a deleted session back. Raises NOT_FOUND, USER_DISABLED or SESSION_LIMIT."""
        return await self._revive(caller, session_id, {"deleted_at": None}, deleted=True)

    async def _revive(
        self, caller: Caller, session_id: str, values: Mapping[str, Any], *, deleted: bool
    ) -> Row:
        """Change a session into one that may count as active; ``deleted`` ones when asked for.

        What bounds the user's sessions is locked before the session, as when one is created.
        """
        async with self._database.transaction(caller) as connection:
            repository = ChatRepository(connection, caller.tenant_id)
            named = await repository.named_session(session_id)
            user_id = owned(caller, named, "session")["user_id"]
            user = active_user(await repository.lock_user(user_id))
            session = owned(caller, await repository.lock_session(session_id), "session")
            if session["deleted_at"] is not None and not deleted:
                raise HubError(Reason.REASON_NOT_FOUND, resource="session")
            if _is_so(session, values):
                return session
            if values.get("is_active", session["is_active"]):
                await _check_limit(repository, user_id, user)
            return await repository.set_session(session_id, values)

    async def append(self, caller: Caller, retry: Retry, message: NewMessage) -> Row:
        """Append a message; return it with its seq.

        Raises NOT_FOUND, USER_DISABLED, SESSION_ENDED, FEATURE_DISABLED, TOKEN_BUDGET,
        SEQ_MISMATCH, REQUEST_ID_REUSED or OVERLOADED.
        """
        append = PendingAppend(caller, message, new_id(), retry)
        for _ in range(_MOST_RACES):
            row = await self._batcher(caller.tenant_id).submit(append)
            if row["outcome"] in ("ACCEPTED", "REPEATED"):
                return _appended(message, row)
            if row["outcome"] != "RACED":
                raise _refusal(row)
        raise HubError(Reason.REASON_UNAVAILABLE)

    async def list_messages(
        self, caller: Caller, session_id: str, page: Page, *, newest_first: bool
    ) -> tuple[Sequence[Row], str | None]:
        """Return a page of messages and the key of the next.

        Raises NOT_FOUND, USER_DISABLED or FEATURE_DISABLED.
        """
        async with self._database.statement(caller) as connection:
            repository = ChatRepository(connection, caller.tenant_id)
            rows = await repository.list_messages(session_id, page, newest_first=newest_first)
        session = owned(caller, rows[0] if rows else None, "session")
        if not session["enable_chat_history"]:
            raise HubError(Reason.REASON_FEATURE_DISABLED, feature="enable_chat_history")
        messages = [row for row in rows if row["seq"] is not None]
        return split(messages, page.size, lambda row: str(row["seq"]))

    async def get_message(self, caller: Caller, session_id: str, seq: int) -> Row:
        """Return a message. Raises NOT_FOUND, USER_DISABLED or FEATURE_DISABLED."""
        before = Page(1, str(seq - 1))
        messages, _ = await self.list_messages(caller, session_id, before, newest_first=False)
        if not messages or messages[0]["seq"] != seq:
            raise HubError(Reason.REASON_NOT_FOUND, resource="message")
        return messages[0]

    def _batcher(self, tenant_id: str) -> Batcher[PendingAppend, Row]:
        """Return the queue of a tenant; a group never mixes tenants."""
        batcher = self._batchers.get(tenant_id)
        if batcher is None:
            self._batchers = {key: one for key, one in self._batchers.items() if not one.idle}
            batcher = self._batchers[tenant_id] = Batcher(
                self._flush,
                most_items=_MOST_TOGETHER,
                most_waiting=_MOST_WAITING,
                most_groups=2,
                weigh=lambda append: len(append.message.content),
                most_weight=_MOST_CHARACTERS,
            )
        return batcher

    async def _flush(self, group: Sequence[PendingAppend]) -> Sequence[Row]:
        # The most patient caller's deadline: the others' calls end without stopping the group.
        caller = max((append.caller for append in group), key=lambda caller: caller.deadline)
        now = time.monotonic()
        in_time = [append for append in group if append.caller.deadline > now]
        rows: Iterator[Row] = iter(())
        if in_time:
            async with self._database.statement(caller) as connection:
                repository = ChatRepository(connection, caller.tenant_id)
                rows = iter(await repository.append(_columns(in_time), KEPT))
        return [next(rows) if append.caller.deadline > now else _LATE for append in group]


def _columns(group: Sequence[PendingAppend]) -> dict[str, list[Any]]:
    """Return the group as one array for each column, as the statement takes it."""
    messages = [append.message for append in group]
    return {
        "session_id": [message.session_id for message in messages],
        "user_id": [append.caller.user_id for append in group],
        "message_id": [append.message_id for append in group],
        "role": [message.role for message in messages],
        "message_type": [message.message_type for message in messages],
        "content": [message.content for message in messages],
        "token_count": [message.token_count for message in messages],
        "model_name": [message.model_name for message in messages],
        "model_response_time": [message.model_response_time for message in messages],
        "metadata": [json.dumps(message.metadata) for message in messages],
        "request_id": [append.retry.request_id or None for append in group],
        "fingerprint": [append.retry.fingerprint for append in group],
        "expected_seq": [message.expected_seq for message in messages],
    }


def _refusal(row: Row) -> HubError:
    """Return why the statement did not take a message."""
    if row["outcome"] == "NO_BUDGET":
        return HubError(
            Reason.REASON_TOKEN_BUDGET,
            retry_after=row["renewal"] and row["renewal"].total_seconds(),
            limit=str(row["max_tokens"]),
            subject="max_tokens",
        )
    if row["outcome"] == "STALE":
        return HubError(Reason.REASON_SEQ_MISMATCH, last_seq=str(row["last_seq"]))
    return HubError(_REFUSALS[row["outcome"]], **_FACTS.get(row["outcome"], {}))


def _appended(message: NewMessage, row: Row) -> Row:
    """Return the message as it was stored: what the caller gave and what the hub added."""
    return {
        "session_id": message.session_id,
        "seq": row["seq"],
        "message_id": row["message_id"],
        "role": message.role,
        "message_type": message.message_type,
        "content": message.content if row["is_kept"] else None,
        "token_count": message.token_count,
        "model_name": message.model_name,
        "model_response_time": message.model_response_time,
        "metadata": message.metadata if row["is_kept"] else None,
        "created_at": row["created_at"],
    }


def _is_so(session: Row, values: Mapping[str, Any]) -> bool:
    """Tell whether a session has these values; when it ended is not among what is asked."""
    return all(session[name] == value for name, value in values.items() if name != "ended_at")


def session_etag(session: Row) -> str:
    """Return the version of a session: 22 characters that change with what callers set."""
    names = ("session_title", "model_name", "metadata", "is_active", "is_archived", "deleted_at")
    text = repr([session[name] for name in names])
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:16])[:22].decode()


async def _check_limit(repository: ChatRepository, user_id: str, user: Row) -> None:
    """Refuse another active session when the user has as many as he may. Raises SESSION_LIMIT."""
    limit, subject = _session_limit(user)
    if limit is not None and await repository.count_active(user_id) >= limit:
        raise HubError(Reason.REASON_SESSION_LIMIT, limit=str(limit), subject=subject)


def _session_limit(user: Row) -> tuple[int | None, str]:
    """Return how many sessions of the user may be active, None = any number, and what says so."""
    limit: int | None = user["max_sessions"]
    if not user["enable_multichat"] and (limit is None or limit > 1):
        return 1, "enable_multichat"
    return limit, "max_sessions"
