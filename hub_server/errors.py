"""Why calls are refused: ``HubError`` and the one table from reason to gRPC status code.

Services raise facts (``HubError(Reason.REASON_SESSION_ENDED)``); no other file names a status code.
"""

from collections.abc import Iterable
from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from hub_client.v1.options_pb2 import Reason

__all__ = ["DOMAIN", "HubError", "Reason", "reason_name", "to_status"]

DOMAIN: Final = "hub"
_PREFIX: Final = "REASON_"

_STATUS: Final[dict[int, tuple[grpc.StatusCode, str]]] = {
    Reason.REASON_INVALID_FIELD: (grpc.StatusCode.INVALID_ARGUMENT, "invalid request"),
    Reason.REASON_PAGE_TOKEN_INVALID: (
        grpc.StatusCode.INVALID_ARGUMENT,
        "page_token was altered, or belongs to another caller or filter",
    ),
    Reason.REASON_REQUEST_ID_REUSED: (
        grpc.StatusCode.INVALID_ARGUMENT,
        "request_id was used for a call with other content",
    ),
    Reason.REASON_CREDENTIAL_MISSING: (
        grpc.StatusCode.UNAUTHENTICATED,
        "metadata `authorization: Bearer <key or token>` is missing",
    ),
    Reason.REASON_CREDENTIAL_INVALID: (
        grpc.StatusCode.UNAUTHENTICATED,
        "the credential is unknown, expired or revoked",
    ),
    Reason.REASON_LOGIN_FAILED: (
        grpc.StatusCode.UNAUTHENTICATED,
        "email or password is wrong",
    ),
    Reason.REASON_LEVEL_INSUFFICIENT: (
        grpc.StatusCode.PERMISSION_DENIED,
        "this method needs level {required}",
    ),
    Reason.REASON_SCOPE_INSUFFICIENT: (
        grpc.StatusCode.PERMISSION_DENIED,
        "this needs a key with scope {required}",
    ),
    Reason.REASON_TENANT_EXISTS: (
        grpc.StatusCode.ALREADY_EXISTS,
        "a tenant of this name exists already",
    ),
    Reason.REASON_USER_DISABLED: (grpc.StatusCode.PERMISSION_DENIED, "the user is disabled"),
    Reason.REASON_FEATURE_DISABLED: (
        grpc.StatusCode.PERMISSION_DENIED,
        "{feature} is off in the user's configuration or the tenant's settings",
    ),
    Reason.REASON_NOT_FOUND: (grpc.StatusCode.NOT_FOUND, "{resource} not found"),
    Reason.REASON_EMAIL_TAKEN: (
        grpc.StatusCode.ALREADY_EXISTS,
        "a user with this email exists already",
    ),
    Reason.REASON_IMPORT_CONFLICT: (
        grpc.StatusCode.ALREADY_EXISTS,
        "{resource} {id} is here already with other content, or is not this user's",
    ),
    Reason.REASON_ETAG_MISMATCH: (
        grpc.StatusCode.ABORTED,
        "the resource changed since its etag was read",
    ),
    Reason.REASON_SEQ_MISMATCH: (
        grpc.StatusCode.ABORTED,
        "the session's last seq is {last_seq}",
    ),
    Reason.REASON_RESERVATION_SETTLED: (
        grpc.StatusCode.FAILED_PRECONDITION,
        "the reservation was settled before",
    ),
    Reason.REASON_READER_TOO_SLOW: (
        grpc.StatusCode.ABORTED,
        "the reader did not keep up; ask again from where it stopped",
    ),
    Reason.REASON_SENDER_TOO_SLOW: (
        grpc.StatusCode.ABORTED,
        "nothing was sent for too long; nothing is kept of what was",
    ),
    Reason.REASON_ANSWER_TOO_LARGE: (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "the answer has {size_bytes} bytes or more; at most {limit} are sent in one",
    ),
    Reason.REASON_SESSION_ENDED: (grpc.StatusCode.FAILED_PRECONDITION, "the session has ended"),
    Reason.REASON_SESSION_LIMIT: (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "the user may have {limit} active session(s): see {subject} in the configuration",
    ),
    Reason.REASON_TOKEN_BUDGET: (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "the user's budget of {limit} tokens has not enough left: see {subject}",
    ),
    Reason.REASON_OVERLOADED: (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "the hub has as much work as it takes on",
    ),
    Reason.REASON_DEADLINE_EXCEEDED: (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "the call took longer than its deadline",
    ),
    Reason.REASON_UNAVAILABLE: (
        grpc.StatusCode.UNAVAILABLE,
        "the hub cannot serve this now",
    ),
    Reason.REASON_PASSWORD_REFUSED: (
        grpc.StatusCode.INVALID_ARGUMENT,
        "this password is too easily guessed",
    ),
    Reason.REASON_MEMORY_STATUS: (
        grpc.StatusCode.FAILED_PRECONDITION,
        "the memory is {status}",
    ),
    Reason.REASON_MEMORY_RATE: (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "the user may be told about {limit} time(s) an hour: see {subject}",
    ),
    Reason.REASON_INTERNAL: (grpc.StatusCode.INTERNAL, "internal error"),
}

_QUOTAS: Final = (
    Reason.REASON_SESSION_LIMIT,
    Reason.REASON_TOKEN_BUDGET,
    Reason.REASON_MEMORY_RATE,
)
# The pause advised before a retry, in seconds; only where a retry may help.
_RETRY_AFTER: Final = {Reason.REASON_OVERLOADED: 0.5, Reason.REASON_UNAVAILABLE: 0.5}


class HubError(Exception):
    """A call is refused for one reason of the contract.

    ``metadata`` fills the message and travels in ErrorInfo: it must never bear secrets or text
    of users. ``violations`` are pairs of field path and what is wrong with it.
    """

    def __init__(
        self,
        reason: Reason.ValueType,
        *,
        violations: Iterable[tuple[str, str]] = (),
        retry_after: float | None = None,
        **metadata: str,
    ) -> None:
        """Remember the facts; nothing is rendered before the error meets the wire.

        ``retry_after`` is the pause advised before a retry, in seconds; None = the reason's own.
        """
        super().__init__(reason_name(reason))
        self.reason = reason
        self.retry_after = _RETRY_AFTER.get(reason) if retry_after is None else retry_after
        self.violations = tuple(violations)
        self.metadata = metadata

    @classmethod
    def invalid(cls, field: str, description: str) -> "HubError":
        """Return the error for one bad field: ``invalid("top_k", "must be at most 200")``."""
        return cls(Reason.REASON_INVALID_FIELD, violations=[(field, description)])

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code of the reason."""
        return _STATUS[self.reason][0]

    @property
    def message(self) -> str:
        """One line for people; programs read the reason."""
        text = _STATUS[self.reason][1].format_map(self.metadata)
        if not self.violations:
            return text
        return f"{text}: " + "; ".join(f"{field} {what}" for field, what in self.violations)


def reason_name(reason: Reason.ValueType) -> str:
    """Return the reason as ErrorInfo bears it: ``NOT_FOUND``, without the enum's prefix."""
    return Reason.Name(reason).removeprefix(_PREFIX)


def to_status(error: HubError, request_id: str) -> status_pb2.Status:
    """Return the wire form of an error, with every detail a client may act on."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=reason_name(error.reason),
            domain=DOMAIN,
            metadata={**error.metadata, "request_id": request_id},
        )
    ]
    if error.violations:
        details.append(_bad_request(error.violations))
    if error.reason in _QUOTAS:
        violation = error_details_pb2.QuotaFailure.Violation(
            subject=error.metadata["subject"], description=error.message
        )
        details.append(error_details_pb2.QuotaFailure(violations=[violation]))
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(
        code=code_pb2.Code.Value(error.code.name),
        message=error.message,
        details=[_packed(detail) for detail in details],
    )


def _bad_request(violations: Iterable[tuple[str, str]]) -> error_details_pb2.BadRequest:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=field, description=what)
            for field, what in violations
        ]
    )


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
