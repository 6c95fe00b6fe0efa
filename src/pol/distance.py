"""Distances between states: l1, l2, linf and cosine, per tensor and in total, in float64, a chunk at a time.

The cosine distance is 1 − <a,b> / (‖a‖ ‖b‖), in [0, 2]: 0 for equal vectors, two zero vectors among them, and 1 if
exactly one is zero. Sums of squares carry an exponent of their own, so values near 1e200 or 1e-200 neither overflow nor
vanish. A distance that is itself beyond float64 is ``inf`` (and the cosine NaN where a single difference is). If a
value that is compared is NaN or infinite, every distance is NaN. So accept only what ``within`` accepts.

Integers and booleans count as their float64 values; above 2^53 different integers may then have distance 0. Whoever
needs equality asks ``equal``, which compares bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pol.values import Values, floats

METRICS = ("l1", "l2", "linf", "cos")


@dataclass(frozen=True)
class Distances:
    """The four distances between two tensors, or between two states."""

    l1: float
    l2: float
    linf: float
    cos: float
    size: int
    """Elements that were compared."""
    equal: bool
    """Whether they are the same bit for bit."""

    def metric(self, name: str) -> float:
        """The distance in one of ``METRICS``."""
        return {"l1": self.l1, "l2": self.l2, "linf": self.linf, "cos": self.cos}[name]

    def relative(self, update: Distances) -> Ratios:
        """This error relative to an interval's own update, ‖a − b‖ / ‖b − start‖, as ``ratio`` divides."""
        return Ratios(**{name: ratio(self.metric(name), update.metric(name)) for name in METRICS})

    def normalised(self, reference: Mapping[str, float]) -> Ratios:
        """This error as a share of the reference distance d_ref of each metric, as ``ratio`` divides."""
        return Ratios(**{name: ratio(self.metric(name), reference[name]) for name in METRICS})


@dataclass(frozen=True)
class Ratios:
    """Distances divided by others."""

    l1: float
    l2: float
    linf: float
    cos: float


@dataclass(frozen=True)
class Comparison:
    """Two states compared: all of them, and every tensor."""

    total: Distances
    tensors: dict[str, Distances]


def within(distance: float, limit: float) -> bool:
    """Whether a distance is accepted: it is finite, and no larger than the limit. NaN is neither."""
    return math.isfinite(distance) and distance <= limit


def ratio(distance: float, by: float) -> float:
    """``distance / by``, where 0/0 is 0 (nothing moved, and nothing is wrong) and x/0 is ``inf``.

    NaN if either is NaN, or if ``by`` is not a finite distance: an infinite update must not make every error small.
    """
    if math.isnan(distance) or not math.isfinite(by) or by < 0:
        return math.nan
    if by == 0:
        return 0.0 if distance == 0 else math.inf
    return distance / by


class Accumulator:
    """The distances of two tensors that come in chunks, or of two states whose tensors are merged."""

    def __init__(self) -> None:
        self._l1 = self._linf = 0.0
        self._size, self._finite, self._equal = 0, True, True
        self._a, self._b, self._difference, self._product = _Sum(), _Sum(), _Sum(), _Sum()

    def add(self, a: ArrayLike, b: ArrayLike) -> None:
        """Compare two chunks of one shape.

        Raises:
            ValueError: the shapes differ.
        """
        first, second = np.asarray(a), np.asarray(b)
        if first.shape != second.shape:
            raise ValueError(f"chunks of shapes {first.shape} and {second.shape} cannot be compared")
        if not first.size:
            self._equal = self._equal and first.dtype == second.dtype
            return
        self._size += first.size
        self._equal = self._equal and _same_bits(first, second)
        x, y = floats(first.reshape(-1)), floats(second.reshape(-1))
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            self._finite = False
            return
        with np.errstate(over="ignore", under="ignore"):  # a sum beyond float64 is inf, and said to be
            difference = x - y
            self._l1 += float(np.abs(difference).sum())
            self._linf = max(self._linf, float(np.abs(difference).max()))
            if not math.isfinite(self._linf):
                return
            (x, of_x), (y, of_y), (difference, of_difference) = _scaled(x), _scaled(y), _scaled(difference)
            self._a.add(_dot(x, x), 2 * of_x)
            self._b.add(_dot(y, y), 2 * of_y)
            self._difference.add(_dot(difference, difference), 2 * of_difference)
            self._product.add(_dot(x, y), of_x + of_y)

    def merge(self, other: Accumulator) -> None:
        """Count what another one has compared as well."""
        self._l1 += other._l1
        self._linf = max(self._linf, other._linf)
        self._size += other._size
        self._finite, self._equal = self._finite and other._finite, self._equal and other._equal
        for name in ("_a", "_b", "_difference", "_product"):
            added: _Sum = getattr(other, name)
            getattr(self, name).add(added.value, added.exponent)

    def result(self) -> Distances:
        """The distances of all that was compared so far."""
        if not self._finite:
            return Distances(math.nan, math.nan, math.nan, math.nan, self._size, self._equal)
        if not math.isfinite(self._linf):
            return Distances(math.inf, math.inf, math.inf, math.nan, self._size, self._equal)
        return Distances(self._l1, self._difference.root(), self._linf, self._cosine(), self._size, self._equal)

    def _cosine(self) -> float:
        if self._difference.value == 0:
            return 0.0
        if self._a.value == 0 or self._b.value == 0:
            return 1.0
        larger = max(self._a, self._b, key=_Sum.size)
        if self._difference.over(larger) > 0.25:
            exponent = self._product.exponent - (self._a.exponent + self._b.exponent) // 2
            found = 1 - _ldexp(self._product.value / math.sqrt(self._a.value * self._b.value), exponent)
        else:  # 1 − cos would be mostly rounding; the same is (‖a−b‖² − (‖a‖−‖b‖)²) / (2 ‖a‖ ‖b‖)
            a, b, apart = (total.at(larger.exponent) for total in (self._a, self._b, self._difference))
            found = (apart - ((a - b) / (math.sqrt(a) + math.sqrt(b))) ** 2) / (2 * math.sqrt(a * b))
        return min(max(found, 0.0), 2.0)


def compare(tensors: Iterable[tuple[str, Iterable[tuple[Values, Values]]]]) -> Comparison:
    """Compare two states given as (name, pairs of chunks).

    Raises:
        ValueError: there is nothing to compare (no tensor would be no distance), or chunks differ in shape.
    """
    found: dict[str, Distances] = {}
    total = Accumulator()
    for name, pairs in tensors:
        one = Accumulator()
        for a, b in pairs:
            one.add(a, b)
        found[name] = one.result()
        total.merge(one)
    if not found:
        raise ValueError("there is no tensor to compare")
    return Comparison(total.result(), found)


_LEAST = -2000
"""Exponent of a sum of zeros: twice the least of a chunk. Times 2^1000 even the smallest float64 can be squared."""


class _Sum:
    """A sum ``value · 2^exponent`` whose parts may lie anywhere in the range of float64, squared."""

    def __init__(self) -> None:
        self.value, self.exponent = 0.0, _LEAST

    def add(self, value: float, exponent: int) -> None:
        if exponent > self.exponent:
            self.value, self.exponent = _ldexp(self.value, self.exponent - exponent), exponent
        self.value += _ldexp(value, exponent - self.exponent)

    def at(self, exponent: int) -> float:
        """The value that goes with another exponent."""
        return _ldexp(self.value, self.exponent - exponent)

    def size(self) -> tuple[int, float]:
        """Sorts sums that are not 0."""
        value, exponent = math.frexp(self.value)
        return exponent + self.exponent, value

    def over(self, other: _Sum) -> float:
        return _ldexp(self.value / other.value, self.exponent - other.exponent)

    def root(self) -> float:
        return _ldexp(math.sqrt(self.value), self.exponent // 2)


def _scaled(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Values times a power of two, which is exact, so that the largest is about 1; and its exponent."""
    exponent = max(math.frexp(float(np.abs(values).max()))[1], _LEAST // 2)
    return values * math.ldexp(1.0, -exponent), exponent


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Inner product, summed pairwise by numpy itself: no BLAS, whose order of sums depends on the machine."""
    return float(np.sum(a * b))


def _ldexp(value: float, exponent: int) -> float:
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.copysign(math.inf, value)


def _same_bits(a: Values, b: Values) -> bool:
    return a.dtype == b.dtype and np.array_equal(
        np.ascontiguousarray(a).reshape(-1).view(np.uint8), np.ascontiguousarray(b).reshape(-1).view(np.uint8)
    )
