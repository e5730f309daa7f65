"""What every method and field of the contract declares, read from the descriptors."""

import re
from collections.abc import Iterator
from typing import Final

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from hub_client.v1 import options_pb2
from hub_client.v1.options_pb2 import Access, Level, Reason
from hub_server.limits import loggable_fields
from tests.contract.breaches import fields_of, limits_of
from tests.contract.protos import comments
from tests.contract.wire import METHODS, SERVICES

# Texts that machines make for machines, and that nobody's words get into.
_MACHINE_TEXTS: Final = {
    "embedding_model",
    "etag",
    "id",  # in a context that is exported
    "event_type",
    "media_type",
    "target_type",
    "superseded_by",
    "table",
    "kind",
    "error",  # why a document failed, in the hub's words
    "model_name",
    "next_page_token",
    "page_token",
    "preferred_language",
    "sha256",  # of an export
    "timezone",
}
_PUBLIC: Final = ("Login", "RefreshToken", "ConfirmPasswordReset")
# A reset is shown once: a retry that got the first answer would get no token.
_SHOWN_ONCE: Final = ("CreatePasswordReset",)
_WITHOUT_RESOURCE: Final = (
    "DeleteDocument",
    "DeleteMemory",
    "WatchSession",  # its answers are events
    "RefreshToken",
    "Logout",
    "RevokeLogin",
    "IntrospectToken",
    "ChangePassword",
    "CreatePasswordReset",
    "ConfirmPasswordReset",
)
_CREATING: Final = (
    *("Create", "Add", "Append", "BatchAppend", "BatchRemember", "Fork", "Reserve", "Ingest"),
    "Remember",
    "Upload",
)
_READING: Final = ("Watch", "Check", "WhoAmI", "Introspect", "Export")

of_each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def _messages() -> dict[str, Descriptor]:
    """Return every message of the contract that a call can carry, by name."""
    found: dict[str, Descriptor] = {}
    waiting = [half for method in METHODS for half in (method.input_type, method.output_type)]
    while waiting:
        message = waiting.pop()
        if message.full_name not in found and message.full_name.startswith("hub.v1."):
            found[message.full_name] = message
            waiting += [field.message_type for field in message.fields if field.message_type]
    return found


def _fields() -> Iterator[FieldDescriptor]:
    for message in _messages().values():
        yield from message.fields


def test_there_are_four_services() -> None:
    """The tests of this folder look at the whole contract."""
    assert {service.full_name for service in SERVICES} == {
        "hub.v1.IdentityService",
        "hub.v1.ChatService",
        "hub.v1.MemoryService",
        "hub.v1.KnowledgeService",
    }
    assert len(METHODS) == 96


@of_each_method
def test_a_method_declares_its_level(method: MethodDescriptor) -> None:
    """No method leaves it open who may call it; for everybody are those that make tokens."""
    level = method.GetOptions().Extensions[options_pb2.level]
    assert level != Level.LEVEL_UNSPECIFIED
    assert (level == Level.LEVEL_PUBLIC) == (method.name in _PUBLIC)


@of_each_method
def test_a_method_declares_whether_it_writes(method: MethodDescriptor) -> None:
    """A name tells the same: what gets, lists, looks for or tells reads, all else writes."""
    access = method.GetOptions().Extensions[options_pb2.access]
    reads = method.name.startswith(
        ("Build", "Get", "List", "Recall", "Search", "BatchSearch", *_READING)
    )
    assert access == (Access.ACCESS_READ if reads else Access.ACCESS_WRITE)


def _is_text(field: FieldDescriptor) -> bool:
    """Tell whether a field can bear somebody's words.

    The rule: a string, bytes or Struct does, unless it is an id, or one of `_MACHINE_TEXTS`.
    """
    if field.name.endswith(("_id", "_ids")) or field.name in _MACHINE_TEXTS:
        return False
    if field.message_type is not None:
        return field.message_type.full_name == "google.protobuf.Struct"
    return field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


@pytest.mark.parametrize("field", list(_fields()), ids=lambda field: field.full_name)
def test_a_field_that_bears_words_is_sensitive(field: FieldDescriptor) -> None:
    """A text, in requests and in answers, is marked so that it is never logged."""
    assert field.GetOptions().Extensions[options_pb2.sensitive] == _is_text(field)


@of_each_method
def test_nothing_sensitive_may_be_logged(method: MethodDescriptor) -> None:
    """What the log may bear of a request are ids, numbers and enums, never words or tokens."""
    fields = method.input_type.fields_by_name
    for name in loggable_fields(method.input_type):
        assert not _is_text(fields[name])
        assert not name.endswith("_token")
        assert fields[name].message_type is None


@of_each_method
def test_every_text_of_a_request_has_a_greatest_size(method: MethodDescriptor) -> None:
    """No field of a request can grow without limit."""
    for _, field in fields_of(method.input_type):
        limits = limits_of(field)
        if field.type == FieldDescriptor.TYPE_STRING:
            assert limits.max_length or limits.max_bytes or limits.uuid or limits.email, field.name
        if field.type == FieldDescriptor.TYPE_BYTES:
            assert limits.max_bytes, field.name
        if field.message_type and field.message_type.name in ("Struct", "FieldMask"):
            assert limits.max_bytes, field.name
        assert not field.is_repeated or limits.max_items, field.name


@of_each_method
def test_every_call_that_adds_something_can_be_retried(method: MethodDescriptor) -> None:
    """Each create, append, ingest and remember takes a `request_id`, and no other call does."""
    takes_one = "request_id" in method.input_type.fields_by_name
    adds = method.name.startswith(_CREATING) and method.name not in _SHOWN_ONCE
    assert takes_one == adds


@of_each_method
def test_a_request_and_a_response_are_their_own_messages(method: MethodDescriptor) -> None:
    """Each method can change without another: its messages bear its name."""
    assert method.input_type.name == f"{method.name}Request"
    assert method.output_type.name == f"{method.name}Response"
    assert method.client_streaming == method.name.startswith(("Upload", "Import"))
    assert method.server_streaming == method.name.startswith(("Watch", "Export"))


@of_each_method
def test_a_response_bears_its_resource_under_its_own_name(method: MethodDescriptor) -> None:
    """`user`, `session`, …, in the plural in lists; results of searches in `hits`."""
    resources = [
        field
        for field in method.output_type.fields
        if _is_ours(field) and field.containing_oneof is None
    ]
    assert len(resources) == (method.name not in _WITHOUT_RESOURCE)
    for field in resources:
        assert field.message_type is not None
        kind = re.sub(r"(?<!^)(?=[A-Z])", "_", field.message_type.name).lower()
        if method.name in ("Search", "SearchMessages", "Recall"):
            assert (field.name, field.is_repeated) == ("hits", True)
        elif method.name.startswith(("List", "Batch")):
            assert field.is_repeated
            assert field.name == re.sub("([^aeiou])ys$", r"\1ies", f"{kind}s")
        else:
            # The configuration of a user is `config`: within the call, whose is plain.
            assert (field.name, field.is_repeated) == (kind.removeprefix("user_"), False)


def _is_ours(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.full_name.startswith("hub.v1.")


@of_each_method
def test_a_list_has_pages(method: MethodDescriptor) -> None:
    """What can be long is paged: `page_size`, `page_token` and `next_page_token`, or `top_k`."""
    asked, answered = method.input_type.fields_by_name, method.output_type.fields_by_name
    is_as_long_as_asked = method.name.startswith("Batch")
    is_long = not is_as_long_as_asked and any(
        field.is_repeated and field.message_type for field in method.output_type.fields
    )
    is_list = method.name.startswith("List")
    assert is_long == (is_list or "top_k" in asked)
    assert is_list == ("next_page_token" in answered)
    assert is_list == ({"page_size", "page_token"} <= set(asked))


@of_each_method
def test_the_errors_a_method_names_exist(method: MethodDescriptor) -> None:
    """`Errors include:` names reasons of the contract, so that clients can match them."""
    told = comments()[method.full_name].partition("Errors include:")[2]
    named = re.findall(r"[A-Z]{2,}(?:_[A-Z]+)+", told)
    assert {f"REASON_{name}" for name in named} <= set(Reason.keys())
