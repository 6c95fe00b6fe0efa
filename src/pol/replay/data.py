"""Samples and batches: canonical bytes, dataset leaves, digests, collation."""

from __future__ import annotations

import functools
import hmac
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from blake3 import blake3

from pol.digest import frame
from pol.errors import UsageError
from pol.merkle import leaf_hash
from pol.replay.tensors import content, dtype_name

SAMPLE_ENCODING = "pol/v1/sample"

Transform = Callable[[Any, np.random.Generator], Any]
Collate = Callable[[list[Any]], Any]


def fields(item: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested item with their paths: mappings by sorted key, sequences by position."""
    if isinstance(item, dict):
        if odd := [key for key in item if not isinstance(key, str)]:
            raise UsageError(f"{_named(where)} has the key {odd[0]!r}: keys must be strings")
        for key in sorted(item):
            yield from fields(item[key], f"{where}.{key}" if where else key)
    elif isinstance(item, list | tuple):
        for position, value in enumerate(item):
            yield from fields(value, f"{where}[{position}]")
    else:
        yield where, item


def encode_field(value: Any, where: str) -> tuple[str, bytes, bytes]:
    """(type, shape, bytes) of one field: arrays row-major little-endian, text UTF-8, numbers in decimal.

    Raises:
        UsageError: the field is of a type that has no canonical bytes.
    """
    if type(value) is np.ndarray and (name := _ARRAYS.get(value.dtype.str)) is not None:  # what datasets are made of
        return name, _shape(value.shape), value.tobytes()
    if isinstance(value, np.ndarray | np.generic) and not isinstance(value, str | bytes):
        value = _as_tensor(value, where)
    if isinstance(value, torch.Tensor):
        return dtype_name(value, _named(where)), _shape(tuple(value.shape)), bytes(content(value))
    if isinstance(value, bytes):
        return "bytes", b"", bytes(value)
    if isinstance(value, str):
        return "str", b"", value.encode()
    if isinstance(value, bool | int | float):
        return type(value).__name__, b"", repr(value).encode()
    raise UsageError(
        f"{_named(where)} is a {type(value).__name__}: samples and batches are dicts or tuples of arrays, bytes, str "
        "and numbers"
    )


_ARRAYS = {
    "<f8": "F64", "<f4": "F32", "<f2": "F16", "<i8": "I64", "<i4": "I32", "<i2": "I16", "|i1": "I8", "|u1": "U8",
    "|b1": "BOOL",
}  # fmt: skip
"""Element types of arrays that need not become tensors first, by numpy's name of type and byte order."""


@functools.lru_cache(maxsize=256)
def _shape(sizes: tuple[int, ...]) -> bytes:
    return b"".join(size.to_bytes(8, "big") for size in sizes)


def _as_tensor(value: Any, where: str) -> torch.Tensor:
    array = np.asarray(value, order="C")  # keeps a scalar apart from an array of one element
    try:
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError):  # another kind of value, another byte order
        raise UsageError(f"{_named(where)} is an array of {array.dtype}, which tensors do not have") from None


def _named(where: str) -> str:
    return f"field {where}" if where else "the sample"


def encode_item(item: Any) -> bytes:
    """Canonical bytes of a sample: every field (inputs and labels) with path, type, shape and content."""
    return b"".join(_encoded(item))


def _encoded(item: Any) -> list[bytes]:
    """The same in pieces: of each field what ``frame(path, type, shape, content)`` gives."""
    parts = []
    for where, value in fields(item):
        kind, shape, data = encode_field(value, where)
        parts += [_head(where, kind, shape), len(data).to_bytes(8, "big"), data]
    return parts


@functools.lru_cache(maxsize=1024)
def _head(where: str, kind: str, shape: bytes) -> bytes:
    return frame(where, kind.encode(), shape)


_LEAF = frame(SAMPLE_ENCODING) + (8).to_bytes(8, "big")
_SALT = (32).to_bytes(8, "big")


def sample_leaf(item: Any, index: int, salt_key: bytes) -> bytes:
    """Leaf hash of sample ``index`` in the dataset tree; salted, so that a guess cannot be confirmed."""
    address, parts = index.to_bytes(8, "big"), _encoded(item)
    salt = hmac.digest(salt_key, address, "sha256")
    # frame(SAMPLE_ENCODING, address, salt, encode_item(item)) in one go: an audit hashes every sample that it sees.
    size = sum(map(len, parts)).to_bytes(8, "big")
    return leaf_hash(b"".join([_LEAF, address, _SALT, salt, size, *parts]))


class BatchHasher:
    """Keyed BLAKE3 of the batches of an interval, as they entered the steps."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.reset()

    def reset(self) -> None:
        """Begin an interval."""
        self._hasher = blake3(key=self._key)

    def update(self, step: int, batch: Any) -> None:
        """Add one batch."""
        self._hasher.update(frame("pol/v1/batch", step.to_bytes(8, "big")))
        for where, value in fields(batch):
            kind, shape, data = encode_field(value, where)
            self._hasher.update(frame(where, kind.encode(), shape, len(data).to_bytes(8, "big")))
            self._hasher.update(data)

    def digest(self) -> str:
        """The digest so far."""
        return "blake3:" + self._hasher.hexdigest()


def default_collate(items: list[Any]) -> Any:
    """Samples as one batch: arrays stacked to tensors, numbers to a tensor, text and bytes as a list."""
    first = items[0]
    if isinstance(first, dict):
        return {key: default_collate([item[key] for item in items]) for key in first}
    if isinstance(first, list | tuple):
        return tuple(default_collate([item[i] for item in items]) for i in range(len(first)))
    if isinstance(first, np.ndarray | np.generic):
        return torch.from_numpy(np.stack(items))
    if isinstance(first, torch.Tensor):
        return torch.stack(items)
    if isinstance(first, bool | int | float):
        return torch.tensor(items)
    return list(items)
