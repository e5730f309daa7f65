"""MemoryService on the wire: check, call, convert."""

import datetime as dt
from typing import Any

from hub_client.v1 import memory_pb2 as pb
from hub_server.caller import Caller
from hub_server.convert import enum_from_text, enum_to_text, timestamp_from_pb, timestamp_to_pb
from hub_server.errors import HubError
from hub_server.idempotency import retry_of
from hub_server.memory.report import Finding
from hub_server.memory.scoring import Scored, Weights
from hub_server.memory.service import Asked, MemoryService, memory_etag
from hub_server.memory.turn import Remembered
from hub_server.memory.wanted import Wanted
from hub_server.paging import PageTokens
from hub_server.rows import Row


class MemoryServicer:
    """Serves hub.v1.MemoryService."""

    def __init__(self, service: MemoryService, pages: PageTokens) -> None:
        """Serve the given rules."""
        self._memory = service
        self._pages = pages

    async def Remember(self, request: pb.RememberRequest, caller: Caller) -> pb.RememberResponse:
        """Remember something."""
        user_id = caller.acting_for(request.user_id)
        said = [_statement_from_pb(request)]
        (result,) = await self._memory.remember(caller, retry_of(request), user_id, said)
        return pb.RememberResponse(**self._result(result))

    async def BatchRemember(
        self, request: pb.BatchRememberRequest, caller: Caller
    ) -> pb.BatchRememberResponse:
        """Remember several things."""
        user_id = caller.acting_for(request.user_id)
        said = [_statement_from_pb(one) for one in request.memories]
        results = await self._memory.remember(
            caller, retry_of(request), user_id, said, is_batch=True
        )
        return pb.BatchRememberResponse(
            remember_results=(pb.RememberResult(**self._result(one)) for one in results)
        )

    async def GetMemory(self, request: pb.GetMemoryRequest, caller: Caller) -> pb.GetMemoryResponse:
        """Return a memory."""
        memory = await self._memory.get_memory(caller, request.memory_id)
        return pb.GetMemoryResponse(memory=self._memory_to_pb(memory))

    async def ListMemories(
        self, request: pb.ListMemoriesRequest, caller: Caller
    ) -> pb.ListMemoriesResponse:
        """List memories."""
        page = self._pages.read(caller, request, request.page_size, request.page_token)
        user_id = caller.acting_for(request.user_id)
        statuses = [enum_to_text(pb.MemoryStatus, one) for one in request.statuses]
        as_of = _as_of(request)
        memories, after = await self._memory.list_memories(
            caller, user_id, page, _wanted(request, request.memory_key, statuses), as_of
        )
        return pb.ListMemoriesResponse(
            memories=(self._memory_to_pb(memory, as_of) for memory in memories),
            next_page_token=self._pages.next(caller, request, after),
        )

    async def GetMemoryHistory(
        self, request: pb.GetMemoryHistoryRequest, caller: Caller
    ) -> pb.GetMemoryHistoryResponse:
        """Return what became of a memory."""
        rows, is_cut = await self._memory.history(caller, request.memory_id)
        history = pb.MemoryHistory(revisions=map(self._revision_to_pb, rows), is_cut=is_cut)
        return pb.GetMemoryHistoryResponse(memory_history=history)

    async def Recall(self, request: pb.RecallRequest, caller: Caller) -> pb.RecallResponse:
        """Find memories."""
        asked = Asked(
            query=request.query,
            top_k=request.top_k,
            wanted=_wanted(request),
            min_confidence=request.min_confidence,
            as_of=_as_of(request),
            weights=_weights(request.weights),
        )
        user_id = caller.acting_for(request.user_id)
        found = await self._memory.recall(caller, user_id, asked)
        return pb.RecallResponse(hits=(self._hit_to_pb(one, asked.as_of) for one in found))

    async def UpdateMemory(
        self, request: pb.UpdateMemoryRequest, caller: Caller
    ) -> pb.UpdateMemoryResponse:
        """Change a memory."""
        memory = await self._memory.update_memory(
            caller, request.memory_id, _changes(request), request.etag
        )
        return pb.UpdateMemoryResponse(memory=self._memory_to_pb(memory))

    async def RestoreMemory(
        self, request: pb.RestoreMemoryRequest, caller: Caller
    ) -> pb.RestoreMemoryResponse:
        """Make a memory active again."""
        memory = await self._memory.restore_memory(caller, request.memory_id)
        return pb.RestoreMemoryResponse(memory=self._memory_to_pb(memory))

    async def AcceptMemory(
        self, request: pb.AcceptMemoryRequest, caller: Caller
    ) -> pb.AcceptMemoryResponse:
        """Make a proposal active."""
        memory = await self._memory.accept_memory(caller, request.memory_id)
        return pb.AcceptMemoryResponse(memory=self._memory_to_pb(memory))

    async def RejectMemory(
        self, request: pb.RejectMemoryRequest, caller: Caller
    ) -> pb.RejectMemoryResponse:
        """Turn a proposal down."""
        memory = await self._memory.reject_memory(caller, request.memory_id)
        return pb.RejectMemoryResponse(memory=self._memory_to_pb(memory))

    async def ForgetMemory(
        self, request: pb.ForgetMemoryRequest, caller: Caller
    ) -> pb.ForgetMemoryResponse:
        """Make a memory inactive."""
        memory = await self._memory.forget_memory(caller, request.memory_id)
        return pb.ForgetMemoryResponse(memory=self._memory_to_pb(memory))

    async def DeleteMemory(
        self, request: pb.DeleteMemoryRequest, caller: Caller
    ) -> pb.DeleteMemoryResponse:
        """Delete a memory."""
        await self._memory.delete_memory(caller, request.memory_id)
        return pb.DeleteMemoryResponse()

    async def GetMemoryReport(
        self, request: pb.GetMemoryReportRequest, caller: Caller
    ) -> pb.GetMemoryReportResponse:
        """Tell what to clean."""
        user_id = caller.acting_for(request.user_id)
        found, count = await self._memory.report(caller, user_id)
        report = pb.MemoryReport(findings=map(self._finding_to_pb, found), memory_count=count)
        return pb.GetMemoryReportResponse(memory_report=report)

    def _result(self, result: Remembered) -> dict[str, Any]:
        return {
            "memory": self._memory_to_pb(result.memory),
            "outcome": enum_from_text(pb.RememberOutcome, result.outcome),
            "superseded_id": result.superseded_id or "",
        }

    def _memory_to_pb(self, memory: Row, as_of: dt.datetime | None = None) -> pb.Memory:
        return pb.Memory(
            memory_id=memory["memory_id"],
            user_id=memory["user_id"],
            memory_type=enum_from_text(pb.MemoryType, memory["memory_type"]),
            memory_content=memory["memory_content"],
            confidence_score=memory["confidence_score"],
            is_active=memory["status"] == "active",
            expires_at=timestamp_to_pb(memory["expires_at"]),
            source=enum_from_text(pb.MemorySource, memory["source"]),
            created_at=timestamp_to_pb(memory["created_at"]),
            updated_at=timestamp_to_pb(memory["updated_at"]),
            memory_key=memory["memory_key"],
            status=enum_from_text(pb.MemoryStatus, memory["status"]),
            superseded_by=memory["superseded_by"] or "",
            reinforcement_count=memory["reinforcement_count"],
            reinforced_at=timestamp_to_pb(memory["reinforced_at"]),
            session_id=memory["session_id"] or "",
            message_id=memory["message_id"] or "",
            current_confidence=self._memory.confidence(memory, as_of),
            etag=memory_etag(memory),
        )

    def _revision_to_pb(self, row: Row) -> pb.MemoryRevision:
        return pb.MemoryRevision(
            memory=self._memory_to_pb(row, row["recorded_at"]),
            event=enum_from_text(pb.MemoryEvent, row["event"]),
            recorded_at=timestamp_to_pb(row["recorded_at"]),
        )

    def _hit_to_pb(self, found: Scored, as_of: dt.datetime | None) -> pb.MemoryHit:
        candidate = found.hit.candidate
        return pb.MemoryHit(
            memory=self._memory_to_pb(found.hit.row, as_of),
            score=found.score,
            vector_score=candidate.vector_score,
            word_score=candidate.word_score,
            relevance=candidate.score,
            confidence=found.confidence,
            recency=found.recency,
        )

    def _finding_to_pb(self, finding: Finding) -> pb.MemoryFinding:
        return pb.MemoryFinding(
            kind=enum_from_text(pb.MemoryFindingKind, finding.kind),
            memories=map(self._memory_to_pb, finding.memories),
            similarity=finding.similarity,
        )


def _statement_from_pb(said: pb.RememberRequest | pb.NewMemory) -> dict[str, Any]:
    return {
        "memory_type": enum_to_text(pb.MemoryType, said.memory_type),
        "memory_content": said.memory_content,
        "confidence_score": said.confidence_score if said.HasField("confidence_score") else 1.0,
        "source": enum_to_text(pb.MemorySource, said.source, pb.MEMORY_SOURCE_USER),
        "expires_at": _expiry(said),
        "memory_key": said.memory_key,
        "session_id": said.session_id or None,
        "message_id": said.message_id or None,
    }


def _expiry(
    request: pb.RememberRequest | pb.NewMemory | pb.UpdateMemoryRequest,
) -> dt.datetime | None:
    if not request.HasField("expires_at"):
        return None
    return timestamp_from_pb("expires_at", request.expires_at)


def _as_of(request: pb.RecallRequest | pb.ListMemoriesRequest) -> dt.datetime | None:
    return timestamp_from_pb("as_of", request.as_of) if request.HasField("as_of") else None


def _wanted(
    request: pb.RecallRequest | pb.ListMemoriesRequest, memory_key: str = "", statuses: Any = ()
) -> Wanted:
    return Wanted(
        types=[enum_to_text(pb.MemoryType, one) for one in request.memory_types],
        sources=[enum_to_text(pb.MemorySource, one) for one in request.sources],
        memory_key=memory_key,
        statuses=statuses,
    )


def _weights(given: pb.RecallWeights) -> Weights:
    return Weights(**{field.name: value for field, value in given.ListFields()})


def _changes(request: pb.UpdateMemoryRequest) -> dict[str, Any]:
    """Return the values to set. Raises INVALID_FIELD."""
    given = {
        "memory_content": request.memory_content,
        "confidence_score": request.confidence_score,
        "expires_at": _expiry(request),
    }
    is_given = {
        "memory_content": bool(request.memory_content),
        "confidence_score": request.HasField("confidence_score"),
        "expires_at": request.HasField("expires_at"),
    }
    paths = list(request.update_mask.paths) or [name for name, there in is_given.items() if there]
    if paths == ["*"]:
        paths = list(given)
    if not set(paths) <= set(given):
        raise HubError.invalid("update_mask", f"may name: {', '.join(given)}")
    if "memory_content" in paths and not request.memory_content:
        raise HubError.invalid("memory_content", "must not be empty")
    if "confidence_score" in paths and not is_given["confidence_score"]:
        raise HubError.invalid("confidence_score", "must be given")
    return {name: given[name] for name in paths}
