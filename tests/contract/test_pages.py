"""Pages of every list: tokens that nobody else can use, sizes, and lists that grow meanwhile."""

import asyncio
import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from hub_client.v1 import (
    AppendMessageRequest,
    MemoryType,
    MessageOrder,
    RememberRequest,
    Role,
    User,
    options_pb2,
)
from hub_client.v1.options_pb2 import Level
from hub_server.caller import Caller
from hub_server.identity.access_repository import AccessRepository
from hub_server.identity.secrets import SERVICE_KEY, USER_TOKEN, Secret
from tests.contract.credentials import issue
from tests.contract.wire import METHODS, Answer, bearer, call, method_named
from tests.support import Hub, Tenant

_ROWS: Final = 3
# Tenants are listed to operators, and are as many as tests have made: see test_tenants.
_LISTS: Final = [
    method for method in METHODS if method.name.startswith("List") and method.name != "ListTenants"
]
_OF_A_USER: Final = [method for method in _LISTS if "user_id" in method.input_type.fields_by_name]
_TOGETHER: Final = 64
_REFUSED: Final = (
    "PAGE_TOKEN_INVALID",
    "page_token was altered, or belongs to another caller or filter",
)

_RETRIEVED: Final = """
    INSERT INTO retrievals (tenant_id, retrieval_id, rank, session_id, user_id, chunk_id, query,
                            score, embedding_model)
    VALUES (%s, gen_random_uuid(), %s, %s, %s, gen_random_uuid(), 'tea', 1, 'model')
"""
_CHUNKS: Final = """
    INSERT INTO chunks (tenant_id, chunk_id, document_id, user_id, chunk_index, content,
                        token_count, embedding, embedding_model, metadata)
    VALUES (%s, gen_random_uuid(), %s, %s, %s, 'tea', 1, '', 'model', '{}')
"""

of_each_list = pytest.mark.parametrize("method", _LISTS, ids=lambda method: method.name)
of_each_list_of_a_user = pytest.mark.parametrize(
    "method", _OF_A_USER, ids=lambda method: method.name
)


@dataclass(frozen=True)
class Lists:
    """A tenant in which every list has three rows, and what each list asks for."""

    tenant: Tenant
    user: User
    session_id: str
    document_id: str = ""
    other_key: str = ""

    def asked(self, method: MethodDescriptor) -> Mapping[str, str]:
        """Return the filter of a list."""
        known = {
            "user_id": self.user.user_id,
            "session_id": self.session_id,
            "document_id": self.document_id,
            "event_type": "user_created",
        }
        return {name: known[name] for name in known if name in method.input_type.fields_by_name}


@pytest.fixture(scope="module")
async def lists(hub: Hub) -> Lists:
    """Three of everything, of one user; his newest document has one chunk, and two are added."""
    tenant = await hub.new_tenant()
    user, *_ = [await tenant.new_user() for _ in range(_ROWS)]
    session, *_ = [await tenant.new_session(user) for _ in range(_ROWS)]
    client = tenant.client
    documents: list[str] = []
    for number in range(_ROWS):
        await client.chat.append_message(
            AppendMessageRequest(session_id=session.session_id, role=Role.ROLE_USER)
        )
        await client.memory.remember(
            RememberRequest(
                user_id=user.user_id,
                memory_type=MemoryType.MEMORY_TYPE_FACT,
                memory_content=f"Fact {number}",
            )
        )
        document = await tenant.ingest(user, f"{number}", "Tea.")
        documents = [document.document_id, *documents]
        hub.sql(_RETRIEVED, tenant.tenant_id, number, session.session_id, user.user_id)
    for number in range(1, _ROWS):
        hub.sql(_CHUNKS, tenant.tenant_id, documents[0], user.user_id, number)
    caller = Caller.hub(tenant.tenant_id)
    async with hub.database.transaction(caller) as connection:
        for _ in range(_ROWS):
            await AccessRepository(connection, caller).add_credential(
                "user_token",
                Secret.new(USER_TOKEN).hash,
                user_id=user.user_id,
                refresh_expires_at=dt.datetime(2100, 1, 1, tzinfo=dt.UTC),
            )
    other_key, _ = [await issue(tenant, SERVICE_KEY) for _ in range(_ROWS - 1)]
    return Lists(tenant, user, session.session_id, documents[0], other_key)


class Lister:
    """Asks for pages over a bare channel."""

    def __init__(self, channel: grpc.aio.Channel, lists: Lists) -> None:
        self._channel = channel
        self.lists = lists

    async def ask(self, method: MethodDescriptor, key: str = "", **values: Any) -> Answer:
        """Ask for a page of two, unless told otherwise, with the tenant's key."""
        asked = {"page_size": 2, **self.lists.asked(method), **values}
        request = GetMessageClass(method.input_type)(**asked)
        return await call(self._channel, method, request, bearer(key or self.lists.tenant.key))

    async def page(self, method: MethodDescriptor, **values: Any) -> tuple[list[Any], str]:
        """Return the rows of a page and the token of the next."""
        answer = await self.ask(method, **values)
        assert answer.code == grpc.StatusCode.OK, answer
        response: Any = GetMessageClass(method.output_type).FromString(answer.response)
        (rows,) = (field.name for field in method.output_type.fields if field.is_repeated)
        return list(getattr(response, rows)), response.next_page_token

    async def refused(self, method: MethodDescriptor, token: str, **values: Any) -> bool:
        """Tell whether a token is PAGE_TOKEN_INVALID here."""
        answer = await self.ask(method, page_token=token, **values)
        return (answer.code, answer.reason) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "PAGE_TOKEN_INVALID",
        )


@pytest.fixture
def lister(channel: grpc.aio.Channel, lists: Lists) -> Lister:
    """What asks for the pages of `lists`."""
    return Lister(channel, lists)


@of_each_list
async def test_pages_make_up_the_list(lister: Lister, method: MethodDescriptor) -> None:
    """Two rows and one row are the three rows of one large page, and the last page says so."""
    first, token = await lister.page(method)
    rest, end = await lister.page(method, page_token=token)
    whole, none = await lister.page(method, page_size=1000)
    assert (len(first), len(rest), end, none) == (2, 1, "", "")
    assert first + rest == whole


@of_each_list
async def test_a_page_that_is_just_full_is_the_last(
    lister: Lister, method: MethodDescriptor
) -> None:
    """No token leads to an empty page."""
    rows, token = await lister.page(method, page_size=_ROWS)
    assert (len(rows), token) == (_ROWS, "")


@of_each_list
async def test_a_token_with_one_flipped_bit_is_refused(
    lister: Lister, method: MethodDescriptor
) -> None:
    """Any single bit of the text, at any place."""
    _, token = await lister.page(method)
    altered = []
    for place in range(len(token) * 7):
        text = bytearray(token.encode())
        text[place // 7] ^= 1 << place % 7
        altered.append(text.decode())
    for start in range(0, len(altered), _TOGETHER):
        group = altered[start : start + _TOGETHER]
        answers = await asyncio.gather(*(lister.ask(method, page_token=text) for text in group))
        assert {(answer.reason, answer.message) for answer in answers} == {_REFUSED}


@of_each_list
async def test_a_token_that_was_cut_or_extended_is_refused(
    lister: Lister, method: MethodDescriptor
) -> None:
    """Nor does it help to add padding that decodes to nothing."""
    _, token = await lister.page(method)
    for text in (token[:-1], token[:-4], token[4:], f"{token}=", f"{token}AAAA", f" {token}", "x"):
        assert await lister.refused(method, text), text


@of_each_list
async def test_a_token_of_another_caller_is_refused(
    lister: Lister, hub: Hub, method: MethodDescriptor
) -> None:
    """Another key of the tenant, another tenant's key, the user himself: each begins anew."""
    tenant = lister.lists.tenant
    other_key = lister.lists.other_key
    other_tenant = await hub.new_tenant()
    _, token = await lister.page(method)
    assert await lister.refused(method, token, key=other_key)
    assert await lister.refused(method, token, key=other_tenant.key)
    if method.GetOptions().Extensions[options_pb2.level] == Level.LEVEL_USER:
        his_own = await issue(tenant, USER_TOKEN, lister.lists.user)
        assert await lister.refused(method, token, key=his_own)


@of_each_list
async def test_a_token_of_another_list_is_refused(lister: Lister, method: MethodDescriptor) -> None:
    """Even where the other list has the same filter."""
    _, token = await lister.page(method)
    for other in _LISTS:
        assert await lister.refused(other, token) == (other is not method)


@of_each_list_of_a_user
async def test_a_token_of_another_user_is_refused(lister: Lister, method: MethodDescriptor) -> None:
    """A service key that lists user B with a token of user A's list is refused."""
    stranger = await lister.lists.tenant.new_user()
    _, token = await lister.page(method)
    assert await lister.refused(method, token, user_id=stranger.user_id)


async def test_a_token_of_the_other_order_is_refused(lister: Lister) -> None:
    """A list of messages is not turned round half-way."""
    method = method_named("ListMessages")
    _, token = await lister.page(method, order=MessageOrder.MESSAGE_ORDER_NEWEST_FIRST)
    assert await lister.refused(method, token)
    assert await lister.refused(method, token, order=MessageOrder.MESSAGE_ORDER_OLDEST_FIRST)


async def test_a_token_works_with_another_page_size(lister: Lister) -> None:
    """What is bound is what is listed, not how much at a time."""
    method = method_named("ListMemories")
    first, token = await lister.page(method, page_size=1)
    rest, _ = await lister.page(method, page_token=token, page_size=1000)
    assert len(first + rest) == _ROWS


async def test_a_user_who_logs_in_again_goes_on_where_he_was(lister: Lister) -> None:
    """A user's token of a page is his, not that of one login."""
    tenant, user = lister.lists.tenant, lister.lists.user
    first, second = [await issue(tenant, USER_TOKEN, user) for _ in range(2)]
    method = method_named("ListSessions")
    _, token = await lister.page(method, key=first, user_id="")
    rows, _ = await lister.page(method, key=second, user_id="", page_token=token)
    assert len(rows) == 1


async def test_a_row_added_meanwhile_shifts_no_page(hub: Hub, channel: grpc.aio.Channel) -> None:
    """Pages go by key: nothing is seen twice or left out."""
    tenant = await hub.new_tenant()
    made = [await tenant.new_user() for _ in range(3)]
    lister = Lister(channel, Lists(tenant, made[0], ""))
    first, token = await lister.page(method_named("ListUsers"))
    await tenant.new_user()
    rest, _ = await lister.page(method_named("ListUsers"), page_token=token)
    assert [user.user_id for user in first + rest] == [user.user_id for user in made[::-1]]


async def test_a_page_holds_50_by_default_and_1000_at_most(
    hub: Hub, channel: grpc.aio.Channel
) -> None:
    """0 asks for 50, and more than 1,000 counts as 1,000, which is no error."""
    tenant = await hub.new_tenant()
    user = await tenant.new_user()
    hub.sql(
        "INSERT INTO users (tenant_id, user_id, email, email_key)"
        " SELECT %s, gen_random_uuid(), n::text, n::text FROM generate_series(1, 1000) n",
        tenant.tenant_id,
    )
    lister, method = Lister(channel, Lists(tenant, user, "")), method_named("ListUsers")
    for asked, given in ((0, 50), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)):
        rows, token = await lister.page(method, page_size=asked)
        assert (len(rows), bool(token)) == (given, True)


@pytest.mark.parametrize("size", [-1, -(2**31)])
@of_each_list
async def test_a_negative_page_size_is_refused(
    lister: Lister, method: MethodDescriptor, size: int
) -> None:
    """A page cannot hold less than nothing."""
    answer = await lister.ask(method, page_size=size)
    assert (answer.reason, answer.bad_fields) == ("INVALID_FIELD", {"page_size"})
