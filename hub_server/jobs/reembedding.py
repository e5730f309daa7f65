"""Reembedding: spaces move to another model while they are searched.

What is to be done stands in Postgres: a move with its target, and rows that lack its vector. A hub
claims a move for the time of a lease, which every step extends; when it dies another goes on with
what is lacking. Searches use the model that the space names. It names the target once no row lacks
its vector, which is seen under the lock that everybody waits for who writes to the space.
"""

import asyncio
import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import structlog

from hub_server import spaces
from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.embedding import Embedder, EmbeddingError, TextRefusedError
from hub_server.errors import HubError
from hub_server.knowledge.chunking import embedded
from hub_server.knowledge.reembed_repository import ReembedRepository, claim_reembedding
from hub_server.knowledge.service import KIND as KNOWLEDGE
from hub_server.logs import causes
from hub_server.retrieval.views import Space
from hub_server.rows import Row
from hub_server.search import Pull, Query, Search
from hub_server.workers import Workers

# Longer than a call may take: a search that began with the old model still finds its vectors.
REST: Final = dt.timedelta(seconds=120)

_BATCH: Final = 16  # half a second of MiniLM, as in ingestion
_TIDIED: Final = 500
_STEPS: Final = 64  # of one space, before another has its turn
_TRIES: Final = 5
_POLL_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 2.0  # before a server of embeddings that is away is asked again

log: structlog.stdlib.BoundLogger = structlog.get_logger("hub.reembedding")


class Reembedding:
    """The moves of spaces by one process, one at a time."""

    def __init__(
        self,
        database: Database,
        search: Search,
        pulls: Mapping[str, Callable[[Caller, str, str], Pull]],
        lease: dt.timedelta,
        rest: dt.timedelta = REST,
    ) -> None:
        """Move spaces to models of ``search``; so long after a move the old vectors stay.

        ``pulls`` tell, by kind of space, what a view of a user's rows by a model follows.
        """
        self._database = database
        self._search = search
        self._pulls = pulls
        self._lease = lease
        self._rest = rest
        # A thread that yields to those that embed queries.
        self._threads = Workers("reembed", threads=1, most_waiting=1, yields=True)
        self._waiting = asyncio.Event()

    def wake(self) -> None:
        """Look for work now rather than at the next poll."""
        self._waiting.set()

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            while True:
                self._waiting.clear()
                move = await self._claim()
                if move is not None:
                    await self._work(move)
                    continue
                with suppress(TimeoutError):  # not wait_for: see ingestion
                    async with asyncio.timeout(_POLL_SECONDS):
                        await self._waiting.wait()
        finally:
            self._threads.close()

    async def _claim(self) -> "_Move | None":
        """Claim what waits for longest; None = nothing does, or Postgres is away."""
        try:
            async with self._database.system() as connection:
                claim = await claim_reembedding(connection, self._lease, self._search.models.names)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next poll tries again
            log.warning("reembedding paused", cause=causes(error))
            return None
        return None if claim is None else _Move(self._database, claim, self._lease)

    async def _work(self, move: "_Move") -> None:
        """Bring one space a step further; whatever its fault, the others go on."""
        try:
            await self._advance(move)
        except asyncio.CancelledError:
            with suppress(HubError, TimeoutError):
                await move.renew(lease=None)
            raise
        except HubError as error:
            # The database is away or too busy; the claim ends with its lease.
            log.warning("reembedding broken off", **move.facts, cause=causes(error))
        except Exception as error:  # noqa: BLE001 - one space's fault must not end the others
            log.error("reembedding failed", **move.facts, cause=causes(error))  # noqa: TRY400
            with suppress(HubError):
                await move.renew(lease=None, status="failed", error=_reason(error))

    async def _advance(self, move: "_Move") -> None:
        claimed = await move.claimed()
        if claimed is None:
            return
        target = claimed["target_model"] if claimed["status"] == "moving" else None
        while await move.tidy(claimed["embedding_model"], kept=target):
            pass
        if target is None:
            if await move.renew(lease=None, is_untidy=False):
                await move.let_go()
        elif await move.renew(**await move.totals(target)):
            await self._fill(move, target)

    async def _fill(self, move: "_Move", target: str) -> None:
        """Embed what lacks a vector of the target; when nothing does, the space is there."""
        embedder = await self._search.models.get(target)
        last: Row | None = None
        for _ in range(_STEPS):
            rows = await move.lacking(target, last, _BATCH)
            if rows:
                last = rows[-1]
                vectors = await self._embed(move, embedder, rows)
                if not await move.fill(target, rows, vectors):
                    return
            elif await self._switch(move, embedder):
                return
            else:
                last = None  # something was written meanwhile
        await move.renew(lease=None)

    async def _embed(
        self, move: "_Move", embedder: Embedder, rows: Sequence[Row]
    ) -> Sequence[bytes]:
        """Return the vectors of rows. A server that is away is asked a few times."""
        tries = 1
        while True:
            try:
                return await self._threads.run(lambda: _vectors(move.kind, embedder, rows))
            except EmbeddingError as error:
                if tries == _TRIES or isinstance(error, TextRefusedError):
                    raise
                log.warning("reembedding waits", **move.facts, cause=causes(error))
                await move.renew()
                longest = self._lease.total_seconds() / 2
                await asyncio.sleep(min(error.retry_after or _PAUSE_SECONDS, longest))
                tries += 1

    async def _switch(self, move: "_Move", embedder: Embedder) -> bool:
        """Let searches use the target, the view of which is made before; False = a row lacks it."""
        target = embedder.model
        totals = await move.totals(target)
        if totals["rows_total"]:
            await self._warm(move, embedder)
        if await move.switch(target, self._rest, totals):
            log.info("reembedded", **move.facts, model=target, rows=totals["rows_total"])
            return True
        return False

    async def _warm(self, move: "_Move", embedder: Embedder) -> None:
        """Bring the target's view in this process up to date: no search shall wait for that."""
        caller, target = Caller.hub(move.tenant_id), embedder.model
        query = Query("", await self._threads.run(lambda: embedder.embed([""])[0]))
        pull = self._pulls[move.kind](caller, move.user_id, target)
        async with self._database.statement(caller) as connection:
            state = await spaces.state(connection, move.tenant_id, move.user_id, move.kind)
        if state is not None:  # None = the user was deleted
            space = Space(move.tenant_id, move.user_id, move.kind, target)
            await self._search.candidates(space, state, query, 1, pull)


class _RowLacksError(Exception):
    """A row lacks its vector: the space stays where it is."""


def _check(*, nothing_lacks: bool) -> None:
    if not nothing_lacks:
        raise _RowLacksError


def _vectors(kind: str, embedder: Embedder, rows: Sequence[Row]) -> Sequence[bytes]:
    texts = [row["content"] for row in rows]
    if kind == KNOWLEDGE:
        sizes = embedder.count_tokens(texts)
        texts = [
            embedded(embedder, row["document_title"], row["heading_path"], row["content"], size)
            for row, size in zip(rows, sizes, strict=True)
        ]
    return [vector.astype("<f4").tobytes() for vector in embedder.embed(texts)]


class _Move:
    """One claim of one space's move: what it may read and write."""

    def __init__(self, database: Database, claim: Row, lease: dt.timedelta) -> None:
        self._database = database
        self._lease = lease
        self._attempt: int = claim["attempt"]
        self.tenant_id: str = claim["tenant_id"]
        self.user_id: str = claim["user_id"]
        self.kind: str = claim["kind"]

    @property
    def facts(self) -> dict[str, Any]:
        """What a log line tells of it."""
        return {"user_id": self.user_id, "kind": self.kind, "attempt": self._attempt}

    async def claimed(self) -> Row | None:
        """Return the move, or None when it is this attempt's no longer."""
        async with self._database.statement(self._hub()) as connection:
            return await self._repository(connection).claimed(self._attempt)

    async def renew(self, **values: Any) -> bool:
        """Take a new lease and note how far it is; False = the claim was lost."""
        values = {"lease": self._lease, **values}
        async with self._database.statement(self._hub()) as connection:
            return await self._repository(connection).renew(self._attempt, **values)

    async def totals(self, model: str) -> Row:
        """Return how many rows there are, have the model's vector, or are left alone."""
        async with self._database.statement(self._hub()) as connection:
            return await self._repository(connection).totals(model)

    async def lacking(self, model: str, after: Row | None, most: int) -> Sequence[Row]:
        """Return some rows without a vector of the model, after one."""
        async with self._database.statement(self._hub()) as connection:
            return await self._repository(connection).lacking(model, after, most)

    async def tidy(self, model: str | None, *, kept: str | None) -> int:
        """Leave some rows one vector, that of the model; return how many had two.

        0 where the claim was lost: whoever has it may have filled the second.
        """
        async with self._database.transaction(self._hub()) as connection:
            repository = self._repository(connection)
            if not await repository.renew(self._attempt, self._lease):
                return 0
            return await repository.tidy(model, _TIDIED, kept=kept)

    async def let_go(self) -> None:
        """Remove what is searched of models that the space has left."""
        async with self._database.statement(self._hub()) as connection:
            await self._repository(connection).let_go()

    async def fill(self, model: str, rows: Sequence[Row], vectors: Sequence[bytes]) -> bool:
        """Keep vectors of rows; False = the claim was lost."""
        async with self._database.transaction(self._hub()) as connection:
            repository = self._repository(connection)
            if not await repository.renew(self._attempt, self._lease, more=len(vectors)):
                return False
            await repository.fill(model, rows, vectors)
            return True

    async def switch(self, model: str, rest: dt.timedelta, totals: Row) -> bool:
        """Let searches use the model from now on; False = a row lacks its vector.

        True where the claim was lost, too: there is nothing left to do for this attempt.
        """
        arrived = {**totals, "status": "done", "rest": rest}
        with suppress(_RowLacksError):
            async with self._database.transaction(self._hub()) as connection:
                repository = self._repository(connection)
                if await repository.renew(self._attempt, None, **arrived):
                    _check(nothing_lacks=await repository.switch(model))
            return True
        return False

    def _hub(self) -> Caller:
        return Caller.hub(self.tenant_id)

    def _repository(self, connection: Any) -> ReembedRepository:
        return ReembedRepository(connection, self.tenant_id, self.user_id, self.kind)


def _reason(error: Exception) -> str:
    """Return why a move stopped, for people; no word of a text."""
    if isinstance(error, EmbeddingError):
        return f"the texts could not be embedded: {error}"
    return f"the space could not be moved ({type(error).__name__})"
