"""What the client makes of a failed call's status, without a hub."""

import pickle
from typing import Final

import grpc
import hypothesis.strategies as st
import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given

from hub_client import HubError, errors
from hub_client.errors import from_rpc
from hub_client.v1.options_pb2 import Reason
from hub_server.errors import HubError as Refusal
from hub_server.errors import reason_name, to_status
from tests.reasons import FACTS, REASONS

_KEY: Final = "grpc-status-details-bin"
_VIOLATIONS: Final = [("email", "is required"), ("password", "is required")]
_STATUS: Final = to_status(
    Refusal(Reason.REASON_INVALID_FIELD, violations=_VIOLATIONS), "an id"
).SerializeToString()


def _packed(*details: Message) -> bytes:
    status = status_pb2.Status(code=5, message="m")
    for detail in details:
        status.details.add().Pack(detail)
    return status.SerializeToString()


def _read(raw: bytes | str, code: grpc.StatusCode = grpc.StatusCode.NOT_FOUND) -> HubError:
    return from_rpc(code, "the message", {_KEY: raw})


@pytest.mark.parametrize("reason", REASONS, ids=reason_name)
def test_a_reason_has_a_class_of_its_own(reason: Reason.ValueType) -> None:
    """`except NotFoundError` catches NOT_FOUND and nothing else."""
    error = _read(to_status(Refusal(reason, **FACTS), "an id").SerializeToString())
    words = reason_name(reason).replace("_", " ").title().replace(" ", "")
    assert type(error) is getattr(errors, f"{words}Error")
    assert error.reason == reason_name(reason)
    assert (error.request_id, error.metadata) == ("an id", FACTS)


def test_no_two_reasons_share_a_class() -> None:
    """Every subclass of HubError stands for one reason."""
    assert len(HubError.__subclasses__()) == len(REASONS)


def test_an_error_tells_all_that_the_hub_told() -> None:
    """Code, message, reason, request id and every bad field; and no retry where none helps."""
    error = _read(_STATUS, grpc.StatusCode.INVALID_ARGUMENT)
    assert isinstance(error, errors.InvalidFieldError)
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert error.message == "the message"
    assert error.request_id == "an id"
    assert error.violations == tuple(_VIOLATIONS)
    assert error.retry_after is None
    assert str(error) == "INVALID_FIELD: the message"


def test_an_error_tells_when_to_come_back() -> None:
    """RetryInfo is read to the fraction of a second."""
    status = to_status(Refusal(Reason.REASON_OVERLOADED), "")
    assert _read(status.SerializeToString()).retry_after == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.UnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceededError),
        (grpc.StatusCode.UNIMPLEMENTED, HubError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, HubError),
    ],
)
def test_what_grpc_itself_reports_is_a_hub_error_too(
    code: grpc.StatusCode, kind: type[HubError]
) -> None:
    """Without details the code decides, as far as it means one thing only."""
    error = from_rpc(code, None, {})
    assert type(error) is kind
    assert (error.code, error.message, error.reason) == (code, code.name, "")
    assert str(error) == f"{code.name}: {code.name}"


def test_a_reason_of_a_later_contract_is_kept() -> None:
    """A client older than the hub still tells the reason, in the common class."""
    raw = _packed(error_details_pb2.ErrorInfo(reason="BRAND_NEW", domain="hub"))
    error = _read(raw)
    assert type(error) is HubError
    assert (error.reason, error.code) == ("BRAND_NEW", grpc.StatusCode.NOT_FOUND)


def test_a_reason_of_somebody_else_is_not_taken_for_the_hubs() -> None:
    """What a proxy in between calls NOT_FOUND is not the hub's NOT_FOUND."""
    metadata = {"request_id": "the proxy's", "resource": "route"}
    info = error_details_pb2.ErrorInfo(
        reason="NOT_FOUND", domain="proxy.example.org", metadata=metadata
    )
    error = _read(_packed(info))
    assert type(error) is HubError
    assert (error.reason, error.request_id, error.metadata) == ("", "", {})


def test_unknown_details_are_passed_over() -> None:
    """Details of other kinds stand in nobody's way."""
    status = status_pb2.Status.FromString(_STATUS)
    status.details.insert(0, any_pb2.Any(type_url="type.example.org/what.Ever", value=b"\xff"))
    status.details.add(type_url="")
    assert isinstance(_read(status.SerializeToString()), errors.InvalidFieldError)


def test_details_that_were_cut_still_make_a_hub_error() -> None:
    """A proxy may cut long trailers anywhere: the code and the message remain."""
    for length in range(len(_STATUS)):
        error = _read(_STATUS[:length])
        assert isinstance(error, HubError)
        assert (error.code, error.message) == (grpc.StatusCode.NOT_FOUND, "the message")


@given(st.binary(max_size=200) | st.text(max_size=20))
def test_garbage_instead_of_details_still_makes_a_hub_error(raw: bytes | str) -> None:
    """Nothing in a trailer raises anything else."""
    assert _read(raw).message == "the message"


@given(st.sampled_from(["ErrorInfo", "BadRequest", "RetryInfo"]), st.binary(max_size=60))
def test_garbage_inside_of_details_still_makes_a_hub_error(kind: str, value: bytes) -> None:
    """Also where the envelope is whole."""
    detail = any_pb2.Any(type_url=f"type.googleapis.com/google.rpc.{kind}", value=value)
    status = status_pb2.Status(details=[detail])
    assert _read(status.SerializeToString()).code == grpc.StatusCode.NOT_FOUND


def test_an_error_passes_between_processes() -> None:
    """A pool of worker processes can hand it over, with all it tells."""
    error = _read(_STATUS, grpc.StatusCode.INVALID_ARGUMENT)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)


def test_an_error_can_be_kept_in_a_set() -> None:
    """Tools that collect errors hash them; two failures are two, however alike."""
    assert len({_read(_STATUS), _read(_STATUS)}) == 2
