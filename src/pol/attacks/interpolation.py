"""A thief draws a first state of his own and bridges the way to the stolen weights without training."""

from __future__ import annotations

from pathlib import Path

import torch

from pol.attacks.attack import Attack
from pol.attacks.forger import Forger
from pol.attacks.workshop import Workshop
from pol.proof.genesis import boundaries
from pol.replay.state import State


def _bridge(workshop: Workshop) -> tuple[Forger, list[int], State, State]:
    """A run of one's own with an honest first state and a log that is true wherever that is cheap."""
    forger = workshop.begin()
    workshop.pretend(forger)
    stolen = workshop.stolen()
    forger.states[forger.steps] = stolen
    return forger, boundaries(forger.genesis.spec), forger.states[0], stolen


def random_checkpoints(workshop: Workshop, out: Path) -> None:
    """Noise between the fresh start and the stolen weights."""
    forger, steps, _, stolen = _bridge(workshop)
    noise = workshop.noise(forger)
    for step in steps[1:-1]:
        forger.states[step] = State({key: _noise(tensor, noise) for key, tensor in stolen.tensors.items()})
    forger.seal(out, workshop.key)


def _noise(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not like.is_floating_point():
        return like.clone()
    drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64) * float(like.double().std(correction=0))
    return drawn.to(like.dtype)


def interpolation(workshop: Workshop, out: Path) -> None:
    """Checkpoints on the straight line from the fresh start to the stolen weights (attack study, A4)."""
    _interpolated(workshop).seal(out, workshop.key)


def _interpolated(workshop: Workshop) -> Forger:
    forger, _, _, stolen = _bridge(workshop)
    straight(forger, stolen)
    return forger


def straight(forger: Forger, stolen: State) -> None:
    """All states after the first on the straight line from it to the stolen one."""
    first = forger.states[0]
    forger.states[forger.steps] = stolen
    for step in boundaries(forger.genesis.spec)[1:-1]:
        share = step / forger.steps
        forger.states[step] = State(
            {
                key: between(first.tensors[key], tensor, share) if key in first.tensors else tensor.clone()
                for key, tensor in stolen.tensors.items()
            }
        )


def between(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """A point on the straight line from ``a`` to ``b``; tensors of different shapes have none between them."""
    if a.shape != b.shape:
        return b.clone()
    # Values of another kind than floating point (counters) go along rounded; infinities stay where they are.
    middle = torch.lerp(a.double(), b.double(), share)
    return torch.where(a == b, a, middle.to(a.dtype))


def nan_bridge(workshop: Workshop, out: Path) -> None:
    """NaN between the fresh start and the stolen weights: no distance to NaN is above any limit."""
    forger, steps, _, stolen = _bridge(workshop)
    for step in steps[1:-1]:
        forger.states[step] = State(
            {key: torch.full_like(t, torch.nan) if t.is_floating_point() else t for key, t in stolen.tensors.items()}
        )
    forger.seal(out, workshop.key)


def own_run(workshop: Workshop, out: Path) -> None:
    """A complete honest run of one's own, whose last state is the stolen one."""
    forger = workshop.record()
    forger.states[forger.steps] = workshop.stolen()
    forger.seal(out, workshop.key)


def no_intervals(workshop: Workshop, out: Path) -> None:
    """A proof of the stolen weights without a single interval: nothing to replay, so nothing fails."""
    forger = workshop.begin()
    forger.states[0] = workshop.dressed(forger.states[0])
    forger.kept = [0]
    forger.seal(out, workshop.key)


def no_checkpoints(workshop: Workshop, out: Path) -> None:
    """The straight line again, with its log and no checkpoint to replay from."""
    forger = _interpolated(workshop)
    forger.kept = []
    forger.seal(out, workshop.key)


EMPTY = "an empty proof is accepted by the released code, which then compares nothing (attack study, I6)"
"""Reported of both proofs without a step."""

ATTACKS = (
    Attack(
        "random-checkpoints",
        "noise between a fresh start and stolen weights",
        "thief",
        random_checkpoints,
        study=("T1",),
        reported="met by any replay (attack study, T1)",
    ),
    Attack(
        "own-run-stolen-end",
        "stolen weights after an honest run of one's own",
        "thief",
        own_run,
        study=("A8", "T4"),
        reported="met if the jump is among the largest; top-Q of the released code may skip the tail (attack study, "
        "T4)",
    ),
    Attack(
        "interpolation",
        "straight line from a fresh start to stolen weights",
        "thief",
        interpolation,
        study=("A4", "T3"),
        reported="rho 0.9 to 1; passes if delta is large enough (attack study, section 1 and T3)",
    ),
    Attack(
        "nan-bridge",
        "NaN between a fresh start and stolen weights",
        "thief",
        nan_bridge,
        study=("T19", "I1"),
        reported="two intervals, accepted by verify_all and verify_topq of the released code, accuracy 0.956 (attack "
        "study, I1)",
    ),
    Attack(
        "no-intervals",
        "stolen weights with an empty log",
        "thief",
        no_intervals,
        study=("T20", "I6"),
        reported=EMPTY,
    ),
    Attack(
        "no-checkpoints", "stolen weights with a log but no checkpoints", "thief", no_checkpoints, study=("T3", "T20")
    ),
)
