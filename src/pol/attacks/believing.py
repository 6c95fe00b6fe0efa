"""Forgeries for the verification of 2021: it believes the rates of the log, and can be seen to look away.

No step is taken. At a logged rate of 0 a replay stays where it begins, so all that it finds is the move.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import torch

from pol.attacks.deltas import deltas
from pol.attacks.forger import Forger
from pol.attacks.interpolation import straight
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
    needed = pieces(ground.fresh, ground.stolen, deltas(ground.policy))
    size = sum(tensor.nbytes for tensor in ground.stolen.tensors.values())
    free = ground.takes("num_epochs")
    epochs = max(ground.target.genesis.spec.declaration.epochs, -(-needed // ground.epoch)) if free else 0
    steps = epochs * ground.epoch if free else ground.target.steps
    if needed > steps or steps * size > MEMORY:
        return []

    def make(workshop: Workshop, out: Path) -> None:
        forger = _begun(ground, workshop, {"num_epochs": epochs} if free else {}, 1)
        straight(forger, workshop.stolen())
        forger.seal(out, workshop.key)

    return [_plan(ground, "pieces", steps, make)]


def pieces(first: State, last: State, deltas: dict[str, float]) -> int:
    """How many equal pieces of the straight line between two states are each below every delta."""
    keys = [key for key in last.tensors if key.startswith("parameter/") and first.tensors.keys() >= {key}]
    a, b = (torch.cat([state.tensors[key].double().flatten() for key in keys]) for state in (first, last))
    way = (b - a).abs()
    whole = {"l1": float(way.sum()), "l2": float(way.norm()), "linf": float(way.max())}
    found = [whole[name] / (SHARE * delta) if delta else math.inf for name, delta in deltas.items() if name in whole]
    if "cos" in deltas:
        found.append(_turns(a, b) / math.acos(1 - min(1.0, SHARE * deltas["cos"])) if deltas["cos"] else math.inf)
    most = max(found, default=1.0)
    return math.ceil(most) if math.isfinite(most) else MEMORY


def _turns(a: torch.Tensor, b: torch.Tensor) -> float:
    """How many pieces of one radian the fastest turn of the line would fill: its length over its least distance."""
    way = b - a
    share = float(-(a * way).sum() / way.square().sum().clamp_min(1e-300))
    nearest = float((a + min(1.0, max(0.0, share)) * way).norm())
    return float(way.norm()) / nearest if nearest else math.inf


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
