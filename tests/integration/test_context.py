"""One call for what a model needs: within the budget, honouring the flags, and told again later."""

import asyncio
import random
from typing import Any

import pytest

from hub_client.errors import InvalidFieldError, NotFoundError, ScopeInsufficientError
from hub_client.v1 import (
    AppendMessageRequest,
    BuildContextRequest,
    Context,
    ContextPart,
    ContextReason,
    ContextShares,
    CreateApiKeyRequest,
    DeleteDocumentRequest,
    DeleteMemoryRequest,
    GetContextRecordRequest,
    ListRetrievalsRequest,
    MemoryType,
    MessageSearch,
    RedactMessageRequest,
    RememberRequest,
    Role,
    Session,
    TenantSettings,
    UpdateDocumentRequest,
    UpdateMemoryRequest,
    UpdateTenantSettingsRequest,
    UpdateUserConfigRequest,
    User,
    UserConfig,
)
from hub_client.v1.options_pb2 import Scope
from hub_server.context.repository import ContextRepository
from tests.integration.test_database import statements
from tests.support import INDEX, Tenant, settled

_KEPT = ContextReason.CONTEXT_REASON_KEPT
_MEMORY = ContextPart.CONTEXT_PART_MEMORY
_KNOWLEDGE = ContextPart.CONTEXT_PART_KNOWLEDGE
_HISTORY = ContextPart.CONTEXT_PART_HISTORY
_GUIDE = """# Tea

Green tea is brewed at eighty degrees for two minutes.

## Black tea

Black tea takes boiling water and four minutes.

# Coffee

Coffee is ground before it is brewed.
"""


@pytest.fixture
async def user(tenant: Tenant) -> User:
    """A new user of the tenant."""
    return await tenant.new_user()


@pytest.fixture
async def session(tenant: Tenant, user: User) -> Session:
    """A session of the user in which something was said."""
    session = await tenant.new_session(user)
    for role, content in (
        (Role.ROLE_USER, "Good morning."),
        (Role.ROLE_ASSISTANT, "Good morning! Tea?"),
        (Role.ROLE_USER, "Yes. How do I brew green tea?"),
    ):
        await _say(tenant, session, content, role)
    return session


async def test_a_context_has_all_parts_and_is_told_again(
    tenant: Tenant, user: User, session: Session
) -> None:
    """Memories, chunks and history in four statements; the record gives the very same bytes."""
    await _remember(tenant, user, "Takes no milk in tea.")
    await tenant.ingest(user, "Brewing", _GUIDE, source_url="https://example.org/tea")
    await _built(tenant, session, 500)
    with statements() as seen:
        context = await _built(tenant, session, 500)
    assert len(seen) <= (4 if INDEX == "hnswlib" else 5), seen  # pgvector is asked by a statement
    parts = [block.part for block in context.blocks]
    assert parts == sorted(parts)
    assert set(parts) == {_MEMORY, _KNOWLEDGE, _HISTORY}
    assert [block.content for block in context.blocks if block.part == _HISTORY] == [
        "Good morning.",
        "Good morning! Tea?",
        "Yes. How do I brew green tea?",
    ]
    assert context.token_count == sum(block.token_count for block in context.blocks) <= 500
    source = next(block for block in context.blocks if block.part == _KNOWLEDGE).sources[0]
    assert (source.document_title, source.source_url) == ("Brewing", "https://example.org/tea")
    assert context.tools_allowed
    again = await _recorded(tenant, context)
    assert again.SerializeToString(deterministic=True) == context.SerializeToString(
        deterministic=True
    )
    retrieved = [
        one
        async for one in tenant.client.knowledge.list_retrievals(
            ListRetrievalsRequest(session_id=session.session_id)
        )
        if one.retrieval_id == context.context_id
    ]
    chunks = [one.chunk_id for block in context.blocks for one in block.sources if one.chunk_id]
    assert sorted(one.chunk_id for one in retrieved) == sorted(chunks)


async def test_a_record_shows_nothing_that_is_gone(
    tenant: Tenant, user: User, session: Session
) -> None:
    """Memories as they were; but what was deleted or redacted since has left no text behind.

    Nor are messages told of whose history is switched off.
    """
    kept = await _remember(tenant, user, "Takes no milk in tea.")
    gone = await _remember(tenant, user, "Likes green tea best.")
    document = await tenant.ingest(user, "Brewing", _GUIDE)
    context = await _built(tenant, session, 500)
    change = UpdateMemoryRequest(memory_id=kept, memory_content="Takes milk.")
    await tenant.client.memory.update_memory(change)
    assert await _recorded(tenant, context) == context
    await tenant.client.memory.delete_memory(DeleteMemoryRequest(memory_id=gone))
    await tenant.client.chat.redact_message(
        RedactMessageRequest(session_id=session.session_id, seq=1)
    )
    await tenant.client.knowledge.delete_document(
        DeleteDocumentRequest(document_id=document.document_id)
    )
    said = [block.content for block in (await _recorded(tenant, context)).blocks]
    assert [text for text in said if text] == [
        "Takes no milk in tea.",
        "Good morning! Tea?",
        "Yes. How do I brew green tea?",
    ]
    config = UserConfig(user_id=user.user_id, enable_chat_history=False)
    await tenant.client.identity.update_user_config(UpdateUserConfigRequest(config=config))
    said = [block.content for block in (await _recorded(tenant, context)).blocks]
    assert [text for text in said if text] == ["Takes no milk in tea."]
    query = "SELECT count(*) FROM context_records r WHERE user_id = %s AND r::text LIKE %s"
    for word in ("%milk%", "%brew%", "%morning%"):
        found = await asyncio.to_thread(tenant.hub.sql, query, user.user_id, word)
        assert found == [(0,)]


async def test_the_budget_holds_and_the_ledger_is_whole(tenant: Tenant) -> None:
    """For random memories, documents, histories, budgets and flags, through the RPC."""
    settings = TenantSettings(message_search=MessageSearch.MESSAGE_SEARCH_WORDS)
    await tenant.client.identity.update_tenant_settings(
        UpdateTenantSettingsRequest(tenant_settings=settings)
    )
    chance = random.Random(6)  # noqa: S311 - to be repeated
    words = ["tea", "milk", "water", "leaf", "cup", "pot", "green", "black", "brew", "boil", "sip"]

    def text(most: int) -> str:
        return " ".join(chance.choices(words, k=chance.randint(1, most))) + "."

    for _ in range(3):
        user = await tenant.new_user()
        session = await tenant.new_session(user)
        remembered = {await _remember(tenant, user, text(12)) for _ in range(6)}
        document = await tenant.ingest(user, text(3), "\n\n".join(text(90) for _ in range(6)))
        messages = [await _say(tenant, session, text(30), Role.ROLE_USER) for _ in range(15)]
        for budget in (1, 7, 40, 160, 5000):
            flags = {name: chance.random() < 0.7 for name in ("enable_rag", "enable_chat_history")}
            config = UserConfig(user_id=user.user_id, enable_tool=False)
            for name, is_on in flags.items():
                setattr(config, name, is_on)
            request = UpdateUserConfigRequest(config=config)
            request.update_mask.paths.extend([*flags, "enable_tool"])
            await tenant.client.identity.update_user_config(request)
            context = await _built(tenant, session, budget, query=text(4))
            assert context.token_count <= budget
            assert not context.tools_allowed
            ids = [entry.item_id for entry in context.ledger if entry.item_id]
            assert len(ids) == len(set(ids))
            kept = {entry.item_id for entry in context.ledger if entry.reason == _KEPT}
            assert kept == {
                one.memory_id or one.chunk_id or one.message_id
                for block in context.blocks
                for one in block.sources
            }
            off = [entry.part for entry in context.ledger if entry.reason == 5]
            assert off == [
                part
                for part, is_on in zip((_KNOWLEDGE, _HISTORY), flags.values(), strict=True)
                if not is_on
            ]
            assert remembered <= set(ids)
            considered = dict.fromkeys((_MEMORY, _KNOWLEDGE, _HISTORY), 0)
            for entry in context.ledger:
                considered[entry.part] += bool(entry.item_id)
            assert considered[_KNOWLEDGE] == document.chunk_count * flags["enable_rag"]
            if not flags["enable_chat_history"]:
                assert considered[_HISTORY] == 0
            elif budget >= 160:
                assert considered[_HISTORY] == len(messages)
            assert await _recorded(tenant, context) == context


async def test_without_a_query_the_users_last_message_is_looked_for(
    tenant: Tenant, user: User, session: Session
) -> None:
    """However far back it lies and whatever the flags; without any, all memories fit alike."""
    tea = await _remember(tenant, user, "Likes green tea best.")
    await _remember(tenant, user, "Owns a bicycle.", confidence_score=0.5)
    await tenant.ingest(user, "Brewing", _GUIDE)
    await _say(tenant, session, "Like this. " * 100, Role.ROLE_ASSISTANT)
    asked = await _built(tenant, session, 20, query="Yes. How do I brew green tea?")
    found = _looked_for(asked)
    assert [part for part, _, _ in found].count(_KNOWLEDGE) > 0
    assert _looked_for(await _built(tenant, session, 20)) == found
    config = UserConfig(user_id=user.user_id, enable_chat_history=False)
    await tenant.client.identity.update_user_config(UpdateUserConfigRequest(config=config))
    quiet = await _built(tenant, session, 20)
    assert _looked_for(quiet) == found
    assert [one.reason for one in quiet.ledger if one.part == _HISTORY] == [5]
    silent = await _built(tenant, await tenant.new_session(user), 20)
    assert [(part, score) for part, _, score in _looked_for(silent)] == [
        (_MEMORY, pytest.approx(1)),
        (_MEMORY, pytest.approx(0.5)),
    ]
    assert silent.blocks[0].sources[0].memory_id == tea


def _looked_for(context: Context) -> list[Any]:
    """Return what was found by the query: the scores as far as they do not change by the second."""
    return [
        (entry.part, entry.item_id, round(entry.score, 4))
        for entry in context.ledger
        if entry.part != _HISTORY
    ]


async def test_what_is_replaced_while_a_context_is_built_leaves_the_new(
    tenant: Tenant, user: User, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory that is superseded, a document that gets another text: never neither is there."""
    await _remember(tenant, user, "Takes no milk in tea.", memory_key="tea.milk")
    document = await tenant.ingest(user, "Tea", "Green tea needs eighty degrees.")
    read, is_replaced = ContextRepository.found, False

    async def replaced(*arguments: Any, **values: Any) -> Any:
        nonlocal is_replaced
        if not is_replaced:
            is_replaced = True
            await _remember(tenant, user, "Takes milk in tea.", memory_key="tea.milk")
            change = UpdateDocumentRequest(document_id=document.document_id, text="Tea needs care.")
            await tenant.client.knowledge.update_document(change)
            await settled(tenant.client, document.document_id)
        return await read(*arguments, **values)

    monkeypatch.setattr(ContextRepository, "found", replaced)
    context = await _built(tenant, session, 500, shares=ContextShares(history=0))
    said = [block.content for block in context.blocks if block.part != _HISTORY]
    assert said == ["Takes milk in tea.", "Tea needs care."]


async def test_a_fact_is_not_said_twice(tenant: Tenant, user: User, session: Session) -> None:
    """A memory whose own message is in the history, or says the same, is a duplicate.

    One that was put right since is none: the message says what is right no longer.
    """
    message = await _say(tenant, session, "I am allergic to nuts, by the way.", Role.ROLE_USER)
    origin = {"session_id": session.session_id, "message_id": message}
    memory = await _remember(tenant, user, "Is allergic to nuts.", **origin)
    same = await _remember(tenant, user, "good morning")
    context = await _built(tenant, session, 500, query="nuts")
    reasons = {entry.item_id: entry.reason for entry in context.ledger}
    assert reasons[memory] == reasons[same] == ContextReason.CONTEXT_REASON_DUPLICATE
    alone = await _built(tenant, session, 500, query="nuts", shares=ContextShares(history=0.0))
    assert {entry.item_id for entry in alone.ledger} >= {memory, same}
    change = UpdateMemoryRequest(memory_id=memory, memory_content="Is allergic to peanuts only.")
    await tenant.client.memory.update_memory(change)
    context = await _built(tenant, session, 500, query="nuts")
    assert "Is allergic to peanuts only." in [block.content for block in context.blocks]


async def test_shares_and_scores_bound_what_comes_in(
    tenant: Tenant, user: User, session: Session
) -> None:
    """Shares over 1 are refused; what scores too low is told as such."""
    await _remember(tenant, user, "Takes no milk in tea.")
    await _remember(tenant, user, "Owns a bicycle.")
    with pytest.raises(InvalidFieldError) as caught:
        await _built(tenant, session, 500, shares=ContextShares(memory=0.9, history=0.2))
    assert [field for field, _ in caught.value.violations] == ["shares"]
    context = await _built(tenant, session, 500, query="tea with milk", min_score=0.5)
    reasons = {entry.reason for entry in context.ledger if entry.part == _MEMORY}
    assert reasons == {_KEPT, ContextReason.CONTEXT_REASON_BELOW_SCORE}


async def test_a_key_sees_no_more_in_a_context_than_without_it(
    tenant: Tenant, user: User, session: Session
) -> None:
    """It needs the scopes of all that a context shows; a foreign context is NOT_FOUND."""
    context = await _built(tenant, session, 100)
    scopes = [Scope.SCOPE_CHAT_READ, Scope.SCOPE_MEMORY_READ]
    for more, refused in (([], True), ([Scope.SCOPE_KNOWLEDGE_READ], False)):
        made = await tenant.client.identity.create_api_key(
            CreateApiKeyRequest(name="a program", scopes=[*scopes, *more])
        )
        client = tenant.hub.client(made.secret)
        calls = (
            client.chat.build_context(
                BuildContextRequest(session_id=session.session_id, token_budget=9)
            ),
            client.chat.get_context_record(GetContextRecordRequest(context_id=context.context_id)),
        )
        for call in calls:
            if refused:
                with pytest.raises(ScopeInsufficientError):
                    await call
            else:
                await call
    other = await tenant.hub.new_tenant()
    with pytest.raises(NotFoundError):
        await _recorded(other, context)


async def _say(tenant: Tenant, session: Session, content: str, role: Role.ValueType) -> str:
    request = AppendMessageRequest(session_id=session.session_id, role=role, content=content)
    return (await tenant.client.chat.append_message(request)).message.message_id


async def _remember(tenant: Tenant, user: User, text: str, **values: Any) -> str:
    request = RememberRequest(
        user_id=user.user_id,
        memory_type=MemoryType.MEMORY_TYPE_PREFERENCE,
        memory_content=text,
        **values,
    )
    return (await tenant.client.memory.remember(request)).memory.memory_id


async def _built(tenant: Tenant, session: Session, budget: int, **values: Any) -> Context:
    request = BuildContextRequest(session_id=session.session_id, token_budget=budget, **values)
    return (await tenant.client.chat.build_context(request)).context


async def _recorded(tenant: Tenant, context: Context) -> Context:
    request = GetContextRecordRequest(context_id=context.context_id)
    return (await tenant.client.chat.get_context_record(request)).context
