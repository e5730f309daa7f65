"""Rows as records of an export, and back. A field bears the name of its column."""

import datetime as dt
import functools
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from hub_client.v1 import export_pb2 as pb
from hub_server.convert import enum_from_text, timestamp_to_pb
from hub_server.rows import Row

_DEEPEST: Final = 128  # more than any struct the hub takes in


def record_of(kind: str, row: Row) -> pb.ExportRecord:
    """Return a row of a kind as a record."""
    record = pb.ExportRecord()
    told: Any = getattr(record, kind)
    told.SetInParent()
    for field in told.DESCRIPTOR.fields:
        if (value := row[field.name]) is not None:
            _set(told, field, value)
    return record


def _set(told: Any, field: FieldDescriptor, value: Any) -> None:
    if isinstance(value, dt.datetime):
        getattr(told, field.name).CopyFrom(timestamp_to_pb(value))
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


@functools.cache
def _enum(descriptor: Any) -> EnumTypeWrapper:
    return EnumTypeWrapper(descriptor)
