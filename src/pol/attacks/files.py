"""Code and paths where data belongs: what a careless reader would run, or follow out of the proof.

The code is harmless: it notes that it was run.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from pol.attacks.attack import Attack
from pol.attacks.forger import Forger
from pol.attacks.workshop import Workshop
from pol.store import checkpoint_path

RUN: list[str] = []
"""What was run that never should be."""

PICKLE = f"c{__name__}\nnote\n(S'a pickle'\ntR.".encode()
"""A pickle that calls ``note`` when it is read; written out, since this package does not import the module."""

CODE = f"__import__({__name__!r}, fromlist=['RUN']).note('a name')"
"""What a verifier that evaluates the name of a recipe would run."""

OUTSIDE = "../outside"


def note(what: str) -> None:
    """Note that code out of a proof was run."""
    RUN.append(what)


def pickled_checkpoint(workshop: Workshop, out: Path) -> None:
    """A pickle in the place of a checkpoint, listed and signed."""
    forger = workshop.open()
    forger.files[checkpoint_path(_middle(forger))] = PICKLE
    forger.seal(out, workshop.key)


def named_code(workshop: Workshop, out: Path) -> None:
    """An honest run of one's own whose recipe is named by an expression that does something."""
    forger = workshop.begin()
    named = msgspec.structs.replace(forger.genesis.recipe, name=CODE)
    forger.genesis = msgspec.structs.replace(forger.genesis, recipe=named)
    workshop.first_state(forger)
    workshop.train(forger)
    forger.seal(out, workshop.key)


def outside_name(workshop: Workshop, out: Path) -> None:
    """The attestation lists a file outside of the proof, by a path that leads there."""
    forger = workshop.open()
    forger.listed[OUTSIDE] = "00" * 32
    forger.seal(out, workshop.key)


def linked_checkpoint(workshop: Workshop, out: Path) -> None:
    """A checkpoint that is a link to another file on the verifier's machine."""
    forger = workshop.open()
    forger.seal(out, workshop.key)
    name = checkpoint_path(_middle(forger))
    (out / name).unlink()
    (out / name).symlink_to((workshop.target / name).absolute())


def _middle(forger: Forger) -> int:
    return forger.kept[len(forger.kept) // 2]


ATTACKS = (
    Attack(
        "pickled-checkpoint",
        "a pickle in the place of a checkpoint",
        "prover",
        pickled_checkpoint,
        study=("T22", "I9"),
        reported="code of the proof is run by torch.load of the released code (attack study, I9)",
    ),
    Attack(
        "named-code",
        "a recipe whose name is code",
        "thief",
        named_code,
        study=("T22", "I9"),
        reported="code of the proof is run by eval of the released code (attack study, I9)",
    ),
    Attack("outside-name", "an attested path that leads out of the proof", "prover", outside_name, study=("T22",)),
    Attack("linked-checkpoint", "a link in the place of a checkpoint", "prover", linked_checkpoint, study=("T22",)),
)
