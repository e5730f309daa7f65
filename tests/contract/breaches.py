"""For each field of a request, values that its declared limits forbid, and values just allowed."""

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import field_mask_pb2, struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from hub_client.v1 import (
    MetadataEquals,
    MetadataFilter,
    MetadataFilters,
    MetadataValue,
    options_pb2,
)
from hub_client.v1.options_pb2 import FieldLimits
from tests.contract.wire import METHODS

_FIRST: Final = "[0]"
UNSET: Final = object()
"""Stands for a field that is not set at all."""

_UUID: Final = "0190a6d0-3c1e-7a10-9c55-2f4b6d7e8f90"
_NOT_UUIDS: Final = ("x", _UUID.upper(), _UUID.replace("-", ""), f"{{{_UUID}}}", f"{_UUID}\n")
_NOT_EMAILS: Final = (
    "ada", "@", "ada@", "@example.org", "a@b@c.org", "a da@example.org", "ada@example.org\n",
    "a" * 65 + "@example.org", "ada@" + "e" * 247 + ".org",
)  # fmt: skip
_LONGEST_EMAIL: Final = "a" * 64 + "@" + ("e" * 61 + ".") * 3 + "org"
VECTOR: Final = struct.pack("<f", 1)
"""A vector of one dimension."""
_REQUIRED: Final = {FieldDescriptor.TYPE_STRING: "x", FieldDescriptor.TYPE_BYTES: VECTOR}
_FLOATS: Final = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)


@dataclass(frozen=True)
class Case:
    """One field of one method's request, a limit, and a value on one side of it."""

    method: MethodDescriptor
    path: tuple[str, ...]
    limit: str
    value: Any

    @property
    def field(self) -> str:
        """The path of the field as BadRequest spells it."""
        return ".".join(self.path)

    @property
    def named(self) -> str:
        """What BadRequest names: the field, or its first item when that is what is wrong."""
        is_item = isinstance(self.value, list) and self.limit != "max_items"
        return f"{self.field}[0]" if is_item else self.field

    def apply(self, request: Message) -> None:
        """Put the value in its place."""
        parent = request
        for name in self.path[:-1]:
            inner = getattr(parent, name.removesuffix(_FIRST))
            parent = inner[0] if name.endswith(_FIRST) else inner
        put(parent, self.path[-1], self.value)

    def __str__(self) -> str:
        """Return the name of the case in reports."""
        return f"{self.method.name}-{self.field}-{self.limit}"


def put(parent: Any, name: str, value: Any) -> None:
    """Put a value into a field; UNSET clears it."""
    if value is UNSET:
        parent.ClearField(name)
    elif isinstance(value, list):
        parent.ClearField(name)
        getattr(parent, name).extend(value)
    elif isinstance(value, Message):
        getattr(parent, name).CopyFrom(value)
    else:
        setattr(parent, name, value)


def limits_of(field: FieldDescriptor) -> FieldLimits:
    """Return the limits a field declares."""
    limits: FieldLimits = field.GetOptions().Extensions[options_pb2.limits]
    return limits


def fields_of(
    descriptor: Descriptor, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldDescriptor]]:
    """Yield every field of a request, and of the hub's messages within it, with its path.

    Filters hold filters, without end, and are looked at by tests of their own.
    Of a record of an export only what an import begins with: see unit/test_transfer.
    """
    for field in descriptor.fields:
        if descriptor.name == "ExportRecord" and field.name != "user":
            continue
        path = (*above, field.name)
        yield path, field
        inner = field.message_type
        if inner is None or inner.name == "MetadataFilter":
            continue
        if inner.file.package == descriptor.file.package:
            yield from fields_of(
                inner, (*above, field.name + _FIRST) if field.is_repeated else path
            )


def breaches() -> list[Case]:
    """Return every value that is to be refused, for all methods."""
    return _cases(bad_values)


def extremes() -> list[Case]:
    """Return values that lie exactly at a limit, for all methods."""
    return _cases(_extreme_values)


def _cases(values: Callable[[FieldDescriptor], Iterator[tuple[str, Any]]]) -> list[Case]:
    return [
        Case(method, path, limit, value)
        for method in METHODS
        for path, field in fields_of(method.input_type)
        for limit, value in values(field)
    ]


def bad_values(field: FieldDescriptor) -> Iterator[tuple[str, Any]]:
    """Yield limits of a field, with values that they forbid."""
    limits = limits_of(field)
    if limits.required:
        yield "required", UNSET
    if field.is_repeated:
        yield "max_items", [_item(field)] * (limits.max_items + 1)
        if field.enum_type is not None:
            yield from (("undefined", [number]) for number in (0, 99, -1, 2**31 - 1))
        if field.type == FieldDescriptor.TYPE_STRING:
            yield from ((limit, [value]) for limit, value in _bad_strings(limits))
    elif field.type == FieldDescriptor.TYPE_STRING:
        yield from _bad_strings(limits)
    elif field.type == FieldDescriptor.TYPE_BYTES:
        yield "max_bytes", bytes(limits.max_bytes + 1)
    elif field.enum_type is not None:
        yield from (("undefined", number) for number in (99, -1, 2**31 - 1))
    elif field.message_type is not None:
        yield from _bad_messages(field.message_type.full_name, limits)
    elif field.type != FieldDescriptor.TYPE_BOOL:
        yield from _bad_numbers(field, limits)


def _item(field: FieldDescriptor) -> Any:
    """Return a valid item of a repeated field."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return _UUID
    if field.message_type is None:
        return 1
    item = GetMessageClass(field.message_type)()
    for inner in field.message_type.fields:
        if limits_of(inner).required:
            setattr(item, inner.name, _REQUIRED.get(inner.type, 1))
    return item


def _bad_strings(limits: FieldLimits) -> Iterator[tuple[str, Any]]:
    yield "nul", "a\0" + "b" * limits.min_length
    if limits.uuid:
        yield from (("uuid", value) for value in _NOT_UUIDS)
    if limits.email:
        yield from (("email", value) for value in _NOT_EMAILS)
    if limits.not_blank:
        yield "not_blank", " \t\n\N{IDEOGRAPHIC SPACE}"
    if limits.min_length:
        yield "min_length", "\N{GRINNING FACE}" * (limits.min_length - 1)
    if limits.max_length:
        yield "max_length", "x" * (limits.max_length + 1)
    if limits.max_bytes:
        # One byte too many, and few characters.
        yield "max_bytes", "é" * (limits.max_bytes // 2) + "x" * (limits.max_bytes % 2 + 1)


def _bad_numbers(field: FieldDescriptor, limits: FieldLimits) -> Iterator[tuple[str, Any]]:
    is_float = field.cpp_type in _FLOATS
    if is_float:
        yield from (("finite", value) for value in (math.nan, math.inf, -math.inf))
    if limits.HasField("minimum"):
        yield "minimum", _next(limits.minimum, -math.inf, is_float=is_float)
    if limits.HasField("maximum"):
        yield "maximum", _next(limits.maximum, math.inf, is_float=is_float)


def _next(value: float, towards: float, *, is_float: bool) -> float | int:
    """Return the nearest value in a direction that the field can hold."""
    if is_float:
        return math.nextafter(value, towards)
    return int(value) + (1 if towards > value else -1)


def _bad_messages(name: str, limits: FieldLimits) -> Iterator[tuple[str, Any]]:
    if name == "google.protobuf.Struct":
        yield "max_bytes", struct_of(limits.max_bytes + 1)
        yield from (("struct", value) for value in _bad_structs())
    elif name == "hub.v1.MetadataFilter":
        yield "max_bytes", filter_of(limits.max_bytes + 1)
    elif name == "google.protobuf.FieldMask":
        yield "max_bytes", field_mask_pb2.FieldMask(paths=["x" * limits.max_bytes])


def _bad_structs() -> Iterator[struct_pb2.Struct]:
    """Yield what JSON in Postgres cannot hold, or what is nested too deep."""
    Value = struct_pb2.Value  # noqa: N806 - a class
    for value in (
        Value(number_value=math.nan),
        Value(number_value=math.inf),
        Value(number_value=-math.inf),
        Value(string_value="a\0b"),
        Value(),
    ):
        inner = struct_pb2.Struct(fields={"k": value})
        items = struct_pb2.ListValue(values=[value])
        yield inner
        yield struct_pb2.Struct(fields={"k": Value(struct_value=inner)})
        yield struct_pb2.Struct(fields={"k": Value(list_value=items)})
    yield struct_pb2.Struct(fields={"a\0b": Value(null_value=struct_pb2.NULL_VALUE)})
    yield nested_structs(33)
    yield nested_lists(33)


def _extreme_values(field: FieldDescriptor) -> Iterator[tuple[str, Any]]:
    limits = limits_of(field)
    if limits.max_items:
        yield "max_items", [_item(field)] * limits.max_items
    if limits.email:
        yield "email", _LONGEST_EMAIL
    if limits.min_length:
        yield "min_length", "x" * limits.min_length
    if limits.max_length:
        # In characters, not bytes.
        yield "max_length", "\N{GRINNING FACE}" * limits.max_length
    if limits.HasField("minimum"):
        yield "minimum", _typed(field, limits.minimum)
    if limits.HasField("maximum"):
        yield "maximum", _typed(field, limits.maximum)
    if field.type == FieldDescriptor.TYPE_BYTES:
        yield "max_bytes", VECTOR * (limits.max_bytes // len(VECTOR))
    elif limits.max_bytes and field.message_type is None:
        yield "max_bytes", "é" * (limits.max_bytes // 2) + "x" * (limits.max_bytes % 2)
    if field.message_type is not None and field.message_type.name == "Struct":
        yield "max_bytes", struct_of(limits.max_bytes)
        yield "struct", nested_structs(32)
        yield "struct", nested_lists(32)


def _typed(field: FieldDescriptor, value: float) -> float | int:
    return value if field.cpp_type in _FLOATS else int(value)


def struct_of(size: int) -> struct_pb2.Struct:
    """Return a struct that takes exactly so many bytes."""
    struct = struct_pb2.Struct()
    length = size
    while True:
        struct.Clear()
        struct.update({"k": "x" * length})
        if struct.ByteSize() == size:
            return struct
        length -= struct.ByteSize() - size


def filter_of(size: int) -> MetadataFilter:
    """Return a filter that takes at least so many bytes."""
    value = MetadataValue(text="x" * 2000)
    return MetadataFilter(
        all_of=MetadataFilters(
            filters=[MetadataFilter(equals=MetadataEquals(path=["k"], value=value))]
            * (size // 2000 + 1)
        )
    )


def nested_structs(levels: int) -> struct_pb2.Struct:
    """Return a struct in a struct in a struct … that deep."""
    struct = struct_pb2.Struct(fields={"k": struct_pb2.Value(bool_value=True)})
    for _ in range(levels - 1):
        struct = struct_pb2.Struct(fields={"k": struct_pb2.Value(struct_value=struct)})
    return struct


def nested_lists(levels: int) -> struct_pb2.Struct:
    """Return a struct that holds a list in a list in a list … that deep."""
    value = struct_pb2.Value(bool_value=True)
    for _ in range(levels - 1):
        value = struct_pb2.Value(list_value=struct_pb2.ListValue(values=[value]))
    return struct_pb2.Struct(fields={"k": value})
