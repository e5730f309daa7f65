"""What is marked sensitive is in no log line and in no error, whether a call succeeds or not."""

import uuid
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from structlog.testing import capture_logs

from hub_client.v1 import options_pb2
from tests.contract.breaches import fields_of, limits_of
from tests.contract.samples import World, sample
from tests.contract.wire import METHODS, Answer, bearer, call, path_of
from tests.integration.test_database import until

of_each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def _mark(request: Message, method: MethodDescriptor, mark: str, *, spoil: bool) -> None:
    """Write the mark into all sensitive fields of a request; with `spoil`, break a limit too."""
    for path, field in fields_of(method.input_type):
        parent, (*above, name) = request, path
        for one in above:
            inner = getattr(parent, one.removesuffix("[0]"))
            parent = inner[0] if one.endswith("[0]") else inner
        if field.GetOptions().Extensions[options_pb2.sensitive]:
            _write(parent, name, _text(field, mark) + ("\0" if spoil else ""))


def _write(request: Any, name: str, text: str) -> None:
    field = request.DESCRIPTOR.fields_by_name[name]
    if field.message_type is None:
        setattr(request, name, text.encode() if field.type == field.TYPE_BYTES else text)
    else:
        getattr(request, name).update({text: text})


def _text(field: FieldDescriptor, mark: str) -> str:
    return f"{mark}@example.org" if limits_of(field).email else mark


def _said(answer: Answer) -> str:
    """Return all that a refusal says; an answer to a call that succeeded may bear the words."""
    return "" if answer.code == grpc.StatusCode.OK else repr((answer.message, answer.trailers))


@pytest.mark.parametrize("spoil", [False, True], ids=["valid", "refused"])
@of_each_method
async def test_words_and_secrets_reach_neither_log_nor_error(
    channel: grpc.aio.Channel, world: World, method: MethodDescriptor, *, spoil: bool
) -> None:
    """The hub logs one line of each call: its ids, but none of its words and no credential."""
    mark = f"marked-{uuid.uuid4().hex}"
    request = sample(method.name, world)
    _mark(request, method, mark, spoil=spoil)
    with capture_logs() as lines:
        answer = await call(channel, method, request, bearer(world.credential(method)))
        await until(lambda: any(line.get("method") == path_of(method) for line in lines))
    (line,) = (line for line in lines if line.get("method") == path_of(method))
    assert line["request_id"] == answer.trailers["x-request-id"]
    key = world.credential(method)
    if key != world.operator_key:  # who has no tenant, and may ask about any
        assert line["tenant_id"] == world.tenant.tenant_id
    for secret in (mark, key, key[len("hub_sk_") :]):
        assert secret not in repr(lines)
        assert secret not in _said(answer)


async def test_a_fault_of_the_hub_tells_nothing_but_where_to_look(
    channel: grpc.aio.Channel, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unforeseen error is INTERNAL without a word of it; its log line names the place only."""
    mark = f"marked-{uuid.uuid4().hex}"

    def fail(*_: object) -> None:
        raise ZeroDivisionError(mark)

    monkeypatch.setattr("hub_server.identity.service.email_key", fail)
    (method,) = (method for method in METHODS if method.name == "CreateUser")
    request = sample(method.name, world)
    with capture_logs() as lines:
        answer = await call(channel, method, request, bearer(world.tenant.key))
    assert (answer.code, answer.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert answer.message == "internal error"
    (line,) = (line for line in lines if line["request_id"] == answer.info.metadata["request_id"])
    assert any("ZeroDivisionError" in cause for cause in line["cause"])
    assert mark not in repr((lines, answer))
