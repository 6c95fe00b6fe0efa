"""``pol calibrate``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from pol.cli import output
from pol.cli.output import Json
from pol.cli.progress import progress


def calibrate(
    recipe: Annotated[str, typer.Argument(help="path/to/file.py:Name or package.module:Name", show_default=False)],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The calibration file to write.", show_default=False)
    ],
    runs: Annotated[
        int, typer.Option("--runs", "-n", metavar="N", min=2, help="Independent trainings, at least 2: pairs count.")
    ] = 3,
    max_every: Annotated[
        int, typer.Option("--max-every", metavar="K", min=1, help="Longest interval to measure, in steps.")
    ] = 10,
    intervals: Annotated[
        int | None,
        typer.Option(
            "--intervals",
            metavar="N",
            min=1,
            help="From how many states to take steps again; more of them bound the rate of false rejections better.",
            show_default="as many as cost half a run, at least 8",
        ),
    ] = None,
    runs_only: Annotated[
        bool, typer.Option("--runs-only", help="Only compare runs: measure no honest noise, recommend no limits.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A constructor argument of the recipe; repeat for more."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="FILE", help="Private key that signs.", show_default="your own, made at the first use"
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", min=1, max=1024, help="Threads of a training.", show_default="one per core"
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Train a recipe several times, and sign how far apart independent runs end, and what honest replays are off by.

    A policy names the result: below that distance an error means something. Steps of one run are taken again on other
    platforms, which this machine gives by flags, and with the smallest lies; the limits that follow, and the length of
    intervals to record with, are printed. Exit code 1: measured, but honest and forged cannot be told apart at any
    length, so no limits are recommended. When it was interrupted, the same command goes on: the runs are kept in
    FILE.runs until FILE is written.
    """
    from pol import calibrator
    from pol.cli.proving import signer
    from pol.profile import Profile
    from pol.render import calibration as rendered

    settings = output.settings(set_)
    signing, _, _ = signer(key)
    with progress() as tell:
        try:
            made = calibrator.calibrate(
                recipe,
                out,
                key=signing,
                runs=runs,
                max_every=max_every,
                intervals=intervals,
                settings=settings,
                profile=Profile(threads=threads) if threads else None,
                progress=tell,
                noise=not runs_only,
            )
        except KeyboardInterrupt:
            numbers = {"--runs": runs, "--max-every": max_every, "--intervals": intervals, "--threads": threads}
            words = ["pol", "calibrate", recipe, "--out", str(out)]
            words += [word for name, number in numbers.items() if number is not None for word in (name, str(number))]
            words += [word for pair in set_ or [] for word in ("--set", pair)]
            words += ["--key", str(key)] if key else []
            words += ["--runs-only"] if runs_only else []
            again = shlex.join(words)
            raise output.Interrupted(f"Interrupted. What is trained is kept; go on with:\n  {again}") from None
    if as_json:
        output.show_json(rendered.as_json(made.calibration, made.digest, made.fingerprint, str(out)))
    else:
        output.show(lambda console: rendered.calibrated(console, made.calibration, made.digest, made.fingerprint, out))
    return 1 if rendered.refused(made.calibration) else 0
