"""Lists of strings as arrays of bytes, so that all of a view's parts are arrays."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Parts", "packed", "unpacked"]

Parts = dict[str, NDArray[np.generic]]
"""What a view, or a piece of one, is dumped to."""

_END = "\0"  # no text that comes from Postgres contains it


def packed(strings: Iterable[str]) -> NDArray[np.uint8]:
    """Return the strings as one array of bytes."""
    return np.frombuffer("".join(one + _END for one in strings).encode(), dtype=np.uint8)


def unpacked(data: NDArray[np.generic]) -> list[str]:
    """Return the strings that were packed."""
    return data.tobytes().decode().split(_END)[:-1]
