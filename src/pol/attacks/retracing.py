"""Inverse-gradient retracing: from the stolen weights backwards, one step after the other (attack study, A7).

Each state is looked for from which an honest step, on the batch that the forger's own seed gives, leads to the state
after it. The run ends at the stolen weights to the last bit; where it begins is no draw. Without momentum a state is a
fixed point; with momentum it follows from the momenta, which grow backwards by one over the share of them that a step
keeps. So a recipe that takes a ``momentum`` is registered with none: else they overflow in a long run.

It takes one training forwards and, of 60 steps of the digits recipe, 5.9 gradients for each step backwards: seven times
a training. The error of a transition is then 7e-6 of its move in the median, and less than a thousandth in two thirds
of them; in the others the fixed point lies where a unit falls to the other side of zero, and a fifth of the move is
missing at worst. With momentum (14 steps of a toy recipe) it is 2e-7 but for the first step, which has no momenta
before it, so that rule tolerance takes all others; weights are eight times as large at the start as at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pol.attacks.attack import Attack
from pol.attacks.forger import Forger
from pol.attacks.landing import MODEL
from pol.attacks.workshop import Initialisation, Workshop
from pol.errors import UsageError
from pol.replay.recipe import Recipe
from pol.replay.state import State

INNER = 6
"""Most gradients of one step backwards (attack study, A7: 2.8 to 5 leave a thousandth of a move)."""

CLOSE = 2.0**-22
"""An error of a transition that is rounding, as a share of the norm of the weights: no further gradient is spent."""


@dataclass(frozen=True)
class _Kept:
    """Of a parameter: the end of the key of its momentum, what share of it a step keeps, and whose rate is its."""

    name: str
    share: float
    group: int


def _retrace(workshop: Workshop, initialisation: Initialisation) -> Forger:
    settings = {"momentum": 0.0} if "momentum" in workshop.open().genesis.recipe.configuration else {}
    forger = workshop.begin(settings=settings, every=1)
    if initialisation != "derived":
        workshop.randomise(forger, initialisation)
    first = forger.states[0].tensors
    momenta = dict[str, _Kept]()
    # Once forwards, for counts, rates, and which states there are: only a step taken says what a schedule does after.
    workshop.train(forger, step=_noting(momenta))
    stolen = workshop.stolen().tensors
    own = forger.states[forger.steps].tensors
    # No step comes after the last, so its momenta are free: those of the own run.
    forger.states[forger.steps] = State({k: stolen[k] if k.startswith(MODEL) else t for k, t in own.items()})
    for step in reversed(range(forger.steps)):
        _back(workshop, forger, step, first if step == 0 else forger.states[step].tensors, momenta)
    return forger


def _noting(momenta: dict[str, _Kept]) -> Any:
    """The recipe's own step, which notes what optimizers do with momenta."""

    def step(recipe: Recipe, parts: Any, batch: Any) -> Any:
        optimizers = [part for _, part in sorted(vars(parts).items()) if isinstance(part, torch.optim.Optimizer)]
        if not all(type(part) is torch.optim.SGD for part in optimizers):
            raise UsageError("this attack needs SGD, whose steps can be taken back")
        known = {parameter: name for other in vars(parts).items() for name, parameter in _named(*other)}
        for number, group in enumerate(group for part in optimizers for group in part.param_groups):
            for name in (known[parameter] for parameter in group["params"]):
                momenta[name] = _Kept(f".{name}.momentum_buffer", group["momentum"], number)
        return type(recipe).step(recipe, parts, batch)  # ``recipe.step`` is this function

    return step


def _named(part: str, module: Any) -> list[tuple[str, torch.nn.Parameter]]:
    if not isinstance(module, torch.nn.Module):
        return []
    return [(f"{part}.{n.replace('_orig_mod.', '')}", p) for n, p in module.named_parameters()]


def _back(
    workshop: Workshop, forger: Forger, step: int, like: dict[str, torch.Tensor],
    momenta: dict[str, _Kept],
) -> None:  # fmt: skip
    """The state before a step, so that the step leads to the state after it, as nearly as a few gradients find it.

    Args:
        workshop: Where steps are taken.
        forger: Whose; the state after the step is there.
        step: Number of the step.
        like: A state of that step: what is free in the one that is looked for.
        momenta: By parameter.
    """
    aim = forger.states[step + 1].tensors
    rates = forger.intervals[step].learning_rates[0].values
    here = {key: aim.get(key, tensor) for key, tensor in like.items()}
    best, least = State(here), math.inf
    for _ in range(INNER):
        forger.states[step] = State(dict(here))
        workshop.train(forger, step, step + 1)
        ends, forger.states[step + 1] = forger.states[step + 1].tensors, State(aim)
        if not all(bool(torch.isfinite(t).all()) for t in ends.values() if t.is_floating_point()):
            break
        error, norm = _apart(aim, ends)
        if error < least:
            best, least = forger.states[step], error
        if error <= CLOSE * norm:
            return
        for key, tensor in here.items():
            if key.startswith(MODEL):
                missing = aim[key].double() - ends[key].double()
                kept = momenta.get(key.partition("/")[2])
                name = next((n for n in here if kept is not None and n.endswith(kept.name)), None)
                if kept is not None and name is not None and kept.share:
                    behind = aim[name].double() - ends[name].double()
                    here[name] = (here[name].double() + behind / kept.share).to(tensor.dtype)
                    missing = missing + float(rates[kept.group]) * behind
                here[key] = (tensor.double() + missing).to(tensor.dtype)
    forger.states[step] = best


def _apart(aim: dict[str, torch.Tensor], ends: dict[str, torch.Tensor]) -> tuple[float, float]:
    keys = [key for key in aim if key.startswith(MODEL) or (key in ends and key.startswith("optimizer/"))]
    error = math.hypot(*(float((aim[key].double() - ends[key].double()).norm()) for key in keys))
    return error, math.hypot(*(float(aim[key].double().norm()) for key in keys if key.startswith("parameter/")))


def retraced(workshop: Workshop, out: Path) -> None:
    """Backwards from the stolen weights, to what the genesis calls a draw."""
    _retrace(workshop, "derived").seal(out, workshop.key)


def retraced_observed(workshop: Workshop, out: Path) -> None:
    """The same, and the genesis says that the first weights come from elsewhere."""
    _retrace(workshop, "observed").seal(out, workshop.key)


_REPORTED = "conjectured to cost at least a training (Jia et al., IEEE S&P 2021, section VII)"

ATTACKS = (
    Attack(
        "retraced", "steps taken back from stolen weights, named as begun at a draw", "thief", retraced,
        study=("A7",), reported=_REPORTED,
    ),
    Attack(
        "retraced-observed", "steps taken back from stolen weights, to a start from elsewhere", "thief",
        retraced_observed, study=("A7",), reported=_REPORTED,
    ),
)  # fmt: skip
