"""Steps that are tried beside a training and not taken: from the same state, with other batches or random numbers."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from pol.attacks.forger import Forger
from pol.attacks.needs import DoesNotApply
from pol.attacks.workshop import Change, Taken, Workshop
from pol.replay import randomness
from pol.replay.loader import Loader
from pol.replay.recipe import Recipe

Weights = dict[str, Tensor]
"""Parameters by their keys in a state."""


class Rehearsal:
    """Batches of the forger's choice, each as the loader would make it at its place of the run.

    Args:
        workshop: Where the run is forged.
        forger: The run; its seed decides augmentation.
        data: What is done to the dataset.

    Raises:
        DoesNotApply: the training is of another kind.
    """

    def __init__(self, workshop: Workshop, forger: Forger, data: Change | None = None) -> None:
        spec = forger.genesis.spec
        self._loader = workshop.build(forger).loader
        if type(self._loader) is not Loader or spec.batches_per_step != 1:
            raise DoesNotApply("this attack needs a training over run.batches() that takes a step for each batch")
        if data is not None:
            self._loader.data = data(self._loader.data)
        self._size, self._per_epoch = spec.declaration.batch_size, spec.declaration.steps_per_epoch(1)

    def place(self, step: int) -> tuple[int, slice]:
        """Epoch of a step, and its positions there."""
        epoch, batch = divmod(step, self._per_epoch)
        return epoch, slice(batch * self._size, (batch + 1) * self._size)

    def batch(self, step: int, indices: Sequence[int] | NDArray[np.int64]) -> Any:
        """The samples of these indices as the batch of a step."""
        epoch, batch = divmod(step, self._per_epoch)
        self._loader.indices = lambda *_: [int(index) for index in indices]  # type: ignore[method-assign]
        return self._loader.fetch(epoch, batch, None)


class Before:
    """A training as it is before a step, from which steps can be tried as often as one likes."""

    def __init__(self, parts: Any) -> None:
        self._parts, self._drawn = _twin(parts), randomness.save()

    def after(self, recipe: Recipe, batch: Any, drawn: randomness.GlobalState | None = None) -> tuple[Weights, float]:
        """Weights and loss of one step with a batch, under the step's own random numbers or ``drawn``."""
        now, twin = randomness.save(), _twin(self._parts)
        randomness.load(drawn or self._drawn)
        try:
            loss = taken(recipe, twin, batch)
        finally:
            randomness.load(now)
        return weights(twin), number(loss)


def taken(recipe: Recipe, parts: Any, batch: Any) -> Any:
    """The recipe's own step, also where a hook is in its place; its loss."""
    return type(recipe).step(recipe, parts, batch)


def number(loss: Any) -> float:
    """A loss as it is recorded."""
    return float(loss.detach() if isinstance(loss, Tensor) else loss)


def weights(parts: Any) -> Weights:
    """All parameters of the attached modules."""
    modules = [(part, module) for part, module in sorted(vars(parts).items()) if isinstance(module, nn.Module)]
    named = ((part, name, found) for part, module in modules for name, found in module.named_parameters())
    return {f"parameter/{part}.{name}".replace("_orig_mod.", ""): found.detach().clone() for part, name, found in named}


def apart(a: Weights, b: Weights) -> float:
    """Euclidean distance of the parameters that both have."""
    return math.hypot(*(float((a[key].double() - b[key].double()).norm()) for key in a if key in b))


def numbered(step: Callable[[int, Recipe, Any, Any], Any], start: int = 0) -> Taken:
    """A hook that is told the number of the step that it takes."""
    numbers = itertools.count(start)
    return lambda recipe, parts, batch: step(next(numbers), recipe, parts, batch)


def claim(workshop: Workshop, forger: Forger, order: NDArray[Any], losses: list[float] | None = None) -> None:
    """Claim another order for the steps that were taken: in ``order.bin`` and in the batches and losses of the log."""
    honest = list(forger.intervals)
    forger.order = order.astype("<u4").tobytes()
    workshop.pretend(forger)
    claimed = []
    for record, own in zip(honest, forger.intervals, strict=True):
        told = losses[record.start : record.stop] if losses else []
        loss = repr(sum(told) / len(told)) if told else record.loss
        claimed.append(msgspec.structs.replace(record, batches=own.batches, loss=loss))
    forger.intervals = claimed


def order_of(forger: Forger) -> NDArray[np.int64]:
    """The order in ``order.bin``: epochs × samples."""
    found = np.frombuffer(forger.order or b"", dtype="<u4").astype(np.int64)
    return found.reshape(-1, forger.genesis.spec.declaration.samples)


def own_order(workshop: Workshop, forger: Forger) -> None:
    """Name an order of the forger's own in the genesis, which leaves every epoch's order open until it is sealed."""
    declaration, draws = forger.genesis.spec.declaration, np.random.default_rng(list(forger.seed))
    workshop.randomise(forger, order=np.stack([draws.permutation(declaration.samples)] * declaration.epochs))


class _Idle:
    """A schedule that may be stepped, and stays: rates of a tried step are those of the step."""

    def __init__(self, schedule: LRScheduler) -> None:
        self._schedule = schedule

    def step(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._schedule, name)


def _twin(parts: Any) -> Any:
    schedules = {name: part for name, part in vars(parts).items() if isinstance(part, LRScheduler | _Idle)}
    others = type(parts)(**{name: part for name, part in vars(parts).items() if name not in schedules})
    twin = copy.deepcopy(others)
    for name, part in schedules.items():
        setattr(twin, name, part if isinstance(part, _Idle) else _Idle(part))
    return twin
