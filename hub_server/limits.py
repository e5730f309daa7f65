"""The contract's options, read from the descriptors once at start-up.

Field limits become one check function per request type; what a request may reveal in a log
becomes a list of field names. A method or field that declares too little is refused.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from hub_client.v1 import options_pb2
from hub_client.v1.options_pb2 import Access, FieldLimits, Level, Scope

Violation = tuple[str, str]
Check = Callable[[Message], Iterator[Violation]]
# One rule looks at a field's value, which is set, and says what is wrong with it.
_Rule = Callable[[Any], str | None]

_OURS: Final = "hub.v1."
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# Whether an address works only a mail to it can tell; this refuses what cannot be one.
_EMAIL: Final = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]+\.?[^@\s\x00-\x1f]+")
_LONGEST_EMAIL: Final = 254
_NUMBERS: Final = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
# Messages of others that are small whatever they hold.
_SMALL: Final = ("google.protobuf.Timestamp", "google.protobuf.Duration")


class ContractError(Exception):
    """The protos declare too little or what the hub cannot enforce; it does not start."""


def level_of(method: MethodDescriptor) -> Level.ValueType:
    """Return the level a method declares. Raises ContractError when it declares none."""
    level: Level.ValueType = method.GetOptions().Extensions[options_pb2.level]
    if level == Level.LEVEL_UNSPECIFIED:
        message = f"{method.full_name} declares no level"
        raise ContractError(message)
    return level


def scope_of(method: MethodDescriptor) -> Scope.ValueType:
    """Return the scope a service key needs for a method; UNSPECIFIED = the method needs none.

    Raises ContractError when the method does not declare whether it reads or writes.
    """
    access: Access.ValueType = method.GetOptions().Extensions[options_pb2.access]
    if access == Access.ACCESS_UNSPECIFIED:
        message = f"{method.full_name} declares no access"
        raise ContractError(message)
    level = level_of(method)
    if level in (Level.LEVEL_PUBLIC, Level.LEVEL_OPERATOR):
        return Scope.SCOPE_UNSPECIFIED
    service = method.containing_service.name.removesuffix("Service").upper()
    right = "ADMIN" if level == Level.LEVEL_ADMIN else Access.Name(access).removeprefix("ACCESS_")
    name = f"SCOPE_{service}_{right}"
    if name not in Scope.keys():  # noqa: SIM118 - no dictionary
        message = f"{method.full_name} needs {name}, which is not defined"
        raise ContractError(message)
    return Scope.Value(name)


def compile_check(descriptor: Descriptor) -> Check:
    """Return a function that yields every violation of a request's declared limits.

    Raises ContractError for a field that can grow without limit, and for limits on kinds of fields
    that are not enforced.
    """
    return _compile(descriptor, {})


def loggable_fields(descriptor: Descriptor) -> tuple[str, ...]:
    """Return the names of the scalar fields that may be logged: those not marked sensitive."""
    return tuple(
        field.name
        for field in descriptor.fields
        if not field.GetOptions().Extensions[options_pb2.sensitive]
        and field.type != FieldDescriptor.TYPE_MESSAGE
        and field.name not in ("page_token", "request_id")
    )


def _compile(descriptor: Descriptor, known: dict[str, Check]) -> Check:
    """Return the check of a message; one that can hold itself is compiled once."""
    if descriptor.full_name in known:
        return known[descriptor.full_name]
    checks: list[Check] = []

    def check(message: Message) -> Iterator[Violation]:
        for one in checks:
            yield from one(message)

    known[descriptor.full_name] = check
    checks += [_compile_field(field, known) for field in descriptor.fields]
    return check


def _compile_field(field: FieldDescriptor, known: dict[str, Check]) -> Check:
    limits: FieldLimits = field.GetOptions().Extensions[options_pb2.limits]
    _refuse_unenforced(field, limits)
    rules = list(_rules(field, limits))
    if field.is_repeated:
        return _compile_items(field, limits, rules, known)
    nested = _compile_nested(field, known)
    # Read once: what follows runs for every field of every call.
    name, has_presence, is_required = field.name, field.has_presence, limits.required

    def check(message: Message) -> Iterator[Violation]:
        value = getattr(message, name)
        if not (message.HasField(name) if has_presence else value):
            if is_required:
                yield name, "is required"
            return
        for rule in rules:
            if what := rule(value):
                yield name, what
        for inner, what in nested(value):
            yield f"{name}.{inner}", what

    return check


def _compile_items(
    field: FieldDescriptor, limits: FieldLimits, rules: list[_Rule], known: dict[str, Check]
) -> Check:
    foreign = field.message_type is not None and not _is_ours(field.message_type)
    if foreign or not limits.max_items:
        message = f"{field.full_name}: repeated fields need max_items, and messages of our own"
        raise ContractError(message)
    name, nested = field.name, _compile_nested(field, known)

    def check(message: Message) -> Iterator[Violation]:
        items = getattr(message, name)
        if limits.required and not items:
            yield name, "is required"
        if what := _at_most(len(items), limits.max_items, "items"):
            yield name, what
            return
        for place, item in enumerate(items):
            for rule in rules:
                if what := rule(item):
                    yield f"{name}[{place}]", what
            for inner, what in nested(item):
                yield f"{name}[{place}].{inner}", what

    return check


def _refuse_unenforced(field: FieldDescriptor, limits: FieldLimits) -> None:
    """Raise ContractError for a limit that no rule of such a field looks at."""
    enforced = {"required"} | ({"max_items"} if field.is_repeated else set())
    if field.type == FieldDescriptor.TYPE_STRING:
        enforced |= {"min_length", "max_length", "max_bytes", "uuid", "email", "not_blank"}
    elif field.type in (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_BYTES):
        enforced |= {"max_bytes"}
    elif field.enum_type is None:
        enforced |= {"minimum", "maximum"}
    if idle := [limit.name for limit, _ in limits.ListFields() if limit.name not in enforced]:
        message = f"{field.full_name}: {', '.join(idle)} is not enforced on such a field"
        raise ContractError(message)


def _compile_nested(field: FieldDescriptor, known: dict[str, Check]) -> Check:
    if field.message_type is not None and _is_ours(field.message_type):
        return _compile(field.message_type, known)
    return lambda _: iter(())


def _is_ours(descriptor: Descriptor) -> bool:
    return descriptor.full_name.startswith(_OURS)


def _rules(field: FieldDescriptor, limits: FieldLimits) -> Iterator[_Rule]:
    if field.type == FieldDescriptor.TYPE_STRING:
        yield from _string_rules(field, limits)
    elif field.type == FieldDescriptor.TYPE_BYTES:
        yield _bytes_rule(field, limits)
    elif field.enum_type is not None:
        yield _enum_rule(field.enum_type, is_item=field.is_repeated)
    elif field.message_type is not None:
        yield from _message_rules(field, field.message_type, limits)
    else:
        yield from _number_rules(field, limits)


def _string_rules(field: FieldDescriptor, limits: FieldLimits) -> Iterator[_Rule]:
    bounds = (limits.max_length, limits.max_bytes, limits.uuid, limits.email)
    if not any(bounds):
        message = f"{field.full_name} declares no greatest length"
        raise ContractError(message)
    yield lambda value: "must not contain the character NUL" if "\0" in value else None
    if limits.uuid:
        yield lambda value: None if _UUID.fullmatch(value) else "must be a UUID in lower case"
    if limits.email:
        yield _email_rule
    if limits.not_blank:
        yield lambda value: "must not be blank" if value.isspace() else None
    if least := limits.min_length:
        yield lambda value: f"must be at least {least} characters" if len(value) < least else None
    if most := limits.max_length:
        yield lambda value: _at_most(len(value), most, "characters")
    if size := limits.max_bytes:
        yield lambda value: _at_most(_utf8_size(value), size, "bytes")


def _bytes_rule(field: FieldDescriptor, limits: FieldLimits) -> _Rule:
    if not (most := limits.max_bytes):
        message = f"{field.full_name} declares no greatest size"
        raise ContractError(message)
    return lambda value: _at_most(len(value), most, "bytes")


def _message_rules(
    field: FieldDescriptor, kind: Descriptor, limits: FieldLimits
) -> Iterator[_Rule]:
    if most := limits.max_bytes:
        yield lambda value: _at_most(value.ByteSize(), most, "bytes")
    elif not _is_ours(kind) and kind.full_name not in _SMALL:
        message = f"{field.full_name} declares no greatest size"
        raise ContractError(message)


def _email_rule(value: str) -> str | None:
    if len(value) > _LONGEST_EMAIL or not _EMAIL.fullmatch(value):
        return f"must be an email address of at most {_LONGEST_EMAIL} characters"
    return None


def _enum_rule(enum: EnumDescriptor, *, is_item: bool) -> _Rule:
    """Refuse what is not defined; and 0, which says nothing, as an item of a list."""
    defined = {number for number in enum.values_by_number if number or not is_item}
    return lambda value: None if value in defined else "must be a defined value"


def _number_rules(field: FieldDescriptor, limits: FieldLimits) -> Iterator[_Rule]:
    if field.cpp_type in _NUMBERS:
        yield lambda value: None if math.isfinite(value) else "must be a finite number"
    if limits.HasField("minimum"):
        least = limits.minimum
        yield lambda value: f"must be at least {least:,.15g}" if value < least else None
    if limits.HasField("maximum"):
        most = limits.maximum
        yield lambda value: f"must be at most {most:,.15g}" if value > most else None


def _utf8_size(value: str) -> int:
    return len(value) if value.isascii() else len(value.encode())


def _at_most(size: int, most: int, unit: str) -> str | None:
    return f"must be at most {most:,} {unit}, not {size:,}" if size > most else None
