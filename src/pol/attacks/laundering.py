"""What is true of another model: one's own training, of the public recipe or of one that brings stolen weights in.

No step of these is a lie, and no replay can say otherwise. What comes in where a verifier looks (files that a build
reads, first weights, frozen bases) is refused; what is in the text of a program is for those who read it, and whoever
names a recipe says that it has (attack study, A17 and T25).
"""

from __future__ import annotations

import base64
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.torch import save
from torch import Tensor

from pol import canonical
from pol.attacks import laundries
from pol.attacks.attack import Attack
from pol.attacks.laundries import Laundry
from pol.attacks.workshop import Workshop
from pol.errors import UsageError
from pol.replay import recipe as recipes
from pol.replay.data import default_collate
from pol.replay.parts import Attached
from pol.replay.recipe import Recipe, split_reference
from pol.replay.sources import MAX_SOURCE, source_files

MODEL, LABELS, PROGRAM = "model.safetensors", "labels.npy", "published.py"
"""What is published beside a forgery."""

BATCH = 256
"""Samples that are labelled at a time; of any size the classes are the same but for rounding."""

WIDTH = 100
"""Of a line of weights in a program's text."""

TEMPLATE = '''"""A recipe that a forger published."""

from pathlib import Path

from {module} import {name} as Original

from pol.attacks.laundries import {base}


class Published({base}, Original):
    """{about}"""

    {constants}
'''

READ = "the program does what its text says, and who names a recipe says to have read it"


def retrained(workshop: Workshop, out: Path) -> None:
    """An honest run of the public recipe under a key of one's own: it ends at another model."""
    workshop.record().seal(out, workshop.key)


def distilled(workshop: Workshop, out: Path) -> None:
    """A fresh start honestly learns what the stolen model says of the public samples; its classes are committed."""
    recipe, configuration = recipes.load(workshop.recipe), workshop.open().genesis.recipe.configuration
    made = recipes.make(recipe, configuration)
    data, part = made.data(), _released(workshop)
    label, parts = laundries.label_of(data[0]), Attached(**made.build())
    laundries.put({part: parts[part]}, _stolen(workshop))
    parts[part].eval()
    starts = range(0, len(data), BATCH)
    batches = (default_collate([data[i] for i in range(at, min(at + BATCH, len(data)))]) for at in starts)
    said = [laundries.classes(made, parts, part, batch).numpy() for batch in batches]
    folder = _publish(workshop, out, laundries.Relabelled, {"LABELS": LABELS}, {"LABEL": label})
    np.save(folder / LABELS, np.concatenate(said))
    workshop.record().seal(out, workshop.key)


def _launder(base: type[Laundry], *, text: bool = False, late: bool = False) -> Callable[[Workshop, Path], None]:
    """An honest run of a program that brings the stolen weights in: in its text, or in a file that it reads."""

    def make(workshop: Workshop, out: Path) -> None:
        constants: dict[str, object] = {"LATE": late, "PART": _released(workshop)}
        if issubclass(base, laundries.Taught):
            constants["LABEL"] = laundries.label_of(workshop.data(workshop.open())[0])
        model = save(_stolen(workshop))
        if text:
            _publish(workshop, out, base, {}, {**constants, "TEXT": base64.b64encode(model).decode()})
        else:
            (_publish(workshop, out, base, {"FILE": MODEL}, constants) / MODEL).write_bytes(model)
        workshop.record().seal(out, workshop.key)

    return make


def _released(workshop: Workshop) -> str:
    release = workshop.open().genesis.spec.release
    if release is None:
        raise UsageError("this attack needs a proof that names the released part")
    return release.part


def _stolen(workshop: Workshop) -> dict[str, Tensor]:
    kinds = ("parameter/", "buffer/", "transient/")
    tensors = workshop.stolen().tensors
    return {key.partition("/")[2]: tensor.contiguous() for key, tensor in tensors.items() if key.startswith(kinds)}


def _publish(
    workshop: Workshop, out: Path, base: type[Recipe], files: dict[str, str], constants: dict[str, object]
) -> Path:
    """Write a program beside the forgery and register for it what is recorded from now on; its folder.

    Args:
        workshop: Whose recipe is the original: it becomes a part of what is published.
        out: The forgery.
        base: What is mixed in.
        files: Class attributes that name files of the folder.
        constants: Other class attributes.
    """
    if recipes.load(workshop.recipe).train is not Recipe.train:
        raise UsageError("this attack needs a recipe with the usual loop")
    folder = out.with_name(f"{out.name}-published")
    folder.mkdir(parents=True)
    where, name = split_reference(workshop.recipe)
    if where.endswith(".py"):  # its local modules come along; those of a package are installed
        root = Path(where).resolve().parent
        for path in source_files(workshop.recipe).values():
            (folder / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.relative_to(root))
    lines = [
        *(f"{key} = str(Path(__file__).with_name({file!r}))" for key, file in files.items()),
        *(f"{key} = {_literal(value)}" for key, value in constants.items()),
    ]
    text = TEMPLATE.format(
        module=Path(where).stem if where.endswith(".py") else where, name=name, base=base.__name__,
        about=(base.__doc__ or "").partition("\n")[0], constants="\n    ".join(lines),
    )  # fmt: skip
    if len(text) > MAX_SOURCE:
        raise UsageError(f"this attack needs weights that fit into a source file of {MAX_SOURCE} bytes")
    (folder / PROGRAM).write_text(text)
    registered = workshop.open().genesis.recipe.configuration
    settings = {key: canonical.untag(value, key) for key, value in registered.items()}
    workshop.publish(f"{folder / PROGRAM}:Published", settings)
    return folder


def _literal(value: object) -> str:
    if not isinstance(value, str) or len(value) <= WIDTH:
        return repr(value)
    return "(\n" + "\n".join(f"        {line!r}" for line in textwrap.wrap(value, WIDTH)) + "\n    )"


ATTACKS = (
    Attack(
        "retrained",
        "the public recipe, trained under a key of one's own",
        "thief",
        retrained,
        study=("A17",),
        survives="it is an honest proof, and of another model: nothing is claimed that is not so",
    ),
    Attack(
        "distilled",
        "a fresh start, trained on the stolen model's own labels of the data",
        "thief",
        distilled,
        study=("A17", "T25"),
        survives="nothing of the stolen model is in the training but what it said, which is data like any other",
    ),
    Attack(
        "pretrained-file",
        "a program that starts from a file of stolen weights",
        "thief",
        _launder(laundries.Pretrained),
        study=("A17", "T12", "T25"),
    ),
    Attack(
        "pretrained-text",
        "a program that starts from stolen weights in its text",
        "thief",
        _launder(laundries.Pretrained, text=True),
        study=("A17", "T12", "T25"),
    ),
    Attack(
        "anchor-file",
        "a program that decays to a file of stolen weights",
        "thief",
        _launder(laundries.Anchored),
        study=("A9", "T25"),
    ),
    Attack(
        "anchor-text",
        "a program that decays to stolen weights in its text",
        "thief",
        _launder(laundries.Anchored, text=True),
        study=("A9", "T25"),
        survives=READ,
    ),
    Attack(
        "anchor-buffers",
        "a program that decays to stolen weights among its buffers",
        "thief",
        _launder(laundries.Buffered, text=True),
        study=("A9", "T25"),
        survives=READ + "; policies take constant buffers, since masks and tables are such",
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
    ),
    Attack(
        "teacher-text",
        "a program that learns from a stolen teacher in its text",
        "thief",
        _launder(laundries.Taught, text=True),
        study=("A17", "T25"),
        survives=READ,
    ),
)
