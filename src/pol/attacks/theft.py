"""A thief has a complete proof and its model, and claims them under his own key."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pol.attacks.attack import Attack
from pol.attacks.interpolation import EMPTY
from pol.attacks.workshop import Workshop


def signed_again(workshop: Workshop, out: Path) -> None:
    """All of another's proof, with the thief's key in genesis and attestation."""
    workshop.open().seal(out, workshop.key)


def attested_again(workshop: Workshop, out: Path) -> None:
    """Another's proof under its own genesis, with an attestation of the thief's."""
    workshop.open().seal(out, workshop.key, claim=False)


def stolen_start(workshop: Workshop, out: Path) -> None:
    """A run of one's own that starts from the stolen weights, and is honest from there."""
    forger = workshop.begin()
    forger.states[0] = workshop.dressed(forger.states[0])
    workshop.train(forger)
    forger.seal(out, workshop.key)


def zero_steps(workshop: Workshop, out: Path) -> None:
    """A training of no steps, whose first and only state is the stolen one."""
    forger = workshop.begin()
    spec = msgspec.structs.replace(forger.genesis.spec, steps=0)
    forger.genesis = msgspec.structs.replace(forger.genesis, spec=spec)
    forger.states[0] = workshop.dressed(forger.states[0])
    forger.kept = [0]
    forger.seal(out, workshop.key)


ATTACKS = (
    Attack("signed-again", "another's proof under the thief's key", "thief", signed_again, study=("T13",)),
    Attack("attested-again", "another's genesis with the thief's attestation", "thief", attested_again, study=("T13",)),
    Attack("stolen-start", "honest training that starts from stolen weights", "thief", stolen_start, study=("T12",)),
    Attack(
        "zero-steps",
        "stolen weights after a training of no steps",
        "thief",
        zero_steps,
        study=("T20", "I6"),
        reported=EMPTY,
    ),
)
