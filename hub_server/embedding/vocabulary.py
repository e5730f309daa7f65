"""Llama 2's vocabulary, with which tokens are counted where no model's own is at hand.

It (byte-pair encoding, 32,000 tokens) comes with the package ``wordllama``, so nothing is
downloaded.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

__all__ = ["load_vocabulary"]

_FILE: Final = Path("tokenizers", "l2_supercat_tokenizer_config.json")


@cache
def load_vocabulary() -> Tokenizer:
    """Load it from the installed package, once; nobody may change it. Raises FileNotFoundError."""
    spec = find_spec("wordllama")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the package wordllama is not installed")
    return Tokenizer.from_file(str(Path(spec.submodule_search_locations[0]) / _FILE))
