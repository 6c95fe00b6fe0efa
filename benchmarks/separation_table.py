"""What the separation benchmark found, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

import msgspec

from benchmarks import page
from benchmarks.apart import Apart
from pol.distance import ratio


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """How far one end is off."""

    training: str
    way: str
    honest: bool
    start: int
    every: int
    """k, the steps that were taken."""
    apart: Apart


Metric = Callable[[Apart], float]

METRICS: dict[str, Metric] = {
    "all parameters": lambda apart: apart.whole,
    "the worst tensor": lambda apart: apart.own,
    "the worst tensor, moments included": lambda apart: apart.worst,
    "an entry, as a share of its limit": lambda apart: apart.limit,
}
"""What is compared: see ``Apart``."""


def markdown(results: list[Found], about: str) -> str:
    """How far apart cheats and machines are, for all trainings; then every way of each training."""
    trainings = {title: [one for one in results if one.training == title] for title in _unique(results, "training")}
    parts = [about, "### Smallest cheat over largest honest error", _ratios(trainings)]
    for title, found in trainings.items():
        parts.append(f"### {title}")
        starts = ", ".join(map(str, _unique(found, "start")))
        for name, metric in METRICS.items():
            parts += [f"Errors of {name}, from the states after {starts} steps:", _errors(found, metric)]
    return "\n\n".join(parts)


def _ratios(trainings: dict[str, list[Found]]) -> str:
    """One row for each training and metric: the ratio of the medians, and that of the worst."""
    sizes = sorted({one.every for found in trainings.values() for one in found})
    lines = _head(["training", "error of", *(f"k = {k}" for k in sizes)])
    for title, found in trainings.items():
        for name, metric in METRICS.items():
            cells = [_ratio([one for one in found if one.every == k], metric) for k in sizes]
            lines.append(page.row([title, name, *cells]))
    return "\n".join(lines)


def _ratio(found: list[Found], metric: Metric) -> str:
    """Of one k: by the medians over the starts, and in brackets by the worst of all starts."""
    typical, worst = [], []
    for honest, most in ((False, min), (True, max)):
        by_way = [
            [metric(one.apart) for one in found if one.way == way]
            for way in dict.fromkeys(one.way for one in found if one.honest == honest)
        ]
        if not by_way:
            return "–"
        typical.append(most(map(statistics.median, by_way)))
        worst.append(most(most(values) for values in by_way))
    return f"{_number(ratio(*typical))} ({_number(ratio(*worst))})"


def _errors(found: list[Found], metric: Metric) -> str:
    """A row for each way: median over the starts, and in brackets the worst: largest honest, smallest cheat."""
    sizes = sorted({one.every for one in found})
    lines = _head(["", *(f"k = {k}" for k in sizes)])
    for way in _unique(found, "way"):
        cells = []
        for k in sizes:
            values = [(metric(one.apart), one.honest) for one in found if one.way == way and one.every == k]
            if not values:
                cells.append("–")
                continue
            worst = (max if values[0][1] else min)(value for value, _ in values)
            cells.append(f"{statistics.median(value for value, _ in values):.1e} ({worst:.1e})")
        honest = next(one.honest for one in found if one.way == way)
        lines.append(page.row([way if honest else f"*{way}*", *cells]))
    return "\n".join(lines)


def _head(cells: list[str]) -> list[str]:
    return [page.row(cells), "|" + "---|" * len(cells)]


def _unique(found: Iterable[Found], name: str) -> list[str]:
    return list(dict.fromkeys(getattr(one, name) for one in found))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
