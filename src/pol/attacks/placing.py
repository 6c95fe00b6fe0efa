"""Forgeries against rule exact: honest steps where a challenge certainly looks, and lies where only chance does.

One interval that is not replayed is enough to jump to stolen weights. What comes after it is honest, and has to end in
these weights bit for bit; what comes before it hides it from whoever looks at the largest moves. Each interval is one
step, so that as few as possible of all are forged.

Where the policy screens sizes, too, the jump has to be small and not unusually small. Screens name honest intervals
before it then, so they do not find it: what is left is what the draws say.

The forger chooses how long its run is, so its own honest steps need not be many: what they buy is the number of
intervals among which one forged is looked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import torch

from pol.attacks.drift import turnable
from pol.attacks.forger import Forger
from pol.attacks.interpolation import between
from pol.attacks.landing import MODEL, Moments, land
from pol.attacks.planning import Ground, Plan, accepted, begin, claim, length, pass_by
from pol.attacks.workshop import Workshop
from pol.proof.challenge import STRATA, Window
from pol.proof.genesis import boundaries
from pol.proof.plan import equal_windows
from pol.replay.recipe import Recipe
from pol.replay.state import State

AFTER = 2
"""Honest steps after the jump: the last window and the interval before it are always replayed."""

RATE = 2.0**-100
"""A rate at which no gradient shows in a float32 weight: what moves weights is decay alone, and that is known."""

MOMENTUM = 2.0**-6
"""Little, but not nothing: a moment that the forger sets is a second number with which an exact end is found."""

ABOVE = (4.0, 2.0, 1.0)
"""Norms of the weights before the jump that are tried, in norms of the stolen ones: honest steps then turn over twice
that, which no jump exceeds. From four on the jump is least of the way, and small enough beside it to be unusual; at two
it is not, and the first step and the two after it are less usual than it is."""

ROUNDS = 16
"""Attempts at exact running statistics, of which more hit none: some ends are beyond what these batches can give."""

FEW = 4
"""Attempts where the end is known beforehand, but for a rounding that nobody thought of."""

BUFFER = ".momentum_buffer"
"""How the name of a moment of SGD ends."""

Land = Callable[[Workshop, Forger, int, State], None]
"""Set the state at a step so that the honest steps from it to the end of the run end in a given one."""


def plans(ground: Ground) -> list[Plan]:
    """All forgeries of this kind for a recipe, its sizes and a policy."""
    return [*_hidden(ground), own_run(ground)]


# -- where ----------------------------------------------------------------------------------------------------------


def placement(intervals: int, paid: int, top: int) -> tuple[int, ...]:
    """The intervals to forge, if ``paid`` can be honest: the third from the end, and what cannot be paid for.

    Honest are, first of all, the first, the last two, and of each stratum the last ones, which are the largest.
    """
    jump = intervals - AFTER - 1
    strata = min(STRATA, intervals)
    wanted = [0, *range(jump + 1, intervals)]
    for _, end in pairwise(intervals * i // strata for i in range(strata + 1)):
        wanted += range(min(end, jump) - top - 1, min(end, jump))
    wanted += reversed(range(intervals))
    able = dict.fromkeys(index for index in wanted if 0 <= index < intervals and index != jump)
    honest = set(list(able)[:paid])
    return tuple(index for index in range(intervals) if index not in honest)


@dataclass(frozen=True)
class _Manner:
    """How weights go before and after the jump."""

    name: str
    settings: dict[str, Any]
    attempts: int
    """At an exact end: each takes the last steps again."""
    moments: Moments | None
    windows: Callable[[tuple[int, ...]], list[Window]]
    """What the verifier will measure, if these intervals are forged."""


def _hidden(ground: Ground) -> list[Plan]:
    found = []
    spare = AFTER * ground.batches * attempts(ground)
    for intervals in ground.lengths(spare) if _turns(ground) or _stands(ground) else ():
        manners = [_turning(ground, intervals, above) for above in ABOVE] if _turns(ground) else []
        manners += [_still(ground, intervals)] if _stands(ground) else []
        found += [plan for manner in manners for plan in _planned(ground, manner, intervals)]
    return found


def attempts(ground: Ground) -> int:
    """How often the last steps are taken at most."""
    return ROUNDS if any(key.startswith("buffer/") for key in ground.stolen.tensors) else FEW


def _planned(ground: Ground, manner: _Manner, intervals: int) -> list[Plan]:
    fixed = ground.control(intervals) + AFTER * ground.batches * manner.attempts
    paid = (ground.left - fixed) // ground.batches  # up to the end of the jump, which is taken first
    if intervals <= AFTER + 1 or paid < 1:
        return []
    forged = placement(intervals, paid - 1 + AFTER, ground.policy.challenge.top)
    probability = accepted(ground.policy, manner.windows(forged), [], forged)
    gradients = fixed + (intervals - len(forged) + 1 - AFTER) * ground.batches
    settings = dict(manner.settings)
    if ground.takes("num_epochs"):
        settings["num_epochs"] = intervals // ground.epoch

    def ends(workshop: Workshop, forger: Forger, start: int, aim: State) -> None:
        if manner.moments is not None:  # those of the own run are of other weights
            moments = {k: torch.zeros_like(t) for k, t in forger.states[start].tensors.items() if k.endswith(BUFFER)}
            forger.states[start] = State({**forger.states[start].tensors, **moments})
        land(workshop, forger, start, aim, manner.attempts, manner.moments)

    def make(workshop: Workshop, out: Path) -> None:
        forger = _spliced(workshop, begin(ground, workshop, settings, 1), forged, ends)
        claim(ground.policy, workshop, forger, forged, intervals - AFTER - 1, probability)
        forger.seal(out, workshop.key)

    return [Plan(manner.name, probability, True, gradients, intervals, forged, make)]


# -- weights that turn over -------------------------------------------------------------------------------------------


def _turns(ground: Ground) -> bool:
    """Whether decay can turn the weights over at every step, and no bound is against it."""
    return (
        ground.takes("lr", "weight_decay", "momentum")
        and turnable(ground.target)
        and ground.allows("least_rate", "rate_times_decay", "update", "pace", "learning_rate")
    )


def _turning(ground: Ground, intervals: int, above: float) -> _Manner:
    """Each step turns the weights over and makes them a little larger: every move is twice their norm (A19).

    So in each stratum the last honest windows are the largest, and the jump, which is shorter, is not among them.
    """
    fresh, stolen = length(ground.target.states[0], "parameter"), length(ground.stolen, "parameter")
    before = max(1, intervals - AFTER - 1)
    growth = (above * max(fresh, stolen) / fresh) ** (1 / before)
    decay = growth + MOMENTUM / growth + 1 + MOMENTUM  # then -growth is what a step multiplies weights by

    def windows(forged: tuple[int, ...]) -> list[Window]:
        weight, moment, found = fresh, 0.0, []
        for index in range(intervals):
            new = MOMENTUM * moment + decay * weight
            sizes = {"weights": abs(new), "optimizer": abs(new - moment) / RATE}
            if index == intervals - AFTER - 1:
                sizes = {"weights": math.hypot(weight, stolen), "optimizer": abs(moment) / RATE}
                weight, moment = stolen, 0.0
            elif index in forged:
                sizes = dict.fromkeys(sizes, 0.0)
            else:
                weight, moment = weight - new, new
            found.append(Window(first=index, last=index, sizes={**sizes, **_of_buffers(ground, index, intervals)}))
        return found

    settings = {"lr": RATE, "weight_decay": decay / RATE, "momentum": MOMENTUM}
    return _Manner("turning", settings, attempts(ground), Moments((decay - 1) / (MOMENTUM * RATE), _dry), windows)


def _dry(_: Recipe, parts: Any, batch: Any) -> float:
    """A step whose gradient is nothing."""
    for part in vars(parts).values():
        if isinstance(part, torch.optim.Optimizer):
            for parameter in (p for group in part.param_groups for p in group["params"]):
                parameter.grad = torch.zeros_like(parameter)
            part.step()
    return 0.0


def _of_buffers(ground: Ground, index: int, intervals: int) -> dict[str, float]:
    """Buffers jump, too, and nothing hides that: an honest step moves statistics little, and counters by one."""
    first, last = ground.target.states[0].tensors, ground.stolen.tensors
    apart = [last[k].double() - first[k].double() for k in last if k.startswith(MODEL[1:]) and k in first]
    counters = sum(key.startswith("buffer/") and not tensor.is_floating_point() for key, tensor in last.items())
    if not apart:
        return {}
    ahead = (ground.target.steps - intervals) ** 2 - ground.target.steps**2  # of counters, which the run has, too
    jump = sum(float(way.square().sum()) for way in apart) + counters * ahead
    return {"buffers": math.sqrt(max(jump, 0.0) if index == intervals - AFTER - 1 else counters)}


# -- weights that stand still -----------------------------------------------------------------------------------------


def _stands(ground: Ground) -> bool:
    """Whether the rate may be 0."""
    return ground.takes("lr") and ground.allows("moved", "least_rate", "progress")


def _still(ground: Ground, intervals: int) -> _Manner:
    """At a rate of 0 honest steps leave all weights as they are: fresh before the jump, stolen after it (T2, T11)."""
    moments = any(key.startswith("optimizer/") for key in ground.stolen.tensors)
    others = {"optimizer": 1.0} if moments else {}  # which go on as if nothing had happened

    def windows(_: tuple[int, ...]) -> list[Window]:
        found = []
        for index in range(intervals):
            sizes = {"weights": float(index == intervals - AFTER - 1), **_of_buffers(ground, index, intervals)}
            found.append(Window(first=index, last=index, sizes={**sizes, **others}))
        return found

    return _Manner("still", {"lr": 0.0}, attempts(ground), None, windows)


# -- how --------------------------------------------------------------------------------------------------------------


def _spliced(workshop: Workshop, forger: Forger, forged: tuple[int, ...], land: Land) -> Forger:
    """Take the honest steps, pass the others by, jump, and land."""
    stolen, jump = workshop.stolen(), forger.steps - AFTER - 1
    for skipped, group in groupby(range(jump + 1), lambda index: index in forged and index != jump):
        part = list(group)
        if skipped:
            pass_by(workshop, forger, part[0], part[-1] + 1)
        else:
            workshop.train(forger, part[0], part[-1] + 1)
    own = forger.states[jump + 1].tensors
    forger.states[jump + 1] = State({k: stolen.tensors[k] if k.startswith(MODEL) else t for k, t in own.items()})
    land(workshop, forger, jump + 1, stolen)
    seen = forger.intervals[jump].loss  # of a step that was taken, before the state after it was exchanged
    for index in forged:
        if index != jump:
            forger.replace(index, loss=seen)
    return forger


def own_run(ground: Ground) -> Plan:
    """As many honest steps as can be paid for, then straight on to the stolen weights: found out at its end (A8)."""
    spec = ground.target.genesis.spec
    steps = boundaries(spec)
    paid = (ground.left - ground.control(spec.steps)) // ground.batches
    honest = sum(stop <= paid for stop in steps[1:-1])
    forged = tuple(range(honest, len(steps) - 1))

    def make(workshop: Workshop, out: Path) -> None:
        forger = begin(ground, workshop, {}, spec.every)
        workshop.pretend(forger)
        if honest:
            workshop.train(forger, 0, steps[honest])
        start, stolen = forger.states[steps[honest]].tensors, workshop.stolen()
        for step in steps[honest + 1 : -1]:
            share = (step - steps[honest]) / (spec.steps - steps[honest])
            forger.states[step] = State(
                {k: between(start[k], t, share) if k in start else t for k, t in stolen.tensors.items()}
            )
        forger.states[spec.steps] = stolen
        forger.seal(out, workshop.key)

    gradients = ground.control(spec.steps) + steps[honest] * ground.batches
    probability = accepted(ground.policy, equal_windows(spec.steps, spec.every, 1), [], forged)
    return Plan("own run", probability, True, gradients, len(steps) - 1, forged, make)
