"""Rules of appending: group commit, token counts, retries. Knows no gRPC."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hub_server.batching import Batcher
from hub_server.caller import Caller
from hub_server.chat.append_repository import AppendRepository
from hub_server.chat.tokens import Tokens, over_budget
from hub_server.database import Database
from hub_server.errors import HubError, Reason
from hub_server.idempotency import KEPT, Retry
from hub_server.ids import new_id
from hub_server.rows import Row
from hub_server.tokenizer import Tokenizer

_MOST_TOGETHER: Final = 128
_MOST_WAITING: Final = 1024
_MOST_CHARACTERS: Final = 4 << 20
_MESSAGE_WEIGHT: Final = 1024  # what a message weighs beside its characters
# A raced call lost its request id to another, or might fit a budget since another did not: the
# next statement sees what came of that.
_MOST_RACES: Final = 10

# Nobody waits for it any more, so it is not stored.
_LATE: Final[Row] = {"outcome": "LATE"}
_REFUSALS: Final[Mapping[str, Reason.ValueType]] = {
    "LATE": Reason.REASON_DEADLINE_EXCEEDED,
    "NOT_FOUND": Reason.REASON_NOT_FOUND,
    "USER_DISABLED": Reason.REASON_USER_DISABLED,
    "REUSED": Reason.REASON_REQUEST_ID_REUSED,
    "ENDED": Reason.REASON_SESSION_ENDED,
    "NO_TOOL": Reason.REASON_FEATURE_DISABLED,
    "NO_RESERVATION": Reason.REASON_NOT_FOUND,
    "SETTLED": Reason.REASON_RESERVATION_SETTLED,
}
_FACTS: Final[Mapping[str, Any]] = {
    "NOT_FOUND": {"resource": "session"},
    "NO_RESERVATION": {"resource": "reservation"},
    "NO_TOOL": {"feature": "enable_tool"},
}


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to append, as the caller gave it; the hub counts tokens that he did not."""

    role: str
    message_type: str
    content: str
    token_count: int | None
    model_name: str
    model_response_time: int | None
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Append:
    """Messages for one session, all of them or none."""

    session_id: str
    messages: Sequence[NewMessage]
    expected_seq: int | None = None
    reservation_id: str | None = None


@dataclass(frozen=True, slots=True)
class PendingAppend:
    """One call on its way to Postgres."""

    caller: Caller
    retry: Retry
    append: Append
    message_ids: Sequence[str]


class Appends:
    """Appends, many calls in one statement."""

    def __init__(
        self,
        database: Database,
        tokens: Tokens,
        tokenizer: Tokenizer,
        embed: Callable[[str, str], None],
    ) -> None:
        """Keep messages in the database, within the budgets of ``tokens``.

        ``embed`` is told which tenant's user has messages that are to be embedded.
        """
        self._database = database
        self._tokens = tokens
        self._tokenizer = tokenizer
        self._embed = embed
        self._batchers: dict[str, Batcher[PendingAppend, Row]] = {}

    async def close(self) -> None:
        """Break off the appends under way."""
        for batcher in self._batchers.values():
            await batcher.close()

    async def append(self, caller: Caller, retry: Retry, append: Append) -> Sequence[Row]:
        """Append messages; return them in order, with what the hub added.

        Raises NOT_FOUND, USER_DISABLED, SESSION_ENDED, FEATURE_DISABLED, TOKEN_BUDGET,
        SEQ_MISMATCH, RESERVATION_SETTLED, REQUEST_ID_REUSED or OVERLOADED.
        """
        append = replace(append, messages=await self._counted(append.messages))
        ids = [new_id() for _ in append.messages]
        pending = PendingAppend(caller, retry, append, ids)
        races, is_released = 0, False
        while races < _MOST_RACES:
            row = await self._batcher(caller.tenant_id).submit(pending)
            outcome = row["outcome"]
            if outcome in ("ACCEPTED", "REPEATED"):
                if row["message_search"] == "hybrid" and row["enable_chat_history"]:
                    self._embed(caller.tenant_id, row["user_id"])
                return _stored(pending, row)
            if outcome == "NO_BUDGET" and row["reserved_tokens"] and not is_released:
                # Perhaps what is missing is held by reservations that have expired.
                await self._tokens.release_expired(caller, row["user_id"])
                is_released = True
            elif outcome == "RACED":
                races += 1
            elif outcome != "QUEUED":  # the first of the queue is through, so it is shorter now
                raise _refusal(row)
        raise HubError(Reason.REASON_UNAVAILABLE)

    async def _counted(self, messages: Sequence[NewMessage]) -> Sequence[NewMessage]:
        """Return the messages with the tokens of those counted that the caller did not count."""
        uncounted = [message.content for message in messages if message.token_count is None]
        if not uncounted:
            return messages
        counts = iter(await self._tokenizer.counts(uncounted))
        return [
            replace(message, token_count=next(counts)) if message.token_count is None else message
            for message in messages
        ]

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
                weigh=_weight,
                most_weight=_MOST_CHARACTERS,
            )
        return batcher

    async def _flush(self, group: Sequence[PendingAppend]) -> Sequence[Row]:
        # The most patient caller's deadline: the others' calls end without stopping the group.
        caller = max((call.caller for call in group), key=lambda caller: caller.deadline)
        now = time.monotonic()
        in_time = [call for call in group if call.caller.deadline > now]
        rows: Iterator[Row] = iter(())
        if in_time:
            async with self._database.statement(caller) as connection:
                repository = AppendRepository(connection, caller.tenant_id)
                rows = iter(await repository.append(_columns(in_time), KEPT))
        return [next(rows) if call.caller.deadline > now else _LATE for call in group]


def _weight(call: PendingAppend) -> int:
    return sum(len(message.content) + _MESSAGE_WEIGHT for message in call.append.messages)


def _columns(group: Sequence[PendingAppend]) -> dict[str, list[Any]]:
    """Return the group as one array for each column, as the statement takes it."""
    appends = [call.append for call in group]
    messages = [message for append in appends for message in append.messages]
    return {
        "session_id": [append.session_id for append in appends],
        "user_id": [call.caller.user_id for call in group],
        "request_id": [call.retry.request_id or None for call in group],
        "fingerprint": [call.retry.fingerprint for call in group],
        "expected_seq": [append.expected_seq for append in appends],
        "reservation_id": [append.reservation_id for append in appends],
        "first_id": [call.message_ids[0] for call in group],
        "messages": [len(append.messages) for append in appends],
        "tokens": [_tokens(append) for append in appends],
        "uses_tool": [_uses_tool(append) for append in appends],
        "place": [n for n, append in enumerate(appends, 1) for _ in append.messages],
        "position": [n for append in appends for n in range(1, len(append.messages) + 1)],
        "message_id": [one for call in group for one in call.message_ids],
        "role": [message.role for message in messages],
        "message_type": [message.message_type for message in messages],
        "content": [message.content for message in messages],
        "token_count": [message.token_count for message in messages],
        "model_name": [message.model_name for message in messages],
        "model_response_time": [message.model_response_time for message in messages],
        "metadata": [json.dumps(message.metadata) for message in messages],
    }


def _tokens(append: Append) -> int:
    return sum(message.token_count or 0 for message in append.messages)


def _uses_tool(append: Append) -> bool:
    return any(message.role == "tool" for message in append.messages)


def _refusal(row: Row) -> HubError:
    """Return why the statement did not take a call."""
    if row["outcome"] == "NO_BUDGET":
        return over_budget(row)
    if row["outcome"] == "STALE":
        return HubError(Reason.REASON_SEQ_MISMATCH, last_seq=str(row["last_seq"]))
    return HubError(_REFUSALS[row["outcome"]], **_FACTS.get(row["outcome"], {}))


def _stored(pending: PendingAppend, row: Row) -> Sequence[Row]:
    """Return the messages as they were stored: what the caller gave and what the hub added."""
    append, count = pending.append, len(pending.append.messages)
    is_new = row["message_ids"] is None
    ids = pending.message_ids if is_new else row["message_ids"]
    kept = [row["enable_chat_history"]] * count if is_new else row["are_kept"]
    redacted = [None] * count if is_new else row["redacted_at"]
    tokens = [one.token_count for one in append.messages] if is_new else row["token_counts"]
    return [
        {
            "session_id": append.session_id,
            "seq": seq,
            "message_id": ids[place],
            "role": message.role,
            "message_type": message.message_type,
            "content": message.content if kept[place] else None,
            "token_count": tokens[place],
            "model_name": message.model_name,
            "model_response_time": message.model_response_time,
            "metadata": message.metadata if kept[place] else None,
            "created_at": row["created_at"],
            "redacted_at": redacted[place],
        }
        for place, (seq, message) in enumerate(enumerate(append.messages, row["seq"]))
    ]
