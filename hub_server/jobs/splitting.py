"""Splitting: a document's text becomes the pieces that are embedded and found.

A piece is cut where Markdown or sense would, and holds nothing of another section: a piece that
speaks of two things is found by neither. But sections of a few words are taken together with the
next, until they are worth a piece of their own. The last two pieces of a section are alike:
were the last but one filled to the brim, a few words could be left for the last.

A splitter asks for the size of a passage some 6,000 times for a megabyte of text, of passages
that overlap: counting tokens anew each time takes 4 to 10 seconds of computing (MiniLM; 4 MiB took
four times that). So the words are counted once, and a passage's size is a difference of two sums.
What is left takes a second for a megabyte, in steps of some 30 ms each.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, takewhile
from math import ceil
from typing import Final, NamedTuple

from semantic_text_splitter import MarkdownSplitter

from hub_server.jobs.outline import Outline, Path, Section
from hub_server.knowledge.chunking import Chunking

BLOCK_CHARS: Final = 32_768
# Sections smaller than this part of a piece are no piece of their own, or 4 MiB of headings would
# make a million. nDCG@10 with wordllama on Cranfield, twenty abstracts to a document, a hundred
# characters of each, by part: 0 .349, 1/16 .349, 1/8 .349, 1/4 .312, 1/2 .300.
_TINY: Final = 1 / 8
# What is counted at once: a word, or as much of a long one (base64, scripts without spaces).
_WORD: Final = re.compile(r"\S{1,16}")
_ENDS: Final = ("\n\n", "\n", " ")

CountTokens = Callable[[Sequence[str]], list[int]]


class Piece(NamedTuple):
    """A passage: ``text[start:end]`` is its content."""

    start: int
    end: int
    content: str
    path: Path
    """The headings above all of it, outermost first."""


def pieces(text: str, count_tokens: CountTokens, chunking: Chunking) -> Iterator[list[Piece]]:
    """Yield the pieces of a text in order, those of some BLOCK_CHARS at a time.

    So no step of the work is long. The last piece of a block, which the block's end may have cut
    short, is cut anew with what follows it.
    """
    outline = Outline(text)
    start = 0
    while start < len(text):
        end = _end(text, start)
        sections = outline.sections(start, end)
        found = _Block(text, start, end, count_tokens).pieces(sections, chunking)
        start = end
        if end < len(text) and len(found) > 1:
            start = found.pop().start
        yield found


def _end(text: str, start: int) -> int:
    """Return where a block ends.

    With a paragraph where there is one in its second half, else with a line, else with a word.
    """
    furthest = start + BLOCK_CHARS
    if furthest >= len(text):
        return len(text)
    for mark in _ENDS:
        place = text.rfind(mark, start + BLOCK_CHARS // 2, furthest)
        if place >= 0:
            return place + len(mark)
    return furthest


class _Block:
    """A part of a text, its words counted.

    Sizes are exact but for passages that begin or end within a word of over 16 characters.
    """

    def __init__(self, text: str, start: int, end: int, count_tokens: CountTokens) -> None:
        self._text = text[start:end]
        self._start = start
        self._goes_on = end < len(text)
        matches = list(_WORD.finditer(self._text))
        words = [match.group() for match in matches]
        self._words = [start + match.start() for match in matches]
        distinct = list(set(words))
        sizes = dict(zip(distinct, count_tokens(distinct), strict=True))
        self._sums = list(accumulate((sizes[word] for word in words), initial=0))

    def pieces(self, sections: Sequence[Section], chunking: Chunking) -> list[Piece]:
        """Return the pieces of the block, whose sections these are."""
        found = []
        for group in self._groups(sections, chunking.max_tokens):
            path = _path(group)
            for start, end in self._cut(group, chunking):
                found.append(Piece(start, end, self._passage(start, end), path))
        return found

    def _groups(self, sections: Sequence[Section], most: int) -> Iterator[list[Section]]:
        """Yield the sections in order, those together that are not cut apart.

        A heading with nothing beneath it goes with what follows; so do tiny sections, if they fit.
        """
        group: list[Section] = []
        unit: list[Section] = []
        for section in sections:
            unit.append(section)
            if section.body == section.end and section is not sections[-1]:
                continue
            size = self._size(group[0].start, group[-1].end) if group else 0
            if size >= most * _TINY or (group and self._size(group[0].start, section.end) > most):
                yield group
                group = []
            group += unit
            unit = []
        yield group

    def _cut(self, group: Sequence[Section], chunking: Chunking) -> Iterator[tuple[int, int]]:
        """Yield where the pieces of a group begin and end.

        A splitter cuts a heading off from a paragraph that is too long for both. So it gets what
        stands beneath, with less room for the first piece, which then takes the heading in.
        """
        begin, end, most = group[0].start, group[-1].end, chunking.max_tokens
        start = self._first_word(begin, end)
        if start == end:
            return
        if self._size(start, end) <= most:
            yield start, start + len(self._passage(start, end).rstrip())
            return
        body = next((one.body for one in group if one.body < one.end), start)
        above = self._size(start, body)
        if 0 < above < most // 2:
            least = self._even(start, end, chunking)
            reach = self._reach(body, 2 * most, end)
            first, *others = self._split(body, reach, chunking, least, above)
            if others:
                yield start, first[1]
                start = others[0][0]
        yield from self._evened(start, end, chunking)

    def _evened(self, start: int, end: int, chunking: Chunking) -> list[tuple[int, int]]:
        """Return the pieces between two places, the last two of them alike.

        But not where the block ends and the text goes on: the last is cut anew.
        """
        found = list(self._split(start, end, chunking, chunking.max_tokens, 0))
        is_cut_off = self._goes_on and end == self._start + len(self._text)
        if len(found) > 1 and not is_cut_off:
            start = found[-2][0]
            least = self._even(start, end, chunking)
            two = list(self._split(start, end, chunking, least, 0))
            if len(two) <= len(found[-2:]):
                found[-2:] = two
        return found

    def _even(self, start: int, end: int, chunking: Chunking) -> int:
        """Return the tokens of each of two pieces that are alike, or the most there may be.

        nDCG@10 on Cranfield, with the last piece of an abstract as it comes and with these:
        wordllama .3996 and .4038, MiniLM .4347 and .4350.
        """
        both = self._size(start, end) + chunking.overlap_tokens
        return min(ceil(both / 2), chunking.max_tokens)

    def _split(
        self, start: int, end: int, chunking: Chunking, least: int, less: int
    ) -> Iterator[tuple[int, int]]:
        """Yield the pieces between two places, smaller by ``less`` tokens than they may be.

        Each ends where sense would end it, once it has ``least`` tokens with those.
        """
        passage = self._passage(start, end)

        def size(part: str) -> int:
            # Where it stands first will do: the same words are the same tokens.
            place = start + passage.find(part)
            return self._size(place, place + len(part))

        overlap = chunking.overlap_tokens
        sizes = max(least - less, overlap + 1), chunking.max_tokens - less
        splitter = MarkdownSplitter.from_callback(size, sizes, overlap)
        for offset, part in splitter.chunk_indices(passage):
            yield start + offset, start + offset + len(part)

    def _passage(self, start: int, end: int) -> str:
        return self._text[start - self._start : end - self._start]

    def _first_word(self, start: int, end: int) -> int:
        """Return where the first word between two places begins; the end = there is none."""
        return self._word(bisect_left(self._words, start), end)

    def _reach(self, start: int, tokens: int, end: int) -> int:
        """Return a place that so many tokens stand before, or the end."""
        first = self._sums[bisect_left(self._words, start)]
        return self._word(bisect_left(self._sums, first + tokens), end)

    def _word(self, number: int, end: int) -> int:
        return min(self._words[number], end) if number < len(self._words) else end

    def _size(self, start: int, end: int) -> int:
        """Return the tokens between two places."""
        sums, words = self._sums, self._words
        return sums[bisect_left(words, end)] - sums[bisect_left(words, start)]


def _path(group: Sequence[Section]) -> Path:
    """Return the headings above all that stands in some sections, outermost first."""
    paths = [one.path for one in group if one.body < one.end] or [group[-1].path]
    levels = takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False))
    return tuple(level[0] for level in levels)
