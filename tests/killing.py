"""Kills -9 of a hub and of its Postgres, and the start of what does not come back by itself."""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Final

import psutil

from tests.appending import Work
from tests.cutting import CuttingProxy
from tests.e2e.test_processes import postmaster_pid, sql
from tests.support import HubProcess

_MOST_WRITERS: Final = 64


class Victim(StrEnum):
    """What is killed."""

    HUB = "hub"
    BACKEND = "backend"
    """One process that serves the hub: Postgres restarts all of them, and the hub goes on."""
    POSTMASTER = "postmaster"
    """Its children find out and end by themselves; then the hub is killed and started."""
    POSTGRES = "whole Postgres"
    """All its processes at once; then the hub is killed and started."""


class Killer:
    """Kills in turn while writers work, and leads the proxy to the hub that follows."""

    def __init__(self, hub: HubProcess, proxy: CuttingProxy, seed: int) -> None:
        """The hub serves already."""
        self._hub = hub
        self._proxy = proxy
        self._random = random.Random(f"killer {seed}")  # noqa: S311 - to be repeated
        self.kills: Counter[Victim] = Counter()

    async def kill_amid(
        self, work: Work, victims: Sequence[Victim], report: Callable[[], None]
    ) -> None:
        """Kill these one after the other, at random moments spread over the work."""
        apart = work.total / (len(victims) + 1)
        for number, victim in enumerate(victims, start=1):
            moment = round(apart * (number + self._random.uniform(-0.4, 0.4)))
            # Not before more were answered than were on their way at the kill before: Postgres
            # may still be recovering.
            await work.until(min(work.total, max(moment, len(work.history) + _MOST_WRITERS)))
            # As autovacuum would within a minute, but a kill lets it forget what there is to do;
            # without, a request_id is sought among all those of its user, ever slower.
            await asyncio.to_thread(sql, self._hub, "ANALYZE request_ids")
            await self.kill(victim)
            report()

    async def kill(self, victim: Victim) -> None:
        """Kill once, and start the hub again unless it lives on."""
        self.kills[victim] += 1
        if victim is Victim.BACKEND:
            os.kill(await asyncio.to_thread(_backend, self._hub), signal.SIGKILL)
            return
        await asyncio.to_thread(kill_postgres, self._hub, victim)
        await asyncio.to_thread(self._hub.kill)
        self._proxy.lead_nowhere()
        self._proxy.lead_to(await asyncio.to_thread(self._hub.start))


def kill_postgres(hub: HubProcess, victim: Victim) -> None:
    """Kill what is named of the hub's own Postgres, and wait until nothing of it is left."""
    if victim is Victim.HUB:
        return
    processes = processes_of_postgres(hub)
    for process in processes[:1] if victim is Victim.POSTMASTER else processes:
        # Children end by themselves when they notice that their postmaster is gone.
        with suppress(psutil.NoSuchProcess):
            process.kill()
    # A hub that starts takes a postmaster that nobody has reaped yet for one that runs.
    _, left = psutil.wait_procs(processes, timeout=60)
    assert left == []


def processes_of_postgres(hub: HubProcess) -> list[psutil.Process]:
    """Return the postmaster of the hub's own Postgres and, after it, its children."""
    postmaster = psutil.Process(postmaster_pid(hub))
    return [postmaster, *postmaster.children(recursive=True)]


def _backend(hub: HubProcess) -> int:
    """Return the process id of a backend of the hub, of one that works if there is one."""
    [(pid,)] = sql(
        hub,
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'cortex-hub'"
        " ORDER BY state = 'active' DESC, query_start DESC LIMIT 1",
    )
    return pid
