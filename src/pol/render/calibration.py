"""A calibration, for people and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pol.proof.calibration import Calibration, Metrics, reference_of
from pol.render.terminal import exact
from pol.render.text import clean, plural

_METRICS = {"l1": "ℓ1", "l2": "ℓ2", "linf": "ℓ∞", "cos": "cosine"}


def as_json(found: Calibration, digest: str, fingerprint: str, path: str) -> dict[str, Any]:
    """For ``--json``; ``reference`` is what a policy takes over."""
    return {
        "calibration": path,
        "digest": digest,
        "fingerprint": fingerprint,
        "reference": reference_of(found),
        **{
            name: msgspec.to_builtins(getattr(found, name))
            for name in ("runs", "pairs", "steps", "parameters", "state")
        },
    }


def calibrated(console: Console, found: Calibration, digest: str, fingerprint: str, path: Path) -> None:
    """Print what was measured, and what a policy takes over."""
    console.print(Text.assemble(("Calibrated", "bold green"), " ", clean(str(path))), soft_wrap=True)
    counts = f"{plural(found.runs, 'run')} of {plural(found.steps, 'step')}, {plural(found.pairs, 'pair')}"
    exact(console, "recipe", f"{found.recipe.name} {found.recipe.digest}")
    exact(console, "runs", counts)
    exact(console, "key", fingerprint)
    exact(console, "digest", digest)
    console.print()
    table = Table(box=None, pad_edge=False)
    for title in ("distance", "mean (d_ref)", "min", "max", "mean, whole state"):
        table.add_column(title, justify="left" if title == "distance" else "right")
    for name, title in _METRICS.items():
        table.add_row(
            title, *_numbers(found.parameters, name, "mean", "min", "max"), *_numbers(found.state, name, "mean")
        )
    console.print(table)
    console.print()
    console.print("The same recipe, trained again from another seed, ends this far away. For a policy (TOML):")
    console.print()
    console.print("[reference]")
    for name, value in reference_of(found).items():
        console.print(f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value!r}", soft_wrap=True)


def _numbers(metrics: Metrics, name: str, *parts: str) -> list[str]:
    return [f"{float(getattr(getattr(metrics, name), part)):.4g}" for part in parts]
