"""Samples and batches: canonical bytes, dataset leaves, fetching, collation."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3

from pol.digest import frame
from pol.errors import UsageError
from pol.merkle import leaf_hash
from pol.order import epoch_order, observed_order
from pol.replay import randomness
from pol.replay.randomness import GlobalState, Streams
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


class Loader:
    """Fetches the batches of one training run, each a function of (seed, epoch, batch) alone.

    The result is defined as if the global generators were set from (seed, epoch, position, sample) before each
    sample. Setting three generators costs more than a small sample, so a batch is first fetched with one
    setting; only if a generator moved is it fetched again, sample by sample, from then on always so.
    """

    def __init__(
        self, data: Any, streams: Streams, size: int, drop_last: bool,
        transform: Transform | None, collate: Collate | None, order: Path | None = None,
    ) -> None:  # fmt: skip
        self.data = data
        self.samples = len(data)
        self.size = size
        self.drop_last = drop_last
        self._streams = streams
        self._transform = transform
        self._collate = collate or default_collate
        self._observed = order
        self._epoch = -1
        self._sets_each = False

    @property
    def num_batches(self) -> int:
        """Batches of a whole epoch."""
        whole, rest = divmod(self.samples, self.size)
        return whole + bool(rest and not self.drop_last)

    def continue_from(self, other: Loader) -> None:
        """Keep what the loader of the epoch before has learned about the program."""
        self._sets_each = other._sets_each

    def indices(self, epoch: int, batch: int) -> list[int]:
        """Dataset indices of a batch."""
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._order_of(epoch)
        indices: list[int] = self._order[batch * self.size : (batch + 1) * self.size].tolist()
        return indices

    def _order_of(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        if self._observed is None:
            return epoch_order(self._streams.seed, epoch, self.samples)
        with self._observed.open("rb") as file:
            file.seek(4 * self.samples * epoch)
            return observed_order(file.read(4 * self.samples), self.samples)

    def fetch(
        self, epoch: int, batch: int, caller: GlobalState, on_item: Callable[[int, Any], None] | None = None
    ) -> Any:
        """Batch ``batch`` of ``epoch``; the global generators, in state ``caller``, are left so.

        ``on_item`` may be told of a sample twice; the last time holds.
        """
        items = None if self._sets_each else self._fetch_quickly(epoch, batch, caller, on_item)
        if items is None:
            self._sets_each = True
            items = self._fetch_each(epoch, batch, on_item)
        elif self._collate is default_collate:  # which draws nothing
            return default_collate(items)
        self._streams.collate(epoch, batch)
        collated = self._collate(items)
        randomness.load(caller)
        return collated

    def _item(self, epoch: int, position: int, index: int, on_item: Callable[[int, Any], None] | None) -> Any:
        item = self.data[index]
        if on_item:
            on_item(index, item)
        if self._transform is None:
            return item
        return self._transform(item, self._streams.sample_rng(epoch, position, index))

    def _fetch_quickly(self, epoch: int, batch: int, caller: GlobalState, on_item: Any) -> list[Any] | None:
        first = batch * self.size
        items = [self._item(epoch, first + i, index, on_item) for i, index in enumerate(self.indices(epoch, batch))]
        return items if randomness.unchanged(caller) else None

    def _fetch_each(self, epoch: int, batch: int, on_item: Any) -> list[Any]:
        items = []
        first = batch * self.size
        for i, index in enumerate(self.indices(epoch, batch)):
            self._streams.sample(epoch, first + i, index)
            items.append(self._item(epoch, first + i, index, on_item))
        return items
