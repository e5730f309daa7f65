"""Filters on metadata: from the contract to jsonpath, which reaches Postgres as a parameter.

A filter becomes one predicate over the metadata of a document with that of a chunk laid over it.
Two weaker ones let Postgres begin with an index of either: what meets the filter meets
``of_documents`` in its document or ``of_chunks`` in itself. For each condition that holds looks at
one value, and that is the document's or the chunk's; if none looks at a value of the chunk's, the
document's metadata by itself meets all that the filter asks for, negations aside.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from hub_client.v1 import knowledge_pb2 as pb
from hub_server.errors import HubError

_DEEPEST: Final = 8
_MOST: Final = 100
_YES: Final = "true == true"
_NO: Final = "false == true"
_RANGE: Final = {"at_least": ">=", "above": ">", "at_most": "<=", "below": "<"}
_SIDES: Final = (("at_least", "above"), ("at_most", "below"))


@dataclass(frozen=True, slots=True)
class Condition:
    """What the metadata of a chunk must meet."""

    merged: str
    """Of its document's and its own: the filter itself."""
    of_documents: str
    of_chunks: str
    names: Sequence[str]
    """Of which the chunk's own has one at least, where it meets ``of_chunks``."""


def condition_of(field: str, given: pb.MetadataFilter) -> Condition:
    """Return the condition that a filter stands for. Raises INVALID_FIELD."""
    if sum(1 for _ in _conditions(field, given, 1)) > _MOST:
        raise HubError.invalid(field, f"must have at most {_MOST} conditions")
    return _compiled(field, given)


def _conditions(field: str, given: pb.MetadataFilter, depth: int) -> Iterator[str]:
    """Yield each condition, those that hold others too. Raises INVALID_FIELD for a deep one."""
    if depth > _DEEPEST:
        raise HubError.invalid(field, f"must be at most {_DEEPEST} conditions deep")
    kind = given.WhichOneof("condition")
    if kind is None:
        raise HubError.invalid(field, "must set one condition")
    yield kind
    if kind in ("all_of", "any_of", "none_of"):
        for place, inner in enumerate(getattr(given, kind).filters):
            yield from _conditions(f"{field}.{kind}.filters[{place}]", inner, depth + 1)


def _compiled(field: str, given: pb.MetadataFilter) -> Condition:
    kind = given.WhichOneof("condition")
    field = f"{field}.{kind}"
    match kind:
        case "equals":
            value = _literal(f"{field}.value", given.equals.value)
            condition = _leaf(given.equals.path, f"@ == {value}")
        case "is_in":
            values = [
                _literal(f"{field}.values[{place}]", one)
                for place, one in enumerate(given.is_in.values)
            ]
            condition = _leaf(given.is_in.path, " || ".join(f"@ == {one}" for one in values))
        case "range":
            condition = _leaf(given.range.path, _bounds(field, given.range))
        case "exists":
            condition = _leaf(given.exists.path, "")
        case "all_of":
            condition = _joined(field, given.all_of, " && ")
        case "any_of":
            condition = _joined(field, given.any_of, " || ")
        case _:
            merged = _joined(field, given.none_of, " || ").merged
            condition = Condition(f"!({merged})", _YES, _NO, ())
    return condition


def _leaf(path: Sequence[str], test: str) -> Condition:
    """Return the condition that a value at a path meets a test; no test = there is one.

    A value is a list's item as well, but not an item of a list in a list. ``exists`` makes a
    comparison of two types false, which else would be neither, and stay so when negated.
    """
    names = "".join(f".{json.dumps(name)}" for name in path)
    suffix = f' ? (@.type() != "array" && ({test}))' if test else ""
    text = f"exists(${names}{suffix})"
    return Condition(text, text, text, (path[0],))


def _joined(field: str, given: pb.MetadataFilters, sign: str) -> Condition:
    of = [_compiled(f"{field}.filters[{place}]", one) for place, one in enumerate(given.filters)]

    def join(sign: str, parts: Iterable[str]) -> str:
        return sign.join(f"({part})" for part in parts)

    return Condition(
        merged=join(sign, (one.merged for one in of)),
        of_documents=join(sign, (one.of_documents for one in of)),
        of_chunks=join(" || ", (one.of_chunks for one in of)),
        names=sorted({name for one in of for name in one.names}),
    )


def _bounds(field: str, given: pb.MetadataRange) -> str:
    bounds = {one.name: value for one, value in given.ListFields() if one.name in _RANGE}
    if not bounds:
        raise HubError.invalid(field, f"must set one of: {', '.join(_RANGE)}")
    for side in _SIDES:
        if set(side) <= bounds.keys():
            raise HubError.invalid(f"{field}.{side[1]}", f"must not be set beside {side[0]}")
    kinds = {name: value.WhichOneof("value") for name, value in bounds.items()}
    for name, kind in kinds.items():
        if kind not in ("number", "text") or kind != next(iter(kinds.values())):
            what = "must be a number or a text, and of one type with the other bound"
            raise HubError.invalid(f"{field}.{name}", what)
    return " && ".join(
        f"@ {_RANGE[name]} {_literal(f'{field}.{name}', value)}" for name, value in bounds.items()
    )


def _literal(field: str, value: pb.MetadataValue) -> str:
    match value.WhichOneof("value"):
        case "text":
            return json.dumps(value.text)
        case "number":
            return repr(value.number)
        case "flag":
            return json.dumps(value.flag)
        case _:
            raise HubError.invalid(field, "must set one value")
