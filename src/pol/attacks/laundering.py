"""What is true of another model: one's own training, of the public recipe or of one that brings stolen weights in.

No step of these is a lie, and no replay can say otherwise. What comes in where a verifier looks (files that a build
reads, first weights, frozen bases) is refused; what is in the text of a program is for those who read it, and whoever
names a recipe says that it has (attack study, A17 and T25).
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.torch import save
from torch import Tensor

from pol.attacks import laundries
from pol.attacks.attack import Attack
from pol.attacks.laundries import Laundry
from pol.attacks.publishing import publish, released
from pol.attacks.workshop import Workshop
from pol.replay import recipe as recipes
from pol.replay.data import default_collate
from pol.replay.parts import Attached

MODEL, LABELS = "model.safetensors", "labels.npy"
"""What is published beside a program."""

BATCH = 256
"""Samples that are labelled at a time; of any size the classes are the same but for rounding."""

READ = "the program does what its text says, and who names a recipe says to have read it"


def retrained(workshop: Workshop, out: Path) -> None:
    """An honest run of the public recipe under a key of one's own: it ends at another model."""
    workshop.record().seal(out, workshop.key)


def distilled(workshop: Workshop, out: Path) -> None:
    """A fresh start honestly learns what the stolen model says of the public samples; its classes are committed."""
    recipe, configuration = recipes.load(workshop.recipe), workshop.open().genesis.recipe.configuration
    made = recipes.make(recipe, configuration)
    data, part = made.data(), released(workshop)
    label, parts = laundries.label_of(data[0]), Attached(**made.build())
    laundries.put({part: parts[part]}, _stolen(workshop))
    parts[part].eval()
    starts = range(0, len(data), BATCH)
    batches = (default_collate([data[i] for i in range(at, min(at + BATCH, len(data)))]) for at in starts)
    said = [laundries.classes(made, parts, part, batch).numpy() for batch in batches]
    folder = publish(workshop, out, laundries.Relabelled, {"LABELS": LABELS}, {"LABEL": label})
    np.save(folder / LABELS, np.concatenate(said))
    workshop.record().seal(out, workshop.key)


def _launder(base: type[Laundry], *, text: bool = False, late: bool = False) -> Callable[[Workshop, Path], None]:
    """An honest run of a program that brings the stolen weights in: in its text, or in a file that it reads."""

    def make(workshop: Workshop, out: Path) -> None:
        constants: dict[str, object] = {"LATE": late, "PART": released(workshop)}
        if issubclass(base, laundries.Taught):
            constants["LABEL"] = laundries.label_of(workshop.data(workshop.open())[0])
        model = save(_stolen(workshop))
        if text:
            publish(workshop, out, base, {}, {**constants, "TEXT": base64.b64encode(model).decode()})
        else:
            (publish(workshop, out, base, {"FILE": MODEL}, constants) / MODEL).write_bytes(model)
        workshop.record().seal(out, workshop.key)

    return make


def _stolen(workshop: Workshop) -> dict[str, Tensor]:
    kinds = ("parameter/", "buffer/", "transient/")
    tensors = workshop.stolen().tensors
    return {key.partition("/")[2]: tensor.contiguous() for key, tensor in tensors.items() if key.startswith(kinds)}


_GENUINE = "no step is forged, so nothing can refuse it as a proof of what it says (attack study, A17)"
_DECLARED = "accepted if it is declared (attack study, A9)"

ATTACKS = (
    Attack(
        "retrained",
        "the public recipe, trained under a key of one's own",
        "thief",
        retrained,
        study=("A17",),
        survives="it is an honest proof, and of another model: nothing is claimed that is not so",
        reported=_GENUINE,
    ),
    Attack(
        "distilled",
        "a fresh start, trained on the stolen model's own labels of the data",
        "thief",
        distilled,
        study=("A17", "T25"),
        reported=_GENUINE,
        survives="nothing of the stolen model is in the training but what it said, which is data like any other",
    ),
    Attack(
        "pretrained-file",
        "a program that starts from a file of stolen weights",
        "thief",
        _launder(laundries.Pretrained),
        study=("A17", "T12", "T25"),
        reported=_GENUINE,
    ),
    Attack(
        "pretrained-text",
        "a program that starts from stolen weights in its text",
        "thief",
        _launder(laundries.Pretrained, text=True),
        study=("A17", "T12", "T25"),
        reported=_GENUINE,
    ),
    Attack(
        "disguised-text",
        "a program that starts from stolen weights in its text, their units in a drawn order",
        "thief",
        _launder(laundries.Disguised, text=True),
        study=("A17", "T12", "T25"),
        reported=_GENUINE,
        survives=READ + "; to two builds the same function looks like two draws",
    ),
    Attack(
        "anchor-file",
        "a program that decays to a file of stolen weights",
        "thief",
        _launder(laundries.Anchored),
        study=("A9", "T25"),
        reported=_DECLARED,
    ),
    Attack(
        "anchor-text",
        "a program that decays to stolen weights in its text",
        "thief",
        _launder(laundries.Anchored, text=True),
        study=("A9", "T25"),
        survives=READ,
        reported=_DECLARED,
    ),
    Attack(
        "anchor-buffers",
        "a program that decays to stolen weights among its buffers",
        "thief",
        _launder(laundries.Buffered, text=True),
        study=("A9", "T25"),
        survives=READ + "; policies take constant buffers, since masks and tables are such",
        reported=_DECLARED,
    ),
    Attack(
        "late-merge",
        "a program that reads stolen weights after its last step, and ends there",
        "thief",
        _launder(laundries.Merged, late=True),
        study=("T25",),
        survives=READ + "; what a program reads after it has built its parts may be data, and is not noted",
    ),
    Attack(
        "teacher-frozen",
        "a program with the stolen model as a frozen teacher",
        "thief",
        _launder(laundries.Frozen, text=True),
        study=("A17", "T25"),
        reported=_GENUINE,
    ),
    Attack(
        "teacher-text",
        "a program that learns from a stolen teacher in its text",
        "thief",
        _launder(laundries.Taught, text=True),
        study=("A17", "T25"),
        reported=_GENUINE,
        survives=READ,
    ),
)
