"""Steps of SGD taken backwards, to the last bit where there is one: from the state after a step to one before it.

One gradient decides a step: with the weights before it and their gradient known, every number of the optimizer goes its
own way, the weight falling and the momentum rising with the momentum before. So for each number the momenta that lead
exactly where they should are one range of floating-point numbers, found by halving, with torch's own arithmetic as the
judge. Running statistics go back in the same way, with their own module as the judge.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.sgd import sgd

from pol.attacks.forger import Forger
from pol.attacks.needs import DoesNotApply
from pol.attacks.ranges import Range, Tensors, halved, position
from pol.attacks.workshop import Workshop
from pol.replay import randomness
from pol.replay.state import State

OPTIONS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "foreach")
"""What torch's SGD reads from a parameter group."""

NEAR = 64
"""Neighbours on each side among which a running statistic is looked for first: what rounding in its estimate leaves."""


@dataclass(frozen=True)
class Prepared:
    """What one step has beside its state: batch, generators, and hyperparameters of each group."""

    batch: Any
    generators: randomness.GlobalState
    options: list[dict[str, Any]]


@dataclass
class Gradient:
    """What a forward and backward pass gave: gradients by parameter, buffers after it, and inputs of their modules."""

    values: Tensors
    buffers: Tensors
    calls: list[tuple[nn.Module, tuple[Any, ...]]]


class Window:
    """The steps of a forger's run from one boundary to another, ready to be taken in any order from any state.

    Rehearsing costs one gradient a step, at the weights of ``near``.

    Args:
        workshop: Where it is done; gradients are counted there.
        forger: Whose steps; records before ``start`` are there.
        start: A boundary.
        stop: A later one.
        near: The state to rehearse in.

    Attributes:
        steps: By index from ``start``.
        first: Gradients found in the rehearsal.
        fed: For a running statistic the parameter whose rows make its values, as far as the order of modules tells.

    Raises:
        DoesNotApply: the recipe does not train by one SGD, one batch a step, by its method ``step``.
    """

    def __init__(self, workshop: Workshop, forger: Forger, start: int, stop: int, near: State) -> None:
        self._workshop, self.start, self.stop = workshop, start, stop
        self.steps: list[Prepared] = []
        self.first: list[Gradient] = []
        self.fed: dict[str, str] = {}
        self._recipe: Any = None
        states, intervals = dict(forger.states), list(forger.intervals)
        forger.states[start] = near
        workshop.train(forger, start, stop, step=self._rehearse)
        forger.states, forger.intervals = states, intervals
        if len(self.steps) != stop - start:
            raise DoesNotApply("this attack needs a recipe that takes every step, of one batch, by its method step")

    def _rehearse(self, recipe: Any, parts: Any, batch: Any) -> Any:
        if self._recipe is None:
            self._meet(recipe, parts)
        options = [{k: g[k] for k in OPTIONS} for g in self._optimizer.param_groups]
        self.steps.append(Prepared(batch, randomness.save(), options))
        found, loss = self._evaluate(batch)
        self.first.append(found)
        return loss

    def _meet(self, recipe: Any, parts: Any) -> None:
        named = vars(parts)
        optimizers = {name: part for name, part in named.items() if isinstance(part, torch.optim.Optimizer)}
        if [type(part) for part in optimizers.values()] != [torch.optim.SGD]:
            raise DoesNotApply("this attack needs a recipe with one optimizer, torch's SGD")
        self._recipe, self._parts = recipe, parts
        ((self._name, self._optimizer),) = optimizers.items()
        self._schedules = [part for part in named.values() if isinstance(part, LRScheduler)]
        modules = {name: part for name, part in named.items() if isinstance(part, nn.Module)}
        self._parameters = {
            f"parameter/{part}.{name}": tensor for part, m in modules.items() for name, tensor in m.named_parameters()
        }
        self._buffers = {
            f"buffer/{part}.{name}": tensor for part, m in modules.items() for name, tensor in m.named_buffers()
        }
        names = {id(tensor): key for key, tensor in self._parameters.items()}
        self._groups = [[names[id(p)] for p in group["params"]] for group in self._optimizer.param_groups]
        inner = [(f"{part}.{name}".rstrip("."), one) for part, m in modules.items() for name, one in m.named_modules()]
        self._running = [one for _, one in inner if any(b.is_floating_point() for b in one.buffers(recurse=False))]
        rows: dict[int, str] = {}
        for name, module in inner:
            if module not in self._running:
                own = module.named_parameters(recurse=False)
                rows |= {len(tensor): f"parameter/{name}.{key}" for key, tensor in own if tensor.dim()}
                continue
            for key, buffer in module.named_buffers(recurse=False):
                if buffer.dim() and len(buffer) in rows:
                    self.fed[f"buffer/{name}.{key}"] = rows[len(buffer)]

    def slot(self, key: str) -> str:
        """The entry of a parameter's momentum in a state."""
        return f"optimizer/{self._name}.{key.partition('/')[2]}.momentum_buffer"

    # -- forwards, in pieces --------------------------------------------------------------------------------------

    def gradient(self, index: int, weights: Tensors, buffers: Tensors) -> Gradient:
        """The gradient of a step at other weights, under its own batch and generators."""
        with torch.no_grad():
            for held, values in ((self._parameters, weights), (self._buffers, buffers)):
                for key in sorted(held.keys() & values.keys()):
                    held[key].copy_(values[key])
        before = randomness.save()
        randomness.load(self.steps[index].generators)
        for schedule in self._schedules:  # the program is over: nobody else reads its rates
            schedule.step = lambda *_: None  # type: ignore[method-assign]
        found, _ = self._evaluate(self.steps[index].batch)
        randomness.load(before)
        self._workshop.gradients += 1
        return found

    def _evaluate(self, batch: Any) -> tuple[Gradient, Any]:
        calls: list[tuple[nn.Module, tuple[Any, ...]]] = []
        values: Tensors = {}
        trained = dict.fromkeys(key for group in self._groups for key in group)  # in one order, as draws are given

        def caught(*_: Any) -> None:
            found = {key: self._parameters[key].grad for key in trained}
            values.update({key: slope.clone() for key, slope in found.items() if slope is not None})

        own = self._optimizer.step
        self._optimizer.step = caught  # type: ignore[method-assign, assignment]
        try:
            with self._watched(calls), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Seems like `optimizer.step")  # so it has
                loss = type(self._recipe).step(self._recipe, self._parts, batch)  # its own, not what stands in for it
        finally:
            self._optimizer.step = own  # type: ignore[method-assign]
        return Gradient(values, {k: b.detach().clone() for k, b in self._buffers.items()}, calls), loss

    @contextlib.contextmanager
    def _watched(self, calls: list[tuple[nn.Module, tuple[Any, ...]]]) -> Iterator[None]:
        def entered(module: nn.Module, given: tuple[Any, ...]) -> None:
            calls.append((module, tuple(one.detach().clone() if torch.is_tensor(one) else one for one in given)))

        hooks = [module.register_forward_pre_hook(entered) for module in self._running]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def updated(self, index: int, weights: Tensors, momenta: Tensors, slopes: Tensors) -> tuple[Tensors, Tensors]:
        """Weights and momenta after a step with these gradients: torch's own arithmetic."""
        moved, kept = {key: weights[key].clone() for key in slopes}, {}
        for names, options in zip(self._groups, self.steps[index].options, strict=True):
            trained = [key for key in names if key in slopes]
            held: list[torch.Tensor | None] = [momenta[key].clone() if key in momenta else None for key in trained]
            with torch.no_grad():
                sgd([moved[key] for key in trained], [slopes[key] for key in trained], held, **options)
            kept.update({key: tensor for key, tensor in zip(trained, held, strict=True) if tensor is not None})
        return moved, kept

    def option(self, index: int, name: str) -> dict[str, float]:
        """A hyperparameter of each parameter in a step."""
        options = self.steps[index].options
        return {key: float(g[name]) for names, g in zip(self._groups, options, strict=True) for key in names}

    def slopes(self, index: int, weights: Tensors, gradients: Tensors) -> Tensors:
        """What a step adds to momentum before any dampening, in double precision: gradient and weight decay."""
        decay, ascent = self.option(index, "weight_decay"), self.option(index, "maximize")
        return {
            key: (-1 if ascent[key] else 1) * slope.double() + decay[key] * weights[key].double()
            for key, slope in gradients.items()
        }

    # -- backwards ------------------------------------------------------------------------------------------------

    def off(
        self, index: int, weights: Tensors, slopes: Tensors, after: Tensors, wanted: Range | None, momenta: Tensors
    ) -> tuple[Tensors, Tensors]:
        """Which momenta are too low and which too high to take ``weights`` exactly to ``after``, and into a range."""
        moved, kept = self.updated(index, weights, momenta, slopes)
        low = {key: tensor > after[key] for key, tensor in moved.items()}  # a weight falls where momentum rises
        high = {key: tensor < after[key] for key, tensor in moved.items()}
        if wanted is not None:
            at = {key: position(tensor) for key, tensor in kept.items()}
            low |= {key: low[key] | (places < wanted.low[key]) for key, places in at.items()}
            high |= {key: high[key] | (places > wanted.high[key]) for key, places in at.items()}
        return low, high

    def momenta(self, index: int, weights: Tensors, slopes: Tensors, after: Tensors, wanted: Range | None) -> Range:
        """Momenta before a step that take ``weights`` exactly to ``after``, and the momenta into a range.

        Without momentum any will do, or none.
        """
        like = {key: weights[key] for key in slopes}
        if any(self.option(index, "momentum").values()):
            return halved(lambda values: self.off(index, weights, slopes, after, wanted, values), like)
        low, high = self.off(index, weights, slopes, after, wanted, {})
        places = {key: (low[key] | high[key]).long() for key in like}
        return Range(places, {key: torch.zeros_like(tensor) for key, tensor in places.items()})

    def statistics(self, found: Gradient, wanted: Range, counters: Tensors) -> Range:
        """Running statistics before a step that the step takes into a range; ``counters`` are the other buffers."""
        moving = {key: found.buffers[key] for key in wanted.low}
        if not moving:
            return Range()
        at_zero = self._passed(found, {k: torch.zeros_like(t) for k, t in moving.items()}, counters)
        at_one = self._passed(found, {k: torch.ones_like(t) for k, t in moving.items()}, counters)
        guess = {}
        for key, aim in wanted.middle(moving).items():
            rise = at_one[key].double() - at_zero[key].double()
            there = (aim.double() - at_zero[key].double()) / torch.where(rise == 0, 1.0, rise)
            guess[key] = torch.where(rise == 0, aim.double(), there).to(aim.dtype)

        def off(values: Tensors) -> tuple[Tensors, Tensors]:
            at = {key: position(tensor) for key, tensor in self._passed(found, values, counters).items()}
            return {k: p < wanted.low[k] for k, p in at.items()}, {k: p > wanted.high[k] for k, p in at.items()}

        return halved(off, guess, near=NEAR)

    def _passed(self, found: Gradient, buffers: Tensors, counters: Tensors) -> Tensors:
        with torch.no_grad():
            for key, tensor in {**counters, **buffers}.items():
                self._buffers[key].copy_(tensor)
            for module, given in found.calls:
                module(*given)
        return {key: self._buffers[key].clone() for key in buffers}
