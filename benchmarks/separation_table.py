"""What the separation benchmark found, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import msgspec

from benchmarks import page
from benchmarks.apart import Apart
from benchmarks.otherwise import Kind
from pol.distance import ratio

Metric = Callable[[Apart], float]

METRICS: dict[str, Metric] = {
    "all parameters": lambda apart: apart.whole,
    "the worst tensor": lambda apart: apart.own,
    "the worst tensor, moments included": lambda apart: apart.worst,
    "an entry, as a share of its limit": lambda apart: apart.limit,
}
"""What is compared: see ``Apart``."""

BEFORE = ("AVX2 machine", ("other order", "other augmentation and dropout"))
"""The honest way and the cheats of which the measured baseline, C, tells how far apart they are."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """How far one end is off."""

    training: str
    way: str
    kind: Kind
    start: int
    every: int
    """k, the steps that were taken."""
    apart: Apart


class Measured(msgspec.Struct, frozen=True):
    """A run of the benchmark, as JSON."""

    about: str
    """With what it was made."""
    found: list[Found]


def markdown(runs: list[Measured]) -> str:
    """How far apart cheats and machines are, for all trainings; then every way of each training."""
    results = [one for run in runs for one in run.found]
    trainings = {title: [one for one in results if one.training == title] for title in _unique(results, "training")}
    only_data = {title: [one for one in found if one.kind != "setting"] for title, found in trainings.items()}
    parts = [
        *(run.about for run in runs),
        "### Smallest cheat over largest honest error", _ratios(trainings),
        "### The same, of cheats with data alone", _ratios(only_data),
        f"### From the first step: {' or '.join(BEFORE[1])} over {BEFORE[0]}", _before(trainings),
    ]  # fmt: skip
    for title, found in trainings.items():
        parts.append(f"### {title}")
        starts = ", ".join(map(str, _unique(found, "start")))
        for name, metric in METRICS.items():
            parts += [f"Errors of {name}, from the states after {starts} steps:", _errors(found, metric)]
    return "\n\n".join(parts)


def _ratios(trainings: dict[str, list[Found]]) -> str:
    """One row for each training and metric: the ratio of the medians, and that of the worst."""
    sizes = _sizes(trainings)
    lines = _head(["training", "error of", *(f"k = {k}" for k in sizes)])
    for title, found in trainings.items():
        for name, metric in METRICS.items():
            cells = [_ratio([one for one in found if one.every == k], metric) for k in sizes]
            lines.append(page.row([title, name, *cells]))
    return "\n".join(lines)


def _ratio(found: list[Found], metric: Metric) -> str:
    """Of one k: by the medians over the starts, and in brackets by the worst of all starts."""
    honest = _by_way([one for one in found if one.kind == "honest"], metric)
    cheats = _by_way([one for one in found if one.kind != "honest"], metric)
    if not honest or not cheats:
        return "–"
    typical = ratio(min(map(statistics.median, cheats.values())), max(map(statistics.median, honest.values())))
    worst = ratio(min(map(min, cheats.values())), max(map(max, honest.values())))
    return f"{_number(typical)} ({_number(worst)})"


def _before(trainings: dict[str, list[Found]]) -> str:
    """Of each training: the smaller of the two cheats over the honest way, from the first state."""
    sizes = _sizes(trainings)
    lines = _head(["training", *(f"k = {k}" for k in sizes)])
    for title, found in trainings.items():
        first = min(one.start for one in found)
        known = {(one.way, one.every): one.apart.whole for one in found if one.start == first}
        cells = []
        for k in sizes:
            there = [known[way, k] for way in BEFORE[1] if (way, k) in known]
            cells.append(_number(ratio(min(there), known[BEFORE[0], k])) if there else "–")
        lines.append(page.row([title, *cells]))
    return "\n".join(lines)


def _errors(found: list[Found], metric: Metric) -> str:
    """A row for each way: median over the starts, and in brackets the worst: largest honest, smallest cheat."""
    sizes = _sizes({"": found})
    by_size = {k: _by_way([one for one in found if one.every == k], metric) for k in sizes}
    kinds = {one.way: one.kind for one in found}
    lines = _head(["", *(f"k = {k}" for k in sizes)])
    for way, kind in kinds.items():
        most = max if kind == "honest" else min
        values = [by_size[k].get(way) for k in sizes]
        cells = ["–" if one is None else f"{statistics.median(one):.1e} ({most(one):.1e})" for one in values]
        lines.append(page.row([way if kind == "honest" else f"*{way}*", *cells]))
    cheats = [way for way, kind in kinds.items() if kind != "honest"]
    smallest = [_smallest({way: by_size[k][way] for way in cheats}) for k in sizes]
    return "\n".join([*lines, page.row(["smallest cheat", *smallest])])


def _smallest(errors: dict[str, list[float]]) -> str:
    return min(errors, key=lambda way: statistics.median(errors[way]))


def _by_way(found: list[Found], metric: Metric) -> dict[str, list[float]]:
    """The errors of each way, one for each start."""
    return {way: [metric(one.apart) for one in found if one.way == way] for way in _unique(found, "way")}


def _sizes(trainings: dict[str, list[Found]]) -> list[int]:
    return sorted({one.every for found in trainings.values() for one in found})


def _head(cells: list[str]) -> list[str]:
    return [page.row(cells), "|" + "---|" * len(cells)]


def _unique(found: list[Found], name: str) -> list[str]:
    return list(dict.fromkeys(getattr(one, name) for one in found))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
