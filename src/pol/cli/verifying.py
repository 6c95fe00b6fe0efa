"""``pol verify`` and ``pol inspect``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from pol.cli import output
from pol.cli.output import Json
from pol.cli.progress import progress
from pol.errors import PolError, UsageError

if TYPE_CHECKING:
    from pol.proof.policy import Challenge, Policy

S = TypeVar("S", bound="Policy | Challenge")

EXIT_CODES = {"ACCEPT": 0, "REJECT": 1, "INCONCLUSIVE": 2}


def verify(
    context: typer.Context,
    proof: Annotated[str, typer.Argument(help="The proof directory, or its URL.", show_default=False)],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="The recipe that you have read: path/to/file.py:Name or package.module:Name. Required.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A constructor argument that you insist on; repeat for more."),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            "--policy", "-p", metavar="NAME|FILE", help="What you demand (see `pol policy`); other options change it."
        ),
    ] = "exact",
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key", metavar="KEY", help="A prover whom you trust: fingerprint, or key file; repeat for more."
        ),
    ] = None,
    beacon: Annotated[
        str | None, typer.Option("--beacon", metavar="HEX", help="The 32 bytes that you gave for this genesis.")
    ] = None,
    genesis: Annotated[
        str | None,
        typer.Option("--genesis", metavar="DIGEST", help="The genesis for which you gave the 32 bytes."),
    ] = None,
    nonce: Annotated[
        str | None,
        typer.Option(
            "--nonce", metavar="HEX", help="Draw the challenge of an earlier verification.", show_default="fresh"
        ),
    ] = None,
    attestation: Annotated[
        str | None,
        typer.Option("--attestation", metavar="DIGEST", help="The attestation for which --nonce was drawn: no other."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", metavar="FILE", help="The released model (safetensors): must be the last state's weights."
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option("--start", metavar="FILE", help="The weights that you gave out, from which the run must start."),
    ] = None,
    parent: Annotated[
        list[str] | None,
        typer.Option(
            "--parent", metavar="PROOF", help="The proof from whose weights this one starts; then that one's parent, …"
        ),
    ] = None,
    parent_recipe: Annotated[
        list[str] | None,
        typer.Option(
            "--parent-recipe", metavar="RECIPE", help="The recipe of each parent, if it is another one; in their order."
        ),
    ] = None,
    openings: Annotated[
        Path | None,
        typer.Option(
            "--openings",
            metavar="DIR",
            help="A folder shared with the prover, who is asked there for states that the proof does not hold.",
        ),
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option(
            "--wait", metavar="TIME", help="How long to wait for these states: 90s, 10m, 2h.", show_default="no"
        ),
    ] = None,
    assurance: Annotated[
        Literal["observed", "seed-declared", "self-seeded", "verifier-seeded"] | None,
        typer.Option("--assurance", help="Lowest level that you accept.", show_default="self-seeded"),
    ] = None,
    order: Annotated[
        Literal["derived", "permutation", "any"] | None,
        typer.Option(
            "--order",
            help="Orders of the data that you take: permutation, one of the claimant's or the recipe's own; any, also "
            "draws with replacement and streams.",
            show_default="derived",
        ),
    ] = None,
    strategy: Annotated[
        Literal["all", "top-q", "uniform", "size-weighted", "mix"] | None,
        typer.Option("--strategy", help="Which intervals to replay.", show_default="mix, which is all of up to 150"),
    ] = None,
    uniform: Annotated[
        int | None, typer.Option("--uniform", metavar="N", min=0, help="Uniform draws.", show_default="100")
    ] = None,
    weighted: Annotated[
        int | None, typer.Option("--weighted", metavar="N", min=0, help="Draws weighted by size.", show_default="60")
    ] = None,
    top: Annotated[
        int | None,
        typer.Option("--top", metavar="Q", min=0, help="Q: largest updates per kind and stratum.", show_default="1"),
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(
            "--max-steps",
            metavar="N",
            min=1,
            help="Most steps to replay; if more are due, INCONCLUSIVE.",
            show_default="no limit",
        ),
    ] = None,
    allow_constants: Annotated[
        Literal["none", "buffers", "any"] | None,
        typer.Option(
            "--allow-constants", help="Tensors that may start the same under every seed.", show_default="buffers"
        ),
    ] = None,
    allow_file: Annotated[
        list[str] | None,
        typer.Option("--allow-file", metavar="DIGEST", help="A file that the build may read; repeat for more."),
    ] = None,
    base: Annotated[
        list[str] | None,
        typer.Option(
            "--base",
            metavar="FILE|DIGEST",
            help="A frozen base that you know: a model file (safetensors), or its root; repeat for more.",
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", "-j", metavar="N", min=1, help="Processes that share the replay, each with the recorded threads."
        ),
    ] = 1,
    as_json: Json = False,
) -> int:
    """Verify a proof: exit code 0 for ACCEPT, 1 for REJECT, 2 for INCONCLUSIVE.

    The code that runs is the recipe that you name, never code from the proof: by naming it you say that you have
    read it. In JSON the report has the form of docs/report.schema.json.
    """  # fmt: skip
    from pol import keys, policies, verifier
    from pol.digest import raw
    from pol.render import as_json as json_form
    from pol.render import terminal

    if recipe is None:
        raise UsageError(_recipe_missing(proof))
    if wait is not None and openings is None:
        raise UsageError("--wait is for states that the prover is asked for in a folder: name it with --openings DIR")
    patience = output.seconds(wait, "--wait")
    parents, theirs = parent or [], list[str | None](parent_recipe or [])
    if len(theirs) not in (0, len(parents)):
        raise UsageError(f"{len(theirs)} --parent-recipe for {len(parents)} --parent: give one for each, or none")
    demanded = policies.load(policy)
    roots, files = _bases(base or [])
    given = {
        "keys": tuple(map(keys.read_fingerprint, key or [])) or None,
        "beacon": (value := output.hex32(beacon, "--beacon")) and value.hex(),
        "genesis": genesis,
        "attestation": attestation,
        "max_steps": max_steps,
        "constants": allow_constants,
        "externals": (*(allow_file or ()), *files) or None,
        "bases": tuple(roots) or None,
        "assurance": assurance,
        "order": order,
    }
    for digest in [*(allow_file or []), *filter(None, (genesis, attestation))]:
        raw(digest)
    draws = {"strategy": strategy, "uniform": uniform, "weighted": weighted, "top": top}
    demanded = _changed(demanded, {**given, "challenge": _changed(demanded.challenge, draws)})
    drawn, settings = output.hex32(nonce, "--nonce"), output.settings(set_)
    with progress() as tell, output.terminable():
        try:
            report = verifier.verify(
                proof, recipe=recipe, policy=demanded, nonce=drawn, model=model, start=start, openings=openings,
                wait=patience, parents=list(zip(parents, theirs or [None] * len(parents), strict=True)),
                settings=settings, jobs=jobs, progress=tell,
            )  # fmt: skip
        except (verifier.StoppedWaiting, verifier.StoppedByError) as stopped:
            command = output.again(context, nonce=stopped.nonce, attestation=stopped.attestation)
            how = f"The challenge may be known by now; go on with:\n  {command}"
            if isinstance(stopped, verifier.StoppedWaiting):
                raise output.Interrupted(f"Interrupted. {how}") from None
            raise PolError(f"{stopped}. {how}") from stopped
    if as_json:
        output.show_json(json_form.report(report))
        return EXIT_CODES[report.verdict]
    output.show(lambda console: terminal.report(console, report))
    if report.request is not None:
        command = output.again(context, nonce=report.nonce, attestation=report.attestation)
        output.write(f"\nWhen the prover has answered, go on with:\n  {command}\n")
    return EXIT_CODES[report.verdict]


def _bases(given: list[str]) -> tuple[list[str], list[str]]:
    """Roots of the frozen bases that a verifier allows, and digests of the files that it named them by."""
    from pol.digest import raw, sha256_chunks
    from pol.verifier.bases import root_of

    roots, files = [], []
    for name in given:
        if name.startswith("sha256:"):
            raw(name)
            roots.append(name)
            continue
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"--base {name}: no such file, and no root (sha256:…)")
        roots.append(str(root_of(path)))
        with path.open("rb") as file:
            files.append(str(sha256_chunks(iter(lambda: file.read(1 << 20), b""))))
    return roots, files


def _changed(struct: S, given: Mapping[str, object]) -> S:
    """A policy, or its challenge, with what was given on the command line."""
    import msgspec

    return msgspec.structs.replace(struct, **{name: value for name, value in given.items() if value is not None})


def _recipe_missing(proof: str) -> str:
    from pol.render.text import clean

    summary = output.try_summary(proof)
    name = f" (the genesis registered a class {clean(summary.claims.recipe)})" if summary and summary.claims else ""
    return (
        "--recipe is missing: a proof never brings its own code. Name the recipe that you have read, "
        f"--recipe path/to/file.py:Name{name}"
    )


def inspect(
    proof: Annotated[str, typer.Argument(help="The proof directory, finished or not, or its URL.", show_default=False)],
    as_json: Json = False,
) -> int:
    """Show what a proof says, without checking any of it. Needs no torch."""
    from pol.render import as_json as json_form
    from pol.render import inspection

    summary, claimant = output.read_summary(proof)
    if as_json:
        output.show_json(json_form.summary(summary, claimant))
    else:
        output.show(lambda console: inspection.inspection(console, proof, summary, claimant))
    return 0
