"""The engine: pooled connections that carry their tenant, and transactions for one tenant.

A session-level setting holds the tenant, so that a use case of one statement costs one round
trip. Checkout is the only way to a connection and sets tenant and time limit when they differ; a
connection whose work failed is closed, never reused; a connection without a tenant sees no rows,
since row security compares with the setting.
"""

import asyncio
import math
import re
import struct
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Final

import numpy as np
import psycopg
import sqlalchemy as sa
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier
from psycopg.types.array import ListBinaryDumper
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from hub_server.caller import Caller
from hub_server.errors import HubError, Reason

Connection = AsyncConnection  # for those who pass one on and know no SQL

OWNER_ROLE: Final = "hub_owner"
metadata = sa.MetaData()

TENANT_SETTING: Final = "hub.tenant"
_SYSTEM_CONNECTIONS: Final = 4
_SYSTEM_TIMEOUT_MS: Final = 5_000
_POOL_WAIT_SECONDS: Final = 5.0
# Statement limits are powers of two seconds: a pooled connection then rarely has to change its
# limit, which would cost a round trip. A statement outlives its call's deadline by less than 2x.
_LONGEST_STATEMENT_SECONDS: Final = 64
_GRACE_SECONDS: Final = 5.0
_CONNECT_SECONDS: Final = 5
_REAL: Final = psycopg.postgres.types["float4"].oid
_ARRAY_HEADER: Final = struct.Struct(">iiI")  # dimensions, whether with nulls, type
_ARRAY_BOUNDS: Final = struct.Struct(">ii")  # length, number of the first
_PLACEHOLDER: Final = re.compile(r"(?<![:\w]):(\w+)(?!:)")

_SET = sa.text(
    "SELECT set_config('hub.tenant', :tenant, :local),"
    " set_config('statement_timeout', :timeout_ms, :local), set_config('timezone', 'UTC', :local)"
)


class _RealsDumper(Dumper):
    """Sends an array of float32 as real[], in binary: lists of floats are slow."""

    format = Format.BINARY
    oid = psycopg.postgres.types["float4"].array_oid

    def dump(self, obj: Any) -> bytes:
        """Return the header of one dimension and, before each value, its length."""
        if len(obj) == 0:
            return _ARRAY_HEADER.pack(0, 0, _REAL)
        header = _ARRAY_HEADER.pack(1, 0, _REAL) + _ARRAY_BOUNDS.pack(len(obj), 1)
        values = np.empty(len(obj), dtype=[("length", ">i4"), ("value", ">f4")])
        values["length"], values["value"] = 4, obj
        return header + values.tobytes()


class HotStatement:
    """A statement that goes to the driver by itself, prepared, without SQLAlchemy's machinery.

    For what nearly every call runs: SQLAlchemy's way costs .3 to .6 ms of processor more, of which
    the half is psycopg's search for placeholders in a text of more than 4,096 characters.
    """

    def __init__(self, text: str, **parts: str) -> None:
        """``text`` has parameters as in ``:name``; each needs a type, such as ``:name ::uuid``.

        ``{part}`` stands for SQL that several statements share.
        """
        names: dict[str, int] = {}
        self.text = _PLACEHOLDER.sub(
            lambda match: f"${names.setdefault(match[1], len(names) + 1)}", text.format(**parts)
        )
        self.names = tuple(names)

    async def rows(
        self, connection: AsyncConnection, parameters: Mapping[str, Any]
    ) -> Sequence[dict[str, Any]]:
        """Run it on a connection that was checked out, and return what it returns."""
        proxied = await connection.get_raw_connection()
        driver: Any = proxied.driver_connection
        cursor = psycopg.AsyncRawCursor(driver, row_factory=dict_row)
        await cursor.execute(self.text, [parameters[name] for name in self.names])
        return await cursor.fetchall()


class Database:
    """The hub's way to Postgres. One per process, made after the event loop started."""

    def __init__(self, url: str, *, role: str, pool_size: int, pooler: bool = False) -> None:
        """Prepare the pools; nothing connects before the first use.

        With ``pooler`` (a transaction-mode pooler stands in between) no state outlives a
        transaction, so the tenant is set anew in each, and the URL must log in as ``role``.
        """
        self._pooler = pooler
        plain = sa.make_url(url).set(drivername="postgresql")
        self._url = plain.render_as_string(hide_password=False)
        self._arguments = _arguments(role, pooler=pooler)
        self._tenants = _engine(url, role, pool_size, pooler=pooler)
        self._system = _engine(url, role, _SYSTEM_CONNECTIONS, pooler=pooler)

    @property
    def engine(self) -> AsyncEngine:
        """The engine of tenant connections, for those who count its statements."""
        return self._tenants

    @asynccontextmanager
    async def transaction(self, caller: Caller) -> AsyncIterator[AsyncConnection]:
        """Open a transaction in the caller's tenant; commit at the end, roll back on an error.

        Raises UNAVAILABLE, OVERLOADED, DEADLINE_EXCEEDED or INTERNAL for faults of Postgres.
        """
        async with self._checkout(caller) as connection:
            transaction = await connection.execution_options(isolation_level="READ COMMITTED")
            async with transaction.begin():
                if self._pooler:
                    await transaction.execute(_SET, _wanted(caller) | {"local": True})
                yield transaction

    @asynccontextmanager
    async def statement(self, caller: Caller) -> AsyncIterator[AsyncConnection]:
        """Lend a connection for exactly one statement, which is its own transaction.

        Raises what ``transaction`` raises.
        """
        if self._pooler:
            async with self.transaction(caller) as connection:
                yield connection
        else:
            async with self._checkout(caller) as connection:
                yield connection

    @asynccontextmanager
    async def system(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection that has no tenant, and so sees no tenant's rows.

        It serves the functions that look across tenants (authentication, the claim of jobs),
        which belong to the owner and answer only what they were made for.
        """
        async with _lent(self._system, _SYSTEM_TIMEOUT_MS / 1000) as connection:
            yield connection

    @asynccontextmanager
    async def listening(self, channel: str) -> AsyncIterator[AsyncIterator[str]]:
        """Listen to a channel on a connection of its own; yields what is told there.

        Raises UNAVAILABLE when there is no connection (any more).
        """
        try:
            async with await psycopg.AsyncConnection.connect(
                self._url, autocommit=True, **self._arguments
            ) as connection:
                await connection.execute(SQL("LISTEN {}").format(Identifier(channel)))
                yield (note.payload async for note in connection.notifies())
        except psycopg.Error as error:
            raise HubError(_reason(error)) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._tenants.dispose()
        await self._system.dispose()

    @asynccontextmanager
    async def _checkout(self, caller: Caller) -> AsyncIterator[AsyncConnection]:
        async with _lent(self._tenants, _LONGEST_STATEMENT_SECONDS) as connection:
            wanted = _wanted(caller)
            if not self._pooler and connection.info.get("carries") != wanted:
                await connection.execute(_SET, wanted | {"local": False})
                await connection.commit()
                connection.info["carries"] = wanted
            yield connection


@contextmanager
def owner_transaction(url: str) -> Iterator[sa.Connection]:
    """Open a transaction of the role that owns all objects; ``url`` may take that role on."""
    engine = sa.create_engine(driver_url(url), poolclass=sa.NullPool, hide_parameters=True)
    try:
        with engine.begin() as connection:
            connection.execute(sa.text(f"SET LOCAL ROLE {OWNER_ROLE}"))
            yield connection
    except DBAPIError as error:
        raise HubError(_reason(error)) from error
    finally:
        engine.dispose()


@asynccontextmanager
async def _lent(engine: AsyncEngine, seconds: float) -> AsyncIterator[AsyncConnection]:
    """Lend a connection; close it when its work failed, since its state is then unknown.

    Postgres ends a statement that takes too long; when it is Postgres that falls silent, the work
    is given up a little later.
    """
    try:
        async with asyncio.timeout(seconds + _GRACE_SECONDS), _connection(engine) as connection:
            try:
                yield connection
            except HubError:
                raise
            except BaseException:
                await connection.invalidate()
                raise
    except (DBAPIError, psycopg.Error, PoolTimeoutError, TimeoutError) as error:
        if _is_of_nobody(error):
            raise HubError(Reason.REASON_NOT_FOUND, resource="user") from error
        raise HubError(_reason(error)) from error


@asynccontextmanager
async def _connection(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Check a connection out; a new one is made to the end, though nobody may want it any more.

    SQLAlchemy loses a connection whose making is cancelled, and Postgres keeps it.
    """
    pool: Any = engine.pool
    connection = engine.connect()
    async with AsyncExitStack() as stack:
        if pool.checkedin() or pool.checkedout() >= pool.size():
            await connection
        else:
            making = asyncio.ensure_future(connection.start())
            try:
                await asyncio.shield(making)
            except asyncio.CancelledError:
                await asyncio.wait([making])
                if making.exception() is None:
                    await connection.close()
                raise
        stack.push_async_exit(connection)
        yield connection


def _is_of_nobody(error: Exception) -> bool:
    """Tell whether a row was to refer to one that is gone, which only erasure removes."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return isinstance(cause, psycopg.errors.ForeignKeyViolation)


def _reason(
    error: DBAPIError | psycopg.Error | PoolTimeoutError | TimeoutError,
) -> Reason.ValueType:
    """Return what a driver's failure means to a caller; its text never crosses the wire."""
    if isinstance(error, TimeoutError):
        return Reason.REASON_UNAVAILABLE
    if isinstance(error, PoolTimeoutError):
        return Reason.REASON_OVERLOADED
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, psycopg.errors.QueryCanceled):
        return Reason.REASON_DEADLINE_EXCEEDED
    is_lost = isinstance(error, DBAPIError) and error.connection_invalidated
    if is_lost or isinstance(cause, psycopg.OperationalError):
        return Reason.REASON_UNAVAILABLE
    return Reason.REASON_INTERNAL


def _wanted(caller: Caller) -> dict[str, Any]:
    """Return the settings a connection must carry for this caller."""
    left = min(max(caller.deadline - time.monotonic(), 1.0), _LONGEST_STATEMENT_SECONDS)
    seconds = 2 ** math.ceil(math.log2(left))
    return {"tenant": caller.tenant_id, "timeout_ms": str(seconds * 1000)}


def _arguments(role: str, *, pooler: bool) -> dict[str, Any]:
    """Return what a connection is made with, beside the URL."""
    arguments: dict[str, Any] = {
        "application_name": "cortex-hub",
        "connect_timeout": _CONNECT_SECONDS,
        "keepalives_idle": _CONNECT_SECONDS,
        "tcp_user_timeout": 3 * _CONNECT_SECONDS * 1000,  # milliseconds
    }
    if pooler:
        arguments["prepare_threshold"] = None
    else:
        arguments["options"] = (
            f"-c role={role} -c statement_timeout={_SYSTEM_TIMEOUT_MS}"
            " -c timezone=UTC"
            f" -c idle_in_transaction_session_timeout={_LONGEST_STATEMENT_SECONDS * 1000}"
        )
    return arguments


def _engine(url: str, role: str, pool_size: int, *, pooler: bool) -> AsyncEngine:
    engine = create_async_engine(
        driver_url(url),
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,  # they are the words of users, and errors are logged
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=_POOL_WAIT_SECONDS,
        pool_use_lifo=True,
        connect_args=_arguments(role, pooler=pooler),
    )
    sa.event.listen(engine.sync_engine, "connect", _prepare)
    return engine


def _prepare(connection: Any, _: object) -> None:
    """Send arrays in binary: a megabyte of text takes 100 ms to escape, and nothing to copy."""
    connection.driver_connection.adapters.register_dumper(list, ListBinaryDumper)
    connection.driver_connection.adapters.register_dumper(np.ndarray, _RealsDumper)


def driver_url(url: str) -> sa.URL:
    """Return the URL with psycopg 3 as its driver, whatever ``postgresql://`` form it had."""
    return sa.make_url(url).set(drivername="postgresql+psycopg")


def as_role(url: str, role: str) -> str:
    """Return the URL logging in as another role, for a server that trusts its socket."""
    return sa.make_url(url).set(username=role).render_as_string(hide_password=False)


def tenant_table(name: str, *items: sa.schema.SchemaItem) -> sa.Table:
    """Declare a table every row of which belongs to a tenant, with the common columns."""
    return sa.Table(
        name,
        metadata,
        identifier("tenant_id", nullable=False),
        timestamp("created_at", nullable=False, server_default=sa.func.now()),
        timestamp("updated_at", nullable=False, server_default=sa.func.now()),
        *items,
    )


def any_id(ids: Sequence[str]) -> sa.ColumnElement[Any]:
    """Return what equals any of these ids, as one parameter: there may be more than 65,535."""
    return sa.any_(sa.cast(list(ids), ARRAY(sa.Uuid(as_uuid=False))))


def timestamp(name: str, **options: Any) -> sa.Column[Any]:
    """Declare a column of points in time, with time zone."""
    return sa.Column(name, sa.DateTime(timezone=True), **options)


def identifier(name: str, **options: Any) -> sa.Column[str]:
    """Declare a column of UUIDs, which Python sees as canonical strings."""
    return sa.Column(name, sa.Uuid(as_uuid=False), **options)
