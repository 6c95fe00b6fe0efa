"""The splice: an honest run of one's own, one jump, and honest steps after it that end at the stolen weights exactly.

What a verifier looks at first, the beginning and the end, is all true: the steps after the jump pass every replay, and
give the stolen model bit for bit. The jump is the only lie, and it is one interval among many: a sample of them meets
it by chance, and only who replays all of them finds it for certain.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import torch

from pol.attacks.attack import Attack
from pol.attacks.backwards import Window
from pol.attacks.foresight import foreseen
from pol.attacks.forger import Forger
from pol.attacks.interpolation import between
from pol.attacks.needs import DoesNotApply
from pol.attacks.ranges import Tensors
from pol.attacks.settling import settled
from pol.attacks.trail import Point, end, follow, put
from pol.attacks.workshop import Workshop
from pol.errors import PolError
from pol.proof.genesis import kept
from pol.proof.policy import EXACT
from pol.replay.state import State

TAILS = (1, 3)
"""Honest intervals after the jump that are tried. The last one and that before it are always replayed, so from three on
the jump is out of their sight."""

PIECES = (1, 16, 64)
"""Intervals over which the jump is spread: more are smaller, and more of them are met by chance."""

RATES = (1.0, 10.0, 30.0)
"""Multiples of the registered learning rate that are tried: among larger honest moves the jump is not the largest."""


def own_run(workshop: Workshop, every: int | None, settings: dict[str, Any] | None = None) -> Forger:
    """An honest run of one's own that keeps all of its states.

    Raises:
        DoesNotApply: there is no interval between the first and the last two.
    """
    forger = workshop.begin(settings=settings, every=every)
    spec = msgspec.structs.replace(forger.genesis.spec, keep=1)
    forger.genesis, forger.kept = msgspec.structs.replace(forger.genesis, spec=spec), kept(spec)
    if len(forger.kept) < 4:
        raise DoesNotApply("this attack needs a run of three intervals or more")
    workshop.first_state(forger)  # another genesis has another seed
    workshop.train(forger)
    return forger


def land(workshop: Workshop, forger: Forger, start: int) -> Point:
    """Change the state at a boundary so that honest steps from there end at the stolen weights, and take them."""
    stolen = workshop.stolen()
    model = {key: tensor for key, tensor in stolen.tensors.items() if key.startswith(("parameter/", "buffer/"))}
    windows = [
        Window(workshop, forger, a, b, State({**forger.states[a].tensors, **model}))
        for a, b in pairwise(step for step in forger.kept if step >= start)
    ]
    point = end(stolen)
    last = settled(windows, point.weights)
    for window in reversed(windows):
        point = follow(window, point, last)
    forger.states[start] = put(forger.states[start], windows[0], point)
    workshop.train(forger, start)
    return point


def spliced(workshop: Workshop, out: Path) -> None:
    """The jump in the last interval but one, where each interval is one step.

    The forger chooses how long its intervals are. Over one step a landing can be found, because the momentum before it
    is free: of all weights and running statistics on the digits and the recipes of the tests, for some ten gradients
    beside the honest run. Without momentum one weight in 20 ends a rounding off.
    """
    forger = own_run(workshop, every=1)
    land(workshop, forger, forger.kept[-2])
    forger.seal(out, workshop.key)


def spliced_interval(workshop: Workshop, out: Path) -> None:
    """The same with intervals as long as the target's.

    Every further step has to arrive at given momenta, too. Where rates are low at the end, as with the digits, all
    weights land over 10 steps, and all but a few running statistics; where moves are as large as weights, up to one
    number in 100 ends a rounding off.
    """
    forger = own_run(workshop, every=None)
    land(workshop, forger, forger.kept[-2])
    forger.seal(out, workshop.key)


def spliced_momentum(workshop: Workshop, out: Path) -> None:
    """The weights before the last step are honest; their momentum throws them at the stolen ones (T18, I2).

    Momentum and running statistics are the only lie, so all moves of weights have steps behind them. Momentum is as
    coarse as the way is long: some weights end a rounding of the way beside the stolen ones.
    """
    forger = own_run(workshop, every=1)
    start, after = forger.kept[-2], end(workshop.stolen())
    window = Window(workshop, forger, start, forger.steps, forger.states[start])
    if not all(window.option(0, "momentum").values()):
        raise DoesNotApply("this attack needs a recipe with momentum")
    weights = {key: forger.states[start].tensors[key] for key in after.weights}
    (found,) = window.first
    momenta = window.momenta(0, weights, found.values, after.weights, None).closed()
    counters = {key: forger.states[start].tensors[key] for key in after.others}
    statistics = window.statistics(found, after.statistics, counters).closed()
    forger.states[start] = put(forger.states[start], window, Point(weights, momenta, statistics, counters))
    workshop.train(forger, start)
    forger.seal(out, workshop.key)


def spliced_hidden(workshop: Workshop, out: Path) -> None:
    """The jump where the policy's challenge looks least: before what it always replays, in pieces, at other rates.

    Each way is made and looked over as the verifier will, screens included. If all intervals are replayed, none helps,
    and it is the plain splice. Else what would remain is chance: a piece that is not the largest of any kind in its
    twentieth of the run is met by uniform and size-weighted draws alone. Measured, none remains: on ``Plain`` of the
    tests, with 210 to 1,400 intervals and up to ten times the rate, all ways were met for certain. The jump, of a
    thousand honest moves, is the largest update of its twentieth even in 64 pieces. Only programs whose honest moves
    are as large hide it: see ``placing``.
    """
    policy = workshop.policy or EXACT
    best: tuple[float, Path] | None = None
    for number, settings in enumerate(_rates(workshop)):
        try:
            forger = own_run(workshop, every=1, settings=settings)
        except PolError:  # it diverges
            if not number:
                raise
            continue
        ask, count = policy.challenge, len(forger.kept) - 1
        seen = ask.strategy == "all" or (ask.strategy == "mix" and count <= ask.all_up_to)
        for place, forged in _ways(workshop, forger, plain=seen):
            made = workshop.scratch / f"way-{number}-{place}"
            forger.seal(made, workshop.key)
            found = foreseen(made, policy, forged)
            if best is None or found > best[0]:
                best = found, made
        if seen:
            break
    assert best is not None
    shutil.copytree(best[1], out)


def _rates(workshop: Workshop) -> Iterator[dict[str, Any]]:
    yield {}
    configuration = workshop.open().genesis.recipe.configuration
    if "lr" in configuration:
        yield from ({"lr": times * workshop.configured(workshop.open(), "lr")} for times in RATES[1:])


def _ways(workshop: Workshop, forger: Forger, *, plain: bool) -> Iterator[tuple[str, range]]:
    """Leave ``forger`` with the jump in one way after another; a name of each, and the forged intervals."""
    honest, records = dict(forger.states), list(forger.intervals)
    count = len(forger.kept) - 1
    for tail in TAILS[: 1 if plain else None]:
        start = count - tail
        if start < 2:
            return
        forger.states, forger.intervals = dict(honest), list(records)
        try:
            land(workshop, forger, forger.kept[start])
        except PolError:  # no finite trail leads there
            return
        landed = forger.states[forger.kept[start]].tensors
        for pieces in PIECES[: 1 if plain else None]:
            first = start - pieces
            if first < 1:
                break
            draws = torch.Generator().manual_seed(pieces)
            for at in range(first + 1, start):
                own, share = honest[forger.kept[at]], (at - first) / pieces
                forger.states[forger.kept[at]] = _bent(own, landed, share, draws, 1 / pieces)
            yield f"{tail}-{pieces}", range(first, start)


def _bent(own: State, landed: Tensors, share: float, draws: torch.Generator, bend: float) -> State:
    """A state on the way to the landing, off the straight line that a screen would see, by as much as a piece is long.

    Counters are those of honest steps.
    """
    found = dict(own.tensors)
    for key, tensor in own.tensors.items():
        if tensor.is_floating_point():
            way = (landed[key].double() - tensor.double()).square().mean().sqrt()
            aside = bend * way * torch.randn(tensor.shape, generator=draws, dtype=torch.float64)
            found[key] = (between(tensor, landed[key], share).double() + aside).to(tensor.dtype)
    return State(found)


ATTACKS = (
    Attack(
        "spliced",
        "own run, one jump, and an honest step that lands on stolen weights exactly",
        "thief",
        spliced,
        study=("A8", "A7"),
    ),
    Attack(
        "spliced-interval",
        "the same with a longer honest interval after the jump",
        "thief",
        spliced_interval,
        study=("A8", "A7"),
    ),
    Attack(
        "spliced-momentum",
        "own run whose last momentum throws it at stolen weights",
        "thief",
        spliced_momentum,
        study=("A8", "T18", "I2"),
    ),
    Attack(
        "spliced-hidden",
        "a splice whose jump is where the policy's challenge looks least",
        "thief",
        spliced_hidden,
        study=("A8", "A10"),
        adapts=True,
    ),
)
