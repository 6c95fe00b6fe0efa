"""A calibration, for people and as JSON. People are shown a policy file that names it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pol.proof.calibration import Calibration, Metrics, reference_of
from pol.proof.limiting import LOSS, MARGIN, UNSEEN, best, rungs
from pol.proof.noise import Recommended
from pol.render import noise as noises
from pol.render.terminal import exact
from pol.render.text import clean, plural

_METRICS = {"l1": "ℓ1", "l2": "ℓ2", "linf": "ℓ∞", "cos": "cosine"}


def as_json(found: Calibration, digest: str, fingerprint: str, path: str) -> dict[str, Any]:
    """For ``--json``; ``reference`` is what a policy takes over that names the file and its key."""
    limits = None if found.noise is None else found.noise.limits
    return {
        "calibration": path,
        "digest": digest,
        "fingerprint": fingerprint,
        "reference": reference_of(found),
        **{
            name: msgspec.to_builtins(getattr(found, name))
            for name in ("runs", "pairs", "steps", "parameters", "state", "noise")
        },
        **({} if found.noise is None else noises.as_json(found.noise, found.steps, float(found.parameters.l2.mean))),
        "limits": None if limits is None else limits_of(limits),
        "refused": refused(found),
    }


def limits_of(found: Recommended) -> dict[str, float]:
    """The fields of a policy's ``limits``; those that say what a policy says anyway are left out.

    So are those of single tensors: a policy takes them from the file that it names.
    """
    numbers = {name: float(getattr(found, name)) for name in ("relative", "absolute", "floor", "loss")}
    return {name: number for name, number in numbers.items() if name != "loss" or number != LOSS}


def refused(found: Calibration) -> list[str]:
    """Why no limits are recommended, by k; empty if they are, or if noise was not measured."""
    if found.noise is None or found.noise.limits is not None:
        return []
    return [
        f"k = {rung.every}: {reason}"
        for rung in rungs(found.noise, float(found.parameters.l2.mean))
        for reason in rung.refusals
    ]


def calibrated(console: Console, found: Calibration, digest: str, fingerprint: str, path: Path) -> None:
    """Print what was measured, and a policy that uses it."""
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
    console.print("The same recipe, trained again from another seed, ends this far away.")
    console.print()
    if found.noise is not None:
        noises.measured(console, found.noise, found.steps, float(found.parameters.l2.mean))
        console.print()
    _policy(console, found, fingerprint, path)


def _policy(console: Console, found: Calibration, fingerprint: str, path: Path) -> None:
    """A whole policy file. It names the signed file and not its numbers, which anybody could write."""
    noise = found.noise
    base = "exact" if refused(found) else "tolerance"
    console.print("A policy file (TOML) for this folder:")
    console.print()
    _lines(console, {"base": base, "calibration": str(path), "calibration_key": fingerprint})
    if noise is not None and noise.limits is not None and noise.every is not None:
        console.print("\n[limits]")
        _lines(console, limits_of(noise.limits), {} if noise.limits.source == "preset" else _sources(found))
        console.print("\n[bounds]")
        _lines(console, {"max_every": noise.every})


def _lines(
    console: Console, fields: Mapping[str, str | float | int], comments: Mapping[str, str] | None = None
) -> None:
    for name, value in fields.items():
        comment = f"  # {comments[name]}" if comments and name in comments else ""
        text = _string(value) if isinstance(value, str) else repr(value)
        console.print(f"{name} = {text}{comment}", soft_wrap=True)


def _string(text: str) -> str:
    """A string of TOML; what a terminal would act on, or hide, is written as an escape."""
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(text, ensure_ascii=False))


def _sources(found: Calibration) -> dict[str, str]:
    """Where the recommended numbers come from."""
    assert found.noise is not None
    rung = best(rungs(found.noise, float(found.parameters.l2.mean)))
    assert rung is not None
    words = dict.fromkeys(("relative", "absolute", "loss"), f"{MARGIN:g} times the worst at k = {rung.every}")
    if float(rung.limits.relative) == UNSEEN[0]:
        words["relative"] = "the least that is recommended; noise was smaller"
    if rung.limits.tensors:
        words["absolute"] += f"; of {plural(len(rung.limits.tensors), 'tensor')} less, from the file"
    return words


def _numbers(metrics: Metrics, name: str, *parts: str) -> list[str]:
    return [f"{float(getattr(getattr(metrics, name), part)):.4g}" for part in parts]
