"""Vectors that callers bring: how they are written, and what they must be."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hub_server.errors import HubError, Reason

_FLOAT: Final = np.dtype("<f4")


def vector_of(field: str, data: bytes) -> NDArray[np.float32]:
    """Return the vector that was written as float32, little-endian. Raises INVALID_FIELD."""
    check_vectors([field], [data])
    return np.frombuffer(data, dtype=_FLOAT).astype(np.float32)


def check_vectors(fields: Sequence[str], vectors: Sequence[bytes]) -> int:
    """Return the dimension that all vectors have; ``fields`` are their names in errors.

    Raises INVALID_FIELD for every one that is no vector, has no direction (zero, NaN, infinite) or
    another dimension than the first.
    """
    size = len(vectors[0])
    if faults := [
        (field, _length_fault(len(vector), size))
        for field, vector in zip(fields, vectors, strict=True)
        if len(vector) != size or size % _FLOAT.itemsize
    ]:
        raise HubError(Reason.REASON_INVALID_FIELD, violations=faults)
    matrix = np.frombuffer(b"".join(vectors), dtype=_FLOAT).reshape(len(vectors), -1)
    is_finite, has_direction = np.isfinite(matrix), matrix != 0
    if not (is_finite.all() and has_direction.any(axis=1).all()):
        faults = [
            (field, "must not be zero" if finite.all() else "must not hold NaN or infinity")
            for field, finite, nonzero in zip(fields, is_finite, has_direction, strict=True)
            if not (finite.all() and nonzero.any())
        ]
        raise HubError(Reason.REASON_INVALID_FIELD, violations=faults)
    return matrix.shape[1]


def check_dimension(field: str, dimension: int, model: str, known: int) -> None:
    """Refuse vectors whose dimension is not that of their model. Raises INVALID_FIELD."""
    if dimension != known:
        fault = f"must have the {known} dimensions of {model}, not {dimension}"
        raise HubError.invalid(field, fault)


def _length_fault(size: int, expected: int) -> str:
    if size % _FLOAT.itemsize:
        return f"must be float32 numbers of {_FLOAT.itemsize} bytes, not {size} bytes"
    return f"must have {expected // _FLOAT.itemsize} dimensions, as the first, not {size // 4}"
