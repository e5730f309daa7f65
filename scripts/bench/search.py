"""`make bench-search`: what a view adds to raw numpy and hnswlib, and a hub to its views.

Clustered vectors of 384 dimensions: a view searched by a given vector, beside a bare matrix product
and a bare hnswlib with the same parameters; the same among one row of a hundred; what a snapshot
costs and saves; then `Search` of a hub with a given vector, beside a bare echo.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import hnswlib
import numpy as np
from numpy.typing import NDArray

from hub_server.retrieval.graph import EF_CONSTRUCTION, M, ef_for
from hub_server.retrieval.snapshots import Snapshots, Space
from hub_server.retrieval.view import Change, IndexedRow, View
from scripts.bench import search_rpc
from scripts.bench.figures import machine, percentile

DIMENSION: Final = 384
SIZES: Final = (1_000, 10_000, 100_000)
EXACT_MAX_BYTES: Final = 16 << 20
TOP: Final = 10
DEPTH: Final = 200  # what a view asks its vectors for
CLUSTER: Final = 1_000
NOISE: Final = 1.2  # beside a centre's 1
QUERIES: Final = 300
PAGE: Final = 1_000
EFS: Final = (64, 100, 200, 300, 500, 800)
SPACE: Final = Space("tenant", "user", "knowledge", "model")

Result = TypeVar("Result")
Vectors = NDArray[np.float32]
Find = Callable[[Vectors], Sequence[int] | Sequence[str]]


@dataclass(frozen=True)
class Data:
    """Rows of length 1, queries, and the true nearest rows of each."""

    rows: Vectors
    queries: Vectors
    nearest: Sequence[set[int]]


def main() -> None:
    """Measure each size and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=[*SIZES])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-rpc", action="store_true", help="views alone, without a hub")
    options = parser.parse_args()
    print(f"{machine()}; recall@{TOP} of {QUERIES} queries, one at a time; {options.rounds} rounds")
    for size in options.sizes:
        data = made(size)
        measure(data, options.rounds)
        if not options.no_rpc:
            search_rpc.measure(data.rows, data.queries, data.nearest, options.rounds)


def made(size: int) -> Data:
    """Generate rows in clusters, and queries that fall into the same ones."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((max(size // CLUSTER, 1), DIMENSION), dtype=np.float32)

    def drawn(count: int) -> Vectors:
        noise = random.standard_normal((count, DIMENSION), dtype=np.float32)
        points = centres[random.integers(len(centres), size=count)] + np.float32(NOISE) * noise
        scaled: Vectors = points / np.linalg.norm(points, axis=1, keepdims=True)
        return scaled

    rows, queries = drawn(size), drawn(QUERIES)
    nearest = [set(np.argpartition(-(rows @ query), TOP)[:TOP].tolist()) for query in queries]
    return Data(rows, queries, nearest)


def measure(data: Data, rounds: int) -> None:
    """Print a block of figures for one size."""
    size = len(data.rows)
    view, apply_seconds = _seconds(lambda: _applied(data.rows))
    _, build_seconds = _seconds(lambda: view.build(lambda: False))
    print(f"\n{size:,} rows, {view.in_graph:,} in a graph of ef {max(ef_for(size), DEPTH)}")
    few = [f"{number:036}" for number in range(0, size, 100)]
    finds: dict[str, Find] = {
        "view": lambda query: _found(view, query),
        "numpy, all rows": lambda query: _exact(data.rows, query),
    }
    raw, raw_seconds = _seconds(lambda: _graph(data.rows) if view.in_graph else None)
    if raw is not None:
        finds["hnswlib, same ef, 10"] = lambda query: _near(raw, query, TOP)
    finds[f"view, among {len(few):,} ids"] = lambda query: _found(view, query, few)
    _table(data, finds, rounds, "numpy, all rows" if raw is None else "hnswlib, same ef, 10")
    if raw is not None:
        print(f"  graph built in {build_seconds:.1f} s (hnswlib alone {raw_seconds:.1f} s)")
        _curve(raw, data)
    print(f"  rows applied in {apply_seconds:.2f} s, {view.nbytes / size:,.0f} bytes a row")
    _snapshot(view, data)


def _curve(index: hnswlib.Index, data: Data) -> None:
    """Print what a wider search finds and costs."""
    points = []
    for ef in EFS:
        index.set_ef(ef)
        times, recall = _timed(data, lambda query: _near(index, query, TOP))
        points.append(f"{ef}: {recall:.3f} {percentile(times, 0.5) * 1000:.2f} ms")
    print(f"  recall and p50 of hnswlib by ef: {', '.join(points)}")


def _snapshot(view: View, data: Data) -> None:
    with tempfile.TemporaryDirectory(prefix="hub-bench-") as folder:
        snapshots = Snapshots(Path(folder))
        dump, dumped = _seconds(view.dump)
        _, saved = _seconds(lambda: snapshots.save(SPACE, "", dump))
        mebibytes = sum(part.nbytes for part in dump.parts.values()) / (1 << 20)

        def first() -> Sequence[str]:
            loaded = snapshots.load(SPACE)
            assert loaded is not None  # noqa: S101 - it was saved just before
            return _found(View.load(loaded, EXACT_MAX_BYTES), data.queries[0])

        _, came = _seconds(first)
    _, anew = _seconds(lambda: _found(_applied(data.rows), data.queries[0]))
    print(
        f"  snapshot of {mebibytes:,.0f} MiB: dumped in {dumped:.2f} s, written in {saved:.2f} s;"
        f" loaded and searched in {came:.2f} s, made from rows and searched in {anew:.2f} s"
    )


def _applied(rows: Vectors) -> View:
    view = View(DIMENSION, "en", EXACT_MAX_BYTES)
    for first in range(0, len(rows), PAGE):
        view.apply(
            [
                Change(f"{number:036}", number + 1, (_row(number, rows[number]),))
                for number in range(first, min(first + PAGE, len(rows)))
            ]
        )
    return view


def _row(number: int, vector: Vectors) -> IndexedRow:
    return IndexedRow(f"{number:036}", "", vector.tobytes())


def _found(view: View, query: Vectors, among: Sequence[str] | None = None) -> Sequence[str]:
    return [one.row_id for one in view.search("", query, TOP, among)]


def _exact(rows: Vectors, query: Vectors) -> Sequence[int]:
    scores = rows @ query
    found = np.argpartition(-scores, TOP)[:TOP]
    ordered: list[int] = found[np.argsort(-scores[found])].tolist()
    return ordered


def _graph(rows: Vectors) -> hnswlib.Index:
    index = hnswlib.Index(space="ip", dim=DIMENSION)
    index.init_index(len(rows), M=M, ef_construction=EF_CONSTRUCTION)
    index.add_items(rows, np.arange(len(rows)), num_threads=1)
    index.set_ef(max(ef_for(len(rows)), DEPTH))
    return index


def _near(index: hnswlib.Index, query: Vectors, k: int) -> Sequence[int]:
    labels: list[int] = index.knn_query(query, k=k, num_threads=1)[0][0][:TOP].tolist()
    return labels


def _table(data: Data, finds: Mapping[str, Find], rounds: int, reference: str) -> None:
    """Print a line for each way to search, all measured in turn in each round.

    The ratio is the median over the rounds of the ratio of medians to the reference's.
    """
    medians: dict[str, list[float]] = {name: [] for name in finds}
    times: dict[str, list[float]] = {name: [] for name in finds}
    recalls: dict[str, float] = {}
    for _ in range(rounds):
        for name, find in finds.items():
            round_times, recalls[name] = _timed(data, find)
            times[name] += round_times
            medians[name].append(percentile(round_times, 0.5))
    print(f"  {'':24} {'p50 ms (rounds)':>24} {'p95':>6} {'p99':>6} {'a second':>9} recall ratio")
    for name, ours in medians.items():
        p50, p95, p99 = (percentile(times[name], part) * 1000 for part in (0.5, 0.95, 0.99))
        ratio = statistics.median(a / b for a, b in zip(ours, medians[reference], strict=True))
        spread = f"{p50:.3f} ({min(ours) * 1000:.3f} to {max(ours) * 1000:.3f})"
        rate = len(times[name]) / sum(times[name])
        print(
            f"  {name:24} {spread:>24} {p95:6.2f} {p99:6.2f} {rate:9,.0f} {recalls[name]:.4f}"
            f" {ratio:5.2f}"
        )


def _timed(data: Data, find: Find) -> tuple[list[float], float]:
    """Return the time of each query, and the recall."""
    times, right = [], 0
    for query in data.queries[:20]:
        find(query)
    for query, nearest in zip(data.queries, data.nearest, strict=True):
        begin = time.perf_counter()
        found = find(query)
        times.append(time.perf_counter() - begin)
        right += len(nearest.intersection(map(int, found)))
    return times, right / TOP / len(times)


def _seconds(work: Callable[[], Result]) -> tuple[Result, float]:
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin


if __name__ == "__main__":
    main()
