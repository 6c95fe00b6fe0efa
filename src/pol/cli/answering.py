"""``pol regenerate``: the prover's answer to a challenge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pol.cli import output
from pol.cli.output import Json
from pol.cli.progress import progress
from pol.errors import UsageError


def regenerate(
    proof: Annotated[Path, typer.Argument(help="The proof directory.", show_default=False)],
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="Its recipe: path/to/file.py:Name or package.module:Name.")
    ],
    steps: Annotated[
        str, typer.Option("--steps", metavar="N,N,…", help="The states that the verifier asked for, by their step.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write them to.")],
    as_json: Json = False,
) -> int:
    """Take steps again on the run's own platform, for states that a verifier asks for and the proof does not hold.

    Stopped and called again, it goes on with what is missing. The verifier passes the folder as --openings.
    """
    from pol.responder import regenerate as take_again

    try:
        wanted = [int(step) for step in steps.split(",")]
    except ValueError:
        raise UsageError(f"--steps {steps}: write whole numbers with commas between") from None
    with progress() as tell:
        written = take_again(proof, out, recipe=recipe, steps=wanted, progress=tell)
    if as_json:
        output.show_json({"openings": str(out), "files": [str(path) for path in written]})
    else:
        output.write(f"{len(written)} states in {out}, for the verifier: pol verify … --openings {out}\n")
    return 0
