"""What an operator may set of memory, and the clock its rules go by."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], dt.datetime]


def utc_now() -> dt.datetime:
    """Return the time."""
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True, slots=True)
class Rules:
    """What an operator may set."""

    near_duplicate: float = 0.95
    """The cosine from which a text may be the same as another."""
    half_life: dt.timedelta = dt.timedelta(days=90)
    """After which half of an unproved inference's confidence is left."""
    hourly_rate: int = 0
    """How often within an hour a user may be told about; 0 = any number."""
