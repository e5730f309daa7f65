"""The provider `openai:<model>@<url>` against a real HTTP server that misbehaves on command."""

import datetime as dt
import json
import logging
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from pydantic import SecretStr, ValidationError
from structlog.testing import capture_logs

from hub_server.embedding import (
    EmbeddingError,
    Remote,
    TextRefusedError,
    endpoint,
    load_embedder,
    openai,
    remote,
)
from hub_server.embedding.openai import OpenAi
from hub_server.settings import Settings
from tests.embedding_server import (
    DIMENSION,
    KEY,
    Act,
    EmbeddingServer,
    Handler,
    Seen,
    break_off,
    data,
    echo,
    embedding_server,
    good,
    hang_up,
    status,
    vector,
)

_TRIES = 5
_NO_INDEX = "answered with an item that has no index of a text"
_NO_LIST = "answered a vector that is no list of numbers"
_NO_DIRECTION = "answered a vector without a direction (zero, or not finite)"
_TEXTS = ["a cat", "two dogs", "three birds"]


class Clock:
    """Time that passes only while somebody pauses."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        """Return what time it is."""
        return self.now

    def pause(self, seconds: float) -> None:
        """Let time pass at once."""
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    """A server that answers well until told otherwise."""
    with embedding_server() as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    """The time of the embedder."""
    return Clock()


@pytest.fixture
def embedder(server: EmbeddingServer, clock: Clock) -> OpenAi:
    """A provider that has learnt its dimension; the server has forgotten that request."""
    embedder = connected(server, clock)
    server.seen.clear()
    return embedder


def connected(server: EmbeddingServer, clock: Clock, key: str | None = KEY) -> OpenAi:
    """Return a provider on a clock of its own."""
    secret = None if key is None else SecretStr(key)
    url = f"{server.url}/embeddings"
    return OpenAi(Remote("a-model", url), secret, pause=clock.pause, clock=clock)


def unit(texts: Sequence[str]) -> Any:
    """Return the right vectors."""
    rows = np.array([vector(text) for text in texts])
    return pytest.approx(rows / np.linalg.norm(rows, axis=1, keepdims=True), abs=1e-6)


def fault(embedder: OpenAi, texts: Sequence[str] = _TEXTS) -> str:
    """Return what is told of a failure, after the URL; no key and no text is in it or in a log."""
    with capture_logs() as logs, pytest.raises(EmbeddingError) as caught:
        embedder.embed(texts)
    told = str(caught.value)
    assert KEY not in f"{traceback.format_exception(caught.value)} {logs}"
    assert not any(text in f"{told} {logs}" for text in texts if len(text) > 4)
    assert [line["fault"] for line in logs] == [told]
    return told.split("/embeddings ")[1]


# --- what is sent --------------------------------------------------------------------------------


def test_vectors_are_unit_rows_and_the_model_bears_its_name(
    server: EmbeddingServer, clock: Clock
) -> None:
    """One request at the start learns the dimension; then each call is one request."""
    embedder = connected(server, clock)
    assert (embedder.model, embedder.dimension) == ("openai:a-model", DIMENSION)
    assert len(server.seen) == 1
    vectors = embedder.embed(_TEXTS)
    assert vectors.dtype == np.float32
    assert vectors == unit(_TEXTS)
    assert [seen.body for seen in server.seen[1:]] == [{"model": "a-model", "input": _TEXTS}]
    assert {seen.path for seen in server.seen} == {"/v1/embeddings"}
    assert {seen.authorization for seen in server.seen} == {f"Bearer {KEY}"}
    assert embedder.embed([]).shape == (0, DIMENSION)
    assert len(server.seen) == 2


def test_a_server_without_a_key_is_sent_none(server: EmbeddingServer, clock: Clock) -> None:
    """No key, no header."""
    connected(server, clock, key=None)
    assert server.seen[0].authorization is None


def test_batches_hold_so_many_texts_and_tokens_and_no_more(
    server: EmbeddingServer, embedder: OpenAi
) -> None:
    """No request has over 32 texts or 8,192 tokens, but for a text that alone is larger."""
    texts = [f"short {number}" for number in range(70)]
    texts += ["long " * 3000, "long " * 3000, "long " * 3000, "huge " * 9000, "last"]
    assert embedder.embed(texts) == unit(texts)
    sent = [seen.texts for seen in server.seen]
    assert [text for batch in sent for text in batch] == texts
    assert [len(batch) for batch in sent] == [32, 32, 8, 1, 1, 1]
    assert all(sum(embedder.count_tokens(batch)) <= 8_192 for batch in sent if len(batch) > 1)


def test_a_text_without_words_costs_no_request(server: EmbeddingServer, embedder: OpenAi) -> None:
    """Servers refuse the empty text: it gets a direction of its own, always the same."""
    vectors = embedder.embed(["", "a cat", " \n"])
    assert [seen.texts for seen in server.seen] == [["a cat"]]
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-6)
    assert (vectors[0] == vectors[2]).all()
    assert abs(float(vectors[0] @ vectors[1])) < 0.5


def test_tokens_are_counted_uncut(embedder: OpenAi) -> None:
    """By the hub's vocabulary, without any request."""
    assert embedder.count_tokens(["", "cat", "cat" + " cat" * 999]) == [0, 1, 1_000]


def test_threads_may_share_an_embedder(embedder: OpenAi) -> None:
    """Concurrent calls give each its own vectors."""
    texts = [f"text {number} of many" for number in range(24)]
    with ThreadPoolExecutor(4) as pool:
        for text, vectors in zip(
            texts, pool.map(lambda text: embedder.embed([text]), texts), strict=True
        ):
            assert vectors == unit([text])


# --- faults that pass ----------------------------------------------------------------------------


@pytest.mark.parametrize("code", [408, 409, 429, 500, 502, 503, 529])
def test_what_may_pass_is_tried_again(
    server: EmbeddingServer, embedder: OpenAi, clock: Clock, code: int
) -> None:
    """Twice refused, then answered: three requests, with pauses that grow and are cut by chance."""
    server.acts.extend([status(code), status(code)])
    assert embedder.embed(_TEXTS) == unit(_TEXTS)
    assert len(server.seen) == 3
    first, second = clock.pauses
    assert 0.125 <= first <= 0.25
    assert 0.25 <= second <= 0.5


@pytest.mark.parametrize("act", [hang_up, break_off])
def test_a_connection_that_breaks_is_tried_again(
    server: EmbeddingServer, embedder: OpenAi, act: Act
) -> None:
    """Before the answer or in its midst."""
    server.acts.append(act)
    assert embedder.embed(_TEXTS) == unit(_TEXTS)
    assert len(server.seen) == 2


def test_pauses_are_by_chance(server: EmbeddingServer, embedder: OpenAi, clock: Clock) -> None:
    """Those who failed together do not come back together."""
    for _ in range(8):
        server.acts.append(status(500))
        embedder.embed(["a cat"])
    assert len(set(clock.pauses)) == 8


def test_a_server_that_stays_away_is_given_up(
    server: EmbeddingServer, embedder: OpenAi, clock: Clock
) -> None:
    """After five requests, and within the time of a query."""
    server.always = status(500)
    start = clock.now
    assert fault(embedder, ["a cat"]) == "answered 500"
    assert len(server.seen) == _TRIES
    assert clock.now - start < 10
    server.always = good
    assert embedder.embed(_TEXTS) == unit(_TEXTS)


def test_a_server_that_is_not_there_is_told(
    server: EmbeddingServer, embedder: OpenAi, clock: Clock
) -> None:
    """As unreachable, after retries."""
    server.stop()
    assert fault(embedder) == "cannot be reached (ConnectionRefusedError)"
    assert len(clock.pauses) == _TRIES - 1


def test_the_pause_a_server_asks_for_is_kept(
    server: EmbeddingServer, embedder: OpenAi, clock: Clock
) -> None:
    """Retry-After in seconds: not a moment less."""
    server.acts.append(status(429, Retry_After="7"))
    embedder.embed(["a cat"])
    assert clock.pauses == [7.0]


def test_a_pause_too_long_to_wait_for_is_told_to_the_caller(
    server: EmbeddingServer, embedder: OpenAi, clock: Clock
) -> None:
    """The server is not asked before its time; the error bears it, at most a minute."""
    date = "Fri, 01 Jan 2100 00:00:00 GMT"
    for asked, told in (("30", 30.0), ("86400", 60.0), (date, 60.0)):
        server.acts.append(status(429, Retry_After=asked))
        server.seen.clear()
        with pytest.raises(EmbeddingError, match="answered 429") as caught:
            embedder.embed(["a cat"])
        assert caught.value.retry_after == told
        assert (len(server.seen), clock.pauses) == (1, [])


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("12", 12.0),
        (" 0.5 ", 0.5),
        ("Sat, 01 Mar 2025 10:00:09 GMT", 9.0),
        ("Sat, 01 Mar 2025 10:00:09 -0000", 9.0),
        ("Sat, 01 Mar 2025 09:00:00 GMT", 0.0),
        ("Sat, 01 Mar 2025 11:00:00 GMT", 60.0),
        ("999999999", 60.0),
        ("-5", 0.0),
        ("nan", 0.0),
        ("1e9", 0.0),
        ("soon", 0.0),
        ("", 0.0),
        (None, 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float) -> None:
    """What is neither is as good as none; what has passed asks for nothing."""
    now = dt.datetime(2025, 3, 1, 10, tzinfo=dt.UTC)
    assert openai._retry_after(value, now) == seconds


# --- time ----------------------------------------------------------------------------------------


def slow(server: EmbeddingServer) -> Act:
    """Answer nothing before the test ends."""
    return lambda _, __: assert_ended(server)


def assert_ended(server: EmbeddingServer) -> None:
    """Wait for the end of the test."""
    assert server.ended.wait(60)


def drip(server: EmbeddingServer) -> Act:
    """Answer a byte at a time, each soon enough for a timeout that begins anew with each."""

    def act(handler: Handler, _: Seen) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        while not server.ended.wait(0.02):
            handler.wfile.write(b" ")

    return act


@pytest.mark.parametrize("kind", [slow, drip])
def test_a_server_that_is_slow_is_not_waited_for(
    server: EmbeddingServer,
    monkeypatch: pytest.MonkeyPatch,
    kind: Callable[[EmbeddingServer], Act],
) -> None:
    """The time is for the whole of the call, however the answer drips; this test would not end."""
    embedder = OpenAi(Remote("a-model", f"{server.url}/embeddings"), None)
    server.seen.clear()
    monkeypatch.setattr(openai, "_SECONDS", 0.2)
    server.always = kind(server)
    assert fault(embedder, ["a cat"]) == "did not answer in time"
    assert len(server.seen) == 1


def test_a_hub_that_stops_does_not_wait_for_the_server(server: EmbeddingServer) -> None:
    """Closing breaks off the request under way, and none follows."""
    embedder = OpenAi(Remote("a-model", f"{server.url}/embeddings"), None)
    server.seen.clear()
    asked = threading.Event()

    def act(_: Handler, __: Seen) -> None:
        asked.set()
        assert_ended(server)

    server.always = act
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(embedder.embed, ["a cat"])
        assert asked.wait(60)
        embedder.close()
        assert isinstance(call.exception(5), EmbeddingError)
    assert len(server.seen) == 1


# --- faults that are told at once ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (401, "answered 401: is HUB_EMBEDDING_KEY right?"),
        (403, "answered 403: may HUB_EMBEDDING_KEY do this?"),
        (404, "answered 404: does the server have this model at this URL?"),
        (418, "answered 418"),
        (204, "answered 204"),
    ],
)
def test_a_refusal_is_told_at_once(
    server: EmbeddingServer, embedder: OpenAi, code: int, told: str
) -> None:
    """One request, though the server would answer a second; nothing that it says is repeated."""
    server.acts.append(echo(code))
    assert fault(embedder) == told
    assert len(server.seen) == 1


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(server: EmbeddingServer, embedder: OpenAi, code: int) -> None:
    """Neither the key nor the texts go where a server points."""
    with embedding_server() as other:
        server.acts.append(status(code, Location=f"{other.url}/embeddings"))
        assert fault(embedder) == f"answered {code}: the hub follows no redirect"
        assert other.seen == []
    assert len(server.seen) == 1


def test_proxies_of_the_environment_are_not_asked(
    server: EmbeddingServer, embedder: OpenAi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key goes to its URL and nowhere else."""
    with embedding_server() as other:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, other.url)
        embedder.embed(["a cat"])
        assert other.seen == []
    assert len(server.seen) == 1


def test_a_certificate_that_nobody_signed_is_refused_at_once(
    server: EmbeddingServer, clock: Clock, tmp_path: Path
) -> None:
    """No request reaches a server that may be anybody; one that is trusted is asked."""
    import ssl  # noqa: PLC0415 - of this test alone

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    assert server._http is not None
    server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
    url = f"{server.url}/embeddings".replace("http://", "https://")
    with pytest.raises(EmbeddingError, match="has a certificate that is not trusted"):
        OpenAi(Remote("a-model", url), SecretStr(KEY), pause=clock.pause, clock=clock)
    assert (server.seen, clock.pauses) == ([], [])
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", lambda: trusted)
        embedder = OpenAi(Remote("a-model", url), SecretStr(KEY))
    assert embedder.embed(_TEXTS) == unit(_TEXTS)


# --- wrong answers -------------------------------------------------------------------------------


def test_the_order_of_an_answer_is_that_of_its_indexes(
    server: EmbeddingServer, embedder: OpenAi
) -> None:
    """Whatever order the items come in, each text gets its own vector."""
    server.acts.append(data(lambda items: items[::-1]))
    assert embedder.embed(_TEXTS) == unit(_TEXTS)


def _with(items: list[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    """Change the second item."""
    return [items[0], items[1] | values, *items[2:]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda items: items[:-1], "answered 2 vectors for 3 texts"),
        (lambda _: [], "answered 0 vectors for 3 texts"),
        (lambda items: [*items, items[0]], "answered two vectors for one text"),
        (lambda items: _with(items, index=0), "answered two vectors for one text"),
        (lambda items: _with(items, index=3), _NO_INDEX),
        (lambda items: _with(items, index=-1), _NO_INDEX),
        (lambda items: _with(items, index="1"), _NO_INDEX),
        (lambda items: _with(items, index=True), _NO_INDEX),
        (lambda items: [None, *items], _NO_INDEX),
        (lambda items: _with(items, embedding=[1] * 65), "answered a vector of 65 numbers, not 64"),
        (lambda items: _with(items, embedding=[1.0]), "answered a vector of 1 numbers, not 64"),
        (lambda items: _with(items, embedding=[]), _NO_LIST),
        (lambda items: _with(items, embedding="AAAA"), _NO_LIST),
        (lambda items: _with(items, embedding=["1"] * 64), _NO_LIST),
        (lambda items: _with(items, embedding=[None] * 64), _NO_LIST),
        (lambda items: _with(items, embedding=[[1.0]] * 64), _NO_LIST),
        (lambda items: _with(items, embedding=[[1.0], [1.0, 2.0]]), _NO_LIST),
        (lambda items: _with(items, embedding=[10**400] * 64), _NO_LIST),
        (lambda items: _with(items, embedding=[0.0] * 64), _NO_DIRECTION),
        (lambda items: _with(items, embedding=[float("nan")] * 64), _NO_DIRECTION),
        (lambda items: _with(items, embedding=[1.0] * 63 + [float("inf")]), _NO_DIRECTION),
        (lambda items: _with(items, embedding=[1e300] * 64), _NO_DIRECTION),
        (lambda _: None, "answered without a list `data`"),
    ],
)  # fmt: skip
def test_an_answer_that_is_wrong_is_told(
    server: EmbeddingServer, embedder: OpenAi, change: Callable[[Any], Any], told: str
) -> None:
    """No text gets a vector that may be another's, or none."""
    server.acts.append(data(change))
    assert fault(embedder) == told
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"<html>", "answered what is not JSON"),
        (b"", "answered what is not JSON"),
        (b"\xff\xfe\xff", "answered what is not JSON"),
        (b"[" * 200_000, "answered what is not JSON"),
        (b"[]", "answered without a list `data`"),
        (b"7", "answered without a list `data`"),
        (b" " * 2_000, "answered more than the hub reads"),
    ],
)
def test_an_answer_that_is_none_is_told(
    server: EmbeddingServer,
    embedder: OpenAi,
    monkeypatch: pytest.MonkeyPatch,
    body: bytes,
    told: str,
) -> None:
    """Neither a page of a proxy nor an endless answer takes the hub down."""
    if body.isspace():
        monkeypatch.setattr(endpoint, "_MOST_BYTES", 1_000)
    server.acts.append(status(200, body))
    assert fault(embedder) == told
    assert len(server.seen) == 1


# --- texts that are too long ---------------------------------------------------------------------


def reads(most: int, code: int = 400) -> Act:
    """Embed texts of so many characters, refuse longer ones."""

    def act(handler: Handler, seen: Seen) -> None:
        if max(map(len, seen.texts)) > most:
            echo(code)(handler, seen)
        else:
            good(handler, seen)

    return act


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_text_longer_than_the_model_reads_is_cut(
    server: EmbeddingServer, embedder: OpenAi, code: int
) -> None:
    """To the first half, quarter, … that is taken; the texts beside it stay whole."""
    server.always = reads(100, code)
    long = "word " * 60
    texts = ["a cat", long, "two dogs", "three birds"]
    assert embedder.embed(texts) == unit(["a cat", long.strip()[:74], "two dogs", "three birds"])
    assert [seen.texts for seen in server.seen] == [
        texts,
        ["a cat", long],
        ["a cat"],
        [long],
        [long.strip()[:149]],
        [long.strip()[:74]],
        ["two dogs", "three birds"],
    ]


def test_a_text_does_not_depend_on_those_before_it(
    server: EmbeddingServer, embedder: OpenAi
) -> None:
    """What was cut once does not teach the hub to cut others shorter."""
    server.always = reads(100)
    alone = embedder.embed(["word " * 30])
    embedder.embed(["word " * 30 + "x" * 60])
    assert (embedder.embed(["word " * 30]) == alone).all()


def test_a_text_that_is_refused_however_short_is_told(
    server: EmbeddingServer, embedder: OpenAi
) -> None:
    """The number of requests is bounded; the error says that a retry will not help."""
    server.always = echo(400)
    with pytest.raises(TextRefusedError, match="answered 400"):
        embedder.embed(["word " * 250] * 32)
    assert len(server.seen) == 6 + 6  # 32, 16, 8, 4, 2, 1, then the cuts
    server.seen.clear()
    assert fault(embedder, ["x"]) == "answered 400"
    assert len(server.seen) == 1


def test_a_batch_larger_than_the_server_takes_is_halved(
    server: EmbeddingServer, embedder: OpenAi
) -> None:
    """Some take fewer texts at once than the hub sends: 413."""

    def act(handler: Handler, seen: Seen) -> None:
        (good if len(seen.texts) <= 8 else status(413))(handler, seen)

    server.always = act
    texts = [f"text {number}" for number in range(32)]
    assert embedder.embed(texts) == unit(texts)
    assert [len(seen.texts) for seen in server.seen] == [32, 16, 8, 8, 16, 8, 8]


# --- the start, and settings ---------------------------------------------------------------------


def test_a_start_without_the_server_is_told_in_one_line(
    server: EmbeddingServer, clock: Clock
) -> None:
    """The URL and what is wrong."""
    server.always = echo(401)
    with pytest.raises(EmbeddingError) as caught:
        connected(server, clock)
    url = f"{server.url}/embeddings"
    assert str(caught.value) == f"{url} answered 401: is HUB_EMBEDDING_KEY right?"
    server.stop()
    with pytest.raises(EmbeddingError) as caught:
        connected(server, clock)
    assert str(caught.value) == f"{url} cannot be reached (ConnectionRefusedError)"


@pytest.mark.parametrize(
    ("name", "model", "url"),
    [
        ("openai:m@http://h:1", "m", "http://h:1/v1/embeddings"),
        ("openai:m@http://h:1/", "m", "http://h:1/v1/embeddings"),
        ("openai:m@https://h/v1/", "m", "https://h/v1/embeddings"),
        ("openai:BAAI/bge:q8@https://[::1]:8/a/b", "BAAI/bge:q8", "https://[::1]:8/a/b/embeddings"),
    ],
)
def test_a_name_tells_model_and_url(name: str, model: str, url: str) -> None:
    """The URL is the base URL of OpenAI's clients; /v1 where it has no path."""
    assert remote(name) == Remote(model, url)
    assert Settings(embedding=name).embedding == name
    assert remote("minilm") is None


@pytest.mark.parametrize(
    "name",
    [
        "openai:m",
        "openai:@http://h",
        "openai:m@ftp://h",
        "openai:m@http://",
        "openai:m@http://h:99999",
        "openai:m@http://h:x",
        "openai:m@http://h:0",
        "openai:m@http://user:password@h",
        "openai:m@http://h/v1?key=password",
        "openai:m@http://h/v1#password",
        "openai:m m@http://h",
        "openai:m@http://h/v1\r\nX: password",
        "opnai:m@http://user:password@h",
    ],
)
def test_a_name_that_is_wrong_is_refused(name: str) -> None:
    """Before anything connects; a password that somebody put there is not repeated."""
    with pytest.raises(ValidationError) as caught:
        Settings(embedding=name)
    assert "password" not in caught.value.errors()[0]["msg"]
    with pytest.raises(ValueError, match="openai:<model>@<url>"):
        load_embedder(name)


def test_a_key_that_is_no_header_is_refused_unseen() -> None:
    """A line end in it would make http.client tell it all."""
    with pytest.raises(ValidationError) as caught:
        Settings(embedding_key=SecretStr(f"{KEY}\r\nX: y"))
    assert KEY not in str(caught.value)
    assert KEY not in repr(Settings(embedding_key=SecretStr(KEY)))


def test_debug_logs_do_not_bear_the_key(
    server: EmbeddingServer, embedder: OpenAi, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even with every logger at DEBUG."""
    with caplog.at_level(logging.DEBUG):
        server.acts.extend([echo(500), hang_up, echo(401)])
        fault(embedder)
    assert KEY not in caplog.text
    assert KEY not in json.dumps(vars(embedder), default=str)
    assert KEY not in json.dumps(vars(embedder._endpoint), default=str)
