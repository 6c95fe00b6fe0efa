"""``pol attack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pol.cli import output
from pol.cli.output import Json
from pol.errors import UsageError

LIST = "list"


def attack(
    name: Annotated[
        str, typer.Argument(help="An attack, path/to/file.py:name for one of your own, or `list`.", show_default=False)
    ],
    target: Annotated[
        Path | None, typer.Option("--target", metavar="PROOF", help="The complete proof to attack.", show_default=False)
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="REF", help="The recipe of the target, which is public.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="The forged proof to write: new.", show_default=False),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="FILE", help="The forger's key: the prover's own, or a thief's.",
            show_default="for a thief one that is thrown away",
        ),
    ] = None,
    policy: Annotated[
        str, typer.Option("--policy", metavar="NAME|FILE", help="What the forger expects to be verified by.")
    ] = "exact",
    budget: Annotated[
        float, typer.Option("--budget", min=0.01, max=10, help="Most gradients of attacks that ask, as a share.")
    ] = 0.5,
    as_json: Json = False,
) -> int:  # fmt: skip
    """Forge a proof, to see what becomes of it; or list the attacks that there are.

    Each attack is a program that is given a complete proof, and writes a forged one without doing the work.
    """
    if name == LIST:
        return _listed(as_json)
    from pol import policies
    from pol.attacks.publishing import published
    from pol.attacks.registry import attack_named
    from pol.keys import SigningKey
    from pol.render import forging

    chosen = attack_named(name)
    missing = [
        option for option, value in (("--target", target), ("--recipe", recipe), ("--out", out)) if value is None
    ]
    if missing or target is None or recipe is None or out is None:
        raise UsageError(f"give {' and '.join(missing)}: an attack takes a proof apart and writes another")
    if not target.is_dir():
        raise UsageError(f"{target}: no such proof directory")
    for folder in (out, published(out)):
        if folder.exists():
            raise UsageError(f"{folder} exists already: a forged proof, and what is published with it, get new folders")
    if key is None and chosen.forger == "prover":
        raise UsageError(f"--key: {chosen.name} is a lie of the prover's own: it needs the key that signed {target}")
    summary, _ = output.read_summary(target)
    if summary.journal is None:
        raise UsageError(f"{target} is not complete: attacks need the last state of a training")
    signs = SigningKey.generate() if key is None else SigningKey.load(key)
    forgery = chosen.forge(target, out, signs, recipe, policy=policies.load(policy), budget=budget)
    made: dict[str, Any] = {
        "attack": chosen.name, "title": chosen.title, "proof": str(out), "recipe": forgery.recipe,
        "model": None if forgery.model is None else str(forgery.model), "survives": chosen.survives,
        "cost": {"gradients": forgery.cost.gradients, "seconds": forgery.cost.seconds, "bytes": forgery.cost.bytes},
    }  # fmt: skip
    if as_json:
        output.show_json(made)
    else:
        output.show(lambda console: forging.forged(console, made))
    return 0


def _listed(as_json: bool) -> int:
    from pol.attacks.registry import REGISTRY
    from pol.render import forging

    found = [
        {
            "name": one.name, "title": one.title, "study": list(one.study), "forger": one.forger,
            "survives": one.survives, "reported": one.reported,
        }
        for one in REGISTRY.values()
    ]  # fmt: skip
    if as_json:
        output.show_json({"attacks": found})
    else:
        output.show(lambda console: forging.listed(console, found))
    return 0
