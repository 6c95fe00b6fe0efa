"""A ``DataLoader`` of a program that keeps its own randomness.

Generators are drawn from exactly as iterating the loader itself would, in this process or by its workers.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from pol.errors import UsageError
from pol.replay import watch
from pol.replay.kept import Kept
from pol.replay.loader import Committed, Loader, OnItem
from pol.replay.randomness import GlobalState, Streams


def index_batches(given: DataLoader[Any]) -> Iterable[Any]:
    """What the loader takes indices from; without automatic batching, one index at a time."""
    return given.sampler if given.batch_sampler is None else given.batch_sampler


def as_indices(found: Any) -> list[int]:
    """What a sampler gave for one batch."""
    try:
        return [operator.index(index) for index in (found if isinstance(found, list | tuple) else [found])]
    except TypeError:
        raise UsageError(f"the sampler gives {str(found)[:60]}: this version records integer indices") from None


def worker_options(given: DataLoader[Any]) -> dict[str, Any]:
    """How a loader runs its workers."""
    names = ("num_workers", "pin_memory", "timeout", "worker_init_fn", "prefetch_factor", "multiprocessing_context")
    return {name: getattr(given, name) for name in names}


class OwnLoader(Loader):
    """A ``DataLoader`` of a program that keeps its own randomness."""

    def __init__(self, given: DataLoader[Any], kept: Kept) -> None:
        size = given.batch_size or -(-len(cast("Sized", given.dataset)) // len(given))
        super().__init__(given.dataset, Streams(bytes(32)), size, bool(given.drop_last), None, None)
        self._given, self._kept = given, kept
        self.order = "recorded"
        self._at: tuple[int, int] | None = None
        self._noted: list[int] = []

    @property
    def num_batches(self) -> int:
        """Batches of a whole epoch."""
        return len(self._given)

    def indices(self, epoch: int, batch: int) -> list[int]:
        """Dataset indices of the batch that was fetched last."""
        return self._noted

    def fetch(self, epoch: int, batch: int, caller: GlobalState | None, on_item: OnItem | None = None) -> Any:
        """The next batch; entered in the middle of an epoch, its order is drawn again."""
        if self._at != (epoch, batch):
            self._begin(batch)
        self._at = epoch, batch + 1
        try:
            self._noted, fetched = self._batches.next(on_item)
        except StopIteration:
            raise UsageError(f"the loader ended after {batch} batches; its length says {self.num_batches}") from None
        return fetched

    def bare(self, epoch: int, batch: int) -> Any:
        """See ``Loader``."""
        return None

    def _begin(self, first: int) -> None:
        if not first:
            self._kept.begin_epoch()
            self._batches = self._open()
            return
        now = self._kept.now()
        self._kept.rewind()
        self._batches = self._open()
        self._batches.skip(first)
        self._kept.load(now)

    def _open(self) -> _InProcess | _InWorkers:
        return _InWorkers(self._given, self._committed) if self._given.num_workers else _InProcess(
            self._given, self._committed
        )  # fmt: skip

    def end(self) -> None:
        """Exhaust the sampler, as a plain loop does: some draw once more at their end."""
        self._batches.end()

    def close(self) -> None:
        """See ``Loader``."""
        if self._at is not None:
            del self._batches
            self._at = None


class _InProcess:
    """One epoch of a loader without workers, drawn from generators as torch's own iterator draws."""

    def __init__(self, given: DataLoader[Any], committed: Committed) -> None:
        self._given, self._committed = given, committed
        self._indices = iter(index_batches(given))
        torch.empty((), dtype=torch.int64).random_(generator=given.generator)  # the base seed of its workers

    def skip(self, count: int) -> None:
        """Leave batches out, without fetching them."""
        for _ in range(count):
            next(self._indices)

    def next(self, on_item: OnItem | None) -> tuple[list[int], Any]:
        """Indices and content of the next batch."""
        found = next(self._indices)
        indices, data = as_indices(found), cast("Any", self._given.dataset)
        if on_item:
            for index in indices:
                on_item(index, self._committed[index])
        if self._given.batch_sampler is None:
            items = data[found]
        elif getattr(data, "__getitems__", None):  # as torch fetches
            items = data.__getitems__(found)
        else:
            items = [data[index] for index in found]
        return indices, self._given.collate_fn(items)

    def end(self) -> None:
        """Nothing may be left."""
        _exhausted(self._indices)


class _InWorkers:
    """One epoch of a loader with worker processes; what its sampler chose is noted in passing."""

    def __init__(self, given: DataLoader[Any], committed: Committed) -> None:
        self._committed, self._noted = committed, deque[list[int]]()
        noting = _Noting(index_batches(given), self._noted)
        sampler = {"sampler": noting, "batch_size": None} if given.batch_sampler is None else {"batch_sampler": noting}
        same = {**worker_options(given), "collate_fn": given.collate_fn, "generator": given.generator}
        with watch.ours():
            self._batches = iter(DataLoader(given.dataset, **sampler, **same))

    def skip(self, count: int) -> None:
        """Leave batches out; workers fetch them, since their generators move by it."""
        for _ in range(count):
            next(self._batches)
            self._noted.popleft()

    def next(self, on_item: OnItem | None) -> tuple[list[int], Any]:
        """Indices and content of the next batch."""
        fetched = next(self._batches)
        indices = self._noted.popleft()
        if on_item:
            for index in indices:
                on_item(index, self._committed[index])
        return indices, fetched

    def end(self) -> None:
        """Nothing may be left."""
        _exhausted(self._batches)


class _Noting:
    """A sampler that notes what another one chooses."""

    def __init__(self, inner: Iterable[Any], noted: deque[list[int]]) -> None:
        self._inner, self._noted = inner, noted

    def __iter__(self) -> Iterator[Any]:
        for found in self._inner:
            self._noted.append(as_indices(found))
            yield found

    def __len__(self) -> int:
        return len(cast("Sized", self._inner))


def _exhausted(left: Iterator[Any]) -> None:
    nothing = object()
    if next(left, nothing) is not nothing:
        raise UsageError("the loader has more batches than its length says")
