"""The Run that a program is handed, whoever asks: dry build, recorder and replayer alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch

from pol.declaration import Declaration, External, difference
from pol.errors import ReplayError, UsageError
from pol.replay import randomness, watch
from pol.replay.aside import undisturbed
from pol.replay.data import Collate, Transform
from pol.replay.frame import Arrival, Frame, Position
from pol.replay.frozen import Bases
from pol.replay.kept import Kept
from pol.replay.leftovers import Leftovers
from pol.replay.loader import Loader
from pol.replay.loading import loader_of
from pol.replay.observer import Observer
from pol.replay.parts import Parts
from pol.replay.state import State


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
        self._parts: Parts | None = None
        self._bases = Bases({})
        self._kept: Kept | None = None
        self._epochs: int | None = None
        self._loader: Loader | None = None
        self._declaration: Declaration | None = None
        self._external: list[External] = []
        self._ignored: list[str] = []
        self._batches_per_step = frame.batches_per_step
        self._entered = False
        self._open = 0  # batches fetched since the last commit
        self._pending: tuple[float | None, list[float]] | None = None
        self._rates: list[float] | None = None
        self._asides = 0
        self._flags: dict[str, bool] = {}

    # -- the public Run -----------------------------------------------------------------------------------------

    def attach(
        self, *, frozen: Any = None, dynamic: tuple[str, ...] = (), ignored: tuple[str, ...] = (),
        randomness: Literal["derived", "observed"] = "derived", **parts: Any,
    ) -> Any:  # fmt: skip
        """Register everything that evolves; returns the parts as attributes.

        Args:
            frozen: A module that the training uses and never changes, or several by name: in no state, bound by root.
            dynamic: Hyperparameters that the program changes by itself.
            ignored: Attributes that evolve and are in no state, and that have no influence (statistics).
            randomness: ``observed``: the program seeds its generators itself, and they are state.
            **parts: Modules, optimizers, schedules, generators, dicts, and objects with a ``state_dict``.
        """
        if self._parts is not None:
            raise UsageError("attach() was called twice: attach all parts in one call")
        if randomness not in ("derived", "observed"):
            raise UsageError(f"attach(randomness={randomness!r}): derived or observed")
        self._external = self._frame.external()
        self._ignored = sorted({*ignored})
        self._bases = Bases(frozen)
        self._parts = Parts(parts, tuple(dynamic), self._bases)
        if randomness == "observed":
            self._kept = Kept(self._parts.generators)
        self._leftovers = Leftovers(self._parts.optimizers.values())
        for optimizer in self._parts.optimizers.values():
            optimizer.register_step_pre_hook(self._note_rates)
        if self._start.state is not None:
            self._parts.schedules.repeat(self._start.counts)
            self._restore(self._start.state)
            self._parts.schedules.held = True
        watch.attached()
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
        if self._frame.order is not None:
            raise UsageError("loader() has an order of its own: no other one can be given")
        return self._batches_of(loader_of(dataloader, self._frame.streams, self._kept, batches))

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
        self._pending = (value, self._rates if self._rates is not None else self._need_parts().rates())
        self._rates = None
        if self._batches_per_step is None:
            self._batches_per_step = self._open

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """A context for evaluation: modes and buffers are afterwards as they were.

        So are generators, unless the program keeps them itself: then evaluation moves them as it does without a Run.
        """
        self._asides += 1
        with undisturbed(self._need_parts(), draws=self._kept is not None), watch.aside():
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
        if self._kept is not None:
            caller = None  # generators are the program's own
        elif self._open:
            caller = randomness.save()  # a further micro-batch: the step's streams go on
        else:
            caller = self._frame.streams.step(self.step, self._need_parts().generators)
        observer = self._observer
        fetched = loader.fetch(self.epoch, batch, caller, observer.item if observer else None)
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
        self._bases.check()

    def close(self) -> None:
        """The program has ended, or was left."""
        if self._loader is not None:
            self._loader.close()

    def _enter(self) -> None:
        parts, loader = self._need_parts(), self._loader
        assert loader is not None and self._epochs is not None
        if self._start.state is None and any(parts.counts.values()):
            raise UsageError("the program steps a schedule before its first batch: step it after an update")
        if self._start.state is not None:
            # Once more: what ran between attach and here (the top of an epoch) belongs to an earlier step.
            self._restore(self._start.state)
            parts.schedules.held = False
        self._flags = parts.flags()
        built = self._state()
        self._declaration = Declaration(
            parts=parts.describe(),
            entries=[] if self._start.state is not None else [entry for entry, _ in built.entries()],
            aliases=parts.aliases,
            epochs=self._epochs,
            samples=loader.samples,
            batch_size=loader.size,
            drop_last=loader.drop_last,
            external=self._external,
            streams="derived" if self._kept is None else "observed",
            order=loader.order,
            batches=None if loader.order == "derived" else loader.num_batches,
            frozen=self._bases.declared,
            ignored=self._ignored,
        )
        expected = self._frame.declaration
        if expected is not None:
            if self._start.state is not None:
                self._declaration = Declaration(**{**_fields(self._declaration), "entries": expected.entries})
            if changed := difference(expected, self._declaration):
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
            parts = self._need_parts()
            take = self._state if final else self._capture
            self._observer.closed(self.step - 1, loss, rates, take, dict(parts.counts))

    def _capture(self) -> State:
        """The state between two steps; what no state holds must be as it was when the program was entered."""
        parts = self._need_parts()
        now = parts.flags()
        changed = [name for name in {**self._flags, **now} if self._flags.get(name) != now.get(name)]
        if changed:
            raise ReplayError(
                f"before step {self.step}: {changed[0]} has changed since the training began. A replay enters with the "
                "flags that build() gives: set requires_grad there, and evaluate inside run.aside()"
            )
        return self._state()

    def _state(self) -> State:
        """The whole state: that of the parts, and the generators that the program keeps itself."""
        self._bases.glance()
        state = self._need_parts().capture()
        if self._kept is not None:
            self._kept.capture(state)
        return state

    def _restore(self, state: State) -> None:
        self._need_parts().restore(state if self._kept is None else self._kept.restore(state))
        self._bases.restored()

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
            step=self.step, state=self._state(), counts=dict(parts.counts), declaration=self._declaration,
            batches_per_step=self._batches_per_step, loader=self._loader, parts=parts, asides=self._asides,
            finished=finished,
        )  # fmt: skip


def _fields(declaration: Declaration) -> dict[str, Any]:
    return {name: getattr(declaration, name) for name in declaration.__struct_fields__}


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
