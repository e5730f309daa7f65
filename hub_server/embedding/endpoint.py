"""One POST at a time to one URL, bounded in time and size.

``http.client`` and nothing above it: it follows no redirect and asks no proxy, so what is sent,
the key above all, goes to that URL and nowhere else. Each request has a connection of its own.
"""

import io
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import Any, Final, cast
from urllib.parse import urlsplit

from pydantic import SecretStr

__all__ = ["Answer", "Endpoint", "TooLargeError"]

_CONNECT_SECONDS: Final = 5.0
_MOST_BYTES: Final = 16 << 20  # 32 vectors of 4,096 numbers take 3


class TooLargeError(Exception):
    """The answer is larger than any that is expected."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    retry_after: str | None
    body: bytes


class Endpoint:
    """A URL, and the key that is sent to it. May be used from several threads at once."""

    def __init__(self, url: str, key: SecretStr | None) -> None:
        """Nothing connects yet. ``key`` None = requests bear none."""
        parts = urlsplit(url)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._place = parts.netloc
        self._path = parts.path
        self._key = key
        self._open: set[socket.socket] = set()

    def post(self, body: bytes, seconds: float) -> Answer:
        """Send JSON and return the answer, whatever its status, within so many seconds.

        Raises OSError (TimeoutError when the time is over), HTTPException and TooLargeError.
        """
        end = time.monotonic() + seconds
        with self._connection(end) as sock:
            kind = HTTPSConnection if self._tls else HTTPConnection
            connection = kind(self._host, self._port)
            connection.sock = cast("socket.socket", _Bounded(sock, end))
            connection.request("POST", self._path, body, self._headers())
            with connection.getresponse() as response:
                return Answer(response.status, response.getheader("Retry-After"), _body(response))

    def close(self) -> None:
        """Break off the requests under way."""
        for sock in tuple(self._open):
            with suppress(OSError):  # it has ended meanwhile
                sock.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def _connection(self, end: float) -> Iterator[socket.socket]:
        sock = self._connected(end)
        self._open.add(sock)
        try:
            yield sock
        finally:
            self._open.discard(sock)
            sock.close()

    def _connected(self, end: float) -> socket.socket:
        seconds = min(_CONNECT_SECONDS, _left(end))
        sock = socket.create_connection((self._host, self._port), seconds)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self._tls.wrap_socket(sock, server_hostname=self._host) if self._tls else sock
        except BaseException:
            sock.close()
            raise

    def _headers(self) -> dict[str, str]:
        headers = {"Host": self._place, "Content-Type": "application/json", "Connection": "close"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        return headers


def _body(response: HTTPResponse) -> bytes:
    body = response.read(_MOST_BYTES + 1)
    if len(body) > _MOST_BYTES:
        raise TooLargeError
    if response.length:  # read(n) does not tell that the connection broke off
        raise IncompleteRead(b"", response.length)
    return body


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Bounded:
    """A socket as ``http.client`` uses it, whose every wait ends at the same moment.

    A timeout of a socket is for one read: a server that drips would hold a thread for hours.
    """

    def __init__(self, sock: socket.socket, end: float) -> None:
        self._sock = sock
        self._end = end

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(_left(self._end))  # of the whole of it
        self._sock.sendall(data)

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(_Received(self._sock, self._end))

    def close(self) -> None:
        """Leave that to who connected it: the answer may still be read."""


class _Received(io.RawIOBase):
    """What a socket receives until a moment."""

    def __init__(self, sock: socket.socket, end: float) -> None:
        self._sock = sock
        self._end = end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._end))
        return self._sock.recv_into(buffer)
