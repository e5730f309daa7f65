"""Values to and from protobuf that all services share."""

import datetime as dt
import functools
import math
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import struct_pb2, timestamp_pb2

from hub_server.errors import HubError

_DEEPEST: Final = 32
_NANOS_PER_MICRO: Final = 1000
_SECONDS_PER_DAY: Final = 86_400
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def timestamp_to_pb(value: dt.datetime | None) -> timestamp_pb2.Timestamp | None:
    """Return the message, or None (which leaves a field unset) for None."""
    if value is None:
        return None
    since = value - _EPOCH
    seconds = since.days * _SECONDS_PER_DAY + since.seconds
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=since.microseconds * _NANOS_PER_MICRO)


def timestamp_from_pb(field: str, value: timestamp_pb2.Timestamp) -> dt.datetime:
    """Return the time to the microsecond. Raises INVALID_FIELD outside the years 1 to 9999."""
    try:
        return value.ToDatetime(tzinfo=dt.UTC)
    except (ValueError, OverflowError) as error:
        raise HubError.invalid(field, "must be a time of the years 1 to 9999") from error


def struct_to_pb(value: dict[str, Any] | None) -> struct_pb2.Struct | None:
    """Return the message, or None (which leaves a field unset) for nothing."""
    if not value:
        return None
    message = struct_pb2.Struct()
    _fill_struct(message, value)
    return message


def struct_from_pb(field: str, value: struct_pb2.Struct) -> dict[str, Any]:
    """Return the struct as JSON values.

    Raises INVALID_FIELD for what JSON in Postgres cannot hold: NaN and infinity, the character
    NUL, values that are not set, and more than 32 levels.
    """
    return {_text(field, key): _value(field, item, 1) for key, item in value.fields.items()}


def _fill_struct(message: struct_pb2.Struct, value: Mapping[str, Any]) -> None:
    for name, item in value.items():
        _fill_value(message.fields[name], item)


def _fill_value(message: struct_pb2.Value, value: Any) -> None:
    """Set what JSON holds. Not json_format, which takes three times as long: every hit has some."""
    match value:
        case None:
            message.null_value = struct_pb2.NULL_VALUE
        case bool():
            message.bool_value = value
        case str():
            message.string_value = value
        case dict():
            message.struct_value.SetInParent()  # or an empty one would be no value
            _fill_struct(message.struct_value, value)
        case list():
            message.list_value.SetInParent()
            for item in value:
                _fill_value(message.list_value.values.add(), item)
        case _:
            message.number_value = value


def _value(field: str, value: struct_pb2.Value, depth: int) -> Any:
    kind = value.WhichOneof("kind")
    if depth > _DEEPEST:
        raise HubError.invalid(field, f"must have at most {_DEEPEST} levels")
    match kind:
        case "string_value":
            return _text(field, value.string_value)
        case "number_value":
            return _number(field, value.number_value)
        case "bool_value":
            return value.bool_value
        case "struct_value":
            items = value.struct_value.fields.items()
            return {_text(field, key): _value(field, item, depth + 1) for key, item in items}
        case "list_value":
            return [_value(field, item, depth + 1) for item in value.list_value.values]
        case "null_value":
            return None
        case _:
            raise HubError.invalid(field, "must not hold a value that is not set")


def _text(field: str, text: str) -> str:
    if "\0" in text:
        raise HubError.invalid(field, "must not contain the character NUL")
    return text


def _number(field: str, number: float) -> float | int:
    if not math.isfinite(number):
        raise HubError.invalid(field, "must not hold NaN or infinity")
    return number


@functools.cache
def enum_to_text(enum: Any, value: int, default: int | None = None) -> str:
    """Return how tables spell an enum value: ``ROLE_USER`` is ``user``.

    0 (unspecified) counts as ``default``.
    """
    name: str = enum.Name(value or default or 0)
    return name.removeprefix(_prefix(enum)).lower()


@functools.cache
def enum_from_text(enum: Any, text: str) -> Any:
    """Return the enum value that a table spells ``text``."""
    return enum.Value(_prefix(enum) + text.upper())


def _prefix(enum: Any) -> str:
    """Return ``ROLE_``: what the contract's linter demands before each value of the enum."""
    name: str = enum.Name(0)
    return name.removesuffix("UNSPECIFIED")
