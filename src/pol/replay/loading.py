"""The batches of ``run.loader``: a loader of the program's own, whoever sets the generators.

A ``DataLoader`` is taken apart: its dataset, its sampler and its collation decide what a batch is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from pol.errors import UsageError
from pol.replay import randomness, watch
from pol.replay.kept import Kept
from pol.replay.loader import Loader, OnItem, Order
from pol.replay.ownloader import OwnLoader, as_indices, index_batches, worker_options
from pol.replay.randomness import GlobalState, Streams


def loader_of(given: Any, streams: Streams, kept: Kept | None, batches: int | None) -> Loader:
    """The loader for what a program gave to ``run.loader``.

    Args:
        given: A ``DataLoader``, a sequence of batches, or an iterable of batches that begins anew each time.
        streams: What sets the generators, unless the program keeps them.
        kept: The generators that the program keeps itself.
        batches: Batches of an epoch, where the loader does not know.

    Raises:
        UsageError: this version cannot take it.
    """
    if isinstance(given, DataLoader) and not isinstance(given.dataset, IterableDataset):
        _check(given, kept)
        if batches not in (None, len(given)):
            raise UsageError(f"loader(batches={batches}): this loader has {len(given)} batches")
        return SampledLoader(given, streams) if kept is None else OwnLoader(given, kept)
    if isinstance(given, Sequence):  # of batches: each is one sample of the committed dataset
        loader: DataLoader[Any] = DataLoader(cast("Any", given), batch_size=None, collate_fn=_as_it_is)
        return loader_of(loader, streams, kept, batches)
    if isinstance(given, Iterator) or not isinstance(given, Iterable):
        raise UsageError(
            f"loader() was given a {type(given).__name__}: it needs a DataLoader, a sequence of batches, or an "
            "iterable that can be begun anew (an object with __iter__), because a replay enters in the middle"
        )
    if isinstance(given, DataLoader):
        _check(given, kept)
    return StreamLoader(given, streams, kept, batches if batches is not None else _length(given))


def _check(given: DataLoader[Any], kept: Kept | None) -> None:
    if kept is None:
        return
    if given.persistent_workers or not getattr(given, "in_order", True):
        raise UsageError(
            "persistent_workers=True and in_order=False leave batches to generators and timing that no state holds: "
            "leave them out to keep your own randomness, or let the run set it (attach without randomness='observed')"
        )
    if any(generator not in kept.attached.values() for generator in own_generators(given)):
        raise UsageError(
            "the loader draws from a torch.Generator of its own that is not attached, so its state would be lost: "
            "run.attach(..., shuffling=generator)"
        )


def own_generators(given: DataLoader[Any]) -> list[torch.Generator]:
    """The generators that a loader and its samplers hold, each once."""
    holders = [given, given.sampler, given.batch_sampler, getattr(given.batch_sampler, "sampler", None)]
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())


def _as_it_is(batch: Any) -> Any:
    return batch


def _length(given: Any) -> int:
    try:
        return len(given)
    except TypeError:
        raise UsageError(
            "this iterable does not know how many batches an epoch has: say so, loader(…, batches=…)"
        ) from None


class SampledLoader(Loader):
    """A ``DataLoader`` whose randomness the run sets.

    Plain shuffling is the derived order. Any other sampler runs under a stream of the epoch, and what it chose stands
    in the record. Each sample is read under its own stream in whatever process, so worker processes, which only a
    recording uses, change nothing.
    """

    def __init__(self, given: DataLoader[Any], streams: Streams) -> None:
        size = given.batch_size or -(-len(cast("Sized", given.dataset)) // len(given))
        super().__init__(given.dataset, streams, size, bool(given.drop_last), None, given.collate_fn)
        self._given = given
        self.order = "derived" if _shuffles(given) else "recorded"
        self._chosen: list[list[int]] = []
        self._starts = [0]
        self._batches: Iterator[Any] = iter(())
        self._at: tuple[int, int] | None = None

    @property
    def num_batches(self) -> int:
        """Batches of a whole epoch."""
        return len(self._given)

    def declared_as(self, order: Order) -> None:
        """See ``Loader``: where indices are recorded, plain shuffling is one more sampler."""
        if order == "recorded":
            if self._observed is not None:
                super().reorder(self._observed)
            self.order = order

    def reorder(self, order: Path) -> None:
        """See ``Loader``; plain shuffling can have another order."""
        if self.order != "derived":
            super().reorder(order)
        self._observed = order

    def indices(self, epoch: int, batch: int) -> list[int]:
        """Dataset indices of a batch."""
        if self.order == "derived":
            return super().indices(epoch, batch)
        if epoch != self._epoch:
            caller = randomness.save()
            self._streams.sampler(epoch, own_generators(self._given))
            self._epoch, self._chosen = epoch, [as_indices(found) for found in index_batches(self._given)]
            randomness.load(caller)
            self._starts = [0]
            for chosen in self._chosen:
                self._starts.append(self._starts[-1] + len(chosen))
            if len(self._chosen) != self.num_batches:
                raise UsageError(f"the sampler gave {len(self._chosen)} batches; its length says {self.num_batches}")
        return self._chosen[batch]

    def fetch(self, epoch: int, batch: int, caller: GlobalState | None, on_item: OnItem | None = None) -> Any:
        """See ``Loader``."""
        if not self._given.num_workers or on_item is not None:
            return super().fetch(epoch, batch, caller, on_item)
        if self._at != (epoch, batch):
            self._begin(epoch, batch)
        self._at = epoch, batch + 1
        return next(self._batches)

    def bare(self, epoch: int, batch: int) -> Any:
        """See ``Loader``; what workers do costs the training nothing."""
        return None if self._given.num_workers else super().bare(epoch, batch)

    def _begin(self, epoch: int, first: int) -> None:
        keys = []
        for batch in range(first, self.num_batches):
            indices, begin = self.indices(epoch, batch), self._first(epoch, batch)
            keys.append([(epoch, batch, begin + i, index) for i, index in enumerate(indices)])
        caller = randomness.save()
        with watch.ours():
            self._batches = iter(DataLoader(
                cast("Any", _Keyed(self.data, self._streams)), batch_sampler=cast("Any", keys),
                collate_fn=_KeyedCollation(self._collated, self._streams), **worker_options(self._given),
            ))  # fmt: skip
        randomness.load(caller)  # making an iterator draws

    def close(self) -> None:
        """See ``Loader``."""
        self._batches, self._at = iter(()), None

    def _first(self, epoch: int, batch: int) -> int:
        return super()._first(epoch, batch) if self.order == "derived" else self._starts[batch]

    def _collated(self, items: list[Any]) -> Any:
        return self._collate(items if self._given.batch_sampler is not None else items[0])


class _Keyed:
    """A dataset in a worker: each sample is read under its own stream. A key is (epoch, batch, position, index)."""

    def __init__(self, data: Any, streams: Streams) -> None:
        self._data, self._streams = data, streams

    def __getitem__(self, key: tuple[int, int, int, int]) -> tuple[int, int, Any]:
        epoch, batch, position, index = key
        self._streams.sample(epoch, position, index)
        return epoch, batch, self._data[index]


class _KeyedCollation:
    """A collation in a worker, under the stream of its batch."""

    def __init__(self, collate: Callable[[list[Any]], Any], streams: Streams) -> None:
        self._collate, self._streams = collate, streams

    def __call__(self, found: list[tuple[int, int, Any]]) -> Any:
        self._streams.collate(*found[0][:2])
        return self._collate([item for _, _, item in found])


def _shuffles(given: DataLoader[Any]) -> bool:
    """Whether a loader does what ``shuffle=True`` does, and nothing else."""
    sampler = given.sampler
    return (
        type(given.batch_sampler) is BatchSampler
        and type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(cast("Sized", given.dataset))
    )


class StreamLoader(Loader):
    """An iterable dataset: batches come one after the other, and there is no sample to ask for by its index.

    Entered in the middle of an epoch, it is begun anew and led there, which costs the reading, but no training.
    """

    def __init__(self, given: Iterable[Any], streams: Streams, kept: Kept | None, batches: int) -> None:
        if batches < 1:
            raise UsageError(f"loader(batches={batches}): an epoch has at least one batch")
        super().__init__((), streams, getattr(given, "batch_size", None) or 1, False, None, None)
        self._given, self._kept, self._count = given, kept, batches
        self.order = "stream"
        self._batches: Iterator[Any] = iter(())
        self._at: tuple[int, int] | None = None

    @property
    def num_batches(self) -> int:
        """Batches of a whole epoch."""
        return self._count

    def close(self) -> None:
        """See ``Loader``."""
        self._batches, self._at = iter(()), None

    def indices(self, epoch: int, batch: int) -> list[int]:
        """None are known."""
        return []

    def fetch(self, epoch: int, batch: int, caller: GlobalState | None, on_item: OnItem | None = None) -> Any:
        """The next batch."""
        if self._at != (epoch, batch):
            self._begin(epoch, batch)
        self._at = epoch, batch + 1
        fetched = self._next(epoch, batch)
        if caller is not None:
            randomness.load(caller)
        return fetched

    def bare(self, epoch: int, batch: int) -> Any:
        """See ``Loader``."""
        return None

    def _begin(self, epoch: int, first: int) -> None:
        now = None
        if self._kept is None:
            self._streams.iterator(epoch)
        elif first:
            now = self._kept.now()
            self._kept.rewind()
        else:
            self._kept.begin_epoch()
        with watch.ours():
            self._batches = iter(self._given)
        for batch in range(first):
            self._next(epoch, batch)
        if now is not None and self._kept is not None:
            self._kept.load(now)

    def _next(self, epoch: int, batch: int) -> Any:
        if self._kept is None:
            self._streams.fetch(epoch, batch)
        try:
            return next(self._batches)
        except StopIteration:
            raise UsageError(f"the iterable ended after {batch} batches, {self._count} were declared") from None
