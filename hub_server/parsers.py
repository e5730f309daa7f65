"""Reads one uploaded file, in a process of its own that has little memory, time and nothing else.

Run by path with Python's `-I`, it gets the file on standard input and writes to standard output a
line that is its title, and its text. How it failed is told by its exit code alone, since whatever a
parser says of a file may hold words of the file. It imports nothing of the hub: so it starts soon.
"""

import importlib.util
import io
import re
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

PDF: Final = "application/pdf"
DOCX: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
HTML: Final = "text/html"
TEXT: Final = "text/plain"  # Markdown too

# Exit codes. 0 is a success, 1 Python's own for what nobody caught.
DAMAGED: Final = 3
ENCRYPTED: Final = 4
OUT_OF_MEMORY: Final = 5
TOO_LONG: Final = 6

LONGEST_TEXT: Final = 4 << 20  # bytes of UTF-8, as IngestDocument takes
_LONGEST_TITLE: Final = 500
_LIBRARIES: Final = {PDF: "pypdf", DOCX: "docx", HTML: "trafilatura"}
_HEADING: Final = re.compile(r"(?:Heading|heading) ([1-6])")
_FIRST_HEADING: Final = re.compile(r"\s*#[ \t]+(\S.*?)[ \t#]*(?:\n|$)")


class EncryptedError(Exception):
    """The file cannot be read without a password."""


class TooLongError(Exception):
    """The text is longer than a document may be."""


def can_read(media_type: str) -> bool:
    """Tell whether what reads files of this type is installed."""
    library = _LIBRARIES.get(media_type)
    return library is None or importlib.util.find_spec(library) is not None


def read(media_type: str, content: bytes) -> tuple[str, str]:
    """Return title and text of a file; the title is empty when the file has none of its own.

    Raises EncryptedError, TooLongError, and whatever a parser raises of a file that is damaged.
    """
    title, parts = _READERS[media_type](content)
    text = _clean("".join(_limited(parts)))
    return " ".join(_clean(title).split())[:_LONGEST_TITLE], text


def _limited(parts: Iterable[str]) -> Iterator[str]:
    size = 0
    for part in parts:
        size += len(part.encode(errors="replace"))
        if size > LONGEST_TEXT:
            raise TooLongError
        yield part


def _clean(text: str) -> str:
    """Return the text without what is no character, or one that Postgres cannot hold."""
    return text.replace("\0", "").encode(errors="ignore").decode()


def is_utf_16(content: bytes | bytearray) -> bool:
    """Tell whether a text says that it is UTF-16, by its byte order mark."""
    return content.startswith((b"\xff\xfe", b"\xfe\xff"))


def decoded(content: bytes | bytearray) -> str:
    """Return a plain text: UTF-8, or UTF-16 that says so. Raises UnicodeDecodeError."""
    return content.decode("utf-16" if is_utf_16(content) else "utf-8-sig")


def _text(content: bytes) -> tuple[str, Iterable[str]]:
    text = decoded(content)
    heading = _FIRST_HEADING.match(text)
    return heading[1] if heading else "", [text]


def _pdf(content: bytes) -> tuple[str, Iterable[str]]:
    import pypdf  # noqa: PLC0415 - here alone: the others do without it

    reader = pypdf.PdfReader(io.BytesIO(content))
    if reader.is_encrypted and not reader.decrypt(""):
        raise EncryptedError
    title = ""
    with suppress(Exception):  # what tells of the file may be damaged where its text is not
        title = (reader.metadata and reader.metadata.title) or ""
    return str(title), (f"{page.extract_text()}\n\n" for page in reader.pages)


def _html(content: bytes) -> tuple[str, Iterable[str]]:
    import trafilatura  # noqa: PLC0415

    page = decoded(content).encode() if is_utf_16(content) else content  # in what it declares
    tree = trafilatura.load_html(page)
    if tree is None or tree.tag != "html":  # a part of a page, which would lose its beginning
        page = b"<html><body>%b</body></html>" % page
        tree = trafilatura.load_html(page)
    if tree is None:
        return "", []
    (title, *_) = [*(one.text_content() for one in tree.iter("title")), ""]
    text = trafilatura.extract(
        tree,
        output_format="markdown",
        include_comments=False,
        include_tables=True,
        favor_recall=True,
    )
    # Of a page with too little in it to tell what matters, everything does.
    return title, [text or trafilatura.html2txt(page)]


def _docx(content: bytes) -> tuple[str, Iterable[str]]:
    import docx  # noqa: PLC0415

    document = docx.Document(io.BytesIO(content))
    title = document.core_properties.title
    return title, (f"{block}\n\n" for block in _blocks(document) if block)


def _blocks(document: Any) -> Iterator[str]:
    """Yield paragraphs and tables in their order; headings as Markdown has them."""
    for block in document.iter_inner_content():
        if hasattr(block, "rows"):
            for row in block.rows:
                yield " | ".join(cell.text.strip() for cell in row.cells)
            continue
        style = block.style.name if block.style is not None else ""
        heading = _HEADING.fullmatch(style or "")
        text = block.text.strip()
        yield "#" * int(heading[1]) + " " + text if heading and text else text


_READERS: Final[dict[str, Callable[[bytes], tuple[str, Iterable[str]]]]] = {
    PDF: _pdf,
    HTML: _html,
    DOCX: _docx,
    TEXT: _text,
}


def _limit(megabytes: int, seconds: int) -> None:
    """Let the kernel end this process when it takes more; it writes no file and no core."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    # A signal that tells why; a second later one that cannot be ignored.
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    with suppress(ValueError):  # macOS knows this limit and refuses to set it
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))


def _taken() -> float:
    """Return how many MB this process had at most; on Linux, where the limit of memory holds.

    Not getrusage: there a process begins with what the one had that started it.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    peak = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(peak[1]) / 1024 if peak else 0.0


def main() -> int:
    """Read one file; return the exit code."""
    media_type, megabytes, seconds = sys.argv[1:]
    content = sys.stdin.buffer.read()
    try:
        _limit(int(megabytes), int(seconds))
        answer = "\n".join(read(media_type, content)).encode()
    except MemoryError:
        return OUT_OF_MEMORY
    except EncryptedError:
        return ENCRYPTED
    except TooLongError:
        return TOO_LONG
    except Exception:  # noqa: BLE001 - whatever it is, and it may hold words of the file
        # Libraries in C take it for an error of the file when they get no more memory.
        return OUT_OF_MEMORY if _taken() > int(megabytes) / 2 else DAMAGED
    sys.stdout.buffer.write(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
