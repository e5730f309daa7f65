"""Splitting: a document's text becomes the pieces that are embedded and found.

A splitter asks for the size of a passage some 6,000 times for a megabyte of text, of passages
that overlap: counting tokens anew each time takes 4 to 10 seconds of computing (MiniLM; 4 MiB took
four times that). So the words are counted once, and a passage's size is a difference of two sums.
What is left takes a second for a megabyte, in blocks of some 30 ms each.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from semantic_text_splitter import MarkdownSplitter

# MiniLM reads 256 tokens: this leaves room for the title that a piece is embedded with.
CHUNK_TOKENS: Final = 200
BLOCK_CHARS: Final = 32_768
# What is counted at once: a word, or as much of a long one (base64, scripts without spaces).
_WORD: Final = re.compile(r"\S{1,16}")
_ENDS: Final = ("\n\n", "\n", " ")

CountTokens = Callable[[Sequence[str]], list[int]]


def blocks(text: str) -> Iterator[str]:
    """Yield a text in parts of at most BLOCK_CHARS, so that no step of the work is long.

    A part ends with a paragraph where there is one in its second half, else with a line, else with
    a word.
    """
    start = 0
    while start < len(text):
        end = _end(text, start)
        yield text[start:end]
        start = end


def _end(text: str, start: int) -> int:
    furthest = start + BLOCK_CHARS
    if furthest >= len(text):
        return len(text)
    for mark in _ENDS:
        place = text.rfind(mark, start + BLOCK_CHARS // 2, furthest)
        if place >= 0:
            return place + len(mark)
    return furthest


def pieces(block: str, count_tokens: CountTokens) -> list[str]:
    """Return a block's passages of at most CHUNK_TOKENS, cut where Markdown or sense would.

    Sizes are exact but for passages that begin or end within a word of over 16 characters.
    """
    return MarkdownSplitter.from_callback(_measure(block, count_tokens), CHUNK_TOKENS).chunks(block)


def _measure(block: str, count_tokens: CountTokens) -> Callable[[str], int]:
    """Return what tells the tokens of any passage of the block."""
    words = [match.group() for match in _WORD.finditer(block)]
    starts = [match.start() for match in _WORD.finditer(block)]
    distinct = list(set(words))
    sizes = dict(zip(distinct, count_tokens(distinct), strict=True))
    sums = list(accumulate((sizes[word] for word in words), initial=0))

    def size(passage: str) -> int:
        begin = block.find(passage)  # where it stands first: the same words are the same tokens
        end = begin + len(passage)
        return sums[bisect_left(starts, end)] - sums[bisect_left(starts, begin)]

    return size
