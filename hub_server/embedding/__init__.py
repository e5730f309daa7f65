"""The embedding port, and the one place that knows which models there are.

A provider turns texts into unit vectors. Its `model` id is stored beside every vector, because
vectors of two models cannot be compared: another model is another search space.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from pydantic import SecretStr

__all__ = [
    "MODELS",
    "Embedder",
    "EmbeddingError",
    "Remote",
    "TextRefusedError",
    "load_embedder",
    "model_id",
    "remote",
    "window_of",
]

MODELS = ("minilm", "wordllama")
# Known before a model is loaded, which takes a second.
_IDS: Final = {"minilm": "minilm-l6-v2-int8", "wordllama": "wordllama-l2-256"}
_WINDOWS: Final = {"minilm-l6-v2-int8": 254}
# No user, query or fragment in the URL: it stands in logs, so nothing secret may be part of it.
_REMOTE: Final = re.compile(r"openai:([!-?A-~]{1,200})@(https?://[!-~]+)")
_NOT_IN_URL: Final = frozenset("@?#")


class EmbeddingError(RuntimeError):
    """A provider's server is away, refuses, or answers what no vector can be made of.

    The same call may work later. The text tells operators what happened; it holds no word of a
    text, no key, and nothing that a server said.
    """

    retry_after: float | None = None
    """Seconds for which the server asked to be left alone; None = it did not ask."""


class TextRefusedError(EmbeddingError):
    """The server refuses this one text, however short it is cut: a retry will not help."""


class Embedder(Protocol):
    """Turns texts into vectors. Every method may be called from several threads at once."""

    model: str
    """Stable id stored beside each vector, e.g. "minilm-l6-v2-int8"."""

    dimension: int
    """Length of a vector."""

    window: int | None
    """How many tokens of a text it reads; None = all, or as many as only a server knows."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector per text: shape (len(texts), dimension), rows of length 1.

        A text's vector does not depend on the texts embedded with it. Empty text is allowed.
        """
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many of the model's tokens each text has, uncut, without special tokens."""
        ...


@dataclass(frozen=True, slots=True)
class Remote:
    """A model behind a server that speaks /v1/embeddings."""

    model: str
    """What the server calls the model."""

    url: str
    """Where the texts go: the whole URL, with /embeddings."""


def remote(name: str) -> Remote | None:
    """Return the server that `openai:<model>@<url>` names; None = a bundled model.

    `<url>` is what clients of OpenAI call the base URL; one without a path gets /v1.

    Raises:
        ValueError: no provider has that name. The text does not repeat a URL, which may be wrong
            because a password stands in it.

    """
    if name in MODELS:
        return None
    if not name.startswith("openai:"):
        known, kind = ", ".join((*MODELS, "openai:<model>@<url>")), name.partition(":")[0]
        raise ValueError(f"unknown embedding {kind!r}, expected one of: {known}")
    match = _REMOTE.fullmatch(name)
    if match is None or _NOT_IN_URL & set(match[2]) or not _is_whole(match[2]):
        raise ValueError(
            "must be openai:<model>@<url>, the URL like https://host:port/v1, without user or query"
        )
    url = match[2].rstrip("/")
    base = url if urlsplit(url).path else f"{url}/v1"
    return Remote(match[1], f"{base}/embeddings")


def _is_whole(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or brackets around what is no address
        return False


def model_id(name: str) -> str:
    """Return the id of the provider called `name`, as it stands beside vectors.

    Raises:
        ValueError: no provider has that name.

    """
    server = remote(name)
    return _IDS[name] if server is None else f"openai:{server.model}"


def window_of(model: str) -> int | None:
    """Return how many tokens of a text the provider of some id reads; None = no limit is known."""
    return _WINDOWS.get(model)


def load_embedder(name: str, key: SecretStr | None = None) -> Embedder:
    """Load the provider called `name`, as `remote` takes it. Takes about a second.

    `key` is for a server's eyes only; None = it asks for none.

    Raises:
        ValueError: no provider has that name.
        FileNotFoundError: the provider's weights or tokenizer are not installed.
        EmbeddingError: the server is away or refuses.

    """
    server = remote(name)
    # Imported here: a process pays only for the model it uses (onnxruntime alone is ~60 MB).
    if server is not None:
        from hub_server.embedding.openai import OpenAi  # noqa: PLC0415

        return OpenAi(server, key)
    if name == "minilm":
        from hub_server.embedding.minilm import MiniLm  # noqa: PLC0415

        return MiniLm()
    from hub_server.embedding.wordllama import WordLlama256  # noqa: PLC0415

    return WordLlama256()
