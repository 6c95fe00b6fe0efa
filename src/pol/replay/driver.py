"""The Run that a program is handed, whoever asks: dry build, recorder and replayer alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch

from pol.declaration import Declaration, difference
from pol.errors import ReplayError, UsageError
from pol.replay import randomness, watch
from pol.replay.aside import undisturbed
from pol.replay.attached import Attached
from pol.replay.data import Collate, Transform
from pol.replay.frame import Arrival, Frame, Position
from pol.replay.leftovers import Leftovers
from pol.replay.loader import Loader
from pol.replay.loading import loader_of
from pol.replay.observer import Observer


class Arrived(BaseException):
    """Ends a program at the wanted step; no ``except Exception`` of the user's can swallow it."""


class Driver:
    """The Run that a program is handed, whoever asks."""

    def __init__(self, frame: Frame, start: Position, stop: int | None, observer: Observer | None) -> None:
        self._frame = frame
        self._start = start
        self._stop = stop
        self._observer = observer
        self.step = start.step
        self.epoch = 0
        self._attached: Attached | None = None
        self._epochs: int | None = None
        self._loader: Loader | None = None
        self._declaration: Declaration | None = None
        self._batches_per_step = frame.batches_per_step
        self._entered = False
        self._open = 0  # batches fetched since the last commit
        self._pending: tuple[float | None, list[float]] | None = None
        self._rates: list[float] | None = None
        self._asides = 0

    # -- the public Run -----------------------------------------------------------------------------------------

    def attach(
        self, *unnamed: Any, frozen: Any = None, dynamic: tuple[str, ...] = (), ignored: tuple[str, ...] = (),
        randomness: Literal["derived", "observed"] = "derived", **parts: Any,
    ) -> Any:  # fmt: skip
        """Register everything that evolves; returns the parts as attributes.

        Args:
            *unnamed: Nothing: every part has a name.
            frozen: A module that the training uses and never changes, or several by name: in no state, bound by root.
            dynamic: Hyperparameters that the program changes by itself.
            ignored: Attributes that evolve and are in no state, and that have no influence (statistics).
            randomness: ``observed``: the program seeds its generators itself, and they are state.
            **parts: Modules, optimizers, schedules, generators, dicts, and objects with a ``state_dict``.
        """
        if unnamed:
            raise UsageError("attach() takes every part under a name: run.attach(model=model, optimizer=optimizer)")
        if self._attached is not None:
            raise UsageError("attach() was called twice: attach all parts in one call")
        external = self._frame.external()
        self._attached = Attached(parts, frozen, tuple(dynamic), ignored, randomness, external)
        optimizers = self._attached.parts.optimizers.values()
        self._leftovers = Leftovers(optimizers)
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._note_rates)
        self._attached.begin(self._start)
        watch.attached()
        return self._attached.parts.namespace

    def epochs(self, n: int) -> Iterator[int]:
        """The epochs that are left, of ``n``."""
        if self._attached is None:
            raise UsageError("epochs() was called before attach()")
        if self._epochs is not None:
            raise UsageError("epochs() was called twice: a run has one loop over epochs")
        if n < 1:
            raise UsageError(f"epochs({n}): a training has at least one epoch")
        self._epochs = n
        per_epoch = self._steps_per_epoch()
        first = self._start.step // per_epoch if per_epoch else 0
        for epoch in range(first, n):
            self.epoch = epoch
            yield epoch

    def batches(
        self, data: Any, transform: Transform | None = None, *, size: int, drop_last: bool = False,
        collate: Collate | None = None,
    ) -> Batches:  # fmt: skip
        """The batches that are left of this epoch, in the derived order."""
        if self._epochs is None:
            raise UsageError("batches() was called outside of `for epoch in run.epochs(n)`")
        if size < 1 or not len(data):
            raise UsageError(f"batches(size={size}) of {len(data)} samples: there is no batch in that")
        loader = Loader(data, self._frame.streams, size, drop_last, transform, collate, self._frame.order)
        return self._batches_of(loader)

    def loader(self, dataloader: Any, *, batches: int | None = None) -> Batches:
        """The batches that are left of this epoch, of a loader of the program's own.

        Args:
            dataloader: A ``torch.utils.data.DataLoader``, a sequence of batches, or another iterable of batches.
            batches: Batches of an epoch, where the iterable does not know.
        """
        if self._epochs is None:
            raise UsageError("loader() was called outside of `for epoch in run.epochs(n)`")
        loader = loader_of(dataloader, self._frame.streams, self.attached.kept, batches)
        if self._frame.order is not None:
            loader.reorder(self._frame.order)
        return self._batches_of(loader)

    def _batches_of(self, loader: Loader) -> Batches:
        if declared := self._declaration or self._frame.declaration:
            loader.declared_as(declared.order)
        if self._loader is not None:
            if loader.kind != self._loader.kind:
                raise UsageError(
                    "batches() was called with another dataset size, batch size or drop_last than before, or with a "
                    "sampler after epochs that were shuffled"
                )
            loader.continue_from(self._loader)
            self._loader.close()
        self._loader = loader
        return Batches(self, loader)

    def commit(self, *, loss: Any, skipped: bool = False) -> None:
        """Close a step. The boundary itself is at the next request for a batch."""
        if self._pending is not None or not self._open:
            raise UsageError("commit() without a batch since the last commit(): commit once per optimizer update")
        value = None if skipped else float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
        if value is not None and not -torch.inf < value < torch.inf:
            raise ReplayError(f"step {self.step}: the loss is {value}; the training diverged")
        self._pending = (value, self._rates if self._rates is not None else self.attached.parts.rates())
        self._rates = None
        if self._batches_per_step is None:
            self._batches_per_step = self._open

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """A context for evaluation: modes and buffers are afterwards as they were.

        So are generators, unless the program keeps them itself: then evaluation moves them as it does without a Run.
        """
        self._asides += 1
        with undisturbed(self.attached.parts, draws=self.attached.kept is not None), watch.aside():
            yield

    # -- boundaries ---------------------------------------------------------------------------------------------

    def next_batch(self, loader: Loader, batch: int) -> Any:
        """Called at every request for a batch: the one place where a step ends and the next begins."""
        self._close()
        if not self._entered:
            self._enter()
        if self.step == self._stop:
            raise Arrived
        caller: randomness.GlobalState | None
        if self.attached.kept is not None:
            caller = None  # generators are the program's own
        elif self._open:
            caller = randomness.save()  # a further micro-batch: the step's streams go on
        else:
            caller = self._frame.streams.step(self.step, self.attached.parts.generators)
        observer = self._observer
        watch.at(self.step, fetching=True)
        fetched = loader.fetch(self.epoch, batch, caller, observer.item if observer else None)
        watch.at(self.step, fetching=False)
        if observer:
            chosen = loader.indices(self.epoch, batch) if loader.order == "recorded" else None
            observer.batch(self.step, fetched, chosen)
        self._open += 1
        return fetched

    def first_batch(self) -> int:
        """Where in this epoch the program goes on."""
        per_epoch = self._steps_per_epoch()
        if per_epoch is None:
            return 0
        if not self._entered:
            return (self._start.step - self.epoch * per_epoch) * (self._batches_per_step or 1)
        if self._open and self._pending is None:
            raise UsageError(
                f"epoch {self.epoch} begins, but the last {self._open} batches were not followed by a commit()"
            )
        if (done := self.step + (self._pending is not None)) != self.epoch * per_epoch:
            raise UsageError(
                f"epoch {self.epoch} begins after {done} steps, not after {self.epoch * per_epoch}: every epoch "
                f"must take all of its {per_epoch} steps, from one loop over batches()"
            )
        return 0

    def finish(self) -> None:
        """The program has returned: close its last step."""
        self._close(final=True)
        if self._declaration is None:
            raise UsageError("train() returned without asking for a batch")
        expected = self._declaration.epochs * (self._steps_per_epoch() or 0)
        if self.step != expected:
            raise ReplayError(f"train() returned after {self.step} steps; {expected} were declared")
        self.attached.bases.check()

    def close(self) -> None:
        """The program has ended, or was left."""
        if self._loader is not None:
            self._loader.close()

    def _enter(self) -> None:
        attached, loader, start, expected = self.attached, self._loader, self._start, self._frame.declaration
        assert loader is not None and self._epochs is not None
        attached.enter(start)
        known = None if start.state is None else expected.entries if expected else []
        self._declaration = attached.declare(loader, self._epochs, known)
        if expected is not None and (changed := difference(expected, self._declaration)):
            raise ReplayError(f"the program declared something else than before: {changed}")
        self._entered = True

    def _close(self, *, final: bool = False) -> None:
        if self._pending is None:
            return
        if self._open != self._batches_per_step and not self._epoch_is_over():
            raise UsageError(
                f"step {self.step} closed {self._open} batches, earlier steps {self._batches_per_step}: "
                "every commit must close the same number, save the last of an epoch"
            )
        (loss, rates), self._pending, self._open = self._pending, None, 0
        self._leftovers.step_ends()
        self.step += 1
        if self._observer:
            attached = self.attached
            take = attached.state if final else partial(attached.state_before, self.step)
            self._observer.closed(self.step - 1, loss, rates, take, dict(attached.parts.counts), attached.parts.momenta)

    def _epoch_is_over(self) -> bool:
        per_epoch = self._steps_per_epoch()
        return per_epoch is not None and (self.step + 1) % per_epoch == 0

    def _steps_per_epoch(self) -> int | None:
        declaration = self._declaration or self._frame.declaration
        if declaration is None or self._batches_per_step is None:
            return None
        return declaration.steps_per_epoch(self._batches_per_step)

    def _note_rates(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._leftovers.updates(optimizer, self.step, closure=bool(args[1:] or kwargs))  # args[0]: itself
        self._rates = self.attached.parts.rates()

    @property
    def attached(self) -> Attached:
        """What the program attached."""
        if self._attached is None:
            raise UsageError("attach() must come first")
        return self._attached

    def arrival(self, finished: bool) -> Arrival:
        """What ``advance`` returns."""
        assert self._declaration is not None and self._loader is not None
        parts = self.attached.parts
        return Arrival(
            step=self.step, state=self.attached.state(), counts=dict(parts.counts), declaration=self._declaration,
            batches_per_step=self._batches_per_step, loader=self._loader, parts=parts, asides=self._asides,
            finished=finished,
        )  # fmt: skip


class Batches:
    """The batches of an epoch that are left: all of them, unless the program is entered again within the epoch."""

    def __init__(self, driver: Driver, loader: Loader) -> None:
        self._driver = driver
        self._loader = loader
        self._epoch, self._first = driver.epoch, driver.first_batch()

    def __len__(self) -> int:
        # What iterating gives: a loop that commits the last batches of an epoch by `number == len(batches)` is right
        # wherever it is entered.
        return self._loader.num_batches - (self._first if self._epoch == self._driver.epoch else 0)

    def __iter__(self) -> Iterator[Any]:
        self._epoch, self._first = self._driver.epoch, self._driver.first_batch()
        for batch in range(self._first, self._loader.num_batches):
            yield self._driver.next_batch(self._loader, batch)
        if self._first < self._loader.num_batches:  # else the program was entered at the end, and is not there yet
            self._loader.end()
