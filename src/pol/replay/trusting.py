"""Replays that believe the prover, as the verification of 2021 does; nothing else uses them.

The original loads a checkpoint whole: weights, optimizer state, and the hyperparameters in it, and goes on from there.
So here NaN and infinities pass, state that is missing is fresh, hyperparameters in a state hold although the recipe has
others, and every step is taken at the learning rate that the record names, unless the state names one. What a program
declares is not compared.

How: what is claimed is put into the optimizers right before each of their steps and taken out right after, so that
the checks on the ordinary way, which knows nothing of this, see what the recipe built.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from pol import canonical
from pol.errors import IntegrityError, ReplayError
from pol.interval import Momenta, Rates
from pol.messages import EventType, Finished, Reached, TrustingReplay
from pol.replay.driver import Driver
from pol.replay.engine import Arrival, Frame, Position, advance
from pol.replay.entry import Entry
from pol.replay.observer import Observer
from pol.replay.state import State
from pol.replay.tree import add_value, pop_value
from pol.replay.writer import checkpoint_name

Hyperparameters = dict[str, list[dict[str, Any]]]
"""Of every optimizer, by part name and parameter group."""


def replay(job: TrustingReplay, emit: Callable[[EventType], None]) -> None:
    """Take the steps of each segment from its state, and save the state after it."""
    entry = Entry(job.program)
    built = advance(entry.make, Frame(entry.streams, external=entry.external), Position(), stop=0)
    frame = Frame(entry.streams, built.declaration, job.batches_per_step, entry.external, entry.order)
    last = built.declaration.epochs * built.declaration.steps_per_epoch(job.batches_per_step)
    for segment, rates in zip(job.segments, job.rates, strict=True):
        if segment.checkpoint is None:
            raise ReplayError("a replay that believes a state needs one")
        state, claimed = believed(State.load(Path(segment.checkpoint)), built)
        end = _End(segment.stop, Path(job.save))
        advance(
            entry.make, frame, Position(segment.start, state, segment.counts),
            None if segment.stop == last else segment.stop, end, partial(_Trusting, _Declared(rates), claimed),
        )  # fmt: skip
        if not end.saved:
            raise ReplayError(f"the program ended before step {segment.stop}")
        emit(Reached(step=segment.stop))
    emit(Finished())


def believed(state: State, built: Arrival) -> tuple[State, Hyperparameters]:
    """A claimed state as the recipe can take it, and the hyperparameters in it that the recipe would not take.

    Raises:
        IntegrityError: its hyperparameters are not those of these optimizers.
    """
    tensors = dict(state.tensors)
    for key, tensor in built.state.tensors.items():
        if not key.startswith(("parameter/", "buffer/", "transient/")):
            tensors.setdefault(key, tensor)
    claimed: Hyperparameters = {}
    for name, optimizer in built.parts.optimizers.items():
        own = built.state.tensors.get(f"value/{name}")
        groups = pop_value(name, {f"value/{name}": own})["groups"] if own is not None else []
        groups = groups or [{} for _ in optimizer.param_groups]
        if f"value/{name}" in tensors:
            claimed[name] = _divide(name, groups, tensors)
    return State(tensors), claimed


def _divide(name: str, own: list[dict[str, Any]], tensors: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Leave what the recipe restores in the optimizer's entry; return the rest, by group."""
    value = pop_value(name, tensors)
    try:
        pairs = list(zip(value["groups"], own, strict=True))
        foreign = [{k: _plain(v, k) for k, v in found.items() if k not in known} for found, known in pairs]
        groups = [{k: found.get(k, known[k]) for k in known} for found, known in pairs]
        if value["state"] or any(groups):
            add_value(name, {"groups": groups, "state": value["state"]}, tensors)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"state entry value/{name}: not what this optimizer writes: {error}") from None
    return foreign


def _plain(value: Any, where: str) -> Any:
    found = canonical.untag(value, where)
    return tuple(found) if isinstance(found, list) else found


class _Declared:
    """Learning rates step by step; kept as runs, for a record may claim any number of steps."""

    def __init__(self, rates: list[Rates]) -> None:
        self._ends = list(accumulate(found.steps for found in rates))
        self._values = [list(map(float, found.values)) for found in rates]

    def at(self, step: int) -> list[float]:
        """Rates of a step of the segment, by parameter group; none where the record names none."""
        run = bisect_right(self._ends, step)
        return self._values[run] if run < len(self._values) else []


class _Trusting(Driver):
    """A Run whose optimizers take their hyperparameters from the proof."""

    def __init__(
        self, rates: _Declared, claimed: Hyperparameters,
        frame: Frame, start: Position, stop: int | None, observer: Observer | None,
    ) -> None:  # fmt: skip
        super().__init__(frame, start, stop, observer)
        self._declared, self._claimed, self._from = rates, claimed, start.step
        self._recipes_own: list[dict[str, Any]] = []

    def attach(self, *unnamed: Any, **given: Any) -> Any:
        """See ``Driver``."""
        namespace = super().attach(*unnamed, **given)
        first = 0
        for name, optimizer in sorted(self.attached.parts.optimizers.items()):
            optimizer.register_step_pre_hook(partial(self._put_in, name, first))
            optimizer.register_step_post_hook(self._take_out)
            first += sum("lr" in group for group in optimizer.param_groups)
        return namespace

    def commit(self, *, loss: Any, skipped: bool = False) -> None:
        """See ``Driver``; nobody looks at the loss, so NaN is as good as any."""
        super().commit(loss=0.0, skipped=skipped)

    def _put_in(self, name: str, first: int, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._recipes_own = [dict(group) for group in optimizer.param_groups]
        rates = iter(self._declared.at(self.step - self._from)[first:])
        claimed = self._claimed.get(name) or [{} for _ in optimizer.param_groups]
        for group, found in zip(optimizer.param_groups, claimed, strict=True):
            if "lr" in group:
                declared, base = next(rates, group["lr"]), group.get("initial_lr")
                # A rate in a state is the one that the optimizer was built with; an attached schedule goes on from it.
                shape = group["lr"] / base if base else 1.0
                group["lr"] = found["lr"] * shape if "lr" in found else declared
            group.update({k: v for k, v in found.items() if k in group and k not in ("params", "lr", "initial_lr")})

    def _take_out(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group, own in zip(optimizer.param_groups, self._recipes_own, strict=True):
            group.update(own)


class _End:
    """An observer that saves the state after the last step of a segment."""

    def __init__(self, stop: int, folder: Path) -> None:
        self._stop, self._folder, self.saved = stop, folder, False

    def batch(self, step: int, batch: Any, chosen: list[int] | None) -> None:
        """Nothing to note."""

    def item(self, index: int, item: Any) -> None:
        """Nothing to note."""

    def closed(
        self, step: int, loss: float | None, rates: list[float], take: Callable[[], State], counts: dict[str, int],
        momenta: Callable[[], Momenta],
    ) -> None:  # fmt: skip
        """Save at the end."""
        if step + 1 == self._stop:
            take().save(self._folder / checkpoint_name(self._stop))
            self.saved = True
