"""Counts tokens where callers do not: with the package ``tokenizers`` and Llama 2's vocabulary.

Models differ in their vocabularies, and so would counts; for English text this one and OpenAI's
o200k_base agree to a few percent.
"""

from collections.abc import Sequence
from typing import Final

from hub_server.embedding.vocabulary import load_vocabulary
from hub_server.workers import Workers

# About a microsecond a character: more than this would hold up the event loop.
_MOST_AT_ONCE: Final = 2000
_THREADS: Final = 2
_MOST_WAITING: Final = 256


class Tokenizer:
    """A vocabulary, and threads for long texts."""

    def __init__(self) -> None:
        """Load the vocabulary from the installed package. Raises FileNotFoundError."""
        self._encoder = load_vocabulary()
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
