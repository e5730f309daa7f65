"""`Search` with a given vector through the RPC, for `make bench-search`."""

import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import grpc
import numpy as np
from numpy.typing import NDArray

from hub_client import HubClient
from hub_client.v1 import (
    AddChunksRequest,
    CreateUserRequest,
    GetIndexStatsRequest,
    IndexKind,
    OwnChunk,
    SearchMode,
    SearchRequest,
    SearchResponse,
)
from scripts.bench.echo import ECHO, serve_bare, server
from scripts.bench.figures import percentile
from scripts.hub_process import running_hub

SEARCH: Final = "/hub.v1.KnowledgeService/Search"
EMBEDDING: Final = "minilm"  # of as many dimensions as the rows
TOP: Final = 10
CHUNKS: Final = 500  # of a request
DOCUMENT: Final = 5_000  # chunks
SECONDS: Final = 2.0  # of each series in a round
IN_FLIGHT: Final = 16
MOST_SECONDS: Final = 3_600.0  # for a graph; that of a million rows takes a quarter of it

Vectors = NDArray[np.float32]


def measure(rows: Vectors, queries: Vectors, nearest: Sequence[set[int]], rounds: int) -> None:
    """Fill a hub with rows, and print how its searches compare with an echo."""
    with tempfile.TemporaryDirectory(prefix="hub-bench-") as folder, server(serve_bare) as bare:
        data = Path(folder) / "data"
        with running_hub(data, embedding=EMBEDDING) as (hub, key):
            user_id, filled = _filled(hub, key, rows)
            requests = [_request(user_id, query) for query in queries]
            rare = [_request(user_id, query, is_rare=True) for query in queries]
            first, built = _built(hub, key, user_id, requests[0])
            series = {
                "echo": (bare, ECHO, requests),
                "Search": (hub, SEARCH, requests),
                "of 1 %": (hub, SEARCH, rare),
            }
            _print_rates(series, key, rounds)
            print(f"    recall@{TOP} {_recall(hub, key, requests, nearest):.4f}")
        with running_hub(data, embedding=EMBEDDING) as (hub, key):
            again = _first(hub, key, requests[0])
    print(
        f"    filled in {filled:.0f} s; first search without a view {first:.2f} s, its graph"
        f" {built:.0f} s later; first after a restart {again:.2f} s"
    )


def _filled(hub: str, key: str, rows: Vectors) -> tuple[str, float]:
    begin = time.perf_counter()
    with HubClient(hub, key) as client:
        user_id = client.identity.create_user(CreateUserRequest(email="a@example.org")).user.user_id
        ask = GetIndexStatsRequest(user_id=user_id, kind=IndexKind.INDEX_KIND_KNOWLEDGE)
        model = client.knowledge.get_index_stats(ask).index_stats.embedding_model
        document_id = ""
        for first in range(0, len(rows), CHUNKS):
            if first % DOCUMENT == 0:
                document_id = ""
            chunks = [
                _chunk(number, rows[number])
                for number in range(first, min(first + CHUNKS, len(rows)))
            ]
            request = AddChunksRequest(user_id=user_id, embedding_model=model, chunks=chunks)
            if document_id:
                request.document_id = document_id
            else:
                request.title = f"from {first}"
            document_id = client.knowledge.add_chunks(request).document.document_id
    return user_id, time.perf_counter() - begin


def _chunk(number: int, row: Vectors) -> OwnChunk:
    chunk = OwnChunk(content=f"row {number}", embedding=row.astype("<f4").tobytes())
    chunk.metadata["hundredth"] = number % 100
    return chunk


def _request(user_id: str, query: Vectors, *, is_rare: bool = False) -> bytes:
    """Return a search of all rows, or of those one in a hundred that a filter keeps."""
    request = SearchRequest(
        user_id=user_id,
        vector=query.astype("<f4").tobytes(),
        mode=SearchMode.SEARCH_MODE_SEMANTIC,
        top_k=TOP,
    )
    if is_rare:
        request.filter.equals.path.append("hundredth")
        request.filter.equals.value.number = 7
    return request.SerializeToString()


def _built(hub: str, key: str, user_id: str, request: bytes) -> tuple[float, float]:
    """Search once, and wait until the process has no work left; return how long both took."""
    first = _first(hub, key, request)
    begin = time.perf_counter()
    with HubClient(hub, key) as client:
        ask = GetIndexStatsRequest(user_id=user_id, kind=IndexKind.INDEX_KIND_KNOWLEDGE)
        while time.perf_counter() - begin < MOST_SECONDS:
            if not client.knowledge.get_index_stats(ask).index_stats.is_building:
                break
            time.sleep(0.2)
    return first, time.perf_counter() - begin


def _first(hub: str, key: str, request: bytes) -> float:
    """Return how long a search takes for which nothing is in memory yet."""

    async def call() -> float:
        async with grpc.aio.insecure_channel(hub) as channel:
            await channel.channel_ready()
            begin = time.perf_counter()
            await _search(channel, request, key)
            return time.perf_counter() - begin

    return asyncio.run(call())


async def _search(channel: grpc.aio.Channel, request: bytes, key: str) -> bytes:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(SEARCH)
    return await call(request, metadata=(("authorization", f"Bearer {key}"),), timeout=120)


def _recall(hub: str, key: str, requests: Sequence[bytes], nearest: Sequence[set[int]]) -> float:
    async def right() -> int:
        total = 0
        async with grpc.aio.insecure_channel(hub) as channel:
            for request, expected in zip(requests, nearest, strict=True):
                answer = SearchResponse.FromString(await _search(channel, request, key))
                found = {int(hit.chunk.content.removeprefix("row ")) for hit in answer.hits}
                total += len(found & expected)
        return total

    return asyncio.run(right()) / TOP / len(requests)


def _print_rates(
    series: Mapping[str, tuple[str, str, Sequence[bytes]]], key: str, rounds: int
) -> None:
    """Print rates and latencies of calls (address, method, requests), in turn in each round."""
    for in_flight in (1, IN_FLIGHT):
        times: dict[str, list[float]] = {name: [] for name in series}
        rates: dict[str, list[float]] = {name: [] for name in series}
        for _ in range(rounds):
            for name, (address, method, requests) in series.items():
                took, rate = asyncio.run(_calls(address, method, requests, key, in_flight))
                times[name] += took
                rates[name].append(rate)
        for name, took in times.items():
            p50, p95, p99 = (percentile(took, part) * 1000 for part in (0.5, 0.95, 0.99))
            ours = sorted(rates[name])
            print(
                f"    {name:6} {in_flight:2} in flight: {ours[len(ours) // 2]:7,.0f}/s"
                f" ({ours[0]:,.0f} to {ours[-1]:,.0f}); p50 {p50:.2f} ms, p95 {p95:.2f},"
                f" p99 {p99:.2f}"
            )


async def _calls(
    address: str, method: str, requests: Sequence[bytes], key: str, in_flight: int
) -> tuple[list[float], float]:
    """Return the time of each call, and calls a second."""
    metadata = (("authorization", f"Bearer {key}"),)
    times: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        await call(requests[0], metadata=metadata)  # connects
        begin = time.perf_counter()

        async def caller(first: int) -> None:
            place = first
            while time.perf_counter() - begin < SECONDS:
                start = time.perf_counter()
                await call(requests[place % len(requests)], metadata=metadata)
                times.append(time.perf_counter() - start)
                place += in_flight

        await asyncio.gather(*(caller(first) for first in range(in_flight)))
        return times, len(times) / (time.perf_counter() - begin)
