"""First weights from elsewhere, which a genesis may name: those that are known already, in various clothes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pol.attacks.attack import Attack
from pol.attacks.forger import Forger
from pol.attacks.interpolation import straight
from pol.attacks.workshop import Initialisation, Workshop
from pol.replay.state import State

NOISE = 0.1
"""Of the noise on stolen weights, as a share of each tensor's own standard deviation: little of the model is lost."""

Dress = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]


def begun(
    workshop: Workshop, dress: Dress, initialisation: Initialisation = "observed", *,
    settings: dict[str, Any] | None = None, every: int | None = None,
) -> Forger:  # fmt: skip
    """A run that may start anywhere: ``dress`` makes each weight or buffer of it from a fresh and a stolen one.

    The other arguments are those of ``Workshop.begin``.
    """
    forger = workshop.begin(settings, every)
    workshop.randomise(forger, initialisation)
    stolen, weights = workshop.stolen().tensors, ("parameter/", "buffer/")
    fresh = forger.states[0].tensors
    forger.states[0] = State({k: dress(k, t, stolen[k]) if k.startswith(weights) else t for k, t in fresh.items()})
    return forger


def stolen_base(workshop: Workshop, out: Path) -> None:
    """Honest training from the stolen weights, named as an initialisation from elsewhere."""
    forger = begun(workshop, lambda _, fresh, stolen: stolen)
    workshop.train(forger)
    forger.seal(out, workshop.key)


def stolen_given(workshop: Workshop, out: Path) -> None:
    """The same, and the genesis says that the verifier gave them out."""
    forger = begun(workshop, lambda _, fresh, stolen: stolen, "given")
    workshop.train(forger)
    forger.seal(out, workshop.key)


def noisy_start(workshop: Workshop, out: Path) -> None:
    """Honest training from the stolen weights under a little noise (attack study, T12)."""
    generator = torch.Generator().manual_seed(0)

    def noisy(_: str, fresh: torch.Tensor, stolen: torch.Tensor) -> torch.Tensor:
        if not stolen.is_floating_point():
            return stolen
        drawn = torch.randn(stolen.shape, generator=generator, dtype=torch.float64)
        wide = stolen.double()
        return (wide + NOISE * wide.std(correction=0) * drawn).to(stolen.dtype)

    forger = begun(workshop, noisy)
    workshop.train(forger)
    forger.seal(out, workshop.key)


def untested_tensors(workshop: Workshop, out: Path) -> None:
    """Stolen values only where the verification of 2021 does not look: norms, biases, embeddings, buffers (I10)."""

    def hidden(key: str, fresh: torch.Tensor, stolen: torch.Tensor) -> torch.Tensor:
        return stolen if stolen.dim() < 2 or "emb" in key else fresh

    forger = begun(workshop, hidden)
    workshop.train(forger)
    forger.seal(out, workshop.key)


def matched(key: str, fresh: torch.Tensor, stolen: torch.Tensor) -> torch.Tensor:
    """A fresh draw laid out in the order of a stolen tensor: as near to it as draws can be (attack study, A6).

    A test of the distribution sees nothing. Code released with a later attack gathered where it has to scatter, which
    gains nothing.
    """
    if not key.startswith("parameter/"):
        return fresh
    values = torch.empty_like(fresh).flatten()
    values[stolen.flatten().argsort()] = fresh.flatten().sort().values
    return values.reshape(fresh.shape)


def matched_start(workshop: Workshop, out: Path) -> None:
    """Fresh draws laid out in the order of the stolen weights, and a straight line from there (attack study, A6)."""
    forger = begun(workshop, matched)
    workshop.pretend(forger)
    straight(forger, workshop.stolen())
    forger.seal(out, workshop.key)


ATTACKS = (
    Attack("stolen-base", "stolen weights named as a start from elsewhere", "thief", stolen_base, study=("T12",)),
    Attack(
        "stolen-given",
        "stolen weights named as those the verifier gave out",
        "thief",
        stolen_given,
        study=("T12",),
        given=True,
    ),
    Attack(
        "noisy-start",
        "stolen weights under noise as a start from elsewhere",
        "thief",
        noisy_start,
        study=("T12",),
        reported="the test of first weights may pass for small layers (attack study, T12)",
    ),
    Attack(
        "untested-tensors",
        "stolen values in norms, biases and buffers of the start",
        "thief",
        untested_tensors,
        study=("I10",),
        reported="layers without fc, conv or linear in their names are not tested (attack study, I10)",
    ),
    Attack(
        "matched-start",
        "fresh draws in the order of stolen weights, then a straight line",
        "thief",
        matched_start,
        study=("A6",),
        reported="distance from the stolen weights 12.2 to 5.5, and the test of first weights passes with p = 0.23 "
        "(attack study, A6)",
    ),
)
