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
    proof: Annotated[str, typer.Argument(help="The proof directory, or its URL.", show_default=False)],
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="Its recipe: path/to/file.py:Name or package.module:Name.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The folder shared with the verifier, who asks there.")
    ],
    steps: Annotated[
        str | None,
        typer.Option(
            "--steps", metavar="N,N,…", help="The states to take again, by their step.", show_default="as asked in DIR"
        ),
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option(
            "--wait", metavar="TIME", help="How long to wait for the verifier to ask: 90s, 10m, 2h.", show_default="no"
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Take steps again on the run's own platform, for states that a verifier asks for and the proof does not hold.

    Stopped and called again, it goes on with what is missing. The verifier passes the folder as --openings.
    """
    from pol.responder import regenerate as take_again

    if steps is not None and wait is not None:
        raise UsageError("--steps says what to take, --wait waits until a verifier says it: give one of the two")
    patience = output.seconds(wait, "--wait")
    try:
        wanted = None if steps is None else [int(step) for step in steps.split(",")]
    except ValueError:
        raise UsageError(f"--steps {steps}: write whole numbers with commas between") from None
    with progress() as tell:
        written = take_again(proof, out, recipe=recipe, steps=wanted, wait=patience, progress=tell)
    if as_json:
        output.show_json({"openings": str(out), "files": [str(path) for path in written]})
    else:
        states = f"{len(written)} state{'' if len(written) == 1 else 's'}"
        output.write(f"{states} in {out}: a verifier that waits goes on now (pol verify … --openings {out})\n")
    return 0
