"""Searches of the contract as values, and what they find as its messages."""

from collections.abc import Sequence
from typing import Final

from hub_client.v1 import knowledge_pb2 as pb
from hub_server.convert import enum_to_text, struct_to_pb, timestamp_to_pb
from hub_server.errors import HubError
from hub_server.knowledge.filters import condition_of
from hub_server.knowledge.search import Asked, Found, Served
from hub_server.knowledge.vectors import vector_of
from hub_server.rows import Row
from hub_server.search import DEFAULT_TOP_K

_MOST_CHUNKS: Final = 2200  # the largest top_k, each hit with the most neighbours


def asked_of(within: str, request: pb.SearchRequest | pb.SearchQuery) -> Asked:
    """Return what a request asks for; ``within`` is where it stands. Raises INVALID_FIELD."""
    is_lexical = request.mode == pb.SEARCH_MODE_LEXICAL
    if not request.query and (is_lexical or not request.vector):
        what = "is required without a vector, and in mode lexical"
        raise HubError.invalid(f"{within}query", what)
    if request.vector and is_lexical:
        raise HubError.invalid(f"{within}vector", "must not be set in mode lexical")
    if request.embedding_model and not request.vector:
        raise HubError.invalid(f"{within}embedding_model", "must not be set without a vector")
    has_filter = request.HasField("filter")
    return Asked(
        query=request.query,
        top_k=request.top_k or DEFAULT_TOP_K,
        mode=enum_to_text(pb.SearchMode, request.mode, pb.SEARCH_MODE_HYBRID),
        min_score=request.min_score,
        document_ids=list(request.document_ids),
        max_per_document=request.max_per_document,
        condition=condition_of(f"{within}filter", request.filter) if has_filter else None,
        neighbours=request.neighbours,
        vector=vector_of(f"{within}vector", request.vector) if request.vector else None,
        embedding_model=request.embedding_model,
        within=within,
    )


def several_of(request: pb.BatchSearchRequest) -> Sequence[Asked]:
    """Return what a batch asks for, in its order. Raises INVALID_FIELD."""
    several = [asked_of(f"queries[{n}].", one) for n, one in enumerate(request.queries)]
    most = sum(asked.top_k * (1 + 2 * asked.neighbours) for asked in several)
    if most > _MOST_CHUNKS:
        what = f"must ask for at most {_MOST_CHUNKS:,} chunks together, not {most:,}"
        raise HubError.invalid("queries", what)
    return several


def served_of(request: pb.SearchRequest | pb.BatchSearchRequest) -> Served:
    """Return what a search serves. Raises INVALID_FIELD."""
    if request.message_id and not request.session_id:
        raise HubError.invalid("message_id", "must not be set without a session_id")
    return Served(request.session_id, request.message_id)


def chunk_to_pb(row: Row) -> pb.Chunk:
    """Return a chunk as the contract has it."""
    return pb.Chunk(
        chunk_id=row["chunk_id"],
        document_id=row["document_id"],
        document_title=row["document_title"],
        chunk_index=row["chunk_index"],
        content=row["content"],
        token_count=row["token_count"],
        metadata=struct_to_pb(row["metadata"]),
        heading_path=row["heading_path"],
        start_char=row["start_char"],
        end_char=row["end_char"],
    )


def hit_to_pb(found: Found) -> pb.SearchHit:
    """Return a hit as the contract has it."""
    candidate = found.hit.candidate
    return pb.SearchHit(
        chunk=chunk_to_pb(found.hit.row),
        score=candidate.score,
        vector_score=candidate.vector_score,
        word_score=candidate.word_score,
        vector_part=candidate.vector_part,
        word_part=candidate.word_part,
        highlights=[pb.Highlight(start=start, end=end) for start, end in found.highlights],
        span=map(chunk_to_pb, found.span),
        chunk_ids=found.chunk_ids,
    )


def retrieval_to_pb(row: Row) -> pb.Retrieval:
    """Return a retrieval as the contract has it."""
    return pb.Retrieval(
        retrieval_id=row["retrieval_id"],
        session_id=row["session_id"],
        chunk_id=row["chunk_id"],
        rank=row["rank"],
        score=row["score"],
        query=row["query"],
        embedding_model=row["embedding_model"],
        created_at=timestamp_to_pb(row["created_at"]),
        times_retrieved=row["times_retrieved"],
        message_id=row["message_id"] or "",
    )
