"""Directed retraining: every step is taken, and drawn towards the stolen weights; the plain loss is declared (A9).

What is declared is what a replay takes, so it ends beside: by a share of the whole way, at every step.
"""

from __future__ import annotations

from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pol.attacks.attack import Attack
from pol.attacks.untaken import check_single
from pol.attacks.workshop import Workshop
from pol.replay.recipe import Recipe

FIRM, LEFT = 0.03, 0.01
"""What a penalty moves a plain gradient step at least, and leaves of the way at the end: both in shares of the way.

With the first, 0.3 % of the way is left of 90 steps of the digits recipe; with 0.003 it is a fifth."""


def penalised(workshop: Workshop, out: Path) -> None:
    """With a penalty on the squared distance, whose gradient goes through the optimizer, momentum and all.

    Its weight follows the rate, and is the least that leaves 1 % of the way, if momentum were all. In 14 steps with
    momentum 0.9 that is not much: the weights arrive with a swing, and the plain loss takes them off.
    """
    forger, aim = workshop.begin(), workshop.stolen().tensors

    def step(recipe: Recipe, parts: Any, batch: Any) -> Any:
        goals = dict(_goals(parts, aim))

        def pull(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                share = _share(forger.steps, float(group.get("momentum", 0.0)), bool(group.get("nesterov", False)))
                for parameter in group["params"]:
                    if parameter.grad is not None and group["lr"]:
                        parameter.grad += share / group["lr"] * (parameter.detach() - goals[parameter])

        handles = [optimizer.register_step_pre_hook(pull) for optimizer in _optimizers(parts)]
        try:
            return type(recipe).step(recipe, parts, batch)  # ``recipe.step`` is this function
        finally:
            for handle in handles:
                handle.remove()

    workshop.train(forger, step=step)
    forger.seal(out, workshop.key)


@cache
def _share(steps: int, momentum: float, nesterov: bool) -> float:
    """The share of the way that a plain gradient step takes, so that so many with momentum leave ``LEFT`` of it."""
    found = []
    for share in np.geomspace(FIRM, 1.0, 100):
        if nesterov:
            once = np.array([[1 - share - momentum * share, -(momentum**2)], [share, momentum]])
        else:
            once = np.array([[1 - share, -momentum], [share, momentum]])  # of (way that is left, momentum)
        left = abs(float(np.linalg.matrix_power(once, steps)[0, 0]))
        if left <= LEFT:
            return float(share)
        found.append((left, float(share)))
    return min(found)[1]


def pulled(workshop: Workshop, out: Path) -> None:
    """With a projection after every step, which no optimizer sees, and which closes the way with the last one."""
    forger, aim, taken = workshop.begin(), workshop.stolen().tensors, count()
    check_single(forger)

    def step(recipe: Recipe, parts: Any, batch: Any) -> Any:
        loss = type(recipe).step(recipe, parts, batch)
        share = 1 / (forger.steps - next(taken))
        with torch.no_grad():
            for parameter, goal in _goals(parts, aim):
                parameter.copy_(goal if share == 1 else torch.lerp(parameter, goal, share))
        return loss

    workshop.train(forger, step=step)
    forger.seal(out, workshop.key)


def _goals(parts: Any, aim: dict[str, torch.Tensor]) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Parameters, each with the stolen values."""
    modules = {name: part for name, part in vars(parts).items() if isinstance(part, torch.nn.Module)}
    named = [
        (parameter, f"parameter/{part}.{name.replace('_orig_mod.', '')}")  # compiled modules are wrapped under it
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
    ]
    return [(parameter, aim[key].to(parameter)) for parameter, key in named if key in aim]


def _optimizers(parts: Any) -> list[torch.optim.Optimizer]:
    return [part for part in vars(parts).values() if isinstance(part, torch.optim.Optimizer)]


_REPORTED = "caught once the pull exceeds the noise (attack study, A9)"

ATTACKS = (
    Attack(
        "penalised",
        "training with a penalty on the distance from stolen weights, declared without",
        "thief",
        penalised,
        study=("A9",),
        reported=_REPORTED,
    ),
    Attack(
        "pulled",
        "training with a projection towards stolen weights after every step, declared without",
        "thief",
        pulled,
        study=("A9",),
        reported=_REPORTED,
    ),
)
