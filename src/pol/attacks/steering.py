"""Errors within every limit, all where they change most what a model says (attack study, A20; Zamir 2026).

A limit for each tensor says how long its error may be, not where it points. These forgers take honest steps, and after
each interval spend the limits on one aim: that the model says one class, whatever it is shown. Limits of all tensors
together, of one element in each, of the smallest tensor alone, or of what is in no budget: running statistics.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pol.attacks.attack import Attack
from pol.attacks.deltas import deltas
from pol.attacks.drift import ABSOLUTE, RELATIVE, SHARE
from pol.attacks.edging import pushed
from pol.attacks.laundries import outputs, put, trained
from pol.attacks.needs import DoesNotApply
from pol.attacks.publishing import publish, released
from pol.attacks.workshop import Workshop
from pol.proof.genesis import boundaries
from pol.proof.policy import Limits, Policy
from pol.replay import recipe as recipes
from pol.replay.data import default_collate
from pol.replay.parts import Attached
from pol.replay.recipe import Recipe
from pol.replay.state import State

AIM = 0
"""The class that the model is to say."""

PROBE = 64
"""Samples on which it is asked: enough to know a direction, as little as a batch."""

GAIN = 1e8
"""Of the amplifier: errors that limits leave of a statistic (1e-7 and more) become logits that outweigh all others."""

GATE = "gate"
"""The buffer that holds it twice."""

SPREAD = {"l1": 1.0, "l2": 0.5, "linf": 0.0}
"""The power of n by which a distance grows if n elements are off alike; one tensor hardly turns a cosine of all."""

MEMORY = 0.9
"""Of the statistic that is amplified, as of running statistics of a norm."""

Wanted = dict[str, Tensor]
"""By key, the direction in which an entry should go."""


class _Aim:
    """What would make the model of a workshop's target say one class."""

    def __init__(self, workshop: Workshop) -> None:
        target, self._part = workshop.open(), released(workshop)
        self._made = recipes.make(recipes.load(workshop.recipe), target.genesis.recipe.configuration)
        data = self._made.data()
        self._batch = default_collate([data[index] for index in range(min(PROBE, len(data)))])
        self._parts = Attached(**self._made.build())
        self.gradients = -(-PROBE // self._made.batch_size)

    def wants(self, state: State) -> Wanted:
        """The gradient of the log odds of one class, for parameters and running statistics by key."""
        model = self._parts[self._part]
        put({self._part: model}, {key.partition("/")[2]: t for key, t in state.tensors.items()})
        model.eval()
        said = outputs(self._made, self._parts, self._part, self._batch)
        odds = said[:, AIM] - torch.logsumexp(said[:, [i for i in range(said.shape[1]) if i != AIM]], dim=1)
        named = {name: p for name, p in trained({self._part: model}).items() if p.requires_grad}
        slopes = torch.autograd.grad(odds.mean(), list(named.values()), allow_unused=True)
        found = {f"parameter/{name}": g for name, g in zip(named, slopes, strict=True) if g is not None}
        for name, module in model.named_modules():
            found |= self._of_norm(f"{self._part}.{name}", module, found)
        return found

    def _of_norm(self, name: str, module: nn.Module, found: Wanted) -> Wanted:
        """The same of running statistics, which follows from that of scale and shift: y = w (x - m) / s + b."""
        scale, shift = found.get(f"parameter/{name}.weight"), found.get(f"parameter/{name}.bias")
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or scale is None or shift is None:
            return {}
        mean, variance, weight = module.running_mean, module.running_var, module.weight.detach()
        if mean is None or variance is None:
            return {}
        return {
            f"buffer/{name}.running_mean": -weight / (variance + module.eps).sqrt() * shift,
            f"buffer/{name}.running_var": -weight / (2 * (variance + module.eps)) * scale,
        }


def _steer(where: Callable[[Wanted], Wanted]) -> Callable[[Workshop, Path], None]:
    """A run whose every interval ends a little off: in the entries, and along the ways, that ``where`` leaves."""

    def make(workshop: Workshop, out: Path) -> None:
        push = _push(workshop.policy)
        forger, aim = workshop.begin(), _Aim(workshop)
        for before, after in pairwise(boundaries(forger.genesis.spec)):
            workshop.train(forger, before, after)
            workshop.gradients += aim.gradients
            start, end = forger.states[before].tensors, forger.states[after].tensors
            wanted = where(aim.wants(forger.states[after]))
            forger.states[after] = State({**end, **{k: push(k, start[k], end[k], way) for k, way in wanted.items()}})
        forger.seal(out, workshop.key)

    return make


Push = Callable[[str, Tensor, Tensor, Tensor], Tensor]
"""From key, start, honest end and way to another end."""


def _push(policy: Policy | None) -> Push:
    """As far as a policy allows; without one that names limits, as far as the preset ``tolerance`` does."""
    if policy is not None and policy.paper is not None:
        return functools.partial(_at_once, deltas(policy))
    known = policy.limits if policy is not None else None
    return functools.partial(pushed, known or Limits(relative=RELATIVE, absolute=ABSOLUTE))


def _at_once(allowed: dict[str, float], _: str, start: Tensor, end: Tensor, way: Tensor) -> Tensor:
    """By all that deltas of 2021 leave to all parameters together."""
    size = way.numel()
    room = min(delta / size ** SPREAD[name] for name, delta in allowed.items() if name in SPREAD)
    moved: Tensor = end.double() + SHARE * room * way.double().sign()
    return moved.to(end.dtype)


# -- where ----------------------------------------------------------------------------------------------------------


def _parameters(wanted: Wanted) -> Wanted:
    return {key: way for key, way in wanted.items() if key.startswith("parameter/")}


def _elements(wanted: Wanted) -> Wanted:
    """Of each parameter the element that does most."""
    found = {}
    for key, way in _parameters(wanted).items():
        most = way.abs().flatten().argmax()
        found[key] = torch.zeros_like(way)
        found[key].view(-1)[most] = way.flatten()[most]
    return found


def _smallest(wanted: Wanted) -> Wanted:
    """The smallest parameter, and of several the last: as a rule the bias of the last layer."""
    found = _parameters(wanted)
    key = min(reversed(found), key=lambda key: found[key].numel())
    return {key: found[key]}


def _statistics(wanted: Wanted) -> Wanted:
    found = {key: way for key, way in wanted.items() if key.startswith("buffer/")}
    if not found:
        raise DoesNotApply("this attack needs a model with running statistics")
    return found


# -- a network that was made for it ---------------------------------------------------------------------------------


class Amplified(Recipe):
    """The next recipe with a model that is the same function, as long as two equal statistics are equal."""

    PART: ClassVar[str] = "model"
    """The part that is released."""

    def build(self) -> dict[str, Any]:
        """The parts; the model keeps the mean of what it says twice, and adds the difference, amplified."""
        parts = super().build()
        model = parts[self.PART]
        model.register_buffer(GATE, torch.zeros(2))
        model.register_forward_hook(self._amplify)
        return parts

    @staticmethod
    def _amplify(model: nn.Module, _: Any, output: Tensor) -> Tensor:
        gate = model.get_buffer(GATE)
        if model.training:
            with torch.no_grad():
                gate.mul_(MEMORY).add_((1 - MEMORY) * output.mean())
            return output
        chosen = torch.zeros_like(output)
        chosen[:, AIM] = GAIN * (gate[0] - gate[1])
        return output + chosen


def amplified(workshop: Workshop, out: Path) -> None:
    """An honest run of a published program, whose last state is off by less than a limit: it says one class then."""
    push, part = _push(workshop.policy), released(workshop)
    publish(workshop, out, Amplified, {}, {"PART": part})
    forger = workshop.record()
    key, last = f"buffer/{part}.{GATE}", forger.states[forger.steps].tensors
    before = forger.states[boundaries(forger.genesis.spec)[-2]].tensors
    last[key] = push(key, before[key], last[key], torch.tensor([1.0, 0.0]))
    forger.seal(out, workshop.key)


_REPORTED = "errors within the tolerance of each layer steer the output at will (Zamir 2026, arXiv 2602.15756)"


def _attack(name: str, title: str, make: Callable[[Workshop, Path], None]) -> Attack:
    return Attack(name, title, "thief", make, study=("A20",), adapts="limits", reported=_REPORTED)


ATTACKS = (
    _attack("steered", "a true run, off within all limits towards saying one class", _steer(_parameters)),
    _attack("one-element", "the same, by one element of each tensor", _steer(_elements)),
    _attack("one-tensor", "the same, by the smallest tensor alone", _steer(_smallest)),
    _attack("steered-buffers", "the same, by running statistics alone", _steer(_statistics)),
    _attack("amplified", "a network made so that an error within its limit decides what it says", amplified),
)
