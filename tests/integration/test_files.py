"""No file of the data directory keeps the words of what was deleted or redacted."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hub_client import AsyncHubClient
from hub_client.v1 import (
    AppendMessageRequest,
    DeleteDocumentRequest,
    DeleteMemoryRequest,
    MemoryType,
    MessageSearch,
    RecallRequest,
    RedactMessageRequest,
    RememberRequest,
    Role,
    SearchMessagesRequest,
    SearchMode,
    SearchRequest,
    TenantSettings,
    UpdateTenantSettingsRequest,
    User,
)
from hub_server.retrieval.views import Views
from tests.support import Tenant, running_hub

_GONE = "qxvkanarien"  # no stem of any other word
_KEPT = "zzwpapagei"


def _files_with(folder: Path, word: str) -> list[str]:
    """Return the names of files with a word in them, as grep does; Postgres' are elsewhere."""
    return sorted(
        file.name
        for file in folder.rglob("*")
        if file.is_file() and word.encode() in file.read_bytes()
    )


async def _searched(tenant: Tenant, user_id: str) -> list[int]:
    """Return how many documents, messages and memories have one of both words."""
    query, client = f"{_GONE} {_KEPT}", tenant.client
    search = SearchRequest(user_id=user_id, query=query, mode=SearchMode.SEARCH_MODE_LEXICAL)
    messages = SearchMessagesRequest(user_id=user_id, query=query)
    recall = RecallRequest(user_id=user_id, query=query)
    return [
        len((await client.knowledge.search(search)).hits),
        len((await client.chat.search_messages(messages)).hits),
        len((await client.memory.recall(recall)).hits),
    ]


async def test_what_is_gone_is_in_no_file(
    owner_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words of a document, a message and a memory are in files until they are deleted."""
    defaults = Views.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "large_bytes", 0)  # every view is worth a file
    folder = tmp_path / "data"
    folder.mkdir()
    async with running_hub(owner_url, folder) as hub:
        tenant = await hub.new_tenant()
        key, user_id = tenant.key, (await tenant.new_user()).user_id
        removals = await _written(tenant, user_id)
        assert await _searched(tenant, user_id) == [2, 2, 2]
    kept = _files_with(folder, _KEPT)
    assert _files_with(folder, _GONE) == kept
    assert len(kept) == 3
    async with running_hub(owner_url, folder) as hub:
        client = hub.client(key)
        for left, remove in zip((2, 1, 0), removals, strict=True):
            await remove(client)
            assert len(_files_with(folder, _GONE)) == left
        assert await _searched(replace(tenant, client=client), user_id) == [1, 1, 1]
    assert _files_with(folder, _KEPT) == kept
    assert _files_with(folder, _GONE) == []


async def _written(
    tenant: Tenant, user_id: str
) -> list[Callable[[AsyncHubClient], Awaitable[object]]]:
    """Write two of each kind; return what removes the first of each."""
    settings = TenantSettings(message_search=MessageSearch.MESSAGE_SEARCH_WORDS)
    await tenant.client.identity.update_tenant_settings(
        UpdateTenantSettingsRequest(tenant_settings=settings)
    )
    user = User(user_id=user_id)
    document, _ = [await tenant.ingest(user, "Birds", f"The {word}.") for word in (_GONE, _KEPT)]
    session = await tenant.new_session(user)
    for word in (_GONE, _KEPT):
        await tenant.client.chat.append_message(
            AppendMessageRequest(session_id=session.session_id, role=Role.ROLE_USER, content=word)
        )
    memory, _ = [
        await tenant.client.memory.remember(
            RememberRequest(
                user_id=user_id,
                memory_type=MemoryType.MEMORY_TYPE_FACT,
                memory_content=f"likes the {word}",
            )
        )
        for word in (_GONE, _KEPT)
    ]
    delete = DeleteDocumentRequest(document_id=document.document_id)
    redact = RedactMessageRequest(session_id=session.session_id, seq=1)
    forget = DeleteMemoryRequest(memory_id=memory.memory.memory_id)
    return [
        lambda client: client.knowledge.delete_document(delete),
        lambda client: client.chat.redact_message(redact),
        lambda client: client.memory.delete_memory(forget),
    ]
