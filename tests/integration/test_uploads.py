"""Files that are uploaded: what they are, how they come, and what is left of those that do not."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from hub_client import AsyncHubClient, HubClient, errors
from hub_client.v1 import (
    Document,
    DocumentStatus,
    ListChunksRequest,
    ListDocumentsRequest,
    RetryDocumentRequest,
    UpdateDocumentRequest,
    UploadDocumentRequest,
    UploadDocumentResponse,
    User,
)
from hub_server import parsers
from hub_server.calls import Room
from hub_server.ids import new_id
from hub_server.jobs.purge import _FILES_KEPT
from hub_server.knowledge.file_repository import purge_files
from hub_server.rpc import Rpc
from tests.files import PAGE, PNG, bomb, pdf, word
from tests.integration.test_cancelling import _made
from tests.integration.test_database import new_database, own_hub, until
from tests.support import Hub, Tenant, settled

_READY: Final = DocumentStatus.DOCUMENT_STATUS_READY
_FAILED: Final = DocumentStatus.DOCUMENT_STATUS_FAILED
_SENCHA: Final = "Sencha is brewed at 80 degrees."
_PATH: Final = "/hub.v1.KnowledgeService/UploadDocument"
_ONE_MB: Final = 1 << 20


@pytest.fixture
async def user(tenant: Tenant) -> User:
    """A new user of the tenant."""
    return await tenant.new_user()


async def upload(tenant: Tenant, user: User, file: bytes, **header: Any) -> Document:
    """Upload a file; return the document as it was answered."""
    asked = UploadDocumentRequest(user_id=user.user_id, **header)
    return await tenant.client.upload(file, asked)


async def read(tenant: Tenant, user: User, file: bytes, **header: Any) -> Document:
    """Upload a file; return the document once it is processed."""
    document = await upload(tenant, user, file, **header)
    return await settled(tenant.client, document.document_id)


async def text_of(tenant: Tenant, document: Document) -> str:
    """Return the chunks of a document as one text."""
    request = ListChunksRequest(document_id=document.document_id)
    return "\n".join([one.content async for one in tenant.client.knowledge.list_chunks(request)])


def files_kept(hub: Hub, user: User) -> int:
    """Return how many files of a user are kept."""
    query = "SELECT count(*) FROM document_files WHERE user_id = %s"
    return int(hub.sql(query, user.user_id)[0][0])


@pytest.mark.parametrize(
    ("file", "title", "media_type"),
    [
        (pdf(), "Green tea", "application/pdf"),
        (word(), "Green tea", parsers.DOCX),
        (PAGE, "Green tea", "text/html"),
        (f"# Green tea #\n\n{_SENCHA}".encode(), "Green tea", "text/plain"),
        (_SENCHA.encode(), "notes.bin", "text/plain"),
        (f"{_SENCHA} Café.".encode("utf-16"), "notes.bin", "text/plain"),
    ],
    ids=["pdf", "docx", "html", "markdown", "text", "utf-16"],
)
async def test_a_file_is_read_by_what_it_is(
    tenant: Tenant, user: User, file: bytes, title: str, media_type: str
) -> None:
    """Whatever its name; it names itself, is searched like a text, and no copy of it is kept."""
    document = await read(tenant, user, file, file_name="notes.bin")
    assert (document.status, document.error) == (_READY, "")
    assert (document.title, document.media_type) == (title, media_type)
    text = await text_of(tenant, document)
    assert _SENCHA in text
    assert "track()" not in text
    assert await asyncio.to_thread(files_kept, tenant.hub, user) == 0


_NEITHER = "is neither PDF, DOCX or HTML, nor text (plain or Markdown) in UTF-8"


@pytest.mark.parametrize(
    ("file", "what"),
    [
        (PNG, _NEITHER),
        (b"PK\x03\x04 a zip of something else", _NEITHER),
        ("Café".encode("latin-1"), _NEITHER),
        (b"a text\0 with a hole", _NEITHER),
        (rb"{\rtf1\ansi Tea}", _NEITHER),
        (b"", "is required: the file is empty"),
    ],
    ids=["picture", "zip", "latin-1", "nul", "rtf", "empty"],
)
async def test_what_is_no_such_file_is_refused(
    tenant: Tenant, user: User, file: bytes, what: str
) -> None:
    """At once, whatever its name says, and nothing is stored."""
    with pytest.raises(errors.InvalidFieldError) as caught:
        await upload(tenant, user, file, file_name="tea.pdf")
    ((field, told),) = caught.value.violations
    assert (field, told[: len(what)]) == ("data", what)
    assert tenant.hub.sql("SELECT 1 FROM documents WHERE user_id = %s", user.user_id) == []


async def test_a_hub_without_the_parser_says_so(
    tenant: Tenant, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it lacks is told when a file is uploaded; texts need nothing."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(errors.InvalidFieldError, match="its extra `formats` is missing"):
        await upload(tenant, user, pdf())
    assert (await read(tenant, user, _SENCHA.encode())).title == "Untitled"


async def test_a_title_that_was_given_stays(tenant: Tenant, user: User) -> None:
    """With the upload or, while it is read, by an update."""
    document = await read(tenant, user, pdf(), title="Tea", file_name="tea.pdf", author="Ann")
    assert (document.title, document.file_name, document.author) == ("Tea", "tea.pdf", "Ann")


async def test_the_same_file_is_stored_once(tenant: Tenant, user: User) -> None:
    """A retry gets the first answer however it is cut; the same id with another file is refused."""
    requests = [
        UploadDocumentRequest(user_id=user.user_id, request_id="r", data=b"Green "),
        UploadDocumentRequest(data=b"tea."),
    ]
    send = tenant.client.knowledge.upload_document
    first = (await send(requests)).document
    again = await upload(tenant, user, b"Green tea.", request_id="r")
    assert again == first
    with pytest.raises(errors.RequestIdReusedError):
        await upload(tenant, user, b"Black tea.", request_id="r")
    same = await upload(tenant, user, b"Green tea.", file_name="other.txt")
    assert same.document_id == first.document_id
    other = await upload(tenant, user, b"Green tea.", allow_duplicate=True)
    assert other.document_id != first.document_id


async def test_only_the_first_message_says_what_is_uploaded(tenant: Tenant, user: User) -> None:
    """What another one says beside its bytes is refused, and so is a stream of nothing."""
    send = tenant.client.knowledge.upload_document
    parts = [
        UploadDocumentRequest(user_id=user.user_id),
        UploadDocumentRequest(title="Tea", data=b"x"),
    ]
    with pytest.raises(errors.InvalidFieldError) as caught:
        await send(parts)
    told = ("title", "belongs in the first message of the stream")
    assert caught.value.violations == (told,)
    with pytest.raises(errors.InvalidFieldError, match="user_id is required"):
        await send([])


@pytest.mark.parametrize("who", ["nobody", "stranger"])
async def test_who_may_not_upload_is_refused_before_he_sends(
    tenant: Tenant, other_tenant: Tenant, user: User, who: str
) -> None:
    """Without a credential nothing is read at all; for a user of others, nothing but the header."""
    header = UploadDocumentRequest(user_id=user.user_id).SerializeToString()
    async with grpc.aio.insecure_channel(tenant.hub.address) as channel:
        bearer = [("authorization", f"Bearer {other_tenant.key}")]
        call: Any = channel.stream_unary(_PATH)(metadata=[] if who == "nobody" else bearer)
        if who == "stranger":
            await call.write(header)
        async with asyncio.timeout(10):  # the stream is still open
            code = await call.code()
    unknown = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.NOT_FOUND)
    assert code == unknown[who == "stranger"]


async def test_who_is_refused_while_he_sends_learns_why(tenant: Tenant) -> None:
    """At once, whatever was on its way, and whichever of the two the client hears of first."""
    whole = b"tea " * _ONE_MB

    async def refused(who: str) -> None:
        with pytest.raises(errors.NotFoundError):
            await tenant.client.upload(whole, UploadDocumentRequest(user_id=who))

    for _ in range(20):
        await asyncio.gather(refused(new_id()), refused(new_id()))


async def test_a_file_that_cannot_be_read_on_leaves_nothing(tenant: Tenant, user: User) -> None:
    """What its reading raises reaches the caller of either client, and nothing is stored."""

    def broken() -> Iterator[UploadDocumentRequest]:
        yield UploadDocumentRequest(user_id=user.user_id, file_name="notes", data=b"tea")
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        await tenant.client.knowledge.upload_document(broken())
    with (
        HubClient(tenant.hub.address, tenant.key) as client,
        pytest.raises(OSError, match="the disk is gone"),
    ):
        await asyncio.to_thread(client.knowledge.upload_document, broken())
    listed = tenant.client.knowledge.list_documents(ListDocumentsRequest(user_id=user.user_id))
    assert [one async for one in listed] == []


async def test_one_message_is_no_upload(tenant: Tenant) -> None:
    """What cannot be iterated is told as such by either client."""
    one: Any = UploadDocumentRequest(data=b"tea")
    with pytest.raises(TypeError, match="not iterable"):
        await tenant.client.knowledge.upload_document(one)
    with (
        HubClient(tenant.hub.address, tenant.key) as client,
        pytest.raises(TypeError, match="not iterable"),
    ):
        await asyncio.to_thread(client.knowledge.upload_document, one)


async def test_both_clients_upload_files(tenant: Tenant, user: User, tmp_path: Path) -> None:
    """By path, which names the document, or by bytes."""
    path = tmp_path / "tea.txt"
    await asyncio.to_thread(path.write_bytes, _SENCHA.encode() * 20_000)
    header = UploadDocumentRequest(user_id=user.user_id, allow_duplicate=True)
    document = await tenant.client.upload(path, header)
    assert (document.title, document.file_name) == ("tea.txt", "tea.txt")

    def sync() -> Document:
        with HubClient(tenant.hub.address, tenant.key) as client:
            return client.upload(bytearray(b"Bancha."), header)

    assert (await settled(tenant.client, (await asyncio.to_thread(sync)).document_id)).title


# --- limits --------------------------------------------------------------------------------------


class Small:
    """A hub in which little is allowed: its tenant, a user, and what is inside."""

    def __init__(self, tenant: Tenant, user: User, rpc: Rpc) -> None:
        self.tenant = tenant
        self.user = user
        self.rpc = rpc

    @property
    def room(self) -> Room:
        """The memory that is shared."""
        return self.rpc._room

    def documents(self) -> int:
        """Return how many documents there are; each file is one's."""
        return int(self.tenant.hub.sql("SELECT count(*) FROM documents")[0][0])


@pytest.fixture(scope="module")
async def small(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Small]:
    """A hub of its own for files of 1 MB and parsers of 160 MB."""
    limits = {"upload_mb": 1, "parse_mb": 160}
    with new_database(postgres_url) as url, pytest.MonkeyPatch.context() as patch:
        rpcs = _made(patch, Rpc)
        async with own_hub(url, tmp_path_factory.mktemp("small"), **limits) as hub:
            tenant = await hub.new_tenant()
            yield Small(tenant, await tenant.new_user(), rpcs[0])


async def test_a_file_that_is_too_large_is_refused(small: Small) -> None:
    """One byte more than the setting, which the error names; the setting itself is allowed."""
    with pytest.raises(errors.InvalidFieldError, match=r"at most 1 MB in all \(HUB_UPLOAD_MB\)"):
        await upload(small.tenant, small.user, b"x" * (_ONE_MB + 1))
    whole = await read(small.tenant, small.user, (b"tea " * 8 + b"\n") * 100 + b" " * 1_045_276)
    assert whole.status == _READY


async def test_a_file_that_does_harm_fails_alone(small: Small) -> None:
    """One that swells; what was uploaded with it is ready."""
    swollen, good = await asyncio.gather(
        *(read(small.tenant, small.user, file) for file in (bomb(), _SENCHA.encode()))
    )
    assert "more than 160 MB of memory (HUB_PARSE_MB)" in swollen.error
    assert (swollen.status, good.status) == (_FAILED, _READY)


async def test_a_sender_who_stalls_is_cut_off(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time that a reader may read nothing; nothing of what he sent is kept."""
    monkeypatch.setattr(small.rpc, "_stall", 0.2)
    before = await asyncio.to_thread(small.documents)
    async with AsyncHubClient(small.tenant.hub.address, small.tenant.key) as client:
        transport = client.knowledge._transport
        call: Any = transport._channel.stream_unary(
            _PATH, response_deserializer=UploadDocumentResponse.FromString
        )(metadata=transport._metadata)
        await call.write(UploadDocumentRequest(user_id=small.user.user_id).SerializeToString())
        async with asyncio.timeout(10):
            assert await call.code() == grpc.StatusCode.ABORTED
    assert await asyncio.to_thread(small.documents) == before


async def test_what_is_being_sent_has_so_much_memory_in_all(small: Small) -> None:
    """Of a dozen who send at once those who find no room are OVERLOADED, and then all fit again."""
    whole, go_on = small.room._left, asyncio.Event()

    async def slowly(number: int) -> AsyncIterator[bytes]:
        data = str(number).encode() + b" " * 700_000
        first = UploadDocumentRequest(user_id=small.user.user_id, data=data)
        yield first.SerializeToString()
        await go_on.wait()

    async def send(number: int) -> str:
        metadata = [("authorization", f"Bearer {small.tenant.key}")]
        call: Any = multi(slowly(number), metadata=metadata)
        code = await call.code()
        go_on.set()  # who is refused shows that the others fill the room
        return str(code.name)

    async with grpc.aio.insecure_channel(small.tenant.hub.address) as channel:
        multi: Any = channel.stream_unary(_PATH)
        codes = await asyncio.gather(*map(send, range(12)))
    assert whole == 4 * _ONE_MB
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert codes.count("OK") == 5
    await until(lambda: small.room._left == whole)
    assert (small.rpc._calls, small.rpc._uploads) == (0, 0)


async def test_an_upload_that_is_cut_off_leaves_nothing(small: Small) -> None:
    """At any moment: the part that came is not taken for the whole, and its memory is free."""
    chance, whole = random.Random(5), small.room._left  # noqa: S311 - to be repeated
    before = await asyncio.to_thread(small.documents)

    async def unfinished() -> AsyncIterator[bytes]:
        yield UploadDocumentRequest(user_id=small.user.user_id).SerializeToString()
        for _ in range(chance.randint(1, 8)):
            yield UploadDocumentRequest(data=b"tea " * 100).SerializeToString()
        await asyncio.Event().wait()

    async def cut(channel: grpc.aio.Channel) -> None:
        metadata = [("authorization", f"Bearer {small.tenant.key}")]
        multi: Any = channel.stream_unary(_PATH)
        call = multi(unfinished(), metadata=metadata)
        await asyncio.sleep(chance.random() * 0.03)  # any moment is the right one
        if chance.random() < 0.5:
            call.cancel()
        else:  # the connection goes, with all that are on it
            await channel.close()

    for _ in range(6):
        channel = grpc.aio.insecure_channel(small.tenant.hub.address)
        await asyncio.gather(*(cut(channel) for _ in range(8)), return_exceptions=True)
        await channel.close()
    await until(lambda: (small.rpc._uploads, small.rpc._pauses) == (0, set()))
    assert small.room._left == whole
    assert await asyncio.to_thread(small.documents) == before


# --- what is kept of a file ----------------------------------------------------------------------


async def test_a_file_that_could_not_be_read_is_tried_again_while_it_is_kept(
    tenant: Tenant, user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a week; then it is gone, and the document says so. Another text takes its place."""
    broken = tmp_path / "parser.py"
    broken.write_text("import os\nos.abort()\n")
    retry = tenant.client.knowledge.retry_document
    with monkeypatch.context() as patch:
        patch.setattr(parsers, "__file__", str(broken))
        one, other = [await read(tenant, user, file) for file in (b"Sencha.", b"Bancha.")]
    assert (one.status, one.error) == (_FAILED, "the parser of the file broke down (-6)")
    await retry(RetryDocumentRequest(document_id=one.document_id))
    assert (await settled(tenant.client, one.document_id)).status == _READY

    assert await asyncio.to_thread(files_kept, tenant.hub, user) == 1
    older = "UPDATE document_files SET created_at = now() - interval '8 days' WHERE tenant_id = %s"
    tenant.hub.sql(older, tenant.tenant_id)
    async with tenant.hub.database.system() as connection:
        assert await purge_files(connection, _FILES_KEPT) == 1
    await retry(RetryDocumentRequest(document_id=other.document_id))
    gone = await settled(tenant.client, other.document_id)
    assert gone.error == "its file is no longer kept: upload it again"
    await tenant.client.knowledge.update_document(
        UpdateDocumentRequest(document_id=other.document_id, text="Bancha it is.")
    )
    assert (await settled(tenant.client, other.document_id)).status == _READY
