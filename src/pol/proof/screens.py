"""Screens: what stands out in a run's records and kept states, without taking a step again.

They steer the challenge (the most suspicious intervals are replayed, too) and are reported. None of them decides: what
is unusual may be honest, and a forger who knows these pages makes nothing stand out. Pure arithmetic over numbers that
the verifier measured itself; the recorded losses and learning rates are claims.

- ``norms``: windows that moved a kind of state unusually far, or little, for their neighbourhood (a jump, a pause).
- ``losses``: a recorded mean loss that leaps from one interval to the next.
- ``order``: first weights that stand in the order of the last ones (attack study, A6).
- ``line``: windows that go straight on, one after the other (interpolation; attack study, A4 and A10).

Every function is total: whatever the numbers are, zeros and nothing at all included, the result is defined and finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Literal

import msgspec

from pol.proof.outliers import FEWEST, scores

UNUSUAL = 9.0
"""Robust standard deviations from which a window or a loss is unusual: between honest runs of the shipped recipes and
of the tests, which reach 8, and jumps to stolen weights, which have 10 and more in runs of 50 windows or more."""

_EVEN = 0.2
"""Least spread of the logarithm of a size or loss. Where neighbours are as good as equal (counters; windows of many
steps, which average all noise away), only a factor of exp(0.2 * UNUSUAL) = 6 is unusual, not a bend of a schedule."""

_FLAT = 1e-3
"""Least spread of a loss, as a share of one plus its size: a share of one is what ``limits.loss`` calls nothing."""

STRAIGHT = 0.01
"""Angle, in radians, between the moves of two neighbouring windows, up to which the second goes straight on. Honest
ones of the shipped recipes turn by 0.1 and more; on a straight line of a thousand windows rounding to float32 leaves
1e-4."""

STRETCH = 4
"""Windows in a row from which going straight on is unusual."""

LISTED = 20
"""Most intervals that a screen names: more than any sensible ``challenge.screened`` would replay from one."""


Name = Literal["norms", "losses", "order", "line"]


class Screen(msgspec.Struct, frozen=True, kw_only=True):
    """What one screen saw. It says where to look, and decides nothing."""

    name: Name
    status: Literal["quiet", "unusual"]
    score: float
    """Of the most suspicious window or interval: ``norms`` and ``losses`` in robust standard deviations, ``order`` in
    tensors, ``line`` in windows. At most 1000 for the first two."""
    limit: float
    """The score from which it is unusual."""
    intervals: list[int]
    """The most suspicious intervals, the most suspicious first; of a window, the one that stands for it."""
    detail: str


@dataclass(frozen=True)
class Move:
    """One window, as the screens see it."""

    start: int
    stop: int
    """Steps before and after it."""
    interval: int
    """The interval that is replayed if this window is suspicious."""
    sizes: Mapping[str, float]
    """How far each kind of state moved, measured by the verifier."""
    taken: int
    """Steps that changed something: all that were not skipped."""
    rate: float | None
    """Mean recorded learning rate of its steps; None if none is recorded."""


@dataclass(frozen=True)
class Loss:
    """The recorded mean loss of one interval; None if all of its steps were skipped."""

    interval: int
    start: int
    stop: int
    value: float | None


@dataclass(frozen=True)
class _Scored:
    """Something suspicious, and how much."""

    score: float
    interval: int
    words: str = field(compare=False)

    @property
    def rank(self) -> tuple[float, int]:
        return (-self.score, self.interval)


# -- sizes ----------------------------------------------------------------------------------------------------------


def norms(moves: Sequence[Move]) -> Screen:
    """Windows whose moves are large or small for their neighbourhood.

    Sizes are compared as logarithms, and in four ways: per step and per root of the steps (as a steady move and a
    random walk grow), each with and without dividing by the learning rate. Only what is unusual in all four counts: a
    schedule does not show, nor a shorter last window, nor a kind that does not follow the rate.
    """
    found: dict[int, _Scored] = {}
    for kind in sorted({kind for move in moves for kind in move.sizes}):
        for index, score in enumerate(_unusual(moves, kind)):
            if index not in found or abs(score) > found[index].score:
                move, how = moves[index], "large" if score > 0 else "small"
                words = f"steps {move.start}–{move.stop}, where {kind} moved {abs(score):.3g} spreads too {how}"
                found[index] = _Scored(abs(score), move.interval, words)
    if len(moves) <= FEWEST:
        return _quiet("norms", UNUSUAL, f"{len(moves)} windows are too few to compare")
    return _screen("norms", UNUSUAL, found.values(), "the windows are alike")


def _unusual(moves: Sequence[Move], kind: str) -> list[float]:
    """For each window the number of spreads by which it is off, with sign; the least of the four views."""
    least = [math.inf] * len(moves)
    for power in (1.0, 0.5) if len({move.taken for move in moves}) > 1 else (1.0,):  # else they are one
        for rated in (False, True):
            logs = [_log(move, kind, power, rated=rated) for move in moves]
            there = [index for index, value in enumerate(logs) if value is not None]
            values = [value for value in logs if value is not None]
            if len(values) > FEWEST:
                for index, score in zip(there, scores(values, [_EVEN] * len(values)), strict=True):
                    least[index] = min(least[index], score, key=abs)
    return [0.0 if math.isinf(score) else score for score in least]


def _log(move: Move, kind: str, power: float, *, rated: bool) -> float | None:
    """Logarithm of a size in one view, -inf for no move at all; None if this window has no place in it."""
    size = move.sizes.get(kind)
    if size is None or not move.taken or (rated and not (move.rate or 0.0) > 0):
        return None
    if not size > 0 and move.rate == 0:  # a schedule that begins or ends at nothing
        return None
    if not size > 0:
        return -math.inf
    return math.log(size) - power * math.log(move.taken) - (math.log(move.rate) if rated and move.rate else 0.0)


# -- losses ---------------------------------------------------------------------------------------------------------


def leaps(points: Sequence[Loss]) -> list[tuple[Loss, Loss, float]]:
    """Each two consecutive intervals that have a loss, and by how many spreads its step is off.

    Steps are compared as differences and, of losses above 0, as ratios; only what is unusual as both counts: early
    losses fall far, late ones are small and rise manyfold.
    """
    there = [point for point in points if point.value is not None and math.isfinite(point.value)]
    values = [point.value or 0.0 for point in there]
    least = [_FLAT * (1 + min(abs(a), abs(b))) for a, b in pairwise(values)]
    found = scores([min(max(b - a, -_HUGE), _HUGE) for a, b in pairwise(values)], least)
    if all(value > 0 for value in values):
        ratios = [math.log(b) - math.log(a) for a, b in pairwise(values)]
        both = zip(found, scores(ratios, [_EVEN] * len(ratios)), strict=True)
        found = [min(pair, key=abs) for pair in both]
    return [(before, after, score) for (before, after), score in zip(pairwise(there), found, strict=True)]


_HUGE = 1e300
"""Largest difference of two losses that is told apart."""


def losses(points: Sequence[Loss]) -> Screen:
    """Leaps of the recorded loss: both intervals between which it leaps are suspicious."""
    found = []
    for before, after, score in leaps(points):
        words = (
            f"the loss goes from {before.value:.3g} (steps {before.start}–{before.stop}) to {after.value:.3g}, "
            f"{abs(score):.3g} spreads off"
        )
        found += [_Scored(abs(score), before.interval, words), _Scored(abs(score), after.interval, words)]
    if len(found) <= 2 * FEWEST:
        return _quiet("losses", UNUSUAL, f"{len(found) // 2} steps of the loss are too few to compare")
    return _screen("losses", UNUSUAL, found, "the losses follow one another")


# -- what all have in common ------------------------------------------------------------------------------------------


def _screen(name: Name, limit: float, found: Iterable[_Scored], quiet: str) -> Screen:
    """A screen of what was found; nothing of it has the score 0."""
    ranked: dict[int, _Scored] = {}
    for one in sorted(found, key=lambda one: one.rank):
        if one.score > 0:
            ranked.setdefault(one.interval, one)
    if not ranked:
        return _quiet(name, limit, quiet)
    most = next(iter(ranked.values()))
    unusual = most.score >= limit
    return Screen(
        name=name,
        status="unusual" if unusual else "quiet",
        score=most.score,
        limit=limit,
        intervals=list(ranked)[:LISTED],
        detail=most.words if unusual else f"{quiet}; most suspicious: {most.words}",
    )


def _quiet(name: Name, limit: float, detail: str) -> Screen:
    return Screen(name=name, status="quiet", score=0.0, limit=limit, intervals=[], detail=detail)


# -- order and line ---------------------------------------------------------------------------------------------------


def order(screened: int, kept: Sequence[str]) -> Screen:
    """First weights in the order of the last ones. It names no interval: what it doubts is where the run began.

    Args:
        screened: Tensors that moved enough to be looked at.
        kept: Those of them whose values kept their order where training would have swapped half.
    """
    if not kept:
        seen = f"none of {screened} tensors was laid out along its last values"
        return _quiet("order", 1.0, seen if screened else "no tensor moved enough to be looked at")
    which = ", ".join(kept[:3]) + (f" and {len(kept) - 3} more" if len(kept) > 3 else "")
    return Screen(
        name="order", status="unusual", score=float(len(kept)), limit=1.0, intervals=[],
        detail=f"{len(kept)} of {screened} tensors begin in the order of their last values: {which}",
    )  # fmt: skip


def line(moves: Sequence[Move], angles: Sequence[float | None]) -> Screen:
    """Stretches of windows that go straight on.

    Args:
        moves: All windows.
        angles: Between the moves of the parameters in each window and the next, in radians; None where one of the two
            did not move.
    """
    if len(moves) < STRETCH or all(angle is None for angle in angles):
        return _quiet("line", float(STRETCH), "too few windows that moved, or too few parameters, to have a direction")
    found, index = [], 0
    for on, group in groupby(angle is not None and angle <= STRAIGHT for angle in angles):
        length = len(list(group))
        if on:
            first, last = moves[index], moves[index + length]
            words = f"{length + 1} windows, steps {first.start}–{last.stop}, go straight on, one after the other"
            found += [_Scored(float(length + 1), m.interval, words) for m in moves[index : index + length + 1]]
        index += length
    return _screen("line", float(STRETCH), found, "the windows turn")


# -- what to replay ---------------------------------------------------------------------------------------------------


def suspects(screens: Sequence[Screen]) -> list[int]:
    """All suspicious intervals, the most suspicious first; each once.

    What is unusual comes before what is not, and among these each screen has its turn: no screen can be made to shout
    the others down.
    """
    ranked = [
        (screen.status != "unusual", rank, position, interval)
        for position, screen in enumerate(screens)
        for rank, interval in enumerate(screen.intervals)
    ]
    return list(dict.fromkeys(interval for *_, interval in sorted(ranked)))
