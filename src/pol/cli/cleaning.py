"""``pol gc``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pol.cli import output
from pol.cli.output import Json
from pol.cli.progress import progress
from pol.errors import UsageError


def gc(
    proof: Annotated[
        str, typer.Argument(metavar="PROOF", help="The proof directory, finished or not.", show_default=False)
    ],
    openings: Annotated[
        Path | None,
        typer.Option(
            "--openings",
            metavar="DIR",
            help="A folder of `pol regenerate`: states in it are removed that this proof can give again.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Remove nothing, say what would be.")] = False,
    as_json: Json = False,
) -> int:
    """Remove what no answer needs: what killed processes left, and states that can be taken again.

    What an attestation lists always stays, because a proof without it is refused, and so does what a recording goes
    on from. A recording that is under way is not touched. Exit code 0: done; 3: something that answers need is
    missing, and nothing was removed.
    """
    from pol.cleaning import clean
    from pol.remote.place import is_url
    from pol.render import cleaning

    if is_url(proof):
        raise UsageError(
            f"{proof}: nothing is left over at a URL, where files appear whole: gc is for folders, such as the one "
            "that a recording works in (--work)"
        )
    with progress() as tell:
        found = clean(Path(proof), openings=openings, dry_run=dry_run, progress=tell)
    if as_json:
        output.show_json(cleaning.as_json(proof, found, dry_run=dry_run))
    else:
        output.show(lambda console: cleaning.cleaned(console, proof, found, dry_run=dry_run))
    return 0
