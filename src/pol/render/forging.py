"""Forgeries for people: the attacks that there are, and one that was made."""

from __future__ import annotations

import shlex
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pol.render.text import clean, duration, plural, size


def listed(console: Console, found: list[dict[str, Any]]) -> None:
    """Print a line for each attack."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("attack", no_wrap=True)
    table.add_column("study", overflow="fold")
    table.add_column("what is done", ratio=1)
    for one in found:
        what = clean(one["title"]) + (" (no lie: it will be accepted)" if one["survives"] else "")
        table.add_row(clean(one["name"]), " ".join(one["study"]), what)
    console.print(table)
    console.print()
    console.print(f"{plural(len(found), 'attack')}. Numbers are those of docs/attacks.md. Make one with:")
    console.print(Text("  pol attack NAME --target PROOF --recipe REF --out DIR", "bold"), soft_wrap=True)


def forged(console: Console, made: dict[str, Any]) -> None:
    """Print what a forgery cost, and the command that verifies it."""
    cost = made["cost"]
    console.print(
        Text.assemble(
            ("Forged: ", "bold"), f"{clean(made['title'])}. {plural(cost['gradients'], 'gradient')}, "
            f"{duration(cost['seconds'])}, {size(cost['bytes'])}."
        )
    )  # fmt: skip
    if made["survives"]:
        console.print(f"No proof of learning refuses this: {clean(made['survives'])}")
    words = ["pol", "verify", made["proof"], "--recipe", made["recipe"]]
    words += ["--model", made["model"]] if made["model"] else []
    console.print("\nSee what a verifier says of it:")
    console.print(Text(f"  {shlex.join(words)}", "bold"), soft_wrap=True)
    console.print(Text(f"  {shlex.join([*words, '--policy', 'paper-2021'])}", "bold"), soft_wrap=True)
