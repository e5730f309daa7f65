"""Retried calls: a ``request_id`` is spent once, and its first answer is kept for 24 hours.

The claim of the id, the change and the answer are one transaction: either all are there or none.
"""

import datetime as dt
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from google.protobuf.message import Message
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.database import identifier, tenant_table
from hub_server.errors import HubError, Reason
from hub_server.rows import Row

# Under these the ids of calls are kept that belong to no user (CreateUser), or to no tenant.
NO_USER: Final = "00000000-0000-0000-0000-000000000000"
NO_TENANT: Final = NO_USER
KEPT: Final = dt.timedelta(hours=24)

request_ids = tenant_table(
    "request_ids",
    identifier("user_id", nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.LargeBinary, nullable=False),
    identifier("resource_id"),
    sa.Column("answer", sa.Text),
    sa.PrimaryKeyConstraint("tenant_id", "user_id", "request_id"),
    sa.Index("request_ids_created_at", "created_at"),
)


@dataclass(frozen=True, slots=True)
class Retry:
    """The ``request_id`` of a call and the fingerprint of all else it asked."""

    request_id: str
    fingerprint: bytes

    def over(self, content_hash: bytes) -> "Retry":
        """Return the same for a call that brought some content beside its request."""
        return Retry(self.request_id, hashlib.sha256(self.fingerprint + content_hash).digest())


_NO_RETRY: Final = Retry("", b"")


def retry_of(request: Message, *, but: str | None = None) -> Retry:
    """Return what tells a retry of this request from another use of its id.

    The field ``but`` is left out: a fast hash of a password must not be stored, and how a stream
    was cut into messages does not matter.
    """
    asked: Any = request  # the type Message declares no fields
    if not asked.request_id:
        return _NO_RETRY
    bare = type(request)()
    bare.CopyFrom(request)
    bare.ClearField("request_id")
    if but is not None:
        bare.ClearField(but)
    content = bare.SerializeToString(deterministic=True)
    name = request.DESCRIPTOR.full_name.encode()
    return Retry(asked.request_id, hashlib.sha256(name + b"\0" + content).digest())


class Claims:
    """The request ids of one user within one transaction."""

    def __init__(self, connection: AsyncConnection, tenant_id: str, user_id: str) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._key = {"tenant_id": tenant_id, "user_id": user_id}

    async def claim(self, retry: Retry) -> Row | None:
        """Spend the id for this call; return the first answer if it was spent already.

        A concurrent call with the same id waits here until the other's transaction ends. Without
        an id nothing is claimed. Raises REQUEST_ID_REUSED when the id was spent on other content.
        """
        if not retry.request_id:
            return None
        if (await self._connection.execute(self._insert(retry))).first():
            return None
        query = sa.select(request_ids.c.fingerprint, request_ids.c.answer).where(*self._is(retry))
        first = (await self._connection.execute(query)).one()
        if first.fingerprint != retry.fingerprint:
            raise HubError(Reason.REASON_REQUEST_ID_REUSED)
        return _load(first.answer)

    async def keep(self, retry: Retry, answer: Row) -> None:
        """Store the answer that retries of this call will get."""
        if retry.request_id:
            statement = sa.update(request_ids).where(*self._is(retry))
            await self._connection.execute(statement.values(answer=_dump(answer)))

    def _is(self, retry: Retry) -> tuple[sa.ColumnElement[bool], ...]:
        key = self._key | {"request_id": retry.request_id}
        return tuple(request_ids.c[name] == value for name, value in key.items())

    def _insert(self, retry: Retry) -> sa.Insert:
        values = {"request_id": retry.request_id, "fingerprint": retry.fingerprint}
        statement = insert(request_ids).values(**self._key, **values)
        expired = request_ids.c.created_at < sa.func.now() - KEPT
        return statement.on_conflict_do_update(
            index_elements=["tenant_id", "user_id", "request_id"],
            set_={
                "fingerprint": statement.excluded.fingerprint,
                "answer": None,
                "created_at": sa.func.now(),
            },
            where=expired,
        ).returning(request_ids.c.request_id)


async def purge(connection: AsyncConnection) -> int:
    """Remove, in all tenants, the ids that no retry may use any more; return how many."""
    statement = sa.text("SELECT hub_purge_request_ids(:kept)")
    return int((await connection.execute(statement, {"kept": KEPT})).scalar_one())


def _dump(row: Row) -> str:
    """Return the row as JSON, with its points in time apart: JSON has no type for them."""
    times = {name: value for name, value in row.items() if isinstance(value, dt.datetime)}
    rest = {name: value for name, value in row.items() if name not in times}
    stamps = {name: value.isoformat() for name, value in times.items()}
    return json.dumps({"times": stamps, "rest": rest})


def _load(answer: str) -> Row:
    stored: dict[str, dict[str, Any]] = json.loads(answer)
    times = {name: dt.datetime.fromisoformat(value) for name, value in stored["times"].items()}
    return stored["rest"] | times
