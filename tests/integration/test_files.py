"""No file of the data directory keeps the words of what was deleted or redacted."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hub_client.v1 import (
    AppendMessageRequest,
    DeleteDocumentRequest,
    MessageSearch,
    RedactMessageRequest,
    Role,
    SearchMessagesRequest,
    SearchRequest,
    TenantSettings,
    UpdateTenantSettingsRequest,
)
from hub_server.retrieval.views import Views
from tests.support import INDEX, Hub, Tenant, running_hub

_GONE = "qxvkanarien"  # no stem of any other word
_KEPT = "zzwpapagei"


@pytest.fixture
async def small_hub(
    owner_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Hub]:
    """A hub whose every view has a graph and is worth a snapshot."""
    defaults = Views.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "large_bytes", 0)
    async with running_hub(owner_url, tmp_path / "data", exact_max_mb=0) as hub:
        yield hub


def _files_with(folder: Path, word: str) -> list[str]:
    """Return the names of files with a word in them, as grep does; Postgres' are elsewhere."""
    return sorted(
        file.name
        for file in folder.rglob("*")
        if file.is_file() and word.encode() in file.read_bytes()
    )


async def _saved(folder: Path) -> None:
    """Return once a snapshot has both words."""
    async with asyncio.timeout(30):
        while not set(_files_with(folder, _GONE)) & set(_files_with(folder, _KEPT)):
            await asyncio.sleep(0.02)  # what writes it tells nobody


async def _search_knowledge(tenant: Tenant, user_id: str) -> int:
    request = SearchRequest(user_id=user_id, query=f"{_GONE} {_KEPT}")
    return len((await tenant.client.knowledge.search(request)).hits)


async def _search_messages(tenant: Tenant, user_id: str) -> int:
    request = SearchMessagesRequest(user_id=user_id, query=f"{_GONE} {_KEPT}")
    return len((await tenant.client.chat.search_messages(request)).hits)


@pytest.mark.skipif(INDEX != "hnswlib", reason="a view of words alone is saved when it leaves")
async def test_what_is_gone_is_in_no_file(small_hub: Hub, owner_url: str) -> None:
    """A document deleted, a message redacted: their words are in files before, never after."""
    tenant = await small_hub.new_tenant()
    user, folder = await tenant.new_user(), small_hub.settings.data_dir
    document = await tenant.ingest(user, "Gone", f"The {_GONE} sings.")
    await tenant.ingest(user, "Kept", f"The {_KEPT} speaks.")
    assert await _search_knowledge(tenant, user.user_id) == 2
    await _saved(folder)
    await tenant.client.knowledge.delete_document(
        DeleteDocumentRequest(document_id=document.document_id)
    )
    assert _files_with(folder, _GONE) == []
    assert await _search_knowledge(tenant, user.user_id) == 1
