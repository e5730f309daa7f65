"""When two texts say the same: what a user is told twice is remembered once, and nothing is lost.

A cosine alone does not tell: "is allergic to nuts" and "is not allergic to nuts", "Ada beats Bob"
and "Bob beats Ada", "has two cats" and "has three cats" are as near as texts that say the same. Nor
does a list of negations: of two texts that differ in a word, one says what the other does not. So
the words have a veto, each of them; the definite article alone may be left out.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Marks that say nothing: quotes, parentheses, and those between sentences and their parts.
_MARKS: Final = (
    r".,;:!'\"()\u2026\u00a1\u2018-\u201f\u00ab\u00bb\u2039\u203a"
    r"\u3001\u3002\uff01\uff08\uff09\uff0c\uff0e\uff1a\uff1b\u300c-\u300f"
)
# Any other character counts, as a word does: C is not C++, -5 is not 5. So does one of `.,:` before
# a word, without a space (ann.lee@x.org, 3.5), and several marks by themselves, as :( does.
_WORD: Final = re.compile(rf"\w+|[.,:](?=\w)|(?<!\S)[^\w\s]{{2,}}(?!\S)|[^\w\s{_MARKS}]")
# Left out, not exchanged: `il le voit` is not `il la voit`. No letters: vitamin A. No indefinite
# ones: `a few` is not `few`, `schläft ein` is not `schläft`.
_ARTICLES: Final[Mapping[str, Sequence[str]]] = {
    "en": ("the",),
    "de": ("der", "die", "das", "den", "dem", "des"),
    "fr": ("le", "la", "les"),
    "es": ("el", "la", "los", "las"),
    "it": ("il", "lo", "la", "gli", "le"),
    "nl": ("de", "het"),
    "pt": ("os", "as"),
}


def words(text: str) -> Sequence[str]:
    """Return what equal texts share: all but case, spaces and marks that say nothing.

    Without normalizing more than equal letters written otherwise: 10² is not 102, nor Maße Masse.
    """
    return _WORD.findall(unicodedata.normalize("NFC", text).lower()) or [text]


def content_hash(text: str) -> bytes:
    """Return the SHA-256 of the words of a text, by which equal ones are found."""
    return hashlib.sha256(" ".join(words(text)).encode()).digest()


def cosine(one: bytes, other: bytes) -> float:
    """Return the cosine of two stored vectors; 0 if either is zero or their lengths differ."""
    first, second = _vector(one), _vector(other)
    if len(first) != len(second):
        return 0.0
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / norms if norms else 0.0


def says_the_same(one: str, other: str, language: str) -> bool:
    """Tell whether two near texts differ in nothing but articles that one of them leaves out."""
    primary = re.split("[-_]", language.lower(), maxsplit=1)[0]
    articles = _ARTICLES.get(primary, ())
    first, second = _parted(words(one), articles), _parted(words(other), articles)
    return [word for _, word in first] == [word for _, word in second] and all(
        mine == theirs or not mine or not theirs
        for (mine, _), (theirs, _) in zip(first, second, strict=True)
    )


def _parted(said: Sequence[str], articles: Sequence[str]) -> list[tuple[list[str], str]]:
    """Return each word that is no article with the articles before it; the last has no word."""
    parted: list[tuple[list[str], str]] = []
    before: list[str] = []
    for word in said:
        if word in articles:
            before.append(word)
        else:
            parted.append((before, word))
            before = []
    return [*parted, (before, "")]


def _vector(raw: bytes) -> NDArray[np.float32]:
    return np.frombuffer(raw, dtype="<f4")
