"""Any server that speaks /v1/embeddings: OpenAI's own, vLLM, TEI, llama.cpp, Ollama.

What it answers is not trusted: each vector is taken by its ``index``, and an answer that lacks one,
or has one too many, of another length, or without a direction, is an error that is told.

How much of a text the model reads only the server knows, and each tells it in other words. So a
batch that is refused (400, 413, 422) is halved until the text in question is alone; that text is
then cut to its first half, quarter, eighth …, until it is taken. This remembers nothing: a
text's vector does not depend on the texts before it.
"""

import datetime as dt
import json
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import SecretStr

from hub_server.embedding import EmbeddingError, Remote, TextRefusedError
from hub_server.embedding.endpoint import Answer, Endpoint, TooLargeError
from hub_server.embedding.vocabulary import load_vocabulary

__all__ = ["OpenAi"]

# Of one request. A larger text goes alone.
_MOST_TOKENS: Final = 8_192
_MOST_TEXTS: Final = 32
_MOST_CUTS: Final = 6  # to a 64th

_OK: Final = 200
_PASSING: Final = frozenset((408, 409, 429, *range(500, 600)))
_REFUSALS: Final = frozenset((400, 413, 422))  # of what was sent, rather than of who sends
_HINTS: Final = {
    401: ": is HUB_EMBEDDING_KEY right?",
    403: ": may HUB_EMBEDDING_KEY do this?",
    404: ": does the server have this model at this URL?",
    **dict.fromkeys((301, 302, 303, 307, 308), ": the hub follows no redirect"),
}

# What a query may take, with all its retries; each further text of a call adds to it. Sixteen
# chunks of a document come to 25 seconds, less than a lease of ingestion.
_SECONDS: Final = 10.0
_SECONDS_PER_TEXT: Final = 1.0
_MOST_TRIES: Final = 5
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 4.0
_LONGEST_RETRY_AFTER: Final = 60.0
_SECONDS_TEXT: Final = re.compile(r"\d{1,9}(\.\d{1,9})?")

log: structlog.stdlib.BoundLogger = structlog.get_logger("hub.embedding")

Vectors = NDArray[np.float32]


class OpenAi:
    """The provider `openai:<model>@<url>`."""

    def __init__(
        self,
        remote: Remote,
        key: SecretStr | None,
        *,
        pause: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask the server for one vector, to learn their length. Raises EmbeddingError."""
        self.model: str = f"openai:{remote.model}"
        self.window: int | None = None  # each server has its own, and does not tell
        self._remote = remote
        self._endpoint = Endpoint(remote.url, key)
        self._closed = threading.Event()
        self._pause = pause or self._closed.wait
        self._clock = clock
        self._vocabulary = load_vocabulary()
        self.dimension: int = 0  # not known yet
        self.dimension = self._ask(["dimension"], self._clock() + _SECONDS).shape[1]
        # A text of nothing but white space, which servers refuse, gets a direction of its own
        # that is near to no text's, and the same in every process.
        signs = np.where(np.arange(self.dimension) % 2, -1.0, 1.0)
        self._nothing: Vectors = (signs / np.sqrt(self.dimension)).astype(np.float32)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors of shape (len(texts), dimension). Raises EmbeddingError."""
        end = self._clock() + _SECONDS + _SECONDS_PER_TEXT * max(len(texts) - 1, 0)
        vectors = np.tile(self._nothing, (len(texts), 1))
        filled = [place for place, text in enumerate(texts) if text.strip()]
        counts = self.count_tokens([texts[place] for place in filled])
        try:
            for batch in _batches(counts):
                places = [filled[number] for number in batch]
                vectors[places] = self._vectors([texts[place] for place in places], end)
        except EmbeddingError as error:
            log.warning("not embedded", fault=str(error))
            raise
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text, by the hub's vocabulary: the model's own is not known."""
        encodings = self._vocabulary.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding.ids) for encoding in encodings]

    def close(self) -> None:
        """Break off what is under way: a hub that stops does not wait for another server."""
        self._closed.set()
        self._endpoint.close()

    def _vectors(self, texts: Sequence[str], end: float) -> Vectors:
        try:
            return self._ask(texts, end)
        except TextRefusedError as refusal:
            if len(texts) == 1:
                return self._cut(texts[0].strip(), end, refusal)
        middle = len(texts) // 2
        halves = (texts[:middle], texts[middle:])
        return np.vstack([self._vectors(half, end) for half in halves])

    def _cut(self, text: str, end: float, refusal: TextRefusedError) -> Vectors:
        """Return the vector of as much of a text as is taken. Raises the last refusal."""
        for cut in range(1, _MOST_CUTS + 1):
            start = text[: len(text) >> cut]
            if not start:
                break
            try:
                return self._ask([start], end)
            except TextRefusedError as error:
                refusal = error
        raise refusal

    def _ask(self, texts: Sequence[str], end: float) -> Vectors:
        """Return the vectors of one request."""
        body = json.dumps({"model": self._remote.model, "input": list(texts)}).encode()
        answer = self._answer(body, end)
        try:
            return _read(json.loads(answer), len(texts), self.dimension)
        except _BadAnswerError as error:
            raise self._error(f"answered {error}") from None
        except (ValueError, RecursionError):
            # Without what json tells, which holds the answer.
            raise self._error("answered what is not JSON") from None

    def _answer(self, body: bytes, end: float) -> bytes:
        """Return the body of a good answer, after as many tries as there is time for."""
        tries = 1
        while True:
            fault, wait = self._try(body, end)
            if isinstance(fault, bytes):
                return fault
            pause = max(wait, _backoff(tries))
            is_late = self._clock() + pause >= end
            if tries == _MOST_TRIES or is_late or self._closed.is_set():
                fault.retry_after = wait or None
                raise fault
            self._pause(pause)
            tries += 1

    def _try(self, body: bytes, end: float) -> tuple[bytes | EmbeddingError, float]:
        """Return the answer, or a fault that may pass and for how long the server is to be left.

        Raises EmbeddingError for a fault that does not pass.
        """
        try:
            answer = self._endpoint.post(body, end - self._clock())
        except ssl.SSLCertVerificationError:
            raise self._error("has a certificate that is not trusted") from None
        except TooLargeError:
            raise self._error("answered more than the hub reads") from None
        except TimeoutError:
            return self._error("did not answer in time"), 0.0
        except (OSError, HTTPException) as error:
            return self._error(f"cannot be reached ({type(error).__name__})"), 0.0
        if answer.status == _OK:
            return answer.body, 0.0
        return self._passing(answer)

    def _passing(self, answer: Answer) -> tuple[EmbeddingError, float]:
        fault = f"answered {answer.status}"
        if answer.status in _REFUSALS:
            raise TextRefusedError(f"{self._remote.url} {fault}")
        error = self._error(fault + _HINTS.get(answer.status, ""))
        if answer.status not in _PASSING:
            raise error
        return error, _retry_after(answer.retry_after, dt.datetime.now(dt.UTC))

    def _error(self, fault: str) -> EmbeddingError:
        return EmbeddingError(f"{self._remote.url} {fault}")


class _BadAnswerError(Exception):
    """An answer that is not one vector for each text; its text tells why, in our words."""


def _batches(counts: Sequence[int]) -> Iterator[list[int]]:
    """Yield positions in order, each batch within the limits of a request."""
    batch: list[int] = []
    tokens = 0
    for place, count in enumerate(counts):
        if batch and (len(batch) == _MOST_TEXTS or tokens + count > _MOST_TOKENS):
            yield batch
            batch, tokens = [], 0
        batch.append(place)
        tokens += count
    if batch:
        yield batch


def _backoff(tries: int) -> float:
    # Half of it by chance: those whose calls failed together do not come back together.
    pause = min(_FIRST_PAUSE * 2.0 ** (tries - 1), _LONGEST_PAUSE)
    return pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _retry_after(value: str | None, now: dt.datetime) -> float:
    """Return the seconds a header asks for, capped; 0 = it asks for nothing, or nonsense."""
    text = (value or "").strip()
    if _SECONDS_TEXT.fullmatch(text):
        seconds = float(text)
    else:
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return 0.0
        seconds = (moment.replace(tzinfo=moment.tzinfo or dt.UTC) - now).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER)


def _read(answer: Any, count: int, dimension: int) -> Vectors:
    """Return the unit vectors of an answer in the order of its indexes.

    ``dimension`` 0 = whatever the first one has.
    """
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list):
        raise _BadAnswerError("without a list `data`")
    found: dict[int, NDArray[np.float64]] = {}
    for item in data:
        index = item.get("index") if isinstance(item, dict) else None
        if type(index) is not int or not 0 <= index < count:
            raise _BadAnswerError("with an item that has no index of a text")
        if index in found:
            raise _BadAnswerError("two vectors for one text")
        found[index] = _direction(item.get("embedding"))
        dimension = dimension or len(found[index])
        if len(found[index]) != dimension:
            raise _BadAnswerError(f"a vector of {len(found[index])} numbers, not {dimension}")
    if len(found) < count:
        raise _BadAnswerError(f"{len(found)} vectors for {count} texts")
    return np.array([found[index] for index in range(count)], dtype=np.float32)


def _direction(numbers: Any) -> NDArray[np.float64]:
    """Return a list of numbers as a vector of length 1."""
    try:
        vector = np.asarray(numbers if isinstance(numbers, list) else [])
    except ValueError:  # lists of different lengths within
        raise _BadAnswerError("a vector that is no list of numbers") from None
    if vector.ndim != 1 or vector.dtype.kind not in "if" or not vector.size:
        raise _BadAnswerError("a vector that is no list of numbers")
    with np.errstate(over="ignore"):
        norm = np.linalg.norm(vector)
    if not np.isfinite(norm) or norm == 0:
        raise _BadAnswerError("a vector without a direction (zero, or not finite)")
    unit: NDArray[np.float64] = vector / norm
    return unit
