"""Two processes over one database: what one has acknowledged, the other finds at once.

`make test` goes through 48 rounds, of a process that searches vectors in Postgres and one that
searches them in memory; `make campaign-freshness` through 10,000 of two processes, with each
engine.
"""

import asyncio
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hub_client import AsyncHubClient
from hub_client.v1 import (
    AddChunksRequest,
    CreateUserRequest,
    IngestDocumentRequest,
    MemoryType,
    OwnChunk,
    RecallRequest,
    RememberRequest,
    SearchMode,
    SearchRequest,
)
from hub_server import spaces
from tests.support import Hub, HubProcess, Tenant, hub_process, settled

_DIMENSION = 16
_MODEL = "made-up"
_USER_ROUNDS = 100  # of one user, before the next
_SYLLABLES = ("ba", "den", "ri", "mo", "tul", "sa", "ke", "wo", "lin", "gar", "pe", "zu")


def _text(chance: random.Random) -> str:
    return " ".join("".join(chance.choices(_SYLLABLES, k=4)) for _ in range(8))


async def _new_user(client: AsyncHubClient, chance: random.Random) -> str:
    request = CreateUserRequest(email=f"{chance.getrandbits(96)}@example.org")
    return (await client.identity.create_user(request)).user.user_id


async def _finds_chunk(
    writer: AsyncHubClient, reader: AsyncHubClient, user_id: str, chance: random.Random
) -> bool:
    """Add a chunk with a vector of its own, and search by that."""
    vector = np.array([chance.gauss(0, 1) for _ in range(_DIMENSION)], dtype="<f4").tobytes()
    chunk = OwnChunk(content=_text(chance), embedding=vector)
    add = AddChunksRequest(user_id=user_id, title="t", embedding_model=_MODEL, chunks=[chunk])
    added = await writer.knowledge.add_chunks(add)
    search = SearchRequest(
        user_id=user_id,
        vector=vector,
        embedding_model=_MODEL,
        mode=SearchMode.SEARCH_MODE_SEMANTIC,
        top_k=1,
    )
    hits = (await reader.knowledge.search(search)).hits
    return [hit.chunk.chunk_id for hit in hits] == list(added.chunk_ids)


async def _finds_memory(
    writer: AsyncHubClient, reader: AsyncHubClient, user_id: str, chance: random.Random
) -> bool:
    """Remember a text, and recall it."""
    text = _text(chance)
    remember = RememberRequest(
        user_id=user_id, memory_content=text, memory_type=MemoryType.MEMORY_TYPE_FACT
    )
    memory = (await writer.memory.remember(remember)).memory
    hits = (await reader.memory.recall(RecallRequest(user_id=user_id, query=text))).hits
    return memory.memory_id in [hit.memory.memory_id for hit in hits]


async def _finds_document(
    writer: AsyncHubClient, reader: AsyncHubClient, user_id: str, chance: random.Random
) -> bool:
    """Ingest a document, and search for it once it is ready."""
    text = _text(chance)
    ingest = IngestDocumentRequest(user_id=user_id, title="t", text=text)
    document_id = (await writer.knowledge.ingest_document(ingest)).document.document_id
    await settled(writer, document_id)
    hits = (await reader.knowledge.search(SearchRequest(user_id=user_id, query=text))).hits
    return document_id in [hit.chunk.document_id for hit in hits]


async def _misses(clients: Sequence[AsyncHubClient], rounds: int, seed: int) -> int:
    """Write in one of two and search in the other, in turn, four users at a time; count misses."""

    async def many(number: int) -> int:
        chance, misses, user_id = random.Random(f"{seed}/{number}"), 0, ""  # noqa: S311
        for place in range(number, rounds, 4):
            if place // 4 % _USER_ROUNDS == 0:
                user_id = await _new_user(clients[0], chance)
            writer, reader = chance.sample(clients, 2)
            find = (
                _finds_document if place % 50 < 2 else chance.choice([_finds_chunk, _finds_memory])
            )
            misses += not await find(writer, reader, user_id, chance)
        return misses

    return sum(await asyncio.gather(*(many(number) for number in range(4))))


@pytest.fixture
def pgvector(owner_url: str, tmp_path: Path) -> Iterator[HubProcess]:
    """Another process over the database of the session's hub, with vectors in Postgres."""
    settings = {"index": "pgvector", "exact_max_mb": "0.001"}
    with hub_process(tmp_path / "data", database_url=owner_url, **settings) as process:
        yield process


async def test_what_one_process_acknowledged_the_other_finds(
    hub: Hub, tenant: Tenant, pgvector: HubProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """48 rounds in both directions, none missed; and with the look at last_seq left out, many."""
    address = await asyncio.to_thread(pgvector.start)
    other = AsyncHubClient(address, tenant.key)
    hub.clients.append(other)
    assert await _misses([tenant.client, other], 48, seed=20261122) == 0
    state, seen = spaces.state, dict[tuple[Any, ...], int]()

    async def stale(connection: Any, *space: str) -> Mapping[str, Any] | None:
        found = await state(connection, *space)
        if found is None:
            return None
        return {**found, "last_seq": seen.setdefault(space, found["last_seq"])}

    monkeypatch.setattr(spaces, "state", stale)
    assert await _misses([other, tenant.client], 24, seed=1) > 0


@pytest.mark.slow
@pytest.mark.parametrize("index", ["hnswlib", "pgvector"])
async def test_the_campaign_of_freshness(
    owner_url: str, tenant: Tenant, tmp_path: Path, index: str
) -> None:
    """10,000 rounds of two processes; the seed is printed."""
    seed = int(os.environ.get("CAMPAIGN_SEED") or time.time_ns() % 1_000_000)
    rounds = int(os.environ.get("CAMPAIGN_ROUNDS") or 10_000)
    settings = {"database_url": owner_url, "index": index, "exact_max_mb": "0.001"}
    with ExitStack() as stack:
        processes = [
            stack.enter_context(hub_process(tmp_path / name, **settings)) for name in ("one", "two")
        ]
        addresses = [await asyncio.to_thread(process.start) for process in processes]
        clients = [AsyncHubClient(address, tenant.key) for address in addresses]
        begin = time.monotonic()
        misses = await _misses(clients, rounds, seed)
        seconds = time.monotonic() - begin
        for client in clients:
            await client.close()
    print(f"\n{index}: {rounds:,} rounds in {seconds:.0f} s, seed {seed}: {misses} missed")  # noqa: T201
    assert misses == 0
