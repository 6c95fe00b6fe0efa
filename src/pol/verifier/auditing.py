"""Step 7: what taking the steps of the challenged intervals again gives."""

from __future__ import annotations

import hmac
import tempfile
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from pol import canonical, seeds
from pol.auditor import Auditor
from pol.checkpoint import Checkpoint
from pol.distance import within
from pol.errors import StoreError
from pol.interval import Interval
from pol.messages import Failed, Finished, Opened, Recorded, Segment, Stepped
from pol.order import epoch_order, observed_order, sample_list_digest
from pol.proof.genesis import registered
from pol.proof.report import Check, Deviation, IntervalResult, Status
from pol.store import ORDER
from pol.verifier import branches, drift, hyperparameters, rounding, tolerance
from pol.verifier.case import Case, Checks, failed, passed
from pol.verifier.replayed import Platform, segments, state_after


def audit(case: Case, auditor: Auditor, platform: Platform) -> Checks:
    """Step 7: every challenged interval, taken again from its recorded state, ends in the recorded state."""
    with tempfile.TemporaryDirectory(prefix="pol-audit-") as folder:
        yield from _audit(case, auditor, platform, Path(folder) if case.policy.limits else None)


def _audit(case: Case, auditor: Auditor, platform: Platform, folder: Path | None) -> Checks:
    waiting = segments(case)
    total = sum(segment.stop - segment.start for segment in waiting)
    done = 0
    stopped: Segment | None = None
    while waiting:
        replay = _Replay(case, platform, done, total, folder)
        finished, problem = replay.run(auditor, waiting)
        done += sum(segment.stop - segment.start for segment in waiting[:finished])
        waiting = waiting[finished:]
        if problem is None:
            break
        if stopped is not waiting[0]:  # what stops a replay must happen twice to count against the prover
            stopped = waiting[0]
            continue
        done += waiting[0].stop - waiting[0].start
        index = waiting[0].start // case.genesis.spec.every
        check = platform.mismatch("replay", f"the replay stopped: {problem}")
        case.intervals.append(_result(case, index, check.status, check.detail))
        waiting = waiting[1:]
    case.intervals = _worst(case.intervals)  # two replays that differ have failed
    if folder is not None:
        branches.explain(case, auditor, folder)
    if folder is not None and platform.software:
        _refute(case, auditor, folder)
    yield from _summary(case)
    yield from hyperparameters.momenta(case)
    yield from drift.afterwards(case)


def _refute(case: Case, auditor: Auditor, folder: Path) -> None:
    """What is undecided because the machine is another, but farther off than that explains, has failed.

    Not under another release of torch or numpy, where nothing that is measured here says what the recorded one does.
    Only the farthest few are looked at: where rounding is small, the first shows it; where it is not, none would.
    """
    far = [
        (result.deviation.relative, position)
        for position, result in enumerate(case.intervals)
        if result.deviation is not None and _undecided(case, result)
    ]
    for found, position in sorted(far, reverse=True)[:_LOOKED_AT]:
        result = case.intervals[position]
        replayed = folder / f"{result.stop:012d}.safetensors"
        with tempfile.TemporaryDirectory(dir=folder) as inner:
            if rounding.beyond(case, auditor, result.start, replayed, found, Path(inner)):
                detail = f"{result.detail}. But {_EXPLAINED} less than a tenth of the error"
                case.intervals[position] = msgspec.structs.replace(result, status="failed", detail=detail)
                return


_EXPLAINED = "rounding and other random draws, measured here, explain"

_LOOKED_AT = 3
"""Each costs a few more replays of its steps."""


def _worst(results: list[IntervalResult]) -> list[IntervalResult]:
    """One result per interval, in order: failed before unable before passed."""
    ranked = sorted(results, key=lambda result: ("failed", "unable", "passed").index(result.status))
    first = {result.index: result for result in reversed(ranked)}
    return [first[index] for index in sorted(first)]


def _summary(case: Case) -> Checks:
    assert case.draws is not None
    for status in ("failed", "unable"):
        bad = [result for result in case.intervals if result.status == status]
        if bad:
            first = f"interval {bad[0].index} (steps {bad[0].start}–{bad[0].stop}): {bad[0].detail}"
            yield Check(
                "replay", status, f"{len(bad)} of {len(case.intervals)} replayed intervals {status}. First: {first}"
            )
    missing = set(case.draws.all()) - {result.index for result in case.intervals}
    if missing and all(result.status == "passed" for result in case.intervals):
        yield failed("replay", f"interval {min(missing)} was challenged, and no replay reached it")
    if not missing and all(result.status == "passed" for result in case.intervals):
        where = "in the recorded states" if case.policy.limits is None else "within the limits of the recorded states"
        yield passed("replay", f"{len(case.intervals)} intervals end {where}, with the recorded batches{_beside(case)}")


def _beside(case: Case) -> str:
    count = sum(result.branch for result in case.intervals)
    return f"; of {count} a branch explains an error beyond them" if count else ""


_NAMES = {
    "root": "the end state",
    "batches": "the batches",
    "loss": "the loss",
    "learning_rates": "the learning rates",
    "indices": "the chosen samples",
}
"""Fields of a record, in messages."""


def _result(case: Case, index: int, status: Status, detail: str, deviation: Deviation | None = None) -> IntervalResult:
    interval = case.log.intervals[index]
    return IntervalResult(index, interval.start, interval.stop, status, detail, deviation, case.allowed.get(index))


def _undecided(case: Case, result: IntervalResult) -> bool:
    """Whether an interval could not be decided, but is farther off than other kernels usually are."""
    limits = case.policy.limits
    if limits is None or result.deviation is None or result.status != "unable":
        return False
    return result.deviation.relative >= limits.refute


def _near(found: str | None, recorded: str | None, limit: float) -> bool:
    """Whether two mean losses agree within a share of one plus their size."""
    if found is None or recorded is None:
        return found == recorded
    a, b = (canonical.parse_float(text, "loss", finite=True) for text in (found, recorded))
    return within(abs(a - b), limit * (1 + abs(a)))


class _Replay:
    """One replay job and the comparison of what it yields."""

    def __init__(self, case: Case, platform: Platform, done: int, total: int, folder: Path | None) -> None:
        self._case, self._platform, self._done, self._total = case, platform, done, total
        self._folder = folder
        self._orders: dict[int, list[int]] = {}

    def run(self, auditor: Auditor, waiting: list[Segment]) -> tuple[int, str | None]:
        """Replay segments until one stops; returns how many are done, and what stopped the next."""
        case = self._case
        genesis = case.genesis
        finished = 0
        for event in auditor.replay(
            genesis.profile, genesis.recipe.configuration, case.seed, registered(genesis, case.r), waiting,
            seeds.salt_key(case.r), declared=genesis.randomness.declared_seed,
            order=case.store.path / ORDER if genesis.randomness.order == "observed" else None, save=self._folder,
        ):  # fmt: skip
            match event:
                case Opened(step=step, root=root):
                    if root != case.root_after(step):
                        return (
                            finished,
                            f"the checkpoint after {step} steps loads as another state than the log records",
                        )
                case Recorded(interval=interval, samples=samples, momenta=momenta):
                    case.momenta[interval.start // genesis.spec.every] = momenta
                    self._compare(interval, samples)
                    finished += interval.stop == waiting[finished].stop
                case Stepped(step=step):
                    case.progress("replaying", self._done + step, self._total)
                case Finished(undeclared=[module, *_]):
                    return (
                        finished - 1,
                        f"the recipe imports the local module {module}, which its digest does not cover",
                    )
                case Failed(kind="StoreError", message=message):
                    raise StoreError(f"this machine, not the proof: {message}")
                case Failed(message=message):
                    return finished, message
        return finished, None if finished == len(waiting) else "the replay ended early"

    def _compare(self, found: Interval, samples: list[str]) -> None:
        case = self._case
        index = found.start // case.genesis.spec.every
        recorded = case.log.intervals[index]
        if wrong := self._wrong_sample(found, samples):
            check = self._platform.mismatch("samples", wrong)  # a dataset may be computed, and in floating point
            case.intervals.append(_result(case, index, check.status, check.detail))
            return
        wrong, deviation = self._difference(found, recorded)
        if case.policy.limits is not None and index not in case.allowed:
            ends = state_after(case, found.start), state_after(case, found.stop)
            case.allowed[index] = tolerance.allowed(case.policy.limits, *ends)
        check = self._platform.mismatch("replay", wrong) if wrong else passed("replay", "")
        case.intervals.append(_result(case, index, check.status, check.detail, deviation))
        undecided = case.intervals[-1].status == "unable" and deviation is not None
        if self._folder is not None and not undecided:
            (self._folder / f"{found.stop:012d}.safetensors").unlink(missing_ok=True)  # not one state for each interval

    def _difference(self, found: Interval, recorded: Interval) -> tuple[str, Deviation | None]:
        """In what a replayed interval differs from its record, "" if in nothing.

        Under rule tolerance state and loss may differ within their limits, and nothing else.
        """
        case, limits = self._case, self._case.policy.limits
        fields = [name for name in Interval.__struct_fields__ if getattr(found, name) != getattr(recorded, name)]
        beyond, deviation = "", None
        if limits is not None and self._folder is not None and "root" in fields:
            fields.remove("root")
            replayed = Checkpoint.at(self._folder / f"{found.stop:012d}.safetensors")
            ends = state_after(case, found.start), replayed, state_after(case, found.stop)
            momenta = case.momenta[found.start // case.genesis.spec.every]
            beyond, deviation = tolerance.deviation(case.policy, *ends, case.carrying, found.stop, momenta)
        if limits is not None and "loss" in fields and _near(found.loss, recorded.loss, limits.loss):
            fields.remove("loss")
        if fields:
            case.otherwise.add(found.start // case.genesis.spec.every)
        what = " and ".join(_NAMES.get(name, name) for name in fields)
        other = f"taking the steps again gives other values for {what}" if fields else ""
        return "; ".join(filter(None, (other, beyond))), deviation

    def _wrong_sample(self, found: Interval, samples: list[str]) -> str | None:
        """The step whose samples are not those that the seed and the dataset root demand."""
        if len(samples) != found.stop - found.start:
            return "the replay does not account for the samples of every step"
        for step, digest in enumerate(samples, start=found.start):
            expected = sample_list_digest((i, self._leaf(i)) for i in self._indices(step))
            if not hmac.compare_digest(digest, expected):
                return (
                    f"step {step} used samples that are not the committed ones: your recipe's dataset and the "
                    "committed root disagree (if your copy of the data may be the wrong one, verify with the right one)"
                )
        return None

    def _leaf(self, index: int) -> bytes:
        return self._case.leaves[32 * index : 32 * index + 32]

    def _indices(self, step: int) -> list[int]:
        spec = self._case.genesis.spec
        declaration, per_step = spec.declaration, spec.batches_per_step
        if declaration.order == "stream":
            return []
        if declaration.order == "recorded":
            interval = self._case.log.intervals[step // spec.every]
            begin, first, end = (declaration.batches_before(at, per_step) for at in (interval.start, step, step + 1))
            chosen = (interval.indices or [])[first - begin : end - begin]
            return list(dict.fromkeys(index for batch in chosen for index in batch))  # each sample is told once
        epoch, within = divmod(step, declaration.steps_per_epoch(per_step))
        if epoch not in self._orders:
            self._orders = {epoch: self._order(epoch, declaration.samples).tolist()}
        last = min((within + 1) * per_step, declaration.batches_per_epoch)
        return self._orders[epoch][within * per_step * declaration.batch_size : last * declaration.batch_size]

    def _order(self, epoch: int, samples: int) -> NDArray[np.int64]:
        if self._case.genesis.randomness.order == "derived":
            return epoch_order(self._case.seed, epoch, samples)
        row = 4 * samples
        return observed_order(self._case.store.read_range(ORDER, epoch * row, (epoch + 1) * row), samples)
