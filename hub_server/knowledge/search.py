"""Rules of the search over knowledge. Knows no gRPC."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hub_server import spaces
from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.errors import HubError, Reason
from hub_server.knowledge.filters import Condition
from hub_server.knowledge.repository import KnowledgeRepository
from hub_server.knowledge.search_repository import SearchRepository
from hub_server.knowledge.service import KIND
from hub_server.knowledge.vectors import check_dimension
from hub_server.paging import check_answer
from hub_server.retrieval.text import Analyzer, analyzer
from hub_server.retrieval.view import Change
from hub_server.retrieval.views import Space
from hub_server.rows import Row, active_user
from hub_server.search import DEFAULT_TOP_K, Hit, Pull, Query, Search, Source, looked

# What a filter leaves is searched exactly when it is so few chunks, and sought among all when it is
# more: then they are no longer rare. It takes Postgres some 10 ms to find a thousand of 100,000.
_MOST_AMONG: Final = 2000
# The words of a hit are marked at a quarter of a millisecond for a thousand letters.
_LOOKED_THROUGH: Final = 8_192
_MOST_HIGHLIGHTS: Final = 100


@dataclass(frozen=True, slots=True)
class Asked:
    """What to look for, how, and in which chunks (no documents = in all)."""

    query: str
    top_k: int = 0
    mode: str = "hybrid"  # | semantic | lexical
    min_score: float = 0.0
    document_ids: Sequence[str] = ()
    max_per_document: int = 0
    condition: Condition | None = None
    neighbours: int = 0
    vector: NDArray[np.float32] | None = None
    """What to look for in meaning, instead of the query's own; None = that."""
    embedding_model: str = ""
    """The model of the vector; empty = the one of the user's space."""
    within: str = ""
    """What stands before its fields where errors name them."""

    @property
    def is_to_embed(self) -> bool:
        """Whether the query is looked for in meaning, and has no vector yet."""
        return self.vector is None and self.mode != "lexical"

    @property
    def is_filtered(self) -> bool:
        """Whether some chunks are not asked for."""
        return bool(self.document_ids) or self.condition is not None

    def chosen(self, hits: Sequence[Hit]) -> Sequence[Hit]:
        """Return the hits that score enough, so many of each document at most."""
        seen: Counter[str] = Counter()
        found = []
        for hit in hits:
            document_id = hit.row["document_id"]
            seen[document_id] += 1
            is_one_too_many = 0 < self.max_per_document < seen[document_id]
            if hit.candidate.score >= self.min_score and not is_one_too_many:
                found.append(hit)
        return found

    def full(self, hits: Sequence[Hit]) -> Sequence[str]:
        """Return the documents of which no more chunks are wanted beside these hits."""
        if not self.max_per_document:
            return []
        counts = Counter(hit.row["document_id"] for hit in hits)
        return [one for one, count in counts.items() if count >= self.max_per_document]


@dataclass(frozen=True, slots=True)
class Served:
    """The session that searches serve (empty = none), and its message (empty = not told)."""

    session_id: str = ""
    message_id: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A hit with what is around it: none where that was not asked for."""

    hit: Hit
    span: Sequence[Row] = ()
    chunk_ids: Sequence[str] = ()
    """Of the hits in the span, best first."""
    highlights: Sequence[tuple[int, int]] = ()
    """Where the hit's chunk has words of the query."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one search finds, and at which seq of the space."""

    hits: Sequence[Hit]
    found: Sequence[Found]
    seq: int
    is_outdated: bool
    """Whether something is gone, and what came meanwhile was not looked at."""

    @property
    def size(self) -> int:
        """How many bytes it takes at least."""
        rows = (row for one in self.found for row in (one.hit.row, *one.span))
        return sum(len(row["content"]) for row in rows)


class KnowledgeSearch:
    """Finds chunks of users."""

    def __init__(self, database: Database, search: Search) -> None:
        """Search with the views of this process."""
        self._database = database
        self._search = search

    async def search(
        self, caller: Caller, user_id: str, several: Sequence[Asked], served: Served
    ) -> Sequence[Sequence[Found]]:
        """Return for each search the chunks that fit, best first.

        Raises INVALID_FIELD, NOT_FOUND, USER_DISABLED or FEATURE_DISABLED.
        """
        state = await self._state(caller, user_id, served)
        model = self._search.models.in_use(state["embedding_model"])
        several = [replace(one, embedding_model=one.embedding_model or model) for one in several]
        vectors = await self._vectors(caller, user_id, several, model)
        asked = list(zip(several, vectors, strict=True))

        async def look(state: Row) -> tuple[Sequence[_Answer], bool]:
            answers: list[_Answer] = []
            for one in asked:
                answers.append(await self._answer(caller, user_id, state, *one))
                check_answer(sum(answer.size for answer in answers))
            # What was written since may be proposed to one of several, and not to another.
            is_apart = len(answers) > 1 and any(one.seq > state["last_seq"] for one in answers)
            return answers, is_apart or any(one.is_outdated for one in answers)

        answers = await looked(state, look, lambda: self._state(caller, user_id, Served()))
        hits, found = [one.hits for one in answers], [one.found for one in answers]
        language = state["preferred_language"]
        shown = await asyncio.to_thread(_highlighted, language, several, found)
        if served.session_id and any(hits):
            await self._record(caller, user_id, served, several, hits)
        return shown

    async def source(self, caller: Caller, user_id: str, model: str = "") -> Source:
        """Return what a view of a user's chunks is made of; no model = that of his space.

        Raises NOT_FOUND, USER_DISABLED, or INVALID_FIELD where he has no vectors of the model.
        """
        async with self._database.statement(caller) as connection:
            state = active_user(await spaces.state(connection, caller.tenant_id, user_id, KIND))
        source = self.source_of(caller, user_id, state)
        if model in ("", source.space.embedding_model):
            return source
        dimension = await self._dimension(caller, user_id, model, "embedding_model")
        space = replace(source.space, embedding_model=model)
        return Source(space, state, self.pull(caller, user_id, model), dimension)

    def source_of(self, caller: Caller, user_id: str, state: Row) -> Source:
        """Return what a view of a user's chunks is made of, given its state."""
        model = self._search.models.in_use(state["embedding_model"])
        space = Space(caller.tenant_id, user_id, KIND, model)
        return Source(space, state, self.pull(caller, user_id, model))

    def pull(self, caller: Caller, user_id: str, model: str) -> Pull:
        """Return what a view of a user's chunks by a model follows."""

        async def pull(after: int) -> Sequence[Change]:
            async with self._database.statement(caller) as connection:
                repository = KnowledgeRepository(connection, caller.tenant_id)
                return await repository.changes(user_id, model, after)

        return pull

    async def _state(self, caller: Caller, user_id: str, served: Served) -> Row:
        """Return the space's state, when the user may search it for this session."""
        async with self._database.statement(caller) as connection:
            state = active_user(await spaces.state(connection, caller.tenant_id, user_id, KIND))
        if not state["enable_rag"]:
            raise HubError(Reason.REASON_FEATURE_DISABLED, feature="enable_rag")
        if served.session_id:
            async with self._database.statement(caller) as connection:
                repository = SearchRepository(connection, caller.tenant_id, user_id)
                answer = await repository.served(served.session_id, served.message_id)
            for resource in ("session", "message"):
                if not answer[f"has_{resource}"]:
                    raise HubError(Reason.REASON_NOT_FOUND, resource=resource)
        return state

    async def _vectors(
        self, caller: Caller, user_id: str, several: Sequence[Asked], model: str
    ) -> Sequence[NDArray[np.float32] | None]:
        """Return what each looks for in meaning; None = nothing.

        Raises INVALID_FIELD where the user has no vectors of a model, or of another dimension.
        """
        for asked in several:
            if asked.vector is not None:
                await self._check_vector(caller, user_id, asked, asked.vector)
        texts = [asked.query for asked in several if asked.is_to_embed]
        made = iter(await self._search.embed_all(texts, model) if texts else ())
        return [next(made) if asked.is_to_embed else asked.vector for asked in several]

    async def _check_vector(
        self, caller: Caller, user_id: str, asked: Asked, vector: NDArray[np.float32]
    ) -> None:
        model = asked.embedding_model
        known = await self._dimension(caller, user_id, model, f"{asked.within}embedding_model")
        check_dimension(f"{asked.within}vector", len(vector), model, known)

    async def _dimension(self, caller: Caller, user_id: str, model: str, field: str) -> int:
        """Return the dimension of a model of the hub or of a user's chunks.

        Raises INVALID_FIELD of the ``field`` that named it, where it is neither.
        """
        known = await self._search.dimension_of(model)
        if known is None:
            async with self._database.statement(caller) as connection:
                repository = KnowledgeRepository(connection, caller.tenant_id)
                known = await repository.dimension(user_id, model)
        if known is None:
            raise HubError.invalid(field, "must be a model of the user's chunks")
        return known

    async def _answer(
        self,
        caller: Caller,
        user_id: str,
        state: Row,
        asked: Asked,
        vector: NDArray[np.float32] | None,
    ) -> _Answer:
        """Return the hits, and these with what is around them."""
        hits, seq, is_outdated = await self._hits(caller, user_id, state, asked, vector)
        found = await self._found(caller, user_id, asked, hits)
        is_lost = len(hits) > sum(len(one.chunk_ids) or 1 for one in found)
        return _Answer(hits, found, seq, is_outdated or is_lost)

    async def _hits(
        self,
        caller: Caller,
        user_id: str,
        state: Row,
        asked: Asked,
        vector: NDArray[np.float32] | None,
    ) -> tuple[Sequence[Hit], int, bool]:
        """Return the hits, at which seq, and whether a document has changed that may be one."""
        among, model, seq = None, asked.embedding_model, 0
        is_confined, is_outdated = asked.is_filtered, False
        if asked.is_filtered:
            async with self._database.statement(caller) as connection:
                repository = SearchRepository(connection, caller.tenant_id, user_id)
                among = await repository.filtered(
                    asked.document_ids, asked.condition, _MOST_AMONG + 1
                )
        if among is not None and len(among) > _MOST_AMONG:
            among = None

        async def read(chunk_ids: Sequence[str]) -> Mapping[str, Row]:
            nonlocal seq, is_outdated
            async with self._database.statement(caller) as connection:
                repository = SearchRepository(connection, caller.tenant_id, user_id)
                rows, seq = await repository.shown_chunks(
                    chunk_ids, asked.document_ids, asked.condition
                )
            is_lost = is_confined or len(rows) < len(chunk_ids)
            is_outdated = is_lost and seq > state["last_seq"]
            return rows

        async def narrowed(hits: Sequence[Hit], most: int) -> Sequence[str] | None:
            nonlocal is_confined
            full = asked.full(hits)
            if not full and (not asked.is_filtered or among is not None or most <= _MOST_AMONG):
                return None  # none is known to be in the way, or those that meet it are more
            async with self._database.statement(caller) as connection:
                repository = SearchRepository(connection, caller.tenant_id, user_id)
                beside = await repository.filtered(
                    asked.document_ids, asked.condition, most + 1, full
                )
            if len(beside) > most:
                return None
            is_confined = True
            return beside

        space = Space(caller.tenant_id, user_id, KIND, model)
        pull = self.pull(caller, user_id, model)
        words = "" if asked.mode == "semantic" else asked.query
        query = Query(words, vector, asked.min_score)
        top_k = asked.top_k or DEFAULT_TOP_K
        hits = await self._search.hits(
            space, state, query, top_k, pull, read, asked.chosen, among=among, narrowed=narrowed
        )
        return hits, seq, is_outdated

    async def _found(
        self, caller: Caller, user_id: str, asked: Asked, hits: Sequence[Hit]
    ) -> Sequence[Found]:
        """Return the hits with what is around them, when that is asked for.

        It is read after the hits: one that is gone by then, is gone.
        """
        if not asked.neighbours or not hits:
            return [Found(hit) for hit in hits]
        spans = joined([_place(hit) for hit in hits], asked.neighbours)
        async with self._database.statement(caller) as connection:
            repository = SearchRepository(connection, caller.tenant_id, user_id)
            rows = await repository.spans(spans)
        found: dict[int, list[Hit]] = {}
        for hit in hits:
            text, index = _place(hit)
            place = next(
                place
                for place, (document_id, first, last) in enumerate(spans)
                if document_id == text and first <= index <= last
            )
            if any(row["chunk_id"] == hit.row["chunk_id"] for row in rows.get(place, ())):
                found.setdefault(place, []).append(hit)
        return [
            Found(of_it[0], rows[place], [hit.row["chunk_id"] for hit in of_it])
            for place, of_it in found.items()
        ]

    async def _record(
        self,
        caller: Caller,
        user_id: str,
        served: Served,
        several: Sequence[Asked],
        hits: Sequence[Sequence[Hit]],
    ) -> None:
        searches = [
            [
                {
                    "chunk_id": hit.row["chunk_id"],
                    "score": hit.candidate.score,
                    "query": asked.query,
                    "embedding_model": asked.embedding_model,
                }
                for hit in of_it
            ]
            for asked, of_it in zip(several, hits, strict=True)
        ]
        async with self._database.statement(caller) as connection:
            await SearchRepository(connection, caller.tenant_id, user_id).record(
                searches, session_id=served.session_id, message_id=served.message_id or None
            )


def joined(places: Sequence[tuple[str, int]], reach: int) -> Sequence[tuple[str, int, int]]:
    """Return the spans around places in texts: text, first and last.

    Those of one text that touch or overlap are one.
    """
    spans: list[tuple[str, int, int]] = []
    for text, place in sorted(places):
        first, last = max(place - reach, 0), place + reach
        if spans and spans[-1][0] == text and first <= spans[-1][2] + 1:
            spans[-1] = (text, spans[-1][1], last)
        else:
            spans.append((text, first, last))
    return spans


def _place(hit: Hit) -> tuple[str, int]:
    return hit.row["document_id"], hit.row["chunk_index"]


def _highlighted(
    language: str, several: Sequence[Asked], found: Sequence[Sequence[Found]]
) -> Sequence[Sequence[Found]]:
    """Return what was found with the words that match the query."""
    rules = analyzer(language)

    def marked(asked: Asked, of_it: Sequence[Found]) -> Sequence[Found]:
        terms = frozenset(rules.query_terms(asked.query))
        if asked.mode == "semantic" or not terms:
            return of_it
        texts = [one.hit.row["content"] for one in of_it]
        words = [_matches(rules, text, terms) for text in texts]
        return [replace(one, highlights=them) for one, them in zip(of_it, words, strict=True)]

    return [marked(*one) for one in zip(several, found, strict=True)]


def _matches(rules: Analyzer, text: str, terms: frozenset[str]) -> Sequence[tuple[int, int]]:
    found = rules.matches(text[:_LOOKED_THROUGH], terms)
    if len(text) > _LOOKED_THROUGH:  # the word there may be the beginning of another
        found = [span for span in found if span[1] < _LOOKED_THROUGH]
    return found[:_MOST_HIGHLIGHTS]
