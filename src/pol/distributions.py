"""Distributions, and how well values fit them: the two-sided test of Kolmogorov and Smirnov, and Holm's procedure.

The test sees the values of a tensor and not their places (``pol.verifier.ranks`` looks at these).

**Rounding.** A value stands for all reals that round to it, and the statistic is the smallest that any of these gives:
ties and coarse types (bfloat16, float16) never fail an honest tensor that was drawn in float32 and then rounded. One
that was drawn *in* a coarse type is not rounded but takes few values (256 of a uniform law in bfloat16); large ones
fit no law, and a verifier sees that in its own builds: they are unverified, never failed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EXACT_UP_TO = 2000
"""Values up to which the exact distribution of the statistic is used (about a millisecond there, and growing). The
asymptotic one gives larger p-values, by at most 7 % at the levels in use: the test stays within its level."""

IMPOSSIBLE = 1e-12
"""Probability below which a single value of an unbounded law counts as outside its support: one huge weight among
many moves the statistic by 1/n only."""

_CHUNK = 1 << 20
"""Values that are looked at at a time: 8 MiB as float64."""

_DRAW = 2.0**-23
"""Relative precision of draws: torch takes 24 random bits for a uniform number, and a few roundings follow."""

_HALF_UNIT = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
_SMALLEST = {"F64": 0.0, "F32": 2.0**-149, "F16": 2.0**-24, "BF16": 2.0**-133}


class Distribution(Protocol):
    """A law bound to a shape."""

    @property
    def scale(self) -> float:
        """Size of its values, for the precision of draws."""

    def support(self, n: int) -> tuple[float, float]:
        """Between which values ``n`` draws lie."""

    def cdf(self, x: Array) -> Array:
        """Cumulative distribution function; for every real number."""


@dataclass(frozen=True)
class Uniform:
    """U(low, high)."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        """See ``Distribution``."""
        return max(abs(self.low), abs(self.high))

    def support(self, n: int) -> tuple[float, float]:
        """See ``Distribution``."""
        return self.low, self.high

    def cdf(self, x: Array) -> Array:
        """See ``Distribution``."""
        return np.clip((x - self.low) / (self.high - self.low), 0.0, 1.0)


@dataclass(frozen=True)
class Normal:
    """N(mean, std²), given that the value lies in [low, high]."""

    mean: float
    std: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def scale(self) -> float:
        """See ``Distribution``."""
        return abs(self.mean) + self.std

    def support(self, n: int) -> tuple[float, float]:
        """See ``Distribution``."""
        from scipy.special import ndtri

        reach = -float(ndtri(IMPOSSIBLE / 2 / max(n, 1))) * self.std
        return max(self.low, self.mean - reach), min(self.high, self.mean + reach)

    def cdf(self, x: Array) -> Array:
        """See ``Distribution``."""
        from scipy.special import ndtr

        a, b = (float(ndtr((end - self.mean) / self.std)) for end in (self.low, self.high))
        found: Array = np.clip((ndtr((x - self.mean) / self.std) - a) / (b - a), 0.0, 1.0)
        return found


@dataclass(frozen=True)
class Constant:
    """One value."""

    value: float

    @property
    def scale(self) -> float:
        """See ``Distribution``."""
        return 0.0

    def support(self, n: int) -> tuple[float, float]:
        """See ``Distribution``."""
        return self.value, self.value

    def cdf(self, x: Array) -> Array:
        """See ``Distribution``."""
        return (x >= self.value).astype(np.float64)


def p_value(ordered: NDArray[Any], law: Distribution, dtype: str = "F64") -> float:
    """How likely independent draws are to fit ``law`` no better than these values, in ascending order.

    0 if a value is NaN or outside the support; of a constant 1 or 0.

    Args:
        ordered: The values, sorted (NaN last); none is an error.
        law: What they are to be drawn from.
        dtype: Their element type, for its rounding.
    """
    n = ordered.size
    if not n:
        raise ValueError("there are no values to test")
    ends = np.asarray(ordered[[0, -1]], dtype=np.float64)  # NaN is last, infinities are at the ends
    if not np.isfinite(ends).all():
        return 0.0
    low, high = law.support(n)
    slack = _slack(ends, law.scale, dtype)
    if ends[0] < low - slack[0] or ends[1] > high + slack[1]:
        return 0.0
    return 1.0 if isinstance(law, Constant) else _survival(_statistic(ordered, law, dtype), n)


def _slack(values: Array, scale: float, dtype: str) -> Array:
    """How far the real numbers lie from these values."""
    return (_HALF_UNIT[dtype] + _DRAW) * np.abs(values) + _DRAW * scale + _SMALLEST[dtype]


def _statistic(ordered: NDArray[Any], law: Distribution, dtype: str) -> float:
    """Largest distance of the empirical distribution function from the law's, less what rounding explains."""
    n, largest = ordered.size, 0.0
    for begin in range(0, n, _CHUNK):
        values = ordered[begin : begin + _CHUNK].astype(np.float64)
        slack = _slack(values, law.scale, dtype)
        below = np.arange(begin, begin + values.size) / n
        above = float(np.max(below + 1 / n - law.cdf(values + slack)))
        largest = max(largest, above, float(np.max(law.cdf(values - slack) - below)))
    return largest


def _survival(statistic: float, n: int) -> float:
    if n <= EXACT_UP_TO:
        from scipy.stats import kstwo

        return float(np.clip(kstwo.sf(statistic, n), 0.0, 1.0))
    from scipy.special import kolmogorov

    return float(kolmogorov(statistic * math.sqrt(n)))


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses are rejected so that, if all are true, one is with probability ``level`` at most (Holm 1979)."""
    values = [0.0 if math.isnan(p) else p for p in p_values]
    rejected = [False] * len(values)
    for done, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        if values[index] > level / (len(values) - done):
            break
        rejected[index] = True
    return rejected
