"""Every reason of the contract: its status code, its details, and what the protos say of it."""

import re
from typing import Final

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2

from hub_client.v1.options_pb2 import Reason
from hub_server.errors import HubError, reason_name, to_status
from tests.contract.protos import comments
from tests.reasons import FACTS, REASONS

_CODES: Final = [code.name for code in grpc.StatusCode if code.name != "OK"]

of_each_reason = pytest.mark.parametrize("reason", REASONS, ids=reason_name)


def _comment(reason: Reason.ValueType) -> str:
    return comments()[f"hub.v1.Reason.{Reason.Name(reason)}"]


def _error(reason: Reason.ValueType) -> HubError:
    return HubError(reason, **FACTS)


def _details(reason: Reason.ValueType, kind: type[Message]) -> list[bytes]:
    details = to_status(_error(reason), "an id").details
    return [one.value for one in details if one.TypeName() == kind.DESCRIPTOR.full_name]


@of_each_reason
def test_a_reason_has_the_status_code_that_its_comment_names(reason: Reason.ValueType) -> None:
    """The protos document one gRPC status code for each reason, and the hub answers with it."""
    words = re.findall(r"[A-Z][A-Z_]+", _comment(reason))
    (documented,) = {word for word in words if word in _CODES}
    assert _error(reason).code.name == documented
    assert to_status(_error(reason), "").code == code_pb2.Code.Value(documented)


@of_each_reason
def test_a_reason_renders_as_one_line(reason: Reason.ValueType) -> None:
    """Each reason has words for people, complete with its facts."""
    status = to_status(_error(reason), "an id")
    assert status.message
    assert "{" not in status.message
    assert "\n" not in status.message


@of_each_reason
def test_error_info_tells_the_reason(reason: Reason.ValueType) -> None:
    """ErrorInfo comes first, in the domain `hub`, with the request id the log also bears."""
    first = to_status(_error(reason), "an id").details[0]
    info = error_details_pb2.ErrorInfo.FromString(first.value)
    assert (info.reason, info.domain) == (Reason.Name(reason).removeprefix("REASON_"), "hub")
    assert dict(info.metadata) == {**FACTS, "request_id": "an id"}


@of_each_reason
def test_retry_info_comes_where_it_is_documented(reason: Reason.ValueType) -> None:
    """A retry is advised, with a pause, exactly where the protos say so."""
    found = _details(reason, error_details_pb2.RetryInfo)
    assert len(found) == ("RetryInfo" in _comment(reason))
    for raw in found:
        delay = error_details_pb2.RetryInfo.FromString(raw).retry_delay
        assert 0 < delay.seconds + delay.nanos / 1e9 <= 10


@of_each_reason
def test_quota_failure_comes_where_it_is_documented(reason: Reason.ValueType) -> None:
    """A limit that was reached is told as QuotaFailure exactly where the protos say so."""
    found = _details(reason, error_details_pb2.QuotaFailure)
    assert len(found) == ("QuotaFailure" in _comment(reason))


@of_each_reason
def test_a_reason_is_documented_with_an_example(reason: Reason.ValueType) -> None:
    """Who meets a reason learns from the protos when it comes, or, of a fault, where to look."""
    told = _comment(reason)
    assert "Example:" in told or reason in (
        Reason.REASON_DEADLINE_EXCEEDED,
        Reason.REASON_INTERNAL,
    )


def test_bad_request_names_every_violation() -> None:
    """BadRequest bears each field with what is wrong with it, in their order."""
    violations = [("email", "is required"), ("config.timezone", "must be an IANA time zone")]
    status = to_status(HubError(Reason.REASON_INVALID_FIELD, violations=violations), "")
    bad = error_details_pb2.BadRequest.FromString(status.details[1].value)
    assert [(one.field, one.description) for one in bad.field_violations] == violations
    assert all(field in status.message for field, _ in violations)
