"""SQL of erasure. Returns rows; never commits."""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.chat.models import chat_sessions
from hub_server.erasure.models import erasures
from hub_server.erasure.plan import Part
from hub_server.idempotency import NO_TENANT, NO_USER, request_ids
from hub_server.identity.models import tenants, users
from hub_server.ids import new_id
from hub_server.knowledge.models import documents
from hub_server.rows import Row
from hub_server.wakeups import CHANNEL

ERASURES: Final = "erasures"
"""What is told of on the channel of wake-ups when somebody has been erased."""

_ID: Final = sa.Uuid(as_uuid=False)
_SHOWN: Final = (
    erasures.c.erasure_id,
    erasures.c.credential_id,
    erasures.c.erased,
    erasures.c.forgotten,
    erasures.c.probe,
    erasures.c.created_at,
    erasures.c.finished_at,
)
_CLAIM: Final = sa.text(
    "SELECT tenant_id, erasure_id, user_id, is_of_tenant, begun_at FROM hub_claim_erasure(:lease)"
).columns(tenant_id=_ID, erasure_id=_ID, user_id=_ID)
_GONE: Final = sa.text(
    "SELECT tenant_id, user_id FROM hub_gone(:tenants ::uuid[], :users ::uuid[])"
).columns(tenant_id=_ID, user_id=_ID)
_BLIND: Final = sa.text("SELECT hub_blind_events(:erasure_id, :most)").bindparams(
    sa.bindparam("erasure_id", type_=_ID)
)
_ERASE_EVENTS: Final = sa.text("SELECT hub_erase_events(:most)")
# Every transaction holds a lock on a number of its own until it ends, as Postgres itself uses it
# to wait for those that began before an index was made.
_OTHERS: Final = sa.text("""
SELECT l.virtualtransaction FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'virtualxid' AND l.pid <> pg_backend_pid()
  AND a.datname = current_database() AND a.usesysid IS NOT NULL
""")
# A notification holds some 8,000 bytes: so many ids at a time.
_TOLD_TOGETHER: Final = 200


async def claim(connection: AsyncConnection, lease: dt.timedelta) -> Row | None:
    """Claim the oldest erasure that nobody works on, of any tenant; None = there is none."""
    return (await connection.execute(_CLAIM, {"lease": lease})).mappings().first()


async def gone(
    connection: AsyncConnection, owners: Sequence[tuple[str, str]]
) -> Sequence[tuple[str, str]]:
    """Return those of these tenants' users who are erased, or are being erased."""
    parameters = {"tenants": [one[0] for one in owners], "users": [one[1] for one in owners]}
    rows = await connection.execute(_GONE, parameters)
    return [(row.tenant_id, row.user_id) for row in rows]


class ErasureRepository:
    """Erasures of one tenant."""

    def __init__(self, connection: AsyncConnection, tenant_id: str) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._tenant_id = tenant_id

    async def lock_user(self, user_id: str) -> Row | None:
        """Return a user's ``erasure_id`` (NULL = he is not being erased) and hold him; or None."""
        query = sa.select(users.c.erasure_id, users.c.email_key).where(*self._user(user_id))
        query = query.with_for_update(key_share=True)
        return (await self._connection.execute(query)).mappings().first()

    async def lock_tenant(self) -> Row | None:
        """Return the tenant's ``erasure_id`` and hold it; None = there is no such tenant."""
        query = sa.select(tenants.c.erasure_id).where(tenants.c.tenant_id == self._tenant_id)
        query = query.with_for_update(key_share=True)
        return (await self._connection.execute(query)).mappings().first()

    async def begin(
        self, user_id: str | None, subject_key: bytes, credential_id: str | None
    ) -> str:
        """Begin to erase a user who is held, or else the tenant; return the erasure's id.

        From the commit on every call of and for him is answered as if he did not exist.
        """
        erasure_id, now = new_id(), sa.func.clock_timestamp()
        await self._connection.execute(
            sa.insert(erasures).values(
                tenant_id=self._tenant_id,
                erasure_id=erasure_id,
                user_id=user_id,
                is_of_tenant=user_id is None,
                subject_key=subject_key,
                credential_id=credential_id,
                created_at=now,
            )
        )
        mark = sa.update(tenants).where(tenants.c.tenant_id == self._tenant_id)
        values: dict[str, Any] = {"is_active": False}
        if user_id is not None:
            mark = sa.update(users).where(*self._user(user_id))
            values = {"deleted_at": sa.func.coalesce(users.c.deleted_at, now)}
        await self._connection.execute(mark.values(erasure_id=erasure_id, **values))
        return erasure_id

    async def erasure(self, erasure_id: str) -> Row | None:
        """Return an erasure, or None."""
        query = sa.select(*_SHOWN).where(*self._erasure(erasure_id))
        return (await self._connection.execute(query)).mappings().first()

    async def latest(self, subject_key: bytes) -> Row | None:
        """Return the latest erasure of whom this key stands for, or None."""
        query = (
            sa.select(*_SHOWN)
            .where(erasures.c.tenant_id == self._tenant_id, erasures.c.subject_key == subject_key)
            .order_by(erasures.c.erasure_id.desc())
            .limit(1)
        )
        return (await self._connection.execute(query)).mappings().first()

    async def others(self) -> Sequence[str]:
        """Return the transactions of others that are under way."""
        return (await self._connection.execute(_OTHERS)).scalars().all()

    async def tell_watchers(self, user_id: str | None) -> None:
        """Let whoever watches something of a user, or of anybody (None), look again."""
        for table, column in (
            (chat_sessions, chat_sessions.c.session_id),
            (documents, documents.c.document_id),
        ):
            ids = sa.select(
                sa.cast(column, sa.Text).label("id"),
                ((sa.func.row_number().over() - 1) / _TOLD_TOGETHER).label("group"),
            ).where(table.c.tenant_id == self._tenant_id)
            if user_id is not None:
                ids = ids.where(table.c.user_id == user_id)
            found = ids.subquery()
            together = sa.func.string_agg(found.c.id, " ")
            told = sa.select(sa.func.pg_notify(CHANNEL, together)).group_by(found.c.group)
            await self._connection.execute(told)

    async def unlink(self, part: Part, whose: Mapping[str, Any], most: int) -> int:
        """Cut so many references of rows to others of their own table; return how many it were.

        Rows that refer to one another could not be removed a few at a time.
        """
        if not part.links:
            return 0
        linked = sa.or_(*(part.table.c[name].is_not(None) for name in part.links))
        statement = sa.update(part.table).where(_among(part, part.condition & linked, most))
        values = dict.fromkeys(part.links)
        result = await self._connection.execute(statement.values(values), self._bound(whose))
        return int(result.rowcount)

    async def erase(self, part: Part, whose: Mapping[str, Any], most: int) -> int:
        """Remove so many rows; return how many it were."""
        statement = sa.delete(part.table).where(_among(part, part.condition, most))
        return int((await self._connection.execute(statement, self._bound(whose))).rowcount)

    async def left(self, part: Part, whose: Mapping[str, Any]) -> int:
        """Count the rows there are."""
        query = sa.select(sa.func.count()).select_from(part.table).where(part.condition)
        return int((await self._connection.execute(query, self._bound(whose))).scalar_one())

    async def blind_events(self, erasure_id: str, most: int) -> int:
        """Put the erasure's id into so many events in the place of the user's; return how many."""
        parameters = {"erasure_id": erasure_id, "most": most}
        return int((await self._connection.execute(_BLIND, parameters)).scalar_one())

    async def erase_events(self, most: int) -> int:
        """Remove so many events of a tenant that is being erased; return how many it were."""
        return int((await self._connection.execute(_ERASE_EVENTS, {"most": most})).scalar_one())

    async def erase_other_erasures(self, erasure_id: str) -> int:
        """Remove what is known of earlier erasures of the tenant; return how many it were."""
        statement = sa.delete(erasures).where(
            erasures.c.tenant_id == self._tenant_id, erasures.c.erasure_id != erasure_id
        )
        return int((await self._connection.execute(statement)).rowcount)

    async def count(
        self, erasure_id: str, what: str, name: str, rows: int, lease: dt.timedelta
    ) -> None:
        """Add to what an erasure has ``erased`` or ``forgotten``, and claim it for longer."""
        column = erasures.c[what]
        before = sa.func.coalesce(sa.cast(column[name].astext, sa.BigInteger), 0)
        path = sa.cast([name], ARRAY(sa.Text))
        statement = sa.update(erasures).where(*self._erasure(erasure_id))
        await self._connection.execute(
            statement.values(
                {
                    what: sa.func.jsonb_set(column, path, sa.func.to_jsonb(before + rows)),
                    "lease_expires_at": sa.func.clock_timestamp() + lease,
                    "updated_at": sa.func.clock_timestamp(),
                }
            )
        )

    async def hold_user(self, user_id: str) -> None:
        """Hold a user so that nothing more can refer to him."""
        query = sa.select(users.c.user_id).where(*self._user(user_id)).with_for_update()
        await self._connection.execute(query)

    async def release(self, erasure_id: str) -> None:
        """Let others claim an erasure."""
        statement = sa.update(erasures).where(*self._erasure(erasure_id))
        await self._connection.execute(statement.values(lease_expires_at=None))

    async def finish(
        self,
        erasure_id: str,
        *,
        tables: Iterable[str],
        kinds: Iterable[str],
        probe: Mapping[str, int],
    ) -> None:
        """Forget who it was, keep what the probe found, and tell everybody.

        The receipt names all these ``tables`` and ``kinds``, also where nothing was removed.
        """
        now = sa.func.clock_timestamp()
        statement = sa.update(erasures).where(*self._erasure(erasure_id))
        told = sa.func.pg_notify(CHANNEL, f"{erasure_id} {ERASURES}")
        await self._connection.execute(
            statement.values(
                user_id=None,
                erased=sa.cast(dict.fromkeys(tables, 0), JSONB).concat(erasures.c.erased),
                forgotten=sa.cast(dict.fromkeys(kinds, 0), JSONB).concat(erasures.c.forgotten),
                probe=dict(probe),
                lease_expires_at=None,
                finished_at=now,
                updated_at=now,
            ).returning(told)
        )

    async def forget_making_of(self, tenant_id: str) -> int:
        """Remove the answer to the call that made a tenant, which was nobody's by then.

        To be called with a connection of NO_TENANT. Returns how many it were.
        """
        statement = sa.delete(request_ids).where(
            request_ids.c.tenant_id == NO_TENANT,
            request_ids.c.user_id == NO_USER,
            request_ids.c.answer.contains(tenant_id),
        )
        return int((await self._connection.execute(statement)).rowcount)

    def _bound(self, whose: Mapping[str, Any]) -> dict[str, Any]:
        return {"of_tenant": self._tenant_id, **whose}

    def _user(self, user_id: str) -> tuple[sa.ColumnElement[bool], ...]:
        return users.c.tenant_id == self._tenant_id, users.c.user_id == user_id

    def _erasure(self, erasure_id: str) -> tuple[sa.ColumnElement[bool], ...]:
        return erasures.c.tenant_id == self._tenant_id, erasures.c.erasure_id == erasure_id


def _among(part: Part, condition: sa.ColumnElement[bool], most: int) -> sa.ColumnElement[bool]:
    """Match so many of the rows that meet a condition.

    By where they lie: an array of places is read as such, whatever Postgres believes of the
    sizes of tables.
    """
    place: sa.ColumnElement[Any] = sa.literal_column(f"{part.table.name}.ctid")
    found = sa.select(place).select_from(part.table).where(condition).limit(most).correlate(None)
    return place == sa.any_(sa.func.array(found.scalar_subquery()))
