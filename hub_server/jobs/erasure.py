"""Erasing: everything of a user, or of a tenant, is removed, a few rows at a time.

The queue is the erasures themselves, which are claimed for the time of a lease. Each step commits
what it removed together with its count, and may be done twice: who takes over from a hub that was
killed begins with the first step again and finds less to do.

The order matters. First everybody who began before the mark was there has to be through: those may
still write, all others see the mark. Then the rows go, and only then the views, so that none can be
made from them anew. Last the user himself goes, in one transaction with a look at what is left.
"""

import asyncio
import datetime as dt
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog

from hub_server.caller import Caller
from hub_server.database import Connection, Database
from hub_server.erasure import plan
from hub_server.erasure.plan import Part
from hub_server.erasure.repository import ErasureRepository, claim
from hub_server.errors import HubError
from hub_server.idempotency import NO_TENANT
from hub_server.logs import causes
from hub_server.retrieval.index import Index
from hub_server.retrieval.views import Space
from hub_server.rows import Row
from hub_server.spaces import KINDS

_AT_A_TIME: Final = 4
_POLL_SECONDS: Final = 5.0
# Rows of one transaction: documents, which may have 4 MiB each, take some seconds.
_BATCH: Final = 500
# Transactions end within these: statements and idle ones are bounded by the database's limits.
_LONGEST_TRANSACTION_SECONDS: Final = 150.0
_LOOK_SECONDS: Final = 0.02
_RELEASE_SECONDS: Final = 2.0

log: structlog.stdlib.BoundLogger = structlog.get_logger("hub.erasure")


class SomethingLeftError(RuntimeError):
    """After everything was removed there still was something; it is removed once more."""


class Erasing:
    """The erasing of one process."""

    def __init__(
        self,
        database: Database,
        views: Index,
        account_of: Callable[[str], bytes],
        lease: dt.timedelta,
    ) -> None:
        """``account_of`` returns what stands for an email in the throttle of logins."""
        self._database = database
        self._views = views
        self._account_of = account_of
        self._lease = lease
        self._free = asyncio.Semaphore(_AT_A_TIME)
        self._waiting = asyncio.Event()

    def wake(self) -> None:
        """Look for erasures now rather than at the next poll."""
        self._waiting.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._free.acquire()
                self._waiting.clear()
                claimed = await self._claim()
                if claimed is not None:
                    group.create_task(self._work(claimed))
                    continue
                self._free.release()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        await self._waiting.wait()

    async def _claim(self) -> Row | None:
        try:
            async with self._database.system() as connection:
                return await claim(connection, self._lease)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next poll tries again
            log.warning("erasing paused", cause=causes(error))
            return None

    async def _work(self, claimed: Row) -> None:
        facts = {"tenant_id": claimed["tenant_id"], "erasure_id": claimed["erasure_id"]}
        step = _Steps(self._database, self._views, claimed, self._lease)
        try:
            if claimed["is_of_tenant"]:
                await _erase_tenant(step)
            else:
                await _erase_user(step, self._account_of)
            log.info("erased", **facts, is_of_tenant=claimed["is_of_tenant"])
        except asyncio.CancelledError:
            await step.release()
            raise
        except Exception as error:  # noqa: BLE001 - when its lease has ended it is tried again
            log.warning("erasing broken off", **facts, cause=causes(error))
        finally:
            self._free.release()


@dataclass(frozen=True, slots=True)
class _Steps:
    """One claimed erasure, and the steps it consists of."""

    database: Database
    views: Index
    claimed: Row
    lease: dt.timedelta

    @property
    def tenant_id(self) -> str:
        return str(self.claimed["tenant_id"])

    @property
    def erasure_id(self) -> str:
        return str(self.claimed["erasure_id"])

    def transaction(self) -> AbstractAsyncContextManager[Connection]:
        return self.database.transaction(Caller.hub(self.tenant_id))

    def repository(self, connection: Connection) -> ErasureRepository:
        return ErasureRepository(connection, self.tenant_id)

    async def release(self) -> None:
        """Give the claim back: who starts next need not wait for the lease to end."""
        with suppress(HubError, TimeoutError):
            async with asyncio.timeout(_RELEASE_SECONDS), self.transaction() as connection:
                await self.repository(connection).release(self.erasure_id)

    async def outwait_others(self) -> None:
        """Return when all transactions that are under way now have ended."""
        end = time.monotonic() + _LONGEST_TRANSACTION_SECONDS
        before = await self._others()
        while before and time.monotonic() < end:
            await asyncio.sleep(_LOOK_SECONDS)
            before &= await self._others()

    async def _others(self) -> set[str]:
        async with self.database.statement(Caller.hub(self.tenant_id)) as connection:
            return set(await self.repository(connection).others())

    async def remove(self, parts: Sequence[Part], whose: Mapping[str, Any]) -> None:
        """Remove rows, so many in one transaction at most, and count them with it."""
        place = 0
        while place < len(parts):
            async with self.transaction() as connection:
                place += await self._some(self.repository(connection), parts[place:], whose)

    async def _some(
        self, repository: ErasureRepository, parts: Sequence[Part], whose: Mapping[str, Any]
    ) -> int:
        """Remove so many rows at most; return how many of the parts are through."""
        room = _BATCH
        for place, part in enumerate(parts):
            room -= await repository.unlink(part, whose, room)
            if room > 0:
                room -= await self.remove_some(repository, part, whose, room)
            if room == 0:
                return place
        return len(parts)

    async def remove_some(
        self,
        repository: ErasureRepository,
        part: Part,
        whose: Mapping[str, Any],
        most: int = _BATCH,
    ) -> int:
        """Remove rows of a part within a transaction, and count them; return how many it were."""
        rows = await repository.erase(part, whose, most)
        await self.count(repository, "erased", part.table.name, rows)
        return rows

    async def count(self, repository: ErasureRepository, what: str, name: str, number: int) -> None:
        """Add to what was removed, if it was anything."""
        if number > 0:
            await repository.count(self.erasure_id, what, name, number, self.lease)

    async def events(self, change: Callable[[ErasureRepository], Awaitable[int]]) -> None:
        """Change the events of the log, a few at a time, and count them."""
        while True:
            async with self.transaction() as connection:
                repository = self.repository(connection)
                changed = await change(repository)
                await self.count(repository, "erased", plan.LOG.table.name, changed)
            if changed < _BATCH:
                return

    async def forget(self, user_ids: Sequence[str]) -> None:
        """Remove the views and snapshots of users, and count them."""
        for user_id in user_ids:
            for kind in KINDS:
                removed = await self.views.forget(Space(self.tenant_id, user_id, kind, ""))
                async with self.transaction() as connection:
                    repository = self.repository(connection)
                    await self.count(repository, "forgotten", kind, removed)

    async def finish(
        self,
        repository: ErasureRepository,
        parts: Sequence[Part],
        whose: Mapping[str, Any],
        views: int,
    ) -> None:
        """Remove what came after the other steps, and who was held until now; look what is left.

        Of the log, the last of the parts, nothing is removed here. ``views`` were still found.
        Raises SomethingLeftError.
        """
        for part in parts[:-1]:
            await self.remove_some(repository, part, whose)
        left = [await repository.left(part, whose) for part in parts]
        if any(left) or views:
            raise SomethingLeftError
        await repository.finish(
            self.erasure_id,
            tables={part.table.name for part in parts},
            kinds=KINDS,
            probe={"lookups": len(left), "rows": sum(left), "users_with_views": views},
        )

    async def seen(self) -> set[str]:
        """Return the users of the tenant of whom there are views."""
        owners = await self.views.owners()
        return {user_id for tenant_id, user_id in owners if tenant_id == self.tenant_id}


async def _erase_user(step: _Steps, account_of: Callable[[str], bytes]) -> None:
    user_id = step.claimed["user_id"]
    parts = plan.of_user()
    async with step.transaction() as connection:
        repository = step.repository(connection)
        user = await repository.lock_user(user_id)
        await repository.tell_watchers(user_id)
    account = b"" if user is None else account_of(user["email_key"])
    whose = {"of_user": user_id, "of_account": account}
    await step.outwait_others()
    await step.remove(parts[:-1], whose)

    async def blind(repository: ErasureRepository) -> int:
        return await repository.blind_events(step.erasure_id, _BATCH)

    await step.events(blind)
    await step.forget([user_id])
    views = len({user_id} & await step.seen())
    async with step.transaction() as connection:
        repository = step.repository(connection)
        await repository.hold_user(user_id)
        await step.finish(repository, [*parts, plan.EVENTS], whose, views)


async def _erase_tenant(step: _Steps) -> None:
    parts = plan.of_tenant()
    async with step.transaction() as connection:
        await step.repository(connection).tell_watchers(None)
    await step.outwait_others()
    await step.remove(parts[:-1], {})

    async def erase(repository: ErasureRepository) -> int:
        return await repository.erase_events(_BATCH)

    await step.events(erase)
    await step.forget(sorted(await step.seen()))
    views = len(await step.seen())
    async with step.database.transaction(Caller.hub(NO_TENANT)) as connection:
        await ErasureRepository(connection, NO_TENANT).forget_making_of(step.tenant_id)
    async with step.transaction() as connection:
        repository = step.repository(connection)
        earlier = await repository.erase_other_erasures(step.erasure_id)
        await step.count(repository, "erased", "erasures", earlier)
        await step.finish(repository, [*parts, plan.LOG], {}, views)
