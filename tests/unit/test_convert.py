"""Values to and from protobuf: what is stored comes back, and what cannot be stored is refused."""

import datetime as dt
import json
import math
from typing import Any

import hypothesis.strategies as st
import pytest
from google.protobuf import struct_pb2, timestamp_pb2
from hypothesis import given

from hub_client.v1 import MemorySource, MemoryType, Role
from hub_server.convert import (
    enum_from_text,
    enum_to_text,
    struct_from_pb,
    struct_to_pb,
    timestamp_from_pb,
    timestamp_to_pb,
)
from hub_server.errors import HubError, Reason

_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
_NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(_TEXTS, _JSON, min_size=1, max_size=4))
def test_a_struct_comes_back_from_json_as_it_was(value: dict[str, Any]) -> None:
    """Whatever JSON holds survives the way through Postgres and back."""
    message = struct_to_pb(json.loads(json.dumps(value)))
    assert message is not None
    assert struct_from_pb("metadata", message) == value


def test_an_empty_struct_is_an_unset_field() -> None:
    """Nothing kept is nothing sent."""
    assert struct_to_pb({}) is None
    assert struct_to_pb(None) is None
    assert struct_from_pb("metadata", struct_pb2.Struct()) == {}


def _nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"k": 1}
    for _ in range(levels - 1):
        value = {"k": value}
    return value


def test_32_levels_are_allowed_and_33_are_not() -> None:
    """Depth is limited, so that what was stored can always be read again."""
    message = struct_to_pb(_nested(32))
    assert message is not None
    assert struct_from_pb("metadata", message) == _nested(32)
    deeper = struct_to_pb(_nested(33))
    assert deeper is not None
    with pytest.raises(HubError, match="INVALID_FIELD") as caught:
        struct_from_pb("metadata", deeper)
    assert caught.value.violations == (("metadata", "must have at most 32 levels"),)


@pytest.mark.parametrize(
    "value",
    [
        struct_pb2.Value(number_value=math.nan),
        struct_pb2.Value(number_value=math.inf),
        struct_pb2.Value(string_value="\0"),
        struct_pb2.Value(),
    ],
    ids=["nan", "infinity", "nul", "not set"],
)
def test_what_json_in_postgres_cannot_hold_is_refused(value: struct_pb2.Value) -> None:
    """The field is named; the value is not repeated."""
    with pytest.raises(HubError) as caught:
        struct_from_pb("metadata", struct_pb2.Struct(fields={"a": value}))
    assert caught.value.reason == Reason.REASON_INVALID_FIELD
    assert [field for field, _ in caught.value.violations] == ["metadata"]


@given(st.datetimes(timezones=st.just(dt.UTC)))
def test_a_time_comes_back_to_the_microsecond(value: dt.datetime) -> None:
    """Times of the years 1 to 9999 survive both ways."""
    message = timestamp_to_pb(value)
    assert message is not None
    assert timestamp_from_pb("expires_at", message) == value


def test_no_time_is_an_unset_field() -> None:
    """NULL in the table is absent on the wire."""
    assert timestamp_to_pb(None) is None


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1))
def test_no_timestamp_is_a_fault_of_the_hub(seconds: int, nanos: int) -> None:
    """Whatever numbers a caller sends: a time, or INVALID_FIELD."""
    message = timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos)
    bad_fields = []
    try:
        assert 1 <= timestamp_from_pb("expires_at", message).year <= 9999
    except HubError as error:
        bad_fields = [field for field, _ in error.violations]
    assert set(bad_fields) <= {"expires_at"}


@pytest.mark.parametrize("enum", [Role, MemoryType, MemorySource])
def test_an_enum_comes_back_from_its_text(enum: Any) -> None:
    """Tables spell `ROLE_USER` as `user`, and every value has a spelling of its own."""
    texts = [enum_to_text(enum, value) for value in enum.values() if value]
    assert [enum_from_text(enum, text) for text in texts] == [v for v in enum.values() if v]
    assert enum_to_text(Role, Role.ROLE_USER) == "user"


def test_an_unspecified_enum_counts_as_the_default() -> None:
    """What a request leaves out is stored as what it counts as."""
    default = MemorySource.MEMORY_SOURCE_USER
    assert enum_to_text(MemorySource, 0, default) == "user"
    assert enum_to_text(MemorySource, MemorySource.MEMORY_SOURCE_SYSTEM, default) == "system"
