"""A hub that is killed while it moves a space to another model."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hub_client import HubClient
from hub_client.v1 import (
    CreateUserRequest,
    GetDocumentRequest,
    GetReembeddingRequest,
    IngestDocumentRequest,
    Reembedding,
    ReembeddingStatus,
    ReembedSpaceRequest,
    SearchMode,
    SearchRequest,
)
from hub_server.migrations import migrate
from tests.embedding_server import EmbeddingServer, embedding_server, good
from tests.integration.test_reembedding import Gate
from tests.support import hub_process

_TEXT = "\n\n".join(f"Paragraph {n} speaks of birds. " + "Owls hunt. " * 60 for n in range(24))


@pytest.fixture
def model() -> Iterator[EmbeddingServer]:
    """The server of the model to move to."""
    with embedding_server() as server:
        yield server


def until(client: HubClient, is_it: Callable[[Reembedding], bool]) -> Reembedding:
    """Return how far the tenant is once that is so; 30 seconds at most."""
    end = time.monotonic() + 30
    while True:
        found = client.knowledge.get_reembedding(GetReembeddingRequest()).reembedding
        if is_it(found):
            return found
        assert time.monotonic() < end
        time.sleep(0.05)


def ingested(client: HubClient, user_id: str) -> int:
    """Ingest the text; return the number of its chunks."""
    request = IngestDocumentRequest(user_id=user_id, title="Birds", text=_TEXT)
    document = client.knowledge.ingest_document(request).document
    while not document.chunk_count:
        time.sleep(0.05)
        get = GetDocumentRequest(document_id=document.document_id)
        document = client.knowledge.get_document(get).document
    return document.chunk_count


def found(client: HubClient, user_id: str) -> int:
    """Return how many chunks are found by meaning alone."""
    mode = SearchMode.SEARCH_MODE_SEMANTIC
    request = SearchRequest(user_id=user_id, query="owls", top_k=200, mode=mode)
    return len(client.knowledge.search(request).hits)


def test_a_move_goes_on_after_kill_9(
    empty_database: str, tmp_path: Path, model: EmbeddingServer
) -> None:
    """All is found before and after; what was embedded before the kill is not embedded again."""
    migrate(empty_database, "hub_server")
    gate = Gate()
    with hub_process(
        tmp_path / "data",
        database_url=empty_database,
        embedding_models=f"openai:new@{model.url}",
        ingestion_lease="1",
    ) as hub:
        with HubClient(hub.start(), hub.key) as client:
            user_id = client.identity.create_user(
                CreateUserRequest(email="a@b.example")
            ).user.user_id
            total = ingested(client, user_id)
            model.acts.extend([good, good])  # the length of a vector, the first batch
            model.always = gate
            move = ReembedSpaceRequest(embedding_model="openai:new")
            client.knowledge.reembed_space(move)
            assert until(client, lambda it: it.rows_done > 0).rows_done == 16
        hub.kill()
        gate.open()
        model.always = good
        model.seen.clear()
        with HubClient(hub.start(), hub.key) as client:
            done = until(client, lambda it: it.status == ReembeddingStatus.REEMBEDDING_STATUS_DONE)
            assert (done.rows_done, done.rows_total) == (total, total)
            assert found(client, user_id) == total
        again = [text for seen in model.seen for text in seen.texts if "Owls hunt" in text]
        assert len(again) == total - 16
