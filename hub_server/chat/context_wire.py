"""Contexts on the wire."""

from collections.abc import Mapping

from hub_client.v1 import chat_pb2 as pb
from hub_client.v1.options_pb2 import Scope
from hub_server.caller import Caller
from hub_server.context.assembling import SHARES, Entry, Part
from hub_server.context.service import Asked, Context, Told
from hub_server.convert import enum_from_text, timestamp_to_pb
from hub_server.errors import HubError, Reason
from hub_server.rows import Row


def check_scopes(caller: Caller) -> None:
    """Refuse a service key that could not read by itself what a context shows.

    Raises SCOPE_INSUFFICIENT.
    """
    for scope in (Scope.SCOPE_MEMORY_READ, Scope.SCOPE_KNOWLEDGE_READ):
        if caller.scopes is not None and scope not in caller.scopes:
            required = Scope.Name(scope).removeprefix("SCOPE_")
            raise HubError(Reason.REASON_SCOPE_INSUFFICIENT, required=required)


def asked_from_pb(request: pb.BuildContextRequest) -> Asked:
    """Return what a context is for. Raises INVALID_FIELD."""
    return Asked(
        session_id=request.session_id,
        token_budget=request.token_budget,
        query=request.query,
        model_name=request.model_name,
        shares=_shares(request.shares),
        min_score=request.min_score,
    )


def context_to_pb(context: Context) -> pb.Context:
    """Return the message."""
    record = context.record
    return pb.Context(
        context_id=record["context_id"],
        session_id=record["session_id"],
        blocks=map(_block_to_pb, context.blocks),
        ledger=map(_entry_to_pb, context.ledger),
        token_count=sum(told.block.tokens for told in context.blocks),
        token_budget=record["token_budget"],
        tools_allowed=record["tools_allowed"],
        model_name=record["model_name"],
        created_at=timestamp_to_pb(record["created_at"]),
    )


def _shares(given: pb.ContextShares) -> Mapping[Part, float]:
    named = {part: getattr(given, part) for part in SHARES if given.HasField(part)}
    if sum(named.values()) > 1:
        raise HubError.invalid("shares", "must be at most 1 together")
    return {**SHARES, **named}


def _block_to_pb(told: Told) -> pb.ContextBlock:
    return pb.ContextBlock(
        part=enum_from_text(pb.ContextPart, told.block.part),
        content=told.block.text,
        token_count=told.block.tokens,
        sources=map(_source_to_pb, told.rows),
    )


def _source_to_pb(row: Row) -> pb.ContextSource:
    if row["part"] == "memory":
        return pb.ContextSource(memory_id=row["item_id"])
    if row["part"] == "history":
        role = enum_from_text(pb.Role, row["role"])
        return pb.ContextSource(message_id=row["item_id"], seq=row["place"], role=role)
    return pb.ContextSource(
        chunk_id=row["item_id"],
        document_id=row["document_id"],
        document_title=row["title"],
        source_url=row["source_url"],
        heading_path=row["heading_path"],
    )


def _entry_to_pb(entry: Entry) -> pb.ContextEntry:
    return pb.ContextEntry(
        part=enum_from_text(pb.ContextPart, entry.part),
        item_id=entry.item_id,
        score=entry.score,
        token_count=entry.tokens,
        reason=enum_from_text(pb.ContextReason, entry.reason),
    )
