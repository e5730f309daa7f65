"""Rules of knowledge. Opens the transactions; knows no gRPC."""

import asyncio
import base64
import datetime as dt
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hub_server import spaces
from hub_server.caller import Caller
from hub_server.database import Connection, Database
from hub_server.errors import HubError, Reason
from hub_server.idempotency import Claims, Retry
from hub_server.knowledge.chunking import Chunking, chunking_of
from hub_server.knowledge.file_repository import FileRepository
from hub_server.knowledge.files import UNTITLED, Upload
from hub_server.knowledge.repository import KnowledgeRepository
from hub_server.paging import Page, split
from hub_server.rows import Row, active_user, owned
from hub_server.search import Search

KIND: Final = "knowledge"


@dataclass(frozen=True, slots=True)
class _File:
    """A file that is to be kept until its text is read."""

    content: bytes | bytearray
    names_document: bool


class KnowledgeService:
    """Documents of users, and what searches found in them."""

    def __init__(
        self, database: Database, search: Search, wake: Callable[[], None], upload_mb: int = 32
    ) -> None:
        """``wake`` tells the ingestion workers of this process that a document waits.

        A file may have ``upload_mb`` MB.
        """
        self._database = database
        self._search = search
        self._wake = wake
        self._upload_mb = upload_mb

    async def ingest(
        self,
        caller: Caller,
        retry: Retry,
        user_id: str,
        values: Mapping[str, Any],
        *,
        allow_duplicate: bool,
    ) -> Row:
        """Store a document to be processed; unless allowed, no text a second time.

        Raises NOT_FOUND, USER_DISABLED, REQUEST_ID_REUSED or INVALID_FIELD.
        """
        with_hash = {**values, "content_hash": _hash_of(values["text"])}
        return await self._store(caller, retry, user_id, with_hash, None, allow_duplicate)

    async def begin_upload(self, caller: Caller, user_id: str) -> Upload:
        """Return what takes the bytes of a user's file. Raises NOT_FOUND or USER_DISABLED."""
        async with self._database.statement(caller) as connection:
            active_user(await spaces.state(connection, caller.tenant_id, user_id, KIND))
        return Upload(self._upload_mb)

    async def upload(
        self,
        caller: Caller,
        retry: Retry,
        user_id: str,
        values: Mapping[str, Any],
        upload: Upload,
        *,
        allow_duplicate: bool,
    ) -> Row:
        """Store a document whose file is to be read; unless allowed, no file a second time.

        Raises NOT_FOUND, USER_DISABLED, REQUEST_ID_REUSED, or INVALID_FIELD, also for an empty file
        and one that cannot be read here.
        """
        media_type, content_hash = await asyncio.to_thread(upload.judged)
        told = {
            **values,
            "title": values["title"] or values["file_name"] or UNTITLED,
            "text": "",
            "media_type": media_type,
            "content_hash": content_hash,
        }
        file = _File(upload.content, names_document=not values["title"])
        return await self._store(
            caller, retry.over(content_hash), user_id, told, file, allow_duplicate
        )

    async def _store(
        self,
        caller: Caller,
        retry: Retry,
        user_id: str,
        values: Mapping[str, Any],
        file: _File | None,
        allow_duplicate: bool,  # noqa: FBT001 - passed on
    ) -> Row:
        async with self._database.transaction(caller) as connection:
            state = active_user(await spaces.state(connection, caller.tenant_id, user_id, KIND))
            claims = Claims(connection, caller.tenant_id, user_id)
            if (answer := await claims.claim(retry)) is not None:
                return answer
            self._check_chunking(values, state["embedding_model"])
            repository = KnowledgeRepository(connection, caller.tenant_id)
            document = None
            if not allow_duplicate:
                document = await repository.same_text(user_id, values["content_hash"])
            if document is None:
                document = await repository.add_document(user_id=user_id, **values)
                if file is not None:
                    files = FileRepository(connection, caller.tenant_id)
                    await files.add(document, file.content, names_document=file.names_document)
            await claims.keep(retry, document)
        self._wake()
        return document

    async def get_document(self, caller: Caller, document_id: str) -> Row:
        """Return a document. Raises NOT_FOUND or USER_DISABLED."""
        async with self._database.statement(caller) as connection:
            repository = KnowledgeRepository(connection, caller.tenant_id)
            return owned(caller, await repository.document(document_id), "document")

    async def list_documents(
        self, caller: Caller, user_id: str, page: Page, *, show_deleted: bool
    ) -> tuple[Sequence[Row], str | None]:
        """Return a page of documents and the key of the next. Raises NOT_FOUND, USER_DISABLED."""
        async with self._database.statement(caller) as connection:
            repository = KnowledgeRepository(connection, caller.tenant_id)
            rows = await repository.list_documents(user_id, page, show_deleted=show_deleted)
        active_user(rows[0] if rows else None)
        documents = [row for row in rows if row["document_id"] is not None]
        return split(documents, page.size, lambda row: str(row["document_id"]))

    async def delete_document(self, caller: Caller, document_id: str) -> None:
        """Delete a document with its chunks. Raises NOT_FOUND or USER_DISABLED."""
        async with self._database.transaction(caller) as connection:
            document = _living(await self._held(connection, caller, document_id))
            seq = await spaces.next_seq(connection, caller.tenant_id, document["user_id"], KIND)
            repository = KnowledgeRepository(connection, caller.tenant_id)
            values = {"deleted_at": dt.datetime.now(dt.UTC), "space_seq": seq}
            await repository.set_document(document_id, values)
        await self._search.removed(caller.tenant_id, document["user_id"], KIND, seq)

    async def undelete_document(self, caller: Caller, document_id: str) -> Row:
        """Bring a deleted document back. Raises NOT_FOUND or USER_DISABLED."""
        async with self._database.transaction(caller) as connection:
            document = await self._held(connection, caller, document_id)
            if document["deleted_at"] is not None:
                user_id = document["user_id"]
                seq = await spaces.next_seq(connection, caller.tenant_id, user_id, KIND)
                repository = KnowledgeRepository(connection, caller.tenant_id)
                # Whoever worked on it when it was deleted has given it up.
                values = {"deleted_at": None, "space_seq": seq, "lease_expires_at": None}
                document = await repository.set_document(document_id, values)
        self._wake()
        return document

    async def update_document(
        self, caller: Caller, document_id: str, values: Mapping[str, Any], etag: str
    ) -> Row:
        """Change a document; what its chunks are made of lets it be processed anew.

        Raises NOT_FOUND, USER_DISABLED, ETAG_MISMATCH or INVALID_FIELD.
        """
        changes = dict(values)
        if "text" in changes:
            changes["content_hash"] = _hash_of(changes["text"])
        async with self._database.transaction(caller) as connection:
            document = _living(await self._held(connection, caller, document_id))
            if etag not in ("", document_etag(document)):
                raise HubError(Reason.REASON_ETAG_MISMATCH)
            self._check_chunking(changes, document["space_model"])
            repository = KnowledgeRepository(connection, caller.tenant_id)
            if not _makes_other_chunks(document, changes):
                changes.pop("text", None)  # of a file that may be read just now
                document = await repository.set_document(document_id, changes)
            elif document["own_model"]:
                document = await self._label(connection, caller, document, changes)
            else:
                if "text" in changes:
                    await FileRepository(connection, caller.tenant_id).drop(document_id)
                document = await repository.process_anew(document_id, changes)
        self._wake()
        return document

    async def _label(
        self, connection: Connection, caller: Caller, document: Row, changes: Mapping[str, Any]
    ) -> Row:
        """Give another title or source to a document whose chunks have vectors of their own."""
        for name, field in (("text", "text"), ("max_tokens", "chunking")):
            if name in changes:
                raise HubError.invalid(field, "must not be set: AddChunks brought the chunks")
        document_id, user_id = document["document_id"], document["user_id"]
        seq = await spaces.next_seq(connection, caller.tenant_id, user_id, KIND)
        repository = KnowledgeRepository(connection, caller.tenant_id)
        document = await repository.set_document(document_id, {**changes, "space_seq": seq})
        labels = {"document_title": document["title"], "source": document["source_url"]}
        await repository.label_chunks(document_id, labels)
        return document

    async def retry_document(self, caller: Caller, document_id: str) -> Row:
        """Let a failed document be processed again. Raises NOT_FOUND or USER_DISABLED."""
        async with self._database.transaction(caller) as connection:
            document = _living(await self._held(connection, caller, document_id))
            if document["status"] == "failed":
                repository = KnowledgeRepository(connection, caller.tenant_id)
                document = await repository.process_anew(document_id, {})
        self._wake()
        return document

    async def list_chunks(
        self, caller: Caller, document_id: str, page: Page
    ) -> tuple[Sequence[Row], str | None]:
        """Return a page of a document's chunks and the key of the next.

        Raises NOT_FOUND or USER_DISABLED.
        """
        async with self._database.statement(caller) as connection:
            repository = KnowledgeRepository(connection, caller.tenant_id)
            rows = await repository.list_chunks(document_id, page)
        owned(caller, rows[0] if rows else None, "document")
        chunks = [row for row in rows if row["chunk_id"] is not None]
        return split(chunks, page.size, lambda row: str(row["chunk_index"]))

    async def list_retrievals(
        self, caller: Caller, session_id: str, message_id: str, page: Page
    ) -> tuple[Sequence[Row], str | None]:
        """Return a page of what searches returned to a session and the key of the next.

        With a message, only what served it. Raises NOT_FOUND or USER_DISABLED.
        """
        async with self._database.statement(caller) as connection:
            repository = KnowledgeRepository(connection, caller.tenant_id)
            rows = await repository.list_retrievals(session_id, message_id, page)
        owned(caller, rows[0] if rows else None, "session")
        found = [row for row in rows if row["retrieval_id"] is not None]
        return split(found, page.size, lambda row: f"{row['retrieval_id']}|{row['rank']}")

    def _check_chunking(self, values: Mapping[str, Any], space_model: str | None) -> None:
        """Raise INVALID_FIELD for a chunking that the model of the user's space cannot have."""
        if "max_tokens" in values:
            chunking = Chunking(values["max_tokens"], values["overlap_tokens"])
            chunking.check(self._search.window(space_model))

    async def _held(self, connection: Connection, caller: Caller, document_id: str) -> Row:
        """Return a document, deleted or not, that nobody else changes until the end."""
        repository = KnowledgeRepository(connection, caller.tenant_id)
        return owned(caller, await repository.lock_document(document_id), "document")


def document_etag(document: Row) -> str:
    """Return the version of a document: 22 characters that change with what callers set."""
    names = ("title", "content_hash", "source_url", "author", "metadata", "deleted_at")
    chunking = chunking_of(document)
    values = [document[name] for name in names]
    text = repr([*values, chunking.max_tokens, chunking.overlap_tokens])
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:16])[:22].decode()


def _makes_other_chunks(document: Row, changes: Mapping[str, Any]) -> bool:
    """Tell whether changes alter what chunks and their vectors are made of."""
    made_of = {**changes, "content_hash": changes.get("content_hash", b"").hex()}
    if not made_of["content_hash"]:
        del made_of["content_hash"]
    names = ("title", "source_url", "content_hash", "max_tokens", "overlap_tokens")
    return any(name in made_of and made_of[name] != document[name] for name in names)


def _hash_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _living(document: Row) -> Row:
    """Return a document that is not deleted. Raises NOT_FOUND."""
    if document["deleted_at"] is not None:
        raise HubError(Reason.REASON_NOT_FOUND, resource="document")
    return document
