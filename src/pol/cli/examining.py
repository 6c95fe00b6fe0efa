"""``pol doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from pol.cli import output
from pol.cli.output import Json
from pol.cli.progress import progress


def doctor(
    recipe: Annotated[str, typer.Argument(help="path/to/file.py:Name or package.module:Name", show_default=False)],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A constructor argument of the recipe; repeat for more."),
    ] = None,
    every: Annotated[
        int, typer.Option("--every", metavar="K", min=1, help="Steps of an interval, as in your proofs.")
    ] = 10,
    intervals: Annotated[
        int, typer.Option("--intervals", metavar="N", min=1, max=1000, help="How many intervals are taken.")
    ] = 3,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", min=1, max=1024, help="Threads of the training.", show_default="one per core"
        ),
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Have torch use deterministic algorithms, as `pol record` would.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out what other flags change, and what determinism costs.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Is this training the same, bit for bit, when it is taken again? If not: which state differs, where, and why.

    The first intervals are taken twice, in fresh processes, and once more after a stop in the middle. Nothing is
    recorded. Exit code 0: exact; 1: not exact; 2: could not tell, since the program fails by itself.
    """
    from pol.doctor import Answer, examine
    from pol.profile import Profile
    from pol.prover import available_cores
    from pol.render import doctor as rendered

    settings = output.settings(set_)
    with progress() as tell:
        found = examine(
            recipe,
            settings=settings,
            profile=Profile(threads=threads or available_cores(), deterministic=deterministic),
            every=every,
            intervals=intervals,
            quick=quick,
            progress=tell,
        )
    if as_json:
        output.show_json(found)
    else:
        output.show(lambda console: rendered.diagnosis(console, found))
    return {Answer.EXACT: 0, Answer.NOT_EXACT: 1, Answer.UNKNOWN: 2}[found.answer]
