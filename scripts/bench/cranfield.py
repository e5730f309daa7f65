"""`make bench-cranfield`: search on the Cranfield collection, through a whole hub.

Ingests the 1,400 abstracts, asks the 225 queries, and prints nDCG@10 beside the collection's
reference figure, the rate of ingestion, and how long a search takes. Documents are ranked by
their best chunk; a judgement of 1 to 4 counts as relevant, the gain is binary.
"""

import argparse
import asyncio
import math
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hub_client import AsyncHubClient
from hub_client.v1 import (
    CreateUserRequest,
    Document,
    DocumentStatus,
    IngestDocumentRequest,
    ListDocumentsRequest,
    SearchRequest,
)
from scripts.bench.figures import machine, percentile
from scripts.hub_process import StartError, running_hub

FOLDER: Final = Path(__file__).parents[3] / "shared" / "data" / "cranfield"
# nDCG@10 with title and text as one row, words and vectors fused: the README of the collection.
REFERENCE: Final[Mapping[str, float]] = {"minilm": 0.436, "wordllama": 0.403}
DEPTH: Final = 10
# Chunks asked for, so that those of one document cannot keep ten documents from being ranked.
TOP_K: Final = 80
IN_FLIGHT: Final = 8
SETTLE_SECONDS: Final = 900


@dataclass(frozen=True)
class Abstract:
    """One document of the collection."""

    number: str
    title: str
    author: str
    text: str


@dataclass(frozen=True)
class Collection:
    """Documents, queries, and by the number of a query (from 1) what is relevant to it."""

    abstracts: Sequence[Abstract]
    queries: Sequence[str]
    relevant: Mapping[int, set[str]]


@dataclass(frozen=True)
class Library:
    """The collection as a user's documents in a hub."""

    user_id: str
    documents: int
    chunks: int
    seconds: float  # from the first document sent to the last one ready


def main() -> int:
    """Measure each model and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--embedding", nargs="+", choices=[*REFERENCE], default=[*REFERENCE])
    options = parser.parse_args()
    if not (options.folder / "cran.all.1400").exists():
        print(f"Cranfield is not in {options.folder}: name its folder", file=sys.stderr)
        return 1
    collection = read(options.folder)
    print(machine())
    try:
        for model in options.embedding:
            with (
                tempfile.TemporaryDirectory(prefix="hub-bench-") as folder,
                running_hub(Path(folder) / "data", embedding=model) as (address, key),
            ):
                asyncio.run(measure(model, address, key, collection))
    except StartError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def read(folder: Path) -> Collection:
    """Read the collection; two of its documents are empty and left out."""
    abstracts = [_abstract(record) for record in _records(folder / "cran.all.1400")]
    queries = [_folded(record.split(".W", 1)[1]) for record in _records(folder / "cran.qry")]
    relevant: dict[int, set[str]] = {}
    for line in (folder / "cranqrel").read_text().splitlines():
        if line.strip():
            query, document, grade = line.split()
            if int(grade) > 0:
                relevant.setdefault(int(query), set()).add(document)
    return Collection([one for one in abstracts if one.text], queries, relevant)


def _records(file: Path) -> list[str]:
    return re.split(r"^\.I ", file.read_text(encoding="latin-1"), flags=re.MULTILINE)[1:]


def _abstract(record: str) -> Abstract:
    number, *parts = re.split(r"^\.([TABW])\s*$", record, flags=re.MULTILINE)
    fields = dict(zip(parts[::2], parts[1::2], strict=True))
    title, author = _folded(fields["T"]), _folded(fields["A"])
    return Abstract(number.strip(), title, author, fields["W"].strip())


def _folded(text: str) -> str:
    return " ".join(text.split())


async def measure(model: str, address: str, key: str, collection: Collection) -> None:
    """Ingest, search, and print what came of it."""
    async with AsyncHubClient(address, key) as client:
        library = await ingested(client, collection)
        first, *_ = await seconds_of(client, library, collection.queries[:1])
        score = mean_ndcg(await rankings(client, library, collection), collection.relevant)
        times = await seconds_of(client, library, collection.queries)
    p50, p95 = (percentile(times, part) * 1000 for part in (0.5, 0.95))
    print(
        f"{model:10} nDCG@10 {score:.4f} (reference {REFERENCE[model]:.3f})\n"
        f"{'':10} {library.documents:,} documents, {library.chunks:,} chunks in"
        f" {library.seconds:.1f} s: {library.documents / library.seconds:.1f} documents/s,"
        f" {library.chunks / library.seconds:.1f} chunks/s\n"
        f"{'':10} Search p50 {p50:.1f} ms, p95 {p95:.1f} ms;"
        f" the first, which builds the view, {first * 1000:.0f} ms",
        flush=True,
    )


async def ingested(client: AsyncHubClient, collection: Collection) -> Library:
    """Make a user and ingest all documents; return once each is ready."""
    request = CreateUserRequest(email=f"{time.time_ns()}@example.org")
    user_id = (await client.identity.create_user(request)).user.user_id
    begin = time.perf_counter()
    await _ingest(client, user_id, collection.abstracts)
    documents = await _settled(client, user_id)
    seconds = time.perf_counter() - begin
    chunks = sum(document.chunk_count for document in documents)
    return Library(user_id, len(documents), chunks, seconds)


async def _ingest(client: AsyncHubClient, user_id: str, abstracts: Sequence[Abstract]) -> None:
    waiting: Iterator[Abstract] = iter(abstracts)

    async def send() -> None:
        for abstract in waiting:
            request = IngestDocumentRequest(
                user_id=user_id,
                title=abstract.title,
                text=abstract.text,
                author=abstract.author,
                source_url=abstract.number,
            )
            await client.knowledge.ingest_document(request)

    await asyncio.gather(*(send() for _ in range(IN_FLIGHT)))


async def _settled(client: AsyncHubClient, user_id: str) -> list[Document]:
    """Return all documents once each is ready."""
    async with asyncio.timeout(SETTLE_SECONDS):
        while True:
            request = ListDocumentsRequest(user_id=user_id, page_size=1000)
            documents = [one async for one in client.knowledge.list_documents(request)]
            states = {document.status for document in documents}
            if states == {DocumentStatus.DOCUMENT_STATUS_READY}:
                return documents
            if DocumentStatus.DOCUMENT_STATUS_FAILED in states:
                raise RuntimeError(next(one.error for one in documents if one.error))
            await asyncio.sleep(0.2)


async def rankings(
    client: AsyncHubClient, library: Library, collection: Collection
) -> list[list[str]]:
    """Return for each query the numbers of the documents found, each once, by its best chunk."""
    found = []
    for query in collection.queries:
        request = SearchRequest(user_id=library.user_id, query=query, top_k=TOP_K)
        hits = (await client.knowledge.search(request)).hits
        sources = (hit.chunk.metadata.fields["source"].string_value for hit in hits)
        found.append(list(dict.fromkeys(sources)))
    return found


async def seconds_of(
    client: AsyncHubClient, library: Library, queries: Sequence[str]
) -> list[float]:
    """Return how long each search takes, one after the other, for as many chunks as by default."""
    times = []
    for query in queries:
        begin = time.perf_counter()
        await client.knowledge.search(SearchRequest(user_id=library.user_id, query=query))
        times.append(time.perf_counter() - begin)
    return times


def mean_ndcg(rankings: Sequence[Sequence[str]], relevant: Mapping[int, set[str]]) -> float:
    """Return the mean nDCG@10 over the queries that have judgements."""
    scores = [ndcg(rankings[query - 1], wanted) for query, wanted in relevant.items()]
    return sum(scores) / len(scores)


def ndcg(ranking: Sequence[str], wanted: set[str]) -> float:
    """Return nDCG@10 of one ranking, each wanted document counting 1."""
    gained = sum(
        1 / math.log2(place + 2) for place, number in enumerate(ranking[:DEPTH]) if number in wanted
    )
    return gained / sum(1 / math.log2(place + 2) for place in range(min(DEPTH, len(wanted))))


if __name__ == "__main__":
    sys.exit(main())
