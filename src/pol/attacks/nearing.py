"""Forgeries against rule tolerance: every step is taken, and every state moved as far as the limits in force allow."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from pol.attacks.adaptive import BLOCKS, drawn, limit, room
from pol.attacks.drift import SHARE, around, steered, towards
from pol.attacks.planning import Ground, Plan, begin
from pol.attacks.workshop import Workshop
from pol.proof.policy import Limits
from pol.replay.state import State

TURNING = {"lr": 1e-6, "weight_decay": 2e6, "momentum": 0.0}
"""lr * weight_decay = 2: every honest step turns the weights over, so limits are shares of twice their norm (A19)."""

WAY = 1.34
"""Norms that have to be crossed, in shares of one: 134 moves of 1 % went all the way (attack study, A19)."""


def plans(ground: Ground) -> list[Plan]:
    """All the way to the stolen weights, if the limits leave so much; and as near to them as they do."""
    return [*_turned(ground), *_drawn(ground)]


def _turned(ground: Ground) -> list[Plan]:
    limits, bounds = ground.policy.limits, ground.policy.bounds
    assert limits is not None
    if not ground.takes(*TURNING) or not ground.allows("update", "pace", "start_loss", "loss_drop"):
        return []
    if (bounds.rate_times_decay or math.inf) < 2 or (bounds.least_rate or 0.0) > TURNING["lr"]:
        return []
    found = []
    needed = turns(ground.target.states[0], ground.stolen, limits)
    spare = ground.batches
    for steps in ground.lengths(spare):
        if steps < needed:
            continue
        settings: dict[str, Any] = {**TURNING}
        if ground.takes("num_epochs"):
            steps = max(-(-needed // ground.epoch), ground.policy.bounds.min_epochs) * ground.epoch
            settings["num_epochs"] = steps // ground.epoch

        def make(workshop: Workshop, out: Path, settings: dict[str, Any] = settings) -> None:
            _turn(workshop, limits, settings, out)

        gradients = ground.control(steps) + steps * ground.batches
        share = steps * SHARE / WAY * limits.relative
        found.append(Plan("turned", float(share <= limits.drift), True, gradients, steps, (), make))
    return found


def turns(first: State, last: State, limits: Limits) -> int:
    """How many steps that turn the weights over lead from one state to another, each within the limits."""
    most = 1.0
    for key, tensor in last.tensors.items():
        if key.startswith("parameter/"):
            norm = max(float(state.tensors[key].double().norm()) for state in (first, last))
            step = min(2 * norm * limits.relative, limits.tensors.get(key, limits.absolute) * math.sqrt(tensor.numel()))
            most = max(most, 2 * norm * WAY / step if step else math.inf)
    return math.ceil(most) if math.isfinite(most) else 2**53


def _turn(workshop: Workshop, limits: Limits, settings: dict[str, Any], out: Path) -> None:
    forger, stolen = begin(workshop, settings, 1), workshop.stolen().tensors

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
        forger = begin(workshop, settings, every)
        drawn(workshop, forger, limits, blocks)
        forger.seal(out, workshop.key)

    gradients = ground.control(steps) + (1 + blocks) * steps * ground.batches
    return [Plan("drawn", within, False, gradients, -(-steps // every), (), make)]
