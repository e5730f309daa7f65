"""The outline of a text: its sections with the headings that each stands under, and its code.

Headings are those of CommonMark that stand at the margin, ``# so`` or underlined; a fence, a list
or a quote has none. Code is what stands between fences. It is read line by line and no further than
asked: of a user's 4 MiB of short lines a Markdown parser makes gigabytes of tokens.
"""

import re
from bisect import bisect_left, bisect_right
from typing import Final, NamedTuple

_LONGEST_LINE: Final = 1000  # a longer one is not looked into: it is text
_LONGEST_HEADING: Final = 200  # the rest is cut off; underlined, it is text
_CODE_INDENT: Final = 4
# How far to read beyond a place to know each heading that begins before it, underlines too.
_AHEAD: Final = _LONGEST_HEADING + 1

_SOLID: Final = re.compile(r"\S")
_LINE: Final = re.compile(r"[^\r\n]*(\r\n?|\n|\Z)")
_MARKERS: Final = re.compile(r"(?:(?:[-+*]|\d{1,9}[.)])[ \t]+)*")
_FENCE: Final = re.compile(r"(`{3,})[^`]*$|(~{3,})")
_HEADING: Final = re.compile(r"#{1,6}(?=[ \t]|$)")
_CLOSING: Final = re.compile(r"(?:^|[ \t])#+$")
_UNDERLINES: Final = (("=", 1), ("-", 1))  # of level 1 and 2: a character, and no other
_RULE: Final = re.compile(r"([-*_])(?:[ \t]*\1){2,}$")
_ITEM: Final = re.compile(r"(?:[-+*]|\d{1,9}[.)])[ \t]+\S")
_WITHIN: Final = re.compile(r"(?:[-+*]|\d{1,9}[.)])(?:[ \t]|$)|[<>]")
# What generators of sites want first, between lines of dashes that underline nothing.
_FRONT: Final = re.compile(
    r"\ufeff?---[ \t]*\r?\n(?=[\w-]+[ \t]*:)(?s:.{0,8000}?)\n(?:---|\.\.\.)[ \t]*(?=[\r\n]|\Z)"
)

Path = tuple[str, ...]
"""The texts of headings, outermost first."""


class Section(NamedTuple):
    """A part of a text that begins with a heading and ends before the next one."""

    start: int
    body: int
    """Where its first word beneath the heading stands. The end = there is none."""
    end: int
    path: Path


class Code(NamedTuple):
    """Fenced code: from its opening line to the end of its closing one."""

    start: int
    body: int
    """Where its first line of code begins."""
    rest: int
    """Where its closing line begins. The end = it has none."""
    end: int


class Outline:
    """The sections of one text, and its code."""

    def __init__(self, text: str) -> None:
        """Read what stands before the text itself, if anything does."""
        self._text = text
        front = _FRONT.match(text)
        self._place = front.end() if front else 0  # how far it is read
        # Of each section: its first character, the first beneath its heading, and its path.
        self._starts, self._bodies, self._paths = [0], [self._place], [Path()]
        self._above: list[tuple[int, str]] = []  # the headings in force, with their levels
        self._code: list[Code] = []  # the last may go on to whatever end
        self._fence = ""  # what the fence began with that is not closed
        self._paragraph: int | None = None  # the start of one that a line may underline
        self._is_within = False  # a list, a quote or HTML, until a blank line
        self._has_item = False  # of a list, to which what is indented belongs after a blank line

    def sections(self, start: int, end: int) -> list[Section]:
        """Return the sections between two places in order, the first and last cut off there.

        What stands before ``start`` is forgotten: a text may have a million of them.
        """
        self._read(end + _AHEAD)
        first = bisect_right(self._starts, start) - 1
        for column in (self._starts, self._bodies, self._paths):
            del column[:first]
        starts = [start, *self._starts[1 : bisect_left(self._starts, end)]]
        ends = [*starts[1:], end]
        rows = zip(starts, ends, self._bodies, self._paths, strict=False)  # some are further on
        return [
            Section(begin, self._first_word(max(begin, body), stop), stop, path)
            for begin, stop, body, path in rows
        ]

    def code(self, start: int, end: int) -> list[Code]:
        """Return the code between two places that sections were asked for, cut off there."""
        del self._code[: bisect_right(self._code, start, key=lambda one: one.end)]
        stop = bisect_left(self._code, end, key=lambda one: one.start)
        return [Code(*(min(max(place, start), end) for place in one)) for one in self._code[:stop]]

    def _first_word(self, start: int, end: int) -> int:
        match = _SOLID.search(self._text, start, end)
        return match.start() if match else end

    def _read(self, until: int) -> None:
        until = min(until, len(self._text))
        while self._place < until and (match := _LINE.match(self._text, self._place)):
            start, self._place = self._place, match.end()
            self._take(start, self._text[start : min(match.start(1), start + _LONGEST_LINE + 1)])

    def _take(self, start: int, line: str) -> None:
        """Read one line."""
        bare = line.strip(" \t") if len(line) <= _LONGEST_LINE else "x"
        indent = line[: len(line) - len(line.lstrip(" \t"))].expandtabs(_CODE_INDENT)
        if self._fence:
            if bare.startswith(self._fence) and not bare.strip(self._fence[0]):
                self._fence = ""
                self._code[-1] = self._code[-1]._replace(rest=start, end=self._place)
        elif len(indent) >= _CODE_INDENT and bare:
            # Code, or more of a paragraph; or a paragraph of a list, which goes on at the margin.
            self._is_within = self._is_within or (self._paragraph is None and self._has_item)
        elif match := _FENCE.match(_MARKERS.sub("", bare, count=1)):
            self._fence, self._paragraph, self._is_within = match[1] or match[2], None, False
            self._has_item = self._has_item and bool(indent or not _FENCE.match(bare))
            self._code.append(Code(start, self._place, len(self._text), len(self._text)))
        elif not indent and (match := _HEADING.match(bare)):
            self._begin(start, len(match[0]), _CLOSING.sub("", bare[match.end() :]))
        elif self._paragraph is not None and (bare[:1], len(set(bare))) in _UNDERLINES:
            # Plain text draws lines beneath whole paragraphs: those are no headings.
            if start - self._paragraph <= _LONGEST_HEADING:
                level = 1 + _UNDERLINES.index((bare[0], 1))
                self._begin(self._paragraph, level, self._text[self._paragraph : start])
            self._paragraph = None
        else:
            self._go_on(start, bare, is_at_margin=not indent)

    def _begin(self, start: int, level: int, text: str) -> None:
        """Begin a section with the heading that the line ends which is read."""
        title = " ".join(text.split())[:_LONGEST_HEADING]
        self._paragraph, self._is_within, self._has_item = None, False, False
        if not title:
            return
        self._above = [*(one for one in self._above if one[0] < level), (level, title)]
        if start == self._starts[-1]:  # the text's first character
            del self._starts[-1], self._bodies[-1], self._paths[-1]
        self._starts.append(start)
        self._bodies.append(self._place)
        self._paths.append(tuple(text for _, text in self._above))

    def _go_on(self, start: int, bare: str, *, is_at_margin: bool) -> None:
        """Note what a line that is no heading makes of the next."""
        if not bare or _RULE.match(bare):
            self._paragraph, self._is_within = None, False
            self._has_item = self._has_item and not (bare and is_at_margin)
        elif _WITHIN.match(bare):
            self._paragraph, self._is_within = None, True
            self._has_item = self._has_item or bool(_ITEM.match(bare))
        elif self._paragraph is None and not self._is_within:
            self._paragraph, self._is_within = (start, False) if is_at_margin else (None, True)
            self._has_item = self._has_item and not is_at_margin
