"""An order of the data that the forger chose, in ``order.bin``: with repetitions, of a few samples, of none there is.

The steps are really taken in that order, so that nothing but the order itself is a lie.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pol.attacks.attack import Attack
from pol.attacks.data import ORDER
from pol.attacks.forger import Forger
from pol.attacks.workshop import Workshop

PART = 10
"""One in so many samples is used, where a forger trains on a part of the data."""

LAST = 2**32 - 1
"""−1 as the file holds it: Python's name for the last sample."""

Order = NDArray[np.int64]


def _trained(workshop: Workshop, choose: Callable[[Any, int], Order]) -> Forger:
    """A run that takes its steps in the order that ``choose`` gives each epoch, from a generator and a size."""
    forger = workshop.begin()
    declaration = forger.genesis.spec.declaration
    draws = np.random.default_rng(list(forger.seed))
    workshop.randomise(forger, order=np.stack([choose(draws, declaration.samples) for _ in range(declaration.epochs)]))
    workshop.train(forger)
    return forger


def chosen_order(workshop: Workshop, out: Path) -> None:
    """Every epoch visits every sample once, always in one and the same order (attack study, A15)."""
    _trained(workshop, lambda _, size: np.arange(size)).seal(out, workshop.key)


def repeated_order(workshop: Workshop, out: Path) -> None:
    """Half of the samples twice, the others never."""

    def repeated(draws: Any, size: int) -> Order:
        found: Order = draws.permutation(size)
        found[: size // 2] = found[size - size // 2 :]
        return found

    _trained(workshop, repeated).seal(out, workshop.key)


def subset_order(workshop: Workshop, out: Path) -> None:
    """A small part of the samples, again and again."""

    def few(draws: Any, size: int) -> Order:
        found: Order = draws.permutation(size) % -(-size // PART)
        return found

    _trained(workshop, few).seal(out, workshop.key)


def wrapped_order(workshop: Workshop, out: Path) -> None:
    """An index beyond the dataset, which a program in Python would wrap around to the last sample."""
    forger = _trained(workshop, lambda draws, size: draws.permutation(size))
    samples = forger.genesis.spec.declaration.samples
    named = np.frombuffer(forger.order or b"", dtype="<u4")
    forger.order = np.where(named == samples - 1, LAST, named).astype("<u4").tobytes()
    forger.seal(out, workshop.key)


ATTACKS = (
    Attack(
        "chosen-order",
        "trained in one order of the forger's choice",
        "thief",
        chosen_order,
        study=("A15",),
        reported="passes every replay: its steps are true (attack study, A15)",
    ),
    Attack(
        "repeated-order",
        "trained on half of the samples twice, named so",
        "thief",
        repeated_order,
        study=("T7",),
        reported=ORDER,
    ),
    Attack(
        "subset-order",
        "trained on a tenth of the samples, named so",
        "thief",
        subset_order,
        study=("T7",),
        reported=ORDER,
    ),
    Attack(
        "wrapped-order",
        "an index outside the dataset",
        "thief",
        wrapped_order,
        study=("T7",),
        reported=ORDER,
    ),
)
