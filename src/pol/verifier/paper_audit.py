"""Steps 6 and 7 of procedure ``paper-2021``: the largest updates of each epoch, and one limit per metric.

The original takes the same metrics for both; ``paper.choose`` names others for the choice.

Faithful to the released code where that matters to a forger: windows are rounded, an epoch without an interval
passes, NaN ranks first and is above no limit, and the whole state is loaded from the prover's file. The cosine is the
right one: the released code divided by the wrong norm, so that more passed.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isnan
from pathlib import Path
from typing import Any

import numpy as np

from pol.auditor import Auditor
from pol.checkpoint import Checkpoint, compare, read_entries
from pol.container import Placed
from pol.distance import METRICS, Distances
from pol.errors import FormatError, IntegrityError
from pol.interval import Interval, Rates
from pol.messages import Failed, Reached, Segment
from pol.profile import Profile
from pol.proof.challenge import Draws
from pol.proof.policy import Policy
from pol.proof.report import IntervalResult
from pol.statetree import Entry
from pol.store import LOG, ORDER, checkpoint_path
from pol.verifier.case import Case, Checks, failed, passed, unable

CODE = {"l1": 1000.0, "l2": 10.0, "linf": 0.1, "cos": 0.01}
"""Limits of the released code, whatever the model."""

MOST_SCHEDULE_STEPS = 10**7
"""Most steps of a schedule that a replay repeats: it takes them one by one."""

_CHUNK = 1 << 20

Limits = Mapping[str, float]


def limits(policy: Policy) -> dict[str, float]:
    """The limit of each metric that judges; where a policy gives two, the smaller."""
    paper = policy.paper
    assert paper is not None  # ``check_policy`` has seen to it, and to the rest
    found: dict[str, float] = {str(name): delta for name, delta in (paper.delta or {}).items()}
    if paper.fraction is not None:
        assert policy.reference is not None
        for name in METRICS:
            found[name] = min(found.get(name, inf), paper.fraction * float(getattr(policy.reference, name)))
    return {name: found[name] for name in METRICS if name in found} or dict(CODE)


@dataclass(frozen=True)
class Run:
    """What the original knows of a run: N, E and k."""

    profile: Profile
    steps: int
    epochs: int
    every: int

    @property
    def intervals(self) -> int:
        """Intervals, the last of which may be shorter."""
        return -(-self.steps // self.every)

    def boundaries(self) -> Iterator[int]:
        """Steps whose state is saved."""
        yield from range(0, self.steps, self.every)
        yield self.steps

    def interval(self, index: int) -> tuple[int, int]:
        """First and last step of an interval."""
        return index * self.every, min((index + 1) * self.every, self.steps)


def windows(steps: int, epochs: int, every: int) -> list[range]:
    """The intervals of each epoch as the released code finds them.

    Their ends are rounded, so the last, shorter interval may be in none (where N/k has a fraction up to one half), and
    an epoch may have none.
    """
    ends = [round(steps / epochs / every * epoch) for epoch in range(epochs + 1)]
    return [range(first, last) for first, last in pairwise(ends)]


def entries(case: Case, step: int) -> list[Placed]:
    """Entries of a checkpoint."""
    return read_entries(case.store, checkpoint_path(step))


def challenge(case: Case, run: Run, deltas: Limits) -> Checks:
    """Step 6: per epoch and metric the Q largest updates of the parameters; all, if Q is 0."""
    assert case.policy.paper is not None
    top, metrics = case.policy.paper.top, list(case.policy.paper.choose or deltas)
    chosen = set(range(run.intervals)) if top == 0 else _largest(case, run, top, metrics)
    case.draws = Draws(intervals=run.intervals, mandatory=[], top=sorted(chosen), uniform=[], weighted=[], screened=[])
    replayed = sum(stop - start for start, stop in map(run.interval, chosen))
    if case.policy.max_steps is not None and replayed > case.policy.max_steps:
        yield unable("budget", f"{replayed} steps must be replayed, your policy allows {case.policy.max_steps}")
        return
    seen = {i for window in windows(run.steps, run.epochs, run.every) for i in window}
    detail = f"{len(chosen)} of {run.intervals} intervals, by {', '.join(metrics)} of their updates"
    if top and (blind := run.intervals - len(seen)):
        detail += f"; the last {blind} in no epoch's window, so it cannot be chosen"
    yield passed("largest updates", detail)


def _largest(case: Case, run: Run, top: int, metrics: Sequence[str]) -> set[int]:
    sizes: list[Distances] = []
    for index in range(run.intervals):
        case.progress("measuring updates", index, run.intervals)
        sizes.append(_apart(*(_state(case, step) for step in run.interval(index))))
    return {
        index
        for window in windows(run.steps, run.epochs, run.every)
        for metric in metrics
        for index in sorted(window, key=lambda i: -_rank(sizes[i].metric(metric)))[:top]
    }


def _rank(size: float) -> float:
    return inf if isnan(size) else size  # as numpy sorts: NaN is largest


def _state(case: Case, step: int) -> Checkpoint:
    return Checkpoint(case.store, checkpoint_path(step), case.checkpoints[step])


def _apart(a: Checkpoint, b: Checkpoint) -> Distances:
    """Distances of two states: of all their parameters together, and of nothing else."""
    return compare(a, b, _is_parameter).total


def _is_parameter(entry: Entry) -> bool:
    return entry.kind == "parameter"


def audit(case: Case, auditor: Auditor, run: Run, deltas: Limits) -> Checks:
    """Step 7: no chosen interval, taken again, ends farther from the claimed state than the limits."""
    assert case.draws is not None
    chosen = case.draws.all()
    if not chosen:
        yield passed("replay", "there is no interval to take again, and the original finds nothing wrong with that")
        return
    largest = dict.fromkeys(deltas, -inf)
    with tempfile.TemporaryDirectory(prefix="pol-audit-") as folder:
        for index, wrong in _replayed(case, auditor, run, deltas, largest, Path(folder)):
            start, stop = run.interval(index)
            case.intervals.append(IntervalResult(index, start, stop, "failed" if wrong else "passed", wrong))
    bad = [result for result in case.intervals if result.status == "failed"]
    if bad:
        first = f"interval {bad[0].index} (steps {bad[0].start}–{bad[0].stop}): {bad[0].detail}"
        yield failed("replay", f"{len(bad)} of {len(chosen)} replayed intervals failed. First: {first}")
    elif len(case.intervals) < len(chosen):
        yield unable("replay", f"the replay ended early: after {len(case.intervals)} of {len(chosen)} intervals")
    else:
        shown = ", ".join(f"{name} {largest[name]:.3g} of {limit:g}" for name, limit in deltas.items())
        nothing = "; NaN is above no limit" if any(map(isnan, largest.values())) else ""
        yield passed("replay", f"{len(chosen)} intervals end within the limits. Largest distances: {shown}{nothing}")


def _replayed(
    case: Case, auditor: Auditor, run: Run, deltas: Limits, largest: dict[str, float], folder: Path
) -> Iterator[tuple[int, str]]:
    """Each chosen interval, and what is wrong with it ("" if nothing); ends at the first that cannot be taken."""
    assert case.draws is not None
    chosen, genesis = case.draws.all(), case.genesis
    waiting = iter(chosen)
    declared = _Rates(case.log.intervals)
    segments = _segments(case, run, chosen)
    for event in auditor.trusting_replay(
        run.profile, configuration(case, auditor), case.seed, segments,
        [declared.between(segment.start, segment.stop) for segment in segments],
        batches_per_step=genesis.spec.batches_per_step, order=_order(case, folder), save=folder,
    ):  # fmt: skip
        match event:
            case Reached(step=step):
                index = next(waiting)
                case.progress("replaying", len(case.intervals), len(chosen))
                yield index, _wrong(case, step, folder, deltas, largest)
            case Failed(kind="Killed"):  # by this machine, so nothing is known
                return
            case Failed(message=message):
                yield next(waiting, chosen[-1]), f"the replay stopped: {message}"


def _wrong(case: Case, step: int, folder: Path, deltas: Limits, largest: dict[str, float]) -> str:
    path = folder / Path(checkpoint_path(step)).name
    try:
        found = _apart(Checkpoint.at(path), _state(case, step))
    except IntegrityError as error:
        return str(error)
    path.unlink()
    beyond = []
    for name, limit in deltas.items():
        size = found.metric(name)
        largest[name] = max(largest[name], size, key=_rank)
        if size > limit:  # and so not if it is NaN: the hole is the original's
            beyond.append(f"{name} is {size:.3g}, delta {limit:g}")
    return "; ".join(beyond)


def configuration(case: Case, auditor: Auditor) -> dict[str, Any]:
    """The recipe's arguments: the registered ones, and over these whatever the verifier retypes."""
    return {**case.genesis.recipe.configuration, **auditor.settings}


def _segments(case: Case, run: Run, chosen: list[int]) -> list[Segment]:
    counted = [part.name for part in case.genesis.spec.declaration.parts if part.counted]
    counts = {record.stop: record.schedules for record in case.log.intervals} | {0: dict.fromkeys(counted, 0)}
    found = []
    for start, stop in map(run.interval, chosen):
        schedules = counts.get(start, counts[0])
        if any(count > MOST_SCHEDULE_STEPS for count in schedules.values()):
            raise FormatError(f"{LOG}: a schedule of more steps than are repeated ({MOST_SCHEDULE_STEPS})")
        path = str(case.store.path / checkpoint_path(start))
        found.append(Segment(start=start, stop=stop, checkpoint=path, counts=schedules))
    return found


class _Rates:
    """The declared learning rates by step, wherever their records stand."""

    def __init__(self, records: list[Interval]) -> None:
        self._runs: list[tuple[int, int, list[str]]] = []
        for record in records:
            start = record.start
            for rates in record.learning_rates:
                self._runs.append((start, start + rates.steps, rates.values))
                start += rates.steps
        self._runs.sort(key=lambda run: run[0])
        self._starts = [start for start, _, _ in self._runs]

    def between(self, start: int, stop: int) -> list[Rates]:
        """Those of some steps, without a gap; where none are declared, none are named."""
        found = []
        first = max(bisect_right(self._starts, start) - 1, 0)
        for begin, end, values in self._runs[first : bisect_left(self._starts, stop)]:
            begin, end = max(begin, start), min(end, stop)
            if begin < end:
                if begin > start:
                    found.append(Rates(steps=begin - start, values=[]))
                found.append(Rates(steps=end - begin, values=values))
                start = end
        return found


def _order(case: Case, folder: Path) -> Path | None:
    """The declared order as a file for the replay, if the proof has one; else None: it follows from the seed.

    Unchecked, as Python takes indices: duplicates and omissions stay, negative ones count from the end. What the file
    does not hold is never asked for, or stops the replay.
    """
    if ORDER not in case.files:
        return None
    samples, size = case.genesis.spec.declaration.samples, case.files[ORDER]
    size = min(size, 4 * case.genesis.spec.declaration.epochs * samples)  # no step asks for more
    path = folder / ORDER
    with path.open("wb") as file:
        for begin in range(0, size - size % 4, _CHUNK):
            end = min(begin + _CHUNK, size - size % 4)
            order = np.frombuffer(case.store.read_range(ORDER, begin, end), dtype="<i4").astype(np.int64)
            file.write(np.where(order < 0, order + samples, order).astype("<u4").tobytes())
    try:
        with path.open("r+b") as file:
            file.truncate(-(-size // (4 * samples)) * 4 * samples)  # the reader takes whole epochs
    except (OSError, OverflowError):
        raise FormatError(f"{ORDER}: no order of {samples} samples") from None
    return path
