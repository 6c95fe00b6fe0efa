"""Steps that stand in the log and were not taken, and steps of a length of the forger's choice."""

from __future__ import annotations

import math
from typing import Any

import torch

from pol.attacks.forger import Forger
from pol.attacks.needs import DoesNotApply
from pol.attacks.workshop import Workshop
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

    Raises:
        DoesNotApply: a step takes several batches.
    """
    check_single(forger)
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


def check_single(forger: Forger) -> None:
    """A step that is replaced is that of one batch.

    Raises:
        DoesNotApply: it takes several.
    """
    if forger.genesis.spec.batches_per_step != 1:
        raise DoesNotApply("this attack needs a recipe with one batch per step")


def log_rates(forger: Forger, index: int, rates: list[float]) -> None:
    """Name other learning rates in a record: one for each of its steps."""
    groups = len(forger.intervals[index].learning_rates[0].values)
    forger.replace(index, learning_rates=[Rates(steps=1, values=[repr(rate)] * groups) for rate in rates])


def lengthened(workshop: Workshop, forger: Forger, start: int, stop: int, lengths: dict[str, float]) -> None:
    """Take the steps between two kept states, the last before each at a rate that makes it long; rates are logged.

    All others are taken at ``STILL``: several long steps might cancel out, or stray farther than they are long.

    Args:
        workshop: Where.
        forger: Whose steps.
        start: A step whose state is kept, and there.
        stop: A step whose state is kept.
        lengths: The least length by metrics (l1, l2, linf).

    Raises:
        DoesNotApply: no rate makes a step that long; or a step takes several batches, or has several optimizers.
    """
    check_single(forger)
    rates: list[float] = []
    ends = {end - start for end in forger.kept}

    def step(recipe: Recipe, parts: Any, batch: Any) -> Any:
        stretch = _Stretch(_only_optimizer(parts), lengths if len(rates) + 1 in ends else {})
        loss = stretch.around(recipe, parts, batch)
        rates.append(stretch.rate)
        return loss

    workshop.train(forger, start, stop, step=step)
    for index in range(forger.first_interval(start), len(forger.intervals)):
        record = forger.intervals[index]
        if record.start >= stop:
            break
        log_rates(forger, index, rates[record.start - start : record.stop - start])


class _Stretch:
    """One step of an optimizer at the rate at which it is as long as wanted, or at ``STILL`` if nothing is.

    What an optimizer moves is proportional to its rate, so one that is taken tells the right one.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, lengths: dict[str, float]) -> None:
        self._optimizer, self._lengths, self.rate = optimizer, lengths, STILL
        self._own = [group["lr"] for group in optimizer.param_groups]
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._before: list[torch.Tensor] = []

    def around(self, recipe: Recipe, parts: Any, batch: Any) -> Any:
        """The recipe's own step, with this one in it."""
        before = self._optimizer.register_step_pre_hook(self._put_in)
        after = self._optimizer.register_step_post_hook(self._take_out)
        try:
            return type(recipe).step(recipe, parts, batch)  # ``recipe.step`` is what is done in its place
        finally:
            before.remove()
            after.remove()

    def _put_in(self, *_: Any) -> None:
        if self._lengths:
            size = math.hypot(*(float(p.grad.norm()) for p in self._parameters if p.grad is not None))
            if not math.isfinite(size):
                raise DoesNotApply("this attack needs gradients that are finite, however long the step before was")
            self.rate = max(self._lengths.values()) / (size or 1.0)  # about right, so little is lost in the rounding
        self._before = [p.detach().clone() for p in self._parameters]
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate

    def _take_out(self, *_: Any) -> None:
        for group, rate in zip(self._optimizer.param_groups, self._own, strict=True):
            group["lr"] = rate
        if not self._lengths:
            return
        moved = [p.detach().double() - b.double() for p, b in zip(self._parameters, self._before, strict=True)]
        together = torch.cat([m.flatten() for m in moved])
        if not together.any():
            raise DoesNotApply("this attack needs steps that move the weights")
        factor = max(length / float(together.norm(NORMS[name])) for name, length in self._lengths.items())
        self.rate *= factor
        with torch.no_grad():
            for parameter, before, move in zip(self._parameters, self._before, moved, strict=True):
                parameter.copy_(before.double() + factor * move)


def _only_optimizer(parts: Any) -> torch.optim.Optimizer:
    optimizer, *others = _optimizers(parts)
    if others:
        raise DoesNotApply("this attack needs a recipe with one optimizer")
    return optimizer


def _optimizers(parts: Any) -> list[torch.optim.Optimizer]:
    return [part for _, part in sorted(vars(parts).items()) if isinstance(part, torch.optim.Optimizer)]
