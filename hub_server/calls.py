"""What a call is: the method that the contract declares, who may call it, and what serves it."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from hub_client.v1.options_pb2 import Level, Scope
from hub_server.caller import Caller
from hub_server.errors import HubError, Reason
from hub_server.limits import Check, compile_check, level_of, loggable_fields, scope_of

Work = Callable[[Any, Caller | None], Awaitable[Any]]


class Authenticate(Protocol):
    """Turns the metadata of a call into its caller."""

    async def __call__(self, authorization: str, act_as: str | None, deadline: float) -> Caller:
        """Return the caller. Raises CREDENTIAL_INVALID, or what refuses ``act_as``."""


class NoteRefusal(Protocol):
    """Writes down that a caller with a valid credential was refused a method."""

    async def __call__(self, caller: Caller, method: str) -> None:
        """Write it down, or fail without a trace: the refusal stands."""


class Feed(Protocol):
    """What the work of a streaming method returns: something to be read from again and again."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come after what was read last."""

    async def read(self, caller: Caller) -> Sequence[Message]:
        """Return what to send next, perhaps nothing. Raises HubError, which ends the stream."""

    def sent(self, count: int) -> None:
        """Note that so many of what was read last were sent; the others are to be read again."""

    async def wait(self) -> None:
        """Return when to read again. It may be cancelled."""

    def close(self) -> None:
        """Let go of what it holds: the stream has ended."""


class Intake(Protocol):
    """What the work of a method that is streamed to returns for the first message."""

    @property
    def is_full(self) -> bool:
        """Whether what was taken is to be stored before more is."""

    def take(self, message: Any) -> None:
        """Take the next message. Raises HubError, which ends the stream."""

    async def store(self, caller: Caller) -> None:
        """Store what was taken, and hold it no longer. Raises HubError."""

    async def finish(self, caller: Caller) -> Message:
        """Do the work, since all was sent; return the answer. Raises HubError."""

    def close(self) -> None:
        """Let go of what was taken."""


@dataclass(frozen=True)
class Method:
    """What the contract says of a method, and the work that serves it."""

    path: str
    name: str
    level: Level.ValueType
    scope: Scope.ValueType
    request_type: type[Message]
    check: Check
    loggable: tuple[str, ...]
    work: Work


@dataclass(frozen=True, slots=True)
class Call:
    """One call as it arrived."""

    method: Method
    request_id: str
    authorization: str | None
    act_as: str | None
    deadline: float
    started: float

    def facts(self) -> dict[str, object]:
        """Return what a log line of it begins with."""
        return {"method": self.method.path, "request_id": self.request_id}


class Room:
    """Memory for what is being sent: so many bytes in all; what does not fit is refused."""

    def __init__(self, size: int) -> None:
        self._left = size

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yield what takes more bytes, or raises OVERLOADED; at the end all are given back.

        Less than none gives some back before.
        """
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if size > self._left:
                raise HubError(Reason.REASON_OVERLOADED)
            self._left -= size
            taken += size

        try:
            yield take
        finally:
            self._left += taken


def compile_method(method: MethodDescriptor, work: Work) -> Method:
    """Read what a method declares. Raises ContractError when that is too little."""
    return Method(
        path=f"/{method.containing_service.full_name}/{method.name}",
        name=method.name,
        level=level_of(method),
        scope=scope_of(method),
        request_type=GetMessageClass(method.input_type),
        check=compile_check(method.input_type),
        loggable=loggable_fields(method.input_type),
        work=work,
    )


def refusal_of(method: Method, caller: Caller) -> HubError | None:
    """Return why the caller may not call the method; None = he may."""
    is_operator = caller.level == Level.LEVEL_OPERATOR
    if caller.level < method.level or is_operator != (method.level == Level.LEVEL_OPERATOR):
        required = Level.Name(method.level).removeprefix("LEVEL_")
        return HubError(Reason.REASON_LEVEL_INSUFFICIENT, required=required)
    if method.scope == Scope.SCOPE_UNSPECIFIED or caller.scopes is None:
        return None
    if method.scope not in caller.scopes:
        required = Scope.Name(method.scope).removeprefix("SCOPE_")
        return HubError(Reason.REASON_SCOPE_INSUFFICIENT, required=required)
    return None


def checked(method: Method, raw: bytes) -> Message:
    """Return the request within its declared limits. Raises INVALID_FIELD."""
    try:
        request = method.request_type.FromString(raw)
    except DecodeError as error:
        name = method.request_type.DESCRIPTOR.full_name
        fault = f"is not a {name}, or has far more than 32 levels"
        raise HubError.invalid("request", fault) from error
    if violations := list(method.check(request)):
        raise HubError(Reason.REASON_INVALID_FIELD, violations=violations)
    return request
