"""`make bench-pgvector`: vectors searched by pgvector in Postgres, beside a view in this process.

The vectors of `make bench-search`, without texts, in one space of a Postgres of its own.
"""

import argparse
import asyncio
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import psycopg

from hub_server.database import Database
from hub_server.migrations import migrate
from hub_server.pgvector import EXACT_COST, PgVector
from hub_server.postgres import embedded_postgres
from hub_server.retrieval.index import Index
from hub_server.retrieval.view import Change, IndexedRow
from hub_server.retrieval.views import Space, Views
from hub_server.settings import Settings
from scripts.bench.figures import machine, percentile
from scripts.bench.search import DIMENSION, PAGE, TOP, Data, Vectors, made

SIZES: Final = (1_000, 10_000, 100_000)
EXACT_MAX_BYTES: Final = 16 << 20
QUERIES: Final = 100


def main() -> None:
    """Measure each size and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=[*SIZES])
    options = parser.parse_args()
    print(f"{machine()}; recall@{TOP} of {QUERIES} queries, one at a time")
    with (
        tempfile.TemporaryDirectory(prefix="hub-bench-") as folder,
        embedded_postgres(Path(folder)) as url,
    ):
        migrate(url, Settings().server_role)
        for size in options.sizes:
            asyncio.run(_measure(url, made(size)))


async def _measure(url: str, data: Data) -> None:
    size = len(data.rows)
    database = Database(url, role=Settings().server_role, pool_size=4)
    space = _space(url)
    memory = Views(EXACT_MAX_BYTES, 4 << 30)
    pgvector = PgVector(database, Views(EXACT_MAX_BYTES, 4 << 30), EXACT_MAX_BYTES // EXACT_COST)
    print(f"\n{size:,} rows")
    print(f"  {'':10} {'p50 ms':>8} {'p95 ms':>8} {'recall':>7} {'rows in':>8} {'graph in':>8}")
    engines: Sequence[tuple[str, Index]] = (("hnswlib", memory), ("pgvector", pgvector))
    for name, index in engines:
        await _line(name, index, space, data)
        await index.close()
    await database.close()


async def _line(name: str, index: Index, space: Space, data: Data) -> None:
    async def pull(after: int) -> Sequence[Change]:
        rows = data.rows[after : after + PAGE]
        return [_change(after + place, row) for place, row in enumerate(rows)]

    async def find(query: Vectors) -> list[str]:
        found = await index.search(
            space,
            dimension=DIMENSION,
            language="en",
            last_seq=len(data.rows),
            pull=pull,
            query_text="",
            query_vector=query,
            limit=TOP,
        )
        return [one.row_id for one in found]

    follow = await _seconds(lambda: find(data.queries[0]))
    build = await _seconds(index.settled)
    times, right = [], 0
    for query, nearest in list(zip(data.queries, data.nearest, strict=True))[:QUERIES]:
        begin = time.perf_counter()
        found = await find(query)
        times.append(time.perf_counter() - begin)
        right += len({_id(number) for number in nearest}.intersection(found))
    p50, p95 = (percentile(times, part) * 1000 for part in (0.5, 0.95))
    recall = right / TOP / len(times)
    print(f"  {name:10} {p50:8.2f} {p95:8.2f} {recall:7.4f} {follow:7.1f}s {build:7.1f}s")


def _space(url: str) -> Space:
    """Make a tenant with a user; return a space of his."""
    tenant_id, user_id = str(uuid.uuid4()), str(uuid.uuid4())
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO tenants (tenant_id, name) VALUES (%s, %s)", [tenant_id, tenant_id]
        )
        connection.execute(
            "INSERT INTO users (tenant_id, user_id, email, email_key) VALUES (%s, %s, %s, %s)",
            [tenant_id, user_id, user_id, user_id],
        )
    return Space(tenant_id, user_id, "knowledge", "model")


def _change(number: int, vector: Vectors) -> Change:
    row = IndexedRow(_id(number), "", vector.tobytes())
    return Change(_id(number), number + 1, (row,))


def _id(number: int) -> str:
    return str(uuid.UUID(int=number))


async def _seconds(work: Callable[[], Awaitable[object]]) -> float:
    begin = time.perf_counter()
    await work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
