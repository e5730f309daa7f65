"""How memories change: one writer of a user's at a time, from a lock to the commit."""

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hub_server import spaces
from hub_server.caller import Caller
from hub_server.database import Connection
from hub_server.errors import HubError, Reason
from hub_server.ids import new_id
from hub_server.memory.remembering import Decision, Judge, Statement
from hub_server.memory.repository import by_model
from hub_server.memory.write_repository import MemoryWrites
from hub_server.rows import Row

KIND: Final = "memory"


@dataclass(frozen=True, slots=True)
class Remembered:
    """A memory, what came of a statement, and the id of what it took the place of."""

    memory: Row
    outcome: str
    superseded_id: str | None = None


class Turn:
    """One writer's turn with a user's memories: from the lock of their space to the commit."""

    def __init__(
        self,
        connection: Connection,
        caller: Caller,
        user_id: str,
        now: dt.datetime,
        seqs: Iterable[int],
    ) -> None:
        """Hold the turn that took ``seqs``; see ``begin``."""
        self._connection = connection
        self._tenant_id = caller.tenant_id
        self._user_id = user_id
        self._seqs = iter(seqs)
        self.now = now
        self.writes = MemoryWrites(connection, caller.tenant_id, user_id, now)

    @classmethod
    async def begin(
        cls,
        connection: Connection,
        caller: Caller,
        user_id: str,
        clock: Callable[[], dt.datetime],
        changes: int = 1,
        model: str | None = None,
    ) -> "Turn":
        """Wait for the turn; only then ask for the time, so that later turns are later.

        For more than so many changes seqs are taken one by one. ``model`` is that of what is to be
        written; see ``spaces.next_seq``, as for OtherModelError.
        """
        last = await spaces.next_seq(
            connection, caller.tenant_id, user_id, KIND, changes, model=model
        )
        return cls(connection, caller, user_id, clock(), range(last - changes + 1, last + 1))

    async def check_origin(self, field: str, new: Statement) -> None:
        """Refuse a session that is not the user's, and a message that is not the session's.

        Raises INVALID_FIELD or NOT_FOUND.
        """
        if new.session_id is None and new.message_id is not None:
            raise HubError.invalid(field, "needs session_id")
        if new.session_id is None:
            return
        served = await self.writes.served(new.session_id, new.message_id)
        if not served["has_session"]:
            raise HubError(Reason.REASON_NOT_FOUND, resource="session")
        if not served["has_message"]:
            raise HubError(Reason.REASON_NOT_FOUND, resource="message")

    async def known(
        self, statements: Sequence[Statement], near: Sequence[str], after: int
    ) -> dict[str, Row]:
        """Return what may bear on statements, by id."""
        rows = await self.writes.known(
            hashes=[one.content_hash for one in statements],
            keys=[one.memory_key for one in statements],
            near=near,
            after=after,
            message_ids=[one.message_id for one in statements if one.message_id],
        )
        model = statements[0].embedding_model
        return {row["memory_id"]: by_model(row, model) for row in rows}

    async def settle(self, judge: Judge, new: Statement, known: dict[str, Row]) -> Remembered:
        """Do what a judge decides; ``known`` then holds what came of it."""
        decision = judge.decide(new, list(known.values()))
        if decision.outcome == "unchanged":
            assert decision.memory is not None  # noqa: S101 - that is what did not change
            return Remembered(decision.memory, decision.outcome)
        said = (new.session_id, new.message_id)
        if decision.memory is not None:
            memory = await self.change(decision.memory, "reinforced", decision.changes, said)
        else:
            memory = await self._add(new, decision, known)
        before = known.get(memory["memory_id"], {"proofs": []})["proofs"]
        memory = by_model(memory, new.embedding_model)
        known[memory["memory_id"]] = {**memory, "proofs": [*before, new.message_id]}
        took = [one["memory_id"] for one in decision.supersedes if one["status"] != "proposed"]
        return Remembered(memory, decision.outcome, took[0] if took else None)

    async def change(
        self,
        memory: Row,
        event: str,
        values: Mapping[str, Any],
        said: tuple[str | None, str | None] = (None, None),
    ) -> Row:
        """Change a memory; return it."""
        seq = await self._next_seq()
        return await self.writes.change(memory["memory_id"], event, seq, values, said)

    async def enthrone(self, memory: Row, event: str, values: Mapping[str, Any]) -> Row:
        """Make a memory active, in the place of the one of its type and key that is."""
        active = await self.writes.active_of(memory["memory_type"], memory["memory_key"])
        if active is not None:
            await self._supersede(active, memory["memory_id"])
        values = {**values, "status": "active", "superseded_by": None}
        return await self.change(memory, event, values)

    async def delete(self, memory: Row) -> int:
        """Remove what a memory says and ever said; return the seq of that in the user's space."""
        seq = await self._next_seq()
        await self.writes.delete(memory["memory_id"], seq)
        return seq

    async def _add(self, new: Statement, decision: Decision, known: dict[str, Row]) -> Row:
        memory_id = new_id()
        for old in decision.supersedes:
            gone = await self._supersede(old, memory_id)
            known[old["memory_id"]] = {**gone, "proofs": old["proofs"]}
        return await self.writes.add(
            "proposed" if decision.status == "proposed" else "created",
            await self._next_seq(),
            memory_id=memory_id,
            status=decision.status,
            **new.values(),
        )

    async def _supersede(self, old: Row, by: str) -> Row:
        return await self.change(old, "superseded", {"status": "superseded", "superseded_by": by})

    async def _next_seq(self) -> int:
        """Return a seq of its own for each change; the first are those of the lock."""
        if (seq := next(self._seqs, None)) is not None:
            return seq
        return await spaces.next_seq(self._connection, self._tenant_id, self._user_id, KIND)
