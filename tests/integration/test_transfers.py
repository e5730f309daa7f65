"""A user leaves a hub with all that is his."""

import asyncio
import datetime as dt
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from hub_client import HubClient, errors
from hub_client.v1 import (
    BatchAppendMessagesRequest,
    BatchMessage,
    BuildContextRequest,
    Context,
    CreatePasswordResetRequest,
    DeleteUserRequest,
    Document,
    DocumentStatus,
    EraseUserRequest,
    ErasureState,
    ExportRecord,
    ExportSummary,
    ExportUserRequest,
    ForkSessionRequest,
    GetContextRecordRequest,
    GetMemoryHistoryRequest,
    GetUsageRequest,
    GetUserRequest,
    ImportUserRequest,
    ImportUserResponse,
    IngestDocumentRequest,
    ListUsersRequest,
    LoginRequest,
    MemoryType,
    MessageSearch,
    RecallRequest,
    RedactMessageRequest,
    RememberRequest,
    ReserveTokensRequest,
    RetryDocumentRequest,
    Role,
    SearchMessagesRequest,
    SearchRequest,
    Session,
    TenantSettings,
    UndeleteUserRequest,
    UpdateDocumentRequest,
    UpdateTenantSettingsRequest,
    UploadDocumentRequest,
    User,
)
from hub_server.caller import Caller
from hub_server.errors import HubError, Reason
from hub_server.idempotency import NO_USER
from hub_server.jobs import memory_expiry
from hub_server.knowledge.file_repository import purge_files
from hub_server.transfer.importing import Import
from hub_server.transfer.records import row_of
from hub_server.transfer.service import Export
from tests.contract.imports import digest
from tests.integration.test_database import new_database, own_hub
from tests.support import Hub, Tenant, settled

Change = Callable[[list[ExportRecord]], None]

PASSWORD = "a correct horse"
# More than a page of an export.
MANY = 450
# What says that it is a DOCX and is none: it cannot be read, and is kept, in two parts.
DAMAGED = b"PK\x03\x04word/document.xml".ljust((1 << 20) + 1, b"x")


@dataclass(frozen=True)
class Life:
    """A user who has rows in every table."""

    tenant: Tenant
    user: User
    session: Session
    fork: Session
    document: Document
    damaged: Document
    context: Context


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


async def remember(tenant: Tenant, user: User, text: str) -> str:
    """Remember a fact; return the memory's id."""
    kind = MemoryType.MEMORY_TYPE_FACT
    request = RememberRequest(user_id=user.user_id, memory_type=kind, memory_content=text)
    return (await tenant.client.memory.remember(request)).memory.memory_id


async def search_messages(tenant: Tenant) -> None:
    """Let messages be searched from now on."""
    settings = TenantSettings(message_search=MessageSearch.MESSAGE_SEARCH_WORDS)
    request = UpdateTenantSettingsRequest(tenant_settings=settings)
    await tenant.client.identity.update_tenant_settings(request)


async def live(tenant: Tenant, messages: int = MANY, length: int = 1 << 20) -> Life:
    """Make a user who does everything once, and says so many things, two of them long."""
    client = tenant.client
    await search_messages(tenant)
    user = await tenant.new_user(password=PASSWORD, display_name="Ada")
    await client.identity.login(LoginRequest(email=user.email, password=PASSWORD))
    session = await tenant.new_session(user, session_title="Tea")
    await say(tenant, session, *(f"This is cup {number}." for number in range(messages)))
    await say(tenant, session, "x" * length, "y" * length, metadata={"colour": "green"})
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
    upload = UploadDocumentRequest(user_id=user.user_id, file_name="tea.docx")
    damaged = await client.upload(DAMAGED, upload)
    damaged = await settled(client, damaged.document_id)
    text = "\n\n".join(f"Tea number {number} is made of leaves. " * 30 for number in range(9))
    document = await tenant.ingest(user, "Tea", text)
    asked_for = SearchRequest(
        user_id=user.user_id, query="green leaves", session_id=session.session_id
    )
    await client.knowledge.search(asked_for)
    request = BuildContextRequest(session_id=fork.session_id, token_budget=300, query="tea")
    context = (await client.chat.build_context(request)).context
    return Life(tenant, user, session, fork, document, damaged, context)


@pytest.fixture(scope="module")
async def life(hub: Hub) -> Life:
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
    assert (summary.chunks, summary.documents) == (count["chunk"], 2)
    assert (summary.file_parts, summary.contexts) == (2, 1)
    session, seq = "", 0
    for record in records:
        if record.HasField("session"):
            session, seq = record.session.session_id, record.session.parent_seq
        elif record.HasField("message"):
            seq += 1
            assert (record.message.session_id, record.message.seq) == (session, seq)


async def test_an_export_bears_what_is_needed_and_no_secret(life: Life, hub: Hub) -> None:
    """Vectors and texts are there; the hash of the password is not."""
    records = await exported(life.tenant, life.user.user_id)
    chunks = [record.chunk for record in records if record.HasField("chunk")]
    assert all(len(chunk.embedding) % 4 == 0 and chunk.embedding for chunk in chunks)
    damaged, document = [record.document for record in records if record.HasField("document")]
    assert document.content_hash == hashlib.sha256(document.text.encode()).digest()
    parts = [record.file_part.content for record in records if record.HasField("file_part")]
    assert (damaged.file_parts, b"".join(parts)) == (len(parts), DAMAGED)
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


async def told_to_the_end(export: Export, caller: Caller) -> None:
    """Read the rest of an export."""
    while await export.page(caller):
        pass


async def test_an_export_tells_memories_of_a_hub_whose_clock_is_ahead(tenant: Tenant) -> None:
    """What was acknowledged before it began is in it, whatever time that hub noted."""
    user = await tenant.new_user()
    await remember(tenant, user, "Drinks tea.")
    later = "UPDATE memory_store SET created_at = now() + interval '1 minute' WHERE user_id = %s"
    await asyncio.to_thread(tenant.hub.sql, later, user.user_id)
    assert "memory" in kinds(await exported(tenant, user.user_id))


async def test_an_export_ends_where_what_it_told_fits_no_longer(tenant: Tenant) -> None:
    """A file that is gone before it is told, and vectors of another model than those told."""
    user = await tenant.new_user()
    upload = UploadDocumentRequest(user_id=user.user_id, file_name="tea.docx")
    damaged = await settled(
        tenant.client, (await tenant.client.upload(DAMAGED, upload)).document_id
    )
    await tenant.ingest(user, "Tea", "Tea is made of leaves.")
    moved = "UPDATE spaces SET embedding_model = 'other' WHERE user_id = %s"
    update = UpdateDocumentRequest(document_id=damaged.document_id, text="Tea.")
    for change in (
        lambda: asyncio.to_thread(tenant.hub.sql, moved, user.user_id),
        lambda: tenant.client.knowledge.update_document(update),
    ):
        export, caller = Export(tenant.hub.database, user.user_id), Caller.hub(tenant.tenant_id)
        while "document" not in [kind for kind, _ in await export.page(caller)]:
            pass
        await change()
        with pytest.raises(HubError) as caught:
            await told_to_the_end(export, caller)
        assert caught.value.reason == Reason.REASON_ETAG_MISMATCH


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


# --- imports ------------------------------------------------------------------------------------


async def imported(tenant: Tenant, records: Sequence[ExportRecord]) -> ImportUserResponse:
    """Import the records of an export."""
    requests = [ImportUserRequest(export_record=record) for record in records]
    return await tenant.client.identity.import_user(requests)


def sealed(records: Sequence[ExportRecord]) -> list[ExportRecord]:
    """Return records with a summary that fits, as somebody who forges them would."""
    count = Counter(kinds(records))
    summary = ExportSummary(
        records=len(records),
        sha256=digest(records),
        sessions=count["session"],
        messages=count["message"],
        memories=count["memory"],
        memory_revisions=count["memory_revision"],
        documents=count["document"],
        chunks=count["chunk"],
        retrievals=count["retrieval"],
        reservations=count["reservation"],
        file_parts=count["file_part"],
        contexts=count["context"],
    )
    return [*records, ExportRecord(summary=summary)]


def copied(records: Sequence[ExportRecord]) -> list[ExportRecord]:
    """Return records that may be changed, without the summary."""
    copies = [ExportRecord() for _ in records[:-1]]
    for copy, record in zip(copies, records, strict=False):
        copy.CopyFrom(record)
    return copies


@pytest.fixture(scope="module")
async def small(hub: Hub) -> Sequence[ExportRecord]:
    """The export of a user who did a little of everything."""
    life = await live(await hub.new_tenant(), messages=3, length=10)
    return await exported(life.tenant, life.user.user_id)


@pytest.fixture
async def elsewhere(postgres_url: str, tmp_path: Path) -> AsyncIterator[Tenant]:
    """A tenant of another hub, over a database of its own."""
    with new_database(postgres_url) as url:
        async with own_hub(url, tmp_path) as hub:
            yield await hub.new_tenant()


async def test_another_hub_tells_an_imported_user_as_the_first_did(
    life: Life, elsewhere: Tenant
) -> None:
    """Byte for byte; to import him again changes nothing; his life goes on."""
    records = await exported(life.tenant, life.user.user_id)
    answer = await imported(elsewhere, records)
    assert (answer.user.user_id, answer.already_here) == (life.user.user_id, False)
    again = await exported(elsewhere, life.user.user_id)
    assert again[:-1] == records[:-1]
    assert again[-1].summary.sha256 == records[-1].summary.sha256
    assert (await imported(elsewhere, records)).already_here
    assert (await exported(elsewhere, life.user.user_id))[:-1] == records[:-1]
    ours, theirs = [
        await tenant.client.identity.get_usage(GetUsageRequest(user_id=life.user.user_id))
        for tenant in (life.tenant, elsewhere)
    ]
    assert ours == theirs
    told = GetContextRecordRequest(context_id=life.context.context_id)
    assert (await elsewhere.client.chat.get_context_record(told)).context == life.context
    retry = RetryDocumentRequest(document_id=life.damaged.document_id)
    await elsewhere.client.knowledge.retry_document(retry)
    tried = await settled(elsewhere.client, life.damaged.document_id)
    assert tried.error == life.damaged.error  # its file is there
    await say(elsewhere, life.session, "It goes on.")
    with pytest.raises(errors.ImportConflictError) as caught:
        await imported(elsewhere, records)
    assert (caught.value.metadata["resource"], caught.value.metadata["id"]) in (
        ("usage", ""),
        ("session", life.session.session_id),
    )


async def test_searches_find_what_was_imported(
    small: Sequence[ExportRecord], tenant: Tenant
) -> None:
    """Memories, chunks and messages, at once, by the vectors that came."""
    await search_messages(tenant)
    user_id = (await imported(tenant, small)).user.user_id
    client = tenant.client
    recalled = await client.memory.recall(RecallRequest(user_id=user_id, query="green tea"))
    assert recalled.hits[0].vector_score > 0
    found = await client.knowledge.search(SearchRequest(user_id=user_id, query="leaves"))
    assert found.hits[0].vector_score > 0
    said = await client.chat.search_messages(SearchMessagesRequest(user_id=user_id, query="cup"))
    assert {hit.message.content for hit in said.hits} >= {"This is cup 0.", "This is cup 1."}


async def test_a_file_that_was_not_read_yet_is_read_where_it_comes(
    small: Sequence[ExportRecord], tenant: Tenant
) -> None:
    """Its document is ready there, and is found."""
    records, file = copied(small), b"# Sencha\n\nSencha is brewed at 80 degrees."
    document = next(record.document for record in records if record.HasField("document"))
    document.status = DocumentStatus.DOCUMENT_STATUS_PROCESSING
    document.ClearField("error")
    document.media_type, document.content_hash = "text/plain", hashlib.sha256(file).digest()
    first, second = [record for record in records if record.HasField("file_part")]
    first.file_part.content, document.file_parts = file, 1
    records.remove(second)
    user_id = (await imported(tenant, sealed(records))).user.user_id
    read = await settled(tenant.client, document.document_id)
    assert (read.status, read.title) == (DocumentStatus.DOCUMENT_STATUS_READY, "Sencha")
    request = SearchRequest(user_id=user_id, query="sencha", top_k=1)
    (hit,) = (await tenant.client.knowledge.search(request)).hits
    assert hit.chunk.document_id == document.document_id


async def test_an_erased_user_comes_back_as_he_was(tenant: Tenant) -> None:
    """Export, erase, import, export: the same bytes; and searches find him as before."""
    life = await live(tenant, messages=3, length=10)
    user_id, client = life.user.user_id, tenant.client

    async def finds() -> tuple[str, str]:
        recalled = await client.memory.recall(RecallRequest(user_id=user_id, query="coffee"))
        found = await client.knowledge.search(SearchRequest(user_id=user_id, query="leaves"))
        return recalled.hits[0].memory.memory_id, found.hits[0].chunk.chunk_id

    before = await finds()
    records = await exported(tenant, user_id)
    erased = await client.identity.erase_user(EraseUserRequest(user_id=user_id), timeout=60)
    assert erased.erasure.state == ErasureState.ERASURE_STATE_FINISHED
    with pytest.raises(errors.NotFoundError):
        await exported(tenant, user_id)
    assert not (await imported(tenant, records)).already_here
    again = await exported(tenant, user_id)
    assert (again[1:-1], again[-1].summary.sha256) == (records[1:-1], records[-1].summary.sha256)
    assert await finds() == before


async def test_nobody_sees_an_import_before_its_end(life: Life, tenant: Tenant) -> None:
    """One that is cut shows nothing; the next one begins anew and is whole."""
    client, user_id = tenant.client.identity, life.user.user_id
    records = await exported(life.tenant, user_id)
    with pytest.raises(errors.InvalidFieldError):
        await imported(tenant, records[:300])
    left = "SELECT count(*) FROM chat_messages WHERE tenant_id = %s"
    assert (await asyncio.to_thread(tenant.hub.sql, left, tenant.tenant_id))[0][0] > 100
    users = [user async for user in client.list_users(ListUsersRequest(show_deleted=True))]
    assert users == []
    for call in (
        client.get_user(GetUserRequest(user_id=user_id)),
        client.undelete_user(UndeleteUserRequest(user_id=user_id)),
        client.create_password_reset(CreatePasswordResetRequest(user_id=user_id)),
        anext(client.export_user(ExportUserRequest(user_id=user_id))),
    ):
        with pytest.raises(errors.NotFoundError):
            await call
    assert not (await imported(tenant, records)).already_here
    assert (await exported(tenant, user_id))[:-1] == records[:-1]


async def test_an_import_that_another_one_overtook_ends(life: Life, tenant: Tenant) -> None:
    """Nothing it brings is mixed with what the other one brought."""
    records = await exported(life.tenant, life.user.user_id)
    loop = asyncio.get_running_loop()

    def begun() -> None:
        """Wait until the hub keeps what was sent: else this import would overtake the other."""
        until = time.monotonic() + 30
        held = "SELECT 1 FROM users WHERE user_id = %s AND tenant_id = %s AND import_id IS NOT NULL"
        while not tenant.hub.sql(held, life.user.user_id, tenant.tenant_id):
            assert time.monotonic() < until
            time.sleep(0.02)  # polling what no API tells

    def slowly() -> Iterator[ImportUserRequest]:
        for place, record in enumerate(records):
            if place == 300:
                begun()
                asyncio.run_coroutine_threadsafe(imported(tenant, records), loop).result(30)
            yield ImportUserRequest(export_record=record)

    def send() -> None:
        with HubClient(tenant.hub.address, tenant.key) as client:
            client.identity.import_user(slowly())

    with pytest.raises(errors.HubError) as caught:
        await asyncio.to_thread(send)
    assert caught.value.code == grpc.StatusCode.ABORTED
    assert (await exported(tenant, life.user.user_id))[:-1] == records[:-1]


async def test_no_purge_takes_anything_of_an_import(
    small: Sequence[ExportRecord], tenant: Tenant
) -> None:
    """What is long due where it comes goes when all of it is there, and not before."""
    records, database = copied(small), tenant.hub.database
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=99)
    for record in records:
        if record.HasField("memory"):
            record.memory.expires_at.FromDatetime(long_ago)
        if record.HasField("file_part"):
            record.file_part.created_at.FromDatetime(long_ago)

    async def no_model(_: str) -> None:
        return None

    bringing = Import(database, no_model, lambda *_: None)
    caller = Caller.hub(tenant.tenant_id)
    await bringing.store(caller, [row_of(record) for record in records])

    async def purge() -> tuple[int, int]:
        async with database.system() as connection:
            files = await purge_files(connection, dt.timedelta(days=7))
        return await memory_expiry.purge(database), files

    await purge()
    assert (await bringing.finish(caller))["user_id"] == records[0].user.user_id
    assert min(await purge()) > 0


def _changed(kind: str, **values: Any) -> Change:
    """Return what changes the last record of a kind."""

    def change(records: list[ExportRecord]) -> None:
        record = [record for record in records if record.HasField(kind)][-1]  # type: ignore[arg-type]
        for name, value in values.items():
            setattr(getattr(record, kind), name, value)

    return change


def _tomorrow(records: list[ExportRecord]) -> None:
    """Let a session begin tomorrow: an export of today would leave it out."""
    session = records[kinds(records).index("session")].session
    session.created_at.FromDatetime(dt.datetime.now(dt.UTC) + dt.timedelta(days=1))


def _without(kind: str) -> Change:
    """Return what leaves out the first record of a kind."""

    def change(records: list[ExportRecord]) -> None:
        records.pop(kinds(records).index(kind))

    return change


def _twice(kind: str) -> Change:
    """Return what tells the first record of a kind twice."""

    def change(records: list[ExportRecord]) -> None:
        records.append(records[kinds(records).index(kind)])

    return change


_BAD: Mapping[str, tuple[Change, str]] = {
    "no user": (_without("user"), "INVALID_FIELD"),
    "no config": (_without("config"), "INVALID_FIELD"),
    "two of usage": (_twice("usage"), "INVALID_FIELD"),
    "a message missing": (_without("message"), "INVALID_FIELD"),
    "a message twice": (_twice("message"), "IMPORT_CONFLICT"),
    "a chunk missing": (_without("chunk"), "INVALID_FIELD"),
    "a document missing": (_without("document"), "IMPORT_CONFLICT"),  # its file is nobody's
    "a part of a file missing": (_without("file_part"), "INVALID_FIELD"),
    "another file": (_changed("file_part", content=b"y"), "INVALID_FIELD"),
    "a session missing": (_without("session"), "IMPORT_CONFLICT"),
    "tokens too many": (_changed("session", total_tokens_used=7), "INVALID_FIELD"),
    "a zone unknown": (_changed("config", timezone="Mars/Base"), "INVALID_FIELD"),
    "a vector too short": (_changed("chunk", embedding=b"\0\0\x80?"), "INVALID_FIELD"),
    "a vector of zeros": (_changed("memory", embedding=bytes(1024)), "INVALID_FIELD"),
    "another text": (_changed("document", text="Coffee."), "INVALID_FIELD"),
    "a role unknown": (_changed("message", role=99), "INVALID_FIELD"),
    "a user who is nobody": (_changed("user", user_id=NO_USER), "INVALID_FIELD"),
    "tokens beyond counting": (_changed("usage", total_tokens_used=2**63 - 1), "INVALID_FIELD"),
    "a shared message that is not there": (_changed("session", parent_seq=7), "INVALID_FIELD"),
    "a context above its budget": (_changed("context", token_budget=1), "INVALID_FIELD"),
    "a session of tomorrow": (_tomorrow, "INVALID_FIELD"),
    "a kind unknown": (lambda records: records.append(ExportRecord()), "INVALID_FIELD"),
}


@pytest.mark.parametrize(("change", "reason"), _BAD.values(), ids=_BAD)
async def test_what_no_hub_would_have_told_is_refused(
    small: Sequence[ExportRecord], tenant: Tenant, change: Change, reason: str
) -> None:
    """Though the summary fits; and nobody sees any of it."""
    records = copied(small)
    change(records)
    with pytest.raises(errors.HubError) as caught:
        await imported(tenant, sealed(records))
    assert caught.value.reason == reason
    with pytest.raises(errors.NotFoundError):
        await tenant.client.identity.get_user(GetUserRequest(user_id=small[0].user.user_id))


async def test_a_changed_export_does_not_fit_its_summary(
    small: Sequence[ExportRecord], tenant: Tenant
) -> None:
    """A word that was changed on the way is noticed."""
    records = copied(small)
    _changed("memory", memory_content="Drinks coffee.")(records)
    with pytest.raises(errors.InvalidFieldError, match="summary"):
        await imported(tenant, [*records, small[-1]])


async def test_an_import_takes_nothing_of_others(life: Life, tenant: Tenant) -> None:
    """Ids of another user of the tenant are refused, and so is his email; his rows stay."""
    mine = await tenant.new_user()
    my_session = await tenant.new_session(mine)
    await say(tenant, my_session, "Mine.")
    own = await exported(tenant, mine.user_id)
    for kind, id_of in (("session", "session_id"), ("message", "session_id")):
        records = copied(own)
        records[0].user.user_id = life.user.user_id
        records[0].user.email = life.user.email
        place = kinds(records).index(kind)
        records = [*records[:1], *records[place:]]
        with pytest.raises(errors.ImportConflictError) as caught:
            await imported(tenant, sealed(records))
        assert caught.value.metadata["resource"] == kind
        assert getattr(getattr(records[1], kind), id_of) == my_session.session_id
    records = copied(own)
    records[0].user.user_id = life.user.user_id
    with pytest.raises(errors.EmailTakenError):
        await imported(tenant, sealed(records))
    assert (await exported(tenant, mine.user_id))[:-1] == own[:-1]


async def test_a_memory_that_names_anothers_shows_nothing_of_it(
    small: Sequence[ExportRecord], tenant: Tenant
) -> None:
    """An import may say that it was superseded by the memory of somebody else."""
    my_memory = await remember(tenant, await tenant.new_user(), "Mine.")
    records = copied(small)
    _changed("memory", superseded_by=my_memory)(records)
    await imported(tenant, sealed(records))
    (named,) = [one.memory for one in records if one.memory.superseded_by == my_memory]
    for memory_id, others in ((named.memory_id, my_memory), (my_memory, named.memory_id)):
        asked = GetMemoryHistoryRequest(memory_id=memory_id)
        told = (await tenant.client.memory.get_memory_history(asked)).memory_history.revisions
        assert memory_id in {one.memory.memory_id for one in told}
        assert others not in {one.memory.memory_id for one in told}
