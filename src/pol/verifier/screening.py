"""What the screens see in a proof: ``pol.proof.screens``, fed from the log and the kept states, a chunk at a time.

They need neither torch nor a replay, and add no check: nothing that they find can change a verdict, but by a replay of
the intervals that they name (step 6).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pol.checkpoint import Checkpoint, reader
from pol.proof.screens import Loss, Move, Screen, leaps, line, losses, norms, order
from pol.statetree import FLOATING, Entry
from pol.store import checkpoint_path
from pol.values import CHUNK, decode, floats
from pol.verifier import ranks
from pol.verifier.case import Case, Checks

FEWEST_VALUES = 100
"""Parameters below which the direction of a move says nothing: a line with a slope can only go up or down."""


def look(case: Case) -> Checks:
    """All screens of a proof whose states step 4 has measured; yields no check."""
    yield from ()
    points = [
        Loss(index, found.start, found.stop, None if found.loss is None else float(found.loss))
        for index, found in enumerate(case.log.intervals)
    ]
    moves = _moves(case, points)
    case.screens = [norms(moves), losses(points), _order(case), line(moves, _angles(case))]


def _moves(case: Case, points: list[Loss]) -> list[Move]:
    """The windows. Each stands by one interval.

    Rule exact: by its last one, since a replay to there takes the whole window and compares every digest. Rule
    tolerance: states between kept ones would have to be opened by the prover for every further interval, so of a
    longer window only the interval is asked for at which the recorded loss leaps most.
    """
    spec = case.genesis.spec
    leap: dict[int, float] = {}
    if spec.rule == "tolerance":
        for before, after, score in leaps(points):
            for point in (before, after):
                leap[point.interval] = max(leap.get(point.interval, 0.0), abs(score))
    found = []
    for window in case.windows:
        inside = case.log.intervals[window.first : window.last + 1]
        rates = [
            (rate.steps, sum(abs(float(value)) / len(rate.values) for value in rate.values))
            for interval in inside
            for rate in interval.learning_rates
            if rate.values
        ]
        steps = sum(number for number, _ in rates)
        found.append(
            Move(
                start=window.first * spec.every,
                stop=min((window.last + 1) * spec.every, spec.steps),
                interval=max(range(window.first, window.last + 1), key=lambda index: (leap.get(index, 0.0), index)),
                sizes=window.sizes,
                taken=sum(interval.stop - interval.start - len(interval.skipped) for interval in inside),
                rate=sum(number / steps * rate for number, rate in rates) if steps else None,
            )
        )
    return found


def _order(case: Case) -> Screen:
    """First and last values of every parameter tensor. Of a large one a chunk: it keeps its order if the whole does."""
    steps = sorted(case.checkpoints)
    first, last = (Checkpoint(case.store, checkpoint_path(at), case.checkpoints[at]) for at in (steps[0], steps[-1]))
    found = {}
    for key, slot in first.entries.items():
        if _trained(slot.entry) and slot.entry.num_bytes and key in last.entries:
            found[key] = ranks.order(next(first.chunks(key)), next(last.chunks(key)))  # step 4: of one shape
    seen = {key: one for key, one in found.items() if one is not None}
    return order(len(seen), [key for key, one in seen.items() if one.kept])


def _trained(entry: Entry) -> bool:
    return entry.kind == "parameter" and entry.dtype in FLOATING


def _angles(case: Case) -> list[float | None]:
    """Angles between the moves of all parameters in neighbouring windows."""
    entries = [slot.entry for slot in case.checkpoints[min(case.checkpoints)] if _trained(slot.entry)]
    if sum(math.prod(entry.shape) for entry in entries) < FEWEST_VALUES:
        return []
    windows = len(case.checkpoints) - 1
    squares, products = np.zeros(windows), np.zeros(windows - 1)
    with np.errstate(over="ignore", invalid="ignore"):  # what has no finite length has no direction
        for number, entry in enumerate(entries):
            case.progress("comparing directions", number, len(entries))
            for states in _chunks(case, entry):
                before: NDArray[np.float64] | None = None
                for index, (earlier, later) in enumerate(pairwise(states)):
                    move = later - earlier
                    squares[index] += np.sum(move * move)
                    if before is not None:
                        products[index - 1] += np.sum(before * move)
                    before = move
    return [_angle(*found) for found in zip(squares[:-1], squares[1:], products, strict=True)]


def _chunks(case: Case, entry: Entry) -> Iterator[Iterator[NDArray[np.float64]]]:
    """For each chunk of an entry, its values in all kept states, one after the other: each byte is read once."""
    states = [reader(case.store, checkpoint_path(step), slot) for step, slots in sorted(case.checkpoints.items())
              for slot in slots if slot.entry == entry]  # fmt: skip
    size = entry.num_bytes

    def read(offset: int) -> Iterator[NDArray[np.float64]]:
        for content in states:
            yield floats(decode(content(offset, min(offset + CHUNK, size)), entry.dtype))

    return map(read, range(0, size, CHUNK))


def _angle(first: float, second: float, product: float) -> float | None:
    lengths = math.sqrt(first) * math.sqrt(second)
    if not (0 < lengths < math.inf and math.isfinite(product)):
        return None
    return math.acos(min(1.0, max(-1.0, product / lengths)))
