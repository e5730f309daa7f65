"""The process that reads a file: it may do what it wants, and harms nobody but its file."""

import signal
from pathlib import Path

import psutil
import pytest

from hub_server import parsers
from hub_server.embedding import Embedder
from hub_server.idempotency import Retry
from hub_server.jobs.parsing import Parsing, UnreadableError
from hub_server.knowledge.files import Upload, media_type_of
from tests.files import PAGE, locked_pdf, pdf, slow_pdf, word
from tests.integration.test_ingestion import (
    Library,
    ingesting,
    library,
    model,
    until,
    until_settled,
)

__all__ = ["library", "model"]  # fixtures


class Rogue:
    """A program that runs in the place of the parser."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def does(self, lines: str) -> None:
        """Let it do this once it has read the file."""
        self.path.write_text(
            f"import os, sys, time, ctypes\nfile = sys.stdin.buffer.read()\n{lines}"
        )

    @property
    def is_running(self) -> bool:
        """Whether a process of it is left."""
        return any(str(self.path) in one.cmdline() for one in psutil.Process().children())


@pytest.fixture
def parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rogue:
    """A program that runs in the place of the parser."""
    program = Rogue(tmp_path / "parser.py")
    monkeypatch.setattr(parsers, "__file__", str(program.path))
    return program


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ("ctypes.string_at(0)", f"the parser of the file broke down ({-signal.SIGSEGV})"),
        ("os._exit(7)", "the parser of the file broke down (7)"),
        ("sys.exit('words of the file')", "the parser of the file broke down (1)"),
        ("os.kill(os.getpid(), 9)", f"the parser of the file broke down ({-signal.SIGKILL})"),
        ("time.sleep(60)", "to read the file takes more than 1 seconds (HUB_PARSE_SECONDS)"),
        ("while True: os.write(1, b'x' * 4096)", "the parser of the file broke down (-9)"),
    ],
    ids=["segfault", "exit", "error", "kill", "sleep", "flood"],
)
async def test_whatever_becomes_of_a_parser_is_told_in_a_line(
    parser: Rogue,
    does: str,
    reason: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its death, its silence and its talk end it, with no word of the file anywhere."""
    if "HUB_PARSE_SECONDS" in reason:
        monkeypatch.setattr("hub_server.jobs.parsing._CLOCK", 0.5)
    parser.does(does)
    with pytest.raises(UnreadableError) as caught:
        await Parsing(seconds=1).read(parsers.TEXT, b"Sencha.")
    assert str(caught.value) == reason
    assert not parser.is_running
    assert capfd.readouterr().err == ""


async def test_a_parser_gets_the_file_and_nothing_else(
    parser: Rogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No setting of the hub, no file of its, no way to it but the two pipes."""
    monkeypatch.setenv("HUB_PEPPER", "secret")
    parser.does(
        "print(' '.join(k for k in os.environ if k != 'LC_CTYPE'))\n"
        "print(sorted(os.listdir('/proc/self/fd'))[:3], len(file), sys.flags.isolated)\n"
    )
    # The fourth descriptor is that of the listing.
    assert await Parsing().read(parsers.TEXT, b"x" * 99) == ("", "['0', '1', '2'] 99 1\n")


@pytest.mark.parametrize(
    ("media_type", "file", "reason"),
    [
        (parsers.PDF, b"%PDF-1.7 and no more", "the file is damaged"),
        (parsers.DOCX, word()[:-200], "the file is damaged"),
        (parsers.PDF, locked_pdf(), "the file is encrypted"),
        (parsers.TEXT, b"tea " * (1 << 20) + b"x", "the text of the file is longer than 4 MiB"),
    ],
    ids=["pdf", "docx", "encrypted", "long"],
)
async def test_a_file_that_cannot_be_read_says_why(
    media_type: str, file: bytes, reason: str
) -> None:
    """Damaged files and long texts; a text just as long as allowed is read."""
    with pytest.raises(UnreadableError, match=reason):
        await Parsing().read(media_type, file)
    if media_type == parsers.TEXT:
        assert await Parsing().read(media_type, file[:-1]) == ("", file[:-1].decode())


async def test_a_file_without_end_is_given_up() -> None:
    """A parser has so many seconds of a processor, which the kernel counts."""
    with pytest.raises(UnreadableError, match=r"more than 1 seconds \(HUB_PARSE_SECONDS\)"):
        await Parsing(seconds=1).read(parsers.PDF, slow_pdf())


@pytest.mark.parametrize(
    ("file", "media_type"),
    [
        (b"\n\n" + pdf(), parsers.PDF),
        (PAGE, parsers.HTML),
        (b"\xef\xbb\xbf<!-- a --><?xml version='1.0'?>\n<HTML>", parsers.HTML),
        ("<html>".encode("utf-16"), parsers.HTML),
        (b"<html><p>Caf\xe9", parsers.HTML),
        (b"<!-- a -->" * 5000, parsers.TEXT),
        (b"<h1>Title</h1><p>Text</p>", parsers.HTML),
        ("<!-- a -->\n<Div class='a'>Text</Div>\n".encode("utf-16"), parsers.HTML),
        (b"<p align=center>\n<img src=logo.png>\n</p>\n\n# A readme\n\n<hr>", parsers.TEXT),
        (b"<p align=center>\n<img src=logo.png>\n</p>\n\nIt is *good*: a > b", parsers.TEXT),
        (b"<a@example.org> wrote on <https://example.org>", parsers.TEXT),
        (b"<htmlish>", parsers.TEXT),
        (b"%PDF is a format", parsers.TEXT),
        ("\ufeffmark".encode("utf-16-be"), parsers.TEXT),
    ],
)
def test_a_file_is_what_its_content_says(file: bytes, media_type: str) -> None:
    """Quickly, also of a file made to be slow to tell."""
    assert media_type_of(file) == media_type


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_part_of_a_page_is_read_whole(encoding: str) -> None:
    """Its first heading, too, however little it holds."""
    part = "<h1>Café</h1><p>Text</p>".encode(encoding)
    assert parsers.read(parsers.HTML, part) == ("", "# Café\n\nText")


async def test_a_file_is_read_by_the_next_hub_when_one_dies(
    library: Library, model: Embedder, parser: Rogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parser ends with the hub that stops, and another hub reads the file from the start."""
    started = parser.path.with_name("started")
    parser.does(f"open({str(started)!r}, 'w')\ntime.sleep(60)")
    upload = Upload(1)
    upload.add(b"# Tea\n\nSencha.")
    header = {"title": "", "file_name": "", "source_url": "", "author": "", "metadata": {}}
    row = await library.service.upload(
        library.caller, Retry("", b""), library.user_id, header, upload, allow_duplicate=True
    )
    async with ingesting(library, model):
        await until(started.exists)
    assert not parser.is_running
    assert library.statuses(row["document_id"]) == ["processing"]
    monkeypatch.undo()
    async with ingesting(library, model):
        assert await until_settled(library, row["document_id"]) == ["ready"]
    assert library.sql("SELECT title FROM documents") == ["Tea"]
    assert library.sql("SELECT count(*) FROM document_files") == [0]
