"""KnowledgeService on the wire: check, call, convert."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.message import Message

from hub_client.v1 import knowledge_pb2 as pb
from hub_server.caller import Caller
from hub_server.convert import (
    enum_from_text,
    enum_to_text,
    struct_from_pb,
    struct_to_pb,
    timestamp_to_pb,
)
from hub_server.errors import HubError, Reason
from hub_server.idempotency import retry_of
from hub_server.knowledge.chunking import CHUNK_TOKENS, chunking_of
from hub_server.knowledge.files import Upload
from hub_server.knowledge.index import Indexes, Told
from hub_server.knowledge.own_chunks import OwnChunk, OwnChunks, OwnVectors
from hub_server.knowledge.reembedding import Reembeddings
from hub_server.knowledge.search import KnowledgeSearch
from hub_server.knowledge.service import KnowledgeService, document_etag
from hub_server.knowledge.watching import DocumentFeed, DocumentWatches
from hub_server.knowledge.wire import (
    asked_of,
    chunk_to_pb,
    hit_to_pb,
    retrieval_to_pb,
    served_of,
    several_of,
)
from hub_server.paging import PageTokens
from hub_server.retrieval.stats import Check
from hub_server.rows import Row
from hub_server.search import Source

# Names in the metadata of a chunk.
_OF_THE_HUB: Final = frozenset(("source", "chunk_index", "document_title"))
_MOST_IDS: Final = 20  # of flaws, of each kind


class KnowledgeServicer:
    """Serves hub.v1.KnowledgeService."""

    def __init__(
        self,
        service: KnowledgeService,
        search: KnowledgeSearch,
        own_vectors: OwnVectors,
        reembeddings: Reembeddings,
        watches: DocumentWatches,
        indexes: Indexes,
        pages: PageTokens,
    ) -> None:
        """Serve the given rules."""
        self._knowledge = service
        self._search = search
        self._own_vectors = own_vectors
        self._reembeddings = reembeddings
        self._watches = watches
        self._indexes = indexes
        self._pages = pages

    async def IngestDocument(
        self, request: pb.IngestDocumentRequest, caller: Caller
    ) -> pb.IngestDocumentResponse:
        """Store a document to be processed."""
        values = {
            "title": request.title,
            "text": request.text,
            "source_url": request.source_url,
            "author": request.author,
            "metadata": struct_from_pb("metadata", request.metadata),
            **_chunking_from_pb(request.chunking),
        }
        user_id = caller.acting_for(request.user_id)
        document = await self._knowledge.ingest(
            caller, retry_of(request), user_id, values, allow_duplicate=request.allow_duplicate
        )
        return pb.IngestDocumentResponse(document=_document_to_pb(document))

    async def AddChunks(self, request: pb.AddChunksRequest, caller: Caller) -> pb.AddChunksResponse:
        """Store chunks with their vectors."""
        user_id = caller.acting_for(request.user_id)
        # Of as much metadata as a request may hold, to read it takes a second.
        retry, added = await asyncio.to_thread(lambda: (retry_of(request), _own_chunks(request)))
        document = await self._own_vectors.add(caller, retry, user_id, added)
        return pb.AddChunksResponse(
            document=_document_to_pb(document), chunk_ids=document["chunk_ids"]
        )

    async def UploadDocument(
        self, request: pb.UploadDocumentRequest, caller: Caller
    ) -> "DocumentIntake":
        """Take a file to be processed."""
        metadata = struct_from_pb("metadata", request.metadata)
        upload = await self._knowledge.begin_upload(caller, caller.acting_for(request.user_id))
        return DocumentIntake(self._knowledge, request, metadata, upload)

    async def GetDocument(
        self, request: pb.GetDocumentRequest, caller: Caller
    ) -> pb.GetDocumentResponse:
        """Return a document."""
        document = await self._knowledge.get_document(caller, request.document_id)
        return pb.GetDocumentResponse(document=_document_to_pb(document))

    async def ListDocuments(
        self, request: pb.ListDocumentsRequest, caller: Caller
    ) -> pb.ListDocumentsResponse:
        """List documents."""
        page = self._pages.read(caller, request, request.page_size, request.page_token)
        user_id = caller.acting_for(request.user_id)
        documents, after = await self._knowledge.list_documents(
            caller, user_id, page, show_deleted=request.show_deleted
        )
        return pb.ListDocumentsResponse(
            documents=map(_document_to_pb, documents),
            next_page_token=self._pages.next(caller, request, after),
        )

    async def DeleteDocument(
        self, request: pb.DeleteDocumentRequest, caller: Caller
    ) -> pb.DeleteDocumentResponse:
        """Delete a document."""
        await self._knowledge.delete_document(caller, request.document_id)
        return pb.DeleteDocumentResponse()

    async def UndeleteDocument(
        self, request: pb.UndeleteDocumentRequest, caller: Caller
    ) -> pb.UndeleteDocumentResponse:
        """Bring a deleted document back."""
        document = await self._knowledge.undelete_document(caller, request.document_id)
        return pb.UndeleteDocumentResponse(document=_document_to_pb(document))

    async def UpdateDocument(
        self, request: pb.UpdateDocumentRequest, caller: Caller
    ) -> pb.UpdateDocumentResponse:
        """Change a document."""
        document = await self._knowledge.update_document(
            caller, request.document_id, _changes(request), request.etag
        )
        return pb.UpdateDocumentResponse(document=_document_to_pb(document))

    async def RetryDocument(
        self, request: pb.RetryDocumentRequest, caller: Caller
    ) -> pb.RetryDocumentResponse:
        """Process a failed document again."""
        document = await self._knowledge.retry_document(caller, request.document_id)
        return pb.RetryDocumentResponse(document=_document_to_pb(document))

    async def WatchDocument(self, request: pb.WatchDocumentRequest, _: Caller) -> "WatchFeed":
        """Stream a document."""
        return WatchFeed(self._watches.feed(request.document_id))

    async def ListChunks(
        self, request: pb.ListChunksRequest, caller: Caller
    ) -> pb.ListChunksResponse:
        """List the chunks of a document."""
        page = self._pages.read(caller, request, request.page_size, request.page_token)
        chunks, after = await self._knowledge.list_chunks(caller, request.document_id, page)
        return pb.ListChunksResponse(
            chunks=map(chunk_to_pb, chunks),
            next_page_token=self._pages.next(caller, request, after),
        )

    async def ListRetrievals(
        self, request: pb.ListRetrievalsRequest, caller: Caller
    ) -> pb.ListRetrievalsResponse:
        """List what searches returned to a session."""
        page = self._pages.read(caller, request, request.page_size, request.page_token)
        found, after = await self._knowledge.list_retrievals(
            caller, request.session_id, request.message_id, page
        )
        return pb.ListRetrievalsResponse(
            retrievals=map(retrieval_to_pb, found),
            next_page_token=self._pages.next(caller, request, after),
        )

    async def ReembedSpace(
        self, request: pb.ReembedSpaceRequest, caller: Caller
    ) -> pb.ReembedSpaceResponse:
        """Move documents to another model."""
        row = await self._reembeddings.ask(
            caller, request.user_id, _kind(request), request.embedding_model
        )
        return pb.ReembedSpaceResponse(reembedding=_reembedding_to_pb(row))

    async def GetReembedding(
        self, request: pb.GetReembeddingRequest, caller: Caller
    ) -> pb.GetReembeddingResponse:
        """Return how far a move is."""
        row = await self._reembeddings.progress(caller, request.user_id, _kind(request))
        return pb.GetReembeddingResponse(reembedding=_reembedding_to_pb(row))

    async def CancelReembedding(
        self, request: pb.CancelReembeddingRequest, caller: Caller
    ) -> pb.CancelReembeddingResponse:
        """End a move."""
        row = await self._reembeddings.cancel(caller, request.user_id, _kind(request))
        return pb.CancelReembeddingResponse(reembedding=_reembedding_to_pb(row))

    async def Search(self, request: pb.SearchRequest, caller: Caller) -> pb.SearchResponse:
        """Find chunks."""
        user_id = caller.acting_for(request.user_id)
        asked = [asked_of("", request)]
        (found,) = await self._search.search(caller, user_id, asked, served_of(request))
        return pb.SearchResponse(hits=map(hit_to_pb, found))

    async def BatchSearch(
        self, request: pb.BatchSearchRequest, caller: Caller
    ) -> pb.BatchSearchResponse:
        """Find chunks by several queries."""
        user_id = caller.acting_for(request.user_id)
        found = await self._search.search(caller, user_id, several_of(request), served_of(request))
        results = [pb.SearchResult(hits=map(hit_to_pb, one)) for one in found]
        return pb.BatchSearchResponse(search_results=results)

    async def GetIndexStats(
        self, request: pb.GetIndexStatsRequest, caller: Caller
    ) -> pb.GetIndexStatsResponse:
        """Tell of an index."""
        told = await self._indexes.told(await self._source(caller, request))
        return pb.GetIndexStatsResponse(index_stats=_index_to_pb(told))

    async def CheckIndex(
        self, request: pb.CheckIndexRequest, caller: Caller
    ) -> pb.CheckIndexResponse:
        """Compare an index with its rows."""
        check = await self._indexes.check(await self._source(caller, request))
        return pb.CheckIndexResponse(index_check=_check_to_pb(check))

    async def RebuildIndex(
        self, request: pb.RebuildIndexRequest, caller: Caller
    ) -> pb.RebuildIndexResponse:
        """Make an index anew."""
        told = await self._indexes.rebuild(await self._source(caller, request))
        return pb.RebuildIndexResponse(index_stats=_index_to_pb(told))

    async def _source(
        self,
        caller: Caller,
        request: pb.GetIndexStatsRequest | pb.CheckIndexRequest | pb.RebuildIndexRequest,
    ) -> Source:
        kind = enum_to_text(pb.IndexKind, request.kind)
        return await self._indexes.source(caller, request.user_id, kind, request.embedding_model)


class DocumentIntake:
    """An upload on the wire."""

    is_full = False  # nothing of it is stored before all of it is there

    def __init__(
        self,
        knowledge: KnowledgeService,
        first: pb.UploadDocumentRequest,
        metadata: dict[str, Any],
        upload: Upload,
    ) -> None:
        """``first`` says what is uploaded, and may bear the first bytes."""
        upload.add(first.data)
        first.ClearField("data")
        self._knowledge = knowledge
        self._first = first
        self._metadata = metadata
        self._upload = upload
        self.close = upload.close

    def take(self, message: pb.UploadDocumentRequest) -> None:
        """Take the next bytes. Raises INVALID_FIELD."""
        others = [field.name for field, _ in message.ListFields() if field.name != "data"]
        if others:
            what = "belongs in the first message of the stream"
            raise HubError(
                Reason.REASON_INVALID_FIELD, violations=[(name, what) for name in others]
            )
        self._upload.add(message.data)

    async def store(self, caller: Caller) -> None:
        """Store nothing yet."""

    async def finish(self, caller: Caller) -> pb.UploadDocumentResponse:
        """Store the document."""
        first = self._first
        values = {
            "title": first.title,
            "file_name": first.file_name,
            "source_url": first.source_url,
            "author": first.author,
            "metadata": self._metadata,
            **_chunking_from_pb(first.chunking),
        }
        user_id = caller.acting_for(first.user_id)
        document = await self._knowledge.upload(
            caller,
            retry_of(first),
            user_id,
            values,
            self._upload,
            allow_duplicate=first.allow_duplicate,
        )
        return pb.UploadDocumentResponse(document=_document_to_pb(document))


class WatchFeed:
    """A watched document on the wire."""

    def __init__(self, feed: DocumentFeed) -> None:
        """Send what the feed yields."""
        self._feed = feed
        self.sent = feed.sent
        self.wait = feed.wait
        self.close = feed.close

    @property
    def is_over(self) -> bool:
        """Whether the document is processed."""
        return self._feed.is_over

    async def read(self, caller: Caller) -> Sequence[Message]:
        """Return what to send next."""
        documents = await self._feed.read(caller)
        return [pb.WatchDocumentResponse(document=_document_to_pb(one)) for one in documents]


def _changes(request: pb.UpdateDocumentRequest) -> dict[str, Any]:
    """Return the values to set. Raises INVALID_FIELD."""
    given = {
        "title": request.title,
        "text": request.text,
        "source_url": request.source_url,
        "author": request.author,
        "metadata": struct_from_pb("metadata", request.metadata),
        "chunking": request.HasField("chunking"),
    }
    paths = list(request.update_mask.paths) or [name for name, value in given.items() if value]
    if paths == ["*"]:
        paths = list(given)
    if not set(paths) <= set(given):
        raise HubError.invalid("update_mask", f"may name: {', '.join(given)}")
    for name in ("title", "text"):
        if name in paths and not given[name]:
            raise HubError.invalid(name, "must not be empty")
    changes = {name: given[name] for name in paths if name != "chunking"}
    if "chunking" in paths:
        changes |= _chunking_from_pb(request.chunking)
    return changes


def _chunking_from_pb(chunking: pb.Chunking) -> dict[str, Any]:
    return {
        "max_tokens": chunking.max_tokens or CHUNK_TOKENS,
        "overlap_tokens": chunking.overlap_tokens,
    }


def _own_chunks(request: pb.AddChunksRequest) -> OwnChunks:
    """Return what to add. Raises INVALID_FIELD."""
    new = {
        "title": request.title,
        "source_url": request.source_url,
        "author": request.author,
        "metadata": struct_from_pb("metadata", request.metadata),
    }
    if request.document_id:
        if given := [name for name, value in new.items() if value]:
            raise HubError.invalid(given[0], "must not be set with a document_id")
    elif not request.title:
        raise HubError.invalid("title", "is required without a document_id")
    chunks = [_own_chunk(f"chunks[{place}]", one) for place, one in enumerate(request.chunks)]
    return OwnChunks(request.embedding_model, chunks, request.document_id, new)


def _own_chunk(name: str, chunk: pb.OwnChunk) -> OwnChunk:
    metadata = struct_from_pb(f"{name}.metadata", chunk.metadata)
    if taken := _OF_THE_HUB & metadata.keys():
        fault = f"must not hold {', '.join(sorted(taken))}, which the hub sets"
        raise HubError.invalid(f"{name}.metadata", fault)
    return OwnChunk(chunk.content, chunk.embedding, metadata, chunk.token_count)


def _document_to_pb(document: Row) -> pb.Document:
    chunking = chunking_of(document)
    return pb.Document(
        document_id=document["document_id"],
        user_id=document["user_id"],
        title=document["title"],
        source_url=document["source_url"],
        author=document["author"],
        status=enum_from_text(pb.DocumentStatus, document["status"]),
        error=document["error"],
        chunk_count=document["chunk_count"],
        metadata=struct_to_pb(document["metadata"]),
        created_at=timestamp_to_pb(document["created_at"]),
        updated_at=timestamp_to_pb(document["updated_at"]),
        chunks_done=document["chunks_done"],
        chunks_total=document["chunks_total"],
        deleted_at=timestamp_to_pb(document["deleted_at"]),
        etag=document_etag(document),
        # Answers to retries may be older than this column.
        embedding_model=document.get("own_model", ""),
        chunking=pb.Chunking(
            max_tokens=chunking.max_tokens, overlap_tokens=chunking.overlap_tokens
        ),
        file_name=document["file_name"],
        media_type=document["media_type"],
    )


def _kind(
    request: pb.ReembedSpaceRequest | pb.GetReembeddingRequest | pb.CancelReembeddingRequest,
) -> str | None:
    return enum_to_text(pb.IndexKind, request.kind) if request.kind else None


def _reembedding_to_pb(row: Row) -> pb.Reembedding:
    return pb.Reembedding(
        embedding_model=row["target_model"] or "",
        status=_reembedding_status(row),
        error=row["error"] or "",
        failed_user_id=row["failed_user_id"] or "",
        users_total=row["users_total"],
        users_done=row["users_done"],
        rows_total=row["rows_total"],
        rows_done=row["rows_done"],
        rows_own=row["rows_own"],
        updated_at=timestamp_to_pb(row["updated_at"]),
    )


def _reembedding_status(row: Row) -> pb.ReembeddingStatus.ValueType:
    ended = row["spaces_done"] + row["spaces_failed"] + row["spaces_cancelled"]
    if row["spaces_total"] == 0:
        return pb.REEMBEDDING_STATUS_NONE
    if ended < row["spaces_total"]:
        return pb.REEMBEDDING_STATUS_MOVING
    if row["spaces_failed"]:
        return pb.REEMBEDDING_STATUS_FAILED
    if row["spaces_cancelled"]:
        return pb.REEMBEDDING_STATUS_CANCELLED
    return pb.REEMBEDDING_STATUS_DONE


def _index_to_pb(told: Told) -> pb.IndexStats:
    space, stats = told.source.space, told.stats
    index = pb.IndexStats(
        user_id=space.user_id,
        kind=enum_from_text(pb.IndexKind, space.kind),
        embedding_model=space.embedding_model,
        last_seq=told.source.state["last_seq"],
        snapshot_bytes=told.snapshot_bytes,
        process=pb.ProcessIndexStats(
            views=told.totals.views, bytes=told.totals.nbytes, budget_bytes=told.totals.budget
        ),
    )
    if stats is not None:
        held = pb.IndexStats(
            is_held=True,
            engine=enum_from_text(pb.IndexEngine, stats.engine),
            rows=stats.rows,
            rows_in_graph=stats.in_graph,
            dead_rows=stats.dead,
            bytes=stats.nbytes,
            applied_seq=stats.applied_seq,
            is_building=stats.is_at_work,
            built_at=timestamp_to_pb(stats.built_at),
            saved_at=timestamp_to_pb(stats.saved_at),
        )
        index.MergeFrom(held)
    return index


def _check_to_pb(check: Check) -> pb.IndexCheck:
    flaws = check.flaws
    return pb.IndexCheck(
        rows=check.rows,
        missing=len(flaws.missing),
        ghosts=len(flaws.ghost),
        stale=len(flaws.stale),
        missing_ids=flaws.missing[:_MOST_IDS],
        ghost_ids=flaws.ghost[:_MOST_IDS],
        stale_ids=flaws.stale[:_MOST_IDS],
        recall_at_10=check.recall,
    )
