"""The batches of ``run.batches``, each a function of (seed, epoch, batch) alone; and samples as they are committed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pol.errors import UsageError
from pol.order import epoch_order, observed_order
from pol.replay import randomness
from pol.replay.data import Collate, Transform, default_collate
from pol.replay.randomness import GlobalState, Streams

OnItem = Callable[[int, Any], None]
Order = Literal["derived", "recorded", "stream"]

COMMITTED_SEED = hashlib.sha256(b"pol/v1/committed").digest()
"""The fixed public seed under which a dataset that draws random numbers is read for its commitment."""


class Committed:
    """Samples of a dataset as they are committed: each read under generators that depend on its index alone.

    So a dataset that augments in ``__getitem__`` has a root, too. Generators are set only if reading moves them, and
    are afterwards as they were.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self._streams = Streams(COMMITTED_SEED)

    def __getitem__(self, index: int) -> Any:
        before = randomness.save()
        item = self.data[index]
        if randomness.unchanged(before):
            return item
        self._streams.sample(0, 0, index)
        try:
            return self.data[index]
        finally:
            randomness.load(before)


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
        self.order: Order = "derived"
        """As the declaration says it."""
        self._epoch = -1
        self._sets_each = False
        self._committed = Committed(data)

    @property
    def num_batches(self) -> int:
        """Batches of a whole epoch."""
        whole, rest = divmod(self.samples, self.size)
        return whole + bool(rest and not self.drop_last)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What must be the same in every epoch."""
        return type(self).__name__, self.samples, self.size, self.drop_last, self.num_batches, self.order

    def declared_as(self, order: Order) -> None:
        """How the run declares its order: a loader of a later epoch may have a narrower one."""

    def reorder(self, order: Path) -> None:
        """Take the order of a file instead of that of the seed.

        Raises:
            UsageError: the order does not follow from the seed.
        """
        raise UsageError("loader() has an order of its own: no other one can be given")

    def continue_from(self, other: Loader) -> None:
        """Keep what the loader of the epoch before has learned about the program."""
        self._sets_each = other._sets_each

    def end(self) -> None:
        """The program has asked for a batch after the last one of an epoch."""

    def close(self) -> None:
        """The program has ended, or was left: let worker processes go.

        At once: an iterator that waits for the garbage collector may find its queues gone, and then waits for seconds.
        """

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

    def fetch(self, epoch: int, batch: int, caller: GlobalState | None, on_item: OnItem | None = None) -> Any:
        """Batch ``batch`` of ``epoch``; the global generators, in state ``caller``, are left so.

        ``on_item`` may be told of a sample twice; the last time holds.
        """
        caller = caller or randomness.save()  # None: the program keeps its own randomness, and they are as it left them
        items = None if self._sets_each else self._fetch_quickly(epoch, batch, caller, on_item)
        if items is None:
            self._sets_each = True
            items = self._fetch_each(epoch, batch, on_item)
        elif self._collate is default_collate:  # which draws nothing
            return default_collate(items)
        self._streams.collate(epoch, batch)
        collated = self._collated(items)
        randomness.load(caller)
        return collated

    def bare(self, epoch: int, batch: int) -> Any:
        """Read a batch as a loop without a Run would, under whatever the generators are: to measure what a Run adds.

        None where the Run asks a loader of the program's own, and so adds nothing.
        """
        items = [self.data[index] for index in self.indices(epoch, batch)]
        if self._transform is not None:
            rng = self._streams.sample_rng(epoch, batch, 0)
            items = [self._transform(item, rng) for item in items]
        return self._collated(items)

    def _first(self, epoch: int, batch: int) -> int:
        """Position in the epoch of the first sample of a batch."""
        return batch * self.size

    def _collated(self, items: list[Any]) -> Any:
        return self._collate(items)

    def _transformed(self, item: Any, epoch: int, position: int, index: int) -> Any:
        if self._transform is None:
            return item
        return self._transform(item, self._streams.sample_rng(epoch, position, index))

    def _fetch_quickly(self, epoch: int, batch: int, caller: GlobalState, on_item: OnItem | None) -> list[Any] | None:
        indices, first = self.indices(epoch, batch), self._first(epoch, batch)
        items = [self.data[index] for index in indices]
        if on_item:
            if not randomness.unchanged(caller):  # these are not the committed samples
                return None
            for index, item in zip(indices, items, strict=True):
                on_item(index, item)
        if self._transform is not None:
            items = [self._transformed(item, epoch, first + i, indices[i]) for i, item in enumerate(items)]
        return items if randomness.unchanged(caller) else None

    def _fetch_each(self, epoch: int, batch: int, on_item: OnItem | None) -> list[Any]:
        indices, first = self.indices(epoch, batch), self._first(epoch, batch)
        items = []
        for i, index in enumerate(indices):
            before = self._streams.sample(epoch, first + i, index)
            item = self.data[index]
            if on_item:
                on_item(index, item if randomness.unchanged(before) else self._committed[index])
            items.append(self._transformed(item, epoch, first + i, index))
        return items
