"""Rows as records of an export, and back. A field bears the name of its column."""

import datetime as dt
import functools
from typing import Any, Final

from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.unknown_fields import UnknownFieldSet

from hub_client.v1 import export_pb2 as pb
from hub_client.v1 import options_pb2
from hub_server.convert import (
    enum_from_text,
    enum_to_text,
    struct_from_pb,
    timestamp_from_pb,
    timestamp_to_pb,
)
from hub_server.errors import HubError
from hub_server.rows import Row

_DEEPEST: Final = 128  # more than any struct the hub takes in
_NANOS_PER_MICRO: Final = 1000
_AS_LISTS: Final = (pb.ExportedContextEntry.DESCRIPTOR,)  # kept without names: there are hundreds


def record_of(kind: str, row: Row) -> pb.ExportRecord:
    """Return a row of a kind as a record."""
    record = pb.ExportRecord()
    told: Any = getattr(record, kind)
    told.SetInParent()
    _fill(told, row)
    return record


def _fill(told: Any, row: Row) -> None:
    for field in told.DESCRIPTOR.fields:
        if (value := row[field.name]) is not None:
            _set(told, field, value)


def _set(told: Any, field: FieldDescriptor, value: Any) -> None:
    if isinstance(value, dt.datetime):
        getattr(told, field.name).CopyFrom(timestamp_to_pb(value))
    elif field.is_repeated and field.message_type is not None:
        names = [inner.name for inner in field.message_type.fields]
        for one in value:
            row = one if isinstance(one, dict) else dict(zip(names, one, strict=True))
            _fill(getattr(told, field.name).add(), row)
    elif field.is_repeated:
        getattr(told, field.name).extend(value)
    elif field.message_type is not None:
        struct = getattr(told, field.name)
        struct.SetInParent()  # nothing kept is not the same as an empty struct
        json_format.ParseDict(value, struct, max_recursion_depth=_DEEPEST)
    elif field.enum_type is not None:
        setattr(told, field.name, enum_from_text(_enum(field.enum_type), value))
    else:
        setattr(told, field.name, value)


def row_of(record: pb.ExportRecord) -> tuple[str, Row]:
    """Return the kind of a record and the row it tells.

    Raises INVALID_FIELD for what this hub does not know, or could not tell again as it is.
    """
    kind = record.WhichOneof("record")
    if kind is None or len(UnknownFieldSet(record)):
        raise HubError.invalid("export_record", "must be of a kind this hub knows")
    return kind, _row(f"export_record.{kind}", getattr(record, kind))


def _row(path: str, told: Any) -> Row:
    if len(UnknownFieldSet(told)):
        raise HubError.invalid(path, "must have no fields but those this hub knows")
    fields = told.DESCRIPTOR.fields
    return {field.name: _value(f"{path}.{field.name}", told, field) for field in fields}


def _value(path: str, told: Any, field: FieldDescriptor) -> Any:
    """Return what a field holds, None for what is not told: unset, no id, no bytes."""
    value = getattr(told, field.name)
    if field.has_presence and not told.HasField(field.name):
        return None
    if field.is_repeated:
        return _items(path, value, field)
    if isinstance(value, timestamp_pb2.Timestamp):
        if value.nanos % _NANOS_PER_MICRO:
            raise HubError.invalid(path, "must be a time in microseconds")
        return timestamp_from_pb(path, value)
    if isinstance(value, struct_pb2.Struct):
        return struct_from_pb(path, value)
    if field.enum_type is not None:
        return enum_to_text(_enum(field.enum_type), value)
    is_absent = not value and (isinstance(value, bytes) or field.name in _ids(told.DESCRIPTOR))
    return None if is_absent else value


def _items(path: str, items: Any, field: FieldDescriptor) -> Any:
    if field.message_type is None:
        return list(items)
    rows = [_row(f"{path}[{place}]", item) for place, item in enumerate(items)]
    return [list(row.values()) for row in rows] if field.message_type in _AS_LISTS else rows


@functools.cache
def _ids(descriptor: Descriptor) -> frozenset[str]:
    """Return the fields that hold ids."""
    options = {field.name: field.GetOptions() for field in descriptor.fields}
    return frozenset(
        name for name, option in options.items() if option.Extensions[options_pb2.limits].uuid
    )


@functools.cache
def _enum(descriptor: Any) -> EnumTypeWrapper:
    return EnumTypeWrapper(descriptor)
