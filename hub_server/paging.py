"""Pages of lists: sizes, and page tokens that nobody else can make or use; other large answers.

A token bears the key of the last row (keyset paging, never OFFSET) and an HMAC over that key, the
caller and the request's filter, so one that was altered or is used elsewhere is refused.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import Message

from hub_server.caller import Caller
from hub_server.errors import HubError, Reason
from hub_server.rows import Row

DEFAULT_SIZE: Final = 50
LARGEST_SIZE: Final = 1000
PAGE_BYTES: Final = 5 << 19  # 2.5 MiB: a further message of 1 MiB still fits into 4 MiB
LARGEST_ANSWER: Final = 64 << 20  # bytes, of calls that know no pages
_MAC_BYTES: Final = 16


def check_answer(size: int) -> None:
    """Refuse an answer of more bytes than are sent in one. Raises ANSWER_TOO_LARGE."""
    # gRPC would say no more than that, and not as an error of the hub.
    if size > LARGEST_ANSWER:
        limit = str(LARGEST_ANSWER)
        raise HubError(Reason.REASON_ANSWER_TOO_LARGE, size_bytes=str(size), limit=limit)


@dataclass(frozen=True, slots=True)
class Page:
    """Which page of a list: at most ``size`` rows after the row with key ``after``."""

    size: int
    after: str | None


class PageTokens:
    """Makes and reads page tokens with a key that all hubs over one database share."""

    def __init__(self, key: bytes) -> None:
        """``key`` is secret; whoever has it can make tokens."""
        self._key = key

    def read(self, caller: Caller, request: Message, size: int, token: str) -> Page:
        """Return the page a list request asks for. Raises PAGE_TOKEN_INVALID."""
        size = min(size, LARGEST_SIZE) or DEFAULT_SIZE
        if not token:
            return Page(size, None)
        raw = _decode(token)
        mac, after = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(caller, request, after)):
            raise HubError(Reason.REASON_PAGE_TOKEN_INVALID)
        return Page(size, after.decode())

    def next(self, caller: Caller, request: Message, after: str | None) -> str:
        """Return the token for the rows after ``after``; empty when there are none."""
        if after is None:
            return ""
        raw = after.encode()
        return base64.urlsafe_b64encode(self._mac(caller, request, raw) + raw).decode()

    def _mac(self, caller: Caller, request: Message, after: bytes) -> bytes:
        bare = type(request)()
        bare.CopyFrom(request)
        bare.ClearField("page_token")
        bare.ClearField("page_size")
        parts = (
            request.DESCRIPTOR.full_name.encode(),
            caller.tenant_id.encode(),
            caller.subject.encode(),
            bare.SerializeToString(deterministic=True),
            after,
        )
        # Lengths before the parts: no two lists of parts make the same bytes.
        text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._key, text, hashlib.sha256)[:_MAC_BYTES]


def _decode(token: str) -> bytes:
    """Return the bytes of a token; refuses spellings that ``next`` would not have made."""
    try:
        raw = base64.urlsafe_b64decode(token.encode("ascii"))
    except (UnicodeEncodeError, binascii.Error) as error:
        raise HubError(Reason.REASON_PAGE_TOKEN_INVALID) from error
    if base64.urlsafe_b64encode(raw).decode() != token:
        raise HubError(Reason.REASON_PAGE_TOKEN_INVALID)
    return raw


def split(
    rows: Sequence[Row], size: int, key: Callable[[Row], str]
) -> tuple[Sequence[Row], str | None]:
    """Split ``size + 1`` fetched rows into the page and the key after which the next begins.

    A page ends early when its texts fill PAGE_BYTES, since most gRPC clients take answers of 4 MiB
    at most; one row is always in it. The key is None when this page is the last.
    """
    kept, filled = 0, 0
    for row in rows[:size]:
        filled += _text_bytes(row)
        if kept and filled > PAGE_BYTES:
            break
        kept += 1
    if kept == len(rows):
        return rows, None
    return rows[:kept], key(rows[kept - 1])


def _text_bytes(row: Row) -> int:
    """Estimate what the texts of a row, metadata included, take on the wire."""
    texts = (value if isinstance(value, str) else repr(value) for value in row.values())
    return sum(len(text) if text.isascii() else len(text.encode()) for text in texts)
