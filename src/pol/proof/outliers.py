"""How far values are from their neighbours in a series, in robust standard deviations."""

from __future__ import annotations

import math
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
    """How far each value is from the median of its neighbours, in their spreads, with sign; at most ``MOST``.

    The spread is their median absolute deviation, as the standard deviation that a normal distribution would have.

    Args:
        values: None of them NaN or +inf; -inf is below all others.
        least: The least spread that there is around each, above 0: where neighbours are equal, theirs is none.
    """
    width = min(NEIGHBOURS, len(values) - 1)
    if width < FEWEST:
        return [0.0] * len(values)
    found = []
    for index, value in enumerate(values):
        begin = min(max(index - width // 2, 0), len(values) - 1 - width)
        around = sorted([*values[begin:index], *values[index + 1 : begin + width + 1]])
        found.append(_score(value, around, least[index]))
    return found


def _score(value: float, around: list[float], least: float) -> float:
    """One value against its sorted neighbours."""
    middle = around[len(around) // 2]
    if value == middle:
        return 0.0
    if math.isinf(value) or math.isinf(middle):  # nothing moved where others did, or the other way round
        return MOST if value > middle else -MOST
    spread = max(_DEVIATION * sorted(abs(other - middle) for other in around)[len(around) // 2], least)
    return min(max((value - middle) / spread, -MOST), MOST)
