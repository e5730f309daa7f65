"""Page tokens: who may use them for what, and that nobody can make one."""

import base64
from collections.abc import Sequence
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from google.protobuf.message import Message
from hypothesis import given

from hub_client.v1 import (
    ListDocumentsRequest,
    ListMessagesRequest,
    ListSessionsRequest,
    ListUsersRequest,
    MessageOrder,
)
from hub_server.caller import Caller
from hub_server.errors import HubError, Reason
from hub_server.paging import DEFAULT_SIZE, LARGEST_SIZE, Page, PageTokens, split

_PAGES = PageTokens(b"a secret")
_ADA = replace(Caller.hub("tenant"), credential_id="key", user_id="ada")
_LIST = ListSessionsRequest(user_id="u", page_size=2)
_KEY = "0190a6d0-3c1e-7a10-9c55-2f4b6d7e8f90"
_TOKEN = _PAGES.next(_ADA, _LIST, _KEY)


def _refused(token: str, caller: Caller = _ADA, request: Message = _LIST) -> bool:
    try:
        _PAGES.read(caller, request, 2, token)
    except HubError as error:
        return error.reason == Reason.REASON_PAGE_TOKEN_INVALID
    return False


def test_a_token_leads_to_the_next_page() -> None:
    """The key of the last row comes back, for the same caller and list."""
    assert _PAGES.read(_ADA, _LIST, 2, _TOKEN) == Page(2, _KEY)


def test_the_page_size_may_change_between_pages() -> None:
    """A token is bound to what is listed, not to how much at a time."""
    assert not _refused(_TOKEN, request=ListSessionsRequest(user_id="u", page_size=500))


def test_a_token_does_not_depend_on_itself() -> None:
    """The token of page three comes of a request that bears the token of page two."""
    second = ListSessionsRequest(user_id="u", page_token=_TOKEN)
    assert _PAGES.next(_ADA, second, _KEY) == _TOKEN


def test_a_token_with_one_flipped_bit_is_refused() -> None:
    """Each bit of the text counts, also those that base64 would ignore."""
    for place in range(len(_TOKEN) * 7):
        altered = bytearray(_TOKEN.encode())
        altered[place // 7] ^= 1 << place % 7
        assert _refused(altered.decode()), altered


@given(st.text(min_size=1, max_size=200))
def test_a_token_that_the_hub_did_not_make_is_refused(text: str) -> None:
    """No text that is made up is taken for a token, and none is a fault of the hub."""
    assert _refused(text)


@given(st.binary(max_size=100))
def test_a_token_signed_with_another_key_is_refused(after: bytes) -> None:
    """Only who has the secret makes tokens."""
    forged = PageTokens(b"another secret").next(_ADA, _LIST, after.hex())
    assert _refused(forged)
    assert _refused(base64.urlsafe_b64encode(after).decode() or "=")


@pytest.mark.parametrize(
    "other",
    [
        replace(_ADA, user_id="bob"),
        replace(_ADA, tenant_id="another"),
        replace(_ADA, user_id=None),
        replace(_ADA, user_id=None, credential_id="ada", tenant_id="tenan"),
    ],
    ids=["user", "tenant", "kind of credential", "tenant and key"],
)
def test_a_token_of_another_caller_is_refused(other: Caller) -> None:
    """What one caller was given, another cannot go on with."""
    assert _refused(_TOKEN, caller=other)


def test_a_token_outlives_the_credential_of_its_user() -> None:
    """A user who logs in again between two pages goes on where he was."""
    assert not _refused(_TOKEN, caller=replace(_ADA, credential_id="a new token"))


@pytest.mark.parametrize(
    "other",
    [
        ListSessionsRequest(user_id="v"),
        ListSessionsRequest(),
        ListDocumentsRequest(user_id="u"),
        ListUsersRequest(),
    ],
    ids=["user", "no user", "list", "list without user"],
)
def test_a_token_of_another_list_is_refused(other: Message) -> None:
    """A token goes with its filter and its method, also where their requests look alike."""
    assert _refused(_TOKEN, request=other)


def test_a_token_of_the_other_order_is_refused() -> None:
    """A list is not turned round half-way."""
    first = ListMessagesRequest(session_id="s", order=MessageOrder.MESSAGE_ORDER_OLDEST_FIRST)
    other = ListMessagesRequest(session_id="s", order=MessageOrder.MESSAGE_ORDER_NEWEST_FIRST)
    token = _PAGES.next(_ADA, first, "7")
    assert not _refused(token, request=first)
    assert _refused(token, request=other)


@pytest.mark.parametrize(
    ("asked", "given"),
    [(0, DEFAULT_SIZE), (1, 1), (50, 50), (1000, 1000), (1001, LARGEST_SIZE), (2**31 - 1, 1000)],
)
def test_a_page_size_is_clamped(asked: int, given: int) -> None:
    """0 is the default of 50, and what is larger than 1,000 counts as 1,000."""
    assert _PAGES.read(_ADA, _LIST, asked, "") == Page(given, None)


def test_the_last_page_has_no_token() -> None:
    """An empty token means the end."""
    assert _PAGES.next(_ADA, _LIST, None) == ""


def test_a_page_of_long_texts_ends_early() -> None:
    """A page holds at most 2.5 MiB of text, unless its first row alone has more."""
    rows = [{"number": number, "text": "x" * (1 << 20)} for number in range(5)]
    page, after = split(rows, 4, lambda row: str(row["number"]))
    assert ([row["number"] for row in page], after) == ([0, 1], "1")
    page, after = split([{"number": 9, "text": "é" * (2 << 20)}], 4, lambda row: str(row["number"]))
    assert (len(page), after) == (1, None)


@given(st.lists(st.integers(), max_size=12), st.integers(1, 6))
def test_pages_make_up_the_list(rows: Sequence[int], size: int) -> None:
    """Fetched one more than asked, each page knows whether another comes; none comes empty."""
    seen: list[int] = []
    listed = [{"number": number} for number in rows]
    while True:
        fetched = listed[len(seen) : len(seen) + size + 1]
        page_rows, after = split(fetched, size, lambda row: str(row["number"]))
        page = [row["number"] for row in page_rows]
        seen += page
        if after is None:
            break
        assert len(page) == size
        assert after == str(page[-1])
        assert len(seen) < len(rows)
    assert seen == rows
