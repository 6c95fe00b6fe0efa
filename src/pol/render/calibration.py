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

from pol.distance import ratio
from pol.profile import Profile
from pol.proof.calibration import Calibration, Metrics, reference_of
from pol.proof.noise import (
    DRIFT,
    FORGERY,
    LOSS,
    MARGIN,
    OF_REFERENCE,
    UNSEEN,
    Noise,
    Recommended,
    changed,
    instead,
    refusals,
    worst,
)
from pol.render.terminal import exact
from pol.render.text import clean, plural

_METRICS = {"l1": "ℓ1", "l2": "ℓ2", "linf": "ℓ∞", "cos": "cosine"}


def as_json(found: Calibration, digest: str, fingerprint: str, path: str) -> dict[str, Any]:
    """For ``--json``; ``reference`` is what a policy takes over that names the file and its key."""
    return {
        "calibration": path,
        "digest": digest,
        "fingerprint": fingerprint,
        "reference": reference_of(found),
        **{
            name: msgspec.to_builtins(getattr(found, name))
            for name in ("runs", "pairs", "steps", "parameters", "state", "noise")
        },
        "limits": None if found.noise is None or found.noise.limits is None else limits_of(found.noise.limits),
        "refused": refused(found),
        "instead": instead(found.noise) if found.noise is not None and refused(found) else None,
    }


def limits_of(found: Recommended) -> dict[str, float]:
    """The fields of a policy's ``limits``; those that say what a policy says anyway are left out."""
    numbers = {name: float(getattr(found, name)) for name in ("relative", "absolute", "floor", "loss")}
    return {name: number for name, number in numbers.items() if name != "loss" or number != LOSS}


def refused(found: Calibration) -> list[str]:
    """Why no limits are recommended; empty if they are, or if noise was not measured."""
    return [] if found.noise is None else refusals(found.noise, float(found.parameters.l2.mean))


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
        _noise(console, found, found.noise)
        console.print()
    _policy(console, found, fingerprint, path)


def _policy(console: Console, found: Calibration, fingerprint: str, path: Path) -> None:
    """A whole policy file. It names the signed file and not its numbers, which anybody could write."""
    limits = None if found.noise is None else found.noise.limits
    base = "exact" if refused(found) else "tolerance"
    console.print("A policy file (TOML) for this folder:")
    console.print()
    _lines(console, {"base": base, "calibration": str(path), "calibration_key": fingerprint})
    if limits is not None:
        assert found.noise is not None
        console.print("\n[limits]")
        _lines(console, limits_of(limits), {} if limits.source == "preset" else _sources(found.noise))


def _lines(console: Console, fields: Mapping[str, str | float], comments: Mapping[str, str] | None = None) -> None:
    for name, value in fields.items():
        comment = f"  # {comments[name]}" if comments and name in comments else ""
        text = _string(value) if isinstance(value, str) else repr(value)
        console.print(f"{name} = {text}{comment}", soft_wrap=True)


def _string(text: str) -> str:
    """A string of TOML; what a terminal would act on, or hide, is written as an escape."""
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(text, ensure_ascii=False))


def _noise(console: Console, found: Calibration, noise: Noise) -> None:
    """What replays on other platforms were off by, how much room that leaves, and the limits in it."""
    count = len(noise.intervals)
    console.print(
        f"Honest noise: {count} of {plural(noise.total, 'interval')} of {plural(noise.every, 'step')}, taken again with"
    )
    console.print()
    _perturbed(console, found.profile, noise)
    console.print()
    _gap(console, noise, float(found.parameters.l2.mean))
    console.print()
    if noise.limits is None:
        console.print(Text("No limits are recommended.", "bold yellow"))
        for reason in refused(found):
            console.print(Text(clean(f"- {reason}.")))
        console.print(f"What helps: {instead(noise)}.")
        return
    if noise.limits.source == "preset":
        what = "all intervals end in equal bits" if _all_equal(noise) else "no error is beyond rounding"
        console.print(f"On this machine {what}, so it shows no limits. Below are those of the preset tolerance.")
    else:
        console.print(f"There is room for limits: {MARGIN:g} times the worst that was seen.")


def _sources(noise: Noise) -> dict[str, str]:
    """Where the recommended numbers come from."""
    seen = {name: worst(noise, name) for name in ("relative", "absolute", "loss")}
    words = {name: f"{MARGIN:g} times {number:.1e}" for name, number in seen.items()}
    if MARGIN * seen["relative"] < UNSEEN[0]:
        words["relative"] = f"the least that is recommended; {words['relative']} is smaller"
    return words


def _all_equal(noise: Noise) -> bool:
    return all(one.equal == len(noise.intervals) for one in noise.perturbed)


def _perturbed(console: Console, profile: Profile, noise: Noise) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("platform", "equal", "median", "worst", "worst tensor", "per element"):
        table.add_column(title, justify="left" if title == "platform" else "right")
    for one in noise.perturbed:
        name = changed(profile, one.profile)
        if one.equal == len(noise.intervals):
            table.add_row(name, "all", "no difference")
            continue
        numbers = (_short(float(text)) for text in (one.median, one.worst, one.relative, one.absolute))
        table.add_row(name, f"{one.equal}", *numbers)
    console.print(table)


def _gap(console: Console, noise: Noise, reference: float) -> None:
    """Noise times the margin beside what it has to stay below."""
    error = MARGIN * worst(noise, "error")
    share = MARGIN * max(worst(noise, "worst"), worst(noise, "relative"))
    rows = (
        (f"{MARGIN:g} times the worst, as a share of the move of its interval", share, f"below {FORGERY:g}"),
        ("  as a share of the mean move of an interval", ratio(error, float(noise.move)), "below 1"),
        ("  as a share of d_ref", ratio(error, reference), f"below {OF_REFERENCE:g}"),
        ("all limits together, as a share of the way of the run", float(noise.drift), f"at most {DRIFT:g}"),
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for name, found, allowed in rows:
        table.add_row(name, _short(found), allowed)
    console.print(table)


def _short(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _numbers(metrics: Metrics, name: str, *parts: str) -> list[str]:
    return [f"{float(getattr(getattr(metrics, name), part)):.4g}" for part in parts]
