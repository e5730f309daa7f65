"""A real server of /v1/embeddings, which misbehaves on command."""

import json
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-the-key-that-nobody-may-see"
DIMENSION = 64


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    path: str
    authorization: str | None
    body: dict[str, Any]

    @property
    def texts(self) -> list[str]:
        """What is to be embedded."""
        return list(self.body["input"])


Act = Callable[["Handler", Seen], None]


class Handler(BaseHTTPRequestHandler):
    """Does what the server is told to do next, or what it should."""

    server: "_Http"

    def do_POST(self) -> None:
        """Answer a request."""
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        seen = Seen(self.path, self.headers["Authorization"], json.loads(raw))
        self.server.owner.answer(self, seen)

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        """Send an answer; `Retry_After` is the header Retry-After."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as in http.server
        """Be quiet."""


class _Http(ThreadingHTTPServer):
    owner: "EmbeddingServer"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Be quiet about clients that go away, which is what some tests want them to do."""


class EmbeddingServer:
    """What the server saw, and what it is to do next."""

    def __init__(self) -> None:
        """Listen on a free port; nothing is answered before `start`."""
        self.seen: list[Seen] = []
        self.acts: deque[Act] = deque()  # for the next requests, one each
        self.always: Act = good
        self.ended = threading.Event()
        self._port = 0
        self._http: _Http | None = None

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Serve, on the port of last time."""
        self._http = _Http(("127.0.0.1", self._port), Handler)
        self._http.owner = self
        self._port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.01,)).start()

    def stop(self) -> None:
        """Go away."""
        assert self._http is not None
        self._http.shutdown()
        self._http.server_close()
        self._http = None

    def answer(self, handler: Handler, seen: Seen) -> None:
        """Note a request and do what is next."""
        self.seen.append(seen)
        act = self.acts.popleft() if self.acts else self.always
        act(handler, seen)

    @property
    def is_running(self) -> bool:
        """Whether it serves."""
        return self._http is not None


@contextmanager
def embedding_server() -> Iterator[EmbeddingServer]:
    """Serve until the end, which sets `ended`."""
    server = EmbeddingServer()
    server.start()
    try:
        yield server
    finally:
        server.ended.set()
        if server.is_running:
            server.stop()


def vector(text: str) -> list[float]:
    """Return a vector of any length in which texts that share words are alike."""
    numbers = [0.01] * DIMENSION
    for word in text.lower().split():
        numbers[zlib.crc32(word.encode()) % DIMENSION] += 3.0
    return numbers


def items(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the data of a right answer."""
    return [
        {"object": "embedding", "index": index, "embedding": vector(text)}
        for index, text in enumerate(texts)
    ]


def good(handler: Handler, seen: Seen) -> None:
    """Answer as it should be."""
    handler.reply(200, json.dumps({"object": "list", "data": items(seen.texts)}).encode())


def data(change: Callable[[list[dict[str, Any]]], Any]) -> Act:
    """Answer with data that was changed."""

    def act(handler: Handler, seen: Seen) -> None:
        handler.reply(200, json.dumps({"data": change(items(seen.texts))}).encode())

    return act


def status(code: int, body: bytes = b"{}", **headers: str) -> Act:
    """Answer with a status."""
    return lambda handler, _: handler.reply(code, body, **headers)


def echo(code: int) -> Act:
    """Answer with a status and all that was sent, as careless servers do."""

    def act(handler: Handler, seen: Seen) -> None:
        handler.reply(code, json.dumps([seen.authorization, seen.body]).encode())

    return act


def hang_up(handler: Handler, _: Seen) -> None:
    """Close the connection without a word."""
    handler.close_connection = True


def break_off(handler: Handler, _: Seen) -> None:
    """Close the connection in the midst of the answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"data": [')
