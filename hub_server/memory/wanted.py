"""Which memories are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wanted:
    """Memories of some kinds: an empty collection wants all, no statuses those recalled now."""

    types: Sequence[str] = ()
    sources: Sequence[str] = ()
    memory_key: str = ""
    statuses: Sequence[str] = ()
