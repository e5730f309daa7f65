"""What a call raises: ``HubError``, or its subclass for the reason the hub gave.

The details of a status are read here with messages of our own, so that the client needs nothing
beside grpcio and protobuf.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

import grpc
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, duration_pb2, message_factory
from google.protobuf.message import DecodeError, Message

_DETAILS_KEY: Final = "grpc-status-details-bin"
_DOMAIN: Final = "hub"


@dataclass(eq=False)  # errors are equal when they are the same, and can be hashed
class HubError(Exception):
    """A call failed.

    Attributes:
        message: one line for people; never decide by it.
        reason: the contract's reason, such as ``NOT_FOUND``; empty when the hub gave none, as when
            it could not be reached.
        code: the gRPC status code.
        request_id: what the hub's log calls this call; empty when unknown.
        metadata: the facts of the reason, such as ``resource``.
        violations: for INVALID_FIELD, pairs of field and what is wrong with it.
        retry_after: seconds after which a retry may help; None = a retry is not advised.

    """

    message: str
    reason: str = ""
    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    request_id: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[tuple[str, str], ...] = ()
    retry_after: float | None = None

    def __str__(self) -> str:
        """Return the reason and the message."""
        return f"{self.reason or self.code.name}: {self.message}"

    def __reduce__(self) -> tuple[type["HubError"], tuple[Any, ...]]:
        """Let an error pass between processes, as pools of workers pass it."""
        return type(self), tuple(getattr(self, one.name) for one in fields(self))


class InvalidFieldError(HubError):
    """A field is missing, malformed or beyond its limits; ``violations`` names each."""


class PageTokenInvalidError(HubError):
    """A page token was altered, or belongs to another caller or filter."""


class RequestIdReusedError(HubError):
    """A request id was used for a call with other content."""


class CredentialMissingError(HubError):
    """No credential was presented."""


class CredentialInvalidError(HubError):
    """The credential is unknown, expired or revoked."""


class LoginFailedError(HubError):
    """Email or password is wrong."""


class LevelInsufficientError(HubError):
    """The credential does not allow this method."""


class UserDisabledError(HubError):
    """The user the call is for is disabled."""


class FeatureDisabledError(HubError):
    """This is off; ``metadata["feature"]`` names the flag of the user's or tenant's settings."""


class NotFoundError(HubError):
    """Nothing of that id exists for this caller; ``metadata["resource"]`` names its kind."""


class EmailTakenError(HubError):
    """The email belongs to another user of the tenant."""


class EtagMismatchError(HubError):
    """The resource changed since its etag was read."""


class SessionEndedError(HubError):
    """The session has ended."""


class SessionLimitError(HubError):
    """The user may not have another active session."""


class OverloadedError(HubError):
    """The hub has as much work as it takes on; ``retry_after`` says when to come back."""


class DeadlineExceededError(HubError):
    """The call took too long; whether it changed anything is unknown."""


class UnavailableError(HubError):
    """The hub or its database cannot be reached."""


class PasswordRefusedError(HubError):
    """The new password is too easily guessed."""


class ScopeInsufficientError(HubError):
    """The service key lacks a scope: ``metadata["required"]``."""


class TenantExistsError(HubError):
    """A tenant of this name exists already."""


class TokenBudgetError(HubError):
    """The user has too few tokens left; ``retry_after`` tells when the next period begins."""


class SeqMismatchError(HubError):
    """The session's last seq is another than expected: ``metadata["last_seq"]``."""


class ReservationSettledError(HubError):
    """The reservation was settled before."""


class ReaderTooSlowError(HubError):
    """The reader of a stream did not keep up; resume it where it stopped."""


class MemoryStatusError(HubError):
    """The memory's status, ``metadata["status"]``, does not allow this."""


class MemoryRateError(HubError):
    """The user was told about too often; ``retry_after`` tells when to try again."""


class SenderTooSlowError(HubError):
    """Nothing was sent for too long; nothing is kept of what was."""


class AnswerTooLargeError(HubError):
    """The answer would be too large; ask for less at a time."""


class ImportConflictError(HubError):
    """A record of an import is here already with other content, or is not the user's."""


class InternalError(HubError):
    """A fault of the hub; its log tells more under ``request_id``."""


_BY_REASON: Final[Mapping[str, type[HubError]]] = {
    "INVALID_FIELD": InvalidFieldError,
    "PAGE_TOKEN_INVALID": PageTokenInvalidError,
    "REQUEST_ID_REUSED": RequestIdReusedError,
    "CREDENTIAL_MISSING": CredentialMissingError,
    "CREDENTIAL_INVALID": CredentialInvalidError,
    "LOGIN_FAILED": LoginFailedError,
    "LEVEL_INSUFFICIENT": LevelInsufficientError,
    "USER_DISABLED": UserDisabledError,
    "FEATURE_DISABLED": FeatureDisabledError,
    "NOT_FOUND": NotFoundError,
    "EMAIL_TAKEN": EmailTakenError,
    "ETAG_MISMATCH": EtagMismatchError,
    "SESSION_ENDED": SessionEndedError,
    "SESSION_LIMIT": SessionLimitError,
    "OVERLOADED": OverloadedError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "UNAVAILABLE": UnavailableError,
    "INTERNAL": InternalError,
    "PASSWORD_REFUSED": PasswordRefusedError,
    "SCOPE_INSUFFICIENT": ScopeInsufficientError,
    "TENANT_EXISTS": TenantExistsError,
    "TOKEN_BUDGET": TokenBudgetError,
    "SEQ_MISMATCH": SeqMismatchError,
    "RESERVATION_SETTLED": ReservationSettledError,
    "READER_TOO_SLOW": ReaderTooSlowError,
    "MEMORY_STATUS": MemoryStatusError,
    "MEMORY_RATE": MemoryRateError,
    "SENDER_TOO_SLOW": SenderTooSlowError,
    "ANSWER_TOO_LARGE": AnswerTooLargeError,
    "IMPORT_CONFLICT": ImportConflictError,
}
# What gRPC itself reports, without the hub having answered.
_BY_CODE: Final[Mapping[grpc.StatusCode, type[HubError]]] = {
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
}


# Number, name and type of each field that is read; `*` = repeated, empty = a string.
_FIELDS: Final[Mapping[str, tuple[tuple[int, str, str], ...]]] = {
    "Status": ((3, "details", "*.google.protobuf.Any"),),
    "Entry": ((1, "key", ""), (2, "value", "")),
    "ErrorInfo": ((1, "reason", ""), (2, "domain", ""), (3, "metadata", "*.Entry")),
    "FieldViolation": ((1, "field", ""), (2, "description", "")),
    "BadRequest": ((1, "field_violations", "*.FieldViolation"),),
    "RetryInfo": ((1, "retry_delay", ".google.protobuf.Duration"),),
}


def _messages() -> Mapping[str, type[Message]]:
    """Return the messages of google/rpc as far as they are read here.

    They live in a pool of their own: the package that defines them may be installed too, and one
    pool does not take two definitions of a name. A map on the wire is a repeated entry.
    """
    file = descriptor_pb2.FileDescriptorProto(name="hub_client/status.proto", syntax="proto3")
    file.dependency.extend(["google/protobuf/any.proto", "google/protobuf/duration.proto"])
    for name, members in _FIELDS.items():
        message = file.message_type.add(name=name)
        for number, field_name, kind in members:
            added = message.field.add(number=number, name=field_name)
            added.label = added.LABEL_REPEATED if kind.startswith("*") else added.LABEL_OPTIONAL
            added.type = added.TYPE_MESSAGE if kind else added.TYPE_STRING
            if kind:
                added.type_name = kind.lstrip("*")
    pool = descriptor_pool.DescriptorPool()
    for known in (any_pb2, duration_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    found = pool.FindFileByName(file.name).message_types_by_name
    return {name: message_factory.GetMessageClass(found[name]) for name in found}


_MESSAGES: Final = _messages()


def from_rpc(
    code: grpc.StatusCode, message: str | None, trailers: Mapping[str, str | bytes]
) -> HubError:
    """Return the error that a failed call's status, message and trailing metadata amount to.

    Unreadable details (a proxy may cut them) are left out, never raised.
    """
    found = _Details()
    raw = trailers.get(_DETAILS_KEY)
    if isinstance(raw, bytes):
        try:
            found = _read(raw)
        except DecodeError:
            found = _Details()
    kind = _BY_REASON.get(found.reason) or _BY_CODE.get(code, HubError)
    return kind(
        message=message or code.name,
        reason=found.reason,
        code=code,
        request_id=found.metadata.pop("request_id", ""),
        metadata=found.metadata,
        violations=tuple(found.violations),
        retry_after=found.retry_after,
    )


@dataclass
class _Details:
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    violations: list[tuple[str, str]] = field(default_factory=list)
    retry_after: float | None = None


def _read(raw: bytes) -> _Details:
    found = _Details()
    status: Any = _MESSAGES["Status"].FromString(raw)
    for detail in status.details:
        match detail.type_url.rpartition("/")[2]:
            case "google.rpc.ErrorInfo":
                info: Any = _MESSAGES["ErrorInfo"].FromString(detail.value)
                if info.domain == _DOMAIN:  # a proxy has reasons of its own
                    found.reason = info.reason
                    found.metadata = {entry.key: entry.value for entry in info.metadata}
            case "google.rpc.BadRequest":
                bad: Any = _MESSAGES["BadRequest"].FromString(detail.value)
                found.violations = [(one.field, one.description) for one in bad.field_violations]
            case "google.rpc.RetryInfo":
                retry: Any = _MESSAGES["RetryInfo"].FromString(detail.value)
                delay = retry.retry_delay
                found.retry_after = delay.seconds + delay.nanos / 1e9
    return found
