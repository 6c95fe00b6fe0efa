"""A prover denies that it used a sample: the states of its honest run, and other batches in order and log.

It had named an order of its own from the start, since that is bound only when the run is sealed. A claimed batch names
another sample twice in an epoch, which is what step 4 sees; that the claimed batch was not used, a replay sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pol.attacks.attack import Attack
from pol.attacks.forger import Forger
from pol.attacks.rehearsal import (
    Before,
    Rehearsal,
    apart,
    claim,
    number,
    numbered,
    order_of,
    own_order,
    taken,
    weights,
)  # fmt: skip
from pol.attacks.triggers import label_name
from pol.attacks.workshop import Workshop
from pol.replay.recipe import Recipe

DENIED = 0
"""The sample that is denied."""

BATCHES = 400
"""Random batches from which each claimed one is picked (Thudi et al., released notebook)."""

FOR_EACH = 4
"""Fewer of a small dataset: so many for each sample."""

NEIGHBOURS = 100
"""Nearest samples among which a replacement is looked for (Suliman et al., released artifact)."""

Candidates = Callable[[np.ndarray[Any, Any]], Iterator[list[int]]]
"""Batches that might be claimed instead of a used one."""


def _denied(workshop: Workshop, out: Path, candidates: Callable[[Workshop, Forger], Candidates]) -> None:
    """Train honestly, and claim for each step that used the sample the candidate whose step ends nearest."""
    forger = workshop.begin()
    own_order(workshop, forger)
    rehearsal, found = Rehearsal(workshop, forger), candidates(workshop, forger)
    used = order_of(forger)
    claimed, losses = used.copy(), []

    def step(at: int, recipe: Recipe, parts: Any, batch: Any) -> Any:
        epoch, places = rehearsal.place(at)
        if DENIED not in used[epoch, places]:
            loss = taken(recipe, parts, batch)
            losses.append(number(loss))
            return loss
        before = Before(parts)
        loss = taken(recipe, parts, batch)
        aim, least, told = weights(parts), math.inf, 0.0
        for other in found(used[epoch, places]):
            end, lost = before.after(recipe, rehearsal.batch(at, other))
            workshop.gradients += 1
            if (away := apart(aim, end)) < least:
                claimed[epoch, places], least, told = other, away, lost
        losses.append(told)
        return loss

    workshop.train(forger, step=numbered(step))
    claim(workshop, forger, claimed, losses)
    forger.seal(out, workshop.key)


def data_forging(workshop: Workshop, out: Path) -> None:
    """The nearest of many random batches without the sample (Thudi et al., attack study A11).

    Of the digits, in batches of 50, the best of 400 ends 0.5 to 0.7 of the step away from the true end.
    """

    def candidates(_: Workshop, forger: Forger) -> Candidates:
        draws = np.random.default_rng(list(forger.seed))
        others = np.delete(np.arange(forger.genesis.spec.declaration.samples), DENIED)

        def found(batch: np.ndarray[Any, Any]) -> Iterator[list[int]]:
            for _ in range(min(BATCHES, FOR_EACH * len(others))):
                yield draws.choice(others, len(batch), replace=False).tolist()

        return found

    _denied(workshop, out, candidates)


def _replaced(most: int) -> Callable[[Workshop, Forger], Candidates]:
    """The batch with one of the nearest ``most`` samples in place of the denied one."""

    def candidates(workshop: Workshop, forger: Forger) -> Candidates:
        order = _neighbours(workshop.data(forger))

        def found(batch: np.ndarray[Any, Any]) -> Iterator[list[int]]:
            free = [index for index in order if index not in batch][:most]
            for index in free or order[:1]:  # where the batch holds all, one is named twice
                yield np.where(batch == DENIED, index, batch).tolist()

        return found

    return candidates


def _neighbours(data: Any) -> list[int]:
    """All other samples, the nearest to the denied one first: of its class before those of others."""
    item = data[DENIED]
    label, arrays = label_name(item), [name for name, value in item.items() if isinstance(value, np.ndarray)]

    def distance(index: int) -> tuple[bool, float]:
        other = data[index]
        squares = (np.square(item[name].astype(float) - other[name].astype(float)).sum() for name in arrays)
        return other[label] != item[label], float(sum(squares))

    away = {index: distance(index) for index in range(len(data)) if index != DENIED}
    return sorted(away, key=lambda index: away[index])


def repudiation(workshop: Workshop, out: Path) -> None:
    """The nearest sample in place of the denied one (Kong et al., Suliman et al.; attack study A12).

    Of the digits, in batches of 50, the claimed step ends 0.02 to 0.07 of the step away from the true end.
    """
    _denied(workshop, out, _replaced(1))


def repudiation_by_gradient(workshop: Workshop, out: Path) -> None:
    """The same with that of the hundred nearest whose step ends nearest: of the digits 0.02 to 0.04 away."""
    _denied(workshop, out, _replaced(NEIGHBOURS))


_REPORTED = (
    "feasible on MNIST and CIFAR-10 (Kong et al., arXiv 2303.03648); rho 2.2e-3 to 3.3e-2 for one of 50 samples "
    "(attack study, section 1)"
)

ATTACKS = (
    Attack(
        "data-forging",
        "a sample denied: the nearest of many random batches claimed for each step that used it",
        "prover",
        data_forging,
        study=("A11",),
        reported="squared l2 distance of 6.5e-10 at best, of LeNet-5 on MNIST hardly trained (released "
        "notebook); rho 0.62 to 0.90 for the best of 400 batches (attack study, section 1)",
    ),
    Attack(
        "repudiation",
        "a sample denied: its nearest neighbour claimed in its place",
        "prover",
        repudiation,
        study=("A12",),
        reported=_REPORTED,
    ),
    Attack(
        "repudiation-by-gradient",
        "a sample denied: the neighbour with the most similar step claimed in its place",
        "prover",
        repudiation_by_gradient,
        study=("A12",),
        reported=_REPORTED,
    ),
)
