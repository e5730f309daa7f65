"""KnowledgeService on the wire: check, call, convert."""

from hub_client.v1 import knowledge_pb2 as pb
from hub_server.caller import Caller
from hub_server.convert import enum_from_text, struct_from_pb, struct_to_pb, timestamp_to_pb
from hub_server.idempotency import retry_of
from hub_server.knowledge.service import KnowledgeService
from hub_server.paging import PageTokens
from hub_server.rows import Row
from hub_server.search import Hit


class KnowledgeServicer:
    """Serves hub.v1.KnowledgeService."""

    def __init__(self, service: KnowledgeService, pages: PageTokens) -> None:
        """Serve the given rules."""
        self._knowledge = service
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
        }
        user_id = caller.acting_for(request.user_id)
        document = await self._knowledge.ingest(caller, retry_of(request), user_id, values)
        return pb.IngestDocumentResponse(document=_document_to_pb(document))

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
        documents, after = await self._knowledge.list_documents(caller, user_id, page)
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

    async def Search(self, request: pb.SearchRequest, caller: Caller) -> pb.SearchResponse:
        """Find chunks."""
        user_id = caller.acting_for(request.user_id)
        hits = await self._knowledge.search(
            caller, user_id, request.query, request.top_k, request.session_id
        )
        return pb.SearchResponse(hits=map(_hit_to_pb, hits))


def _document_to_pb(document: Row) -> pb.Document:
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
    )


def _hit_to_pb(hit: Hit) -> pb.SearchHit:
    row = hit.row
    chunk = pb.Chunk(
        chunk_id=row["chunk_id"],
        document_id=row["document_id"],
        document_title=row["document_title"],
        chunk_index=row["chunk_index"],
        content=row["content"],
        token_count=row["token_count"],
        metadata=struct_to_pb(row["metadata"]),
    )
    return pb.SearchHit(
        chunk=chunk,
        score=hit.candidate.score,
        vector_score=hit.candidate.vector_score,
        word_score=hit.candidate.word_score,
    )
