"""Text to terms: the same folding for what is indexed and what is asked.

No stop words: on Cranfield they change nothing (nDCG@10 of BM25 .3877 without, .3874 with
Lucene's 33 English ones), since idf already weighs them at almost zero. Stemming does: the same
without it is .368.
"""

import re
import threading
import unicodedata
from collections.abc import Collection, Sequence
from functools import cache, lru_cache
from typing import Any

import Stemmer

__all__ = ["Analyzer", "analyzer"]

# Scripts written without spaces, indexed as character bigrams, as Lucene's CJKAnalyzer does:
# Hiragana, Katakana, Hangul, Han with its extensions, and the iteration mark.
_UNSPACED = (
    "\u3005\u3040-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u1100-\u11ff\uac00-\ud7af"
)

# The pattern below never mixes the two kinds in one run, so the first character tells.
_unspaced_first = re.compile(f"[{_UNSPACED}]")

# PyStemmer knows Norwegian by the macro-language's code only.
_SAME_STEMMER = {"nb": "no", "nn": "no"}

# The only languages whose lower case of I is not i.
_DOTLESS = {"tr", "az"}


# Normalizing joins these to what is before them, beside combining marks: vowels and finals of
# Hangul, and the voiced sounds of narrow Katakana.
_JOINING = "\u1160-\u11ff\uff9e\uff9f"


@cache
def _marks() -> str:
    return "".join(
        chr(code)
        for code in range(0x300, 0x10000)
        if unicodedata.category(chr(code)) in {"Mn", "Mc"}
    )


@cache
def _pattern() -> re.Pattern[str]:
    # Python's \w leaves out combining marks, and so would cut Hindi or Thai words at each vowel.
    return re.compile(rf"[{_UNSPACED}]+|(?:(?![{_UNSPACED}])[\w{_marks()}])+")


_ASCII_WORD = re.compile(r"\w+", re.ASCII)
_WORDS = re.compile(r"\S+|\s+")


def _runs(folded: str) -> re.Pattern[str]:
    """Return what finds the runs of a folded text; of ASCII it takes half the time."""
    return _ASCII_WORD if folded.isascii() else _pattern()


@cache
def _letters() -> re.Pattern[str]:
    return re.compile(rf".[{_marks()}{_JOINING}]*", re.DOTALL)


@cache
def _joining() -> re.Pattern[str]:
    return re.compile(rf"[{_marks()}{_JOINING}]")


def _is_even(text: str, folded: str) -> bool:
    """Tell whether each character of a text has become one, in its place."""
    # What grows elsewhere may not hide what was joined: only marks and their like are.
    return len(text) == len(folded) and (
        text.isascii() or (unicodedata.is_normalized("NFKC", text) and not _joining().search(text))
    )


@cache
def _parts() -> re.Pattern[str]:
    """Match what is normalized at once: up to the end of a word, or else of a letter.

    Marks in a row take the square of their number, in which no other thread runs: 1.0 s for 32,000.
    """
    return re.compile(
        rf".{{1,1000}}(?!\S)|.{{1,1000}}(?![{_marks()}{_JOINING}])|.{{1,1000}}", re.DOTALL
    )


class Analyzer:
    """Splits text into the terms one language is searched by. May be shared by threads."""

    def __init__(self, language: str) -> None:
        """`language` is a BCP 47 tag; one without a Snowball stemmer gets no stemming."""
        self._primary = re.split("[-_]", language.strip().lower(), maxsplit=1)[0]
        code = _SAME_STEMMER.get(self._primary, self._primary)
        # A Snowball stemmer has internal state: two threads inside it corrupt one another.
        self._lock = threading.Lock()
        self._stemmer = _stemmer(code)

    def terms(self, text: str) -> list[str]:
        """Return the terms to index `text` by, repeats kept, in no order that means anything.

        Runs of unspaced script give their bigrams and their single characters too, so that a
        query of one character finds the words it stands in.
        """
        return self._terms(text, singles=True)

    def query_terms(self, text: str) -> list[str]:
        """Return the terms to search by: as `terms`, but single characters only when alone."""
        return self._terms(text, singles=False)

    def matches(self, text: str, terms: Collection[str]) -> list[tuple[int, int]]:
        """Return where `text` has these terms: ranges of its characters, in order and apart."""
        if text.isascii():  # a letter each, and all words spaced: five times as fast
            folded = self._fold(text)
            words = [run.span() for run in _runs(folded).finditer(folded)]
            return self._spans(folded, words, terms)
        folded, starts, ends = self._folded(text)
        words = []
        found: list[tuple[int, int]] = []
        for run in _runs(folded).finditer(folded):
            if _unspaced_first.match(run.group()):
                for size in (1, 2):
                    spans = ((at, at + size) for at in range(run.start(), run.end() - size + 1))
                    found += (span for span in spans if folded[slice(*span)] in terms)
            else:
                words.append(run.span())
        found += self._spans(folded, words, terms)
        return _joined([(starts[start], ends[end - 1]) for start, end in found])

    def _spans(
        self, folded: str, words: Sequence[tuple[int, int]], terms: Collection[str]
    ) -> list[tuple[int, int]]:
        """Return the words, by where they are, whose stems are such terms."""
        stems = self._stem([folded[start:end] for start, end in words])
        return [word for word, stem in zip(words, stems, strict=True) if stem in terms]

    def _folded(self, text: str) -> tuple[str, Sequence[int], Sequence[int]]:
        """Return a text folded, and for each of its characters where it was before, from and to.

        Words that change in length are folded letter by letter, marks included, which is what the
        whole gives: but for Hangul in narrow letters, some of whose syllables stay apart.
        """
        folded: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        for word in _WORDS.finditer(text):
            whole, (begin, end) = self._fold(word.group()), word.span()
            if _is_even(word.group(), whole):
                folded.append(whole)
                starts += range(begin, end)
                ends += range(begin + 1, end + 1)
                continue
            for letter in _letters().finditer(text, begin, end):
                folded.append(part := self._fold(letter.group()))
                starts += [letter.start()] * len(part)
                ends += [letter.end()] * len(part)
        return "".join(folded), starts, ends

    def _terms(self, text: str, *, singles: bool) -> list[str]:
        words: list[str] = []
        terms: list[str] = []
        folded = self._fold(text)
        for run in _runs(folded).findall(folded):
            if not _unspaced_first.match(run):
                words.append(run)
                continue
            if singles or len(run) == 1:
                terms.extend(run)
            terms.extend(run[place : place + 2] for place in range(len(run) - 1))
        return self._stem(words) + terms

    def _fold(self, text: str) -> str:
        if text.isascii() and self._primary not in _DOTLESS:
            return text.lower()
        return "".join(self._fold_part(part) for part in _parts().findall(text))

    def _fold_part(self, text: str) -> str:
        text = unicodedata.normalize("NFKC", text)
        if self._primary in _DOTLESS:
            text = text.replace("\u0130", "i").replace("I", "\u0131")
        # Casefolding can leave composed letters decomposed, hence the second pass.
        return unicodedata.normalize("NFKC", text.casefold())

    def _stem(self, words: list[str]) -> list[str]:
        if self._stemmer is None:
            return words
        with self._lock:
            stems: list[str] = self._stemmer.stemWords(words)
        return stems


@lru_cache(maxsize=64)
def analyzer(language: str) -> Analyzer:
    """Return the one analyzer of a language: a stemmer remembers up to 10,000 words, some MB."""
    return Analyzer(language)


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges in order, those that overlap or touch as one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _stemmer(code: str) -> Any | None:
    # Only codes: PyStemmer would also take the name of an algorithm, as "porter".
    if len(code) not in {2, 3}:
        return None
    try:
        return Stemmer.Stemmer(code)
    except KeyError:
        return None
