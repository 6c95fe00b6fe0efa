"""``pol demo``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pol.cli import output
from pol.cli.output import Json
from pol.cli.progress import progress
from pol.errors import UsageError


def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Keep all files here: a new folder.", show_default="keep nothing"
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """The whole story on real data, in a minute: an honest proof, and forgeries of it.

    Exit code 0 if the honest proof is ACCEPT and every forgery REJECT, else 1.
    """
    from pol import demo as told
    from pol.render import demo as shown

    if out is not None and out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty: give a new folder")
    with tempfile.TemporaryDirectory(prefix="pol-demo-", ignore_cleanup_errors=True) as temporary, progress() as tell:
        say = (lambda _: None) if as_json else (lambda text: output.show(lambda console: shown.line(console, text)))
        outcome = told.run(out or Path(temporary), say=say, progress=tell, kept=out is not None)
    if as_json:
        output.show_json(outcome.as_json())
    else:
        output.show(lambda console: shown.outcome(console, outcome))
    return 0 if outcome.ok else 1
