"""MemoryService on the wire: check, call, convert."""

from hub_client.v1 import memory_pb2 as pb
from hub_server.caller import Caller
from hub_server.convert import enum_from_text, enum_to_text, timestamp_from_pb, timestamp_to_pb
from hub_server.idempotency import retry_of
from hub_server.memory.service import MemoryService
from hub_server.paging import PageTokens
from hub_server.rows import Row
from hub_server.search import Hit


class MemoryServicer:
    """Serves hub.v1.MemoryService."""

    def __init__(self, service: MemoryService, pages: PageTokens) -> None:
        """Serve the given rules."""
        self._memory = service
        self._pages = pages

    async def Remember(self, request: pb.RememberRequest, caller: Caller) -> pb.RememberResponse:
        """Store a memory."""
        sure = request.confidence_score if request.HasField("confidence_score") else 1.0
        ends = request.HasField("expires_at")
        values = {
            "memory_type": enum_to_text(pb.MemoryType, request.memory_type),
            "memory_content": request.memory_content,
            "confidence_score": sure,
            "source": enum_to_text(pb.MemorySource, request.source, pb.MEMORY_SOURCE_USER),
            "expires_at": timestamp_from_pb("expires_at", request.expires_at) if ends else None,
        }
        user_id = caller.acting_for(request.user_id)
        memory = await self._memory.remember(caller, retry_of(request), user_id, values)
        return pb.RememberResponse(memory=_memory_to_pb(memory))

    async def GetMemory(self, request: pb.GetMemoryRequest, caller: Caller) -> pb.GetMemoryResponse:
        """Return a memory."""
        memory = await self._memory.get_memory(caller, request.memory_id)
        return pb.GetMemoryResponse(memory=_memory_to_pb(memory))

    async def ListMemories(
        self, request: pb.ListMemoriesRequest, caller: Caller
    ) -> pb.ListMemoriesResponse:
        """List memories."""
        page = self._pages.read(caller, request, request.page_size, request.page_token)
        user_id = caller.acting_for(request.user_id)
        memories, after = await self._memory.list_memories(caller, user_id, page)
        return pb.ListMemoriesResponse(
            memories=map(_memory_to_pb, memories),
            next_page_token=self._pages.next(caller, request, after),
        )

    async def Recall(self, request: pb.RecallRequest, caller: Caller) -> pb.RecallResponse:
        """Find memories."""
        user_id = caller.acting_for(request.user_id)
        hits = await self._memory.recall(caller, user_id, request.query, request.top_k)
        return pb.RecallResponse(hits=map(_hit_to_pb, hits))


def _memory_to_pb(memory: Row) -> pb.Memory:
    return pb.Memory(
        memory_id=memory["memory_id"],
        user_id=memory["user_id"],
        memory_type=enum_from_text(pb.MemoryType, memory["memory_type"]),
        memory_content=memory["memory_content"],
        confidence_score=memory["confidence_score"],
        is_active=memory["is_active"],
        expires_at=timestamp_to_pb(memory["expires_at"]),
        source=enum_from_text(pb.MemorySource, memory["source"]),
        created_at=timestamp_to_pb(memory["created_at"]),
        updated_at=timestamp_to_pb(memory["updated_at"]),
    )


def _hit_to_pb(hit: Hit) -> pb.MemoryHit:
    return pb.MemoryHit(
        memory=_memory_to_pb(hit.row),
        score=hit.candidate.score,
        vector_score=hit.candidate.vector_score,
        word_score=hit.candidate.word_score,
    )
