"""A screen for first weights that were laid out in the order of the last ones.

The test of the laws sees which values a tensor has and not where: fresh draws, the smallest of them put where the
stolen tensor has its smallest, pass it, and start close to the stolen weights (the scatter form of attack A6). The
rank correlation alone does not tell them: it is also 1 where an honest run only decayed, moved little, or froze.

What tells them is that the *gaps* changed and the order did not. Take neighbours in the order of the first values. In
an honest run what was added to the two does not depend on which of them was the smaller one; so where it changed
their gap by more than the gap itself, it closes it past zero (the two swap) as often as it doubles it. Sorted draws
double a third of the gaps and swap none. No honest run is decided by a shift, a scale, decay, a frozen layer, one huge
outlier or steps below the spacing of the values: those change no gap by so much, or change few, or swap as many.

**It is a screen, not a proof.** A forger that knows it shuffles its draws a little, keeps nearly all of the closeness,
and passes. Only an initialisation that is derived from the seed stops this attack.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FEWEST = 100
"""Values below which nothing is decided."""

_BAND = 1 << 17
"""Most values whose gaps are looked at; of a larger tensor those in the middle, where floats lie densest."""

_MOVED = 1e-3
"""Share of the interquartile range by which a tenth of the values must have moved, beyond shift and scale. Below it
sorted draws and honest decay that float32 rounds unevenly look alike."""

_TELLING = 0.05
"""Least share of the gaps that must have changed by more than themselves; sorted draws reach 0.15 to 0.5."""

_SWAPS = 0.1
"""Largest share of these that may have swapped in a tensor that fails; half do in an honest one."""

_SURPRISE = math.log(1e6)
"""An honest tensor fails with probability 10⁻⁶ at most, by Chernoff's bound for fair coins."""


@dataclass(frozen=True)
class Order:
    """What the neighbours of a tensor show."""

    gaps: int
    """Neighbours with different first values."""
    telling: int
    """Of these, gaps that changed by more than themselves."""
    swapped: int
    """Of these, pairs that swapped."""

    @property
    def kept(self) -> bool:
        """Whether the order was kept where chance would have swapped half."""
        if not self.telling or self.telling < _TELLING * self.gaps or self.swapped > _SWAPS * self.telling:
            return False
        share = self.swapped / self.telling
        entropy = -sum(part * math.log(part) for part in (share, 1 - share) if part)
        return self.telling * (math.log(2) - entropy) >= _SURPRISE


def order(first: NDArray[Any], last: NDArray[Any]) -> Order | None:
    """Compare the order of a tensor's first and last values; None if there is nothing to decide."""
    if first.size < FEWEST or not _moved(first, last):
        return None
    if first.size > _BAND:
        begin = (first.size - _BAND) // 2
        low, high = np.partition(first, [begin, begin + _BAND])[[begin, begin + _BAND]]
        chosen = (first >= low) & (first <= high)
        first, last = first[chosen], last[chosen]
    position = np.argsort(first, kind="stable")
    x, y = first[position].astype(np.float64), last[position].astype(np.float64)
    gaps, now = np.diff(x), np.diff(y)
    apart = gaps > 0  # equal first values have no order that could be kept
    gaps, now = _slope(x, y) * gaps[apart], now[apart]
    telling = np.abs(now - gaps) > gaps
    return Order(int(apart.sum()), int(telling.sum()), int((telling & (now < 0)).sum()))


def _slope(x: Array, y: Array) -> float:
    """How much ``y`` rises with ``x``, which is sorted: between outer quarters, by medians, and never downward."""
    quarter = x.size // 4
    spread = float(np.median(x[-quarter:]) - np.median(x[:quarter]))
    return max(0.0, float(np.median(y[-quarter:]) - np.median(y[:quarter])) / spread) if spread > 0 else 0.0


def _moved(first: NDArray[Any], last: NDArray[Any]) -> bool:
    """Whether the values did more than shift and scale. Of a large tensor some are looked at, evenly spaced."""
    step = -(-first.size // _BAND)
    x, y = first[::step].astype(np.float64), last[::step].astype(np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return False  # such values have failed before
    position = np.argsort(x, kind="stable")
    x, y = x[position], y[position]
    rest = y - _slope(x, y) * x
    upper, lower = np.quantile(y, [0.75, 0.25])
    return bool(np.quantile(np.abs(rest - np.median(rest)), 0.9) > _MOVED * (upper - lower))
