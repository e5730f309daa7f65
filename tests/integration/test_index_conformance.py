"""Every engine that searches spaces keeps the same promises: exact, hnswlib, pgvector."""

import asyncio
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from hub_server.retrieval.index import Index
from hub_server.retrieval.view import Candidate, Change
from hub_server.retrieval.views import Space
from hub_server.vector_store import VectorStore
from tests.index_world import DIMENSION, ENGINES, World, opened
from tests.support import Hub

of_each_engine = pytest.mark.parametrize("engine", ENGINES)

_STEPS: Final = {
    "add": 6,
    "update": 3,
    "delete": 4,
    "undelete": 2,
    "search": 8,
    "settle": 2,
    "evict": 2,
    "restart": 2,
    "crash": 1,
    "damage": 2,
    "forget": 1,
}
# A process that is killed while it writes a snapshot: half of the file, all of it, or under its
# name already.
_KILLED: Final = """
import asyncio, os, pickle, signal, sys
from pathlib import Path
from hub_server.retrieval import snapshots, views as module
from hub_server.retrieval.views import Views

folder, point = Path(sys.argv[1]), sys.argv[2]
space, dimension, changes = pickle.load(sys.stdin.buffer)
write, replace = snapshots._write, Path.replace

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def written(file, *arguments):
    write(file, *arguments)
    if point == "half":
        file.truncate(file.tell() // 2)
        file.flush()
        die()

def replaced(self, target):
    if point == "after":
        replace(self, target)
    die()

snapshots._write, Path.replace = written, replaced
module._MOST_UNSAVED = -1.0  # the snapshot there is does not do

async def pull(after):
    return [change for change in changes if change.seq > after]

async def main():
    views = Views(0, 1 << 30, folder, large_bytes=0)
    await views.search(space, dimension=dimension, language="en", last_seq=changes[-1].seq,
                       pull=pull, query_text="fig", query_vector=None, limit=1)
    await views.close()

asyncio.run(main())
"""


async def _world(hub: Hub, seed: int) -> World:
    tenant = await hub.new_tenant()
    user = await tenant.new_user()
    return World(hub.database, tenant.tenant_id, user.user_id, random.Random(seed))  # noqa: S311


@dataclass
class _Life:
    """An index through the lives of its processes, beside what is true."""

    engine: str
    folder: Path
    world: World
    other: World
    index: Index = field(init=False)
    left: list[Index] = field(default_factory=list)
    found: int = 0
    sought: int = 0
    steps: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        # One view fits: a search of another space evicts it.
        self.index = opened(self.engine, self.world.database, self.folder, memory_bytes=1)

    async def run(self, steps: int) -> None:
        """Take so many steps at random, and a search after each that changes something."""
        chance, world = self.world.chance, self.world
        for step in chance.choices([*_STEPS], [*_STEPS.values()], k=steps):
            self.steps.append(step)
            if step == "add":
                await world.add()
            elif step == "update" and world.live:
                await world.update(chance.choice([*world.live]))
            elif step == "delete" and world.live:
                most = len(world.live) if chance.random() < 0.1 else min(3, len(world.live))
                await world.delete(*chance.sample([*world.live], chance.randint(1, most)))
            elif step == "undelete" and world.deleted:
                await world.undelete(chance.choice([*world.deleted]))
            elif step in ("settle", "evict", "restart", "crash", "damage", "forget"):
                await getattr(self, step)()
            await self.search()
        await self.crash()
        await self.search()
        await self.settle()
        await self.close()

    async def search(self) -> None:
        """Compare a search by meaning, by words, or both, with brute force."""
        chance, world = self.world.chance, self.world
        text = chance.choice(["", "plum", "fig sorb", "nothing"])
        vector = world.query() if not text or chance.random() < 0.7 else None
        limit = chance.choice([1, 10, 50])
        found = await world.search(self.index, text, vector, limit)
        expected = world.expected(text, vector, limit)
        self.compare(found, expected)
        if vector is not None and not text and expected:
            best = expected[:10]
            self.sought += len(best)
            self.found += sum(
                one.vector_score >= best[-1].vector_score - 1e-5 for one in found[:10]
            )

    def compare(self, found: Sequence[Candidate], expected: Sequence[Candidate]) -> None:
        told = (self.engine, self.steps)
        rows = self.world.rows
        assert {one.row_id for one in found} <= rows.keys(), told  # no ghost
        assert len(found) == len(expected), told
        if self.engine == "exact":
            parts = [(one.score, one.vector_score, one.word_score) for one in found]
            truth = [(one.score, one.vector_score, one.word_score) for one in expected]
            assert np.allclose(parts, truth, atol=1e-4), told

    async def settle(self) -> None:
        await self.index.settled()

    async def evict(self) -> None:
        """Search another space, whose view takes all the memory there is."""
        await self.other.search(self.index, "fig", self.other.query())

    async def restart(self) -> None:
        await self.close()
        self.begin()

    async def crash(self) -> None:
        """Leave an engine as it is; let a process be killed in the middle of its snapshot."""
        self.left.append(self.index)
        changes: list[Change] = []
        while page := await self.world.pull(changes[-1].seq if changes else 0):
            changes += page
        space = self.world.space
        if self.engine == "pgvector":  # whose files are of words
            space = Space(space.tenant_id, space.user_id, space.kind, "")
        if self.world.live:  # what is empty is not written
            point = self.world.chance.choice(["half", "before", "after"])
            given = pickle.dumps((space, DIMENSION, changes))
            arguments = [sys.executable, "-c", _KILLED, str(self.folder), point]
            done = await asyncio.to_thread(subprocess.run, arguments, input=given, check=False)
            assert done.returncode == -signal.SIGKILL
        self.begin()

    async def damage(self) -> None:
        """Cut a snapshot short, alter it, or put that of another space in its place."""
        await self.close()
        files = sorted(self.folder.glob("*.view"))
        for file in files:
            content = bytearray(file.read_bytes())
            place = self.world.chance.randrange(len(content))
            way = self.world.chance.choice(["cut", "alter", "foreign"])
            if way == "cut":
                del content[place:]
            elif way == "alter":
                content[place] ^= 1
            else:
                content = bytearray(self.world.chance.choice(files).read_bytes())
            file.write_bytes(content)
        self.begin()

    async def forget(self) -> None:
        await self.index.forget(self.world.space)

    async def close(self) -> None:
        await self.index.close()
        while self.left:
            await self.left.pop().close()


async def _lived(hub: Hub, engine: str, folder: Path, seed: int, steps: int) -> float:
    """Take steps at random; return the recall@10 over all of them."""
    world, other = await _world(hub, seed), await _world(hub, seed + 1)
    for _ in range(20):
        await other.add()
    life = _Life(engine, folder, world, other)
    await life.run(steps)
    return life.found / max(life.sought, 1)


@of_each_engine
async def test_whatever_happens_a_search_is_right(hub: Hub, tmp_path: Path, engine: str) -> None:
    """Writes, searches, evictions, restarts, kills -9 during a snapshot, damage, in any order."""
    recall = await _lived(hub, engine, tmp_path, seed=20261122, steps=40)
    assert recall >= (1.0 if engine == "exact" else 0.99)


@pytest.mark.slow
@of_each_engine
async def test_the_campaign_of_indexes(hub: Hub, tmp_path: Path, engine: str) -> None:
    """The same, twenty times as long; the seed is printed."""
    seed = int(os.environ.get("CAMPAIGN_SEED") or time.time_ns() % 1_000_000)
    recall = await _lived(hub, engine, tmp_path, seed=seed, steps=1_200)
    print(f"\n{engine}: 1,200 steps, seed {seed}, recall@10 {recall:.4f}")  # noqa: T201
    assert recall >= (1.0 if engine == "exact" else 0.99)


@of_each_engine
async def test_of_what_is_left_after_deletions_all_is_found(
    hub: Hub, tmp_path: Path, engine: str
) -> None:
    """With nine of ten rows deleted: k hits or all there are, and no ghost."""
    world = await _world(hub, 3)
    index = opened(engine, hub.database, tmp_path)
    for _ in range(40):
        await world.add(most_chunks=12)
    await world.search(index, "", world.query())
    await index.settled()
    stats = await index.stats(world.space)
    assert stats is not None
    assert stats.in_graph == (0 if engine == "exact" else len(world.rows))
    await world.delete(*[*world.live][:36])
    assert len(world.rows) > 10
    for limit in (10, 1_000):
        found = await world.search(index, "", world.query(), limit)
        assert len(found) == min(limit, len(world.rows))
        assert {one.row_id for one in found} <= world.rows.keys()
    await index.close()


@pytest.mark.parametrize("engine", ENGINES[1:])
async def test_after_a_rebuild_no_search_need_come_for_the_graph(
    hub: Hub, tmp_path: Path, engine: str
) -> None:
    """It is at work when the rebuild ends, tells so, and has all rows then."""
    world = await _world(hub, 7)
    index = opened(engine, hub.database, tmp_path)
    for _ in range(10):
        await world.add(most_chunks=12)
    known: dict[str, Any] = {"dimension": DIMENSION, "language": "en", "pull": world.pull}
    await index.rebuild(world.space, last_seq=await world.last_seq(), **known)
    stats = await index.stats(world.space)
    assert stats is not None
    assert stats.is_at_work
    await index.settled()
    stats = await index.stats(world.space)
    assert stats is not None
    assert (stats.is_at_work, stats.in_graph) == (False, len(world.rows))
    await index.close()


@of_each_engine
async def test_a_search_among_some_rows_is_exact(hub: Hub, tmp_path: Path, engine: str) -> None:
    """Confined to rows by id it returns all of these, by their true scores, and nothing else."""
    world = await _world(hub, 4)
    index = opened(engine, hub.database, tmp_path)
    for _ in range(20):
        await world.add(most_chunks=12)
    query = world.query()
    await world.search(index, "", query)
    await index.settled()
    some = world.chance.sample([*world.rows], 15)
    found = await world.search(index, "", query, 50, among=[*some, world.user_id])
    assert {one.row_id for one in found} == set(some)
    truth = {one.row_id: one.vector_score for one in world.expected("", query, 10_000)}
    assert [one.vector_score for one in found] == pytest.approx(
        sorted((truth[one] for one in some), reverse=True), abs=1e-5
    )
    await index.close()


async def test_what_is_written_while_recall_is_measured_is_not_held_against_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Postgres, where a search and what it is measured by are two statements."""
    world = await _world(hub, 6)
    index = opened("pgvector", hub.database, tmp_path)
    for _ in range(4):
        await world.add()
    exact = VectorStore.exact

    async def meanwhile(self: VectorStore, query: Any, depth: int, *others: Any) -> Any:
        if depth == 10:  # of recall@10
            monkeypatch.undo()
            for _ in range(20):
                await world.add()
            await world.search(index, "", query)
        return await exact(self, query, depth, *others)

    last_seq = await world.last_seq()
    monkeypatch.setattr(VectorStore, "exact", meanwhile)
    known: dict[str, Any] = {"dimension": DIMENSION, "language": "en", "pull": world.pull}
    assert (await index.check(world.space, last_seq=last_seq, **known)).recall == 1
    assert len(await world.search(index, "", world.query(), 1_000)) == len(world.rows)
    await index.close()


@of_each_engine
async def test_many_at_once_never_raise_and_never_miss(
    hub: Hub, tmp_path: Path, engine: str
) -> None:
    """Two engines, four writers, six searchers: each sees what was acknowledged before."""
    world = await _world(hub, 5)
    indexes = [opened(engine, hub.database, tmp_path) for _ in range(2)]
    writing = 4

    async def write() -> int:
        nonlocal writing
        own = []
        for turn in range(8):
            own.append(await world.add())
            if turn % 3 == 2:
                await world.delete(own.pop(0))
        writing -= 1
        return 0

    async def search(index: Index) -> int:
        searches = 0
        while writing:
            before = set(world.rows)
            gone = {one.chunk_id for found in world.deleted.values() for one in found}
            found = await world.search(index, "", world.query(), 1_000)
            ids = {one.row_id for one in found}
            assert len(ids) == len(found)
            assert before - world.leaving <= ids
            assert not ids & gone
            searches += 1
        return searches

    searches = await asyncio.gather(
        *(search(index) for index in indexes * 3), *(write() for _ in range(4))
    )
    assert min(searches[:6]) > 0
    for index in indexes:
        await index.settled()
        told = await index.check(
            world.space,
            dimension=DIMENSION,
            language="en",
            last_seq=await world.last_seq(),
            pull=world.pull,
        )
        flaws = told.flaws
        assert (told.rows, flaws.missing, flaws.ghost, flaws.stale) == (
            len(world.rows),
            [],
            [],
            [],
        )
        await index.close()
