"""Splitting: where pieces are cut, which headings they stand below, and what they repeat."""

import re
from collections.abc import Sequence
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from numpy.typing import NDArray

from hub_server.embedding import MODELS, load_embedder
from hub_server.errors import HubError
from hub_server.jobs import splitting
from hub_server.jobs.outline import Outline
from hub_server.jobs.splitting import CountTokens, Piece
from hub_server.knowledge.chunking import Chunking, embedded

MARKS = "# One|## Two ##|###### Six|#no|####### no|#|===|---|```|```py|~~~|- item|1. item|> quote"
LINES = st.sampled_from([*MARKS.split("|"), "text", "more text", "    code", "* * *", ""])
TEXTS = st.lists(
    LINES | st.text(st.sampled_from("ab é猫.\u2028\t \n#-`😀́"), max_size=40) | st.just("x" * 300),
    max_size=40,
).flatmap(
    lambda lines: st.sampled_from(["\n", "\r\n", "\r", "\n\n"]).map(lambda end: end.join(lines))
)
CHUNKINGS = st.integers(32, 80).flatmap(
    lambda size: st.builds(Chunking, st.just(size), st.integers(0, size // 2))
)


def by_character(words: Sequence[str]) -> list[int]:
    """Count every character of a word as a token."""
    return [len(word) for word in words]


def by_word(words: Sequence[str]) -> list[int]:
    """Count a word as a token."""
    return [1 for _ in words]


def cut(text: str, chunking: Chunking | None = None, count: CountTokens = by_word) -> list[Piece]:
    """Return all pieces of a text."""
    blocks = splitting.pieces(text, count, chunking or Chunking())
    return [piece for block in blocks for piece in block]


@given(text=TEXTS, chunking=CHUNKINGS, block=st.sampled_from([100, 1000, splitting.BLOCK_CHARS]))
@example(text="#no\n" + "x" * 300, chunking=Chunking(66, 33), block=100)
def test_pieces_stand_where_they_say(text: str, chunking: Chunking, block: int) -> None:
    """Each is what the text has there; in order and together they hold all of it but space."""
    with patch.object(splitting, "BLOCK_CHARS", block):
        pieces = cut(text, chunking, by_character)
    assert all(text[piece.start : piece.end] == piece.content for piece in pieces)
    covered = 0
    for piece, after in zip(pieces, [*pieces[1:], None], strict=False):
        assert not text[covered : piece.start].strip()
        assert after is None or piece.start < after.start
        assert len("".join(piece.content.split())) <= chunking.max_tokens + 2 * 16
        covered = max(covered, piece.end)
    assert not text[covered:].strip()


@given(lines=st.lists(LINES, max_size=12), end=st.sampled_from(["\n", "\r\n", "\r"]))
@example(lines=["- a", "```", "# no", "```", "# yes"], end="\n")
@example(lines=["- item", "", "    code", "#no", "==="], end="\n")
def test_sections_begin_where_commonmark_has_headings(lines: list[str], end: str) -> None:
    """At the same lines, with the same texts and levels."""
    text = end.join(lines)
    tokens = MarkdownIt("commonmark").parse(text)
    above: list[tuple[int, str]] = []
    wanted = []
    for token, inline in pairwise(tokens):
        if token.type == "heading_open" and token.level == 0 and inline.content and token.map:
            level = int(token.tag[1])
            title = " ".join(inline.content.split())
            above = [*(one for one in above if one[0] < level), (level, title)]
            start = sum(len(line) + len(end) for line in lines[: token.map[0]])
            wanted.append((start, tuple(heading for _, heading in above)))
    found = [(one.start, one.path) for one in Outline(text).sections(0, len(text)) if one.path]
    assert found == wanted


BODY = "A bird sings in the tree before our house. " * 8
PATHS = {
    "plain text has none": (BODY, [()]),
    "levels": (
        f"{BODY}\n# A\n{BODY}\n### B\n{BODY}\n## C\n{BODY}\n# D\n{BODY}",
        [(), ("A",), ("A", "B"), ("A", "C"), ("D",)],
    ),
    "a heading with nothing beneath it": (f"# A\n\n## B\n{BODY}", [("A", "B")]),
    "small sections share what is above all": (f"# A\n## B\nfew\n## C\nwords\n{BODY}", [("A",)]),
    "underlined": (f"A\r\nb\r\n===\r\n{BODY}\r\n\r\nC\r\n---\r\n{BODY}", [("A b",), ("A b", "C")]),
    "a rule below a paragraph": (f"{BODY}\n---\n{BODY}", [()]),
    "code": (
        f"# A\n```sh\n# no\n```\n    # no\n- ```\n  # no\n  ```\n{BODY}\n# B\n{BODY}",
        [("A",), ("B",)],
    ),
    "front matter": (f"---\ntitle: x\n# no\n---\n# A\n{BODY}", [("A",)]),
    "marks": (f"# *A* `#b` #\n{BODY}", [("*A* `#b`",)]),
    "a long heading": (f"# {'A' * 300}\n{BODY}", [("A" * 200,)]),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_piece_knows_the_headings_above_it(name: str) -> None:
    """From the outermost to the innermost, those alone that all of it stands below."""
    text, paths = PATHS[name]
    assert [piece.path for piece in cut(text)] == paths


def test_a_piece_ends_where_its_section_does() -> None:
    """However much of the next would have room, unless one is too small to be a piece."""
    text = "\n".join(
        f"# {number}\n" + "word " * size for number, size in enumerate([30, 30, 3, 50])
    )
    contents = [piece.content.split("\n")[0] for piece in cut(text, Chunking(200))]
    assert contents == ["# 0", "# 1", "# 2"]


def test_the_blocks_of_a_text_leave_no_trace() -> None:
    """A section of many blocks keeps its path, and no piece is cut short where a block ended."""
    text = "# A\n\n## B\n\n" + " ".join(
        f"Sentence number {number} is one." for number in range(9000)
    )
    with patch.object(splitting, "BLOCK_CHARS", len(text)):
        wanted = cut(text)
    assert len(text) > 5 * splitting.BLOCK_CHARS
    assert cut(text) == wanted
    assert {piece.path for piece in wanted} == {("A", "B")}


def test_a_piece_repeats_the_end_of_the_one_before() -> None:
    """Whole words of the same section, as much as was asked for at most."""
    sentences = " ".join(f"Sentence number {number} is here." for number in range(100))
    text = f"# A\n{sentences}\n# B\n{sentences}"
    pieces = cut(text, Chunking(40, 12))
    for before, piece in pairwise(pieces):
        repeated = text[piece.start : max(before.end, piece.start)]
        assert len(repeated.split()) <= 12
        assert bool(repeated) == (piece.path == before.path)
        assert re.match(r"(Sentence|#)", piece.content)
    assert all(text[piece.start : piece.end] == piece.content for piece in pieces)


@pytest.mark.parametrize("heading", ["", "# A\n"])
@pytest.mark.parametrize(("sentences", "overlap"), [(45, 0), (45, 20), (90, 0)])
def test_the_last_two_pieces_are_alike(heading: str, sentences: int, overlap: int) -> None:
    """A section a little too large for its pieces does not end in one of a few words."""
    text = heading + " ".join(f"Sentence number {number} is here." for number in range(sentences))
    *full, last_but_one, last = (
        len(piece.content.split()) for piece in cut(text, Chunking(200, overlap))
    )
    assert abs(last_but_one - last) <= 10
    assert all(size > 190 for size in full)


CODE = "\n".join(f"call number {number} of all" for number in range(60))
FENCED = f"```bash\n{CODE}\n```"


@pytest.mark.parametrize(
    "text",
    [
        FENCED,
        f"# A\n\nRun this:\n\n{FENCED}\n\nSo it is.",
        f"{BODY}\n\n{FENCED}\n\n{BODY}\n\n{FENCED}",
        f"- a\n\n  ~~~\n{CODE}\n  ~~~\n\n{BODY}",
        f"# A\n\n{FENCED[: FENCED.index('32')]}\n```\n\n{BODY * 4}",
    ],
    ids=["code", "a few words beside it", "text beside it", "in a list", "nearly a piece"],
)
@pytest.mark.parametrize("overlap", [0, 50])
def test_fences_stay_with_their_code(text: str, overlap: int) -> None:
    """With its first line and its last, as do a few words beside it; each piece has its size."""
    pieces = cut(text, Chunking(200, overlap))
    assert all(10 <= len(piece.content.split()) <= 200 for piece in pieces)
    for piece in pieces:
        assert not re.search(r"```bash$|~~~$(?<!all\n  ~~~)", piece.content)
        assert not re.match(r"\s*(```|~~~)(?!bash|\ncall)", piece.content)


@pytest.mark.parametrize("words", ["Note:", "# A"])
@pytest.mark.parametrize("size", [195, 198, 200])
def test_a_few_words_are_no_piece(words: str, size: int) -> None:
    """Where what follows is too long for both, they take some of it."""
    first, *others = cut(f"{words}\n\n{'word ' * size}\n\n{BODY}", Chunking(200))
    assert first.content.startswith(words)
    assert all(len(piece.content.split()) > 20 for piece in [first, *others])


@pytest.mark.parametrize("model", MODELS)
def test_pieces_fit_the_model(model: str) -> None:
    """No piece of a text in words is larger than it may be, and few are much smaller."""
    count = load_embedder(model).count_tokens
    sizes = count(
        [piece.content for piece in cut("\n".join([BODY] * 60), Chunking(200, 40), count)]
    )
    assert max(sizes) <= 200
    assert np.median(sizes) > 100


class Narrow:
    """A model that reads 254 words, and has each for a token."""

    model = "narrow"
    dimension = 1
    window: int | None = 254

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the same for all."""
        return np.ones((len(texts), 1), dtype=np.float32)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count words."""
        return [len(text.split()) for text in texts]


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (200, ["a title", "outer > middle one > inner"]),
        (248, ["a title", "middle one > inner"]),
        (252, ["a title"]),
        (253, ["a t"]),
        (254, []),
    ],
)
def test_what_stands_above_a_chunk_displaces_none_of_it(size: int, head: list[str]) -> None:
    """A model that reads no more gets the title, then the inmost headings, as far as they fit."""
    path = ("outer", "middle one", "inner")
    lines = embedded(Narrow(), "a title", path, "the chunk", size).split("\n")
    assert lines == [*head, "the chunk"]


@pytest.mark.parametrize(
    ("chunking", "window", "field"),
    [
        (Chunking(31), None, "chunking.max_tokens"),
        (Chunking(255), 254, "chunking.max_tokens"),
        (Chunking(33, 17), None, "chunking.overlap_tokens"),
    ],
)
def test_a_chunking_that_a_model_cannot_have_is_refused(
    chunking: Chunking, window: int | None, field: str
) -> None:
    """What is too small, more than the model reads, or mostly repetition; the field is named."""
    with pytest.raises(HubError) as caught:
        chunking.check(window)
    assert [name for name, _ in caught.value.violations] == [field]


def test_a_chunking_at_its_limits_is_taken() -> None:
    """The least, half of it repeated; as much as the model reads; and any where that is unknown."""
    Chunking(32, 16).check(254)
    Chunking(254).check(254)
    Chunking(2048, 1024).check(None)


def test_a_smaller_model_gets_smaller_chunks() -> None:
    """A document that another model was to read is cut for the one there is."""
    assert Chunking(2048, 1024).within(254) == Chunking(254, 127)
    assert Chunking(200, 20).within(254) == Chunking(200, 20)
    assert Chunking(2048, 1024).within(None) == Chunking(2048, 1024)
