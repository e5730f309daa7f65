"""The one port that the workers of a hub share, and no other hub may have."""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

_Address = tuple[Any, ...]


@contextmanager
def reserved(listen: str) -> Iterator[str]:
    """Hold an address for the workers of this process; yield it, with the port that was found.

    Workers bind with SO_REUSEPORT, which by itself would let in every process of the same user.
    Raises OSError when another server is there.
    """
    host, _, port = listen.rpartition(":")
    number = int(port)
    with ExitStack() as stack:
        try:
            for family, address in _resolved(host.strip("[]")):
                held = _held(family, (address[0], number, *address[2:]))
                if held is not None:
                    number = stack.enter_context(closing(held)).getsockname()[1]
        except OSError as error:
            hint = "is another server there?" if error.errno == errno.EADDRINUSE else error.strerror
            raise OSError(f"cannot listen on {listen}: {hint}") from error
        yield f"{host}:{number}"


def _resolved(host: str) -> list[tuple[int, _Address]]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    # A name that /etc/hosts has twice is found twice.
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _held(family: int, address: _Address) -> socket.socket | None:
    """Return a socket that keeps everybody but our workers from an address by being bound to it.

    None = this machine does not have the address, such as ::1 for localhost.
    """
    # As gRPC binds: connections that a hub before closed a moment ago are no hindrance.
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return None
            raise
        # Of two that came to be bound, one alone may listen.
        probe.listen()
        # While the probe keeps others away the place is taken by a socket that only those can
        # join who set SO_REUSEPORT, as workers do and no hub does that probes. It never listens,
        # so it gets no connections.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held = socket.socket(family, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(probe.getsockname())
        return held
