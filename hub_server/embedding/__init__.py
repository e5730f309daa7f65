"""The embedding port, and the one place that knows which models there are.

A provider turns texts into unit vectors. Its `model` id is stored beside every vector, because
vectors of two models cannot be compared: another model is another search space.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["MODELS", "Embedder", "load_embedder"]

MODELS = ("minilm", "wordllama")


class Embedder(Protocol):
    """Turns texts into vectors. Every method may be called from several threads at once."""

    model: str
    """Stable id stored beside each vector, e.g. "minilm-l6-v2-int8"."""

    dimension: int
    """Length of a vector."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector per text: shape (len(texts), dimension), rows of length 1.

        A text's vector does not depend on the texts embedded with it. Empty text is allowed.
        """
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many of the model's tokens each text has, uncut, without special tokens."""
        ...


def load_embedder(name: str) -> Embedder:
    """Load the provider called `name`, one of MODELS. Takes about a second.

    Raises:
        ValueError: no provider has that name.
        FileNotFoundError: the provider's weights or tokenizer are not installed.

    """
    # Imported here: a process pays only for the model it uses (onnxruntime alone is ~60 MB).
    if name == "minilm":
        from hub_server.embedding.minilm import MiniLm  # noqa: PLC0415

        return MiniLm()
    if name == "wordllama":
        from hub_server.embedding.wordllama import WordLlama256  # noqa: PLC0415

        return WordLlama256()
    raise ValueError(f"unknown embedding {name!r}, expected one of: {', '.join(MODELS)}")
