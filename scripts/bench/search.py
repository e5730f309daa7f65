"""`make bench-search`: what a view adds to raw numpy and hnswlib, in one process.

Clustered vectors of 384 dimensions, without texts: a view searched by a given vector, beside a bare
matrix product and a bare hnswlib with the same parameters. Then what a snapshot costs and saves.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import hnswlib
import numpy as np
from numpy.typing import NDArray

from hub_server.retrieval.graph import EF_CONSTRUCTION, M, ef_for
from hub_server.retrieval.snapshots import Snapshots, Space
from hub_server.retrieval.view import Change, IndexedRow, View
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
SPACE: Final = Space("tenant", "user", "knowledge", "model")

Result = TypeVar("Result")
Vectors = NDArray[np.float32]
Find = Callable[[Vectors], Sequence[int]]


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
    options = parser.parse_args()
    print(f"{machine()}; recall@{TOP} of {QUERIES} queries, one at a time")
    for size in options.sizes:
        measure(made(size))


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


def measure(data: Data) -> None:
    """Print a block of figures for one size."""
    size = len(data.rows)
    view, apply_seconds = _seconds(lambda: _applied(data.rows))
    _, build_seconds = _seconds(lambda: view.build(lambda: False))
    print(f"\n{size:,} rows, {view.in_graph:,} in a graph of ef {max(ef_for(size), DEPTH)}")
    print(f"  {'':24} {'p50 ms':>8} {'p95 ms':>8} {'a second':>9} {'recall':>7}")
    _line("view", data, lambda query: _found(view, query))
    _line("numpy, all rows", data, lambda query: _exact(data.rows, query))
    if view.in_graph:
        raw, raw_seconds = _seconds(lambda: _graph(data.rows))
        _line("hnswlib, same ef, 200", data, lambda query: _near(raw, query, DEPTH))
        _line("hnswlib, same ef, 10", data, lambda query: _near(raw, query, TOP))
        print(f"  graph built in {build_seconds:.1f} s (hnswlib alone {raw_seconds:.1f} s)")
    print(f"  rows applied in {apply_seconds:.1f} s, {view.nbytes / size:,.0f} bytes a row")
    _snapshot(view, data)


def _snapshot(view: View, data: Data) -> None:
    with tempfile.TemporaryDirectory(prefix="hub-bench-") as folder:
        snapshots = Snapshots(Path(folder))
        dump, dumped = _seconds(view.dump)
        _, saved = _seconds(lambda: snapshots.save(SPACE, "", dump))
        mebibytes = sum(part.nbytes for part in dump.parts.values()) / (1 << 20)

        def first() -> Sequence[int]:
            loaded = snapshots.load(SPACE)
            assert loaded is not None  # noqa: S101 - it was saved just before
            return _found(View.load(loaded, EXACT_MAX_BYTES), data.queries[0])

        _, came = _seconds(first)
    print(
        f"  snapshot of {mebibytes:,.0f} MiB: dumped in {dumped:.2f} s, written in {saved:.2f} s;"
        f" loaded and searched in {came:.2f} s"
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


def _found(view: View, query: Vectors) -> Sequence[int]:
    return [int(one.row_id) for one in view.search("", query, TOP)]


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


def _line(name: str, data: Data, find: Find) -> None:
    times, right = [], 0
    for query in data.queries[:20]:
        find(query)
    for query, nearest in zip(data.queries, data.nearest, strict=True):
        begin = time.perf_counter()
        found = find(query)
        times.append(time.perf_counter() - begin)
        right += len(nearest.intersection(found))
    p50, p95 = (percentile(times, part) * 1000 for part in (0.5, 0.95))
    recall = right / TOP / len(times)
    print(f"  {name:24} {p50:8.2f} {p95:8.2f} {len(times) / sum(times):9,.0f} {recall:7.4f}")


def _seconds(work: Callable[[], Result]) -> tuple[Result, float]:
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin


if __name__ == "__main__":
    main()
