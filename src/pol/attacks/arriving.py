"""A state from which honest steps end at given weights, where a training is in full swing: momenta are what is free.

A little more momentum moves the end of each value by less than a rounding, and gradients hardly at all. So gradients
are noted, the optimizer alone is run again with other momenta until each value ends right, and gradients are looked at
again. ``landing`` is for settings under which gradients do not matter.

What is left of the way goes down with each look until roundings are all that is left, and these not quite to none: each
that is mended moves some others. Off by a rounding or two are, of parameters, after one step 0 of 147 and 3 of 515 (toy
recipes; those end a hundred times smaller than they were); after three steps at a rate of 0.1 and momentum 0.9, 10 to
17 and 2 to 8 of these; after the last ten of three epochs of the digits recipe, 49 of 9978. Of running statistics it is
one in five: those that become much smaller than they were lie between the values that any start leads to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from pol.attacks.forger import Forger
from pol.attacks.landing import MODEL, land
from pol.attacks.placing import ROUNDS
from pol.attacks.workshop import Workshop
from pol.errors import UsageError
from pol.replay.recipe import Recipe
from pol.replay.state import State

POINTS, MEMORY = 12, 4
"""Rounds of the fixed point, and how many of them the next one learns from: alone it diverges where a step changes
gradients by more than they are."""

CLOSE = 2.0**-22
"""The distance from the end, as a share of its norm, at which roundings are all that is left."""

NEARLY = 16 * CLOSE
"""The same where it is worth while to look for roundings."""

SHARES = (1.0, 2.0, 4.0, -1.0, -2.0)
"""Weights at the start, in shares of the own run's last way away from the end. Gradients jump where a unit falls to the
other side of zero, so from one start there may be no way to the end, and from another there is."""

NEEDS = "this attack needs SGD with momentum, and a rate in the last steps"

LOOKS, ALONE, PATIENCE = 40, 3, 12
"""How often gradients are looked at again; the looks after the first that set momenta alone, by which the gradients of
the first step stay; and the looks in vain after which it ends."""

STRAIGHT = 4
"""Corrections of momenta by their slope between two looks: each leaves what rounding leaves of it."""

SCATTERED, MOST = 4096, 2**18
"""Momenta tried near these between two looks, of each value and of all: they take no gradient. Where a value ends a
hundred times smaller than it was, one in fifty ends right."""

AROUND = 128
"""Units in the last place by which weights are tried beside them: where the aim is smaller than they are, momenta alone
are too coarse. More of them move the gradients of all."""

HALF = 0.5
"""Share of the values that are set at every other look: each moves the others a little."""

SHIFT = 0.3
"""By how much of a rounding of the end gradients are shifted in trials: momenta that are right under these, too, stay
right when other values are set."""

Tensors = dict[str, torch.Tensor]
Gradient = Callable[[torch.Tensor], torch.Tensor]


# -- the last steps ---------------------------------------------------------------------------------------------------


@dataclass
class _Notes:
    """What the optimizers were given in some steps: of each call the groups, and gradients by key."""

    calls: list[list[tuple[dict[str, Any], Tensors]]] = field(default_factory=list)

    def taken(self, recipe: Recipe, parts: Any, batch: Any) -> Any:
        """The recipe's own step, noted."""
        keys = {
            parameter: f"parameter/{part}.{name.replace('_orig_mod.', '')}"  # compiled modules are wrapped under it
            for part, module in vars(parts).items()
            if isinstance(module, torch.nn.Module)
            for name, parameter in module.named_parameters()
        }

        def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            self.calls.append([
                (
                    {name: value for name, value in group.items() if name in optimizer.defaults},
                    {keys[p]: p.grad.detach().clone() for p in group["params"] if p.grad is not None},
                )
                for group in optimizer.param_groups
            ])  # fmt: skip

        optimizers = [part for part in vars(parts).values() if isinstance(part, torch.optim.Optimizer)]
        if not all(type(optimizer) is torch.optim.SGD for optimizer in optimizers):
            raise UsageError(NEEDS)
        handles = [optimizer.register_step_pre_hook(note) for optimizer in optimizers]
        try:
            return type(recipe).step(recipe, parts, batch)  # ``recipe.step`` is a function that called this one
        finally:
            for handle in handles:
                handle.remove()

    def end(self, key: str, weight: torch.Tensor, moment: torch.Tensor, gradient: Gradient) -> torch.Tensor:
        """Where a weight goes from a momentum: all of one shape, and to the last bit."""
        for settings, gradients in (group for call in self.calls for group in call):
            if key in gradients:
                parameter = torch.nn.Parameter(weight.clone())
                parameter.grad = gradient(gradients[key].to(weight.device)).to(weight.dtype).expand_as(weight).clone()
                optimizer = torch.optim.SGD([parameter], **settings)
                if settings["momentum"]:
                    optimizer.state[parameter]["momentum_buffer"] = moment.clone()
                optimizer.step()
                weight, moment = parameter.detach(), optimizer.state[parameter].get("momentum_buffer", moment)
        return weight

    def slope(self, key: str) -> float:
        """How the end of a weight follows from its momentum, where gradients stay."""
        zero = torch.zeros(1, dtype=torch.float64)
        return float(self.end(key, zero, zero + 1, lambda _: zero))


class _Landing:
    """The search for a state at ``start`` from which honest steps end in the parameters of ``aim``."""

    def __init__(self, workshop: Workshop, forger: Forger, start: int, aim: State, *, moving: bool) -> None:
        self._workshop, self._forger, self._start, self._moving = workshop, forger, start, moving
        held = forger.states[start].tensors
        self._aim = {key: tensor for key, tensor in aim.tensors.items() if key.startswith("parameter/")}
        self._names = {
            key: name
            for key in self._aim
            for name in held
            if name.endswith(f".{key.partition('/')[2]}.momentum_buffer")
        }
        self.length = math.hypot(*(float(tensor.double().norm()) for tensor in self._aim.values()))
        self._looks = 0
        self._draws = torch.Generator().manual_seed(0)

    def approach(self) -> float:
        """The fixed point of the momenta, by Anderson's method; the distance from the end that is left.

        Weights stay: then the gradients of the first step do, and the later ones change less.
        """
        notes, places, errors = _Notes(), list[torch.Tensor](), list[torch.Tensor]()
        best, least = self._forger.states[self._start], math.inf
        for number in range(POINTS):
            here = self._forger.states[self._start].tensors
            self._workshop.train(self._forger, self._start, step=notes.taken if number == 0 else None)
            if number == 0:
                slopes = {key: notes.slope(key) for key in self._aim}
                keys = [key for key in self._names if slopes.get(key)]
            if not keys:
                raise UsageError(NEEDS)
            ends = self._forger.states[self._forger.steps].tensors
            places.append(torch.cat([here[self._names[k]].double().flatten() * slopes[k] for k in keys]))
            errors.append(torch.cat([(self._aim[k].double() - ends[k].double()).flatten() for k in keys]))
            left = float(errors[-1].norm())
            if left < least:
                best, least = self._forger.states[self._start], left
            if left <= CLOSE * self.length:
                break
            moved = _mixed(places, errors).split([self._aim[k].numel() for k in keys])
            changed = {}
            for key, place in zip(keys, moved, strict=True):
                name = self._names[key]
                changed[name] = (place.view_as(here[name]) / slopes[key]).to(here[name].dtype)
            self._forger.states[self._start] = State({**here, **changed})
        self._forger.states[self._start] = best
        return least

    def land(self) -> None:
        """Set momenta, look at gradients, and set others, each time from the best state that was seen."""
        best, least, seen = self._forger.states[self._start], math.inf, (_Notes(), dict[str, torch.Tensor]())
        since = 0
        for look in range(LOOKS):
            notes = _Notes()
            self._workshop.train(self._forger, self._start, step=notes.taken)
            ends = self._forger.states[self._forger.steps].tensors
            off = {key: ends[key] != aim for key, aim in self._aim.items()}
            missing = sum(int(mask.sum()) for mask in off.values())
            if missing < least:
                best, least, seen, since = self._forger.states[self._start], missing, (notes, off), look
            if not missing:
                return
            if look - since == PATIENCE:
                break
            self._looks, self._forger.states[self._start] = look, best
            self._set(*seen)
        self._forger.states[self._start] = best
        self._workshop.train(self._forger, self._start)

    def _set(self, notes: _Notes, off: Tensors) -> None:
        """Other momenta for values that are off, with which the same gradients lead to the right end."""
        held = dict(self._forger.states[self._start].tensors)
        for key, name in self._names.items():
            slope, mask = notes.slope(key), off[key]
            if self._looks > ALONE and self._looks % 2:
                mask = mask & (torch.rand(mask.shape, generator=self._draws) < HALF)
            if slope and bool(mask.any()):
                found = self._found(notes, key, mask, slope, held[key][mask], held[name][mask])
                held[key], held[name] = held[key].clone(), held[name].clone()
                held[key][mask], held[name][mask] = found
        self._forger.states[self._start] = State(held)

    def _found(
        self, notes: _Notes, key: str, mask: torch.Tensor, slope: float, weight: torch.Tensor, moment: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        aim, unit = self._aim[key][mask], _unit(self._aim[key][mask]).double()

        def away(weight: torch.Tensor, moment: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
            by = SHIFT * shift / abs(slope) * unit
            end = notes.end(key, weight, moment, lambda g: g[mask].double() + by)
            return aim.double() - end.double()

        for _ in range(STRAIGHT):
            moment = (moment.double() + away(weight, moment) / slope).to(moment.dtype)
        many = max(1, min(SCATTERED, MOST // len(aim)))
        moved = torch.zeros(many, len(aim), dtype=weight.dtype)
        if self._moving and self._looks > ALONE:
            far = AROUND ** torch.linspace(0, 1, many, dtype=torch.float64).unsqueeze(1)
            moved = _unit(weight) * (far * self._drawn(many, len(aim))).round().to(weight.dtype)
        spread = torch.maximum(unit / abs(slope), 2 * _unit(moment).double())
        weights = weight + moved
        moments = (
            moment.double() + self._drawn(many, len(aim)) * spread + (weight.double() - weights.double()) / slope
        ).to(moment.dtype)
        # Right at all, first of all; then right under gradients that are a little off; then with as little moved.
        units = 8 * away(weights, moments).abs() + away(weights, moments, 1).abs() + away(weights, moments, -1).abs()
        best = (units / unit + 4 * (moved / _unit(weight)).abs() / AROUND).argmin(dim=0, keepdim=True)
        return weights.gather(0, best)[0], moments.gather(0, best)[0]

    def _drawn(self, *shape: int) -> torch.Tensor:
        return 2 * torch.rand(shape, generator=self._draws, dtype=torch.float64) - 1


def _mixed(places: list[torch.Tensor], errors: list[torch.Tensor]) -> torch.Tensor:
    """The next place: what a combination of those before promises, whose error would be the least."""
    place, error = places[-1], errors[-1]
    if len(places) == 1:
        return place + error
    ways = torch.stack([place - before for before in places[-2 : -MEMORY - 2 : -1]], dim=1)
    changes = torch.stack([error - before for before in errors[-2 : -MEMORY - 2 : -1]], dim=1)
    shares: torch.Tensor = torch.linalg.lstsq(changes, error.unsqueeze(1), driver="gelsd").solution
    return place + error - ((ways + changes) @ shares).squeeze(1)


def _unit(tensor: torch.Tensor) -> torch.Tensor:
    """The distance to the next number, away from zero."""
    return torch.nextafter(tensor.abs(), torch.full_like(tensor, torch.inf)) - tensor.abs()


def arrive(workshop: Workshop, forger: Forger, start: int, aim: State, *, moving: bool = True) -> None:
    """Set the state at ``start`` so that honest steps to the end of the run end in ``aim``, or as near as it comes.

    Args:
        workshop: Where steps are taken.
        forger: Whose; the state at ``start`` has its momenta.
        start: A boundary after the first.
        aim: Values to end at, of parameters, buffers and what is transient.
        moving: Whether more than the momenta may be set.

    Raises:
        UsageError: the optimizer has no momenta, or the last steps no rate.
    """
    first = forger.states[start].tensors
    shares: tuple[float | None, ...] = SHARES if moving else (None,)
    if moving:
        workshop.train(forger, start)
        last = forger.states[forger.steps].tensors
    found = list[tuple[float, State]]()
    for share in shares:
        if share is not None:  # as far from the aim as the same steps went, or a share of it
            forger.states[start] = State({
                k: (aim.tensors[k].double() + share * (t.double() - last[k].double())).to(t.dtype)
                if k.startswith("parameter/") else aim.tensors[k] if k.startswith(MODEL) else t
                for k, t in first.items()
            })  # fmt: skip
        search = _Landing(workshop, forger, start, aim, moving=moving)
        found.append((search.approach(), forger.states[start]))
        if found[-1][0] <= CLOSE * search.length:
            break
    left, forger.states[start] = min(found, key=lambda pair: pair[0])
    if left <= NEARLY * search.length:
        search.land()
    else:
        workshop.train(forger, start)
    others = {k: t for k, t in aim.tensors.items() if k.startswith(MODEL) and not k.startswith("parameter/")}
    if moving and others:  # no step of training looks at them
        land(workshop, forger, start, State(others), ROUNDS)
