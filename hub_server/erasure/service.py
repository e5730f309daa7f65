"""Rules of erasure: what begins it, and what is told of it. The work is a job's; knows no gRPC.

A user who is being erased bears a mark. He answers as if he did not exist from the moment it is
there, in every process, as one who is deleted does; but nothing brings him back.
"""

import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Final

from hub_server import audit
from hub_server.caller import Caller
from hub_server.database import Database
from hub_server.erasure.repository import ErasureRepository
from hub_server.errors import HubError, Reason
from hub_server.rows import Row
from hub_server.wakeups import Wakeups

# What a call leaves of its deadline for its answer: who waits is told how far it is, in time.
_SPARE_SECONDS: Final = 0.5


class Erasures:
    """Erasures of users and tenants."""

    def __init__(
        self, database: Database, wakeups: Wakeups, wake: Callable[[], None], subject_key: bytes
    ) -> None:
        """``wake`` tells the job of this process that there is one.

        ``subject_key`` is the secret under which those who are erased are found again.
        """
        self._database = database
        self._wakeups = wakeups
        self._wake = wake
        self._subject_key = subject_key

    async def erase_user(self, caller: Caller, user_id: str) -> Row:
        """Erase a user; return the erasure, which may still be under way at the deadline.

        Of one who is erased already it returns the receipt. Raises NOT_FOUND.
        """
        subject = self._subject(caller.tenant_id, user_id)
        async with self._database.transaction(caller) as connection:
            repository = ErasureRepository(connection, caller.tenant_id)
            user = await repository.lock_user(user_id)
            if user is None:
                return _found(await repository.latest(subject), "user")
            erasure_id = user["erasure_id"]
            if erasure_id is None:
                erasure_id = await repository.begin(user_id, subject, caller.credential_id)
                await audit.note(connection, caller, "user_erased", "erasure", erasure_id)
        self._wake()
        return await self._outcome(caller, erasure_id)

    async def get(self, caller: Caller, user_id: str) -> Row:
        """Return the latest erasure of a user. Raises NOT_FOUND."""
        subject = self._subject(caller.tenant_id, user_id)
        async with self._database.statement(caller) as connection:
            repository = ErasureRepository(connection, caller.tenant_id)
            return _found(await repository.latest(subject), "erasure")

    async def erase_tenant(self, operator: Caller, tenant_id: str) -> Row:
        """Erase a tenant with all its users; as ``erase_user`` does. Raises NOT_FOUND."""
        caller, subject = operator.within(tenant_id), self._subject(tenant_id, "")
        async with self._database.transaction(caller) as connection:
            repository = ErasureRepository(connection, tenant_id)
            tenant = await repository.lock_tenant()
            if tenant is None:
                return _found(await repository.latest(subject), "tenant")
            erasure_id = tenant["erasure_id"]
            if erasure_id is None:
                erasure_id = await repository.begin(None, subject, operator.credential_id)
        self._wake()
        return await self._outcome(caller, erasure_id)

    async def get_of_tenant(self, operator: Caller, tenant_id: str) -> Row:
        """Return the erasure of a tenant. Raises NOT_FOUND."""
        caller = operator.within(tenant_id)
        async with self._database.statement(caller) as connection:
            repository = ErasureRepository(connection, tenant_id)
            found = await repository.latest(self._subject(tenant_id, ""))
        return _found(found, "erasure")

    def _subject(self, tenant_id: str, user_id: str) -> bytes:
        """Return what stands for a user, or for the whole tenant."""
        text = f"{tenant_id}/{user_id}"
        return hmac.digest(self._subject_key, text.encode(), hashlib.sha256)

    async def _outcome(self, caller: Caller, erasure_id: str) -> Row:
        """Return an erasure once it is finished, or just before the call's deadline."""
        subscription = self._wakeups.subscribe(erasure_id)
        try:
            while True:
                subscription.looks()
                async with self._database.statement(caller) as connection:
                    repository = ErasureRepository(connection, caller.tenant_id)
                    erasure = _found(await repository.erasure(erasure_id), "erasure")
                left = caller.deadline - time.monotonic() - _SPARE_SECONDS
                if erasure["finished_at"] is not None or left <= 0:
                    return erasure
                await subscription.wait(left)
        finally:
            subscription.close()


def _found(row: Row | None, resource: str) -> Row:
    if row is None:
        raise HubError(Reason.REASON_NOT_FOUND, resource=resource)
    return row
