"""`make bench-spaces`: many small spaces, searched at random, under a budget of memory.

2,000 spaces of 50 chunks would take several times the budget. Each search brings its view back from
rows that are made on the spot, as Postgres would return them. What counts is the resident memory of
the process above what it had before, against the budget.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from hub_server.retrieval.snapshots import Space
from hub_server.retrieval.view import Change, IndexedRow
from hub_server.retrieval.views import Views
from scripts.bench.figures import machine, percentile

SPACES: Final = 2_000
CHUNKS: Final = 50
DIMENSION: Final = 384
WORDS: Final = 60  # of a chunk
VOCABULARY: Final = tuple(f"word{number}" for number in range(5_000))
MEBIBYTE: Final = 1 << 20
EXACT_MAX_BYTES: Final = 16 * MEBIBYTE
SLACK: Final = 1.2


def main() -> None:
    """Measure and print; exit with 1 where the memory was exceeded or a search failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget-mb", type=int, default=64)
    parser.add_argument("--searches", type=int, default=6_000)
    parser.add_argument("--seed", type=int, default=1)
    sys.exit(0 if asyncio.run(visit(parser.parse_args())) else 1)


async def visit(options: argparse.Namespace) -> bool:
    """Search spaces at random; tell whether all went as it should."""
    chosen = random.Random(options.seed)  # noqa: S311 - chooses what to visit
    times: list[float] = []
    failed = seen = 0
    warm = Views(EXACT_MAX_BYTES, MEBIBYTE)  # what is loaded once is no view's
    for number in range(20):
        await found(warm, number)
    before = peak = resident()
    views = Views(EXACT_MAX_BYTES, options.budget_mb * MEBIBYTE)
    for _ in range(options.searches):
        begin = time.perf_counter()
        count = await found(views, chosen.randrange(SPACES))
        times.append(time.perf_counter() - begin)
        failed += count != CHUNKS
        peak, seen = max(peak, resident()), max(seen, len(views))
    used = (peak - before) / MEBIBYTE
    p50, p95 = (percentile(times, part) * 1000 for part in (0.5, 0.95))
    print(f"{machine()}; {SPACES:,} spaces of {CHUNKS} chunks, seed {options.seed}")
    print(f"  {options.searches:,} searches, {failed} failed; p50 {p50:.1f} ms, p95 {p95:.1f} ms")
    print(f"  at most {seen} views at a time, {views.nbytes / MEBIBYTE:.1f} MiB by their estimate")
    print(
        f"  resident memory: {before / MEBIBYTE:.0f} MiB before, {used:.1f} MiB more at most:"
        f" {used / options.budget_mb:.2f} of the budget of {options.budget_mb} MiB"
    )
    return failed == 0 and used <= SLACK * options.budget_mb


async def found(views: Views, number: int) -> int:
    """Search a space that was perhaps evicted; return how many rows were found."""

    async def pull(after: int) -> Sequence[Change]:
        return [change(number)] if after == 0 else []

    query = np.random.default_rng(number).standard_normal(DIMENSION, dtype=np.float32)
    hits = await views.search(
        Space("tenant", f"user {number}", "knowledge", "model"),
        dimension=DIMENSION,
        language="en",
        last_seq=1,
        pull=pull,
        query_text=VOCABULARY[number],
        query_vector=query,
        limit=CHUNKS,
    )
    return len(hits)


def change(number: int) -> Change:
    """Return the rows of a space, the same each time."""
    drawn = np.random.default_rng(number)
    vectors = drawn.standard_normal((CHUNKS, DIMENSION), dtype=np.float32)
    words = drawn.zipf(1.2, (CHUNKS, WORDS)) % len(VOCABULARY)
    rows = (
        IndexedRow(
            f"{number:018}{place:018}",
            " ".join(VOCABULARY[word] for word in words[place]),
            vectors[place].tobytes(),
        )
        for place in range(CHUNKS)
    )
    return Change(f"{number:036}", 1, tuple(rows))


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


if __name__ == "__main__":
    main()
