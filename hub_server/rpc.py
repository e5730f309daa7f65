"""The one path every call takes: authenticate, check, call, translate errors, observe.

It registers generic handlers only, since grpc.aio's accept loop pays for each registered method,
and uses no interceptors, since those run before the server's own limit on calls.

A call's work runs in a task of the server. grpc.aio cancels a handler when its client goes away,
and a database transaction must not be cut off half-way; so the handler only waits for the task.

A stream does its work in such tasks too, one after the other: each begins with authentication, so
that access which is lost ends the stream before anything else is sent. What is streamed to the hub
is read by the handler, once who sends it is known; the work is done when all of it is there, or a
part at a time.
"""

import asyncio
import math
import re
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Final, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from hub_client.v1.options_pb2 import Level
from hub_server.caller import Caller
from hub_server.calls import (
    Authenticate,
    Call,
    Feed,
    Intake,
    Method,
    NoteRefusal,
    Room,
    checked,
    compile_method,
    refusal_of,
)
from hub_server.errors import HubError, Reason, reason_name, to_status
from hub_server.ids import new_id
from hub_server.logs import causes
from hub_server.paging import check_answer

REQUEST_ID_METADATA: Final = "x-request-id"
ACT_AS_METADATA: Final = "act-as"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_MOMENT_SECONDS: Final = 0.05
# Parts of streams' work under way at a time; the others wait for their turn. A change may wake
# thousands of streams at once, which must neither be refused nor crowd out calls.
MOST_READS: Final = 16
# Each may hold one message that is not counted yet, of the 8 MiB that gRPC lets through.
MOST_UPLOADS: Final = 64
# Without anything being stored, whatever the client's deadline.
_UPLOAD_SECONDS: Final = 600.0
# After a pause of the reader's what was read before it is read again: it may be his no longer.
_STALE_SECONDS: Final = 0.2

T = TypeVar("T")

Context = grpc.aio.ServicerContext[bytes, bytes]
log: structlog.stdlib.BoundLogger = structlog.get_logger("hub.rpc")


class Rpc:
    """Builds the handlers and owns the tasks in which calls do their work."""

    def __init__(
        self,
        authenticate: Authenticate,
        note_refusal: NoteRefusal,
        *,
        most_calls: int,
        most_streams: int,
        default_deadline: float,
        stall: float,
        room: int,
    ) -> None:
        """``default_deadline`` is in seconds, for calls that bring none.

        ``stall`` is, too: so long may the reader of a stream read nothing, or who sends one send
        nothing. ``room`` is how many bytes of all that is being sent are kept.
        """
        self._authenticate = authenticate
        self._note_refusal = note_refusal
        self._most_calls = most_calls
        self._default_deadline = default_deadline
        self._most_streams = most_streams
        self._stall = stall
        self._tasks: set[asyncio.Task[Any]] = set()
        self._calls = 0
        self._streams = 0
        self._uploads = 0
        self._room = Room(room)
        self._reads = asyncio.Semaphore(MOST_READS)
        self._pauses: set[asyncio.Task[Any]] = set()  # of streams that wait for news or messages
        self._is_draining = False
        self._refused = 0  # while draining

    def handler(self, service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """Return the handler of all methods of a service.

        Raises ContractError when a method declares too little, and AttributeError when the
        servicer lacks one.
        """
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {}
        for method in service.methods:
            compiled = compile_method(method, getattr(servicer, method.name))
            handler: grpc.RpcMethodHandler[bytes, bytes]
            if method.client_streaming:
                handler = grpc.stream_unary_rpc_method_handler(self._upload(compiled))
            elif method.server_streaming:
                handler = grpc.unary_stream_rpc_method_handler(self._stream(compiled))
            else:
                handler = grpc.unary_unary_rpc_method_handler(self._unary(compiled))
            handlers[method.name] = handler
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    async def drain(self, seconds: float) -> None:
        """Let running work finish, at most so long, then break it off; new calls are UNAVAILABLE.

        A transaction that is broken off is rolled back, and its connection closed. To be called
        before the server stops: gRPC answers CANCELLED to the calls it has queued by then.
        """
        self._is_draining = True
        for pause in self._pauses:
            pause.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
            await self._quiet(seconds)
        left = set(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _quiet(self, seconds: float) -> None:
        """Return once no new call had to be refused for a moment, or after so long."""
        end, refused = time.monotonic() + seconds, -1
        while refused != self._refused and time.monotonic() < end:
            refused = self._refused
            await asyncio.sleep(_MOMENT_SECONDS)

    def _unary(self, method: Method) -> Callable[[bytes, Context], Coroutine[Any, Any, bytes]]:
        async def unary(request: bytes, context: Context) -> bytes:
            call = self._arrived(method, context)
            bears_id = ((REQUEST_ID_METADATA, call.request_id),)
            try:
                answer = await self._owned(self._observed(call, request), call.deadline)
            except HubError as error:
                await _abort(context, call, to_status(error, call.request_id))
            context.set_trailing_metadata(bears_id)
            return answer

        return unary

    def _stream(self, method: Method) -> Callable[[bytes, Context], Coroutine[Any, Any, None]]:
        async def stream(request: bytes, context: Context) -> None:
            call = self._arrived(method, context)
            # Counted until the end, which may have to wait for a reader who does not read.
            self._streams += 1
            try:
                if refusal := await self._ended(call, request, context):
                    await _abort(context, call, refusal)
            finally:
                self._streams -= 1

        return stream

    async def _ended(self, call: Call, raw: bytes, context: Context) -> Status | None:
        """Serve a stream; return why it failed, in a form that holds nothing of it."""
        facts = call.facts()
        try:
            with self._logged(call, facts), _cancelled_when_gone():
                await context.send_initial_metadata(((REQUEST_ID_METADATA, call.request_id),))
                await self._streamed(call, raw, context, facts)
        except HubError as error:
            return to_status(error, call.request_id)
        return None

    async def _streamed(
        self, call: Call, raw: bytes, context: Context, facts: dict[str, object]
    ) -> None:
        """Serve a stream until it is over, or fails."""
        if self._streams > self._most_streams:
            raise HubError(Reason.REASON_OVERLOADED)
        end = math.inf if context.time_remaining() is None else call.deadline
        feed: Feed = await self._owned(self._worked(call, raw, facts), call.deadline)
        try:
            await self._fed(call, feed, context, end)
        finally:
            feed.close()

    async def _fed(self, call: Call, feed: Feed, context: Context, end: float) -> None:
        """Send what the feed has; each part of the work has a deadline of its own."""
        while True:
            async with self._reads:
                call = replace(call, deadline=min(end, time.monotonic() + self._default_deadline))
                messages = await self._owned(self._read(call, feed), call.deadline, is_call=False)
            count, started = 0, time.monotonic()
            for count, message in enumerate(messages, start=1):  # noqa: B007 - the last one counts
                await self._send(context, message, end)
                if time.monotonic() - started > _STALE_SECONDS:
                    break
            feed.sent(count)
            if feed.is_over:
                return
            await self._pause(feed, end)

    async def _read(self, call: Call, feed: Feed) -> Sequence[bytes]:
        caller = await self._admitted(call, {})
        assert caller is not None  # noqa: S101 - no stream is public
        return [message.SerializeToString() for message in await feed.read(caller)]

    async def _send(self, context: Context, message: bytes, end: float) -> None:
        """Send a message; flow control holds it up while the reader does not read."""
        try:
            # Not wait_for, which before Python 3.12 may swallow that the reader has left.
            async with asyncio.timeout(min(self._stall, _left(end))):
                await context.write(message)
        except TimeoutError:
            late = _left(end) <= 0
            reason = Reason.REASON_DEADLINE_EXCEEDED if late else Reason.REASON_READER_TOO_SLOW
            raise HubError(reason) from None

    async def _pause(self, feed: Feed, end: float) -> None:
        """Wait until the feed has news, the deadline passes or the server stops."""
        if self._is_draining:
            raise HubError(Reason.REASON_UNAVAILABLE)
        pause = asyncio.create_task(feed.wait())
        self._pauses.add(pause)
        try:
            await asyncio.wait({pause}, timeout=None if end == math.inf else _left(end))
        finally:
            self._pauses.discard(pause)
            was_stopped = pause.cancelled()
            pause.cancel()
        if was_stopped:
            raise HubError(Reason.REASON_UNAVAILABLE)
        if _left(end) <= 0:
            raise HubError(Reason.REASON_DEADLINE_EXCEEDED)

    def _upload(self, method: Method) -> Callable[[Any, Context], Coroutine[Any, Any, bytes]]:
        async def upload(_: object, context: Context) -> bytes:
            call = self._arrived(method, context)
            facts = call.facts()
            try:
                with self._logged(call, facts), _cancelled_when_gone(), self._uploading():
                    answer = await self._uploaded(call, context, facts)
            except HubError as error:
                await _abort(context, call, to_status(error, call.request_id))
            context.set_trailing_metadata(((REQUEST_ID_METADATA, call.request_id),))
            return answer

        return upload

    @contextmanager
    def _uploading(self) -> Iterator[None]:
        """Count an upload as a call from its first moment; refuse one too many."""
        if self._calls >= self._most_calls or self._uploads >= MOST_UPLOADS:
            raise HubError(Reason.REASON_OVERLOADED)
        self._calls += 1
        self._uploads += 1
        try:
            yield
        finally:
            self._calls -= 1
            self._uploads -= 1

    async def _uploaded(self, call: Call, context: Context, facts: dict[str, object]) -> bytes:
        """Read all that is sent, then do the work; what was read is let go of after either."""
        left: float | None = context.time_remaining()
        last = math.inf if left is None else call.started + left
        end = min(last, call.started + _UPLOAD_SECONDS)
        with ExitStack() as held:
            take = held.enter_context(self._room.share())
            caller = await self._part(self._admitted(call, facts), end)
            raw = await self._next(context, end) or b""
            taken = len(raw)
            take(taken)
            intake: Intake = await self._part(self._begun(call, caller, raw, facts), end)
            held.callback(intake.close)
            while (message := await self._next(context, end)) is not None:
                taken += len(message)
                take(len(message))
                intake.take(checked(call.method, message))
                if intake.is_full:
                    await self._part(self._stored(call, intake, end), end)
                    take(-taken)
                    taken, end = 0, min(last, time.monotonic() + _UPLOAD_SECONDS)
            # What a client that went away had sent looks as if it had ended there; but then nothing
            # can be sent to him any more.
            await context.send_initial_metadata(())
            if self._is_draining:
                raise HubError(Reason.REASON_UNAVAILABLE)
            until = min(end, time.monotonic() + self._default_deadline)
            work = self._concluded(replace(call, deadline=until), intake, held.pop_all())
        return await self._part(work, end)

    async def _stored(self, call: Call, intake: Intake, end: float) -> None:
        """Let an intake store what it took, if who sends it still may."""
        until = min(end, time.monotonic() + self._default_deadline)
        caller = await self._admitted(replace(call, deadline=until), {})
        assert caller is not None  # noqa: S101 - no stream is public
        await intake.store(caller)

    async def _concluded(self, call: Call, intake: Intake, held: ExitStack) -> bytes:
        """Return the answer to all that was sent, which is ``held`` until then."""
        with held:
            caller = await self._admitted(call, {})
            assert caller is not None  # noqa: S101 - no stream is public
            return _sealed(await intake.finish(caller))

    async def _part(self, work: Coroutine[Any, Any, T], end: float) -> T:
        """Do a part of a stream's work, with a deadline of its own."""
        deadline = min(end, time.monotonic() + self._default_deadline)
        return await self._owned(work, deadline, is_call=False)

    async def _next(self, context: Context, end: float) -> bytes | None:
        """Return the next message that is sent; None = all were."""
        if self._is_draining:
            raise HubError(Reason.REASON_UNAVAILABLE)
        reading: asyncio.Task[Any] = asyncio.ensure_future(context.read())
        self._pauses.add(reading)
        try:
            await asyncio.wait({reading}, timeout=min(self._stall, _left(end)))
        finally:
            self._pauses.discard(reading)
            was_stopped, has_come = reading.cancelled(), reading.done()
            reading.cancel()
        if was_stopped:
            raise HubError(Reason.REASON_UNAVAILABLE)
        if not has_come:
            late = _left(end) <= 0
            reason = Reason.REASON_DEADLINE_EXCEEDED if late else Reason.REASON_SENDER_TOO_SLOW
            raise HubError(reason)
        message = reading.result()
        return None if message is grpc.aio.EOF else message

    def _arrived(self, method: Method, context: Context) -> Call:
        metadata = dict(context.invocation_metadata() or ())
        given = str(metadata.get(REQUEST_ID_METADATA, ""))
        authorization, act_as = metadata.get("authorization"), metadata.get(ACT_AS_METADATA)
        now = time.monotonic()
        left: float | None = context.time_remaining()  # None: the client set no deadline
        return Call(
            method=method,
            request_id=given if _REQUEST_ID.fullmatch(given) else new_id(),
            authorization=None if authorization is None else str(authorization),
            act_as=None if act_as is None else str(act_as),
            deadline=now + (self._default_deadline if left is None else left),
            started=now,
        )

    async def _owned(
        self, work: Coroutine[Any, Any, T], deadline: float, *, is_call: bool = True
    ) -> T:
        """Run the work in a task of the server, and wait for it no longer than the deadline."""
        if self._is_draining or (is_call and self._calls >= self._most_calls):
            work.close()
            self._refused += self._is_draining
            reason = Reason.REASON_UNAVAILABLE if self._is_draining else Reason.REASON_OVERLOADED
            raise HubError(reason)
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        if is_call:
            self._calls += 1
            task.add_done_callback(self._call_done)
        if not await _done_by(task, deadline):
            raise HubError(Reason.REASON_DEADLINE_EXCEEDED)
        if task.cancelled():
            raise HubError(Reason.REASON_UNAVAILABLE)
        return task.result()

    def _call_done(self, _: asyncio.Task[Any]) -> None:
        self._calls -= 1

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as seen: whoever asked may have gone

    async def _observed(self, call: Call, raw: bytes) -> bytes:
        """Serve a call and log one line of it, with nothing that is sensitive."""
        facts = call.facts()
        with self._logged(call, facts):
            try:
                return _sealed(await self._worked(call, raw, facts))
            finally:
                if time.monotonic() > call.deadline:  # DEADLINE_EXCEEDED is what he was told
                    facts["is_late"] = True

    @contextmanager
    def _logged(self, call: Call, facts: dict[str, object]) -> Iterator[None]:
        """Log what comes of a call, and let no other failure out than HubError."""
        try:
            yield
        except HubError as error:
            self._log(call, facts | {"code": error.code.name}, error)
            raise
        except asyncio.CancelledError:
            self._log(call, facts | {"code": "CANCELLED"}, None)
            raise
        except Exception as error:  # whatever it is, callers are told no more than INTERNAL
            hidden = HubError(Reason.REASON_INTERNAL)
            hidden.__cause__ = error
            self._log(call, facts | {"code": hidden.code.name}, hidden)
            raise hidden from error
        self._log(call, facts | {"code": "OK"}, None)

    async def _worked(self, call: Call, raw: bytes, facts: dict[str, object]) -> Any:
        """Return what the method's work returns for the request."""
        caller = await self._admitted(call, facts)
        return await self._begun(call, caller, raw, facts)

    async def _begun(
        self, call: Call, caller: Caller | None, raw: bytes, facts: dict[str, object]
    ) -> Any:
        """Return what the method's work returns for the request of a caller who may call."""
        method = call.method
        request = checked(method, raw)
        facts |= {name: value for name in method.loggable if (value := getattr(request, name))}
        return await method.work(request, caller)

    async def _admitted(self, call: Call, facts: dict[str, object]) -> Caller | None:
        """Return who calls, if he may; None for a public method called without a credential."""
        caller = await self._caller(call)
        if caller is not None:
            facts |= {"tenant_id": caller.tenant_id, "credential_id": caller.credential_id}
        if caller is not None and (refusal := refusal_of(call.method, caller)):
            await self._note_refusal(caller, call.method.name)
            raise refusal
        return caller

    async def _caller(self, call: Call) -> Caller | None:
        """Return who calls; None for a public method called without a credential."""
        if call.authorization is None:
            if call.method.level == Level.LEVEL_PUBLIC and call.act_as is None:
                return None
            raise HubError(Reason.REASON_CREDENTIAL_MISSING)
        return await self._authenticate(call.authorization, call.act_as, call.deadline)

    def _log(self, call: Call, facts: dict[str, object], error: HubError | None) -> None:
        facts["ms"] = round((time.monotonic() - call.started) * 1000, 1)
        if error is not None:
            facts["reason"] = reason_name(error.reason)
        if error is not None and self._is_fault(error):
            log.error("call failed", **facts, cause=causes(error))
        else:
            log.info("call", **facts)

    def _is_fault(self, error: HubError) -> bool:
        """Tell whether somebody should look into it; that a stopping hub is gone is as it was."""
        is_gone = error.reason == Reason.REASON_UNAVAILABLE and not self._is_draining
        return is_gone or error.reason == Reason.REASON_INTERNAL


def _sealed(answer: Message) -> bytes:
    sealed = answer.SerializeToString()
    check_answer(len(sealed))
    return sealed


async def _done_by(task: asyncio.Task[Any], deadline: float) -> bool:
    """Return whether the task is done by then; it goes on if not, or if who waits is cancelled.

    It is ``asyncio.wait`` for one task, some 10 microseconds cheaper.
    """
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def end(_: object = None) -> None:
        if not ended.done():
            ended.set_result(None)

    task.add_done_callback(end)
    timer = loop.call_at(deadline, end)
    try:
        await ended
    finally:
        timer.cancel()
    return task.done()


@contextmanager
def _cancelled_when_gone() -> Iterator[None]:
    """Let a client that went away look the same whether or not something was being sent."""
    try:
        yield
    except grpc.aio.InternalError as error:
        raise asyncio.CancelledError from error


async def _abort(context: Context, call: Call, refusal: Status) -> NoReturn:
    status = rpc_status.to_status(refusal)
    trailers = ((REQUEST_ID_METADATA, call.request_id), *status.trailing_metadata)
    await context.abort(status.code, status.details, trailers)


def _left(end: float) -> float:
    """Return how many seconds are left, 0 when none are."""
    return max(end - time.monotonic(), 0)
