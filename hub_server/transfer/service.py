"""Rules of exports: what comes next, and what must fit together. Knows no gRPC."""

import datetime as dt
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from hub_server import audit
from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.errors import HubError, Reason
from hub_server.rows import Row
from hub_server.transfer.models import BY_NAME, KINDS, Kind
from hub_server.transfer.repository import TransferRepository

Told = tuple[str, Row]
"""A row with the name of its kind."""


class Export:
    """One user on his way out, a page at a time: no more than that is ever held.

    A snapshot of Postgres cannot be held for as long as a reader may take. So what was there when
    the export began is told as it is when its turn comes, and each row that others follow with
    exactly those it counts: a session with the messages up to its ``last_seq``, a document with
    the chunks of its revision. What is made later is left out. Where what was told fits no longer
    to what is still to be told, the export ends.
    """

    def __init__(self, database: Database, user_id: str) -> None:
        """Tell of the user; nothing is read before the first page."""
        self._database = database
        self._user_id = user_id
        self._kinds = [kind for kind in KINDS if kind.name not in _FOLLOWING]
        self._after: Sequence[Any] | None = None  # the last row read of the first of these kinds
        # Rows read whose children were not told (all) yet; of the first the last one that was.
        self._parents: list[Row] = []
        self._last_child: int | None = None
        self._models: Mapping[str, str] = {}  # by which he is searched, by kind
        self._file_parts = 0  # of the documents that were told, and not told themselves yet
        self.began_at: dt.datetime | None = None

    @property
    def is_over(self) -> bool:
        """Whether everything was told."""
        return not self._kinds

    async def page(self, caller: Caller) -> Sequence[Told]:
        """Return what comes next; nothing when it is over.

        Raises NOT_FOUND, or ETAG_MISMATCH when half-way a document was processed anew, its file
        was read, or a space moved to another model.
        """
        async with self._database.transaction(caller) as connection:
            repository = TransferRepository(connection, caller.tenant_id, self._user_id)
            state = await repository.state()
            if state is None:
                raise HubError(Reason.REASON_NOT_FOUND, resource="user")
            if self.began_at is None:
                self.began_at = state["now"]
                await audit.note(connection, caller, "user_exported", "user", self._user_id)
            if not self._models.items() <= state["models"].items():
                raise HubError(Reason.REASON_ETAG_MISMATCH)
            self._models = state["models"]
            while self._kinds:
                if found := await self._next(repository, self._kinds[0], self.began_at):
                    self._file_parts += sum(map(_more_file_parts, found))
                    return found
                self._kinds.pop(0)
                self._after = None
        if self._file_parts:
            raise HubError(Reason.REASON_ETAG_MISMATCH)
        return ()

    async def _next(
        self, repository: TransferRepository, kind: Kind, until: dt.datetime
    ) -> Sequence[Told]:
        if not self._parents:
            rows = await repository.rows(kind, until, self._after)
            if rows:
                self._after = [rows[-1][column] for column in kind.order or kind.key]
            if kind.children is None or not rows:
                return [(kind.name, row) for row in rows]
            self._parents = list(rows)
        return await self._with_children(repository, kind)

    async def _with_children(self, repository: TransferRepository, kind: Kind) -> Sequence[Told]:
        """Return the next rows with their children, as many as were read."""
        assert kind.children is not None  # noqa: S101 - as the caller made sure
        rows = await repository.children(
            kind, self._parents, -1 if self._last_child is None else self._last_child
        )
        groups = groupby(rows, key=lambda row: row[kind.key[0]])
        children = {parent_id: list(group) for parent_id, group in groups}
        told: list[Told] = []
        while self._parents:
            parent = self._parents[0]
            mine = children.pop(parent[kind.key[0]], [])
            last = self._last_child
            if last is None:
                last = kind.children.first(parent) - 1
            is_whole = last + len(mine) == kind.children.last(parent)
            if not is_whole and not mine and told:
                break  # none of its children were read, so it begins the next page
            if not is_whole and (children or not mine):
                raise HubError(Reason.REASON_ETAG_MISMATCH)
            if self._last_child is None:
                told.append((kind.name, parent))
            told += [(kind.children.kind, child) for child in mine]
            if not is_whole:
                self._last_child = last + len(mine)
                break
            self._parents.pop(0)
            self._last_child = None
        return told


def _more_file_parts(told: Told) -> int:
    kind, row = told
    return int(row["file_parts"]) if kind == "document" else -(kind == "file_part")


_FOLLOWING = {kind.children.kind for kind in BY_NAME.values() if kind.children is not None}
