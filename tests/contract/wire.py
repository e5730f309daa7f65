"""Calls as bytes, and answers as any gRPC client sees them; no code of the hub reads them here."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from hub_client._transport import ended
from hub_client.v1 import chat_pb2, identity_pb2, knowledge_pb2, memory_pb2
from tests.contract.imports import rest

SERVICES: Final = tuple(
    module.DESCRIPTOR.services_by_name[name]
    for module, name in (
        (identity_pb2, "IdentityService"),
        (chat_pb2, "ChatService"),
        (memory_pb2, "MemoryService"),
        (knowledge_pb2, "KnowledgeService"),
    )
)
METHODS: Final[tuple[MethodDescriptor, ...]] = tuple(
    method for service in SERVICES for method in service.methods
)

_Detail = TypeVar("_Detail", bound=Message)


def method_named(name: str) -> MethodDescriptor:
    """Return the method of this name; no two services share one."""
    (method,) = (method for method in METHODS if method.name == name)
    return method


def path_of(method: MethodDescriptor) -> str:
    """Return the path of a method on the wire."""
    return f"/{method.containing_service.full_name}/{method.name}"


@dataclass(frozen=True)
class Answer:
    """What came back: a status with its trailing metadata, and the response when it is OK."""

    code: grpc.StatusCode
    message: str
    trailers: Mapping[str, str | bytes]
    response: bytes = b""

    @property
    def reason(self) -> str:
        """The reason in ErrorInfo; empty when the call succeeded."""
        return "" if self.code == grpc.StatusCode.OK else self.info.reason

    @property
    def info(self) -> error_details_pb2.ErrorInfo:
        """The ErrorInfo of a refusal."""
        return self.detail(error_details_pb2.ErrorInfo)

    @property
    def bad_fields(self) -> set[str]:
        """The fields that BadRequest names; empty without BadRequest."""
        if not self.has(error_details_pb2.BadRequest):
            return set()
        bad = self.detail(error_details_pb2.BadRequest)
        return {violation.field for violation in bad.field_violations}

    def has(self, kind: type[Message]) -> bool:
        """Tell whether the status bears such a detail."""
        return bool(self._details(kind))

    def detail(self, kind: type[_Detail]) -> _Detail:
        """Return the one detail of this kind."""
        (packed,) = self._details(kind)
        return kind.FromString(packed)

    def _details(self, kind: type[Message]) -> list[bytes]:
        raw = self.trailers["grpc-status-details-bin"]
        assert isinstance(raw, bytes)
        details = status_pb2.Status.FromString(raw).details
        return [one.value for one in details if one.TypeName() == kind.DESCRIPTOR.full_name]


async def call(
    channel: grpc.aio.Channel,
    method: MethodDescriptor,
    request: Message | bytes,
    *metadata: tuple[str, str],
) -> Answer:
    """Make a call with exactly this metadata; never raises for a refusal.

    A stream counts as answered by its first message, and is left after it. A stream to the hub has
    one message here, but for an import, which is made whole.
    """
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    if method.server_streaming:
        return await _first_of(channel.unary_stream(path_of(method)), raw, metadata)
    if method.client_streaming:
        return await _poured(channel, method, raw, metadata=metadata, timeout=30)
    sent = sending(channel, method, raw, metadata=metadata, timeout=30)
    code, message = await sent.code(), await sent.details()
    trailers = dict(await sent.trailing_metadata())
    response = await sent if code == grpc.StatusCode.OK else b""
    return Answer(code, message, trailers, response)


async def _poured(
    channel: grpc.aio.Channel, method: MethodDescriptor, raw: bytes, **options: Any
) -> Answer:
    """Send a stream as the client does: a write that fails hides nothing the hub answers."""
    sent: Any = channel.stream_unary(path_of(method))(**options)
    ends: list[tuple[grpc.StatusCode, str, Mapping[str, str | bytes]]] = []
    sent.add_done_callback(lambda _: ends.append(ended(sent)))
    with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
        for part in _stream(method, raw):
            await sent.write(part)
        await sent.done_writing()
    response = b""
    with suppress(grpc.aio.AioRpcError):
        response = await sent
    ends.append(ended(sent))
    code, message, trailers = min(ends, key=lambda one: one[0] == grpc.StatusCode.INTERNAL)
    return Answer(code, message, trailers, response)


def _stream(method: MethodDescriptor, raw: bytes) -> list[bytes]:
    return [raw, *(rest(raw) if method.name == "ImportUser" else ())]


def sending(channel: grpc.aio.Channel, method: MethodDescriptor, raw: bytes, **options: Any) -> Any:
    """Return a call with one answer that is under way, whether it takes one message or many."""
    if method.client_streaming:
        upload: Any = channel.stream_unary(path_of(method))
        return upload(_stream(method, raw), **options)
    unary: Any = channel.unary_unary(path_of(method))
    return unary(raw, **options)


async def _first_of(caller: Any, raw: bytes, metadata: tuple[tuple[str, str], ...]) -> Answer:
    sent = caller(raw, metadata=metadata, timeout=30)
    try:
        response = await sent.read()
    except grpc.aio.AioRpcError as error:
        trailers = dict(error.trailing_metadata() or ())
        return Answer(error.code(), error.details() or "", trailers)
    bears = dict(await sent.initial_metadata())
    sent.cancel()
    assert response is not grpc.aio.EOF
    return Answer(grpc.StatusCode.OK, "", bears, response)


def bearer(credential: str) -> tuple[str, str]:
    """Return the metadata that presents a credential."""
    return "authorization", f"Bearer {credential}"
