"""Rules of chat. Opens the transactions; knows no gRPC."""

import base64
import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from hub_server import audit
from hub_server.caller import Caller
from hub_server.chat.repository import ChatRepository
from hub_server.chat.spans import Span
from hub_server.database import Database
from hub_server.errors import HubError, Reason
from hub_server.idempotency import Claims, Retry
from hub_server.paging import Page, split
from hub_server.rows import Row, active_user, owned
from hub_server.search import Search

SEARCHED: Final = "messages"
"""The kind of the space in which messages are found."""


class ChatService:
    """Sessions and the messages in them."""

    def __init__(self, database: Database, search: Search) -> None:
        """Keep everything in the given database; ``search`` is told what is redacted."""
        self._database = database
        self._search = search

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
        times: Sequence[dt.datetime | None],
        *,
        show_deleted: bool,
    ) -> tuple[Sequence[Row], str | None]:
        """Return a page of sessions and the key of the next; ``filters`` by column.

        ``times`` are when their last activity was at the earliest, and before when.

        Raises NOT_FOUND or USER_DISABLED.
        """
        async with self._database.statement(caller) as connection:
            rows = await ChatRepository(connection, caller.tenant_id).list_sessions(
                user_id, page, filters, times, show_deleted=show_deleted
            )
        active_user(rows[0] if rows else None)
        sessions = [row for row in rows if row["session_id"] is not None]
        return split(sessions, page.size, _activity_key)

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

    async def list_messages(
        self, caller: Caller, session_id: str, page: Page, span: Span, *, newest_first: bool
    ) -> tuple[Sequence[Row], str | None]:
        """Return a page of the messages of a span and the key of the next.

        Raises NOT_FOUND, USER_DISABLED or FEATURE_DISABLED.
        """
        if page.after and newest_first:
            span = replace(span, last=min(span.last, int(page.after) - 1))
        elif page.after:
            span = replace(span, after=max(span.after, int(page.after)))
        async with self._database.statement(caller) as connection:
            rows = await ChatRepository(connection, caller.tenant_id).list_messages(
                session_id, span, page.size + 1, newest_first=newest_first
            )
        history_of(owned(caller, rows[0] if rows else None, "session"))
        messages = [{**row, "session_id": session_id} for row in rows if row["seq"] is not None]
        return split(messages, page.size, lambda row: str(row["seq"]))

    async def get_message(self, caller: Caller, session_id: str, seq: int) -> Row:
        """Return a message. Raises NOT_FOUND, USER_DISABLED or FEATURE_DISABLED."""
        only = Span(after=seq - 1, last=seq)
        messages, _ = await self.list_messages(
            caller, session_id, Page(1, None), only, newest_first=False
        )
        if not messages:
            raise HubError(Reason.REASON_NOT_FOUND, resource="message")
        return messages[0]

    async def fork_session(
        self, caller: Caller, retry: Retry, session_id: str, at_seq: int | None, title: str
    ) -> Row:
        """Start a session that shares another's messages up to ``at_seq``; None = all.

        Raises NOT_FOUND, USER_DISABLED, INVALID_FIELD, SESSION_LIMIT or REQUEST_ID_REUSED.
        """
        async with self._database.transaction(caller) as connection:
            repository = ChatRepository(connection, caller.tenant_id)
            named = await repository.named_session(session_id)
            user_id = owned(caller, named, "session")["user_id"]
            user = active_user(await repository.lock_user(user_id))
            claims = Claims(connection, caller.tenant_id, user_id)
            if (answer := await claims.claim(retry)) is not None:
                return answer
            parent = owned(caller, await repository.session(session_id), "session")
            at_seq = parent["last_seq"] if at_seq is None else at_seq
            if at_seq > parent["last_seq"]:
                raise HubError.invalid("at_seq", f"must be at most {parent['last_seq']}")
            await _check_limit(repository, user_id, user)
            fork_id = await repository.fork(session_id, at_seq, title or None)
            fork = await repository.session(fork_id)
            fork = owned(caller, fork, "session")
            await claims.keep(retry, fork)
            return fork

    async def redact_message(self, caller: Caller, session_id: str, seq: int) -> Row:
        """Remove the content of a message; return what is left of it.

        Raises NOT_FOUND or USER_DISABLED.
        """
        async with self._database.transaction(caller) as connection:
            repository = ChatRepository(connection, caller.tenant_id)
            session = owned(caller, await repository.session(session_id), "session")
            only, space_seq = Span(after=seq - 1, last=seq), None
            if origin_id := await repository.lock_origin(session_id, seq):
                space_seq = await repository.redact(session_id, origin_id, seq)
            if space_seq is not None:
                target = f"{origin_id}/{seq}"
                await audit.note(connection, caller, "message_redacted", "message", target)
            rows = await repository.list_messages(session_id, only, 1, newest_first=False)
            if rows[0]["seq"] is None:
                raise HubError(Reason.REASON_NOT_FOUND, resource="message")
        if space_seq:
            user_id = session["user_id"]
            await self._search.removed(caller.tenant_id, user_id, SEARCHED, space_seq)
        return {**rows[0], "session_id": session_id}


def history_of(row: Row) -> Row:
    """Return a row that bears ``enable_chat_history``. Raises FEATURE_DISABLED."""
    if not row["enable_chat_history"]:
        raise HubError(Reason.REASON_FEATURE_DISABLED, feature="enable_chat_history")
    return row


def _is_so(session: Row, values: Mapping[str, Any]) -> bool:
    """Tell whether a session has these values; when it ended is not among what is asked."""
    return all(session[name] == value for name, value in values.items() if name != "ended_at")


def session_etag(session: Row) -> str:
    """Return the version of a session: 22 characters that change with what callers set."""
    names = ("session_title", "model_name", "metadata", "is_active", "is_archived", "deleted_at")
    text = repr([session[name] for name in names])
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:16])[:22].decode()


def _activity_key(session: Row) -> str:
    return f"{session['active_at'].isoformat()}|{session['session_id']}"


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
