"""Samples and batches: canonical bytes, dataset leaves, digests, collation."""

from __future__ import annotations

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
    if isinstance(value, np.ndarray | np.generic) and not isinstance(value, str | bytes):
        value = _as_tensor(value, where)
    if isinstance(value, torch.Tensor):
        shape = b"".join(size.to_bytes(8, "big") for size in value.shape)
        return dtype_name(value, _named(where)), shape, bytes(content(value))
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
    parts = []
    for where, value in fields(item):
        kind, shape, data = encode_field(value, where)
        parts.append(frame(where, kind.encode(), shape, data))
    return b"".join(parts)


def sample_leaf(item: Any, index: int, salt_key: bytes) -> bytes:
    """Leaf hash of sample ``index`` in the dataset tree; salted, so that a guess cannot be confirmed."""
    address = index.to_bytes(8, "big")
    salt = hmac.digest(salt_key, address, "sha256")
    return leaf_hash(frame(SAMPLE_ENCODING, address, salt, encode_item(item)))


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
