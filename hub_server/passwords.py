"""Password hashes: bcrypt over a keyed digest, in a small pool of its own.

bcrypt reads at most 72 bytes and stops at NUL, so it is given the base64 of
HMAC-SHA-384(pepper, NFKC(password)): 64 bytes whatever was typed, as OWASP's Password Storage
Cheat Sheet advises. The pepper is a key that is kept outside of Postgres: who has the table alone
cannot even begin to guess.

A stored hash reads ``hub1$<pepper>$<bcrypt hash>``, the pepper by its name. Plain bcrypt hashes
(``$2b$…``), as other systems made them, are verified too, and replaced at the next login.
"""

import base64
import hashlib
import hmac
import os
import re
import unicodedata
from collections.abc import Mapping
from typing import Final

import bcrypt
from zxcvbn import zxcvbn

from hub_server.errors import HubError, Reason
from hub_server.workers import Workers

ROUNDS: Final = 12
_SCHEME: Final = "hub1$"
_PLAIN: Final = ("$2a$", "$2b$", "$2y$")
_BCRYPT_BYTES: Final = 72
# Half of the processors: the other calls need theirs.
_THREADS: Final = max(1, (os.cpu_count() or 1) // 2)
# At 0.3 s a hash, whoever comes last waits about 5 s.
_MOST_WAITING: Final = 16 * _THREADS
# Beyond so many characters zxcvbn takes long, and no pattern is simple.
_MOST_ESTIMATED: Final = 72
_LEAST_GUESSES: Final = 1_000_000


class Passwords:
    """Hashes and verifies passwords without holding up anything else."""

    def __init__(self, peppers: Mapping[str, bytes], least_length: int = 8) -> None:
        """Start the pool; ``close`` ends it.

        ``peppers`` are keys by name; the first one is for new hashes, the others verify old ones.
        ``least_length`` of new passwords is in characters.
        """
        self._least_length = least_length
        self._peppers = peppers
        self._current = next(iter(peppers))
        self._workers = Workers("bcrypt", threads=_THREADS, most_waiting=_MOST_WAITING, yields=True)
        # Verified in place of a hash that does not exist: every login costs one hash.
        self._nobody = self._hash("")

    def check_room(self) -> None:
        """Refuse early, before anything is written, when too many wait. Raises OVERLOADED."""
        self._workers.check_room()

    async def hash(self, password: str) -> str:
        """Return the hash to store. Raises OVERLOADED when too many wait."""
        return await self._workers.run(lambda: self._hash(password))

    async def verify(self, password: str, stored: str | None) -> bool:
        """Tell whether the password fits; None stands for a user who has none.

        Takes one hash whatever is stored. Raises OVERLOADED when too many wait.
        """
        fits = await self._workers.run(lambda: self._verify(password, stored or self._nobody))
        return fits and stored is not None

    def is_outdated(self, stored: str) -> bool:
        """Tell whether a hash was made with another scheme, pepper or cost than new ones are."""
        return not stored.startswith(f"{_SCHEME}{self._current}$2b${ROUNDS:02d}$")

    async def check_new(self, field: str, password: str, email: str) -> None:
        """Refuse what guessers try first. Raises INVALID_FIELD, PASSWORD_REFUSED or OVERLOADED.

        That is what zxcvbn (Wheeler, 2016) calls very guessable: fewer than a million guesses, by
        common passwords and words, repeats, sequences, keyboards and dates, and by the user's
        email. There are no rules of composition; NIST SP 800-63B-4 advises against them.
        """
        normal = unicodedata.normalize("NFKC", password)
        if len(normal) < self._least_length:
            raise HubError.invalid(field, f"must be at least {self._least_length} characters")
        own = unicodedata.normalize("NFKC", email)
        if await self._workers.run(lambda: _is_guessable(normal, own)):
            what = "must not be a common password, a simple pattern or one's own email"
            raise HubError(Reason.REASON_PASSWORD_REFUSED, violations=[(field, what)])

    def close(self) -> None:
        """End the pool."""
        self._workers.close()

    def _hash(self, password: str) -> str:
        digest = _digest(self._peppers[self._current], password)
        hashed = bcrypt.hashpw(digest, bcrypt.gensalt(ROUNDS)).decode()
        return f"{_SCHEME}{self._current}{hashed}"

    def _verify(self, password: str, stored: str) -> bool:
        if stored.startswith(_PLAIN):
            plain = password.encode()
            # Longer ones could not have been hashed whole, and bcrypt 5 refuses them.
            fits = bcrypt.checkpw(plain[:_BCRYPT_BYTES], stored.encode())
            return fits and len(plain) <= _BCRYPT_BYTES
        pepper, _, hashed = stored.removeprefix(_SCHEME).partition("$")
        key = self._peppers.get(pepper)
        fits = bcrypt.checkpw(_digest(key or b"", password), f"${hashed}".encode())
        return fits and key is not None


def _digest(pepper: bytes, password: str) -> bytes:
    normal = unicodedata.normalize("NFKC", password).encode()
    return base64.b64encode(hmac.digest(pepper, normal, hashlib.sha384))


def _is_guessable(password: str, email: str) -> bool:
    words = [email, *re.split(r"[@.+_-]", email)]
    if len(password) > _MOST_ESTIMATED:
        return False
    return bool(zxcvbn(password, user_inputs=words)["guesses"] < _LEAST_GUESSES)
