"""The batch order of an epoch, and the other permutations that are drawn the same way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pol.digest import Digest, frame
from pol.errors import FormatError
from pol.seeds import expand


def keyed_permutation(key: bytes, size: int) -> NDArray[np.int64]:
    """0 … size-1 sorted by (word, index), where the words are BLAKE3 extended output under ``key``.

    One little-endian u64 per index; a 32-byte key.
    """
    words = np.frombuffer(blake3(b"", key=key).digest(length=8 * size), dtype="<u8")
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def epoch_order(seed: bytes, epoch: int, size: int) -> NDArray[np.int64]:
    """The order in which epoch ``epoch`` visits the ``size`` samples of the dataset."""
    return keyed_permutation(expand(seed, "pol/v1/order", epoch.to_bytes(8, "big")), size)


def observed_order(data: bytes, size: int) -> NDArray[np.int64]:
    """One epoch of an observed order: ``size`` u32le indices.

    Raises:
        FormatError: there are not so many, or one names a sample that the dataset does not have.
    """
    order = np.frombuffer(data, dtype="<u4").astype(np.int64) if len(data) == 4 * size else np.array([size])
    if order.max(initial=0) >= size:
        raise FormatError(f"order.bin: an epoch is not {size} indices of {size} samples")
    return order


def sample_list_digest(pairs: Iterable[tuple[int, bytes]]) -> Digest:
    """Digest of which samples entered a step: (dataset index, 32-byte leaf hash) in order."""
    hasher = hashlib.sha256(frame("pol/v1/samples"))
    for index, leaf in pairs:
        hasher.update(index.to_bytes(8, "big") + leaf)
    return Digest("sha256:" + hasher.hexdigest())
