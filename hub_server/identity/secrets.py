"""Credentials as texts: 256 random bits, of which only the SHA-256 is stored.

A fast hash suffices for a secret nobody can guess; passwords are another thing.

A service key reads ``hub_sk_<id>_<secret><checksum>``: its id (32 hexadecimal digits) lets people
tell which key a leaked text is, and the checksum (6 digits, CRC-32) lets them, and the hub, tell a
mistyped one without asking a database.
"""

import hashlib
import re
import secrets
import string
import uuid
import zlib
from dataclasses import dataclass
from typing import Final

SERVICE_KEY: Final = "hub_sk_"
OPERATOR_KEY: Final = "hub_op_"
PASSWORD_RESET: Final = "hub_pr_"  # noqa: S105 - a prefix
USER_TOKEN: Final = "hub_ut_"  # noqa: S105 - a prefix

_DIGITS: Final = string.digits + string.ascii_letters
_BITS: Final = 256
_SECRET_DIGITS: Final = 43  # 62 ** 43 > 2 ** 256
_CHECKSUM_DIGITS: Final = 6  # 62 ** 6 > 2 ** 32
_WITH_CHECKSUM: Final = re.compile(
    rf"{SERVICE_KEY}[0-9a-f]{{32}}_[0-9A-Za-z]{{{_SECRET_DIGITS + _CHECKSUM_DIGITS}}}"
)


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
    def service_key(cls, key_id: str) -> "Secret":
        """Make the secret of a service key."""
        body = f"{uuid.UUID(key_id).hex}_{_base62(secrets.randbits(_BITS), _SECRET_DIGITS)}"
        return cls.of(SERVICE_KEY + body + _checksum(body))

    @classmethod
    def of(cls, text: str) -> "Secret":
        """Return the secret a caller presented."""
        return cls(text, hashlib.sha256(text.encode()).digest())


def is_well_formed(text: str) -> bool:
    """Tell whether a text can be a credential to call with; most that cannot are mistyped.

    Service keys of the first version have no checksum, and are known by their other shape.
    """
    if _WITH_CHECKSUM.fullmatch(text):
        body = text.removeprefix(SERVICE_KEY)
        return _checksum(body[:-_CHECKSUM_DIGITS]) == body[-_CHECKSUM_DIGITS:]
    return text.startswith((SERVICE_KEY, USER_TOKEN, OPERATOR_KEY))


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECKSUM_DIGITS)


def _base62(number: int, digits: int) -> str:
    text = ""
    for _ in range(digits):
        number, digit = divmod(number, len(_DIGITS))
        text = _DIGITS[digit] + text
    return text
