"""Steps that stand in the log and were not taken, and steps of a length of the forger's choice."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from pol.attacks.forger import Forger
from pol.attacks.workshop import Workshop
from pol.errors import UsageError
from pol.interval import Rates
from pol.replay.recipe import Recipe

STILL = 1e-7
"""A learning rate at which steps hardly show; "about 0" in the attack study (A4). Bounds refuse less than 1e-8."""

NORMS = {"l1": 1.0, "l2": 2.0, "linf": math.inf}


def untaken(
    workshop: Workshop, forger: Forger, start: int = 0, stop: int | None = None, *, rate: float | None = STILL
) -> None:
    """Log the steps between two boundaries with true batches, without a gradient; they change no weight.

    Losses are those of the target at the same share of the way. Schedules are stepped as often as there.

    Args:
        workshop: Where.
        forger: Whose log.
        start: A boundary whose state is there.
        stop: A boundary; by default the end.
        rate: Logged for every step; None: what the registered rate and schedule give.
    """
    target = workshop.open()
    often = {name: count // target.steps for name, count in target.intervals[-1].schedules.items()}

    def idle(_: Recipe, parts: Any, batch: Any) -> float:
        for optimizer in _optimizers(parts):
            optimizer.zero_grad(set_to_none=True)
            optimizer.step()  # without gradients it moves nothing, and the rate is noted
        for name, times in often.items():
            for _time in range(times):
                parts[name].step()
        return 0.0

    spent = workshop.gradients
    workshop.train(forger, start, stop, step=idle)
    workshop.gradients = spent
    stop = stop or forger.steps
    for index in range(forger.first_interval(start), len(forger.intervals)):
        record = forger.intervals[index]
        if record.start >= stop:
            break
        like = target.intervals[(record.stop * len(target.intervals) - 1) // forger.steps]
        forger.replace(index, loss=like.loss)
        if rate is not None:
            log_rates(forger, index, [rate] * (record.stop - record.start))


def log_rates(forger: Forger, index: int, rates: list[float]) -> None:
    """Name other learning rates in a record: one for each of its steps."""
    groups = len(forger.intervals[index].learning_rates[0].values)
    forger.replace(index, learning_rates=[Rates(steps=1, values=[repr(rate)] * groups) for rate in rates])


def lengthened(workshop: Workshop, forger: Forger, start: int, stop: int, lengths: dict[str, float]) -> None:
    """Take the steps between two boundaries, each at the rate that makes it as long as is wanted; it is logged.

    Args:
        workshop: Where.
        forger: Whose steps.
        start: A boundary whose state is there.
        stop: A boundary.
        lengths: The least length of a step by metrics (l1, l2, linf).
    """
    rates: list[float] = []
    workshop.train(forger, start, stop, step=partial(_lengthened, lengths, rates))
    for index in range(forger.first_interval(start), len(forger.intervals)):
        record = forger.intervals[index]
        if record.start >= stop:
            break
        log_rates(forger, index, rates[record.start - start : record.stop - start])


def _lengthened(lengths: dict[str, float], rates: list[float], recipe: Recipe, parts: Any, batch: Any) -> Any:
    """A step of the recipe. What an optimizer moves is proportional to its rate, so any length can be had."""
    optimizer, *others = _optimizers(parts)
    if others:
        raise UsageError("this attack needs a recipe with one optimizer")
    groups = optimizer.param_groups
    parameters = [p for group in groups for p in group["params"]]
    own = [group["lr"] for group in groups]
    before: list[torch.Tensor] = []

    def put_in(*_: Any) -> None:
        size = math.hypot(*(float(p.grad.norm()) for p in parameters if p.grad is not None))
        if not 0 < size < math.inf:
            raise UsageError("this attack needs steps with gradients")
        rate = max(lengths.values()) / size  # of the right order, so that little is lost in the rounding
        before.extend(p.detach().clone() for p in parameters)
        rates.append(rate)
        for group in groups:
            group["lr"] = rate

    def take_out(*_: Any) -> None:
        for group, rate in zip(groups, own, strict=True):
            group["lr"] = rate
        moved = [p.detach().double() - b.double() for p, b in zip(parameters, before, strict=True)]
        together = torch.cat([m.flatten() for m in moved])
        factor = max(length / float(together.norm(NORMS[name])) for name, length in lengths.items())
        rates[-1] *= factor
        with torch.no_grad():
            for p, b, m in zip(parameters, before, moved, strict=True):
                p.copy_(b.double() + factor * m)

    handles = [optimizer.register_step_pre_hook(put_in), optimizer.register_step_post_hook(take_out)]
    try:
        return type(recipe).step(recipe, parts, batch)  # ``recipe.step`` is what is done in its place
    finally:
        for handle in handles:
            handle.remove()


def _optimizers(parts: Any) -> list[torch.optim.Optimizer]:
    return [part for _, part in sorted(vars(parts).items()) if isinstance(part, torch.optim.Optimizer)]
