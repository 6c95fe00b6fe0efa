"""``pol policy``."""

from __future__ import annotations

from typing import Annotated

import typer

from pol.cli import output
from pol.cli.output import Json


def policy(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE]", help="A preset, or a TOML file.", show_default="all presets")
    ] = None,
    as_json: Json = False,
) -> int:
    """List the presets, or check one policy and print it in full, defaults included, with its digest.

    What is printed is a policy file again: a beginning for your own (docs/policies.md), and named as its own file.
    """
    from pol import policies, verifier
    from pol.proof.policy import policy_digest
    from pol.render import as_json as json_form
    from pol.render import policy as rendered
    from pol.render.text import clean

    if name is None:
        presets = [
            {"name": preset, "about": policies.about(preset), "digest": policy_digest(policies.load(preset))}
            for preset in policies.PRESETS
        ]
        if as_json:
            output.show_json({"presets": presets})
        else:
            output.show(lambda console: rendered.presets(console, presets))
        return 0
    found = policies.load(name)
    verifier.procedure_of(found)
    digest = policy_digest(found)
    if as_json:
        output.show_json({"policy": json_form.policy(found), "digest": digest})
    else:
        named = found.name != policies.own_name(name)
        output.write(f"# {clean(found.name)}: {digest}\n{policies.dump(found, named=named)}")
    return 0
