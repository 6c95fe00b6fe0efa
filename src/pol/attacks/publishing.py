"""Recipes that a forger publishes: the target's own, with another one mixed in before it, as a folder of sources."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

from pol import canonical
from pol.attacks.needs import DoesNotApply
from pol.attacks.workshop import Workshop
from pol.replay import recipe as recipes
from pol.replay.recipe import Recipe, split_reference
from pol.replay.sources import MAX_SOURCE, source_files

PROGRAM = "published.py"
"""The file that is named to a verifier."""

WIDTH = 100
"""Of a line of weights in a program's text."""

TEMPLATE = '''"""A recipe that a forger published."""

from pathlib import Path

from {module} import {name} as Original

from {home} import {base}


class Published({base}, Original):
    """{about}"""

    {constants}
'''


def published(out: Path) -> Path:
    """The folder beside a forgery in which its maker publishes."""
    return out.with_name(f"{out.name}-published")


def released(workshop: Workshop) -> str:
    """The name of the part that the target releases.

    Raises:
        DoesNotApply: it names none.
    """
    release = workshop.open().genesis.spec.release
    if release is None:
        raise DoesNotApply("this attack needs a proof that names the released part")
    return release.part


def publish(
    workshop: Workshop, out: Path, base: type[Recipe], files: dict[str, str], constants: dict[str, object]
) -> Path:
    """Write a program beside the forgery and register for it what is recorded from now on; its folder.

    Args:
        workshop: Whose recipe is the original: it becomes a part of what is published.
        out: The forgery.
        base: What is mixed in.
        files: Class attributes that name files of the folder.
        constants: Other class attributes.

    Raises:
        DoesNotApply: the recipe has a loop of its own, or the text becomes longer than a source may be.
    """
    if recipes.load(workshop.recipe).train is not Recipe.train:
        raise DoesNotApply("this attack needs a recipe with the usual loop")
    folder = published(out)
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
    module = Path(where).stem if where.endswith(".py") else where
    text = TEMPLATE.format(
        module=module, name=name, home=base.__module__, base=base.__name__,
        about=(base.__doc__ or "").partition("\n")[0], constants="\n    ".join(lines),
    )  # fmt: skip
    if len(text) > MAX_SOURCE:
        raise DoesNotApply(f"this attack needs weights that fit into a source file of {MAX_SOURCE} bytes")
    (folder / PROGRAM).write_text(text)
    registered = workshop.open().genesis.recipe.configuration
    settings = {key: canonical.untag(value, key) for key, value in registered.items()}
    workshop.publish(f"{folder / PROGRAM}:Published", settings)
    return folder


def _literal(value: object) -> str:
    if not isinstance(value, str) or len(value) <= WIDTH:
        return repr(value)
    return "(\n" + "\n".join(f"        {line!r}" for line in textwrap.wrap(value, WIDTH)) + "\n    )"
