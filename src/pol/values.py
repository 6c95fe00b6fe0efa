"""The values of tensors as numpy arrays, without torch: what both the verifier and a calibration look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[Any]

CHUNK = 1 << 22
"""Bytes of a tensor that are looked at at a time: 4 MiB, at most 32 MiB as float64, far below one state. A multiple of
every element's size."""

_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "u1",  # as bytes: a file may hold others than 0 and 1, and they must not become equal here
}


def decode(data: bytes, dtype: str) -> Values:
    """Tensor bytes as an array that holds the same values; bfloat16, which numpy does not have, as float32."""
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, dtype=_NUMPY[dtype])


def chunks(read: Callable[[int, int], bytes], begin: int, end: int, dtype: str) -> Iterator[Values]:
    """The values in bytes ``[begin, end)`` of what ``read(begin, end)`` reads, a chunk at a time."""
    for start in range(begin, end, CHUNK):
        yield decode(read(start, min(start + CHUNK, end)), dtype)


def floats(values: Values) -> NDArray[np.float64]:
    """Values as float64; integers beyond 2^53 are rounded. A signalling NaN becomes a quiet one without a warning."""
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)
