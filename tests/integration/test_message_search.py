"""Messages are found at once, by whoever may see them, and never again once they are gone."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from hub_client import AsyncHubClient, errors
from hub_client.v1 import (
    AppendMessageRequest,
    AuditOutcome,
    BatchAppendMessagesRequest,
    BatchMessage,
    DeactivateUserRequest,
    DeleteSessionRequest,
    ForkSessionRequest,
    GetTenantSettingsRequest,
    GetUsageRequest,
    ListAuditEventsRequest,
    Message,
    MessageHit,
    MessageSearch,
    RedactMessageRequest,
    Role,
    SearchMessagesRequest,
    Session,
    TenantSettings,
    UndeleteSessionRequest,
    UpdateTenantSettingsRequest,
    UpdateUserConfigRequest,
    User,
    UserConfig,
)
from hub_server.jobs.message_embedding import MessageEmbedding
from tests.integration.test_database import statements, token_of
from tests.support import Hub, Tenant, running_hub

_OFF = MessageSearch.MESSAGE_SEARCH_OFF
_WORDS = MessageSearch.MESSAGE_SEARCH_WORDS
_HYBRID = MessageSearch.MESSAGE_SEARCH_HYBRID
_USER, _ASSISTANT = Role.ROLE_USER, Role.ROLE_ASSISTANT


@pytest.fixture(scope="module")
async def second_hub(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hub]:
    """Another hub over the database of the first: it learns of messages from Postgres only."""
    async with running_hub(hub.owner_url, tmp_path_factory.mktemp("second")) as second:
        yield second


@pytest.fixture
async def words(tenant: Tenant) -> Tenant:
    """A tenant whose messages are searched by their words."""
    await _set(tenant, _WORDS)
    return tenant


@pytest.fixture
async def hybrid(tenant: Tenant) -> Tenant:
    """A tenant whose messages are searched by their meaning, too."""
    await _set(tenant, _HYBRID)
    return tenant


# --- what is found, and when ---------------------------------------------------------------------


async def test_a_message_is_found_by_every_search_after_its_answer(
    words: Tenant, second_hub: Hub
) -> None:
    """80 appends, eight at once in four sessions, of one and two messages, in two hubs.

    A search sent when an append has answered finds all of it, in both hubs.
    """
    user = await words.new_user()
    sessions = [await words.new_session(user) for _ in range(4)]
    clients = [words.client, second_hub.client(words.key)]

    async def append_and_search(writer: int) -> None:
        session = sessions[writer % 4]
        for place in range(10):
            word = f"word{writer}x{place}"
            if place % 2:
                said = await _say_all(clients[place % 2], session, f"{word} was said")
            else:
                texts = [f"{word} came first", f"{word} came second"]
                said = await _say_all(clients[place % 4 // 2], session, *texts)
            for client in clients:
                hits = await _search(client, user, word, top_k=len(said))
                assert {hit.message.seq for hit in hits} == {one.seq for one in said}
                assert {hit.message.session_id for hit in hits} == {session.session_id}

    await asyncio.gather(*(append_and_search(writer) for writer in range(8)))
    seqs = _space(words, user)
    assert seqs == list(range(1, 121))  # each its own, none twice, none left out


async def test_a_message_is_found_as_it_was_appended(words: Tenant) -> None:
    """All its fields, with its score: 1 for the best of an answer, less for the others."""
    user = await words.new_user()
    session = await words.new_session(user)
    said = await _say(words.client, session, "Green tea 👩‍👩‍👧", model_name="m", token_count=3)
    await _say_all(words.client, session, "a", "b", "c", "tea among so many other words as these")
    hits = await _search(words.client, user, "green tea")
    assert hits[0].message == said
    scores = [hit.score for hit in hits]
    assert scores[0] == 1
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] < 1
    assert await _search(words.client, user, "coffee") == []
    assert await _search(words.client, user, "?!") == []
    for top_k in (1, 2):
        assert await _search(words.client, user, "green tea", top_k=top_k) == hits[:top_k]


async def test_a_message_lifts_those_beside_it(words: Tenant) -> None:
    """A reply that shares no word with the query is found, above one that is two further."""
    user = await words.new_user()
    session = await words.new_session(user)
    texts = ["zero", "one", "two", "Which mountain is highest?", "Everest", "Thanks", "seven"]
    await _say_all(words.client, session, *texts)
    alone = await words.new_session(user)
    await _say(words.client, alone, "unrelated")
    hits = await _search(words.client, user, "highest mountain")
    found = {hit.message.content: round(hit.score, 6) for hit in hits}
    assert found == {texts[3]: 1, "two": 0.3, "Everest": 0.3, "one": 0.15, "Thanks": 0.15}
    replies = await _search(words.client, user, "highest mountain", roles=[_ASSISTANT])
    assert [hit.message.content for hit in replies] == ["two", "Everest"]


async def test_two_that_fit_side_by_side_stand_above_one_that_fits_alone(words: Tenant) -> None:
    """The same words, said once, and twice in a row."""
    user = await words.new_user()
    alone, together = [await words.new_session(user) for _ in range(2)]
    await _say(words.client, alone, "green tea")
    await _say_all(words.client, together, "green tea", "green tea")
    hits = await _search(words.client, user, "tea")
    assert [hit.message.session_id for hit in hits] == [together.session_id] * 2 + [
        alone.session_id
    ]


async def test_filters_leave_what_they_name(words: Tenant) -> None:
    """Session, roles and times, alone and together, also when they leave one of hundreds."""
    user = await words.new_user()
    one, two = [await words.new_session(user) for _ in range(2)]
    for start in range(0, 400, 100):
        await _say_all(words.client, one, *[f"green tea {n}" for n in range(start, start + 100)])
    needle = await _say(words.client, two, "spoke of tea, among many other things", role=_ASSISTANT)
    middle = (await _say(words.client, two, "later, tea once more")).created_at
    last = await _say(words.client, two, "tea at last")

    async def found(**filters: Any) -> list[int]:
        hits = await _search(words.client, user, "green tea", **filters)
        return sorted(hit.message.seq for hit in hits)

    assert await found(session_id=two.session_id) == [1, 2, 3]
    assert await found(session_id=two.session_id, roles=[_ASSISTANT]) == [needle.seq]
    assert await found(session_id=two.session_id, created_since=middle) == [2, 3]
    assert await found(session_id=two.session_id, created_before=middle) == [1]
    since = _after(middle)
    assert await found(created_since=since) == [last.seq]
    assert await found(created_since=since, created_before=since) == []
    assert await found(session_id=one.session_id, created_since=since) == []
    assert len(await found(session_id=one.session_id, top_k=200)) == 200


async def test_a_fork_is_searched_with_what_it_shares(words: Tenant) -> None:
    """By its id up to where it forked, with its own id and seqs; without, each message once."""
    user = await words.new_user()
    parent = await words.new_session(user)
    await _say_all(words.client, parent, "tea one", "tea two", "tea three")
    fork = await _fork(words.client, parent, 2)
    await _say(words.client, fork, "tea four")
    grandchild = await _fork(words.client, fork, 3)

    async def found(session_id: str = "") -> list[tuple[str, int, str]]:
        hits = await _search(words.client, user, "tea", session_id=session_id)
        return sorted((h.message.session_id, h.message.seq, h.message.content) for h in hits)

    shared = [(1, "tea one"), (2, "tea two"), (3, "tea four")]
    for one in (fork.session_id, grandchild.session_id):
        assert await found(one) == [(one, *rest) for rest in shared]
    own = [(parent.session_id, seq, f"tea {n}") for seq, n in enumerate(("one", "two", "three"), 1)]
    assert await found(parent.session_id) == own
    assert await found() == sorted([*own, (fork.session_id, 3, "tea four")])
    # A message redacted in a fork is gone from all.
    await words.client.chat.redact_message(
        RedactMessageRequest(session_id=grandchild.session_id, seq=2)
    )
    assert [seq for _, seq, _ in await found(parent.session_id)] == [1, 3]
    assert [seq for _, seq, _ in await found(fork.session_id)] == [1, 3]
    # What a fork shares of a deleted session is found in the fork alone.
    await words.client.chat.delete_session(DeleteSessionRequest(session_id=parent.session_id))
    assert await found() == [(fork.session_id, 3, "tea four")]
    assert [seq for _, seq, _ in await found(fork.session_id)] == [1, 3]


# --- what is not found ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [_WORDS, _HYBRID])
async def test_what_is_gone_is_never_found(
    tenant: Tenant, second_hub: Hub, mode: MessageSearch.ValueType
) -> None:
    """A redacted message, and those of a deleted session until it comes back, in both hubs."""
    await _set(tenant, mode)
    user = await tenant.new_user()
    kept, gone = [await tenant.new_session(user) for _ in range(2)]
    await _say_all(tenant.client, kept, "green tea", "black tea")
    await _say(tenant.client, gone, "white tea")
    clients = [tenant.client, second_hub.client(tenant.key)]

    async def found() -> list[str]:
        answers = [await _search(client, user, "tea") for client in clients]
        first, second = [sorted(hit.message.content for hit in hits) for hits in answers]
        assert first == second
        return first

    await _embedded(tenant, user, 3 if mode == _HYBRID else 0)
    assert await found() == ["black tea", "green tea", "white tea"]
    await tenant.client.chat.redact_message(RedactMessageRequest(session_id=kept.session_id, seq=1))
    assert await found() == ["black tea", "white tea"]
    await tenant.client.chat.delete_session(DeleteSessionRequest(session_id=gone.session_id))
    assert await found() == ["black tea"]
    with pytest.raises(errors.NotFoundError):
        await _search(tenant.client, user, "tea", session_id=gone.session_id)
    await tenant.client.chat.undelete_session(UndeleteSessionRequest(session_id=gone.session_id))
    assert await found() == ["black tea", "white tea"]
    bare = "SELECT content, embedding, embedding_model FROM chat_messages"
    bare += " WHERE user_id = %s AND redacted_at IS NOT NULL"
    assert tenant.hub.sql(bare, user.user_id) == [(None, None, None)]


async def test_a_redacted_message_leaves_the_view(words: Tenant) -> None:
    """Its words are in no memory of the hub either: the view follows the redaction."""
    user = await words.new_user()
    session = await words.new_session(user)
    await _say_all(words.client, session, "green tea", "black tea")
    assert len(await _search(words.client, user, "tea")) == 2
    before = _space(words, user)
    await words.client.chat.redact_message(
        RedactMessageRequest(session_id=session.session_id, seq=1)
    )
    assert _space(words, user) == [before[1], before[1] + 1]
    last = "SELECT last_seq FROM spaces WHERE user_id = %s AND kind = 'messages'"
    assert words.hub.sql(last, user.user_id) == [(before[1] + 1,)]


async def test_a_change_that_no_view_was_told_of_decides_all_the_same(words: Tenant) -> None:
    """The last read is of Postgres: what the view still holds and proposes is not returned."""
    user = await words.new_user()
    session = await words.new_session(user)
    await _say_all(words.client, session, "green tea", "black tea", "white tea")
    assert len(await _search(words.client, user, "tea")) == 3
    for number, change in enumerate(("content = NULL", "user_id = NULL, space_seq = NULL")):
        statement = f"UPDATE chat_messages SET {change} WHERE session_id = %s AND seq = %s"  # noqa: S608
        words.hub.sql(statement, session.session_id, number + 1)
        assert len(await _search(words.client, user, "tea")) == 2 - number


async def test_nobody_finds_what_is_anothers(words: Tenant, other_tenant: Tenant) -> None:
    """Users with the same words find their own alone; ids of others are ids of nobody."""
    await _set(other_tenant, _WORDS)
    people = []
    for tenant in (words, words, other_tenant):
        user = await tenant.new_user()
        session = await tenant.new_session(user)
        await _say(tenant.client, session, "green tea")
        people.append((tenant, user, session))
    (_, own, mine), (_, neighbour, theirs), (_, stranger, foreign) = people
    for tenant, user, session in people:
        by_token = tenant.hub.client(await token_of(tenant, user.user_id))
        for hits in (
            await _search(tenant.client, user, "tea"),
            await _search(by_token, User(), "tea"),
            await _search(by_token, user, "tea", session_id=session.session_id),
        ):
            assert [hit.message.session_id for hit in hits] == [session.session_id]
    by_token = words.hub.client(await token_of(words, own.user_id))
    nobody = own.user_id[:-12] + "0" * 12
    for client, user_id, session_id in (
        (words.client, stranger.user_id, ""),
        (words.client, nobody, ""),
        (words.client, own.user_id, theirs.session_id),
        (words.client, own.user_id, foreign.session_id),
        (words.client, own.user_id, nobody),
        (by_token, neighbour.user_id, ""),
        (by_token, stranger.user_id, ""),
        (by_token, "", theirs.session_id),
    ):
        with pytest.raises(errors.NotFoundError):
            await _search(client, User(user_id=user_id), "tea", session_id=session_id)
    with pytest.raises(errors.InvalidFieldError):
        await _search(words.client, User(), "tea")
    assert len(await _search(words.client, own, "tea", session_id=mine.session_id)) == 1
    await words.client.identity.deactivate_user(DeactivateUserRequest(user_id=own.user_id))
    with pytest.raises(errors.UserDisabledError):
        await _search(words.client, own, "tea")


# --- what switches it off ------------------------------------------------------------------------


async def test_off_refuses_and_stores_nothing(tenant: Tenant) -> None:
    """The default. What was appended meanwhile is not found later, what was before is again."""
    user = await tenant.new_user()
    session = await tenant.new_session(user)

    async def refused() -> None:
        with pytest.raises(errors.FeatureDisabledError) as caught:
            await _search(tenant.client, user, "tea")
        assert caught.value.metadata["feature"] == "message_search"

    await _say(tenant.client, session, "tea of the dark")
    await refused()
    kept = "SELECT count(space_seq), count(embedding), count(user_id) FROM chat_messages"
    of_it = f"{kept} WHERE session_id = %s"
    assert tenant.hub.sql(of_it, session.session_id) == [(0, 0, 0)]
    spaces = "SELECT count(*) FROM spaces WHERE user_id = %s"
    assert tenant.hub.sql(spaces, user.user_id) == [(0,)]
    await _set(tenant, _WORDS)
    assert await _search(tenant.client, user, "tea") == []
    await _say(tenant.client, session, "tea of the day")
    await _set(tenant, _OFF)
    await refused()
    await _say(tenant.client, session, "tea of the night")
    await _set(tenant, _WORDS)
    found = [hit.message.content for hit in await _search(tenant.client, user, "tea")]
    assert found == ["tea of the day"]  # nor is it lifted by, or lifts, what is beside it


async def test_without_history_nothing_is_kept_to_be_found(words: Tenant) -> None:
    """FEATURE_DISABLED names the flag; a message counted without content is not in the space."""
    user = await words.new_user()
    session = await words.new_session(user)
    await _say(words.client, session, "green tea")
    for kept in (False, True):
        config = UserConfig(user_id=user.user_id, enable_chat_history=kept)
        await words.client.identity.update_user_config(UpdateUserConfigRequest(config=config))
        if not kept:
            await _say(words.client, session, "black tea")
            with pytest.raises(errors.FeatureDisabledError) as caught:
                await _search(words.client, user, "tea")
            assert caught.value.metadata["feature"] == "enable_chat_history"
    found = [hit.message.content for hit in await _search(words.client, user, "tea")]
    assert found == ["green tea"]
    assert _space(words, user) == [1]


async def test_settings_of_a_tenant(tenant: Tenant, other_tenant: Tenant) -> None:
    """They change by mask and etag, once, with a note in the audit log, for one tenant alone."""
    client = tenant.client.identity

    async def get(of: Tenant) -> TenantSettings:
        answer = await of.client.identity.get_tenant_settings(GetTenantSettingsRequest())
        return answer.tenant_settings

    async def update(settings: TenantSettings, *paths: str) -> TenantSettings:
        request = UpdateTenantSettingsRequest(
            tenant_settings=settings, update_mask=FieldMask(paths=paths)
        )
        return (await client.update_tenant_settings(request)).tenant_settings

    first = await get(tenant)
    assert first.message_search == _OFF
    second = await update(TenantSettings(message_search=_HYBRID, etag=first.etag))
    assert second.message_search == _HYBRID
    assert second.etag != first.etag
    assert await get(tenant) == second
    with pytest.raises(errors.EtagMismatchError):
        await update(TenantSettings(message_search=_WORDS, etag=first.etag))
    assert await update(TenantSettings()) == second
    assert await update(TenantSettings(message_search=_HYBRID), "*") == second
    for path in ("message_search", "*"):
        await update(TenantSettings(message_search=_WORDS), path)
        assert (await update(TenantSettings(), path)).message_search == _OFF
    for paths in (["etag"], ["updated_at"], ["*", "message_search"], ["message_search.x"]):
        with pytest.raises(errors.InvalidFieldError):
            await update(TenantSettings(message_search=_WORDS), *paths)
    assert (await get(other_tenant)).message_search == _OFF
    audit = ListAuditEventsRequest(event_type="tenant_updated")
    noted = [event async for event in client.list_audit_events(audit)]
    assert {(one.target_id, one.outcome) for one in noted} == {
        (tenant.tenant_id, AuditOutcome.AUDIT_OUTCOME_SUCCESS)
    }
    assert len(noted) == 5


# --- meaning -------------------------------------------------------------------------------------


async def test_meaning_finds_what_words_do_not(hybrid: Tenant, second_hub: Hub) -> None:
    """Once embedded, in any hub. Words alone do not find it, nor does a tenant that asks so."""
    user = await hybrid.new_user()
    for text in ("My dog is called Rex.", "Invoices are due in March.", "It rains in Bergen."):
        await _say(hybrid.client, await hybrid.new_session(user), text)
    for client in (hybrid.client, second_hub.client(hybrid.key)):
        await _embedded(hybrid, user, 3)
        hits = await _search(client, user, "puppy pet animal", top_k=1)
        assert hits[0].message.content == "My dog is called Rex."
    usage = await hybrid.client.identity.get_usage(GetUsageRequest(user_id=user.user_id))
    assert usage.usage.bytes > 3 * 1024  # the vectors count
    await _set(hybrid, _WORDS)
    assert await _search(hybrid.client, user, "puppy pet animal") == []
    assert len(await _search(hybrid.client, user, "dog")) == 1


async def test_words_are_found_before_they_are_embedded(
    hybrid: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the embedding at a standstill."""
    idle = asyncio.Event()

    async def nothing(*_: Any) -> list[Any]:
        idle.set()
        return []

    monkeypatch.setattr(MessageEmbedding, "_to_embed", nothing)
    user = await hybrid.new_user()
    session = await hybrid.new_session(user)
    await _say(hybrid.client, session, "green tea")
    assert [hit.message.seq for hit in await _search(hybrid.client, user, "tea")] == [1]
    async with asyncio.timeout(10):
        await idle.wait()
    await _embedded(hybrid, user, 0)


async def test_a_search_makes_up_for_an_embedding_that_was_killed(
    hybrid: Tenant, tmp_path: Path
) -> None:
    """A hub stops with vectors made and not yet written: a search in another has them made anew.

    What was appended while words sufficed is embedded then, too, and what was redacted is not.
    """
    user = await hybrid.new_user()
    session = await hybrid.new_session(user)
    reached = asyncio.Event()

    async def hang(*_: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    await _set(hybrid, _WORDS)
    await _say(hybrid.client, session, "The weather is fine.")
    await _set(hybrid, _HYBRID)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hub_server.chat.search_repository.SearchRepository.embed", hang)
        async with running_hub(hybrid.hub.owner_url, tmp_path) as dying:
            await _say(dying.client(hybrid.key), session, "My dog is called Rex.")
            await _say(dying.client(hybrid.key), session, "A secret.")
            async with asyncio.timeout(10):
                await reached.wait()
    await _embedded(hybrid, user, 0)
    await hybrid.client.chat.redact_message(
        RedactMessageRequest(session_id=session.session_id, seq=3)
    )
    await _search(hybrid.client, user, "puppy pet animal")
    await _embedded(hybrid, user, 2)
    hits = await _search(hybrid.client, user, "puppy pet animal")
    assert hits[0].message.content == "My dog is called Rex."


async def test_what_is_redacted_while_it_is_embedded_gets_no_vector(
    hybrid: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vector of a redacted message is thrown away; the others of its batch are kept."""
    made, redacted = asyncio.Event(), asyncio.Event()
    embed = MessageEmbedding._embed

    async def held_up(*arguments: Any) -> int:
        made.set()
        await redacted.wait()
        return await embed(*arguments)

    monkeypatch.setattr(MessageEmbedding, "_embed", held_up)
    user = await hybrid.new_user()
    session = await hybrid.new_session(user)
    await _say_all(hybrid.client, session, "green tea", "black tea")
    async with asyncio.timeout(10):
        await made.wait()
    await hybrid.client.chat.redact_message(
        RedactMessageRequest(session_id=session.session_id, seq=1)
    )
    redacted.set()
    await _embedded(hybrid, user, 1)
    assert [hit.message.seq for hit in await _search(hybrid.client, user, "tea")] == [2]


async def test_appends_redactions_and_embeddings_at_once_end_well(
    hybrid: Tenant, second_hub: Hub
) -> None:
    """No deadlock, no seq twice: batches of four users in both hubs, redacted as they are embedded.

    The views of both hubs then hold what Postgres does.
    """
    users = [await hybrid.new_user() for _ in range(4)]
    sessions = [await hybrid.new_session(user) for user in users]
    clients = [hybrid.client, second_hub.client(hybrid.key)]

    async def talk(client: AsyncHubClient, session: Session, number: int) -> None:
        for _ in range(5):
            said = await _say_all(client, session, f"tea {number}", "tea", "more tea")
            request = RedactMessageRequest(session_id=session.session_id, seq=said[number % 3].seq)
            await client.chat.redact_message(request)
            assert await _search(client, users[sessions.index(session)], "tea")

    async with asyncio.timeout(30):
        await asyncio.gather(
            *(talk(client, one, n) for client in clients for n, one in enumerate(sessions))
        )
        for user in users:
            await _embedded(hybrid, user, 20)
    for user in users:
        seqs = _space(hybrid, user)
        assert len(seqs) == len(set(seqs)) == 30
        for client in clients:
            assert len(await _search(client, user, "tea", top_k=200)) == 20


async def test_a_search_takes_few_statements(words: Tenant) -> None:
    """Four: the state, what is new, where the candidates are, the messages; three without news."""
    user = await words.new_user()
    session = await words.new_session(user)
    await _say(words.client, session, "green tea")
    for count in (4, 3):
        with statements() as seen:
            await _search(words.client, user, "tea")
        assert len(seen) == count, seen


async def _set(tenant: Tenant, mode: MessageSearch.ValueType) -> None:
    settings = TenantSettings(message_search=mode)
    request = UpdateTenantSettingsRequest(tenant_settings=settings)
    await tenant.client.identity.update_tenant_settings(request)


async def _say(client: AsyncHubClient, session: Session, text: str, **values: Any) -> Message:
    values = {"role": _USER, **values}
    request = AppendMessageRequest(session_id=session.session_id, content=text, **values)
    return (await client.chat.append_message(request)).message


async def _say_all(client: AsyncHubClient, session: Session, *texts: str) -> Sequence[Any]:
    """Append messages, of the user and the assistant in turn."""
    messages = [
        BatchMessage(role=(_USER, _ASSISTANT)[place % 2 == 0], content=text)
        for place, text in enumerate(texts)
    ]
    request = BatchAppendMessagesRequest(session_id=session.session_id, messages=messages)
    return (await client.chat.batch_append_messages(request)).appended_messages


async def _search(
    client: AsyncHubClient, user: User, query: str, **values: Any
) -> list[MessageHit]:
    request = SearchMessagesRequest(user_id=user.user_id, query=query, **values)
    return list((await client.chat.search_messages(request)).hits)


async def _fork(client: AsyncHubClient, session: Session, at_seq: int) -> Session:
    request = ForkSessionRequest(session_id=session.session_id, at_seq=at_seq)
    return (await client.chat.fork_session(request)).session


async def _embedded(tenant: Tenant, user: User, count: int) -> None:
    """Return when so many messages of a user have a vector."""
    query = "SELECT count(embedding) FROM chat_messages WHERE user_id = %s"
    async with asyncio.timeout(10):
        while True:
            ((found,),) = tenant.hub.sql(query, user.user_id)
            assert found <= count
            if found == count:
                return
            await asyncio.sleep(0.02)  # polling, as a caller would


def _space(tenant: Tenant, user: User) -> list[int]:
    """Return the seqs of a user's messages in his space."""
    query = "SELECT space_seq FROM chat_messages WHERE user_id = %s ORDER BY space_seq"
    return [seq for (seq,) in tenant.hub.sql(query, user.user_id)]


def _after(time: Timestamp) -> Timestamp:
    return Timestamp(seconds=time.seconds, nanos=time.nanos + 1000)
