"""Counts tokens where callers do not: with the package ``tokenizers`` and Llama 2's vocabulary.

The vocabulary (byte-pair encoding, 32,000 tokens) comes with the package ``wordllama``, so nothing
is downloaded. Models differ in their vocabularies, and so would counts; for English text this one
and OpenAI's o200k_base agree to a few percent.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer as Encoder

from hub_server.workers import Workers

_VOCABULARY: Final = Path("tokenizers", "l2_supercat_tokenizer_config.json")
# About a microsecond a character: more than this would hold up the event loop.
_MOST_AT_ONCE: Final = 2000
_THREADS: Final = 2
_MOST_WAITING: Final = 256


class Tokenizer:
    """A vocabulary, and threads for long texts."""

    def __init__(self) -> None:
        """Load the vocabulary from the installed package. Raises FileNotFoundError."""
        spec = find_spec("wordllama")
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError("the package wordllama is not installed")
        file = Path(spec.submodule_search_locations[0]) / _VOCABULARY
        self._encoder = Encoder.from_file(str(file))
        self._workers = Workers("count", threads=_THREADS, most_waiting=_MOST_WAITING)

    async def counts(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has. Raises OVERLOADED when too many texts wait."""
        if sum(map(len, texts)) <= _MOST_AT_ONCE:
            return self._counts(texts)
        return await self._workers.run(lambda: self._counts(texts))

    def close(self) -> None:
        """End the threads."""
        self._workers.close()

    def _counts(self, texts: Sequence[str]) -> list[int]:
        encodings = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding.ids) for encoding in encodings]
