"""How calls travel: credential, time limit, safe retries, errors, pages."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message

from hub_client.errors import HubError, from_rpc

# UNAVAILABLE is retried. No create is done twice, since each bears a request_id. Other changes are
# made again: a deletion whose answer was lost is then NOT_FOUND, an update with an etag
# ETAG_MISMATCH.
SERVICE_CONFIG: Final = """{"methodConfig": [{"name": [{}], "retryPolicy": {
    "maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE"]}}]}"""
OPTIONS: Final = (
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.max_receive_message_length", -1),
    # What gRPC keeps of a call so as to retry it: its own 256 KiB would not hold a document.
    ("grpc.per_rpc_retry_buffer_size", 16 << 20),
    # A hub that hangs, or a network that drops what is sent, is noticed within a minute.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 15_000),
    # Each client has a connection of its own: else those of a process share one, and one worker.
    ("grpc.use_local_subchannel_pool", 1),
)

_REQUEST_ID: Final = "request_id"
_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)


class Transport:
    """Makes the calls of the sync client over one channel."""

    def __init__(
        self, channel: grpc.Channel, key: str | None, timeout: float, act_as: str | None
    ) -> None:
        """``timeout`` in seconds is for calls that name none."""
        self._channel = channel
        self._metadata = _metadata(key, act_as)
        self._timeout = timeout

    def call(
        self, path: str, request: Message, response_type: type[_Response], timeout: float | None
    ) -> _Response:
        """Make one call. Raises HubError."""
        method = self._channel.unary_unary(
            path,
            request_serializer=_serialized,
            response_deserializer=response_type.FromString,
        )
        try:
            response: _Response = method(
                _retriable(request), timeout=timeout or self._timeout, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise _translated(error) from None
        return response

    def pages(
        self,
        path: str,
        request: Message,
        response_type: type[Message],
        items: str,
        timeout: float | None,
    ) -> Iterator[Any]:
        """Yield the items of a list, fetching a page when the one before is used up."""
        asked: Any = _copy(request)
        while True:
            page: Any = self.call(path, asked, response_type, timeout)
            yield from getattr(page, items)
            if not page.next_page_token:
                return
            asked.page_token = page.next_page_token

    def stream(
        self, path: str, request: Message, response_type: type[_Response], timeout: float | None
    ) -> Iterator[_Response]:
        """Yield what the hub sends, until it or the time limit ends it. Raises HubError."""
        method = self._channel.unary_stream(
            path,
            request_serializer=_serialized,
            response_deserializer=response_type.FromString,
        )
        answers = method(request, timeout=timeout, metadata=self._metadata)
        try:
            yield from answers
        except grpc.RpcError as error:
            raise _translated(error) from None
        finally:
            answers.cancel()  # who stops reading leaves no stream behind

    def upload(
        self,
        path: str,
        requests: Iterable[Message],
        response_type: type[_Response],
        timeout: float | None,
    ) -> _Response:
        """Send the requests as one call; without a time limit of its own it has the hub's.

        Raises HubError, what making a request raises, and TypeError for what is not iterable.
        """
        method = self._channel.stream_unary(
            path,
            request_serializer=_serialized,
            response_deserializer=response_type.FromString,
        )
        raised: list[Exception] = []
        sent = _noted(_all_retriable(requests), raised)
        try:
            response: _Response = method(sent, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raised.append(_translated(error))
        else:
            return response
        raise raised[0]  # not within the except, which would put gRPC's error into its history


class AsyncTransport:
    """Makes the calls of the async client over one channel."""

    def __init__(
        self, channel: grpc.aio.Channel, key: str | None, timeout: float, act_as: str | None
    ) -> None:
        """``timeout`` in seconds is for calls that name none."""
        self._channel = channel
        self._metadata = _metadata(key, act_as)
        self._timeout = timeout

    async def call(
        self, path: str, request: Message, response_type: type[_Response], timeout: float | None
    ) -> _Response:
        """Make one call. Raises HubError."""
        method = self._channel.unary_unary(
            path,
            request_serializer=_serialized,
            response_deserializer=response_type.FromString,
        )
        try:
            response: _Response | None = await method(
                _retriable(request), timeout=timeout or self._timeout, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from None
        if response is None:  # what grpc.aio makes of an answer that does not decode
            raise HubError("the answer cannot be read", code=grpc.StatusCode.INTERNAL)
        return response

    async def pages(
        self,
        path: str,
        request: Message,
        response_type: type[Message],
        items: str,
        timeout: float | None,
    ) -> AsyncIterator[Any]:
        """Yield the items of a list, fetching a page when the one before is used up."""
        asked: Any = _copy(request)
        while True:
            page: Any = await self.call(path, asked, response_type, timeout)
            for item in getattr(page, items):
                yield item
            if not page.next_page_token:
                return
            asked.page_token = page.next_page_token

    async def stream(
        self, path: str, request: Message, response_type: type[_Response], timeout: float | None
    ) -> AsyncIterator[_Response]:
        """Yield what the hub sends, until it or the time limit ends it. Raises HubError."""
        method = self._channel.unary_stream(
            path,
            request_serializer=_serialized,
            response_deserializer=response_type.FromString,
        )
        answers = method(request, timeout=timeout, metadata=self._metadata)
        try:
            async for answer in answers:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from None
        finally:
            answers.cancel()  # who stops reading leaves no stream behind

    async def upload(
        self,
        path: str,
        requests: Iterable[Message],
        response_type: type[_Response],
        timeout: float | None,
    ) -> _Response:
        """Send the requests as one call; without a time limit of its own it has the hub's.

        Raises what ``Transport.upload`` does.
        """
        sent = _all_retriable(requests)
        method = self._channel.stream_unary(
            path,
            request_serializer=_serialized,
            response_deserializer=response_type.FromString,
        )
        call = method(timeout=timeout, metadata=self._metadata)
        ends: list[HubError] = []
        call.add_done_callback(lambda _: ends.append(from_rpc(*ended(call))))
        try:
            # Not given to gRPC, which would hide what making a request raises. One that fails to be
            # sent tells nothing: the hub has answered, or has gone.
            with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                for request in sent:
                    await call.write(request)
                await call.done_writing()
            response: _Response | None = await call
        except grpc.aio.AioRpcError as error:
            # To grpc.aio a write that fails is INTERNAL, which takes the place of the hub's answer
            # when it comes after it.
            answers = (*ends, _translated(error))
            raise min(answers, key=lambda one: one.code == grpc.StatusCode.INTERNAL) from None
        finally:
            call.cancel()  # of what is not sent whole, nothing is kept
        if response is None:  # as in `call`
            raise HubError("the answer cannot be read", code=grpc.StatusCode.INTERNAL)
        return response


def _metadata(key: str | None, act_as: str | None) -> tuple[tuple[str, str], ...]:
    key = key.strip() if key else key  # files end with a newline, which metadata cannot bear
    bearer = (("authorization", f"Bearer {key}"),) if key else ()
    return (*bearer, ("act-as", act_as)) if act_as else bearer


def _serialized(request: Message) -> bytes:
    return request.SerializeToString()


def _copy(request: _Request) -> _Request:
    copy = type(request)()
    copy.CopyFrom(request)
    return copy


def _retriable(request: Message) -> Message:
    """Return the request with a request_id, where it takes one and the caller gave none."""
    if _REQUEST_ID not in request.DESCRIPTOR.fields_by_name:
        return request
    if getattr(request, _REQUEST_ID):
        return request
    asked = _copy(request)
    setattr(asked, _REQUEST_ID, str(uuid.uuid4()))
    return asked


def _all_retriable(requests: Iterable[Message]) -> Iterator[Message]:
    """Return the requests of a call; what makes it retriable stands in the first.

    Raises TypeError for what is not iterable, at once: not a generator, which would begin later.
    """
    places = enumerate(requests)
    return (request if place else _retriable(request) for place, request in places)


def _noted(requests: Iterator[Message], raised: list[Exception]) -> Iterator[Message]:
    """Yield the requests; what making one raises is noted, since gRPC would hide it."""
    try:
        yield from requests
    except Exception as error:
        raised.append(error)
        raise


def ended(call: Any) -> tuple[grpc.StatusCode, str, Mapping[str, str | bytes]]:
    """Return how a call has ended; what grpc.aio lets await is there by then."""
    parts = []
    for part in (call.code(), call.details(), call.trailing_metadata()):
        try:
            part.send(None)
        except StopIteration as found:
            parts.append(found.value)
    code, details, trailers = parts
    return code, details, dict(trailers or ())


def _translated(error: Any) -> HubError:  # grpc's RpcError declares no methods
    trailers = dict(error.trailing_metadata() or ())
    return from_rpc(error.code(), error.details(), trailers)
