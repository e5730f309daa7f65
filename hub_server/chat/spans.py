"""Which messages of a session are meant."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LAST: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Span:
    """Messages with seqs in (after, last], of these kinds and times; nothing = any."""

    after: int = 0
    last: int = LAST
    roles: Sequence[str] = ()
    types: Sequence[str] = ()
    since: dt.datetime | None = None
    until: dt.datetime | None = None
