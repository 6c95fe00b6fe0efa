"""Forgeries for the verification of 2021: it believes the rates of the log, and can be seen to look away.

No step is taken. At a logged rate of 0 a replay stays where it begins, so all that it finds is the move.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import torch

from pol.attacks.deltas import deltas
from pol.attacks.forger import Forger
from pol.attacks.interpolation import straight
from pol.attacks.lines import MOST, pieces
from pol.attacks.planning import MEMORY, Ground, Plan, begin, pass_by
from pol.attacks.workshop import Workshop
from pol.proof.genesis import boundaries
from pol.replay.state import State
from pol.verifier.paper_audit import windows

SHARE = 0.9
"""How much of a delta a piece uses: the first weights that the forger will draw are not known yet."""


def plans(ground: Ground) -> list[Plan]:
    """Small pieces, an end where nobody looks, and a way on which no distance is above anything."""
    return [*_pieces(ground), *_unseen(ground), _no_number(ground)]


def _plan(ground: Ground, name: str, intervals: int, make: Any) -> Plan:
    """All of these are accepted, unless honest first weights fail the test of them: at its level, by chance."""
    assert ground.policy.paper is not None
    control = ground.control(ground.target.steps)
    return Plan(name, 1 - ground.policy.paper.level, True, control, intervals, tuple(range(intervals)), make)


def _begun(ground: Ground, workshop: Workshop, settings: dict[str, Any], every: int) -> Forger:
    """Honest first weights, and records of true batches with rates of 0 and the losses of the target."""
    forger = begin(ground, workshop, settings, every)
    pass_by(workshop, forger)
    claimed = [found.loss for found in workshop.open().intervals]
    for index, record in enumerate(forger.intervals):
        rates = [msgspec.structs.replace(r, values=[repr(0.0)] * len(r.values)) for r in record.learning_rates]
        loss = claimed[index * len(claimed) // len(forger.intervals)]
        forger.replace(index, learning_rates=rates, loss=record.loss if loss is None else loss)
    return forger


# -- pieces below every delta (A4) -----------------------------------------------------------------------------------


def _pieces(ground: Ground) -> list[Plan]:
    needed = pieces(ground.fresh, ground.stolen, deltas(ground.policy), SHARE)
    size = sum(tensor.nbytes for tensor in ground.stolen.tensors.values())
    free = ground.takes("num_epochs")
    epochs = max(ground.target.genesis.spec.declaration.epochs, -(-needed // ground.epoch)) if free else 0
    steps = epochs * ground.epoch if free else ground.target.steps
    if needed > min(steps, MOST) or steps * size > MEMORY:
        return []

    def make(workshop: Workshop, out: Path) -> None:
        forger = _begun(ground, workshop, {"num_epochs": epochs} if free else {}, 1)
        straight(forger, workshop.stolen())
        forger.seal(out, workshop.key)

    return [_plan(ground, "pieces", steps, make)]


# -- an end in no window (I5) ------------------------------------------------------------------------------------------


def _unseen(ground: Ground) -> list[Plan]:
    assert ground.policy.paper is not None
    if ground.policy.paper.top == 0:
        return []
    spec = ground.target.genesis.spec
    for every in range(1, spec.steps + 1):
        count = -(-spec.steps // every)
        if all(count - 1 not in window for window in windows(spec.steps, spec.declaration.epochs, every)):
            break
    else:
        return []

    def make(workshop: Workshop, out: Path) -> None:
        forger = _begun(ground, workshop, {}, every)
        forger.states[forger.steps] = workshop.stolen()
        forger.seal(out, workshop.key)

    return [_plan(ground, "unseen end", count, make)]


# -- no number (I1) ----------------------------------------------------------------------------------------------------


def _no_number(ground: Ground) -> Plan:
    every = max(1, ground.target.steps // 2)

    def make(workshop: Workshop, out: Path) -> None:
        forger = _begun(ground, workshop, {}, every)
        stolen = workshop.stolen()
        for step, _ in pairwise(boundaries(forger.genesis.spec)[1:]):
            forger.states[step] = State(
                {k: torch.full_like(t, torch.nan) if t.is_floating_point() else t for k, t in stolen.tensors.items()}
            )
        forger.states[forger.steps] = stolen
        forger.seal(out, workshop.key)

    return _plan(ground, "no number", -(-ground.target.steps // every), make)
