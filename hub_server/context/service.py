"""Rules of contexts: fetch at once what may matter, choose, keep a record. Knows no gRPC."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from hub_server.caller import Caller
from hub_server.context.assembling import (
    SHARES,
    Block,
    Considered,
    Entry,
    Item,
    Part,
    assemble,
    blocks,
    joined,
)
from hub_server.context.repository import ContextRepository
from hub_server.database import Database
from hub_server.ids import new_id
from hub_server.memory.rules import Clock, Rules, utc_now
from hub_server.memory.sameness import content_hash
from hub_server.memory.scoring import Weights, scored
from hub_server.retrieval.view import Candidate
from hub_server.rows import Row, owned
from hub_server.search import Hit, Query, Search, Source, looked
from hub_server.tokenizer import Tokenizer

# Of each kind so many are considered: far more than fit into most budgets. Of the messages found
# those count that are of the session.
_MOST_FOUND: Final = 50
_MOST: Final = {"memory": _MOST_FOUND, "knowledge": _MOST_FOUND, "messages": 200}
_MOST_MESSAGES: Final = 400
_COUNTED: Final = 32  # messages of the tail whose tokens are counted at a time
# A token is some four bytes; a tail that is shorter in bytes than this cannot fill the budget.
_BYTES_PER_TOKEN: Final = 16
_LONGEST_QUERY: Final = 8000  # characters, as in a search

_UNSEARCHED: Final = (0.0,) * 4

SourceOf = Callable[[Caller, str, Row], Source]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a context is for, and how large it may be, in tokens."""

    session_id: str
    token_budget: int
    query: str = ""
    model_name: str = ""
    shares: Mapping[Part, float] = field(default_factory=lambda: SHARES)
    min_score: float = 0.0


@dataclass(frozen=True, slots=True)
class Told:
    """A block with what people want to know of its items; no rows = they are gone."""

    block: Block
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Context:
    """What goes to a model, and what became of all that was considered."""

    record: Row
    blocks: Sequence[Told]
    ledger: Sequence[Entry]


class Contexts:
    """Builds contexts and keeps what they were made of."""

    def __init__(
        self,
        database: Database,
        search: Search,
        tokenizer: Tokenizer,
        sources: Mapping[str, SourceOf],
        rules: Rules,
        clock: Clock = utc_now,
    ) -> None:
        """``sources`` tell, by kind of space, what its view is made of."""
        self._database = database
        self._search = search
        self._tokenizer = tokenizer
        self._sources = sources
        self._rules = rules
        self._clock = clock

    async def build(self, caller: Caller, asked: Asked) -> Context:
        """Build a context and keep its record.

        Raises NOT_FOUND or USER_DISABLED.
        """
        found, told, state, served = await looked(
            await self._state(caller, asked),
            partial(self._gathered, caller, asked),
            partial(self._state, caller, asked),
        )
        kept, ledger = assemble(found, asked.token_budget, asked.shares, asked.min_score)
        made = await self._blocks(kept)
        scores = [(item.item_id, item.score) for item in kept if item.part == "knowledge"]
        async with self._database.statement(caller) as connection:
            values = {
                "context_id": new_id(),
                "user_id": state["user_id"],
                "session_id": asked.session_id,
                "token_budget": asked.token_budget,
                "model_name": asked.model_name,
                "tools_allowed": state["enable_tool"],
            }
            stamp = await ContextRepository(connection, caller.tenant_id).record(
                **values,
                blocks=[_short(block) for block in made],
                ledger=[
                    [one.part, one.item_id, one.score, one.tokens, one.reason] for one in ledger
                ],
                query=asked.query,
                embedding_model=self._search.models.in_use(_model_of(state, "knowledge")),
                message_id=served,
                chunk_ids=[chunk_id for chunk_id, _ in scores],
                scores=[score for _, score in scores],
            )
        return Context(values | dict(stamp), [_told(one, told) for one in made], ledger)

    async def get(self, caller: Caller, context_id: str) -> Context:
        """Return a context as it was; what was erased since is missing from it.

        Raises NOT_FOUND or USER_DISABLED.
        """
        async with self._database.statement(caller) as connection:
            repository = ContextRepository(connection, caller.tenant_id)
            record = owned(caller, await repository.get(context_id), "context")
        items = [item for block in record["blocks"] for item in block["items"]]
        by_part = {part: [one for one in items if one["part"] == part] for part in SHARES}
        if not record["enable_chat_history"]:
            by_part["history"] = []
        async with self._database.statement(caller) as connection:
            rows = await ContextRepository(connection, caller.tenant_id).kept(
                user_id=record["user_id"],
                session_id=record["session_id"],
                memory_ids=[one["id"] for one in by_part["memory"]],
                revisions=[one["revision"] for one in by_part["memory"]],
                chunk_ids=[one["id"] for one in by_part["knowledge"]],
                message_ids=[one["id"] for one in by_part["history"]],
            )
        told = {row["item_id"]: row for row in rows}
        made = [_again(block, told) for block in record["blocks"]]
        ledger = [Entry(*entry) for entry in record["ledger"]]
        return Context(record, [_told(one, told) for one in made], ledger)

    async def _state(self, caller: Caller, asked: Asked) -> Sequence[Row]:
        """Return the newest messages, or one row without; they bear what decides."""
        async with self._database.statement(caller) as connection:
            rows = await ContextRepository(connection, caller.tenant_id).state(
                asked.session_id,
                _MOST_MESSAGES,
                asked.token_budget * _BYTES_PER_TOKEN,
                0 if asked.query else _LONGEST_QUERY,
            )
        owned(caller, rows[0] if rows else None, "session")
        return rows

    async def _reaching(self, tail: Sequence[Row], budget: int) -> Sequence[Row]:
        """Return the newest messages with their tokens, up to where no more can be kept."""
        reached: list[Row] = []
        used = 0
        for start in range(0, len(tail), _COUNTED):
            some = tail[start : start + _COUNTED]
            counts = await self._tokenizer.counts([row["content"] for row in some])
            reached += [{**row, "tokens": count} for row, count in zip(some, counts, strict=True)]
            used += sum(counts)
            if used > budget:
                break
        return reached

    async def _gathered(
        self, caller: Caller, asked: Asked, rows: Sequence[Row]
    ) -> tuple[tuple[Considered, Mapping[str, Row], Row, str | None], bool]:
        """Return all that may go into a context, and whether something of it has changed.

        With it come the rows it is made of by id, what decides, and the message it serves.
        """
        tail = [row for row in rows if row["is_tail"]]
        said = next((row for row in rows if row["is_tail"] is False), None)
        query, served = asked.query, None
        if said is not None:
            query, served = said["content"], said["message_id"]
        reached = await self._reaching(tail, asked.token_budget)
        found, told, is_outdated = await self._found(caller, asked, rows[0], reached, query)
        return (found, told, rows[0], served), is_outdated

    async def _found(
        self, caller: Caller, asked: Asked, state: Row, tail: Sequence[Row], query: str
    ) -> tuple[Considered, Mapping[str, Row], bool]:
        """Return all that was found, the rows it is made of by id, and whether that is outdated."""
        proposed = await self._proposed(caller, state, query)
        memories, chunks, older = (proposed.get(kind, ()) for kind in _MOST)
        now = self._clock()
        async with self._database.statement(caller) as connection:
            rows, seqs = await ContextRepository(connection, caller.tenant_id).found(
                user_id=state["user_id"],
                session_id=asked.session_id,
                now=now,
                memory_ids=[one.row_id for one in memories],
                chunk_ids=[one.row_id for one in chunks],
                message_ids=[one.row_id for one in older],
                newest=0 if query else _MOST_FOUND,
            )
        if not query:  # then each fits as well as another
            recent = [row["item_id"] for row in rows if row["part"] == "memory"]
            memories = [Candidate(memory_id, 1.0, *_UNSEARCHED) for memory_id in recent]
        in_tail = {row["message_id"]: row["tokens"] for row in tail}
        told = {row["item_id"]: row for row in rows if row["item_id"] not in in_tail}
        counts = await self._tokenizer.counts([row["text"] for row in told.values()])
        tokens = dict(zip(told, counts, strict=True)) | in_tail
        told |= {row["message_id"]: _as_found(row) for row in tail}
        items = {name: _item(row, tokens[name]) for name, row in told.items()}
        hits = [Hit(told[one.row_id], one) for one in memories if one.row_id in told]
        best = scored(hits, Weights(), now, self._rules.half_life)
        considered = Considered(
            memory=[replace(items[one.hit.row["item_id"]], score=one.score) for one in best],
            knowledge=_fitting(items, chunks),
            tail=[items[row["message_id"]] for row in tail],
            older=_fitting(items, older)[:_MOST_FOUND],
            off=_off(state),
        )
        is_outdated = any(
            one.row_id not in told and seqs.get(kind, 0) > state["spaces"][kind]["last_seq"]
            for kind in ("memory", "knowledge")  # nothing takes the place of a message
            for one in proposed.get(kind, ())
        )
        return considered, told, is_outdated

    async def _proposed(
        self, caller: Caller, state: Row, text: str
    ) -> Mapping[str, Sequence[Candidate]]:
        """Return what each view proposes; nothing for a part that is off, or without a query.

        The query is embedded once for each model: that takes longer than to search.
        """
        spaces = state["spaces"] or {}
        sources = {
            kind: self._sources[kind](caller, state["user_id"], state | spaces[kind])
            for kind in _MOST
            if text and kind in spaces and spaces[kind]["last_seq"] and _is_on(state, kind)
        }
        models = sorted({one.space.embedding_model for one in sources.values()} - {""})
        embedded = await asyncio.gather(*(self._search.embed_all([text], one) for one in models))
        vectors = {model: found[0] for model, found in zip(models, embedded, strict=True)}

        async def search(kind: str, source: Source) -> Sequence[Candidate]:
            # Of a space of no model by words alone.
            query = Query(text, vectors.get(source.space.embedding_model))
            return await self._search.candidates(
                source.space, source.state, query, _MOST[kind], source.pull
            )

        found = await asyncio.gather(*(search(*one) for one in sources.items()))
        return dict(zip(sources, found, strict=True))

    async def _blocks(self, kept: Sequence[Item]) -> list[Block]:
        """Return the blocks; a run of chunks counts what its text does, without the overlaps."""
        runs = list(blocks(kept))
        counts = [run[0].tokens for run in runs]
        longer = [place for place, run in enumerate(runs) if len(run) > 1]
        joint = await self._tokenizer.counts([joined(runs[place]) for place in longer])
        for place, count in zip(longer, joint, strict=True):
            counts[place] = count
        # A vocabulary may count two texts together as more than apart; what was budgeted holds.
        made = zip(runs, counts, strict=True)
        return [block for run, count in made for block in _whole_or_apart(run, count)]


def _whole_or_apart(run: Sequence[Item], count: int) -> Sequence[Block]:
    if len(run) == 1 or count <= sum(item.tokens for item in run):
        return [Block(run[0].part, run, count)]
    return [Block(item.part, [item], item.tokens) for item in run]


def _model_of(state: Row, kind: str) -> str | None:
    """Return the model that a space names; None = it names none yet."""
    model: str | None = (state["spaces"] or {}).get(kind, {}).get("embedding_model")
    return model


def _is_on(state: Row, kind: str) -> bool:
    if kind == "knowledge":
        return bool(state["enable_rag"])
    if kind == "messages":
        return bool(state["enable_chat_history"]) and state["message_search"] != "off"
    return True


def _off(state: Row) -> Sequence[Part]:
    flags: Mapping[Part, str] = {"knowledge": "enable_rag", "history": "enable_chat_history"}
    return [part for part, flag in flags.items() if not state[flag]]


def _as_found(row: Row) -> Row:
    """Return a message of the tail as ``found`` returns those it finds."""
    nothing = dict.fromkeys(("said_by", "revision", "document_id", "start_char"))
    return {
        **nothing,
        "part": "history",
        "item_id": row["message_id"],
        "text": row["content"],
        "place": row["seq"],
        "role": row["role"],
    }


def _item(row: Row, tokens: int) -> Item:
    return Item(
        part=row["part"],
        item_id=row["item_id"],
        text=row["text"],
        tokens=tokens,
        score=0.0,
        content_hash=content_hash(row["text"]),
        said_by=row["said_by"],
        revision=row["revision"] or 0,
        group=row["document_id"] or "",
        place=row["place"] or 0,
        start=row["start_char"],
    )


def _fitting(items: Mapping[str, Item], candidates: Sequence[Candidate]) -> list[Item]:
    """Return those of the candidates that are there, best first."""
    return [
        replace(items[one.row_id], score=one.score) for one in candidates if one.row_id in items
    ]


def _short(block: Block) -> dict[str, Any]:
    """Return what a record keeps of a block: no text."""
    return {
        "part": block.part,
        "tokens": block.tokens,
        "items": [
            {"part": one.part, "id": one.item_id, "revision": one.revision} for one in block.items
        ],
    }


def _again(short: Mapping[str, Any], told: Mapping[str, Row]) -> Block:
    """Return the block of a record, of those of its items that are there."""
    rows = [told[one["id"]] for one in short["items"] if one["id"] in told]
    return Block(short["part"], [_item(row, 0) for row in rows], short["tokens"])


def _told(block: Block, told: Mapping[str, Row]) -> Told:
    return Told(block, [told[item.item_id] for item in block.items])
