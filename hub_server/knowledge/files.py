"""What a file is, by its content: a name may lie, and is not even asked."""

import hashlib
import re
from typing import Final

from hub_server.errors import HubError
from hub_server.parsers import DOCX, HTML, PDF, TEXT, can_read, decoded, is_utf_16

SUPPORTED: Final = (
    "neither PDF, DOCX or HTML, nor text (plain or Markdown) in UTF-8, or in UTF-16 with its mark"
)
UNTITLED: Final = "Untitled"
_NAMES: Final = {PDF: "PDF", DOCX: "DOCX", HTML: "HTML"}
_HEAD: Final = 1024  # bytes in which a file says what it is
_ZIP: Final = b"PK\x03\x04"
_RTF: Final = b"{\\rtf"  # would pass for a text
_BEFORE_PDF: Final = b"\xef\xbb\xbf\0 \t\r\n"
# What was matched is not tried in another way: a file made of comments would take for ever.
_IS_HTML: Final = re.compile(
    r"\ufeff?(?:\s|<\?xml(?>.*?\?>)|<!--(?>.*?-->))*+<(?:(?:!doctype\s+html|html|head|body)\b|(?P<tag>"
    r"(?:h[1-6]|p|div|span|section|article|main|header|footer|nav|aside|figure|form|table|ul|ol|dl"
    r"|blockquote|pre|title|meta|link|style|script|center|font|img|br|hr|a|b|i|em|strong)[\s/>]))",
    re.IGNORECASE | re.DOTALL,
)
# Markdown may begin with such a tag, too. But a part of a page ends with one as well, and has no
# heading or fence of Markdown.
_IS_END: Final = re.compile(rb"(?:</?[a-z][\w-]*(?:\s[^<>]*)?/?>|-->)\s*\Z", re.IGNORECASE)
_IS_MARKDOWN: Final = re.compile(rb"^ {0,3}(?:#{1,6}[ \t]|```|~~~)", re.MULTILINE)


class Upload:
    """The bytes of a file, as they come."""

    def __init__(self, most_mb: int) -> None:
        """Take so many MB at most."""
        self._most_mb = most_mb
        self.content = bytearray()

    def add(self, data: bytes) -> None:
        """Take the next bytes. Raises INVALID_FIELD when they are too many."""
        if len(self.content) + len(data) > self._most_mb << 20:
            what = f"must be at most {self._most_mb} MB in all (HUB_UPLOAD_MB)"
            raise HubError.invalid("data", what)
        self.content += data

    def judged(self) -> tuple[str, bytes]:
        """Return type and SHA-256 of the file; some 100 ms of computing. Raises INVALID_FIELD."""
        if not self.content:
            raise HubError.invalid("data", "is required: the file is empty")
        return media_type_of(self.content), hashlib.sha256(self.content).digest()

    def close(self) -> None:
        """Let go of the bytes."""
        self.content = bytearray()


def media_type_of(content: bytes | bytearray) -> str:
    """Return the type of a file that this hub can read. Raises INVALID_FIELD."""
    found = _media_type(content)
    if found is None:
        raise HubError.invalid("data", f"is {SUPPORTED}")
    if not can_read(found):
        what = f"is {_NAMES[found]}, which this hub cannot read: its extra `formats` is missing"
        raise HubError.invalid("data", what)
    return found


def _media_type(content: bytes | bytearray) -> str | None:
    head = content[:_HEAD]
    if head.lstrip(_BEFORE_PDF).startswith(b"%PDF-"):
        return PDF
    if head.startswith(_ZIP):
        # Names stand in a zip as they are; its directory is for the parser, which has limits.
        return DOCX if b"word/document.xml" in content else None
    if head.startswith(_RTF):
        return None
    start = head.decode("utf-16" if is_utf_16(head) else "latin-1", errors="ignore")
    found = _IS_HTML.match(start.removeprefix("\xef\xbb\xbf"))
    if found and (not found["tag"] or _is_part_of_page(content)):
        return HTML
    return TEXT if _is_text(content) else None


def _is_part_of_page(content: bytes | bytearray) -> bool:
    """Tell whether what begins with a tag is HTML, and not Markdown."""
    if is_utf_16(content):
        content = content.decode("utf-16", errors="ignore").encode(errors="ignore")
    return bool(_IS_END.search(content, len(content) - _HEAD)) and not _IS_MARKDOWN.search(content)


def _is_text(content: bytes | bytearray) -> bool:
    try:
        return "\0" not in decoded(content)
    except UnicodeDecodeError:
        return False
