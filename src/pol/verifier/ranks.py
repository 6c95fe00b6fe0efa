"""A screen for first weights that were laid out in the order of the last ones.

The test of the laws sees which values a tensor has and not where: fresh draws, the smallest of them put where the
stolen tensor has its smallest, pass it, and start close to the stolen weights (the scatter form of attack A6). The
rank correlation alone does not tell them: it is also 1 where an honest run only decayed, moved little, or froze.

What tells them is that the *gaps* changed and the order did not. Take neighbours in the order of the first values. In
an honest run what was added to the two does not depend on which of them was the smaller one; so where it changed
their gap by more than the gap itself, it closes it past zero (the two swap) as often as it doubles it. Sorted draws
double a third of the gaps and swap none. No honest run is decided by a shift, a scale, decay, shrinkage, a frozen
layer, one huge outlier or steps below the spacing of the values: those change no gap by so much against its
surroundings, or change few, or swap as many.

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

_BLOCK = 32
"""Neighbours that share an expected change of their gaps: so few that any smooth map scales all of them alike."""

_MARGIN = 1.5
"""How much a gap must change, in units of the expected gap, to tell: 1 is where a pair swaps; more, for rounding."""

_MOVED = 1e-3
"""Share of the interquartile range by which a tenth of the values must have moved, beyond shift and scale. Below it
sorted draws and honest decay that float32 rounds unevenly look alike."""

_TELLING = 0.05
"""Least share of the gaps that must tell; sorted draws reach 0.1 to 0.3."""

_SWAPS = 0.1
"""Largest share of these that may have swapped in a tensor that fails; half do in an honest one."""

_SURPRISE = math.log(1e6)
"""An honest tensor fails with probability 10⁻⁶, by Chernoff's bound for as many fair coins. (Neighbouring pairs share a
value, so they are not quite independent; 72,000 simulated honest tensors of 40 kinds gave no failure.)"""


@dataclass(frozen=True)
class Order:
    """What the neighbours of a tensor show."""

    gaps: int
    """Neighbours in the order of their first values, which differ."""
    telling: int
    """Of these, gaps that changed by more than themselves, where their surroundings are scaled alike."""
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
    values, places = np.unique(first, return_index=True)  # equal first values have no order that could be kept
    blocks = values.size // _BLOCK
    if not blocks:
        return None
    x, y = (part[: blocks * _BLOCK].reshape(blocks, _BLOCK).astype(np.float64) for part in (values, last[places]))
    slopes = np.pad(_slope(x, y), 1, mode="edge")
    steepest = np.maximum(np.maximum(slopes[:-2], slopes[1:-1]), slopes[2:])  # a clipped tensor has bends in some block
    expected, now = steepest[:, None] * np.diff(x), np.diff(y)
    telling = np.abs(now - expected) > _MARGIN * expected
    return Order(now.size, int(telling.sum()), int((telling & (now < 0)).sum()))


def _slope(x: Array, y: Array) -> Array:
    """How much each row of ``y`` rises with that of ``x``, which is sorted: by the medians of its outer quarters.

    Medians, so that outliers do not matter; never downward.
    """
    quarter = x.shape[-1] // 4
    low, high = (..., slice(None, quarter)), (..., slice(-quarter, None))
    rises, spreads = (np.median(part[high], axis=-1) - np.median(part[low], axis=-1) for part in (y, x))
    found: Array = np.maximum(0.0, np.divide(rises, spreads, out=np.zeros_like(rises), where=spreads > 0))
    return found


def _moved(first: NDArray[Any], last: NDArray[Any]) -> bool:
    """Whether the values did more than shift and scale. Of a large tensor some are looked at, evenly spaced."""
    step = -(-first.size // _BAND)
    x, y = first[::step].astype(np.float64), last[::step].astype(np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return False  # such values have failed before
    position = np.argsort(x, kind="stable")
    x, y = x[position], y[position]
    rest = y - float(_slope(x[None], y[None])[0]) * x
    upper, lower = np.quantile(y, [0.75, 0.25])
    return bool(np.quantile(np.abs(rest - np.median(rest)), 0.9) > _MOVED * (upper - lower))
