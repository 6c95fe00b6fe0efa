"""The splice: honest work, one forged interval, and honest steps that end at the stolen weights, at ordinary settings.

All settings are the target's own. The forged interval leads to a state of the forger's making, from which the last
steps, honestly taken, end where they should. What is free in that state is the momentum: where steps have a rate, a
little more of it moves the end of each value by less than a rounding, and the gradients hardly at all. So gradients are
noted once, the optimizer alone is run again with other momenta until each value ends right, and gradients are looked at
again. What is left over is told by the end state; the forgery is of that state, then, and a near copy of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from pol.attacks.attack import Attack
from pol.attacks.forger import Forger
from pol.attacks.landing import MODEL, land
from pol.attacks.placing import ROUNDS
from pol.attacks.workshop import Workshop
from pol.errors import UsageError
from pol.proof.challenge import Window
from pol.proof.plan import detection
from pol.proof.policy import EXACT
from pol.replay.recipe import Recipe
from pol.replay.state import State

TRACE=[]
POINTS, MEMORY = 12, 4
"""Rounds of the fixed point, and how many of them the next one learns from: alone it diverges where a step changes
gradients by more than they are."""

CLOSE = 2.0**-22
"""The distance from the end, as a share of its norm, at which roundings are all that is left."""

SHARES = (1.0, 2.0, 4.0, -1.0, -2.0)
"""Weights at the start, in shares of the own run's last way away from the end. Gradients jump where a unit falls to the
other side of zero, so from one start there may be no way to the end, and from another there is."""

NEEDS = "this attack needs SGD with momentum, and a rate in the last steps"

LOOKS, ALONE, PATIENCE = 60, 3, 12
"""How often gradients are looked at again: they change by a rounding when momenta do, so the first looks do the most. Of
these, looks with momenta alone."""

STRAIGHT = 4
"""Corrections of momenta by their slope between two looks: each leaves what rounding leaves of it."""

SCATTERED = 256
"""Momenta tried near these between two looks: they take no gradient."""

AROUND = 128
"""Units in the last place by which weights are tried beside them: where the aim is smaller than they are, momenta alone
are too coarse."""

LATEST = 4
"""Most honest intervals after the forged one: every step more makes gradients follow momenta more."""

KINDS = {"parameter": "weights", "buffer": "buffers", "transient": "buffers", "optimizer": "optimizer"}
"""How a challenge calls kinds of state."""

HALF = 0.5

SHIFT = 0.3
"""By how much of a rounding of the end gradients are shifted in trials: momenta that are right under these, too, stay
right when other values are set."""

MOST = 2**22
"""Values tried at once."""

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
        self._looks = self._stuck = 0
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
            TRACE.append('%.1e'%left)
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
        for look in range(LOOKS):
            notes = _Notes()
            self._workshop.train(self._forger, self._start, step=notes.taken)
            ends = self._forger.states[self._forger.steps].tensors
            off = {key: ends[key] != aim for key, aim in self._aim.items()}
            missing = sum(int(mask.sum()) for mask in off.values())
            TRACE.append(missing)
            if missing < least:
                best, least, seen = self._forger.states[self._start], missing, (notes, off)
                self._stuck = 0
            if not missing:
                return
            if missing > least or look > ALONE:
                self._stuck += 1
            self._looks, self._forger.states[self._start] = look, best
            self._set(*seen)
        self._forger.states[self._start] = best
        self._workshop.train(self._forger, self._start)

    def _set(self, notes: _Notes, off: Tensors) -> None:
        """Other momenta for values that are off, with which the same gradients lead to the right end."""
        held = dict(self._forger.states[self._start].tensors)
        for key, name in self._names.items():
            slope, mask = notes.slope(key), off[key]
            if self._looks > ALONE and self._looks % 2:  # each moves the others a little: not all at once
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
        drawn = 2 * torch.rand((many, len(aim)), generator=self._draws, dtype=torch.float64) - 1
        moved = torch.zeros(many, len(aim), dtype=weight.dtype)
        if self._moving and self._looks > ALONE:
            far = AROUND ** torch.linspace(0, 1, many, dtype=torch.float64).unsqueeze(1)
            drawn_too = 2 * torch.rand(moved.shape, generator=self._draws, dtype=torch.float64) - 1
            moved = (_unit(weight) * (far * drawn_too).round()).to(weight.dtype)
        spread = torch.maximum(unit / abs(slope), 2 * _unit(moment).double())
        weights = weight + moved
        moments = (moment.double() + drawn * spread + (weight.double() - weights.double()) / slope).to(moment.dtype)
        units = sum(share * away(weights, moments, by).abs() / unit for share, by in ((8.0, 0.0), (1.0, 1.0), (1.0, -1.0)))
        units += 4 * moved.abs() / _unit(weight) / AROUND  # the less gradients change, the better
        best = units.argmin(dim=0, keepdim=True)
        return weights.gather(0, best)[0], moments.gather(0, best)[0]


def _mixed(places: list[torch.Tensor], errors: list[torch.Tensor]) -> torch.Tensor:
    """The next place: what a combination of those before promises, whose error would be the least."""
    place, error = places[-1], errors[-1]
    if len(places) == 1:
        return place + error
    ways = torch.stack([place - before for before in places[-2 : -MEMORY - 2 : -1]], dim=1)
    changes = torch.stack([error - before for before in errors[-2 : -MEMORY - 2 : -1]], dim=1)
    shares = torch.linalg.lstsq(changes, error.unsqueeze(1), driver="gelsd").solution
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
    shares = SHARES if moving else (None,)
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
    if left <= CLOSE * search.length:
        search.land()
    else:
        workshop.train(forger, start)
    others = {k: t for k, t in aim.tensors.items() if k.startswith(MODEL) and not k.startswith("parameter/")}
    if moving and others:  # no step of training looks at them
        land(workshop, forger, start, State(others), ROUNDS)


# -- the attacks ------------------------------------------------------------------------------------------------------


def _begun(workshop: Workshop) -> Forger:
    forger = workshop.begin()
    if forger.steps <= forger.genesis.spec.every:
        raise UsageError("this attack needs a run of two intervals: one to forge, and one to take")
    return forger


def _after(forger: Forger, count: int) -> int:
    """The step after which there are so many intervals."""
    every = forger.genesis.spec.every
    return (-(-forger.steps // every) - count) * every


def splice(workshop: Workshop, out: Path) -> None:
    """All intervals are honest but the last but one, which ends in the state that the last one needs."""
    forger = _begun(workshop)
    start = _after(forger, 1)
    workshop.train(forger, stop=start)
    arrive(workshop, forger, start, workshop.stolen())
    forger.seal(out, workshop.key)


def splice_momentum(workshop: Workshop, out: Path) -> None:
    """The same, and only the momenta are forged: all weights are honest, the last steps go all the way in a line.

    Running statistics stay as they are and do not get there.
    """
    forger = _begun(workshop)
    start = _after(forger, 1)
    workshop.train(forger, stop=start)
    arrive(workshop, forger, start, workshop.stolen(), moving=False)
    forger.seal(out, workshop.key)


def splice_hidden(workshop: Workshop, out: Path) -> None:
    """The same as ``splice``, where a challenge finds it least: with up to four honest intervals after the jump.

    Where the largest moves of each part of a run are looked at, that is nowhere: at ordinary settings a jump is larger
    than any step beside it.
    """
    forger, policy = _begun(workshop), workshop.policy or EXACT
    stolen = workshop.stolen()
    workshop.train(forger)
    most = min(LATEST, -(-forger.steps // forger.genesis.spec.every) - 1)

    def found(count: int) -> float:
        start = _after(forger, count)
        forged = start // forger.genesis.spec.every - 1
        windows = _windows(forger, start, stolen)
        return detection(policy.challenge, windows, [], [forged], each=policy.rule == "tolerance")

    count = min(range(1, most + 1), key=lambda count: (round(found(count), 9), count))
    arrive(workshop, forger, _after(forger, count), stolen)
    forger.seal(out, workshop.key)


def _windows(forger: Forger, start: int, stolen: State) -> list[Window]:
    """What a verifier will measure, if the run jumps to about the stolen weights before ``start``."""
    every, found = forger.genesis.spec.every, []
    for before, after in pairwise(forger.kept):
        jumps = before < start <= after
        last = {**forger.states[after].tensors, **(stolen.tensors if jumps else {})}
        first, squares = forger.states[before].tensors, dict[str, float]()
        for key, tensor in last.items():
            kind = KINDS.get(key.partition("/")[0])
            if kind is not None:
                way = tensor.double() - (first[key].double() if key in first else 0.0)
                squares[kind] = squares.get(kind, 0.0) + float(way.square().sum())
        sizes = {kind: math.sqrt(total) for kind, total in squares.items()}
        found.append(Window(first=before // every, last=-(-after // every) - 1, sizes=sizes))
    return found


ATTACKS = (
    Attack(
        "splice", "one forged interval, then honest steps that end at stolen weights", "thief", splice,
        study=("A8", "T4", "T18"),
    ),
    Attack(
        "splice-momentum", "a forged momentum that carries honest steps to stolen weights", "thief", splice_momentum,
        study=("T18",),
    ),
    Attack(
        "splice-hidden", "the splice, where a challenge finds it least", "thief", splice_hidden,
        study=("A8", "T18"), adapts=True,
    ),
)  # fmt: skip
