"""Refresh tokens: what they look like, and how a lost answer is given again.

A refresh token is ``hub_rt_`` and the base64 of the login's id (16 bytes), 32 random bytes and a
mark (16 bytes): the HMAC of the random bytes with a key of the login. The hub stores the
SHA-256 of the current and of the previous token. The mark lets it tell an older token of a login,
whose use ends the login, from a made-up one, which is merely refused: else whoever knows an id
could end a login.

The pair of tokens that a refresh token bought is kept for its repetition, in a form that only
that refresh token opens: XORed with its HMAC-SHA-512. Each refresh token seals one pair, ever, so
this is a one-time pad; without the token the bytes tell nothing.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import uuid
from dataclasses import dataclass
from typing import Final, Self

from hub_server.identity.secrets import USER_TOKEN

PREFIX: Final = "hub_rt_"
SECRET_BYTES: Final = 32
_MARK_BYTES: Final = 16
_ID_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token taken apart."""

    login_id: str
    secret: bytes
    mark: bytes

    @classmethod
    def of(cls, login_id: str, secret: bytes, family_key: bytes) -> Self:
        """Return the token of a login with these random bytes."""
        return cls(login_id, secret, _mark(family_key, secret))

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Return what a caller presented, or None when it cannot be a refresh token."""
        try:
            raw = base64.urlsafe_b64decode(text.removeprefix(PREFIX).encode("ascii"))
        except (UnicodeEncodeError, binascii.Error):
            return None
        if len(raw) != _ID_BYTES + SECRET_BYTES + _MARK_BYTES:
            return None
        login_id = str(uuid.UUID(bytes=raw[:_ID_BYTES]))
        token = cls(login_id, raw[_ID_BYTES:-_MARK_BYTES], raw[-_MARK_BYTES:])
        return token if token.text == text else None

    @property
    def text(self) -> str:
        """The token as its holder keeps it."""
        raw = uuid.UUID(self.login_id).bytes + self.secret + self.mark
        return PREFIX + base64.urlsafe_b64encode(raw).decode()

    @property
    def hash(self) -> bytes:
        """What the hub stores of it."""
        return hashlib.sha256(self.text.encode()).digest()

    def is_genuine(self, family_key: bytes) -> bool:
        """Tell whether the hub made this token for its login, however long ago."""
        return hmac.compare_digest(self.mark, _mark(family_key, self.secret))

    def seal(self, pair: bytes) -> bytes:
        """Seal, or open, the 64 random bytes of the pair that this token bought."""
        pad = hmac.digest(self.secret, b"hub: the pair this token bought", hashlib.sha512)
        return bytes(left ^ right for left, right in zip(pair, pad, strict=True))


def new_pair() -> bytes:
    """Return the random bytes of a pair: 32 for the user token, 32 for the refresh token."""
    return secrets.token_bytes(2 * SECRET_BYTES)


def user_token(pair: bytes) -> str:
    """Return the user token of a pair."""
    return USER_TOKEN + base64.urlsafe_b64encode(pair[:SECRET_BYTES]).decode().rstrip("=")


def refresh_secret(pair: bytes) -> bytes:
    """Return the random bytes of the refresh token of a pair."""
    return pair[SECRET_BYTES:]


def _mark(family_key: bytes, secret: bytes) -> bytes:
    return hmac.digest(family_key, secret, hashlib.sha256)[:_MARK_BYTES]
