"""`make bench-context`: what `BuildContext` and `Recall` cost a user of whom much is known.

10,000 messages, 2,000 memories and 5,000 chunks. Beside each call the calls it stands for, made
singly, and a bare gRPC echo. Every series is measured once a round, all in turn, with one call in
flight; each round gives a p50 and a p95, of which median and range are printed.
"""

import argparse
import asyncio
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import numpy as np
from google.protobuf.message import Message

from hub_client import HubClient
from hub_client.v1 import (
    AddChunksRequest,
    BatchAppendMessagesRequest,
    BatchMessage,
    BatchRememberRequest,
    BuildContextRequest,
    CreateSessionRequest,
    CreateUserRequest,
    GetIndexStatsRequest,
    IndexKind,
    ListMemoriesRequest,
    ListMessagesRequest,
    MemoryType,
    MessageOrder,
    MessageSearch,
    NewMemory,
    OwnChunk,
    RecallRequest,
    Role,
    SearchMessagesRequest,
    SearchRequest,
    TenantSettings,
    UpdateTenantSettingsRequest,
)
from scripts.bench.echo import ECHO, serve_bare, server
from scripts.bench.figures import machine, percentile
from scripts.hub_process import StartError, running_hub

MESSAGES, MEMORIES, CHUNKS = 10_000, 2_000, 5_000
EMBEDDING: Final = "minilm"
DIMENSION: Final = 384
PROTOS: Final = Path(__file__).parent.parent.parent / "protos" / "hub" / "v1"
PAGE: Final = 500  # rows of a request
BUDGETS: Final = (500, 4_000, 16_000)  # tokens
MESSAGE, MEMORY, CHUNK, QUERY = 40, 8, 150, 8  # words of each
QUERIES: Final = 50
# What BuildContext looks at of each part.
_FOUND, _OLDER, _TAIL = 50, 200, 400

ECHO_NAME: Final = "bare echo"
RECALL: Final = "Recall"
RECALL_PARTS: Final = ("Search of words and meaning, 10", "ListMemories, 200")
CONTEXT_PARTS: Final = (
    f"Recall, {_FOUND}",
    f"Search, {_FOUND}",
    f"SearchMessages, {_OLDER}",
    f"ListMessages, the last {_TAIL}",
)


@dataclass(frozen=True)
class Series:
    """What one series calls: where, what, and with which requests in turn."""

    address: str
    method: str
    requests: Sequence[bytes]


@dataclass(frozen=True)
class Filled:
    """A hub that is filled."""

    address: str
    key: str
    user_id: str
    session_id: str


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each series in a round")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    texts = Texts(options.seed)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="hub-bench-") as folder,
            server(serve_bare) as echo,
            running_hub(Path(folder) / "data", embedding=EMBEDDING) as (address, key),
        ):
            begin = time.perf_counter()
            hub = filled(address, key, texts)
            print(
                f"{machine()}; {MESSAGES:,} messages, {MEMORIES:,} memories, {CHUNKS:,} chunks,"
                f" {EMBEDDING}, messages by words, seed {options.seed}; filled in"
                f" {time.perf_counter() - begin:.0f} s",
                flush=True,
            )
            measured = all_series(echo, hub, [texts.said(QUERY) for _ in range(QUERIES)])
            rounds: dict[str, list[Sequence[float]]] = {name: [] for name in measured}
            for _ in range(options.rounds):
                for name, series in measured.items():
                    rounds[name].append(asyncio.run(timed(series, key, options.seconds)))
    except StartError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"one in flight; median of {options.rounds} rounds (range), milliseconds")
    print(table(rounds))
    return 0


class Texts:
    """Words of this repository's texts at random, the common ones often, as in a language."""

    def __init__(self, seed: int) -> None:
        """Read the words."""
        self._random = random.Random(seed)  # noqa: S311 - a benchmark repeats itself
        texts = [path.read_text() for path in sorted(PROTOS.glob("*.proto"))]
        self._words = re.findall(r"[A-Za-z]+", " ".join(texts))

    def said(self, words: int) -> str:
        """Return a text of so many words."""
        return " ".join(self._random.choices(self._words, k=words))


def filled(address: str, key: str, texts: Texts) -> Filled:
    """Make a user with all that is known of him."""
    settings = TenantSettings(message_search=MessageSearch.MESSAGE_SEARCH_WORDS)
    with HubClient(address, key) as client:
        client.identity.update_tenant_settings(
            UpdateTenantSettingsRequest(tenant_settings=settings)
        )
        user_id = client.identity.create_user(CreateUserRequest(email="a@example.org")).user.user_id
        start = CreateSessionRequest(user_id=user_id)
        session_id = client.chat.create_session(start).session.session_id
        hub = Filled(address, key, user_id, session_id)
        _say(client, hub, texts)
        _remember(client, hub, texts)
        _know(client, hub, texts)
    return hub


def _say(client: HubClient, hub: Filled, texts: Texts) -> None:
    roles = (Role.ROLE_USER, Role.ROLE_ASSISTANT)
    for _ in range(MESSAGES // PAGE):
        messages = [
            BatchMessage(role=roles[place % 2], content=texts.said(MESSAGE))
            for place in range(PAGE)
        ]
        client.chat.batch_append_messages(
            BatchAppendMessagesRequest(session_id=hub.session_id, messages=messages)
        )


def _remember(client: HubClient, hub: Filled, texts: Texts) -> None:
    """Remember each under a key of its own: who shall be 2,000 must not be found to be the same."""
    step = 20
    for first in range(0, MEMORIES, step):
        memories = [
            NewMemory(
                memory_type=MemoryType.MEMORY_TYPE_FACT,
                memory_content=texts.said(MEMORY),
                memory_key=f"fact.{number}",
            )
            for number in range(first, first + step)
        ]
        client.memory.batch_remember(BatchRememberRequest(user_id=hub.user_id, memories=memories))


def _know(client: HubClient, hub: Filled, texts: Texts) -> None:
    """Add chunks with vectors at random: what they say would take an hour to embed."""
    ask = GetIndexStatsRequest(user_id=hub.user_id, kind=IndexKind.INDEX_KIND_KNOWLEDGE)
    model = client.knowledge.get_index_stats(ask).index_stats.embedding_model
    vectors = np.random.default_rng(0).standard_normal((CHUNKS, DIMENSION)).astype("<f4")
    for first in range(0, CHUNKS, PAGE):
        chunks = [
            OwnChunk(content=texts.said(CHUNK), embedding=vector.tobytes())
            for vector in vectors[first : first + PAGE]
        ]
        client.knowledge.add_chunks(
            AddChunksRequest(
                user_id=hub.user_id, title=f"{first}", embedding_model=model, chunks=chunks
            )
        )


def all_series(echo: str, hub: Filled, queries: Sequence[str]) -> Mapping[str, Series]:
    """Return what to measure, by name."""
    user_id = hub.user_id

    def series(method: str, requests: Sequence[Message]) -> Series:
        return Series(
            hub.address, f"/hub.v1.{method}", [one.SerializeToString() for one in requests]
        )

    page = ListMessagesRequest(
        session_id=hub.session_id, page_size=_TAIL, order=MessageOrder.MESSAGE_ORDER_NEWEST_FIRST
    )
    found = [
        series(
            "MemoryService/Recall",
            [RecallRequest(user_id=user_id, query=query, top_k=_FOUND) for query in queries],
        ),
        series(
            "KnowledgeService/Search",
            [SearchRequest(user_id=user_id, query=query, top_k=_FOUND) for query in queries],
        ),
        series(
            "ChatService/SearchMessages",
            [
                SearchMessagesRequest(
                    user_id=user_id, query=query, top_k=_OLDER, session_id=hub.session_id
                )
                for query in queries
            ],
        ),
        series("ChatService/ListMessages", [page]),
    ]
    context = {
        f"BuildContext, {budget:,} tokens": series(
            "ChatService/BuildContext",
            [
                BuildContextRequest(session_id=hub.session_id, query=query, token_budget=budget)
                for query in queries
            ],
        )
        for budget in BUDGETS
    }
    recall = [
        series(
            "KnowledgeService/Search",
            [SearchRequest(user_id=user_id, query=query) for query in queries],
        ),
        series("MemoryService/ListMemories", [ListMemoriesRequest(user_id=user_id, page_size=200)]),
    ]
    return {
        ECHO_NAME: Series(echo, ECHO, [b""]),
        **dict(zip(RECALL_PARTS, recall, strict=True)),
        RECALL: series(
            "MemoryService/Recall",
            [RecallRequest(user_id=user_id, query=query) for query in queries],
        ),
        **dict(zip(CONTEXT_PARTS, found, strict=True)),
        **context,
    }


async def timed(series: Series, key: str, seconds: float) -> Sequence[float]:
    """Return how long each call takes, in seconds."""
    metadata = (("authorization", f"Bearer {key}"),)
    times: list[float] = []
    async with grpc.aio.insecure_channel(series.address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(series.method)
        for request in series.requests[:5]:  # connects, and makes views
            await call(request, metadata=metadata)
        begin = time.perf_counter()
        while (start := time.perf_counter()) - begin < seconds:
            request = series.requests[len(times) % len(series.requests)]
            await call(request, metadata=metadata)
            times.append(time.perf_counter() - start)
    return times


def table(rounds: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Return a line for each series, and for the sums of the parts."""
    lines = [f"{'':30}{'p50':>30}{'p95':>30}{'p50 / parts':>13}"]
    parts = {name: CONTEXT_PARTS for name in rounds if name.startswith("BuildContext")}
    for name, times in rounds.items():
        line = f"{name:32}" + "".join(
            f"{_spread([percentile(one, part) * 1000 for one in times]):>30}"
            for part in (0.5, 0.95)
        )
        if name in parts:
            ratios = [
                percentile(one, 0.5)
                / sum(percentile(rounds[part][place], 0.5) for part in parts[name])
                for place, one in enumerate(times)
            ]
            line += f"{statistics.median(ratios):11.2f}"
        lines.append(line)
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
