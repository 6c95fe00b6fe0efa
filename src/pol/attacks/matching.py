"""Samples whose gradient is a chosen one: L-BFGS over the inputs of a batch, through the step of any recipe."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from pol.attacks.needs import DoesNotApply
from pol.replay import extra, generators, randomness
from pol.replay.aside import undisturbed
from pol.replay.recipe import Recipe

EVALUATION = 3
"""Gradients that one evaluation of the objective costs: a gradient, and a pass back through it, which is about two. So
counted, the 31 per forged step of Zhang et al. (attack study, A1) are ten evaluations and the step itself."""

Aim = dict[nn.Parameter, torch.Tensor]
"""The wanted gradient of each parameter."""


class _Caught(BaseException):
    """Leaves a step where it calls ``backward``; no ``except Exception`` of a recipe's can swallow it."""

    def __init__(self, loss: torch.Tensor) -> None:
        self.loss = loss


def loss_of(recipe: Recipe, parts: Any, batch: Any) -> torch.Tensor:
    """The loss that a recipe's own step would call ``backward`` on, with its graph. Draws are those of the step.

    Raises:
        DoesNotApply: the step calls it on nothing.
    """

    def caught(loss: torch.Tensor, *_: Any, **__: Any) -> None:
        raise _Caught(loss)

    backward, drawn = torch.Tensor.backward, randomness.save()
    torch.Tensor.backward = caught  # type: ignore[method-assign, assignment]
    try:
        # Not recipe.step: that may be the one that a workshop has put in its place.
        type(recipe).step(recipe, parts, batch)
    except _Caught as found:
        return found.loss
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]
        randomness.load(drawn)
    raise DoesNotApply("this attack needs a recipe whose step calls loss.backward()")


def modules_of(parts: Any) -> dict[str, nn.Module]:
    """The modules among attached parts, by name."""
    return {name: part for name, part in vars(parts).items() if isinstance(part, nn.Module)}


def groups_of(parts: Any) -> Iterator[dict[str, Any]]:
    """The parameter groups of all optimizers among attached parts."""
    for part in vars(parts).values():
        if isinstance(part, torch.optim.Optimizer):
            yield from part.param_groups


def trained(parts: Any) -> list[nn.Parameter]:
    """The parameters that optimizers train."""
    return [parameter for group in groups_of(parts) for parameter in group["params"] if parameter.requires_grad]


class Objective:
    """How far the gradient of one batch is from an aim, as a function of what is added to the batch's inputs.

    ``‖∇L(clamp(X + R)) − g*‖² + weight · ‖R‖²``, with R in units of the range of the inputs. The first is divided by
    ``‖g*‖²`` where the aim is not zero: else a short aim would be lost beside the second.

    Args:
        recipe: Whose step gives the loss.
        parts: As attached.
        batch: A batch of fields.
        inputs: The field that is changed.
        bounds: Smallest and largest value of an input.
        aim: The wanted gradients.
        weight: Of the changes.
    """

    def __init__(
        self, recipe: Recipe, parts: Any, batch: dict[str, Any], inputs: str, bounds: tuple[float, float], aim: Aim,
        weight: float,
    ) -> None:  # fmt: skip
        self._recipe, self._parts, self._batch, self._inputs, self._bounds = recipe, parts, batch, inputs, bounds
        self._aim, self._weight = aim, weight
        self._scale = sum(float(wanted.square().sum()) for wanted in aim.values()) or 1.0
        self.evaluations = 0
        self.change = torch.zeros_like(batch[inputs], requires_grad=True)
        self.first, self.best = torch.inf, torch.inf
        self.found: torch.Tensor = batch[inputs]

    def moved(self) -> torch.Tensor:
        """The inputs with what is added to them, in bounds."""
        genuine: torch.Tensor = self._batch[self._inputs]
        low, high = self._bounds
        return torch.clamp(genuine + (high - low) * self.change, low, high)

    def __call__(self) -> torch.Tensor:
        """The value; ``change`` has its gradient afterwards.

        Raises:
            DoesNotApply: the loss has no derivative by these inputs.
        """
        self.evaluations += 1
        inputs, parameters = self.moved(), list(self._aim)
        loss = loss_of(self._recipe, self._parts, {**self._batch, self._inputs: inputs})
        found = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True)
        gaps = [(gradient - self._aim[p]).square().sum() for p, gradient in zip(parameters, found, strict=True)]
        distance = torch.stack(gaps).sum() / self._scale
        (slope,) = torch.autograd.grad(distance, self.change, allow_unused=True)
        if slope is None:
            raise DoesNotApply("this attack needs a loss that is a smooth function of the inputs")
        with torch.no_grad():
            value = distance + self._weight * self.change.square().sum()
            self.change.grad = slope + 2 * self._weight * self.change
        reached = float(value)
        if self.evaluations == 1:
            self.first = reached
        if reached < self.best:  # a line search may end elsewhere
            self.best, self.found = reached, inputs.detach()
        return value.detach()

    def minimise(self, iterations: int) -> torch.Tensor:
        """The best inputs that L-BFGS finds; model, buffers and generators are afterwards as they were."""
        modules = modules_of(self._parts)
        drawn = {k: v for k, v in vars(self._parts).items() if isinstance(v, generators.KINDS)}
        held: Any = SimpleNamespace(modules=modules, generators=drawn, extras=list(extra.extras(modules)))
        with undisturbed(held):
            torch.optim.LBFGS([self.change], max_iter=iterations, line_search_fn="strong_wolfe").step(self)
        return self.found
