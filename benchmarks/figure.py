"""The overhead of every arm as a figure, as SVG: a point and its spread on a logarithmic axis."""

from __future__ import annotations

import math
from html import escape

from benchmarks.cases import ARMS, LAST, METHOD2021, RECORDER, SHA256
from benchmarks.overhead import Overhead
from benchmarks.result import Results
from benchmarks.targets import AT_MOST, arms, percent

ROW, LABEL, AXIS, TOP, RIGHT = 19, 236, 440, 62, 92
"""Sizes in pixels: the height of a row, the width of its label and of the axis, the head, and the numbers."""

LEAST, MOST = 1e-4, 3.0
"""Ends of the axis: 0.01 % is less than any loop's spread, 300 % more than any arm adds to a step of milliseconds.
What lies beyond is drawn at the end."""

TICKS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)

COLOURS = {RECORDER: "#1f6feb", METHOD2021: "#c2571a", SHA256: "#6b7280"}
"""Of this package, of 2021, and of one-thread hashing; each has a shape, too."""

FONT = "font-family='system-ui, sans-serif' font-size='12'"


def figure(results: Results) -> str:
    """The figure."""
    found = [(measured, arms(measured)) for measured in results.measured]
    height = TOP + sum(ROW * (len(each) + 1) + 10 for _, each in found) + 34
    width = LABEL + AXIS + RIGHT
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}' "
        f"role='img' {FONT}>",
        "<title>Time that recording adds to a training step, by method and interval</title>",
        f"<rect width='{width}' height='{height}' fill='#ffffff'/>",
        _text(12, 18, "Time added to a bare step", weight="600"),
        *_legend(36),
        *_axis(TOP, height - 34),
    ]
    y = float(TOP)
    for measured, each in found:
        parts.append(_text(12, y + 14, measured.title, weight="600"))
        y += ROW
        for one in each:
            if (target := AT_MOST.get((measured.case, one.every, one.keep or 0))) is not None:
                parts.append(_bar(_x(target), y + ROW / 2))
            parts += _row(y, one)
            y += ROW
        y += 10
    return "\n".join([*parts, "</svg>"]) + "\n"


def _x(share: float) -> float:
    inside = min(max(share, LEAST), MOST)
    return LABEL + AXIS * math.log(inside / LEAST) / math.log(MOST / LEAST)


def _legend(y: float) -> list[str]:
    parts, x = [], 12.0
    for arm, colour in COLOURS.items():
        parts += [_mark(x + 5, y - 4, arm, colour, filled=True), _text(x + 15, y, ARMS[arm])]
        x += 40 + 6.6 * len(ARMS[arm])
    parts.append(_mark(x + 5, y - 4, RECORDER, "#1f2933", filled=False))
    parts.append(_text(x + 15, y, "hollow: by clocks"))
    parts += [_bar(x + 142, y - 4), _text(x + 152, y, "target")]
    return parts


def _bar(x: float, y: float) -> str:
    return f"<line x1='{x:.1f}' y1='{y - 8}' x2='{x:.1f}' y2='{y + 8}' stroke='#2e7d4f' stroke-width='2.5'/>"


def _axis(top: float, bottom: float) -> list[str]:
    parts = []
    for tick in TICKS:
        x = _x(tick)
        parts.append(f"<line x1='{x:.1f}' y1='{top}' x2='{x:.1f}' y2='{bottom}' stroke='#d5d9de'/>")
        parts.append(_text(x, bottom + 16, f"{100 * tick:g} %", anchor="middle"))
    return parts


def _row(y: float, one: Overhead) -> list[str]:
    colour, middle, found = COLOURS[one.arm], y + ROW / 2, one.counts
    low, high, x = _x(found.low), _x(found.high), _x(found.median)
    kept = "" if one.keep is None else (", first and last" if one.keep == LAST else f", K = {one.keep}")
    return [
        _text(LABEL - 12, middle + 4, f"{ARMS[one.arm]}, k = {one.every}{kept}", anchor="end"),
        f"<line x1='{low:.1f}' y1='{middle}' x2='{high:.1f}' y2='{middle}' stroke='{colour}' stroke-width='3' "
        "stroke-opacity='0.4'/>",
        _mark(x, middle, one.arm, colour, filled=one.resolved),
        _text(LABEL + AXIS + 10, middle + 4, percent(found.median)),
    ]


def _mark(x: float, y: float, arm: str, colour: str, *, filled: bool) -> str:
    style = f"fill='{colour if filled else '#ffffff'}' stroke='{colour}' stroke-width='1.5'"
    if arm == METHOD2021:
        return f"<rect x='{x - 4:.1f}' y='{y - 4:.1f}' width='8' height='8' {style}/>"
    if arm == SHA256:
        points = f"{x:.1f},{y - 5:.1f} {x + 5:.1f},{y + 4:.1f} {x - 5:.1f},{y + 4:.1f}"
        return f"<polygon points='{points}' {style}/>"
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4.5' {style}/>"


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "400") -> str:
    return (
        f"<text x='{x:g}' y='{y:g}' text-anchor='{anchor}' font-weight='{weight}' fill='#1f2933'>{escape(text)}</text>"
    )
