"""A user leaves a hub with all that is his."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.internal.encoder import _VarintBytes  # type: ignore[attr-defined]

from hub_client import errors
from hub_client.v1 import (
    BatchAppendMessagesRequest,
    BatchMessage,
    DeleteUserRequest,
    Document,
    ExportRecord,
    ExportUserRequest,
    ForkSessionRequest,
    IngestDocumentRequest,
    LoginRequest,
    MemoryType,
    MessageSearch,
    RedactMessageRequest,
    RememberRequest,
    ReserveTokensRequest,
    Role,
    SearchRequest,
    Session,
    TenantSettings,
    UpdateTenantSettingsRequest,
    User,
)
from tests.support import Tenant

PASSWORD = "a correct horse"
# More than a page of an export.
MANY = 450


@dataclass(frozen=True)
class Life:
    """A user who has rows in every table."""

    tenant: Tenant
    user: User
    session: Session
    fork: Session
    document: Document


async def exported(tenant: Tenant, user_id: str) -> list[ExportRecord]:
    """Return the records of an export."""
    request = ExportUserRequest(user_id=user_id)
    stream = tenant.client.identity.export_user(request)
    return [answer.export_record async for answer in stream]


def kinds(records: Sequence[ExportRecord]) -> list[str]:
    """Return what each record is."""
    return [str(record.WhichOneof("record")) for record in records]


async def say(tenant: Tenant, session: Session, *texts: str, **values: Any) -> None:
    """Append messages of one token each."""
    messages = [
        BatchMessage(role=Role.ROLE_USER, content=text, token_count=1, **values) for text in texts
    ]
    request = BatchAppendMessagesRequest(session_id=session.session_id, messages=messages)
    await tenant.client.chat.batch_append_messages(request)


async def live(tenant: Tenant) -> Life:
    """Make a user who does everything once."""
    client = tenant.client
    settings = TenantSettings(message_search=MessageSearch.MESSAGE_SEARCH_WORDS)
    await client.identity.update_tenant_settings(
        UpdateTenantSettingsRequest(tenant_settings=settings)
    )
    user = await tenant.new_user(password=PASSWORD, display_name="Ada")
    await client.identity.login(LoginRequest(email=user.email, password=PASSWORD))
    session = await tenant.new_session(user, session_title="Tea")
    await say(tenant, session, *(f"This is cup {number}." for number in range(MANY)))
    await say(tenant, session, "x" * (1 << 20), "y" * (1 << 20), metadata={"colour": "green"})
    asked = ForkSessionRequest(session_id=session.session_id, at_seq=3)
    fork = (await client.chat.fork_session(asked)).session
    await say(tenant, fork, "Another cup.", "A secret.")
    await client.chat.redact_message(RedactMessageRequest(session_id=fork.session_id, seq=5))
    await tenant.new_session(user)
    for drink in ("Drinks green tea.", "Drinks coffee in the morning."):
        await client.memory.remember(
            RememberRequest(
                user_id=user.user_id,
                memory_type=MemoryType.MEMORY_TYPE_PREFERENCE,
                memory_key="drink.favourite",
                memory_content=drink,
                session_id=session.session_id,
            )
        )
    await client.chat.reserve_tokens(ReserveTokensRequest(user_id=user.user_id, tokens=7))
    text = "\n\n".join(f"Tea number {number} is made of leaves. " * 30 for number in range(9))
    document = await tenant.ingest(user, "Tea", text)
    asked_for = SearchRequest(
        user_id=user.user_id, query="green leaves", session_id=session.session_id
    )
    await client.knowledge.search(asked_for)
    return Life(tenant, user, session, fork, document)


def digest(records: Sequence[ExportRecord]) -> bytes:
    """Return the digest of records as the contract describes it."""
    found = hashlib.sha256()
    for record in records:
        encoded = record.SerializeToString(deterministic=True)
        found.update(_VarintBytes(len(encoded)) + encoded)
    return found.digest()


@pytest.fixture(scope="module")
async def life(hub: Any) -> Life:
    """A user with a row in every table."""
    return await live(await hub.new_tenant())


async def test_an_export_tells_everything_in_order(life: Life) -> None:
    """Each kind is there, what follows from another after it, and the summary counts them."""
    *records, last = await exported(life.tenant, life.user.user_id)
    count = Counter(kinds(records))
    assert count["message"] == MANY + 4
    assert (count["user"], count["config"], count["usage"], count["session"]) == (1, 1, 1, 3)
    assert count["chunk"] == life.document.chunk_count > 1
    assert count.keys() == {field.name for field in ExportRecord.DESCRIPTOR.fields} - {"summary"}
    summary = last.summary
    assert (summary.records, summary.sha256) == (len(records), digest(records))
    assert (summary.sessions, summary.messages) == (3, MANY + 4)
    assert (summary.chunks, summary.documents) == (count["chunk"], 1)
    session, seq = "", 0
    for record in records:
        if record.HasField("session"):
            session, seq = record.session.session_id, record.session.parent_seq
        elif record.HasField("message"):
            seq += 1
            assert (record.message.session_id, record.message.seq) == (session, seq)


async def test_an_export_bears_what_is_needed_and_no_secret(life: Life, hub: Any) -> None:
    """Vectors and texts are there; the hash of the password is not."""
    records = await exported(life.tenant, life.user.user_id)
    chunks = [record.chunk for record in records if record.HasField("chunk")]
    assert all(len(chunk.embedding) % 4 == 0 and chunk.embedding for chunk in chunks)
    (document,) = [record.document for record in records if record.HasField("document")]
    assert document.content_hash == hashlib.sha256(document.text.encode()).digest()
    messages = [record.message for record in records if record.HasField("message")]
    assert all(message.is_searchable for message in messages)
    redacted = [message for message in messages if message.HasField("redacted_at")]
    assert [message.HasField("content") for message in redacted] == [False]
    found = await asyncio.to_thread(
        hub.sql, "SELECT password_hash FROM users WHERE user_id = %s", life.user.user_id
    )
    everything = b"".join(record.SerializeToString() for record in records)
    assert found[0][0].encode() not in everything


async def test_two_exports_of_the_same_are_the_same(life: Life) -> None:
    """Byte for byte, but for the time in the summary."""
    first, second = [await exported(life.tenant, life.user.user_id) for _ in range(2)]
    assert first[:-1] == second[:-1]
    assert first[-1].summary.sha256 == second[-1].summary.sha256
    assert first[-1] != second[-1]


async def test_what_comes_meanwhile_leaves_an_export_whole(tenant: Tenant) -> None:
    """A session that goes on is told as it was read; one that begins is left out."""
    user = await tenant.new_user()
    session = await tenant.new_session(user)
    await say(tenant, session, *("cup" for _ in range(MANY)))
    stream = tenant.client.identity.export_user(ExportUserRequest(user_id=user.user_id))
    records = [(await anext(stream)).export_record]
    later = await tenant.new_session(user)
    await say(tenant, later, "later")
    async for answer in stream:
        records.append(answer.export_record)
        if answer.export_record.HasField("session"):
            await say(tenant, session, "and another")
    (told,) = [record.session for record in records if record.HasField("session")]
    assert told.session_id == session.session_id
    seqs = [record.message.seq for record in records if record.HasField("message")]
    assert seqs == list(range(1, told.last_seq + 1))
    assert records[-1].summary.sha256 == digest(records[:-1])


async def test_an_export_of_a_user_who_is_deleted_or_nobody(
    tenant: Tenant, other_tenant: Tenant
) -> None:
    """Deleted users can be exported before they are erased; a foreign id is NOT_FOUND."""
    user = await tenant.new_user()
    request = IngestDocumentRequest(user_id=user.user_id, title="Waits", text="Waits.")
    await tenant.client.knowledge.ingest_document(request)
    await tenant.client.identity.delete_user(DeleteUserRequest(user_id=user.user_id))
    records = await exported(tenant, user.user_id)
    assert records[0].user.HasField("deleted_at")
    with pytest.raises(errors.NotFoundError):
        await exported(other_tenant, user.user_id)
