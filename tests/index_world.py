"""A user's documents written straight to Postgres, and brute force over them: what is true."""

import math
import random
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from hub_server import spaces
from hub_server.caller import Caller
from hub_server.database import Connection, Database
from hub_server.knowledge.models import chunks, documents
from hub_server.knowledge.repository import KnowledgeRepository
from hub_server.pgvector import PgVector
from hub_server.retrieval.index import Index
from hub_server.retrieval.view import Candidate, Change, proposed
from hub_server.retrieval.views import Space, Views

DIMENSION: Final = 16
MODEL: Final = "made-up"
WORDS: Final = ("fig", "plum", "quince", "medlar", "sorb")
ENGINES: Final = ("exact", "hnswlib", "pgvector")
_GRAPH_FROM: Final = 24  # rows of a space
_PLENTY: Final = 1 << 30
_KIND: Final = "knowledge"

Vector = NDArray[np.float32]


def opened(engine: str, database: Database, folder: Path, memory_bytes: int = _PLENTY) -> Index:
    """Return an engine whose every view is worth a snapshot, and soon a graph."""
    most = _PLENTY if engine == "exact" else _GRAPH_FROM * DIMENSION * 4
    views = Views(most, memory_bytes, folder, large_bytes=0)
    return PgVector(database, views, most) if engine == "pgvector" else views


@dataclass(frozen=True)
class Chunk:
    """A row to find."""

    chunk_id: str
    text: str
    vector: Vector


@dataclass
class World:
    """One user's space: what was written, what is to be found, and the way to an index."""

    database: Database
    tenant_id: str
    user_id: str
    chance: random.Random
    live: dict[str, list[Chunk]] = field(default_factory=dict)
    deleted: dict[str, list[Chunk]] = field(default_factory=dict)
    leaving: set[str] = field(default_factory=set)  # ids of rows, from before their deletion on

    @property
    def space(self) -> Space:
        """The space of all that is written here."""
        return Space(self.tenant_id, self.user_id, _KIND, MODEL)

    @property
    def rows(self) -> dict[str, Chunk]:
        """What is to be found, by id."""
        return {chunk.chunk_id: chunk for found in self.live.values() for chunk in found}

    async def add(self, most_chunks: int = 6) -> str:
        """Write a document; return its id."""
        document_id = str(uuid.UUID(int=self.chance.getrandbits(128), version=4))
        made = self._made(most_chunks)
        async with self.database.transaction(Caller.hub(self.tenant_id)) as connection:
            values = {
                "tenant_id": self.tenant_id,
                "document_id": document_id,
                "user_id": self.user_id,
                "title": "",
                "text": "",
                "status": "ready",
                "content_hash": b"",
                "revision": 0,
            }
            await connection.execute(sa.insert(documents).values(values))
            await self._write(connection, document_id, made)
        self.live[document_id] = made
        return document_id

    async def update(self, document_id: str) -> None:
        """Put other chunks in the place of a document's."""
        made = self._made(6)
        async with self.database.transaction(Caller.hub(self.tenant_id)) as connection:
            await connection.execute(
                sa.delete(chunks).where(
                    chunks.c.tenant_id == self.tenant_id, chunks.c.document_id == document_id
                )
            )
            await self._write(connection, document_id, made)
        self.live[document_id] = made

    async def delete(self, *document_ids: str) -> None:
        """Delete documents, which can be undone."""
        for document_id in document_ids:
            self.leaving |= {chunk.chunk_id for chunk in self.live[document_id]}
            async with self.database.transaction(Caller.hub(self.tenant_id)) as connection:
                await self._set(connection, document_id, deleted_at=sa.func.now())
            self.deleted[document_id] = self.live.pop(document_id)

    async def undelete(self, document_id: str) -> None:
        """Bring a document back."""
        async with self.database.transaction(Caller.hub(self.tenant_id)) as connection:
            await self._set(connection, document_id, deleted_at=None)
        self.live[document_id] = self.deleted.pop(document_id)

    async def pull(self, after: int) -> Sequence[Change]:
        """Return the next changes, as a search of the hub pulls them."""
        async with self.database.statement(Caller.hub(self.tenant_id)) as connection:
            repository = KnowledgeRepository(connection, self.tenant_id)
            return await repository.changes(self.user_id, MODEL, after)

    async def last_seq(self) -> int:
        """Return the seq of the last change, as a search of the hub reads it first."""
        async with self.database.statement(Caller.hub(self.tenant_id)) as connection:
            state = await spaces.state(connection, self.tenant_id, self.user_id, _KIND)
        assert state is not None
        return int(state["last_seq"])

    async def search(
        self,
        index: Index,
        text: str = "",
        vector: Vector | None = None,
        limit: int = 10,
        among: Sequence[str] | None = None,
    ) -> list[Candidate]:
        """Search as the hub does: what is acknowledged by now, and then the index."""
        last_seq = await self.last_seq()
        return await index.search(
            self.space,
            dimension=DIMENSION,
            language="en",
            last_seq=last_seq,
            pull=self.pull,
            query_text=text,
            query_vector=vector,
            limit=limit,
            among=among,
        )

    def expected(self, text: str, vector: Vector | None, limit: int) -> list[Candidate]:
        """Return what brute force over the rows proposes."""
        rows = list(self.rows.values())
        words = sorted(_bm25(rows, text.split()).items(), key=lambda one: -one[1])[:200]
        nearest: list[tuple[str, float]] = []
        if vector is not None:
            cosines = {one.chunk_id: float(_unit(one.vector) @ _unit(vector)) for one in rows}
            nearest = sorted(cosines.items(), key=lambda one: -one[1])[:200]
        weight = (text != "") / ((text != "") + (vector is not None) or 1)
        return proposed(words, nearest, weight, limit, 200)

    def query(self) -> Vector:
        """Draw a vector to search by."""
        return np.array([self.chance.gauss(0, 1) for _ in range(DIMENSION)], dtype=np.float32)

    def _made(self, most: int) -> list[Chunk]:
        return [
            Chunk(
                str(uuid.UUID(int=self.chance.getrandbits(128), version=4)),
                " ".join(self.chance.choices(WORDS, k=self.chance.randint(1, 4))),
                self.query(),
            )
            for _ in range(self.chance.randint(1, most))
        ]

    async def _write(self, connection: Connection, document_id: str, made: Sequence[Chunk]) -> None:
        revision = await self._set(connection, document_id, chunk_count=len(made))
        rows = [
            {
                "tenant_id": self.tenant_id,
                "chunk_id": chunk.chunk_id,
                "document_id": document_id,
                "user_id": self.user_id,
                "revision": revision,
                "chunk_index": place,
                "content": chunk.text,
                "token_count": 1,
                "embedding": chunk.vector.astype("<f4").tobytes(),
                "embedding_model": MODEL,
                "metadata": {"document_title": ""},
            }
            for place, chunk in enumerate(made)
        ]
        await connection.execute(sa.insert(chunks), rows)

    async def _set(self, connection: Connection, document_id: str, **values: object) -> int:
        """Change a document under the next seq of the space; return its revision."""
        seq = await spaces.next_seq(connection, self.tenant_id, self.user_id, _KIND)
        anew = documents.c.revision + int("chunk_count" in values)
        statement = (
            sa.update(documents)
            .where(documents.c.tenant_id == self.tenant_id, documents.c.document_id == document_id)
            .values(space_seq=seq, revision=anew, **values)
            .returning(documents.c.revision)
        )
        return int((await connection.execute(statement)).scalar_one())


def _bm25(rows: Sequence[Chunk], terms: Sequence[str]) -> dict[str, float]:
    """Return the scores of rows that share a term, by the formula alone."""
    texts = {row.chunk_id: Counter(row.text.split()) for row in rows}
    average = sum(map(Counter.total, texts.values())) / max(len(texts), 1)
    scores: Counter[str] = Counter()
    for term in terms:
        having = [one for one, text in texts.items() if text[term]]
        idf = math.log(1 + (len(texts) - len(having) + 0.5) / (len(having) + 0.5))
        for one in having:
            tf, length = texts[one][term], texts[one].total()
            scores[one] += idf * tf / (tf + 1.5 * (0.25 + 0.75 * length / average))  # type: ignore[assignment]
    return dict(scores)


def _unit(vector: Vector) -> Vector:
    scaled: Vector = vector / np.linalg.norm(vector)
    return scaled
