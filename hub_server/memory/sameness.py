"""When two texts say the same: what a user is told twice is remembered once.

A cosine alone does not tell. Of twelve pairs that contradict each other ("is allergic to nuts", "is
not allergic to nuts"; "Ada beats Bob", "Bob beats Ada"; born in 1990, in 1991) MiniLM gives two a
cosine above .95 and wordllama, which does not see the order of words, three; of eight pairs that
say the same it is six and four. So the words have a veto.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hub_server.retrieval.text import analyzer

_NOT_A_WORD: Final = re.compile(r"[\W_]+")
# A text without any of these may still deny; one with another number of them does not say the same.
_NEGATIONS: Final = """
    no not never none nobody nothing neither nor without cannot hardly rarely t stop stopped
    nicht kein keine keinen keinem keiner nie niemals ohne nichts weder
    ne pas jamais sans aucun aucune rien plus
    nunca jamás sin ningún ninguna nada tampoco
    non mai senza nessuno nessuna niente
    niet geen nooit zonder não sem nenhum nenhuma
"""


def content_hash(text: str) -> bytes:
    """Return what texts share that are equal but for case, spaces and punctuation.

    SHA-256. A text without any word is only equal to itself.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = _NOT_A_WORD.sub(" ", folded).strip()
    return hashlib.sha256((words or text).encode()).digest()


def cosine(one: bytes, other: bytes) -> float:
    """Return the cosine of two stored vectors; 0 if either is zero or their lengths differ."""
    first, second = _vector(one), _vector(other)
    if len(first) != len(second):
        return 0.0
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / norms if norms else 0.0


def says_the_same(one: str, other: str, language: str) -> bool:
    """Tell whether nothing in the words of two near texts makes them say different things.

    The words they share must stand in the same order, and those that only one has must be neither
    numbers nor negations.
    """
    terms = analyzer(language).terms
    first, second = terms(one), terms(other)
    if _shared(first, second) != _shared(second, first):
        return False
    own = set(first) ^ set(second)
    denied = set(terms(_NEGATIONS))
    return not any(term in denied or any(map(str.isdigit, term)) for term in own)


def _shared(terms: Sequence[str], others: Sequence[str]) -> list[str]:
    known = set(others)
    return [term for term in terms if term in known]


def _vector(raw: bytes) -> NDArray[np.float32]:
    return np.frombuffer(raw, dtype="<f4")
