"""How far values are from their neighbours in a series, in robust standard deviations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

NEIGHBOURS = 20
"""Values to which one is compared, those nearest to it: few, so that a trend hardly moves among them; enough for a
median and a spread."""

FEWEST = 8
"""Neighbours with which something is compared; fewer give no spread."""

MOST = 1e3
"""Largest score; also that of nothing at all among something, whose logarithm has no end."""

_DEVIATION = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""


def scores(values: Sequence[float], least: Sequence[float]) -> list[float]:
    """How far each value is from where its neighbours lead, in their spreads, with sign; at most ``MOST``.

    They lead along a straight line, whose slope is that between the medians of their two halves: without it a value in
    the middle of a steep rise is hidden by it, and one at its end sticks out. The spread is their median absolute
    deviation from that line, as the standard deviation that a normal distribution would have.

    Args:
        values: Up to 1e300 in size, or -inf, which is below all others.
        least: The least spread that there is around each, above 0: where neighbours are equal, theirs is none.
    """
    width = min(NEIGHBOURS, len(values) - 1)
    if width < FEWEST:
        return [0.0] * len(values)
    found = []
    for index, value in enumerate(values):
        begin = min(max(index - width // 2, 0), len(values) - 1 - width)
        places = [place for place in range(begin, begin + width + 1) if place != index]
        around = [values[place] for place in places]
        slope = _slope(places, around)
        led = [other - slope * (place - index) for place, other in zip(places, around, strict=True)]
        found.append(_score(value, led, least[index]))
    return found


def _slope(places: Sequence[int], values: Sequence[float]) -> float:
    """How much values rise from place to place; 0 where half of them have no end."""
    half = len(places) // 2
    rise = statistics.median(values[-half:]) - statistics.median(values[:half])
    run = statistics.median(places[-half:]) - statistics.median(places[:half])
    return rise / run if math.isfinite(rise) else 0.0


def _median(values: Sequence[float]) -> float:
    """The middle one, or the upper of two: defined for infinities, too."""
    return sorted(values)[len(values) // 2]


def _score(value: float, around: Sequence[float], least: float) -> float:
    """One value against its neighbours."""
    middle = _median(around)
    if value == middle:
        return 0.0
    if math.isinf(value) or math.isinf(middle):  # nothing moved where others did, or the other way round
        return MOST if value > middle else -MOST
    spread = max(_DEVIATION * _median([abs(other - middle) for other in around]), least)
    return min(max((value - middle) / spread, -MOST), MOST)
