"""A prover changes numbers of its finished proof in ways that a careless comparison does not see."""

from __future__ import annotations

from pathlib import Path

import torch

from pol.attacks.attack import Attack
from pol.attacks.forger import Forger
from pol.attacks.needs import DoesNotApply
from pol.attacks.workshop import Workshop

TRUE, FALSE = 0.5, 0.49
"""Shares of the true and of random weights of the same norm: a cosine whose denominator is wrong is fooled (I7)."""


def half_precision(workshop: Workshop, out: Path) -> None:
    """Every later checkpoint rounded to half precision, as a verifier that compares in half precision would not see."""
    forger = workshop.open()
    for step in forger.kept[1:]:
        tensors = forger.states[step].tensors
        for key, tensor in tensors.items():
            if tensor.dtype == torch.float32:
                tensors[key] = tensor.half().float()
    forger.seal(out, workshop.key)


def scaled_copy(workshop: Workshop, out: Path) -> None:
    """Half of the last weights, and as much noise of their norm."""
    forger = workshop.open()
    generator, last = workshop.noise(forger), forger.states[forger.steps].tensors
    for key, tensor in last.items():
        if key.startswith("parameter/"):
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            wide = tensor.double()
            last[key] = (TRUE * wide + FALSE * drawn * (wide.norm() / drawn.norm())).to(tensor.dtype)
    forger.seal(out, workshop.key)


def infinite_buffers(workshop: Workshop, out: Path) -> None:
    """Infinite running statistics in the last checkpoint: a distance to infinity is not above any limit either."""
    forger = workshop.open()
    for key in _buffers(forger, floating=True):
        tensor = forger.states[forger.steps].tensors[key]
        forger.states[forger.steps].tensors[key] = torch.full_like(tensor, torch.inf)
    forger.seal(out, workshop.key)


def other_counters(workshop: Workshop, out: Path) -> None:
    """Counters in the last checkpoint are one higher: it has seen a batch more than the log names."""
    forger = workshop.open()
    for key in _buffers(forger, floating=False):
        forger.states[forger.steps].tensors[key] += 1
    forger.seal(out, workshop.key)


def _buffers(forger: Forger, *, floating: bool) -> list[str]:
    last = forger.states[forger.steps].tensors
    found = [k for k, t in last.items() if k.startswith("buffer/") and t.is_floating_point() == floating]
    if not found:
        raise DoesNotApply("this attack needs a model with buffers")
    return found


_PARAMETERS = "the released code compares parameters alone (attack study, I4)"

ATTACKS = (
    Attack(
        "half-precision",
        "checkpoints rounded to half precision",
        "prover",
        half_precision,
        study=("T16",),
        reported="rho 0.07 to 0.92 for a bfloat16 replay of a float32 run (attack study, section 1)",
    ),
    Attack(
        "scaled-copy",
        "half of the last weights, and noise",
        "prover",
        scaled_copy,
        study=("T16", "I7"),
        reported="half the weights and 0.49 of noise: cosine distance -0.02, accepted where it alone judges (attack "
        "study, I7)",
    ),
    Attack(
        "infinite-buffers",
        "infinite running statistics in the last checkpoint",
        "prover",
        infinite_buffers,
        study=("T17", "T19"),
        reported=_PARAMETERS,
    ),
    Attack(
        "other-counters",
        "other batch counters in the last checkpoint",
        "prover",
        other_counters,
        study=("T17",),
        reported=_PARAMETERS,
    ),
)
