"""Scopes of service keys: how tables spell them, and what each includes."""

import functools
from collections.abc import Collection
from typing import Final

from hub_client.v1.options_pb2 import Level, Scope

_READ, _WRITE, _ADMIN = "_read", "_write", "_admin"
_INCLUDED: Final = {_ADMIN: (_READ, _WRITE), _WRITE: (_READ,)}
_PREFIX: Final = "SCOPE_"
# What the first key of a tenant may do: everything.
EVERYTHING: Final = ("identity_admin", "chat_admin", "memory_admin", "knowledge_admin", "act_as")


def to_text(scope: Scope.ValueType) -> str:
    """Return how tables spell a scope: ``SCOPE_CHAT_READ`` is ``chat_read``."""
    return Scope.Name(scope).removeprefix(_PREFIX).lower()


def from_text(text: str) -> Scope.ValueType:
    """Return the scope that tables spell so."""
    return Scope.Value(_PREFIX + text.upper())


def level_of(scopes: Collection[Scope.ValueType]) -> Level.ValueType:
    """Return the level of a key with these scopes: ADMIN if it is so of any service."""
    is_admin = any(to_text(scope).endswith(_ADMIN) for scope in scopes)
    return Level.LEVEL_ADMIN if is_admin else Level.LEVEL_SERVICE


@functools.cache
def expanded(scopes: tuple[str, ...]) -> frozenset[Scope.ValueType]:
    """Return all that these scopes allow, themselves included."""
    found = set(scopes)
    for scope in scopes:
        for ending, others in _INCLUDED.items():
            if scope.endswith(ending):
                found |= {scope.removesuffix(ending) + other for other in others}
    return frozenset(map(from_text, found))
