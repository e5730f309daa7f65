"""Rules of the search over messages. Knows no gRPC.

A view of the user's messages proposes, by words or by words and meaning; what is beside a proposed
message in its session is lifted by it; and a last read of Postgres decides, as in every search.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from hub_server.caller import Caller
from hub_server.chat.search_repository import SearchRepository
from hub_server.chat.service import SEARCHED, history_of
from hub_server.chat.spans import Span
from hub_server.database import Database
from hub_server.errors import HubError, Reason
from hub_server.retrieval.fusion import CANDIDATES
from hub_server.retrieval.neighbours import lift
from hub_server.retrieval.view import Candidate, Change
from hub_server.retrieval.views import Space
from hub_server.rows import Row, active_user
from hub_server.search import DEFAULT_TOP_K, WIDEN, Pull, Query, Search, Source

# Messages read beyond top_k, for those that are redacted between the two reads.
_SPARE: Final = 10
_TIE_PLACES: Final = 6  # as in a view


@dataclass(frozen=True, slots=True)
class Asked:
    """What to look for, and in which messages: of a session (empty = all), of roles and times."""

    query: str
    top_k: int = 0
    session_id: str = ""
    span: Span = field(default_factory=Span)


class MessageSearch:
    """Finds messages of users."""

    def __init__(
        self, database: Database, search: Search, embed: Callable[[str, str], None]
    ) -> None:
        """``embed`` is told which tenant's user has messages that are to be embedded."""
        self._database = database
        self._search = search
        self._embed = embed

    async def search(
        self, caller: Caller, user_id: str, asked: Asked
    ) -> Sequence[tuple[Row, float]]:
        """Return the messages that fit, best first, each with its score.

        Raises NOT_FOUND, USER_DISABLED or FEATURE_DISABLED.
        """
        state = await self._state(caller, user_id, asked.session_id)
        if state["is_to_embed"]:
            # Its process may have died, or had too much to do: whoever searches sees that it is
            # made up for.
            self._embed(caller.tenant_id, user_id)
        scores = await self._scores(caller, user_id, asked, state)
        if not scores:
            return []
        best = sorted(scores, key=lambda one: (-round(scores[one], _TIE_PLACES), one))
        async with self._database.statement(caller) as connection:
            repository = SearchRepository(connection, caller.tenant_id, user_id)
            top_k = asked.top_k or DEFAULT_TOP_K
            rows = await repository.messages(best[: top_k + _SPARE], asked.session_id, asked.span)
        highest = max((scores[row["message_id"]] for row in rows), default=0.0) or 1.0
        return [(row, scores[row["message_id"]] / highest) for row in rows[:top_k]]

    async def source(self, caller: Caller, user_id: str) -> Source:
        """Return what a view of a user's messages is made of.

        Raises NOT_FOUND, USER_DISABLED or FEATURE_DISABLED.
        """
        return self.source_of(caller, user_id, await self._state(caller, user_id, ""))

    def source_of(self, caller: Caller, user_id: str, state: Row) -> Source:
        """Return what a view of a user's messages is made of, given its state."""
        # Words alone have a view of their own, of no model: it holds no vectors.
        is_hybrid = state["message_search"] == "hybrid"
        model = self._search.models.in_use(state["embedding_model"]) if is_hybrid else ""
        space = Space(caller.tenant_id, user_id, SEARCHED, model)
        return Source(space, state, self.pull(caller, user_id, model))

    def pull(self, caller: Caller, user_id: str, model: str) -> Pull:
        """Return what a view of a user's messages by a model follows."""

        async def pull(after: int) -> Sequence[Change]:
            async with self._database.statement(caller) as connection:
                repository = SearchRepository(connection, caller.tenant_id, user_id)
                return await repository.changes(model, after)

        return pull

    async def _state(self, caller: Caller, user_id: str, session_id: str) -> Row:
        async with self._database.statement(caller) as connection:
            repository = SearchRepository(connection, caller.tenant_id, user_id)
            state = active_user(await repository.state(session_id))
        if not state["has_session"]:
            raise HubError(Reason.REASON_NOT_FOUND, resource="session")
        if state["message_search"] == "off":
            raise HubError(Reason.REASON_FEATURE_DISABLED, feature="message_search")
        return history_of(state)

    async def _scores(
        self, caller: Caller, user_id: str, asked: Asked, state: Row
    ) -> Mapping[str, float]:
        """Return the scores of messages that may be shown and are asked for, by id.

        A narrow filter may leave too few of what the view proposes; then it is asked for more.
        """
        source = self.source_of(caller, user_id, state)
        model = source.space.embedding_model
        vector = await self._search.embed(asked.query, model) if model else None
        query = Query(asked.query, vector)
        top_k = asked.top_k or DEFAULT_TOP_K
        limit = max(CANDIDATES, top_k)
        while True:
            candidates = await self._search.candidates(
                source.space, state, query, limit, source.pull
            )
            if not candidates:
                return {}
            async with self._database.statement(caller) as connection:
                repository = SearchRepository(connection, caller.tenant_id, user_id)
                ids = [one.row_id for one in candidates]
                places = await repository.places(ids, asked.session_id, asked.span)
            scores = _lifted(candidates, places)
            if len(scores) >= top_k or len(candidates) < limit:
                return scores
            limit *= WIDEN


def _lifted(candidates: Sequence[Candidate], places: Sequence[Row]) -> Mapping[str, float]:
    """Return the scores of the messages that are asked for, with what those beside them lend.

    A message that nobody proposed and that is lent nothing does not fit.
    """
    own = {one.row_id: one.score for one in candidates}
    lifted = lift(
        {(row["session_id"], row["seq"]): own.get(row["message_id"], 0.0) for row in places}
    )
    scores = {
        row["message_id"]: lifted[row["session_id"], row["seq"]]
        for row in places
        if row["is_asked"]
    }
    return {one: score for one, score in scores.items() if score > 0 or one in own}
