"""Rules of memory. Opens the transactions; knows no gRPC."""

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from hub_server import spaces
from hub_server.caller import Caller
from hub_server.database import Connection, Database
from hub_server.errors import HubError, Reason
from hub_server.idempotency import Claims, Retry
from hub_server.memory.remembering import Judge, Statement
from hub_server.memory.report import MOST_MEMORIES, Finding, findings
from hub_server.memory.repository import MemoryRepository, by_model, indexed
from hub_server.memory.rules import Clock, Rules, utc_now
from hub_server.memory.sameness import content_hash
from hub_server.memory.scoring import Scored, Weights, confidence_now, scored
from hub_server.memory.turn import KIND, Remembered, Turn
from hub_server.memory.wanted import Wanted
from hub_server.memory.write_repository import MemoryWrites
from hub_server.paging import Page, split
from hub_server.retrieval.view import Candidate, Change, View
from hub_server.retrieval.views import Space
from hub_server.rows import Row, active_user, owned
from hub_server.search import DEFAULT_TOP_K, Hit, Pull, Query, Search, Source, looked

# The order by relevance is not the one that counts: so many are scored, of which the best are hits.
_SCORED: Final = 200
# Of the nearest vectors, those that may be near enough to be the same.
_MOST_NEAR: Final = 16
_HOUR: Final = dt.timedelta(hours=1)
# When a memory was recalled is noted to the day: a read that always wrote would be slow.
_RECALLED_AGAIN: Final = dt.timedelta(days=1)
_LONGEST_HISTORY: Final = 500
_CHANGES: Final = 2  # by a statement that takes the place of another; few make more
_RESTORABLE: Final = ("active", "superseded", "forgotten")
# A space moves once in a long time, and may do so while a text is embedded for it.
_MOST_TRIES: Final = 3

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """What to recall, and from when."""

    query: str
    top_k: int = 0
    wanted: Wanted = field(default_factory=Wanted)
    min_confidence: float = 0.0
    as_of: dt.datetime | None = None
    weights: Weights = field(default_factory=Weights)


class MemoryService:
    """What is remembered of users."""

    def __init__(
        self,
        database: Database,
        search: Search,
        rules: Rules,
        clock: Clock = utc_now,
    ) -> None:
        """Keep everything in the given database and find it by the given search."""
        self._database = database
        self._search = search
        self._rules = rules
        self._clock = clock

    def confidence(self, memory: Row, as_of: dt.datetime | None = None) -> float:
        """Return how sure a memory is now, or was at a time."""
        return confidence_now(memory, as_of or self._clock(), self._rules.half_life)

    async def remember(
        self,
        caller: Caller,
        retry: Retry,
        user_id: str,
        said: Sequence[Mapping[str, Any]],
        *,
        is_batch: bool = False,
    ) -> Sequence[Remembered]:
        """Remember statements in their order, all or none; return what came of each.

        Raises INVALID_FIELD, NOT_FOUND, USER_DISABLED, REQUEST_ID_REUSED or MEMORY_RATE.
        """
        attempt = partial(self._remember, caller, retry, user_id, said, is_batch=is_batch)
        return await _by_its_model(attempt)

    async def _remember(
        self,
        caller: Caller,
        retry: Retry,
        user_id: str,
        said: Sequence[Mapping[str, Any]],
        *,
        is_batch: bool,
    ) -> Sequence[Remembered]:
        statements, near, before = await self._prepared(caller, user_id, said)
        named = before["embedding_model"] or statements[0].embedding_model
        async with self._database.transaction(caller) as connection:
            state = active_user(await spaces.state(connection, caller.tenant_id, user_id, KIND))
            claims = Claims(connection, caller.tenant_id, user_id)
            if (answer := await claims.claim(retry)) is not None:
                return await self._first_answer(connection, caller, answer)
            changes = _CHANGES * len(statements)
            turn = await Turn.begin(connection, caller, user_id, self._clock, changes, named)
            # Only now: a retry whose time to expire has passed meanwhile is still a retry.
            for place, one in enumerate(statements):
                prefix = f"memories[{place}]." if is_batch else ""
                _check_expiry(f"{prefix}expires_at", one.expires_at, turn.now)
                await turn.check_origin(f"{prefix}message_id", one)
            await self._check_rate(turn, len(statements))
            judge = Judge(turn.now, state["preferred_language"], self._rules.near_duplicate)
            known = await turn.known(statements, near, before["last_seq"])
            results = [await turn.settle(judge, one, known) for one in statements]
            await claims.keep(retry, {"results": [_short(one) for one in results]})
            return results

    async def get_memory(self, caller: Caller, memory_id: str) -> Row:
        """Return a memory. Raises NOT_FOUND or USER_DISABLED."""
        async with self._database.statement(caller) as connection:
            memory = await MemoryRepository(connection, caller.tenant_id).memory(memory_id)
        return owned(caller, memory, "memory")

    async def list_memories(
        self,
        caller: Caller,
        user_id: str,
        page: Page,
        wanted: Wanted,
        as_of: dt.datetime | None,
    ) -> tuple[Sequence[Row], str | None]:
        """Return a page of memories and the key of the next.

        Raises NOT_FOUND, USER_DISABLED, or INVALID_FIELD when ``as_of`` is yet to come.
        """
        now = self._clock()
        _check_past(as_of, now)
        async with self._database.statement(caller) as connection:
            repository = MemoryRepository(connection, caller.tenant_id)
            rows = await repository.list_memories(user_id, page, wanted, now, as_of)
        active_user(rows[0] if rows else None)
        memories = [row for row in rows if row["memory_id"] is not None]
        return split(memories, page.size, lambda row: str(row["memory_id"]))

    async def history(self, caller: Caller, memory_id: str) -> tuple[Sequence[Row], bool]:
        """Return the latest changes of a memory and its chain, oldest first, and whether cut off.

        Raises NOT_FOUND or USER_DISABLED.
        """
        async with self._database.statement(caller) as connection:
            repository = MemoryRepository(connection, caller.tenant_id)
            rows = await repository.history(memory_id, _LONGEST_HISTORY + 1)
        owned(caller, rows[0] if rows else None, "memory")
        kept, older = split(rows, _LONGEST_HISTORY, lambda row: str(row["space_seq"]))
        return kept[::-1], older is not None

    async def recall(self, caller: Caller, user_id: str, asked: Asked) -> Sequence[Scored]:
        """Return the memories that fit a query, best first.

        Raises NOT_FOUND, USER_DISABLED, or INVALID_FIELD when ``as_of`` is yet to come.
        """
        now = self._clock()
        _check_past(asked.as_of, now)
        source = await self.source(caller, user_id)
        vector = await self._search.embed(asked.query, source.space.embedding_model)
        query = Query(asked.query, vector)
        if asked.as_of is None:
            look = partial(self._hits, caller, source, query, asked, now)
            hits = await looked(source.state, look, partial(self._state, caller, user_id))
        else:
            hits = await self._hits_then(caller, source, query, asked.as_of)
        chosen = self._chosen(asked, asked.as_of or now, hits)
        best = scored(chosen, asked.weights, asked.as_of or now, self._rules.half_life)
        best = best[: asked.top_k or DEFAULT_TOP_K]
        if asked.as_of is None:
            await self._touch(caller, user_id, best, now)
        return best

    async def source(self, caller: Caller, user_id: str) -> Source:
        """Return what a view of a user's memories is made of. Raises NOT_FOUND or USER_DISABLED."""
        return self.source_of(caller, user_id, await self._state(caller, user_id))

    def source_of(self, caller: Caller, user_id: str, state: Row) -> Source:
        """Return what a view of a user's memories is made of, given its state."""
        model = self._search.models.in_use(state["embedding_model"])
        space = Space(caller.tenant_id, user_id, KIND, model)
        return Source(space, state, self.pull(caller, user_id, model))

    async def update_memory(
        self, caller: Caller, memory_id: str, values: Mapping[str, Any], etag: str
    ) -> Row:
        """Change a memory. Raises NOT_FOUND, USER_DISABLED, INVALID_FIELD or ETAG_MISMATCH."""
        return await _by_its_model(partial(self._update, caller, memory_id, values, etag))

    async def _update(
        self, caller: Caller, memory_id: str, values: Mapping[str, Any], etag: str
    ) -> Row:
        changes, named = dict(values), None
        if (text := changes.get("memory_content")) is not None:
            model, named = await self._model_for(caller, memory_id)
            vector = await self._search.embed(text, model)
            changes["embedding"] = vector.astype("<f4").tobytes()
            changes["embedding_model"] = model
            changes["content_hash"] = content_hash(text)
        async with self._database.transaction(caller) as connection:
            turn, memory = await self._held(connection, caller, memory_id, named)
            if etag not in ("", memory_etag(memory)):
                raise HubError(Reason.REASON_ETAG_MISMATCH)
            _check_expiry("expires_at", changes.get("expires_at"), turn.now)
            return await turn.change(memory, "updated", changes)

    async def forget_memory(self, caller: Caller, memory_id: str) -> Row:
        """Make a memory inactive. Raises NOT_FOUND, USER_DISABLED or MEMORY_STATUS."""
        async with self._database.transaction(caller) as connection:
            turn, memory = await self._held(connection, caller, memory_id)
            if memory["status"] == "forgotten":
                return memory
            _check_status(memory, ("active",))
            return await turn.change(memory, "forgotten", {"status": "forgotten"})

    async def restore_memory(self, caller: Caller, memory_id: str) -> Row:
        """Make a memory active again. Raises NOT_FOUND, USER_DISABLED or MEMORY_STATUS."""
        async with self._database.transaction(caller) as connection:
            turn, memory = await self._held(connection, caller, memory_id)
            _check_status(memory, _RESTORABLE)
            _check_lasts(memory, turn.now)
            if memory["status"] == "active":
                return memory
            return await turn.enthrone(memory, "restored", {})

    async def accept_memory(self, caller: Caller, memory_id: str) -> Row:
        """Make a proposal active. Raises NOT_FOUND, USER_DISABLED or MEMORY_STATUS."""
        async with self._database.transaction(caller) as connection:
            turn, memory = await self._held(connection, caller, memory_id)
            _check_status(memory, ("proposed",))
            _check_lasts(memory, turn.now)
            return await turn.enthrone(memory, "accepted", {"source": "user"})

    async def reject_memory(self, caller: Caller, memory_id: str) -> Row:
        """Turn a proposal down. Raises NOT_FOUND, USER_DISABLED or MEMORY_STATUS."""
        async with self._database.transaction(caller) as connection:
            turn, memory = await self._held(connection, caller, memory_id)
            _check_status(memory, ("proposed",))
            return await turn.change(memory, "rejected", {"status": "rejected"})

    async def delete_memory(self, caller: Caller, memory_id: str) -> None:
        """Remove a memory with its history. Raises NOT_FOUND or USER_DISABLED."""
        async with self._database.transaction(caller) as connection:
            turn, memory = await self._held(connection, caller, memory_id)
            seq = await turn.delete(memory)
        await self._search.removed(caller.tenant_id, memory["user_id"], KIND, seq)

    async def report(self, caller: Caller, user_id: str) -> tuple[Sequence[Finding], int]:
        """Return what to clean, and of how many memories. Raises NOT_FOUND or USER_DISABLED."""
        now = self._clock()
        model = (await self.source(caller, user_id)).space.embedding_model
        async with self._database.statement(caller) as connection:
            repository = MemoryRepository(connection, caller.tenant_id)
            found = await repository.to_report(user_id, MOST_MEMORIES, now)
        rows = [by_model(row, model) for row in found]
        look = partial(findings, rows, now, self._rules.half_life)
        return await asyncio.to_thread(look), len(rows)

    # --- remembering

    async def _prepared(
        self, caller: Caller, user_id: str, said: Sequence[Mapping[str, Any]]
    ) -> tuple[Sequence[Statement], Sequence[str], Row]:
        """Embed statements, and ask the view what is near; it knows all up to the state returned.

        What changes after that is read under the lock.
        """
        source = await self.source(caller, user_id)
        model = source.space.embedding_model
        texts = [values["memory_content"] for values in said]
        vectors = await self._search.embed_all(texts, model)
        statements: list[Statement] = []
        near: set[str] = set()
        for values, vector in zip(said, vectors, strict=True):
            statements.append(
                Statement(
                    **values,
                    embedding=vector.astype("<f4").tobytes(),
                    embedding_model=model,
                    content_hash=content_hash(values["memory_content"]),
                )
            )
            if not values["memory_key"]:
                found = await self._search.candidates(
                    source.space, source.state, Query("", vector), _MOST_NEAR, source.pull
                )
                near |= {candidate.row_id for candidate in found}
        return statements, list(near), source.state

    async def _model_for(self, caller: Caller, memory_id: str) -> tuple[str, str]:
        """Return what to embed a memory by, and the model that its space then names."""
        async with self._database.statement(caller) as connection:
            memory = await MemoryRepository(connection, caller.tenant_id).memory(memory_id)
        source = await self.source(caller, owned(caller, memory, "memory")["user_id"])
        model = source.space.embedding_model
        return model, source.state["embedding_model"] or model

    async def _check_rate(self, turn: Turn, more: int) -> None:
        rate = self._rules.hourly_rate
        if rate and more > rate:  # waiting would not help
            what = f"must be at most {rate:,} items, which is HUB_REMEMBER_RATE, not {more:,}"
            raise HubError.invalid("memories", what)
        if rate and await turn.writes.count_since(turn.now - _HOUR) + more > rate:
            raise HubError(
                Reason.REASON_MEMORY_RATE,
                retry_after=_HOUR.total_seconds(),
                limit=str(rate),
                subject="HUB_REMEMBER_RATE",
            )

    async def _first_answer(
        self, connection: Connection, caller: Caller, answer: Row
    ) -> Sequence[Remembered]:
        """Return what the first of some equal calls was answered.

        Only ids are kept of it: a text that is deleted shall not go on in answers.
        """
        short = answer["results"]
        pairs = [(one["memory_id"], one["revision"]) for one in short]
        repository = MemoryRepository(connection, caller.tenant_id)
        memories = await repository.at_revisions(pairs)
        return [
            Remembered(memories[pair], one["outcome"], one["superseded_id"])
            for pair, one in zip(pairs, short, strict=True)
        ]

    async def _held(
        self, connection: Connection, caller: Caller, memory_id: str, model: str | None = None
    ) -> tuple[Turn, Row]:
        """Return a memory that nobody else changes until the end, and the turn to change it.

        ``model`` is as of ``Turn.begin``.
        """
        repository = MemoryRepository(connection, caller.tenant_id)
        named = owned(caller, await repository.memory(memory_id), "memory")
        turn = await Turn.begin(connection, caller, named["user_id"], self._clock, model=model)
        memory = await turn.writes.memory(memory_id)
        if memory is None:
            raise HubError(Reason.REASON_NOT_FOUND, resource="memory")
        return turn, memory

    # --- recalling

    async def _hits(
        self,
        caller: Caller,
        source: Source,
        query: Query,
        asked: Asked,
        now: dt.datetime,
        state: Row,
    ) -> tuple[Sequence[Hit], bool]:
        """Return the hits, and whether a memory has changed that may be one."""
        is_outdated = False

        async def read(memory_ids: Sequence[str]) -> Mapping[str, Row]:
            nonlocal is_outdated
            async with self._database.statement(caller) as connection:
                repository = MemoryRepository(connection, caller.tenant_id)
                rows, seq = await repository.living(source.space.user_id, memory_ids, now)
            is_outdated = len(rows) < len(memory_ids) and seq > state["last_seq"]
            return rows

        hits = await self._search.hits(
            source.space,
            state,
            query,
            max(_SCORED, asked.top_k),
            source.pull,
            read,
            partial(self._chosen, asked, now),
        )
        return hits, is_outdated

    async def _hits_then(
        self, caller: Caller, source: Source, query: Query, as_of: dt.datetime
    ) -> Sequence[Hit]:
        """Search the memories as they were, in a view made for this one question."""
        async with self._database.statement(caller) as connection:
            repository = MemoryRepository(connection, caller.tenant_id)
            rows = await repository.states_at(source.space.user_id, as_of)
        model = source.space.embedding_model
        changes = [
            Change(row["memory_id"], seq, (indexed(row, model),)) for seq, row in enumerate(rows, 1)
        ]

        def search() -> Sequence[Candidate]:
            assert query.vector is not None  # noqa: S101 - recall embeds every query
            view = View(len(query.vector), source.state["preferred_language"], 1 << 62)
            view.apply(changes)
            return view.search(query.text, query.vector, max(len(rows), 1))

        by_id = {row["memory_id"]: row for row in rows}
        return [Hit(by_id[one.row_id], one) for one in await asyncio.to_thread(search)]

    def _chosen(self, asked: Asked, now: dt.datetime, hits: Sequence[Hit]) -> Sequence[Hit]:
        """Return the hits that are asked for."""
        wanted, half_life = asked.wanted, self._rules.half_life
        return [
            hit
            for hit in hits
            if (not wanted.types or hit.row["memory_type"] in wanted.types)
            and (not wanted.sources or hit.row["source"] in wanted.sources)
            and confidence_now(hit.row, now, half_life) >= asked.min_confidence
        ]

    async def _touch(
        self, caller: Caller, user_id: str, found: Sequence[Scored], now: dt.datetime
    ) -> None:
        """Note that memories were recalled, where that was not noted lately."""
        lately = now - _RECALLED_AGAIN
        rows = [one.hit.row for one in found]
        ids = [row["memory_id"] for row in rows if (row["last_recalled_at"] or lately) <= lately]
        if ids:
            async with self._database.statement(caller) as connection:
                await MemoryWrites(connection, caller.tenant_id, user_id, now).touch(ids)

    def pull(self, caller: Caller, user_id: str, model: str) -> Pull:
        """Return what a view of a user's memories by a model follows."""

        async def pull(after: int) -> Sequence[Change]:
            async with self._database.statement(caller) as connection:
                repository = MemoryRepository(connection, caller.tenant_id)
                return await repository.changes(user_id, model, after)

        return pull

    async def _state(self, caller: Caller, user_id: str) -> Row:
        async with self._database.statement(caller) as connection:
            return active_user(await spaces.state(connection, caller.tenant_id, user_id, KIND))


async def _by_its_model(attempt: Callable[[], Awaitable[T]]) -> T:
    """Return what an attempt returns, which is made again where the space has moved meanwhile."""
    for _ in range(_MOST_TRIES):
        with suppress(spaces.OtherModelError):
            return await attempt()
    raise HubError(Reason.REASON_UNAVAILABLE)


def memory_etag(memory: Row) -> str:
    """Return the version of a memory."""
    return str(memory["revision"])


def _short(result: Remembered) -> dict[str, Any]:
    return {
        "memory_id": result.memory["memory_id"],
        "revision": result.memory["revision"],
        "outcome": result.outcome,
        "superseded_id": result.superseded_id,
    }


def _check_expiry(field: str, expires_at: dt.datetime | None, now: dt.datetime) -> None:
    if expires_at is not None and expires_at <= now:
        raise HubError.invalid(field, "must lie in the future")


def _check_past(as_of: dt.datetime | None, now: dt.datetime) -> None:
    if as_of is not None and as_of > now:
        raise HubError.invalid("as_of", "must not lie in the future")


def _check_lasts(memory: Row, now: dt.datetime) -> None:
    """Refuse what is over: in the place of another it would leave nothing to recall."""
    if memory["expires_at"] is not None and memory["expires_at"] <= now:
        raise HubError(Reason.REASON_MEMORY_STATUS, status="expired")


def _check_status(memory: Row, allowed: Sequence[str]) -> None:
    if memory["status"] not in allowed:
        raise HubError(Reason.REASON_MEMORY_STATUS, status=memory["status"])
