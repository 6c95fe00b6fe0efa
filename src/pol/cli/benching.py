"""``pol bench``."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

from pol.cli import output
from pol.cli.output import Json
from pol.cli.progress import progress
from pol.errors import UsageError

app = typer.Typer(help="Measure: attacks against policies.", no_args_is_help=True, rich_markup_mode=None)

NAMES = {"json": "attacks.json", "markdown": "attacks.md", "figure": "attacks.svg"}


@app.callback()
def _root() -> None:
    pass


@app.command()
def attacks(
    suite: Annotated[Literal["quick", "full"], typer.Option("--suite", help="quick: some; full: all.")] = "quick",
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="REF", help="What is trained.", show_default="the digits")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A constructor argument of the recipe; repeat for more."),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            "--attack", metavar="NAME", help="Only this attack; repeat for more.", show_default="those of the suite"
        ),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", metavar="FILE", help="Attacks of your own, in a Python file; repeat for more."),
    ] = None,
    budget: Annotated[
        float, typer.Option("--budget", help="Most gradients of attacks that ask, as a share.")
    ] = 0.5,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", min=1, help="Processes.", show_default="one per core")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Write tables and figure here; an interrupted bench goes on from here.",
            show_default="nothing is written",
        ),
    ] = None,
    as_json: Json = False,
) -> int:  # fmt: skip
    """Attacks × policies: forge, verify, and count how often a sample would have met each forgery.

    Exit code 1 if an honest proof was not accepted, if replaying everything did not refuse a forgery, if samples met
    one more or less often than predicted, if a forger spent more than its budget, or if an attack broke; else 0.
    """
    from pol import prover
    from pol.bench import running
    from pol.bench import suite as suites
    from pol.render import attacks as shown
    from pol.render.as_json import encode
    from pol.render.grid import figure

    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: not a folder")
    with ExitStack() as stack:
        work = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pol-bench-")))
        tell = stack.enter_context(progress())
        try:
            outcome = running.attacks(
                work=work / "cells", chosen=suites.named(suite), recipe=recipe,
                settings=output.settings(set_), names=name or [], files=file or [], budget=budget,
                jobs=jobs or prover.available_cores(), progress=tell,
            )  # fmt: skip
        except KeyboardInterrupt:
            how = "the same command goes on" if out is not None else "with --out DIR it could go on"
            raise output.Interrupted(f"Interrupted: {how}.") from None
    if out is not None:
        (out / NAMES["json"]).write_text(encode(outcome) + "\n")
        (out / NAMES["figure"]).write_text(figure(outcome))
        (out / NAMES["markdown"]).write_text(shown.markdown(outcome, NAMES["figure"]))
    if as_json:
        output.show_json(outcome)
    else:
        output.show(lambda console: shown.table(console, outcome))
    return 0 if outcome.ok else 1
