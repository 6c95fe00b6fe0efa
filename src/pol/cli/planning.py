"""``pol plan``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pol.cli import output
from pol.cli.output import Json
from pol.cli.progress import progress
from pol.errors import UsageError

if TYPE_CHECKING:
    from pol.proof.forecast import Forecast
    from pol.proof.policy import Policy


def plan(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROOF|RECIPE]", help="A recipe (path/to/file.py:Name), to be measured; or a proof.",
            show_default="give --steps",
        ),
    ] = None,
    policy: Annotated[str, typer.Option("--policy", metavar="NAME|FILE", help="A preset, or a TOML file.")] = "exact",
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", metavar="T", min=1, help="Steps of the run; a recipe has its own.", show_default="the proof's"
        ),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(
            "--every", metavar="K", min=1, help="Steps of an interval.",
            show_default="powers of ten; the proof's, or that of `pol record`",
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep", metavar="N", min=1, help="Every how many intervals the state is kept.",
            show_default="powers of ten; the proof's, or that of `pol record`",
        ),
    ] = None,
    max_overhead: Annotated[
        str | None,
        typer.Option(
            "--max-overhead", metavar="P%", help="Of a recipe: most by which steps may take longer.", show_default="2%"
        ),
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option("--max-bytes", metavar="SIZE", help="Of a recipe: largest proof, like 10GB.")
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(
            "--share", metavar="P%", help="Of a recipe: largest share of forged intervals that audits leave open.",
            show_default="what the policy's draws do: 3% of presets",
        ),
    ] = None,
    confidence: Annotated[
        list[str] | None,
        typer.Option(
            "--confidence", metavar="P%", help="Of a recipe: at which confidence; audits are compared at the first.",
            show_default="95% and 99%",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A constructor argument of the recipe; repeat for more."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", min=1, max=1024, help="Threads of the training.", show_default="one per core"
        ),
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Have torch use deterministic algorithms, as `pol record` would.")
    ] = False,
    as_json: Json = False,
) -> int:  # fmt: skip
    """What recording a training costs, and verifying it: before it is recorded, or for a proof that is there.

    Of a recipe, a few steps are taken and measured: overhead, bytes and audits for choices of k and K. Recommended is
    the cheapest audit among the choices that cost at most --max-overhead of the training's time; where audits differ by
    less than 10 %, the smallest proof. Nothing is recorded.

    Of a proof (or --steps, for a run of that length), what a policy's challenge costs and would find. Costs are
    averaged over nonces, as if all updates were of one size; probabilities are the least that hold, for a forger who
    knows the policy and forges where only chance looks.
    """
    options: dict[str, Any] = {
        "--max-overhead": max_overhead, "--max-bytes": max_bytes, "--share": share, "--confidence": confidence,
        "--set": set_, "--threads": threads, "--deterministic": deterministic or None,
    }  # fmt: skip
    if what is not None and ":" in what and not Path(what).exists():
        if steps is not None:
            raise UsageError("--steps is for a run without a recipe: the recipe says how many steps it has")
        return _recipe(what, policy, every, keep, options, as_json=as_json)
    if given := [name for name, value in options.items() if value is not None]:
        raise UsageError(f"{given[0]} goes with a recipe (path/to/file.py:Name), of which steps can be measured")
    return _proof(None if what is None else Path(what), policy, steps, every, keep, as_json=as_json)


def _recipe(
    recipe: str, policy: str, every: int | None, keep: int | None, options: dict[str, Any], *, as_json: bool
) -> int:  # fmt: skip
    from pol import planner, policies, prover
    from pol.profile import Profile
    from pol.proof.foresight import CONFIDENCES, MAX_OVERHEAD
    from pol.render import as_json as plain
    from pol.render import forecast as rendered

    demanded = policies.load(policy)
    most, largest, left_open = (options[name] for name in ("--max-overhead", "--max-bytes", "--share"))
    confidences = [output.share(text, "--confidence") for text in options["--confidence"] or []]
    max_overhead = MAX_OVERHEAD if most is None else output.share(most, "--max-overhead")
    max_bytes = None if largest is None else output.bytes_of(largest, "--max-bytes")
    share = None if left_open is None else output.share(left_open, "--share")
    settings = output.settings(options["--set"])
    with progress() as tell:
        found = planner.plan(
            recipe,
            settings=settings,
            profile=Profile(
                threads=options["--threads"] or prover.available_cores(), deterministic=bool(options["--deterministic"])
            ),
            policy=demanded,
            every=every,
            keep=keep,
            max_overhead=max_overhead,
            max_bytes=max_bytes,
            share=share,
            confidences=confidences or CONFIDENCES,
            progress=tell,
        )
    commands = _commands(recipe, policy, demanded, found, options)
    if as_json:
        output.show_json(plain.forecast(found, commands))
    else:
        output.show(lambda console: rendered.forecast(console, found, commands))
    return 0


def _commands(recipe: str, name: str, policy: Policy, found: Forecast, options: dict[str, Any]) -> list[str]:
    """How to record as recommended, and to verify that; none if nothing is recommended."""
    best = found.recommended.choice
    if best is None:
        return []
    settings = [word for pair in options["--set"] or [] for word in ("--set", pair)]
    given = ["--threads", str(options["--threads"])] if options["--threads"] else []
    given += ["--deterministic"] if options["--deterministic"] else []
    given += ["--rule", "tolerance"] if policy.rule == "tolerance" else []
    lengths = ["--every", str(best.every), "--keep", str(best.keep)]
    record = ["record", recipe, "--out", "proof", *lengths, *settings, *given]
    verify = ["verify", "proof", "--recipe", recipe, *settings]
    verify += [] if name == "exact" else ["--policy", name]
    audit = best.audits[0]
    more = audit.draws > policy.challenge.uniform and audit.replayed_share < 1
    verify += ["--uniform", str(audit.draws)] if more else []
    verify += ["--openings", "proof-openings"] if audit.openings else []
    return [shlex.join(["pol", *words]) for words in (record, verify)]


def _proof(
    proof: Path | None, policy: str, steps: int | None, every: int | None, keep: int | None, *, as_json: bool
) -> int:  # fmt: skip
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
        raise UsageError(
            "give a proof, or --steps (and --every and --keep) of the run that you plan, or a recipe to be measured"
        )
    demanded = policies.load(policy)
    found = planned(demanded, steps, *lengths(demanded.rule, every, keep), resumed, state_bytes)
    if as_json:
        output.show_json(found)
    else:
        output.show(lambda console: rendered.plan(console, found))
    return 0
