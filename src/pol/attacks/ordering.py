"""All data are genuine, every step is taken, and only their order is an attack (Shumailov et al., attack study A15).

Each batch is the one of a few, drawn from what is left of the epoch, whose step ends nearest to an aim. Their authors
need a surrogate model, since they attack the trainer; here the trainer is the forger, and tries the very step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pol.attacks.attack import Attack
from pol.attacks.rehearsal import (
    Before,
    Rehearsal,
    Weights,
    apart,
    claim,
    numbered,
    order_of,
    own_order,
    taken,
    weights,
)  # fmt: skip
from pol.attacks.triggers import Marked, labels_of
from pol.attacks.workshop import Workshop
from pol.replay.recipe import Recipe

BATCHES = 8
"""Batches of which each step has the one that suits: with the aim itself the run costs ten trainings."""

Aim = Callable[[Weights, Weights], Weights]
"""Where a step should end: from its start, and the end of a step on marked samples or on samples as they are."""

Order = NDArray[np.int64]


def _ordered(workshop: Workshop, out: Path, aim: Aim, *, marked: bool) -> None:
    forger = workshop.begin()
    own_order(workshop, forger)
    rehearsal = Rehearsal(workshop, forger)
    towards = Rehearsal(workshop, forger, Marked if marked else None)
    draws, order = np.random.default_rng(list(forger.seed)), order_of(forger)
    labels = labels_of(workshop.data(forger))

    def step(at: int, recipe: Recipe, parts: Any, _: Any) -> Any:
        epoch, places = rehearsal.place(at)
        left = order[epoch, places.start :]  # of this epoch; what stands before has been used
        size = len(order[epoch, places])
        before, now = Before(parts), weights(parts)
        goal = aim(now, before.after(recipe, towards.batch(at, draws.permutation(left)[:size]))[0])
        least = math.inf
        for number in range(BATCHES):
            mixed = _mixed(draws, left, labels, alike=number > 0)
            batch = rehearsal.batch(at, mixed[:size])
            if (away := apart(goal, before.after(recipe, batch)[0])) < least:
                least, best, chosen = away, mixed, batch
        workshop.gradients += 1 + BATCHES
        order[epoch, places.start :] = best
        return taken(recipe, parts, chosen)

    workshop.train(forger, step=numbered(step))
    claim(workshop, forger, order)
    forger.seal(out, workshop.key)


def _mixed(draws: np.random.Generator, left: Order, labels: Order, *, alike: bool) -> Order:
    """What is left of an epoch, mixed; if ``alike`` with all samples of some class first.

    Random batches have much the same gradient, and batches of one class have not.
    """
    mixed: Order = draws.permutation(left)
    return mixed[np.argsort(labels[mixed] != labels[mixed[0]], kind="stable")] if alike else mixed


def order_backdoor(workshop: Workshop, out: Path) -> None:
    """Batches whose steps are most like a step on marked samples, so that a trigger is learned that is in no sample.

    It is not, at this price: after three epochs of the digits 2 % of marked images are taken for its class.
    """
    _ordered(workshop, out, lambda _, end: end, marked=True)


def order_slowdown(workshop: Workshop, out: Path) -> None:
    """Batches whose steps are most unlike a step on other samples that are left: less is learned.

    After three epochs of the digits 26 to 36 % of test images are recognised, in the order of the seed 89 %.
    """
    _ordered(workshop, out, lambda now, end: {key: 2 * now[key] - end[key] for key in now}, marked=False)


ATTACKS = (
    Attack(
        "order-backdoor",
        "genuine samples in the order that teaches a trigger, named so",
        "thief",
        order_backdoor,
        study=("A15",),
        reported="a backdoor or no learning at all after one epoch, on genuine samples (arXiv 2104.09667)",
    ),
    Attack(
        "order-slowdown",
        "genuine samples in the order that teaches least, named so",
        "thief",
        order_slowdown,
        study=("A15",),
        reported="a backdoor or no learning at all after one epoch, on genuine samples (arXiv 2104.09667)",
    ),
)
