"""Rules of imports: what is taken in, and when anybody sees it. Knows no gRPC."""

import datetime as dt
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final

from hub_server import audit
from hub_server.caller import Caller
from hub_server.database import Connection, Database
from hub_server.errors import HubError, Reason
from hub_server.idempotency import NO_USER
from hub_server.identity.service import check_config, email_key
from hub_server.ids import new_id
from hub_server.knowledge.vectors import check_dimension, check_vectors
from hub_server.rows import Row
from hub_server.transfer.import_repository import ImportRepository
from hub_server.transfer.models import BY_NAME, KINDS, Kind
from hub_server.transfer.service import Export, Told

_ONCE: Final = ("user", "config", "usage")
_PLACES: Final = {kind.name: place for place, kind in enumerate(KINDS)}


class Import:
    """One user on his way in, a batch of rows at a time.

    He is deleted, and bears the id of the import, until all of him is there: so nobody sees any
    of it, and nobody can bring it back. An import that begins after one that did not end removes
    what that one left. When he is here already, whole, nothing is written: what comes must be
    what is there.
    """

    def __init__(
        self,
        database: Database,
        dimension_of: Callable[[str], Awaitable[int | None]],
        wake: Callable[[str, str], None],
    ) -> None:
        """``dimension_of`` tells the dimension of a model, None = not known to this hub.

        ``wake`` is told which tenant's user came.
        """
        self._database = database
        self._dimension_of = dimension_of
        self._wake = wake
        self._import_id: str | None = None
        self._user: Row = {}
        self._counts: Counter[str] = Counter()
        self._dimensions: dict[str, int] = {}
        # Documents that wait to be processed: they are deleted until the end, or the hub would
        # begin while they still come.
        self._waiting: list[str] = []

    @property
    def is_new(self) -> bool:
        """Whether the user was not here before."""
        return self._import_id is not None

    async def store(self, caller: Caller, told: Sequence[Told]) -> None:
        """Take in the next rows, the user himself first.

        Raises INVALID_FIELD, NOT_FOUND, EMAIL_TAKEN, IMPORT_CONFLICT or ETAG_MISMATCH.
        """
        batch = list(told)
        async with self._database.transaction(caller) as connection:
            if not self._user:
                kind, user = batch.pop(0) if batch else ("", {})
                if kind != "user":
                    raise HubError.invalid("export_record", "must be the user, at first")
                await self._begin(connection, caller, user)
            repository, now = await self._held(connection, caller)
            batch.sort(key=lambda one: _PLACES[one[0]])  # stable: forks stay after their parents
            for name, group in groupby(batch, key=lambda one: one[0]):
                rows = [row for _, row in group]
                await self._check(connection, caller, name, rows, now)
                await self._take(repository, BY_NAME[name], rows)

    async def finish(self, caller: Caller) -> Row:
        """Let everybody see the user; return him.

        Raises INVALID_FIELD, NOT_FOUND, IMPORT_CONFLICT or ETAG_MISMATCH.
        """
        async with self._database.transaction(caller) as connection:
            repository, _ = await self._held(connection, caller)
            if missing := [name for name in _ONCE if not self._counts[name]]:
                raise HubError.invalid("export_record", f"{missing[0]} is missing")
            if (amiss := await repository.amiss()) is not None:
                fault = f"{amiss[0]} {amiss[1]} does not come with just what it counts"
                raise HubError.invalid("export_record", fault)
            for name, count in (await repository.counts()).items():
                if count != self._counts[name]:
                    raise _conflict("user", self._user["user_id"])
            if self.is_new:
                await repository.publish(self._user, self._waiting)
                await audit.note(connection, caller, "user_imported", "user", self._user["user_id"])
        if self.is_new:
            self._wake(caller.tenant_id, self._user["user_id"])
        return self._user

    async def _begin(self, connection: Connection, caller: Caller, user: Row) -> None:
        user_id, import_id = user["user_id"], new_id()
        if user_id == NO_USER:
            raise HubError.invalid("export_record.user.user_id", "must not be all zeros")
        values = {**user, "email_key": email_key(user["email"])}
        repository = ImportRepository(connection, caller.tenant_id, user_id)
        if await repository.add_user(values, import_id):
            self._import_id = import_id
        elif (known := await repository.hold()) is None:
            raise HubError(Reason.REASON_EMAIL_TAKEN)
        elif known["import_id"] is not None:
            if not await repository.begin_anew(values, import_id):
                raise HubError(Reason.REASON_EMAIL_TAKEN)
            self._import_id = import_id
        elif any(known[name] != value for name, value in user.items()):
            raise _conflict("user", user_id)
        self._user = user
        self._counts["user"] = 1

    async def _held(
        self, connection: Connection, caller: Caller
    ) -> tuple[ImportRepository, dt.datetime]:
        """Hold the user; return him with the time for Postgres.

        Raises NOT_FOUND or, when another import of him began, ETAG_MISMATCH.
        """
        repository = ImportRepository(connection, caller.tenant_id, self._user["user_id"])
        known = await repository.hold()
        if known is None:
            raise HubError(Reason.REASON_NOT_FOUND, resource="user")
        if known["import_id"] != self._import_id:
            raise HubError(Reason.REASON_ETAG_MISMATCH)
        return repository, known["now"]

    async def _check(
        self,
        connection: Connection,
        caller: Caller,
        name: str,
        rows: Sequence[Row],
        now: dt.datetime,
    ) -> None:
        """Refuse what no hub would have stored, beyond the limits of each field."""
        self._counts[name] += len(rows)
        if name in _ONCE and self._counts[name] > 1:
            raise HubError.invalid("export_record", f"must hold one {name} only")
        if name == "config":
            await check_config(connection, caller, rows[0], f"export_record.{name}")
        for row in rows:
            if fault := next(_faults(name, row, now), None):
                raise HubError.invalid(f"export_record.{name}.{fault[0]}", fault[1])
        await self._check_vectors(name, [row for row in rows if row.get("embedding")])

    async def _check_vectors(self, name: str, rows: Sequence[Row]) -> None:
        """Refuse what is no vector, or has not the dimension of the others of its model."""
        field = f"export_record.{name}.embedding"
        for model, group in groupby(rows, key=lambda row: row["embedding_model"]):
            vectors = [row["embedding"] for row in group]
            dimension = check_vectors([field] * len(vectors), vectors)
            if model not in self._dimensions:
                self._dimensions[model] = await self._dimension_of(model) or dimension
            check_dimension(field, dimension, model, self._dimensions[model])

    async def _take(self, repository: ImportRepository, kind: Kind, rows: Sequence[Row]) -> None:
        """Add rows, or see that they are there; whichever is not so is IMPORT_CONFLICT."""
        if not self.is_new:
            stored = await repository.stored(kind, rows)
            for row in rows:
                if stored.get(_key(kind, row)) != row:
                    raise _conflict(kind.name, _id(kind, row))
            return
        if kind.name == "document":
            rows = [self._hidden(row) for row in rows]
        for wave in _waves(kind, rows):
            seq = await repository.seqs(kind.space, len(wave)) if kind.space else 0
            added = await repository.add(kind, wave, seq)
            for row in wave:
                if _key(kind, row) not in added:
                    raise _conflict(kind.name, _id(kind, row))
                added.remove(_key(kind, row))  # or a row told twice would pass

    def _hidden(self, document: Row) -> Row:
        if document["status"] != "processing" or document["deleted_at"] is not None:
            return document
        self._waiting.append(document["document_id"])
        return {**document, "deleted_at": dt.datetime.now(dt.UTC)}


def _waves(kind: Kind, rows: Sequence[Row]) -> Sequence[Sequence[Row]]:
    """Split rows so that none names one of its own wave: a statement does not see what it adds."""
    own = [column for column, named in kind.belongs.items() if named == kind.name]
    waves: list[list[Row]] = [[]]
    ids: set[str] = set()
    for row in rows:
        if any(row[column] in ids for column in own):
            waves.append([])
            ids = set()
        waves[-1].append(row)
        ids.add(str(row[kind.key[0]]) if own else "")
    return [wave for wave in waves if wave]


def _faults(name: str, row: Row, now: dt.datetime) -> Iterator[tuple[str, str]]:
    """Yield fields that cannot be as they are, and why."""
    # An export would leave it out. A memory's own time is that of a hub, not of Postgres.
    if name not in ("memory", "space") and row["created_at"] > now:
        yield "created_at", "must not lie in the future"
    match name:
        case "context" if sum(one["tokens"] for one in row["blocks"]) > row["token_budget"]:
            yield "blocks", "must have at most `token_budget` tokens"
        case "reservation" if row["held_tokens"] > row["tokens"]:
            yield "held_tokens", "must be at most `tokens`"
        case "message" | "memory_revision" if (row["embedding"] is None) != (
            row["embedding_model"] is None
        ):
            yield "embedding_model", "must be told of a vector, and of nothing else"
        case "message" if row["redacted_at"] is not None and row["content"] is not None:
            yield "content", "must be absent: it was redacted"
        case "document" if not row["media_type"] and not _has_its_hash(row):
            yield "content_hash", "must be the SHA-256 of the text"
        case "document" if row["status"] == "ready" and not row["revision"]:
            yield "revision", "must be 1 or more of what is ready"


def _has_its_hash(document: Row) -> bool:
    return bool(hashlib.sha256(document["text"].encode()).digest() == document["content_hash"])


def _key(kind: Kind, row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in kind.key)


def _id(kind: Kind, row: Row) -> str:
    """Return what a caller knows a row by: ids and numbers of his own."""
    return "/".join(str(row[name]) for name in kind.key)


def _conflict(kind: str, which: str) -> HubError:
    """Refuse a row; it is not told whose the one is that is here."""
    return HubError(Reason.REASON_IMPORT_CONFLICT, resource=kind, id=which)


class Transfers:
    """Users who leave and who come."""

    def __init__(
        self,
        database: Database,
        dimension_of: Callable[[str], Awaitable[int | None]],
        wake: Callable[[str, str], None],
    ) -> None:
        """Read and write them in the given database; the others are as in ``Import``."""
        self._database = database
        self._dimension_of = dimension_of
        self._wake = wake

    def export(self, user_id: str) -> Export:
        """Return what tells a user, a page at a time."""
        return Export(self._database, user_id)

    def bring(self) -> Import:
        """Return what takes in a user, a batch at a time."""
        return Import(self._database, self._dimension_of, self._wake)
