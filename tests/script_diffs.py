"""What it takes to attach the scripts of ``examples/scripts``: the diffs, and the page that shows them.

``python tests/script_diffs.py`` writes them into ``docs/attaching.md`` again.
"""

import difflib
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "attaching.md"
SCRIPTS = {"classifier": "Classifier", "language_model": "Words", "gan": "GAN"}
"""Each with the class of its recipe."""


def script(name):
    return ROOT / "examples" / "scripts" / f"{name}.py"


def recipe(name):
    return script(f"{name}_recipe")


def diff(name):
    """The unified diff between a script and its recipe, with one line around each change."""
    sides = script(name), recipe(name)
    lines = (side.read_text().splitlines() for side in sides)
    names = (side.relative_to(ROOT).as_posix() for side in sides)
    return "".join(f"{line}\n" for line in difflib.unified_diff(*lines, *names, n=1, lineterm=""))


def changed(name):
    """(lines removed, lines added), empty ones left out."""
    lines = [line for line in diff(name).splitlines()[2:] if line[1:].strip()]
    return sum(line[0] == "-" for line in lines), sum(line[0] == "+" for line in lines)


def with_diffs(page):
    """A page whose ``diff`` blocks, and the counts in whose table, are those of today."""
    for name in SCRIPTS:
        head = f"```diff\n--- {script(name).relative_to(ROOT).as_posix()}\n"
        page = re.sub(re.escape(head) + r"(?s:.*?)\n```\n", lambda _, name=name: f"```diff\n{diff(name)}```\n", page)
        counts = "{} removed, {} added".format(*changed(name))
        page = re.sub(rf"(?m)^(\| `{name}\.py` .*\| ).* \|$", lambda row, counts=counts: f"{row[1]}{counts} |", page)
    return page


if __name__ == "__main__":
    PAGE.write_text(with_diffs(PAGE.read_text()))
    for name in SCRIPTS:
        print(name, "-{} +{}".format(*changed(name)))
