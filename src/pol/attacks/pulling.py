"""Directed retraining: every step is taken, and drawn towards the stolen weights; the plain loss is declared (A9).

What is declared is what a replay takes, so it ends beside: by a share of the whole way, at every step.
"""

from __future__ import annotations

import math
from itertools import count
from pathlib import Path
from typing import Any

import torch

from pol.attacks.attack import Attack
from pol.attacks.workshop import Workshop
from pol.replay.recipe import Recipe

LEFT = 0.01
"""What a penalty leaves of the way to the stolen weights at the end of a long run."""


def penalised(workshop: Workshop, out: Path) -> None:
    """With a penalty on the squared distance, whose gradient goes through the optimizer, momentum and all.

    Its weight follows the rate. Momentum sets how strong it can be: in 14 steps a part of the way is left, and in some
    hundred no more than the plain loss pulls away.
    """
    forger, aim = workshop.begin(), workshop.stolen().tensors
    most = 1 - LEFT ** (1 / forger.steps)

    def step(recipe: Recipe, parts: Any, batch: Any) -> Any:
        goals = dict(_goals(parts, aim))

        def pull(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                momentum = float(group.get("momentum", 0.0))
                # Momentum sums it up, to 1 / (1 - momentum); a stronger pull than the other would swing past.
                share = min(most * (1 - momentum), (1 - math.sqrt(momentum)) ** 2)
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


def pulled(workshop: Workshop, out: Path) -> None:
    """With a projection after every step, which no optimizer sees, and which closes the way with the last one."""
    forger, aim, taken = workshop.begin(), workshop.stolen().tensors, count()

    def step(recipe: Recipe, parts: Any, batch: Any) -> Any:
        loss = type(recipe).step(recipe, parts, batch)
        share = 1 / (forger.steps * forger.genesis.spec.batches_per_step - next(taken))
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


ATTACKS = (
    Attack(
        "penalised",
        "training with a penalty on the distance from stolen weights, declared without",
        "thief",
        penalised,
        study=("A9",),
    ),
    Attack(
        "pulled",
        "training with a projection towards stolen weights after every step, declared without",
        "thief",
        pulled,
        study=("A9",),
    ),
)
