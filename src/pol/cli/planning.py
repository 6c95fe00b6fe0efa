"""``pol plan``."""

from __future__ import annotations

from typing import Annotated

import typer

from pol.cli import output
from pol.cli.output import Json
from pol.errors import UsageError


def plan(
    proof: Annotated[
        str | None, typer.Argument(metavar="[PROOF]", help="A proof, for its sizes.", show_default="give --steps")
    ] = None,
    policy: Annotated[str, typer.Option("--policy", metavar="NAME|FILE", help="A preset, or a TOML file.")] = "exact",
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="T", min=1, help="Steps of the run.", show_default="the proof's")
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(
            "--every", metavar="K", min=1, help="Steps of an interval.",
            show_default="the proof's, or that of `pol record`",
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep", metavar="N", min=1, help="Every how many intervals the state is kept.",
            show_default="the proof's, or that of `pol record`",
        ),
    ] = None,
    as_json: Json = False,
) -> int:  # fmt: skip
    """What verifying under a policy costs, and what it would find: for a proof, or for a run that is only planned.

    Costs are averaged over nonces, as if all updates were of one size; probabilities are the least that hold, for a
    forger who knows the policy and forges where only chance looks.
    """
    from pol import policies
    from pol.proof.genesis import lengths
    from pol.proof.plan import plan as planned
    from pol.render import plan as rendered

    resumed: list[int] = []
    state_bytes: int | None = None
    if proof is not None:
        summary, _ = output.read_summary(proof)
        if summary.claims is None:
            raise UsageError(f"{proof}: no genesis is signed yet, so there are no sizes: give --steps")
        claims = summary.claims
        resumed = [step // claims.every for step in (summary.journal.resumes if summary.journal else []) if step]
        if summary.checkpoints:
            state_bytes = summary.checkpoint_bytes // summary.checkpoints
        steps, every, keep = steps or claims.steps, every or claims.every, keep or claims.keep
    if steps is None:
        raise UsageError("give a proof, or --steps (and --every and --keep) of the run that you plan")
    demanded = policies.load(policy)
    found = planned(demanded, steps, *lengths(demanded.rule, every, keep), resumed, state_bytes)
    if as_json:
        output.show_json(found)
    else:
        output.show(lambda console: rendered.plan(console, found))
    return 0
