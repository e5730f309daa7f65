"""Every limit that the protos declare is enforced: cases are made from the descriptors."""

from dataclasses import replace
from typing import Any, Final

import grpc
import pytest
from google.protobuf import timestamp_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from hub_client.v1 import Level, RememberRequest, SearchQuery, options_pb2
from tests.contract.breaches import Case, breaches, extremes, fields_of, limits_of
from tests.contract.samples import World, sample
from tests.contract.wire import METHODS, Answer, bearer, call, method_named

_BREACHES: Final = breaches()
_LIMITED: Final = [
    method
    for method in METHODS
    if any(case.method is method and case.limit != "required" for case in _BREACHES)
]
# Texts that must be more than long: a language of 35 characters there is, a time zone of 1 or 64
# there is not. A document of 4 MiB takes a minute to embed; tests/unit tries that limit.
_CONFIGS: Final = ("UpdateUserConfig-config", "UpdateDefaultConfig-config")
_MEANT: Final[dict[str, Any]] = {
    f"{config}.preferred_language-{limit}": language
    for config in _CONFIGS
    for limit, language in (
        ("min_length", "de"),
        ("max_length", "de-Latn-DE-1996-x-goethe-1-schiller"),
    )
}
_MEANT["BatchSearch-queries-max_items"] = [SearchQuery(query="tea")] * 50
_INDEX: Final = (("Get", "Stats"), ("Check", ""), ("Rebuild", ""))
_NOT_CALLED: Final = {
    "IngestDocument-text-max_bytes",
    # They must fit each other and the user's chunks; tests/integration tries them.
    "Search-vector-max_bytes",
    "Search-embedding_model-max_length",
    "BatchSearch-queries[0].vector-max_bytes",
    "BatchSearch-queries[0].embedding_model-max_length",
    "ReembedSpace-embedding_model-max_length",
    *(f"{method}Index{what}-embedding_model-max_length" for method, what in _INDEX),
    "UploadDocument-data-max_bytes",
    *(
        f"{config}.timezone-{limit}"
        for config in _CONFIGS
        for limit in ("min_length", "max_length")
    ),
}
_EXTREMES: Final = [
    replace(case, value=_MEANT.get(str(case), case.value))
    for case in extremes()
    if str(case) not in _NOT_CALLED
]


async def _answer(channel: grpc.aio.Channel, world: World, case: Case) -> Answer:
    request = sample(case.method.name, world)
    case.apply(request)
    return await call(channel, case.method, request, bearer(world.credential(case.method)))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_a_valid_request_is_accepted(
    channel: grpc.aio.Channel, world: World, method: MethodDescriptor
) -> None:
    """Each method has a sample that breaks no limit; so it is the one bad value that is refused."""
    request = sample(method.name, world)
    answer = await call(channel, method, request, bearer(world.credential(method)))
    assert answer.code == grpc.StatusCode.OK, answer


@pytest.mark.parametrize("case", _BREACHES, ids=str)
async def test_a_value_beyond_a_limit_is_refused(
    channel: grpc.aio.Channel, world: World, case: Case
) -> None:
    """One value beyond one limit is INVALID_FIELD, and BadRequest names that field and no other."""
    answer = await _answer(channel, world, case)
    assert (answer.code, answer.reason, answer.bad_fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {case.named},
    )


@pytest.mark.parametrize("case", _EXTREMES, ids=str)
async def test_a_value_at_a_limit_is_accepted(
    channel: grpc.aio.Channel, world: World, case: Case
) -> None:
    """The limits themselves are allowed: lengths in characters, sizes in bytes, ends of ranges."""
    answer = await _answer(channel, world, case)
    assert answer.reason != "INVALID_FIELD", answer.message


def test_every_declared_limit_has_a_case() -> None:
    """No limit of any field of any request goes untried, nor do the rules that hold for all."""
    tried: dict[tuple[str, str], set[str]] = {}
    for case in _BREACHES:
        tried.setdefault((case.method.name, case.field), set()).add(case.limit)
    for method in METHODS:
        for path, field in fields_of(method.input_type):
            wanted = {limit.name for limit, _ in limits_of(field).ListFields()} | _general(field)
            field_path = ".".join(path)
            assert wanted <= tried.get((method.name, field_path), set()), (method.name, field_path)


def _general(field: FieldDescriptor) -> set[str]:
    """Return what the contract promises of every field of this type."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return {"nul"}
    if field.enum_type is not None:
        return {"undefined"}
    return {"finite"} if field.type == FieldDescriptor.TYPE_DOUBLE else set()


@pytest.mark.parametrize("method", _LIMITED, ids=lambda method: method.name)
async def test_all_bad_fields_are_named_at_once(
    channel: grpc.aio.Channel, world: World, method: MethodDescriptor
) -> None:
    """A request in which every limited field is bad is told of all of them, not of the first."""
    bad = {
        case.field: case
        for case in _BREACHES
        if case.method is method
        and case.limit not in ("struct", "required")
        and not _is_long_batch(case)
    }
    request = sample(method.name, world)
    for case in bad.values():
        case.apply(request)
    answer = await call(channel, method, request, bearer(world.credential(method)))
    assert answer.bad_fields == {case.named for case in bad.values()}


def _is_long_batch(case: Case) -> bool:
    """Of a batch that is too long, no message is looked at."""
    return isinstance(case.value, list) and isinstance(case.value[0], Message)


@pytest.mark.parametrize("raw", [b"\xff", b"\x0a\x05abc"], ids=["noise", "cut short"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_bytes_that_are_no_request_are_refused(
    channel: grpc.aio.Channel, world: World, method: MethodDescriptor, raw: bytes
) -> None:
    """What does not decode as the method's request is INVALID_FIELD like any other bad request."""
    answer = await call(channel, method, raw, bearer(world.credential(method)))
    assert (answer.code, answer.reason, answer.bad_fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"request"},
    )


@pytest.mark.parametrize("text", [b"\xc3\x28", b"\xed\xa0\x80", b"\xc0\x80"])
async def test_text_that_is_not_utf_8_is_refused(
    channel: grpc.aio.Channel, world: World, text: bytes
) -> None:
    """Bad UTF-8, a surrogate and an overlong NUL never reach Postgres."""
    raw = b"\x12" + bytes([len(text)]) + text  # session_title
    answer = await call(channel, method_named("CreateSession"), raw, bearer(world.tenant.key))
    assert (answer.reason, answer.bad_fields) == ("INVALID_FIELD", {"request"})


@pytest.mark.parametrize(
    "when",
    [
        timestamp_pb2.Timestamp(seconds=-62_135_596_801),
        timestamp_pb2.Timestamp(seconds=253_402_300_800),
        timestamp_pb2.Timestamp(seconds=2**63 - 1),
        timestamp_pb2.Timestamp(seconds=4_000_000_000, nanos=1_000_000_000),
        timestamp_pb2.Timestamp(seconds=4_000_000_000, nanos=-1),
        timestamp_pb2.Timestamp(seconds=1),
        timestamp_pb2.Timestamp(seconds=-62_135_596_800),
    ],
    ids=["year 0", "year 10000", "endless", "too many nanos", "nanos < 0", "past", "year 1"],
)
async def test_a_time_that_does_not_exist_or_is_past_is_refused(
    channel: grpc.aio.Channel, world: World, when: timestamp_pb2.Timestamp
) -> None:
    """`expires_at` lies in the future and in the years 1 to 9999."""
    request = sample("Remember", world)
    assert isinstance(request, RememberRequest)
    request.expires_at.CopyFrom(when)
    answer = await call(channel, method_named("Remember"), request, bearer(world.tenant.key))
    assert (answer.reason, answer.bad_fields) == ("INVALID_FIELD", {"expires_at"})


@pytest.mark.parametrize(
    "method",
    [
        method
        for method in METHODS
        if "user_id" in method.input_type.fields_by_name
        and method.GetOptions().Extensions[options_pb2.level] != Level.LEVEL_ADMIN
    ],
    ids=lambda method: method.name,
)
async def test_a_service_key_names_the_user(
    channel: grpc.aio.Channel, world: World, method: MethodDescriptor
) -> None:
    """A service key acts for nobody in particular: without `user_id` the call is refused.

    Unless it manages a whole tenant, of which `user_id` picks a part.
    """
    request = sample(method.name, world)
    request.ClearField("user_id")
    answer = await call(channel, method, request, bearer(world.tenant.key))
    assert (answer.reason, answer.bad_fields) == ("INVALID_FIELD", {"user_id"})
