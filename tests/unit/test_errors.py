"""HubError as a value; tests/contract holds its table to the protos."""

import pytest

from hub_server.errors import HubError, Reason, reason_name, to_status


def test_an_error_is_told_by_its_reason() -> None:
    """In a traceback an error shows its reason, and nothing that could be somebody's words."""
    error = HubError.invalid("password", "must be at least 8 characters")
    assert str(error) == "INVALID_FIELD"


def test_one_bad_field_is_said_shortly() -> None:
    """`invalid` is the error for one bad field."""
    error = HubError.invalid("top_k", "must be at most 200")
    assert error.reason == Reason.REASON_INVALID_FIELD
    assert error.violations == (("top_k", "must be at most 200"),)
    assert error.message == "invalid request: top_k must be at most 200"


def test_facts_fill_the_message() -> None:
    """What travels as metadata is said in the message too."""
    error = HubError(Reason.REASON_SESSION_LIMIT, limit="3", subject="max_sessions")
    assert error.message.startswith("the user may have 3 active session(s): see max_sessions")
    assert to_status(error, "").message == error.message


def test_a_message_without_its_fact_is_a_mistake() -> None:
    """Who forgets the fact of a reason learns so, instead of a caller who reads braces."""
    with pytest.raises(KeyError, match="resource"):
        _ = HubError(Reason.REASON_NOT_FOUND).message


def test_the_unspecified_reason_cannot_be_answered() -> None:
    """An error without a reason has no status code."""
    with pytest.raises(KeyError):
        to_status(HubError(Reason.REASON_UNSPECIFIED), "")


def test_every_reason_has_a_name_without_prefix() -> None:
    """ErrorInfo bears `NOT_FOUND`, not `REASON_NOT_FOUND`."""
    assert reason_name(Reason.REASON_NOT_FOUND) == "NOT_FOUND"
    assert not any(reason_name(value).startswith("REASON") for value in Reason.values())
