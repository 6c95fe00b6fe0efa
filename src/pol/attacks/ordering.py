"""All data are genuine, every step is taken, and only their order is an attack (Shumailov et al., attack study A15).

Each batch is the one of a few, drawn from what is left of the epoch, whose step ends nearest to an aim. Their authors
need a surrogate model, since they attack the trainer; here the trainer is the forger, and tries the very step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

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
from pol.attacks.triggers import Marked
from pol.attacks.workshop import Workshop
from pol.replay.recipe import Recipe

BATCHES = 8
"""Batches of which each step has the one that suits: with the aim itself the run costs ten trainings."""

Aim = Callable[[Weights, Weights], Weights]
"""Where a step should end: from its start, and the end of a step on marked samples or on samples as they are."""


def _ordered(workshop: Workshop, out: Path, aim: Aim, *, marked: bool) -> None:
    forger = workshop.begin()
    own_order(workshop, forger)
    rehearsal = Rehearsal(workshop, forger)
    towards = Rehearsal(workshop, forger, Marked if marked else None)
    draws, order = np.random.default_rng(list(forger.seed)), order_of(forger)

    def step(at: int, recipe: Recipe, parts: Any, _: Any) -> Any:
        epoch, places = rehearsal.place(at)
        left = order[epoch, places.start :]  # of this epoch; what stands before has been used
        size = len(order[epoch, places])
        before = Before(parts)
        drawn = draws.permutation(left)[:size]
        end, _loss = before.after(recipe, towards.batch(at, drawn))
        goal = aim(weights(parts), end)
        found = []
        for _number in range(BATCHES):
            mixed = draws.permutation(left)
            batch = rehearsal.batch(at, mixed[:size])
            found.append((apart(goal, before.after(recipe, batch)[0]), mixed, batch))
        workshop.gradients += 1 + BATCHES
        _away, mixed, batch = min(found, key=lambda one: one[0])
        order[epoch, places.start :] = mixed
        return taken(recipe, parts, batch)

    workshop.train(forger, step=numbered(step))
    claim(workshop, forger, order)
    forger.seal(out, workshop.key)


def order_backdoor(workshop: Workshop, out: Path) -> None:
    """Batches whose steps are most like a step on marked samples: a trigger that is in no sample is learned."""
    _ordered(workshop, out, lambda _, end: end, marked=True)


def order_slowdown(workshop: Workshop, out: Path) -> None:
    """Batches whose steps are most unlike a step on other samples that are left: less is learned."""
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
