"""Every step is taken, and every state then moved: settings of the forger's choice leave it the room for that."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

from pol import canonical
from pol.attacks.attack import Attack
from pol.attacks.forger import Forger
from pol.attacks.interpolation import between
from pol.attacks.needs import DoesNotApply
from pol.attacks.workshop import Workshop
from pol.proof.genesis import boundaries
from pol.replay.state import State

RELATIVE, ABSOLUTE = 1e-3, 3e-5
"""Limits of the preset policy ``tolerance``."""

SHARE = 0.95
"""How much of a limit is used."""

LOOSE = 1e-2
"""A limit of 1 % of each move, which sounds strict."""

TINY = 1e-5
"""A learning rate at which the steps of a whole run do not show."""

HUGE_DECAY = {"lr": 1e-6, "weight_decay": 2e6, "momentum": 0.0}
"""lr * weight_decay = 2: every honest step turns the weights over, whatever the gradient."""

TURNS = 134
"""Steps at least: 78 limits of 1 % of so large moves carried weights all the way (attack study, A19), here some 140."""

Move = Callable[[str, int, torch.Tensor, torch.Tensor], torch.Tensor]


def steered(workshop: Workshop, forger: Forger, move: Move) -> None:
    """Take the steps of each interval, and go on from an end state with other parameters.

    ``move`` gives them, from the key, the step, and the values at the start and the honest end of the interval.
    """
    for before, after in pairwise(boundaries(forger.genesis.spec)):
        workshop.train(forger, before, after)
        start, end = forger.states[before].tensors, forger.states[after].tensors
        moved = {k: move(k, after, start[k], t) for k, t in end.items() if k.startswith("parameter/")}
        forger.states[after] = State({**end, **moved})


def towards(end: torch.Tensor, aim: torch.Tensor, most: float) -> torch.Tensor:
    """``end``, moved towards ``aim`` by at most ``most``."""
    way = aim.double() - end.double()
    length = float(way.norm())
    return aim.clone() if length <= most else (end.double() + way * (most / length)).to(end.dtype)


def around(end: torch.Tensor, aim: torch.Tensor) -> torch.Tensor:
    """A nearer aim, where ``aim`` lies beyond zero: near zero, moves are small, and so is what limits leave of them."""
    wide, far = end.double(), aim.double()
    along = float((wide * far).sum())
    return aim if along >= 0 else (wide + far - wide * (along / float(wide.square().sum()))).to(end.dtype)


def tiny_rate(workshop: Workshop, out: Path) -> None:
    """A registered learning rate so small that steps do not show, and a straight line to the stolen weights (A4)."""
    workshop.configured(workshop.open(), "lr")
    forger, stolen = workshop.begin(settings={"lr": TINY}), workshop.stolen().tensors
    first = forger.states[0].tensors

    def move(key: str, step: int, _: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        return between(first[key], stolen[key], step / forger.steps)

    steered(workshop, forger, move)
    forger.seal(out, workshop.key)


def turnable(target: Forger) -> bool:
    """Whether decay alone can turn weights over at every step: plain SGD, at one rate from first to last.

    Where a schedule lowers the rate, a step shrinks the weights instead, and a run of such steps leaves none.
    """
    parts = target.genesis.spec.declaration.parts
    plain = {"nesterov": False, "maximize": False, "dampening": 0}
    groups = [group.hyperparameters for part in parts for group in part.groups]
    return (
        not any(part.kind == "schedule" for part in parts)
        and all(part.type == "torch.optim.sgd.SGD" for part in parts if part.kind == "optimizer")
        and all(canonical.untag(g.get(name), name) == value for g in groups for name, value in plain.items())
    )


def huge_decay(workshop: Workshop, out: Path) -> None:
    """Registered weight decay that turns the weights over at every step: 1 % of that goes anywhere (A19)."""
    target = workshop.open()
    for name in HUGE_DECAY:
        workshop.configured(target, name)
    if not turnable(target):
        raise DoesNotApply("this attack needs plain SGD without a schedule: only then does each step turn weights over")
    settings, stolen = dict(HUGE_DECAY), workshop.stolen().tensors
    if "num_epochs" in target.genesis.recipe.configuration:
        declaration = target.genesis.spec.declaration
        per_epoch = declaration.steps_per_epoch(target.genesis.spec.batches_per_step)
        settings["num_epochs"] = max(declaration.epochs, -(-TURNS // per_epoch))
    forger = workshop.begin(settings=settings, every=1)

    def move(key: str, step: int, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        sign = -1 if (forger.steps - step) % 2 else 1  # so that the last step turns them the right way
        most = LOOSE * float((end.double() - start.double()).norm())
        aim = torch.where(
            end == start, end, around(end, sign * stolen[key])
        )  # what stands still is compared bit for bit
        moved = towards(end, aim, SHARE * most)
        # Of numbers so small that rounding is as large as they are, a move may be longer than it should.
        return moved if float((moved.double() - end.double()).norm()) <= most else end

    steered(workshop, forger, move)
    forger.seal(out, workshop.key)


ATTACKS = (
    Attack(
        "tiny-rate",
        "a registered rate of almost 0 and a straight line to stolen weights",
        "thief",
        tiny_rate,
        study=("A4", "T11"),
        reported="passes for every k and every delta > 0 (Fang et al., EuroS&P 2023)",
    ),
    Attack(
        "huge-decay",
        "registered weight decay that makes every move, and 1 % of it, huge",
        "thief",
        huge_decay,
        study=("A19", "T11"),
        reported="all the way to stolen weights in 78 intervals of one step, rho at most 0.0090 (attack study, A19)",
    ),
)
