"""Credentials as texts: 256 random bits, of which only the SHA-256 is stored.

A fast hash suffices for a secret nobody can guess; passwords are another thing.
"""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final

SERVICE_KEY: Final = "hub_sk_"
PASSWORD_RESET: Final = "hub_pr_"  # noqa: S105 - a prefix
USER_TOKEN: Final = "hub_ut_"  # noqa: S105 - a prefix


@dataclass(frozen=True, slots=True)
class Secret:
    """A credential: the text its holder presents and the hash the hub knows it by."""

    text: str
    hash: bytes

    @classmethod
    def new(cls, prefix: str) -> "Secret":
        """Make one; the prefix lets people and scanners of leaked secrets tell its kind."""
        return cls.of(prefix + secrets.token_urlsafe(32))

    @classmethod
    def of(cls, text: str) -> "Secret":
        """Return the secret a caller presented."""
        return cls(text, hashlib.sha256(text.encode()).digest())
