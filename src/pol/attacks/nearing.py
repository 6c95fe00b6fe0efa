"""Forgeries against rule tolerance: every step is taken, and every state moved as far as the limits in force allow."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from pol.attacks.drift import HUGE_DECAY, SHARE, around, steered, towards, turnable
from pol.attacks.edging import BLOCKS, drawn, limit, room
from pol.attacks.planning import Ground, Plan, begin, length
from pol.attacks.workshop import Workshop
from pol.proof.policy import Limits
from pol.replay.state import State

SPARE = 1.1
"""More turns than a dry run took: the weights that the forger will draw are not known yet, and gradients disturb."""


def plans(ground: Ground) -> list[Plan]:
    """All the way to the stolen weights, if the limits leave so much; and as near to them as they do."""
    return [*_turned(ground), *_drawn(ground)]


def _turned(ground: Ground) -> list[Plan]:
    limits, bounds = ground.policy.limits, ground.policy.bounds
    assert limits is not None
    if not ground.takes(*HUGE_DECAY) or not turnable(ground.target):
        return []
    if not ground.allows("update", "pace", "start_loss", "loss_drop"):
        return []
    if (bounds.rate_times_decay or math.inf) < 2 or (bounds.least_rate or 0.0) > HUGE_DECAY["lr"]:
        return []
    paid = (ground.left - ground.control(ground.target.steps)) // ground.batches
    needed = max(math.ceil(SPARE * turns(ground.fresh, ground.stolen, limits, paid)), bounds.min_steps)
    steps, settings = ground.target.steps, dict[str, Any](HUGE_DECAY)
    if ground.takes("num_epochs"):
        epochs = max(-(-needed // ground.epoch), bounds.min_epochs)
        steps, settings["num_epochs"] = epochs * ground.epoch, epochs
    if steps < needed or steps > paid:
        return []

    def make(workshop: Workshop, out: Path) -> None:
        _turn(ground, workshop, limits, settings, out)

    norm, stolen = (length(state, "parameter") for state in (ground.target.states[0], ground.stolen))
    share = steps * limits.relative * 2 * max(norm, stolen) / math.hypot(norm, stolen)
    gradients = ground.control(steps) + steps * ground.batches
    return [Plan("turned", float(share <= limits.drift), True, gradients, steps, (), make)]


def turns(first: State, last: State, limits: Limits, most: int) -> int:
    """How many steps that turn the weights over lead from one state to another, each within the limits.

    Counted in a frame that turns with them; no more than one above ``most``.
    """
    found = 0
    for key, tensor in last.tensors.items():
        if key.startswith("parameter/"):
            for sign in (1, -1):
                found = max(found, _turns(limits, key, sign * first.tensors[key], tensor, most))
    return found


def _turns(limits: Limits, key: str, here: torch.Tensor, aim: torch.Tensor, most: int) -> int:
    for number in range(most + 1):
        if torch.equal(here, aim):
            return number
        here = towards(here, around(here, aim), SHARE * limit(limits, key, -here, here))
    return most + 1


def _turn(ground: Ground, workshop: Workshop, limits: Limits, settings: dict[str, Any], out: Path) -> None:
    forger, stolen = begin(ground, workshop, settings, 1), workshop.stolen().tensors

    def move(key: str, step: int, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        sign = -1 if (forger.steps - step) % 2 else 1  # so that the last step turns them the right way
        return towards(end, around(end, sign * stolen[key]), SHARE * limit(limits, key, start, end))

    steered(workshop, forger, move)
    forger.seal(out, workshop.key)


def _drawn(ground: Ground) -> list[Plan]:
    """An honest run with the settings of the target, as long as can be paid for, drawn to the stolen weights (A18)."""
    limits, spec = ground.policy.limits, ground.target.genesis.spec
    assert limits is not None
    steps, settings = spec.steps, dict[str, Any]()
    paid = (ground.left - ground.control(steps)) // ground.batches
    if ground.takes("num_epochs"):
        least = max(1, ground.policy.bounds.min_epochs, -(-ground.policy.bounds.min_steps // ground.epoch))
        settings["num_epochs"] = max(least, min(spec.declaration.epochs, paid // ground.epoch))
        steps = settings["num_epochs"] * ground.epoch
    blocks = max(0, min(BLOCKS, paid // steps - 1))
    every = min(spec.every, ground.policy.bounds.max_every or spec.every)
    within = float(room(ground.target, limits) <= limits.drift)

    def make(workshop: Workshop, out: Path) -> None:
        forger = begin(ground, workshop, settings, every)
        drawn(workshop, forger, limits, blocks)
        forger.seal(out, workshop.key)

    gradients = ground.control(steps) + (1 + blocks) * steps * ground.batches
    return [Plan("drawn", within, False, gradients, -(-steps // every), (), make)]
