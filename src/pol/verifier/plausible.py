"""Step 4: weights move as their learning rates let them, and losses fall as losses do.

None of this proves a training: it refuses runs in which next to nothing was trained, or in which something else than
the optimizer moved the weights, at every interval and without taking a step again (attack study, D10, D11).
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

from pol.distance import ratio, within
from pol.errors import IntegrityError
from pol.verifier.case import Case, Checks, Moved, passed
from pol.verifier.hyperparameters import beyond, recorded
from pol.verifier.moves import rated_groups

LEAST_RATE = 2.0**-24
"""Half a unit in the last place of a float32 of 1. Schedules end in lower rates, at which an honest step may be nothing
but rounded away."""

RELATIVE_RATE = 1e-3
"""A rate of this share of the run's largest is no end of a schedule either: where all rates are low, weights that stand
still were not trained (attack study, section 11: relative to the declared rate)."""

WARM_UP = 0.05
"""Share of the steps in which weights find their scale, and programs clamp or rescale them (attack study, section 10:
the first 5 %)."""

SIGN_LIKE = tuple(
    f"torch.optim.{name}"
    for name in ("adam.Adam", "adamw.AdamW", "nadam.NAdam", "radam.RAdam", "adamax.Adamax", "rmsprop.RMSprop")
)
"""Optimizers that divide by the size of recent gradients: a step is about the rate, whatever the gradient."""

HALF_ULP = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
"""Half a unit in the last place of 1, by element type."""

TELEPORT_EVERY = 10
"""Largest k at which a fall of the loss between two intervals says something: longer intervals are whole phases of a
training (measured baseline, C, has the same k as the last at which honest and forged are far apart)."""

TELEPORT_AFTER = 10
"""Steps, and two intervals, before a fall counts: the losses of easy tasks fall by all there is in a few steps."""

TELEPORT_SAMPLES = 64
"""Samples before a fall counts: the losses of small batches scatter. Of 2,000 linear classifiers of ten classes, with
batches of one, 57 fell by more than half of the first loss, 18 by more than half of the largest of ten, and none where
64 samples were waited for (simulated in tests/test_bounds.py, which takes fewer)."""


@dataclass
class _Rates:
    """Of one group in one window: the sum of its rates, of their squares, and the largest."""

    total: float = 0.0
    squares: float = 0.0
    largest: float = 0.0


def _by_window(case: Case) -> list[list[_Rates]]:
    """The rates in force in every window, per group."""
    count = len(rated_groups(case.genesis.spec.declaration))
    found = [[_Rates() for _ in range(count)] for _ in case.moves]
    window = 0
    for one in recorded(case) if case.moves else ():
        while one.start >= case.moves[window].stop:
            window += 1
        for rates, value in zip(found[window], one.values, strict=True):
            rates.total += one.steps * value
            rates.squares += one.steps * value * value
            rates.largest = max(rates.largest, value)
    return found


def _sizes(case: Case) -> list[tuple[int, float]]:
    """Elements of every rated group, and the half unit in the last place of its coarsest."""
    declaration = case.genesis.spec.declaration
    entries = {entry.name: entry for entry in declaration.entries if entry.kind == "parameter"}
    found = []
    for _, group in rated_groups(declaration):
        own = [entries[name] for name in group.parameters if name in entries]
        coarsest = max((HALF_ULP.get(entry.dtype, 0.0) for entry in own), default=0.0)
        found.append((sum(math.prod(entry.shape) for entry in own), coarsest))
    return found


def _where(moved: Moved) -> str:
    return f"from step {moved.start} to {moved.stop}"


def moved(case: Case) -> Checks:
    """Weights move by more than rounding in most windows that have a learning rate; those of Adam by about the rate."""
    bounds = case.policy.bounds
    if not bounds.moved and bounds.progress is None:
        yield passed("moved", "the policy does not ask that the weights change")
        return
    of_windows, sizes = _by_window(case), _sizes(case)
    groups = [part for part, _ in rated_groups(case.genesis.spec.declaration)]
    signed = [number for number, part in enumerate(groups) if part.type in SIGN_LIKE]
    peak = max((rates.largest for window in of_windows for rates in window), default=0.0)
    least = min(LEAST_RATE, RELATIVE_RATE * peak)
    working, standing, slow, first = 0, 0, 0, ""
    for window, move, rates in zip(case.windows, case.moves, of_windows, strict=True):
        inside = case.log.intervals[window.first : window.last + 1]
        largest = max((one.largest for one in rates), default=0.0)
        if not largest or largest < least or all(interval.loss is None for interval in inside):
            continue
        working += 1
        standing += math.hypot(*move.distances) <= _rounding(sizes) * math.hypot(*move.norms)
        expected = math.sqrt(math.fsum(sizes[number][0] * rates[number].squares for number in signed))
        found = math.hypot(*(move.distances[number] for number in signed))
        if bounds.progress is not None and signed and found < bounds.progress * expected:
            slow += 1
            first = first or f"{ratio(found, expected):.3g} {_where(move)}"
    if bounds.moved and not any(window.sizes.get("weights", 0.0) > 0 for window in case.windows):
        raise IntegrityError("no step changed any parameter: nothing was trained (bounds.moved)")
    if (
        bounds.moved and 2 * standing > working
    ):  # some may: a loss that is 0 on a batch has no gradient; replays show it
        raise IntegrityError(
            f"{standing} of {working} windows changed no parameter by more than rounding, at rates of 2^-24 or a "
            "thousandth of the largest and more (bounds.moved)"
        )
    if 2 * slow > working:
        raise IntegrityError(
            f"{slow} of {working} windows moved the parameters of {groups[signed[0]].type} by less than "
            f"{bounds.progress:g} of the learning rates (first {first}), which the policy demands (bounds.progress)"
        )
    beside = "" if signed or bounds.progress is None else "; no optimizer takes steps of about its rate"
    yield passed("moved", f"{standing} of {working} windows with a learning rate moved nothing{beside}")


def _rounding(sizes: list[tuple[int, float]]) -> float:
    """The share of their norm by which parameters must move: half a unit in the last place, of float32 at most.

    Coarser parameters move by less in honest steps, since most of their elements are rounded back.
    """
    return min([LEAST_RATE, *(half for _, half in sizes if half)])


def paces(case: Case) -> Checks:
    """After warm-up no window moves weights farther than its rates explain, or by too much of their norm in a step."""
    bounds = case.policy.bounds
    if bounds.pace is None and bounds.update is None:
        yield passed("updates", "the policy bounds no update")
        return
    farthest, fastest = 0.0, 0.0
    sizes = _sizes(case)
    for move, rates in zip(case.moves, _by_window(case), strict=True):
        if move.start < WARM_UP * case.genesis.spec.steps:
            continue
        steps = move.stop - move.start
        for number, (one, (size, half)) in enumerate(zip(rates, sizes, strict=True)):
            beside = max(0.0, move.distances[number] - 2 * half * steps * move.norms[number])  # of rounding alone
            pace = ratio(beside, math.sqrt(size) * one.total)
            fastest = max(fastest, pace)
            if bounds.pace is not None and not within(pace, bounds.pace):
                what = f"the move per learning rate {_where(move)}, in parameter group {number},"
                raise beyond(what, pace, "pace", bounds)
        share = ratio(math.hypot(*move.distances), steps * math.hypot(*move.norms))
        farthest = max(farthest, share)
        if bounds.update is not None and not within(share, bounds.update):
            what = f"the move of one step {_where(move)}, as a share of the norm of the parameters,"
            raise beyond(what, share, "update", bounds)
    yield passed("updates", f"at most {farthest:.2g} of the norm in a step, {fastest:.2g} per learning rate")


def losses(case: Case) -> Checks:
    """No interval's mean loss falls far below all before it."""
    bounds, every = case.policy.bounds, case.genesis.spec.every
    known = [one for one in case.log.intervals if one.loss is not None]
    values = [float(one.loss) for one in known if one.loss is not None]
    early = _early(case, [one.start for one in known])
    scale = max(values[:early], default=0.0)  # one alone may be next to 0, where it is of one sample
    if bounds.loss_drop is None or every > TELEPORT_EVERY or scale <= 0:
        why = (
            "the policy does not ask" if bounds.loss_drop is None
            else f"intervals of {every} steps say nothing" if every > TELEPORT_EVERY
            else "none of the first is above 0, so that no fall can be measured by them"
        )  # fmt: skip
        yield passed("losses", f"losses may fall: {why}")
        return
    lowest, largest = min(values[:early]), 0.0
    for interval, value in zip(known[early:], values[early:], strict=True):
        drop = (lowest - value) / scale
        largest = max(largest, drop)
        if not drop <= bounds.loss_drop:
            what = f"the fall of the loss from step {interval.start} to {interval.stop}, as a share of the largest of "
            raise beyond(f"{what}the first {early},", drop, "loss_drop", bounds)
        lowest = min(lowest, value)
    yield passed("losses", f"none falls by more than {max(0.0, largest):.2g} of the largest of the first {early}")


def _early(case: Case, starts: list[int]) -> int:
    """How many of the recorded losses a fall is measured by, and does not count in yet."""
    spec = case.genesis.spec
    samples = spec.declaration.batch_size * spec.batches_per_step
    return max(2, bisect.bisect_left(starts, max(TELEPORT_AFTER, math.ceil(TELEPORT_SAMPLES / samples))))
