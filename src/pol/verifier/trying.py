"""Step 5: what the verifier's own first steps show: settings in the program, losses of fresh starts, schedules.

These steps are taken under seeds of the verifier's own, on any machine: nothing is compared bit for bit. What they show
is what the registered configuration does at the beginning; a program that changes its settings later says so in its
source.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math

from pol.auditor import Auditor
from pol.distance import within
from pol.errors import IntegrityError
from pol.interval import Interval
from pol.messages import Course, Failed, Tried
from pol.proof.bounds import OF_TRIAL, Bounds
from pol.verifier.case import Case, Checks, passed, unable
from pol.verifier.hyperparameters import SAME, beyond

STEPS = 3
"""Steps of a trial, as many as the control run has; where losses are compared, those of the first interval."""

MOST_STEPS = 100
"""Longest first interval whose loss is compared: it bounds the cost, and longer ones say little of the start."""

STARTS = 5
"""Fresh starts whose losses are compared: how far these differ among themselves says how far one more may."""

APART = 3
"""By this power of their smallest ratio one more may be below them all. Classifiers differ by a few per cent, so that
it hardly matters; a line that is fitted to 8 points has first losses between 0.1 and 3, and is refused once in 5,000
times, where a single ratio of three starts would refuse it once in 50 (simulated, 8,000 draws)."""

MOST_COUNTS = 100_000
"""Most steps of a schedule that are taken alone: seconds; rates beyond are not compared."""

LARGEST = ("dropout", "label_smoothing", "zero_weights", "norm_momentum")
LEAST = ("clip_norm", "clip_value")


def tried(case: Case, auditor: Auditor) -> Checks:
    """Settings, first losses and schedules are within the policy's bounds."""
    bounds = case.policy.bounds
    asked = [name for name in OF_TRIAL if getattr(bounds, name) != getattr(Bounds(), name)]
    if not asked:
        yield passed("settings", "the policy bounds nothing that first steps of your own would show")
        return
    spec = case.genesis.spec
    start = bounds.start_loss is not None and not _excused(case)
    steps = min(spec.every if start else STEPS, spec.steps)
    counts = {}
    if bounds.scheduled:
        counts = {name: min(count, MOST_COUNTS) for name, count in case.log.intervals[-1].schedules.items()}
    trials: list[Tried] = []
    for number in range(STARTS if start else 1):
        case.progress("first steps of your own", number, STARTS if start else 1)
        # From the nonce: nobody could choose it, and the same verification gives the same again.
        seed = hashlib.sha256(b"pol/v1/trial" + bytes([number]) + case.nonce).digest()
        found = auditor.trial(
            case.genesis.profile, case.genesis.recipe.configuration, seed, steps, {} if number else counts
        )
        if isinstance(found, Failed):
            yield unable("settings", f"first steps of your own do not work here: {found.message}")
            return
        trials.append(found)
    yield from _settings(case, trials[0])
    if bounds.start_loss is not None:
        yield from _start(case, trials)
    if bounds.scheduled:
        yield from _scheduled(case, trials[0].courses)


def _settings(case: Case, trial: Tried) -> Checks:
    bounds = case.policy.bounds
    for setting in trial.settings:
        limit = getattr(bounds, setting.name, None)
        if limit is None or setting.name not in (*LARGEST, *LEAST):
            continue
        what = f"{setting.name} at {setting.place or 'no line of the recipe'}"
        if setting.name in LARGEST and (setting.value < 0 or not within(setting.value, limit)):
            raise beyond(what, setting.value, setting.name, bounds)
        if setting.name in LEAST and not setting.value >= limit:
            raise beyond(what, setting.value, setting.name, bounds, least=True)
    gradients = [setting.value for setting in trial.settings if setting.name == "gradient"]
    if bounds.gradient is not None and gradients and not max(gradients) >= bounds.gradient:
        what = f"the largest gradient of the first {len(trial.losses)} steps of a fresh start of your own"
        raise beyond(what, max(gradients), "gradient", bounds, least=True)
    seen = sorted({setting.name for setting in trial.settings})
    yield passed("settings", f"{', '.join(seen) or 'nothing'} was seen in steps of your own, and is within bounds")


# -- losses -------------------------------------------------------------------------------------------------------


def _excused(case: Case) -> bool:
    """Whether nothing is asked of the first loss."""
    return case.genesis.randomness.origin in ("parent", "given") or case.genesis.spec.every > MOST_STEPS


def _start(case: Case, trials: list[Tried]) -> Checks:
    """The first interval's mean loss is not far below those of fresh starts."""
    first, share = case.log.intervals[0], case.policy.bounds.start_loss
    fresh = [mean for trial in trials if (mean := _mean(trial.losses)) is not None]
    assert share is not None
    if _excused(case) or first.loss is None or len(fresh) < len(trials) or min(fresh) <= 0:
        yield passed("start loss", "it is not compared: " + _why(case, first))
        return
    least = share * min(fresh) * (min(fresh) / max(fresh)) ** APART
    found = float(first.loss)
    if not found >= least:
        raise IntegrityError(
            f"the mean loss of the first {first.stop} steps is {found:.4g}; fresh starts of your own give "
            f"{min(fresh):.4g} to {max(fresh):.4g}, and the policy demands {least:.4g} (bounds.start_loss {share:g}): "
            "this run did not begin untrained"
        )
    yield passed("start loss", f"{found:.4g}, where fresh starts of your own give {min(fresh):.4g} to {max(fresh):.4g}")


def _mean(losses: list[float | None]) -> float | None:
    known = [loss for loss in losses if loss is not None]
    return math.fsum(known) / len(known) if known else None


def _why(case: Case, first: Interval) -> str:
    if case.genesis.randomness.origin in ("parent", "given"):
        return "this run does not claim an untrained start"
    if case.genesis.spec.every > MOST_STEPS:
        return f"the first interval has {first.stop} steps, and says little of the start"
    return "a loss that is not above 0, or of skipped steps alone, is no measure"


# -- schedules ----------------------------------------------------------------------------------------------------


def _scheduled(case: Case, courses: list[Course]) -> Checks:
    """Every recorded rate is the one that its schedule gives, stepped as often as the log says by then."""
    counted = {part.name for part in case.genesis.spec.declaration.parts if part.counted}
    if missing := sorted(counted - {course.name for course in courses}):
        yield unable("scheduled", f"the schedule {missing[0]} was not stepped here")
        return
    whole = True
    for course in courses:
        whole &= _follows(case, course)
    beside = "" if whole else f", as far as {MOST_COUNTS} steps of it go"
    yield passed("scheduled", f"the rates of {len(courses)} counted schedules are those that they give{beside}")


def _follows(case: Case, course: Course) -> bool:
    """See that recorded rates follow a course; whether all of them could be compared."""
    values = [[float(text) for text in one.values] for one in course.rates]
    # The count from which on each of these values is in force, and at last the count that there is none for.
    begins = list(itertools.accumulate((one.steps for one in course.rates), initial=course.first))
    # A schedule that ends at 0 ends at 1e-17 on another machine: what counts is how far off a rate is at its largest.
    near = [SAME * max(map(abs, of_group)) for of_group in zip(*values, strict=True)]
    before = course.first
    for interval in case.log.intervals:
        last, step = interval.schedules[course.name], interval.start
        if last > MOST_COUNTS:
            return False
        if last >= begins[-1]:
            raise IntegrityError(
                f"interval {interval.start}–{interval.stop}: the schedule {course.name} was stepped {last} times; it "
                f"ends after {begins[-1] - 1} (bounds.scheduled)"
            )
        at = max(0, bisect.bisect_right(begins, before) - 1)  # the values in force when the interval begins
        for rates in interval.learning_rates:
            found = [float(rates.values[number]) for number in course.groups if number < len(rates.values)]
            expected = values[at]
            while not _same(found, values[at], near):
                at += 1
                if begins[at] > last:
                    raise IntegrityError(
                        f"the learning rate is {found[0] if found else 'not recorded'} at step {step}, where the "
                        f"schedule {course.name} gives {expected[0]:.12g} (bounds.scheduled)"
                    )
            step += rates.steps
        before = last
    return True


def _same(a: list[float], b: list[float], near: list[float]) -> bool:
    """Whether rates are equal, but for the last digits that another machine's cosine may have."""
    return len(a) == len(b) and all(abs(x - y) <= limit for x, y, limit in zip(a, b, near, strict=True))
