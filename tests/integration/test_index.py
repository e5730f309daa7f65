"""Indexes are looked into, checked against the rows, and made anew."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hub_client.errors import FeatureDisabledError, InvalidFieldError
from hub_client.v1 import (
    AddChunksRequest,
    AppendMessageRequest,
    CheckIndexRequest,
    ForgetMemoryRequest,
    GetIndexStatsRequest,
    IndexCheck,
    IndexEngine,
    IndexKind,
    IndexStats,
    MemoryType,
    MessageSearch,
    OwnChunk,
    RebuildIndexRequest,
    RecallRequest,
    RememberRequest,
    Role,
    SearchRequest,
    TenantSettings,
    UpdateTenantSettingsRequest,
    User,
)
from tests.support import Tenant, running_hub

_MEMORY = IndexKind.INDEX_KIND_MEMORY
_KNOWLEDGE = IndexKind.INDEX_KIND_KNOWLEDGE
_MESSAGES = IndexKind.INDEX_KIND_MESSAGES


async def test_each_flaw_is_told_and_ended_by_a_rebuild(tenant: Tenant) -> None:
    """Rows that change behind a view's back are missing, ghosts and stale, by their ids."""
    user = await tenant.new_user()
    missing, ghost, stale, sound = [await _remember(tenant, user, f"tea {n}") for n in range(4)]
    await tenant.client.memory.forget_memory(ForgetMemoryRequest(memory_id=missing))
    assert await _recalled(tenant, user) == {ghost, stale, sound}
    assert _told(await _check(tenant, user, _MEMORY)) == (3, [], [], [])

    await _change(tenant, "UPDATE memory_store SET status = 'active'", missing)
    for table in ("memory_revisions", "memory_store"):
        await _change(tenant, f"DELETE FROM {table}", ghost)  # noqa: S608 - named above
    other = np.ones(256, dtype="<f4").tobytes()
    await _change(tenant, "UPDATE memory_store SET embedding = %s", stale, other)
    assert _told(await _check(tenant, user, _MEMORY)) == (3, [missing], [ghost], [stale])

    rebuilt = await tenant.client.knowledge.rebuild_index(
        RebuildIndexRequest(user_id=user.user_id, kind=_MEMORY)
    )
    stats = rebuilt.index_stats
    assert (stats.rows, stats.applied_seq) == (3, stats.last_seq)
    assert _told(await _check(tenant, user, _MEMORY)) == (3, [], [], [])
    assert await _recalled(tenant, user) == {missing, stale, sound}


async def test_chunks_and_messages_have_an_index_too(tenant: Tenant) -> None:
    """A row that is taken from Postgres unseen is a ghost in each, until a rebuild."""
    user = await tenant.new_user()
    document = await tenant.ingest(user, "Owls", "Owls hunt at night.")
    settings = TenantSettings(message_search=MessageSearch.MESSAGE_SEARCH_WORDS)
    await tenant.client.identity.update_tenant_settings(
        UpdateTenantSettingsRequest(tenant_settings=settings)
    )
    session = await tenant.new_session(user)
    append = AppendMessageRequest(
        session_id=session.session_id, role=Role.ROLE_USER, content="An owl!"
    )
    message = (await tenant.client.chat.append_message(append)).message
    chunk = ("DELETE FROM chunks WHERE document_id = %s", document.document_id)
    redact = "UPDATE chat_messages SET content = NULL, redacted_at = now() WHERE message_id = %s"
    for kind, take in ((_KNOWLEDGE, chunk), (_MESSAGES, (redact, message.message_id))):
        assert _told(await _check(tenant, user, kind)) == (1, [], [], [])
        await asyncio.to_thread(tenant.hub.sql, *take)
        flawed = await _check(tenant, user, kind)
        assert (flawed.rows, flawed.missing, flawed.ghosts, flawed.stale) == (0, 0, 1, 0)
        await tenant.client.knowledge.rebuild_index(
            RebuildIndexRequest(user_id=user.user_id, kind=kind)
        )
        assert _told(await _check(tenant, user, kind)) == (0, [], [], [])


async def test_each_model_of_chunks_has_an_index(tenant: Tenant) -> None:
    """It holds all rows, is checked and made anew by itself, and is told from the space's own."""
    user = await tenant.new_user()
    await tenant.ingest(user, "Owls", "Owls hunt at night.")
    one = OwnChunk(content="A swan sleeps.", embedding=_vector(1, 0, 0))
    add = AddChunksRequest(
        user_id=user.user_id, title="Swans", embedding_model="elsewhere", chunks=[one]
    )
    added = (await tenant.client.knowledge.add_chunks(add)).document
    client = tenant.client.knowledge
    ask: dict[str, Any] = {"user_id": user.user_id, "kind": _KNOWLEDGE}

    async def told(model: str) -> tuple[tuple[int, list[str], list[str], list[str]], int]:
        """Return what a check comes to, and the rows that the index says it has."""
        asked = {**ask, "embedding_model": model}
        check = (await client.check_index(CheckIndexRequest(**asked))).index_check
        await client.search(SearchRequest(user_id=user.user_id, query="swans"))  # holds its words
        stats = (await client.get_index_stats(GetIndexStatsRequest(**asked))).index_stats
        assert stats.embedding_model == model or not model
        return _told(check), stats.rows

    assert await told("elsewhere") == ((2, [], [], []), 2)
    change = "UPDATE chunks SET embedding = %s WHERE document_id = %s RETURNING chunk_id::text"
    ((chunk,),) = await asyncio.to_thread(
        tenant.hub.sql, change, _vector(0, 1, 0), added.document_id
    )
    assert await told("elsewhere") == ((2, [], [], [chunk]), 2)
    assert await told("") == ((2, [], [], []), 2)
    await client.rebuild_index(RebuildIndexRequest(**ask, embedding_model="elsewhere"))
    assert await told("elsewhere") == ((2, [], [], []), 2)
    for kind, model in ((_KNOWLEDGE, "nobody's"), (_MEMORY, "elsewhere")):
        wrong = {**ask, "kind": kind, "embedding_model": model}
        with pytest.raises(InvalidFieldError) as caught:
            await client.get_index_stats(GetIndexStatsRequest(**wrong))
        assert [field for field, _ in caught.value.violations] == ["embedding_model"]


async def test_messages_that_are_not_searched_have_no_index(tenant: Tenant) -> None:
    """Where the tenant has messages not searched, that is what is answered."""
    user = await tenant.new_user()
    with pytest.raises(FeatureDisabledError) as caught:
        await _check(tenant, user, _MESSAGES)
    assert caught.value.metadata["feature"] == "message_search"


async def test_stats_follow_a_view(tenant: Tenant, tmp_path: Path) -> None:
    """What is not held yet, what is, how it is searched, and how far it is behind."""
    user = await tenant.new_user()
    for place in range(4):
        await _remember(tenant, user, f"tea {place}")
    # 4 vectors of 256 dimensions are exact, the fifth makes the view hnswlib.
    async with running_hub(
        tenant.hub.owner_url, tmp_path, exact_max_mb=4 * 1024 / (1 << 20), index="hnswlib"
    ) as second:
        client = second.client(tenant.key)
        ask = GetIndexStatsRequest(user_id=user.user_id, kind=_MEMORY)

        async def stats() -> IndexStats:
            return (await client.knowledge.get_index_stats(ask)).index_stats

        before = await stats()
        assert (before.is_held, before.last_seq > 3, before.kind) == (False, True, _MEMORY)
        assert before.embedding_model.startswith("wordllama")
        await client.memory.recall(RecallRequest(user_id=user.user_id, query="tea"))
        held = await stats()
        assert (held.is_held, held.rows) == (True, 4)
        assert held.applied_seq == held.last_seq == before.last_seq
        assert (held.engine, held.rows_in_graph) == (IndexEngine.INDEX_ENGINE_EXACT, 0)
        await _remember(tenant, user, "tea 5")
        behind = await stats()
        assert (behind.rows, behind.applied_seq) == (4, held.applied_seq)
        assert behind.last_seq > held.last_seq
        await client.memory.recall(RecallRequest(user_id=user.user_id, query="tea"))
        async with asyncio.timeout(20):
            while True:
                graph = await stats()
                if not graph.is_building:
                    break
                await asyncio.sleep(0.02)  # polling, as any caller of this API does
        assert (graph.engine, graph.rows_in_graph) == (IndexEngine.INDEX_ENGINE_HNSWLIB, 5)
        assert graph.HasField("built_at")
        process = graph.process
        assert (process.views, process.bytes) == (1, graph.bytes)
        assert process.budget_bytes == second.settings.view_memory_mb << 20


async def test_searches_go_on_while_an_index_is_rebuilt(tenant: Tenant) -> None:
    """Each search beside rebuilds and writes finds all that was acknowledged before it."""
    user = await tenant.new_user()
    document = await tenant.ingest(user, "Owls", "Owls hunt at night.")
    known = {await _remember(tenant, user, f"tea {place}") for place in range(5)}
    rebuild = [
        RebuildIndexRequest(user_id=user.user_id, kind=kind) for kind in (_MEMORY, _KNOWLEDGE)
    ]
    search = SearchRequest(user_id=user.user_id, query="owls")
    for _ in range(5):
        rebuilds = [asyncio.create_task(_rebuilt(tenant, one)) for one in rebuild]
        while not all(one.done() for one in rebuilds):
            known.add(await _remember(tenant, user, f"tea {len(known)}"))
            assert await _recalled(tenant, user) == known
            (hit,) = (await tenant.client.knowledge.search(search)).hits
            assert hit.chunk.document_id == document.document_id
    assert _told(await _check(tenant, user, _MEMORY)) == (len(known), [], [], [])


def _vector(*numbers: float) -> bytes:
    return np.array(numbers, dtype="<f4").tobytes()


async def _rebuilt(tenant: Tenant, request: RebuildIndexRequest) -> None:
    await tenant.client.knowledge.rebuild_index(request)


async def _remember(tenant: Tenant, user: User, text: str) -> str:
    request = RememberRequest(
        user_id=user.user_id, memory_type=MemoryType.MEMORY_TYPE_FACT, memory_content=text
    )
    return (await tenant.client.memory.remember(request)).memory.memory_id


async def _recalled(tenant: Tenant, user: User) -> set[str]:
    request = RecallRequest(user_id=user.user_id, query="tea", top_k=200)
    return {hit.memory.memory_id for hit in (await tenant.client.memory.recall(request)).hits}


async def _change(tenant: Tenant, statement: str, memory_id: str, *values: object) -> None:
    """Change a memory without telling its space."""
    where = f"{statement} WHERE memory_id = %s"
    await asyncio.to_thread(tenant.hub.sql, where, *values, memory_id)


async def _check(tenant: Tenant, user: User, kind: IndexKind.ValueType) -> IndexCheck:
    request = CheckIndexRequest(user_id=user.user_id, kind=kind)
    return (await tenant.client.knowledge.check_index(request)).index_check


def _told(check: IndexCheck) -> tuple[int, list[str], list[str], list[str]]:
    ids = [list(one) for one in (check.missing_ids, check.ghost_ids, check.stale_ids)]
    assert [len(one) for one in ids] == [check.missing, check.ghosts, check.stale]
    assert check.recall_at_10 == 1
    return check.rows, ids[0], ids[1], ids[2]
