"""Password hashes: bcrypt in a small pool of its own.

bcrypt reads at most 72 bytes, so it is given the base64 of the password's SHA-384 (64 bytes, no
NUL), as Django and OWASP's Password Storage Cheat Sheet advise; no password is cut short.
"""

import base64
import hashlib
import unicodedata
from typing import Final

import bcrypt

from hub_server.workers import Workers

ROUNDS: Final = 12
_SCHEME: Final = "bcrypt-sha384"
_THREADS: Final = 2
# At 0.3 s a hash, whoever comes last waits about 5 s.
_MOST_WAITING: Final = 32


class Passwords:
    """Hashes and verifies passwords without holding up anything else."""

    def __init__(self) -> None:
        """Start the pool; ``close`` ends it."""
        self._workers = Workers("bcrypt", threads=_THREADS, most_waiting=_MOST_WAITING)
        # Verified in place of a hash that does not exist: every login costs one hash.
        self._nobody = _hash("")

    async def hash(self, password: str) -> str:
        """Return the hash to store. Raises OVERLOADED when too many wait."""
        return await self._workers.run(lambda: _hash(password))

    async def verify(self, password: str, stored: str | None) -> bool:
        """Tell whether the password fits; None stands for a user who has none.

        Takes one hash whatever is stored. Raises OVERLOADED when too many wait.
        """
        fits = await self._workers.run(lambda: _verify(password, stored or self._nobody))
        return fits and stored is not None

    def close(self) -> None:
        """End the pool."""
        self._workers.close()


def _hash(password: str) -> str:
    hashed = bcrypt.hashpw(_digest(password), bcrypt.gensalt(ROUNDS)).decode()
    return f"{_SCHEME}{hashed}"


def _verify(password: str, stored: str) -> bool:
    return bcrypt.checkpw(_digest(password), stored.removeprefix(_SCHEME).encode())


def _digest(password: str) -> bytes:
    normal = unicodedata.normalize("NFKC", password).encode()
    return base64.b64encode(hashlib.sha384(normal).digest())
