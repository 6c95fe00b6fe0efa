"""The engine: the only place that drives a user's training program.

Prover, auditor, attacker and tests all call ``advance``. The program is entered from its start, builds its
parts, and is put at the wanted step when it asks for the next batch; it cannot tell recording from replaying.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from pol.declaration import Declaration, External, difference
from pol.errors import ReplayError, UsageError
from pol.replay import randomness
from pol.replay.data import Collate, Loader, Transform
from pol.replay.parts import Parts
from pol.replay.randomness import Streams
from pol.replay.recipe import Recipe
from pol.replay.state import State
from pol.statetree import StateRoot


class _Arrived(BaseException):
    """Ends a program at the wanted step; no ``except Exception`` of the user's can swallow it."""


class Observer(Protocol):
    """Told about every step as it closes."""

    def batch(self, step: int, batch: Any) -> None:
        """A batch is about to enter step ``step``."""

    def item(self, index: int, item: Any) -> None:
        """The dataset returned sample ``index`` (before its transform)."""

    def closed(
        self, step: int, loss: float | None, rates: list[float], take: Callable[[], State], counts: dict[str, int]
    ) -> None:
        """Step ``step`` is done; ``loss`` is None if it was skipped; ``take()`` gives the state after it."""


@dataclass(frozen=True)
class Position:
    """Where a program is entered: before step ``step``, in ``state``; ``state`` None means as it is built."""

    step: int = 0
    state: State | None = None
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Frame:
    """What stays the same over a run: its randomness, and what the program is expected to declare."""

    streams: Streams
    declaration: Declaration | None = None
    batches_per_step: int | None = None
    external: Callable[[], list[External]] = list
    """Files that were read until now; asked at ``attach``."""


@dataclass(frozen=True)
class Arrival:
    """What ``advance`` leaves: the step reached, the state there, and what the program declared."""

    step: int
    state: State
    counts: dict[str, int]
    declaration: Declaration
    batches_per_step: int | None
    loader: Loader
    parts: Parts
    asides: int
    finished: bool

    def root_now(self) -> StateRoot:
        """Roots of the state."""
        return self.state.root()

    def digests_now(self) -> dict[str, bytes]:
        """Content digests of the state, by entry key."""
        return {entry.key: content for entry, content in self.state.digests()}


def advance(
    make: Callable[[], Recipe], frame: Frame, start: Position, stop: int | None = None, observer: Observer | None = None
) -> Arrival:
    """Enter the program at ``start`` and take its steps until ``stop`` (None: until it returns).

    ``make`` makes the recipe; generators already carry the init stream. With ``stop`` 0 the program is left at
    its first request for a batch: a dry build.

    Raises:
        ReplayError: the program declared something else than expected, or cannot be entered there.
        UsageError: it uses the run in a way that this version does not support.
    """
    driver = _Driver(frame, start, stop, observer)
    finished = False
    with warnings.catch_warnings():
        # A schedule that is stepped from 0 before the first optimizer step is our doing, not the user's.
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*optimizer.step")
        try:
            make().train(driver)
            driver.finish()
            finished = True
        except _Arrived:
            pass
    return driver.arrival(finished)


class _Driver:
    """The Run that a program is handed, whoever asks."""

    def __init__(self, frame: Frame, start: Position, stop: int | None, observer: Observer | None) -> None:
        self._frame = frame
        self._start = start
        self._stop = stop
        self._observer = observer
        self.step = start.step
        self.epoch = 0
        self._parts: Parts | None = None
        self._epochs: int | None = None
        self._loader: Loader | None = None
        self._declaration: Declaration | None = None
        self._external: list[External] = []
        self._batches_per_step = frame.batches_per_step
        self._entered = False
        self._open = 0  # batches fetched since the last commit
        self._pending: tuple[float | None, list[float]] | None = None
        self._rates: list[float] | None = None
        self._asides = 0

    # -- the public Run -----------------------------------------------------------------------------------------

    def attach(self, *, dynamic: tuple[str, ...] = (), **parts: Any) -> Any:
        """Register everything that evolves; returns the parts as attributes."""
        if self._parts is not None:
            raise UsageError("attach() was called twice: attach all parts in one call")
        self._external = self._frame.external()
        self._parts = Parts(parts, tuple(dynamic))
        for optimizer in self._parts.optimizers.values():
            optimizer.register_step_pre_hook(self._note_rates)
        if self._start.state is not None:
            self._parts.replay_schedules(self._start.counts)
            self._parts.restore(self._start.state)
        return self._parts.namespace

    def epochs(self, n: int) -> Iterator[int]:
        """The epochs that are left, of ``n``."""
        if self._parts is None:
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
        loader = Loader(data, self._frame.streams, size, drop_last, transform, collate)
        if self._loader is not None:
            if (loader.samples, size, drop_last) != (self._loader.samples, self._loader.size, self._loader.drop_last):
                raise UsageError("batches() was called with another dataset size, batch size or drop_last than before")
            loader.continue_from(self._loader)
        self._loader = loader
        return Batches(self, loader)

    def commit(self, *, loss: Any, skipped: bool = False) -> None:
        """Close a step. The boundary itself is at the next request for a batch."""
        if self._pending is not None or not self._open:
            raise UsageError("commit() without a batch since the last commit(): commit once per optimizer update")
        value = None if skipped else float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
        if value is not None and not -torch.inf < value < torch.inf:
            raise ReplayError(f"step {self.step}: the loss is {value}; the training diverged")
        self._pending = (value, self._rates if self._rates is not None else self._need_parts().rates())
        self._rates = None
        if self._batches_per_step is None:
            self._batches_per_step = self._open

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """A context for evaluation: generators, modes and buffers are afterwards as they were."""
        parts = self._need_parts()
        saved = randomness.save()
        generators = {name: g.get_state() for name, g in parts.generators.items()}
        modes = [(m, m.training) for module in parts.modules.values() for m in module.modules()]
        buffers = [(b, b.detach().clone()) for module in parts.modules.values() for b in module.buffers()]
        self._asides += 1
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for module, training in modes:
                module.training = training
            for name, state in generators.items():
                parts.generators[name].set_state(state)
            randomness.load(saved)

    # -- boundaries ---------------------------------------------------------------------------------------------

    def next_batch(self, loader: Loader, batch: int) -> Any:
        """Called at every request for a batch: the one place where a step ends and the next begins."""
        self._close()
        if not self._entered:
            self._enter()
        if self.step == self._stop:
            raise _Arrived
        if self._open:
            caller = randomness.save()  # a further micro-batch: the step's streams go on
        else:
            caller = self._frame.streams.step(self.step, self._need_parts().generators)
        observer = self._observer
        fetched = loader.fetch(self.epoch, batch, caller, observer.item if observer else None)
        if observer:
            observer.batch(self.step, fetched)
        self._open += 1
        return fetched

    def first_batch(self, loader: Loader) -> int:
        """Where in this epoch the program goes on."""
        per_epoch = self._steps_per_epoch()
        if per_epoch is None or self.epoch != self._start.step // per_epoch or self._entered:
            return 0
        return (self._start.step % per_epoch) * (self._batches_per_step or 1)

    def finish(self) -> None:
        """The program has returned: close its last step."""
        self._close()
        if self._declaration is None:
            raise UsageError("train() returned without asking for a batch")
        expected = self._declaration.epochs * (self._steps_per_epoch() or 0)
        if self.step != expected:
            raise ReplayError(f"train() returned after {self.step} steps; {expected} were declared")

    def _enter(self) -> None:
        parts, loader = self._need_parts(), self._loader
        assert loader is not None and self._epochs is not None
        if parts.counts != dict.fromkeys(parts.counts, 0) | self._start.counts:
            raise ReplayError("the program steps a schedule before its first batch, so it cannot be entered again")
        if self._start.state is not None:
            # Once more: what ran between attach and here (the top of an epoch) belongs to an earlier step.
            parts.restore(self._start.state)
        built = parts.capture()
        self._declaration = Declaration(
            parts=parts.describe(),
            entries=[] if self._start.state is not None else [entry for entry, _ in built.entries()],
            aliases=parts.aliases,
            epochs=self._epochs,
            samples=loader.samples,
            batch_size=loader.size,
            drop_last=loader.drop_last,
            external=self._external,
        )
        expected = self._frame.declaration
        if expected is not None:
            if self._start.state is not None:
                self._declaration = Declaration(**{**_fields(self._declaration), "entries": expected.entries})
            if changed := difference(expected, self._declaration):
                raise ReplayError(f"the program declared something else than before: {changed}")
        self._entered = True

    def _close(self) -> None:
        if self._pending is None:
            return
        if self._open != self._batches_per_step and not self._epoch_is_over():
            raise UsageError(
                f"step {self.step} closed {self._open} batches, earlier steps {self._batches_per_step}: "
                "every commit must close the same number, save the last of an epoch"
            )
        (loss, rates), self._pending, self._open = self._pending, None, 0
        self.step += 1
        if self._observer:
            parts = self._need_parts()
            self._observer.closed(self.step - 1, loss, rates, parts.capture, dict(parts.counts))

    def _epoch_is_over(self) -> bool:
        per_epoch = self._steps_per_epoch()
        return per_epoch is not None and (self.step + 1) % per_epoch == 0

    def _steps_per_epoch(self) -> int | None:
        declaration = self._declaration or self._frame.declaration
        if declaration is None or self._batches_per_step is None:
            return None
        return declaration.steps_per_epoch(self._batches_per_step)

    def _note_rates(self, *_: Any) -> None:
        self._rates = self._need_parts().rates()

    def _need_parts(self) -> Parts:
        if self._parts is None:
            raise UsageError("attach() must come first")
        return self._parts

    def arrival(self, finished: bool) -> Arrival:
        """What ``advance`` returns."""
        assert self._declaration is not None and self._loader is not None
        parts = self._need_parts()
        return Arrival(
            step=self.step, state=parts.capture(), counts=dict(parts.counts), declaration=self._declaration,
            batches_per_step=self._batches_per_step, loader=self._loader, parts=parts, asides=self._asides,
            finished=finished,
        )  # fmt: skip


def _fields(declaration: Declaration) -> dict[str, Any]:
    return {name: getattr(declaration, name) for name in declaration.__struct_fields__}


class Batches:
    """The batches of an epoch; iterate it once per epoch. ``len`` is their number in a whole epoch."""

    def __init__(self, driver: _Driver, loader: Loader) -> None:
        self._driver = driver
        self._loader = loader

    def __len__(self) -> int:
        return self._loader.num_batches

    def __iter__(self) -> Iterator[Any]:
        for batch in range(self._driver.first_batch(self._loader), len(self)):
            yield self._driver.next_batch(self._loader, batch)
