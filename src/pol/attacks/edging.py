"""Drift that is optimised against the limits in force: as far as they allow, in every interval, where it helps most.

``drift`` has the same attacks with fixed numbers. Here the forger is given a policy's own limits and bounds, and looks
for the settings and the directions with which it comes nearest to stolen weights without leaving them (attack study,
A18 and A19). What it gains is what the drift budget claims to bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from pol import canonical
from pol.attacks.drift import SHARE, steered
from pol.attacks.forger import Forger
from pol.attacks.needs import DoesNotApply
from pol.attacks.workshop import Workshop
from pol.errors import PolError
from pol.proof.policy import Bounds, Limits
from pol.replay.state import State
from pol.statetree import Entry
from pol.verifier.tolerance import largest

BLOCKS = 4
"""Parts of a run whose direction is tried both ways: a push may be turned round by what comes after it."""

LEAST = 0.1
"""Of a limit: where rounding takes more, nothing is pushed."""

Make = Callable[[Workshop, Path], None]


def drifting_within(limits: Limits | None) -> Make:
    """An honest run that is drawn to the stolen weights as far as limits allow (A18); None: an honest run."""

    def make(workshop: Workshop, out: Path) -> None:
        forger = workshop.begin()
        drawn(workshop, forger, limits)
        forger.seal(out, workshop.key)

    return make


def amplified_within(limits: Limits, bounds: Bounds, most: int | None = None, *, push: bool = True) -> Make:
    """The same, with those settings within bounds that leave a forger the most (A19, generalised).

    Args:
        limits: In force.
        bounds: In force.
        most: How many settings are tried; all if None.
        push: Whether anything is pushed; else an honest run with these settings.
    """

    def make(workshop: Workshop, out: Path) -> None:
        forger = workshop.begin(settings=_best(workshop, limits, itertools.islice(_settings(workshop, bounds), most)))
        drawn(workshop, forger, limits if push else None)
        forger.seal(out, workshop.key)

    return make


def drawn(workshop: Workshop, forger: Forger, limits: Limits | None, blocks: int = BLOCKS) -> None:
    """Train, and push every end state within the limits; each block in the direction that ends nearer to the aim.

    Takes one training, and one more for each of the first ``blocks`` of them that is tried the other way round.
    """
    aim = _parameters(workshop.stolen())
    signs = [1.0] * BLOCKS
    nearest = _run(workshop, forger, limits, aim, signs)
    for block in range(blocks if limits is not None else 0):
        kept = dict(forger.states), list(forger.intervals)
        signs[block] = -1.0
        found = _run(workshop, forger, limits, aim, signs)
        if found < nearest:
            nearest = found
        else:
            signs[block] = 1.0
            forger.states, forger.intervals = kept


def _run(
    workshop: Workshop, forger: Forger, limits: Limits | None, aim: dict[str, torch.Tensor], signs: list[float]
) -> float:
    """Train with pushes; the distance of the last weights from the aim."""

    def move(key: str, step: int, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        if limits is None:
            return end
        sign = signs[min(BLOCKS - 1, BLOCKS * (step - 1) // forger.steps)]
        return pushed(limits, key, start, end, sign * (aim[key].double() - end.double()), most=1.0)

    steered(workshop, forger, move)
    last = _parameters(forger.states[forger.steps])
    return math.hypot(*(float((last[key].double() - aim[key].double()).norm()) for key in aim))


def limit(limits: Limits, key: str, start: torch.Tensor, end: torch.Tensor) -> float:
    """The limit of one tensor over one interval."""
    kind, _, name = key.partition("/")
    dtype = {torch.float64: "F64"}.get(end.dtype, "F32")
    entry = Entry(kind=kind, name=name, dtype=dtype, shape=list(end.shape))
    return largest(limits, entry, float((end.double() - start.double()).norm()), float(start.double().norm()))


def pushed(
    limits: Limits, key: str, start: torch.Tensor, end: torch.Tensor, way: torch.Tensor, *, most: float = math.inf
) -> torch.Tensor:
    """The honest end of an interval, moved along a way as far as the limit of the tensor lets it.

    Elements that stand still stay, since they are compared bit for bit. Where rounding takes more than the limit, less
    is tried, and at last nothing.

    Args:
        limits: In force.
        key: Of the tensor.
        start: Its values at the start of the interval.
        end: At the honest end.
        way: Where it should go.
        most: Largest multiple of the way.
    """
    room, share = limit(limits, key, start, end), SHARE
    way = torch.where(end == start, 0.0, way.double())
    length = float(way.norm())
    while length and share > LEAST:
        found = (end.double() + way * min(most, share * room / length)).to(end.dtype)
        if float((found.double() - end.double()).norm()) <= room:
            return found
        share /= 2
    return end


def _parameters(state: State) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in state.tensors.items() if key.startswith("parameter/")}


def _settings(workshop: Workshop, bounds: Bounds) -> Iterator[dict[str, Any]]:
    """Settings at and within the bounds, the most extreme first: rates, decays, momenta, and numbers of epochs."""
    registered = workshop.open().genesis.recipe.configuration
    own = {name: canonical.untag(value, name) for name, value in registered.items()}
    if not {"lr", "weight_decay", "momentum"} <= own.keys():
        raise DoesNotApply("this attack changes lr, momentum and weight_decay, and the recipe has no such arguments")
    rate, decay, momentum = (
        math.inf if bound is None else bound
        for bound in (bounds.learning_rate, bounds.rate_times_decay, bounds.momentum)
    )
    epochs = [{"num_epochs": times * own["num_epochs"]} for times in (1, 4)] if "num_epochs" in own else [{}]
    for times, lr, kept, shrunk in itertools.product(
        epochs, (1e-6, 1e-3, own["lr"], 1.0, 10.0), (min(momentum, 0.9999), own["momentum"], 0.0), (1.0, 0.1, 0.0)
    ):
        if lr <= rate:
            yield {**times, "lr": lr, "momentum": kept, "weight_decay": shrunk * min(decay, 2.0) / lr}


def _best(workshop: Workshop, limits: Limits, settings: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The settings whose honest run leaves most room for its way, as long as that is within the budget."""
    found: list[tuple[float, int, dict[str, Any]]] = []
    for number, tried in enumerate(settings):
        try:
            forger = workshop.begin(settings=tried)
            workshop.train(forger)
        except PolError:  # it diverges, or cannot be recorded
            continue
        share = room(forger, limits)
        if share <= limits.drift:
            found.append((share, number, tried))
    if not found:
        raise DoesNotApply("no settings were found whose limits, added up, are within the drift budget")
    return max(found)[2]


def room(forger: Forger, limits: Limits) -> float:
    """What the verifier will find: the sum of all limits, as a share of the way from the first weights to the last."""
    total = 0.0
    for before, after in pairwise(sorted(forger.states)):
        start, end = _parameters(forger.states[before]), _parameters(forger.states[after])
        total += math.hypot(*(limit(limits, key, start[key], end[key]) for key in end))
    first, last = _parameters(forger.states[0]), _parameters(forger.states[forger.steps])
    way = math.hypot(*(float((last[key].double() - first[key].double()).norm()) for key in last))
    return total / way if way else math.inf
