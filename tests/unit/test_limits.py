"""Limits compiled from descriptors, and contracts that declare too little to be served."""

from typing import Any

import hypothesis.strategies as st
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, field_mask_pb2, struct_pb2
from google.protobuf import timestamp_pb2 as times
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import Message
from hypothesis import given

from hub_client.v1 import CreateUserRequest, GetUserRequest, IngestDocumentRequest, options_pb2
from hub_client.v1.options_pb2 import Access, FieldLimits, Level
from hub_server.caller import Caller
from hub_server.limits import ContractError, compile_check
from hub_server.rpc import Rpc

_STRING = FieldDescriptorProto.TYPE_STRING
_MESSAGE = FieldDescriptorProto.TYPE_MESSAGE


_KNOWN = (field_mask_pb2, struct_pb2, times)


class _Servicer:
    async def Ping(self, request: Message, _: Caller) -> Message:  # noqa: N802 - an RPC
        """Answer."""
        return request


def _service(
    level: Level.ValueType = Level.LEVEL_USER,
    limits: FieldLimits | None = None,
    *,
    of_outer: FieldLimits | None = None,
    access: Access.ValueType = Access.ACCESS_READ,
    name: str = "ChatService",
    **field: Any,
) -> ServiceDescriptor:
    """Return a service of one method, whose request holds a message with one field `text`.

    Its file lives in a pool of its own, as a contract that was compiled apart.
    """
    file = FileDescriptorProto(name="ping.proto", package="hub.v1", syntax="proto3")
    file.dependency[:] = ["hub/v1/options.proto", *(module.DESCRIPTOR.name for module in _KNOWN)]
    inner = file.message_type.add(name="Inner").field.add(
        **{"name": "text", "number": 1, "label": 1, "type": _STRING, **field}
    )
    if limits is not None:
        inner.options.Extensions[options_pb2.limits].CopyFrom(limits)
    outer = file.message_type.add(name="PingRequest").field.add(
        name="inner", number=1, label=1, type=_MESSAGE, type_name=".hub.v1.Inner"
    )
    if of_outer is not None:
        outer.options.Extensions[options_pb2.limits].CopyFrom(of_outer)
    method = file.service.add(name=name).method.add(
        name="Ping", input_type=".hub.v1.PingRequest", output_type=".hub.v1.PingRequest"
    )
    if level:
        method.options.Extensions[options_pb2.level] = level
        method.options.Extensions[options_pb2.access] = access
    pool = descriptor_pool.DescriptorPool()
    for module in (descriptor_pb2, *_KNOWN, options_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName(f"hub.v1.{name}")


def _start(service: ServiceDescriptor) -> None:
    """Build the service's handler, as every start of a hub does."""
    Rpc(
        _nobody, _nothing, most_calls=1, most_streams=1, default_deadline=1, stall=1, room=1
    ).handler(service, _Servicer())


async def _nobody(authorization: str, act_as: str | None, deadline: float) -> Caller:
    raise AssertionError


async def _nothing(caller: Caller, method: str) -> None:
    raise AssertionError


def test_a_contract_that_declares_everything_is_served() -> None:
    """The contracts refused below lack one thing each: this one lacks nothing."""
    _start(_service(limits=FieldLimits(max_length=5)))


def test_a_method_without_a_level_is_refused_at_start() -> None:
    """A hub does not guess who may call a method."""
    with pytest.raises(ContractError, match=r"hub\.v1\.ChatService\.Ping declares no level"):
        _start(_service(Level.LEVEL_UNSPECIFIED, FieldLimits(max_length=5)))


@pytest.mark.parametrize("limits", [None, FieldLimits(required=True), FieldLimits(min_length=1)])
def test_a_text_without_a_greatest_length_is_refused_at_start(limits: FieldLimits | None) -> None:
    """Also one deep in a request: nothing a caller sends is unlimited."""
    with pytest.raises(ContractError, match=r"hub\.v1\.Inner\.text declares no greatest length"):
        _start(_service(limits=limits))


@pytest.mark.parametrize("kind", ["Struct", "FieldMask"])
def test_a_message_of_others_without_a_greatest_size_is_refused_at_start(kind: str) -> None:
    """A Struct is as much text as its caller likes, unless its bytes are limited."""
    field: dict[str, Any] = {"type": _MESSAGE, "type_name": f".google.protobuf.{kind}"}
    with pytest.raises(ContractError, match=r"hub\.v1\.Inner\.text declares no greatest size"):
        _start(_service(**field))
    _start(_service(limits=FieldLimits(max_bytes=9), **field))


def test_a_point_in_time_needs_no_limit() -> None:
    """A message of others that cannot grow is served as it is."""
    _start(_service(type=_MESSAGE, type_name=".google.protobuf.Timestamp"))


def test_bytes_without_a_greatest_size_are_refused_at_start() -> None:
    """They are limited as texts are."""
    field: dict[str, Any] = {"type": FieldDescriptorProto.TYPE_BYTES}
    with pytest.raises(ContractError, match=r"hub\.v1\.Inner\.text declares no greatest size"):
        _start(_service(limits=FieldLimits(required=True), **field))
    _start(_service(limits=FieldLimits(max_bytes=5), **field))


def test_a_repeated_field_without_a_greatest_number_is_refused_at_start() -> None:
    """Items are limited in number, and each by the other limits."""
    field: dict[str, Any] = {"label": FieldDescriptorProto.LABEL_REPEATED}
    with pytest.raises(ContractError, match="repeated fields need max_items"):
        _start(_service(limits=FieldLimits(max_length=5), **field))
    _start(_service(limits=FieldLimits(max_length=5, max_items=2), **field))


def test_a_method_that_does_not_say_whether_it_writes_is_refused_at_start() -> None:
    """Without an access it is unknown which scope a key needs."""
    service = _service(limits=FieldLimits(max_length=5), access=Access.ACCESS_UNSPECIFIED)
    with pytest.raises(ContractError, match=r"ChatService\.Ping declares no access"):
        _start(service)


def test_a_service_without_scopes_is_refused_at_start() -> None:
    """A new service comes with the scopes that let keys use it."""
    service = _service(limits=FieldLimits(max_length=5), name="PingService")
    with pytest.raises(ContractError, match="needs SCOPE_PING_READ, which is not defined"):
        _start(service)


@pytest.mark.parametrize(
    ("kind", "limits"),
    [
        (FieldDescriptorProto.TYPE_INT32, FieldLimits(max_length=5)),
        (FieldDescriptorProto.TYPE_INT32, FieldLimits(uuid=True)),
        (FieldDescriptorProto.TYPE_DOUBLE, FieldLimits(max_bytes=5)),
        (_STRING, FieldLimits(max_length=5, maximum=9)),
        (_STRING, FieldLimits(max_length=5, minimum=0)),
    ],
)
def test_a_limit_that_nothing_looks_at_is_refused_at_start(
    kind: FieldDescriptorProto.Type.ValueType, limits: FieldLimits
) -> None:
    """A limit that would be declared in vain, such as a length of a number, is an error."""
    with pytest.raises(ContractError, match=r"hub\.v1\.Inner\.text: .* is not enforced"):
        _start(_service(limits=limits, type=kind))


def test_a_length_of_a_message_is_refused_at_start() -> None:
    """A message has a size in bytes, not a length."""
    with pytest.raises(ContractError, match=r"PingRequest\.inner: max_length is not enforced"):
        _start(_service(limits=FieldLimits(max_length=5), of_outer=FieldLimits(max_length=5)))


def test_a_method_that_nobody_serves_is_refused_at_start() -> None:
    """A contract with more methods than the hub does not start half served."""
    rpc = Rpc(_nobody, _nothing, most_calls=1, most_streams=1, default_deadline=1, stall=1, room=1)
    with pytest.raises(AttributeError, match="Ping"):
        rpc.handler(_service(limits=FieldLimits(max_length=5)), object())


def _violations(message: Message) -> list[tuple[str, str]]:
    descriptor: Any = message.DESCRIPTOR
    return list(compile_check(descriptor)(message))


def _bad_fields(message: Message) -> list[str]:
    return [field for field, _ in _violations(message)]


def test_a_document_may_be_as_large_as_declared() -> None:
    """4 MiB of text are allowed, one byte more is not, however few characters it has."""
    request = IngestDocumentRequest(title="t", text="é" * (2 << 20))
    assert _bad_fields(request) == []
    request.text += "."
    assert _bad_fields(request) == ["text"]


def test_the_description_tells_the_limit_and_not_the_value() -> None:
    """Who reads the error learns what is allowed; what he sent is not repeated."""
    request = CreateUserRequest(email="not an address", password="secret")
    assert dict(_violations(request)) == {
        "email": "must be an email address of at most 254 characters",
        "password": "must be at least 8 characters",
    }


@given(st.uuids())
def test_every_uuid_is_a_uuid(given_id: Any) -> None:
    """Any UUID in canonical form passes, whatever its version."""
    assert _bad_fields(GetUserRequest(user_id=str(given_id))) == []


@given(st.emails().filter(lambda email: len(email.partition("@")[0]) <= 64))
def test_every_address_of_the_standard_is_an_address(email: str) -> None:
    """No email address that can exist is refused."""
    assert _bad_fields(CreateUserRequest(email=email)) == []


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_breaks_the_check(text: str) -> None:
    """A check names fields, and never fails by itself."""
    request = CreateUserRequest(email=text, password=text, display_name=text, request_id=text)
    assert set(_bad_fields(request)) <= {"email", "password", "display_name", "request_id"}
    assert ("email" in _bad_fields(request)) or "@" in text


def test_nul_is_found_where_a_length_would_allow_it() -> None:
    """Postgres stores no NUL; it is refused before Postgres is asked."""
    request = CreateUserRequest(email="a@b.org", display_name="a\0b", request_id="\0")
    assert _violations(request) == [
        ("display_name", "must not contain the character NUL"),
        ("request_id", "must not contain the character NUL"),
    ]
