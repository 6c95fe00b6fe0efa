"""Weights that stand still, since a learning rate of zero explains them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from pol import canonical
from pol.attacks.attack import Attack
from pol.attacks.forger import Forger
from pol.attacks.workshop import Workshop
from pol.proof.genesis import boundaries


def constant_weights(workshop: Workshop, out: Path) -> None:
    """The first state again and again, with learning rates of 0 in the log; no step is taken."""
    forger = workshop.begin()
    workshop.pretend(forger)
    _log_zero(forger)
    for step in boundaries(forger.genesis.spec)[1:]:
        forger.states[step] = forger.states[0]
    forger.seal(out, workshop.key)


def zero_rate(workshop: Workshop, out: Path) -> None:
    """Steps at a learning rate of 0, which stands in the log and in the optimizer's value of every later checkpoint."""
    forger = workshop.begin()
    workshop.configured(forger, "lr")
    workshop.train(forger, settings={"lr": 0.0})
    _log_zero(forger)
    groups = next(part.groups for part in forger.genesis.spec.declaration.parts if part.groups)
    value = canonical.encode({"groups": [{"lr": canonical.tag(0.0)} for _ in groups], "state": []})
    for step in forger.kept[1:]:
        held = torch.frombuffer(bytearray(value), dtype=torch.uint8)
        forger.states[step].tensors["value/optimizer"] = held
    forger.seal(out, workshop.key)


def _log_zero(forger: Forger) -> None:
    """Every learning rate in the log is 0."""
    for index, record in enumerate(forger.intervals):
        rates = [msgspec.structs.replace(r, values=[repr(0.0)] * len(r.values)) for r in record.learning_rates]
        forger.replace(index, learning_rates=rates)


ATTACKS = (
    Attack(
        "constant-weights",
        "the first state again and again, at logged rates of 0",
        "thief",
        constant_weights,
        study=("T2",),
        reported="distance 0 at a logged rate of 0 (attack study, T2)",
    ),
    Attack(
        "zero-rate",
        "a learning rate of 0 in the checkpoints' optimizer",
        "thief",
        zero_rate,
        study=("I3",),
        reported="a rate of 0 in every checkpoint, weights that stand still: accepted by the released code (attack "
        "study, I3)",
    ),
)
