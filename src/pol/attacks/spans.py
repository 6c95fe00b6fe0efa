"""Intervals of another length than they should have."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pol.attacks.attack import Attack
from pol.attacks.workshop import Workshop


def long_interval(workshop: Workshop, out: Path) -> None:
    """One interval from a fresh start to the stolen weights: over so many steps a tolerance would have to be wide."""
    steps = workshop.open().steps
    forger = workshop.begin(every=steps)
    workshop.train(forger)
    forger.states[steps] = workshop.stolen()
    forger.seal(out, workshop.key)


def other_length(workshop: Workshop, out: Path) -> None:
    """An honest log whose spec names shorter intervals; longer ones where there are none."""
    forger = workshop.open()
    every = forger.genesis.spec.every
    spec = msgspec.structs.replace(forger.genesis.spec, every=every - 1 if every > 1 else every + 1)
    forger.genesis = msgspec.structs.replace(forger.genesis, spec=spec)
    forger.seal(out, workshop.key)


ATTACKS = (
    Attack(
        "long-interval",
        "one interval from a fresh start to stolen weights",
        "thief",
        long_interval,
        study=("T16",),
        reported="rho of honest replays on other kernels is 1.5e-6 at k = 10 and 1e-2 at k = 200 (attack study, "
        "section 1)",
    ),
    Attack("other-length", "intervals of another length than the spec names", "prover", other_length, study=("T20",)),
)
