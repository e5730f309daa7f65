"""Appends keep their promises while connections are cut and hub and Postgres are killed -9.

Every append that was acknowledged is stored once, where it was said to be; the numbers have no
gaps; and what was acknowledged before another was sent stands before it. `make test` appends
900 times amid 3 kills; `make campaign-chat` 100,000 times amid 52, and shows first that the same
check fails when something that the promises rest on is taken away.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from hub_client import AsyncHubClient
from hub_server import batching
from tests.appending import Work, judge, miscounted, new_sessions
from tests.cutting import CuttingProxy
from tests.e2e.test_processes import sql
from tests.histories import Finding, Kind
from tests.integration.test_database import own_hub, rewritten
from tests.killing import Killer, Victim, kill_postgres
from tests.support import Hub, HubProcess, hub_process

_DOORS: Final = 8


@pytest.fixture
def hub() -> Iterator[HubProcess]:
    """A hub process that is not started yet."""
    # Not below pytest's own folder: see conftest's postgres_url.
    with TemporaryDirectory(prefix="hub-") as folder, hub_process(Path(folder) / "data") as process:
        yield process


@pytest.fixture
async def hub_here(empty_database: str, tmp_path: Path) -> AsyncIterator[Hub]:
    """A hub in this process over a database of its own, to take something away from."""
    # Captured, so that the hub's log does not stand among what is printed.
    with capture_logs():
        async with own_hub(empty_database, tmp_path / "hub") as hub:
            yield hub


def _seed() -> int:
    return int(os.environ.get("CAMPAIGN_SEED") or time.time_ns() % 1_000_000)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - seen with -s, and when a test fails


class Campaign:
    """Writers, a proxy that cuts and a killer, over one hub process."""

    def __init__(self, hub: HubProcess, *, seed: int, total: int, mean_pieces: int) -> None:
        """``total`` appends; ``mean_pieces`` as the proxy takes it."""
        self._hub, self._total, self._seed = hub, total, seed
        self.proxy = CuttingProxy(seed, mean_pieces=mean_pieces)
        self.killer: Killer
        self.work: Work
        self._began = time.monotonic()

    async def run(self, *, writers: int, sessions: int, victims: Sequence[Victim]) -> list[Finding]:
        """Do all of it, and return what is wrong with the history."""
        _say(f"\nseed {self._seed}, {self._total:,} appends, {len(victims)} kills")
        address = await asyncio.to_thread(self._hub.start)
        async with AsyncHubClient(address, self._hub.key) as client:
            ids = await new_sessions(client, sessions)
        self.work = Work(ids, total=self._total, seed=self._seed)
        self.killer = Killer(self._hub, self.proxy, self._seed)
        self.proxy.lead_to(address)
        async with self.proxy.doors(_DOORS) as doors, asyncio.TaskGroup() as group:
            group.create_task(self.work.write(doors, self._hub.key, writers))
            group.create_task(self.killer.kill_amid(self.work, victims, self.report))
        async with AsyncHubClient(self.proxy.address, self._hub.key) as client:
            found = await judge(client, self.work)
            assert found or await miscounted(client, self.work) == []
        return found

    def report(self) -> None:
        """Print how far it is."""
        seconds = time.monotonic() - self._began
        _say(
            f"{len(self.work.history):,} appends, {self.killer.kills.total()} kills,"
            f" {self.proxy.cuts.total()} cuts, {seconds:.0f} s"
        )

    def figures(self, found: list[Finding]) -> str:
        """Return all figures, in lines."""
        minutes = (time.monotonic() - self._began) / 60
        kills, cuts, retries = self.killer.kills, self.proxy.cuts, self.work.retries
        lines = (
            f"seed {self._seed}: {len(self.work.history):,} acknowledged in {minutes:.1f} minutes",
            f"kills -9: {kills.total()} {_told(kills)}",
            f"connections cut: {cuts.total()} {_told(cuts)}",
            f"retries beyond the client's own: {retries.total()} {_told(retries)}",
            f"findings: {len(found)} {_told(dict.fromkeys(Kind, 0) | _kinds(found))}",
        )
        return "\n".join(lines)


def _kinds(found: list[Finding]) -> Counter[Kind]:
    return Counter(finding.kind for finding in found)


def _told(counts: Mapping[Any, int]) -> str:
    return f"({', '.join(f'{name}: {count}' for name, count in counts.items())})"


async def test_appends_survive_cuts_and_kills_exactly_once_and_in_order(hub: HubProcess) -> None:
    """36 writers, 900 appends, connections cut all the while, three kills -9."""
    campaign = Campaign(hub, seed=_seed(), total=900, mean_pieces=20)
    victims = (Victim.HUB, Victim.BACKEND, Victim.POSTGRES)
    async with asyncio.timeout(120):
        found = await campaign.run(writers=36, sessions=4, victims=victims)
    _say(campaign.figures(found))
    assert found == []
    assert campaign.work.refusals == {}
    assert len(campaign.work.history) == 900
    assert campaign.killer.kills.total() == len(victims)
    assert len(campaign.proxy.cuts) == 3


# What the controls take away from the hub, and what the check then finds at least.
_USELESS_KEY: Final = """
    CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN NEW.request_id := gen_random_uuid()::text; RETURN NEW; END $$;
    CREATE TRIGGER forget BEFORE INSERT ON request_ids FOR EACH ROW EXECUTE FUNCTION forget()
"""
_NO_UNIQUE_SEQ: Final = "ALTER TABLE chat_messages DROP CONSTRAINT chat_messages_pkey"
_LOCK: Final = r"FOR NO KEY UPDATE OF s\b"
_LOSING: Final = """
synchronous_commit = off
wal_writer_delay = 10s
wal_writer_flush_after = 1GB
"""


async def _append_through_cuts(hub: Hub, sabotage: str = "") -> list[Finding]:
    """Let 32 writers append 400 times to two sessions, their connections being cut."""
    client = hub.client(hub.key)
    work = Work(await new_sessions(client, 2), total=400, seed=_seed())
    if sabotage:
        hub.sql(sabotage)
    proxy = CuttingProxy(_seed(), mean_pieces=10)
    proxy.lead_to(hub.address)
    async with asyncio.timeout(120), proxy.doors(_DOORS) as doors:
        await work.write(doors, hub.key, 32)
    assert len(work.history) == 400
    return await judge(client, work)


async def test_control_without_the_key_of_request_ids_retries_are_stored_twice(
    hub_here: Hub,
) -> None:
    """An append whose answer was lost happens again when its request_id is not found."""
    assert await _append_through_cuts(hub_here) == []
    kinds = _kinds(await _append_through_cuts(hub_here, _USELESS_KEY))
    _say(f"\ncontrol without the key of request_ids: the check fails with {_told(kinds)}")
    assert set(kinds) == {Kind.DUPLICATED}


async def test_control_without_the_lock_of_the_session_numbers_collide(
    hub_here: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups at the same time number from the same seq when nothing makes one wait."""
    # Otherwise a second group of a tenant begins only when the first is held up.
    monkeypatch.setattr(batching, "PATIENCE_SECONDS", 0)
    assert await _append_through_cuts(hub_here) == []
    with rewritten(_LOCK) as changed:
        kinds = _kinds(await _append_through_cuts(hub_here, _NO_UNIQUE_SEQ))
    assert changed
    _say(f"\ncontrol without the lock of the session: the check fails with {_told(kinds)}")
    assert {Kind.COLLISION, Kind.GAP} <= set(kinds)


@pytest.mark.slow
async def test_control_without_synchronous_commit_acknowledged_appends_are_lost(
    hub: HubProcess,
) -> None:
    """Answers before the commit is on disk promise what a kill of Postgres takes back."""
    address = await asyncio.to_thread(hub.start)
    async with AsyncHubClient(address, hub.key) as client:
        work = Work(await new_sessions(client, 2), total=900, seed=_seed())
    proxy = CuttingProxy(_seed(), mean_pieces=1_000_000)
    proxy.lead_to(address)
    # The hub refuses to start with this, so it is there from after the start to before the next.
    configuration = hub.data_dir / "postgres" / "postgresql.conf"
    before = configuration.read_text()
    configuration.write_text(before + _LOSING)
    sql(hub, "SELECT pg_reload_conf()::int")
    async with asyncio.timeout(120), proxy.doors(_DOORS) as doors, asyncio.TaskGroup() as group:
        group.create_task(work.write(doors, hub.key, 32))
        await work.until(500)
        await asyncio.to_thread(kill_postgres, hub, Victim.POSTGRES)
        await asyncio.to_thread(hub.kill)
        configuration.write_text(before)
        proxy.lead_to(await asyncio.to_thread(hub.start))
    async with AsyncHubClient(proxy.address, hub.key) as client:
        kinds = _kinds(await judge(client, work))
    _say(f"\ncontrol without synchronous_commit: the check fails with {_told(kinds)}")
    assert Kind.LOST in kinds


@pytest.mark.slow
async def test_campaign_of_100_000_appends_and_52_kills(hub: HubProcess) -> None:
    """The campaign: 64 writers; its seed, its progress and all figures are printed."""
    campaign = Campaign(hub, seed=_seed(), total=100_000, mean_pieces=100)
    async with asyncio.timeout(3600):
        found = await campaign.run(writers=64, sessions=6, victims=13 * tuple(Victim))
    _say(campaign.figures(found))
    assert found == []
    assert campaign.work.refusals == {}
    assert len(campaign.work.history) == 100_000
    assert campaign.killer.kills.total() == 52
