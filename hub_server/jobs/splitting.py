"""Splitting: a document's text becomes the pieces that are embedded and found.

A piece is cut where Markdown or sense would, and holds nothing of another section: a piece that
speaks of two things is found by neither. But sections of a few words are taken together with the
next, until they are worth a piece of their own. The last two pieces of a section are alike:
were the last but one filled to the brim, a few words could be left for the last. Code too large for
a piece is cut by its lines, and its fences go with those: a splitter leaves them on their own, as
it does a few words before a paragraph that is too long for both.

A splitter asks for the size of a passage some 6,000 times for a megabyte of text, of passages
that overlap: counting tokens anew each time takes 4 to 10 seconds of computing (MiniLM; 4 MiB took
four times that). So the words are counted once, and a passage's size is a difference of two sums.
What is left takes a second for a megabyte, in steps of some 30 ms each.
"""

import re
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, takewhile
from math import ceil
from typing import Final, NamedTuple

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from hub_server.jobs.outline import Code, Outline, Path, Section
from hub_server.knowledge.chunking import Chunking

BLOCK_CHARS: Final = 32_768
# Sections smaller than this part of a piece are no piece of their own, or 4 MiB of headings would
# make a million. nDCG@10 with wordllama on Cranfield, twenty abstracts to a document, a hundred
# characters of each, by part: 0 .349, 1/16 .349, 1/8 .349, 1/4 .312, 1/2 .300.
_TINY: Final = 1 / 8
_FEW: Final = 10  # tokens that are no piece either, in a section that has more
# What is counted at once: a word, or as much of a long one (base64, scripts without spaces).
_WORD: Final = re.compile(r"\S{1,16}")
_PARAGRAPH: Final = re.compile(r"\n\s*\n|\r\s*\r")
_ENDS: Final = ("\n\n", "\n", " ")

CountTokens = Callable[[Sequence[str]], list[int]]
Place = tuple[int, int]
"""Where something begins and ends."""


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
        sections, code = outline.sections(start, end), outline.code(start, end)
        found = _Block(text, start, end, count_tokens).pieces(sections, code, chunking)
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


class _Part(NamedTuple):
    """What is cut by itself: text with its headings, or code with its fences."""

    start: int
    body: int
    """What stands before goes with the first piece."""
    rest: int
    """What stands from here on goes with the last one."""
    end: int
    is_code: bool


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

    def pieces(
        self, sections: Sequence[Section], code: Sequence[Code], chunking: Chunking
    ) -> list[Piece]:
        """Return the pieces of the block, whose sections and code these are."""
        large = [one for one in code if self._is_large(one, chunking.max_tokens)]
        found = []
        for group in self._groups(sections, chunking.max_tokens):
            path = _path(group)
            for start, end in self._cut(group, large, chunking):
                found.append(Piece(start, end, self._passage(start, end), path))
        return found

    def _is_large(self, code: Code, most: int) -> bool:
        """Tell whether code would be cut inside, where a piece has less room, not for its fences.

        The least room is three quarters: see `_joined`.
        """
        fences = self._size(code.start, code.body) + self._size(code.rest, code.end)
        return self._size(code.start, code.end) > most - most // 4 and fences < most // 4

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

    def _cut(
        self, group: Sequence[Section], code: Sequence[Code], chunking: Chunking
    ) -> Iterator[Place]:
        """Yield where the pieces of a group begin and end."""
        begin, end = group[0].start, group[-1].end
        start = self._first_word(begin, end)
        if start == end:
            return
        most = chunking.max_tokens
        if self._size(start, end) <= most:
            yield self._trimmed(start, end)
            return
        body = next((one.body for one in group if one.body < one.end), start)
        within = code[bisect_left(code, (begin,)) : bisect_left(code, (end,))]
        for part in self._parts(start, body, end, within, most):
            if self._size(part.start, part.end) <= most:
                yield self._trimmed(part.start, part.end)
            elif part.is_code:
                yield from self._of_code(part, chunking)
            else:
                yield from self._of_text(part, chunking)

    def _parts(
        self, start: int, body: int, end: int, code: Sequence[Code], most: int
    ) -> Iterator[_Part]:
        """Yield text and code between two places; a few words go with the code beside them."""
        last: _Part | None = None
        few = max(_few(most), int(most * _TINY))
        for one in code:
            if last is not None:
                yield last
            if self._size(start, one.start) >= (most // 4 if one.start <= body else few):
                yield _Part(start, max(start, body), one.start, one.start, is_code=False)
                start = one.start
            last = _Part(start, one.body, one.rest, one.end, is_code=True)
            start = self._first_word(one.end, end)
        if last is not None and self._size(start, end) < few:
            yield last._replace(end=end)
            return
        if last is not None:
            yield last
        yield _Part(start, max(start, body), end, end, is_code=False)

    def _of_code(self, part: _Part, chunking: Chunking) -> list[Place]:
        """Return the pieces of code. There is room for what goes with the first and the last."""
        less = self._size(part.start, part.body) + self._size(part.rest, part.end)
        found = self._joined(self._evened(part.body, part, chunking, less), part, chunking, less)
        start, end = self._trimmed(part.start, part.end)
        found[0] = start, found[0][1]
        found[-1] = found[-1][0], end
        return found

    def _of_text(self, part: _Part, chunking: Chunking) -> list[Place]:
        """Return the pieces of text with its headings.

        A splitter cuts a heading off from a paragraph that is too long for both. So it gets what
        stands beneath, with less room for the first piece, which then takes the heading in.
        """
        start, end, most = part.start, part.end, chunking.max_tokens
        found = []
        above = self._size(start, part.body)
        if 0 < above < most // 2:
            least = self._even(start, end, chunking)
            reach = self._reach(part.body, 2 * most, end)
            first, *others = self._split(part.body, reach, chunking, least, above)
            if others:
                found = [(start, first[1])]
                start = others[0][0]
        return self._joined([*found, *self._evened(start, part, chunking, 0)], part, chunking, 0)

    def _evened(self, start: int, part: _Part, chunking: Chunking, less: int) -> list[Place]:
        """Return the pieces of a part from a place on, the last two of them alike.

        But not where the block ends and the text goes on: the last is cut anew.
        """
        end, is_code = part.rest, part.is_code
        found = list(self._split(start, end, chunking, chunking.max_tokens, less, is_code=is_code))
        if len(found) > 1 and not self._is_cut_off(part):
            start = found[-2][0]
            least = self._even(start, end, chunking)
            two = list(self._split(start, end, chunking, least, less, is_code=is_code))
            if len(two) <= len(found[-2:]):
                found[-2:] = two
        return found

    def _joined(
        self, found: Iterable[Place], part: _Part, chunking: Chunking, less: int
    ) -> list[Place]:
        """Return pieces of which none is a few words.

        These take some of what follows; the end of a paragraph, and of the part, of what precedes.
        """
        few, most = _few(chunking.max_tokens), chunking.max_tokens
        todo, joined = deque(found), list[Place]()
        while todo:
            start, end = todo.popleft()
            begin, before = joined[-1] if joined else (start, start)
            is_end = not self._is_cut_off(part) if not todo else self._is_one(before, start)
            if joined and self._size(begin, before) < few:
                above = self._size(begin, start) + less
                least = self._even(begin, end, chunking)
                places = list(self._split(start, end, chunking, least, above, is_code=part.is_code))
                joined[-1] = begin, places[0][1]
                # But not the overlap alone, which what follows begins with.
                more = [one for one in places[1:] if not todo or one[0] < todo[0][0]]
                todo.extendleft(reversed(more))
                continue
            joined.append((start, end))
            if len(joined) > 1 and is_end and self._size(start, end) < few:
                room = max(less, most // 4)
                places = list(self._split(begin, end, chunking, most, room, is_code=part.is_code))
                if all(self._size(*place) >= few for place in places):
                    joined[-2:] = places
        return joined

    def _is_one(self, end: int, start: int) -> bool:
        """Tell whether a piece is of the paragraph of that before it."""
        return not _PARAGRAPH.search(self._passage(end, start))

    def _is_cut_off(self, part: _Part) -> bool:
        """Tell whether a part ends with the block, and the text goes on."""
        return self._goes_on and part.end == self._start + len(self._text)

    def _even(self, start: int, end: int, chunking: Chunking) -> int:
        """Return the tokens of each of two pieces that are alike, or the most there may be.

        nDCG@10 on Cranfield, with the last piece of an abstract as it comes and with these:
        wordllama .3996 and .4038, MiniLM .4347 and .4350.
        """
        both = self._size(start, end) + chunking.overlap_tokens
        return min(ceil(both / 2), chunking.max_tokens)

    def _split(
        self,
        start: int,
        end: int,
        chunking: Chunking,
        least: int,
        less: int,
        *,
        is_code: bool = False,
    ) -> Iterator[Place]:
        """Yield the pieces between two places, smaller by ``less`` tokens than they may be.

        Each ends where sense would end it, once it has ``least`` tokens with those.
        """
        passage = self._passage(start, end)

        def size(part: str) -> int:
            # Where it stands first will do: the same words are the same tokens.
            place = start + passage.find(part)
            return self._size(place, place + len(part))

        most = chunking.max_tokens - less
        overlap = min(chunking.overlap_tokens, most // 2)
        sizes = max(min(least - less, most), overlap + 1), most
        kind = TextSplitter if is_code else MarkdownSplitter
        splitter = kind.from_callback(size, sizes, overlap)
        for offset, part in splitter.chunk_indices(passage):
            yield start + offset, start + offset + len(part)

    def _trimmed(self, start: int, end: int) -> Place:
        """Return a place without the space around it."""
        start = self._first_word(start, end)
        return start, start + len(self._passage(start, end).rstrip())

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


def _few(most: int) -> int:
    """Return from which size on words of a section are a piece of their own."""
    return min(_FEW, most // 4)


def _path(group: Sequence[Section]) -> Path:
    """Return the headings above all that stands in some sections, outermost first."""
    paths = [one.path for one in group if one.body < one.end] or [group[-1].path]
    levels = takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False))
    return tuple(level[0] for level in levels)
