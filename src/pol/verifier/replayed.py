"""Steps 5, 6 and 7: where the run began, which intervals are asked for, and what taking their steps again gives."""

from __future__ import annotations

import hmac
import math
from dataclasses import dataclass
from typing import Literal

import msgspec

from pol import canonical, seeds
from pol.auditor import Auditor
from pol.declaration import difference
from pol.interval import Interval
from pol.messages import Comparison, Controlled, Failed, Finished, Opened, Recorded, Registered, Segment, Stepped
from pol.order import epoch_order, sample_list_digest
from pol.profile import differences
from pol.proof.challenge import draw
from pol.proof.report import Check, IntervalResult
from pol.store import checkpoint_path
from pol.verifier.case import Case, Checks, failed, passed, unable

CORRELATION_BOUND = 6.0
"""Largest |correlation| · √n of two independent builds: six standard deviations, met by chance once in 10⁹ tensors."""


_TELLING = CORRELATION_BOUND**2
"""Elements from which chance does not explain that two builds agree; with fewer the correlation bound says nothing."""


@dataclass(frozen=True)
class Platform:
    """Whether this machine gives the recorded profile: the control run, here against the genesis."""

    same: bool
    detail: str

    def mismatch(self, name: str, detail: str) -> Check:
        """Something differs: the prover's failure if this machine gives the profile, else undecided."""
        return failed(name, detail) if self.same else unable(name, f"{detail}. {self.detail}")


def control(case: Case, auditor: Auditor) -> Platform:
    """Run the control steps here and compare with the genesis."""
    genesis = case.genesis
    case.progress("control run", 0, None)
    here = auditor.control(genesis.profile, genesis.recipe.configuration, seeds.CONTROL_SEED, genesis.control.steps)
    if isinstance(here, Failed):
        return Platform(False, f"The control run does not work here: {here.message}")
    if here.root == genesis.control.root and here.steps == genesis.control.steps:
        return Platform(
            True, "the control run gives the recorded state here, so this machine gives the recorded profile"
        )
    return Platform(
        False, f"This machine does not give the recorded profile: the control run ends elsewhere ({_why(case, here)})"
    )


def _why(case: Case, here: Controlled) -> str:
    return (
        "; ".join(differences(case.genesis.platform, here.platform))
        or "same versions and capability, other hardware or kernels"
    )


def origin(case: Case, auditor: Auditor, platform: Platform) -> Checks:
    """Step 5: the first state is drawn again from the seed, and nothing in it comes from elsewhere."""
    genesis = case.genesis
    case.progress("building from the seed", 0, None)
    built = auditor.build(genesis.profile, genesis.recipe.configuration, case.seed)
    if isinstance(built, Failed):
        yield platform.mismatch("build", f"the recipe cannot be built: {built.message}")
        return
    if built.undeclared:
        yield failed(
            "build", f"the recipe imports the local module {built.undeclared[0]}, which its digest does not cover"
        )
        return
    if canonical.encode(built.configuration) != canonical.encode(genesis.recipe.configuration):
        yield failed("build", "the registered constructor arguments are not all those that the recipe takes")
        return
    changed = difference(genesis.spec.declaration, built.declaration)
    if changed:
        yield platform.mismatch("build", f"the recipe declares something else than the genesis: {changed}")
        return
    if built.root == case.log.origin.root:
        yield passed("seed", "the first state follows from the seed, bit for bit; optimizer state is fresh")
    else:
        yield platform.mismatch("seed", "the first state does not follow from the seed of this genesis")
        return
    yield passed("control", platform.detail)


def independence(case: Case, auditor: Auditor) -> Checks:
    """Step 5: built from two seeds of the verifier's own, each tensor is a permitted constant or unrelated."""
    genesis, allowed = case.genesis, case.policy.constants
    twice = auditor.build_twice(genesis.profile, genesis.recipe.configuration)
    if isinstance(twice, Failed) or not twice.comparisons:
        yield unable("independence", twice.message if isinstance(twice, Failed) else "nothing was compared")
        return
    if unknown := sorted(set(genesis.spec.constants) - {found.key for found in twice.comparisons}):
        yield failed("independence", f"the declared constant {unknown[0]} is no entry of the state")
        return
    for found in twice.comparisons:
        if objection := _objection(found, allowed, genesis.spec.constants):
            yield failed("independence", "{} {} ".format(*found.key.split("/", 1)) + objection)
            return
    random = sum(not found.equal for found in twice.comparisons)
    yield passed(
        "independence",
        f"{random} tensors are drawn from the seed, {len(twice.comparisons) - random} are permitted constants",
    )


def _objection(found: Comparison, allowed: str, declared: list[str]) -> str | None:
    """Why a tensor, built under two seeds, may hold something that was trained before; None if it may not."""
    if found.size > _TELLING and found.equal != (found.key in declared):
        return f"{'does not depend' if found.equal else 'depends'} on the seed, against what the genesis declares"
    if not found.equal:
        bound = CORRELATION_BOUND / math.sqrt(found.size)
        return (
            None if abs(found.correlation) <= bound else f"is alike under independent seeds ({found.correlation:.2f})"
        )
    if found.repeated:
        return None
    if allowed == "none" or (allowed == "buffers" and found.key.startswith(("parameter/", "optimizer/", "object/"))):
        return "has the same values under every seed: it comes from elsewhere"
    return None


def challenge(case: Case) -> Checks:
    """Step 6: draw, from the attestation and a nonce that the prover could not know."""
    every = case.genesis.spec.every
    resumed = [step // every for step in case.journal.resumes if 0 < step < case.genesis.spec.steps]
    case.draws = draw(case.policy.challenge, case.attestation_digest, case.nonce, case.windows, resumed)
    chosen = case.draws.all()
    steps = sum(segment.stop - segment.start for segment in segments(case))
    limit = case.policy.max_steps
    if not chosen:
        yield failed("draw", "no interval was drawn")
    elif limit is not None and steps > limit:
        yield unable("budget", f"{steps} steps must be replayed, your policy allows {limit}")
    else:
        yield passed(
            "draw",
            f"{len(chosen)} of {case.draws.intervals} intervals, {steps} of {case.genesis.spec.steps} steps to replay",
        )


def segments(case: Case) -> list[Segment]:
    """What to replay: from the kept checkpoint before each challenged interval to the last one of its window."""
    assert case.draws is not None
    chosen, found = set(case.draws.all()), []
    for window in case.windows:
        wanted = [i for i in range(window.first, window.last + 1) if i in chosen]
        if wanted:
            start = case.log.intervals[window.first].start
            counts = case.log.intervals[window.first - 1].schedules if window.first else {}
            path = str(case.store.path / checkpoint_path(start)) if start else None
            found.append(Segment(start=start, stop=case.log.intervals[wanted[-1]].stop, checkpoint=path, counts=counts))
    return found


def audit(case: Case, auditor: Auditor, platform: Platform) -> Checks:
    """Step 7: every challenged interval, taken again from its recorded state, ends in the recorded state."""
    waiting = segments(case)
    total = sum(segment.stop - segment.start for segment in waiting)
    done = 0
    again = False
    while waiting:
        replay = _Replay(case, platform, done, total)
        finished, problem = replay.run(auditor, waiting)
        done += sum(segment.stop - segment.start for segment in waiting[:finished])
        waiting = waiting[finished:]
        if problem is None:
            break
        if not again:  # what stops a replay must happen twice to count against the prover
            again = True
            continue
        again = False
        done += waiting[0].stop - waiting[0].start
        index = waiting[0].start // case.genesis.spec.every
        check = platform.mismatch("replay", f"the replay stopped: {problem}")
        case.intervals.append(_result(case, index, check.status, check.detail))
        waiting = waiting[1:]
    case.intervals = _worst(case.intervals)  # two replays that differ have failed
    yield from _summary(case)


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
        yield passed("replay", f"{len(case.intervals)} intervals end in the recorded states, with the recorded batches")


def _result(
    case: Case, index: int, status: Literal["passed", "failed", "unable", "not run"], detail: str
) -> IntervalResult:
    interval = case.log.intervals[index]
    return IntervalResult(index, interval.start, interval.stop, status, detail)


class _Replay:
    """One replay job and the comparison of what it yields."""

    def __init__(self, case: Case, platform: Platform, done: int, total: int) -> None:
        self._case, self._platform, self._done, self._total = case, platform, done, total
        self._orders: dict[int, list[int]] = {}

    def run(self, auditor: Auditor, waiting: list[Segment]) -> tuple[int, str | None]:
        """Replay segments until one stops; returns how many are done, and what stopped the next."""
        case = self._case
        genesis = case.genesis
        registered = Registered(
            declaration=genesis.spec.declaration,
            batches_per_step=genesis.spec.batches_per_step,
            every=genesis.spec.every,
            batch_key=seeds.batch_key(case.r).hex(),
        )
        finished = 0
        for event in auditor.replay(
            genesis.profile, genesis.recipe.configuration, case.seed, registered, waiting, seeds.salt_key(case.r)
        ):
            match event:
                case Opened(step=step, root=root):
                    if root != case.log.intervals[step // genesis.spec.every - 1].root:
                        return (
                            finished,
                            f"the checkpoint after {step} steps loads as another state than the log records",
                        )
                case Recorded(interval=interval, samples=samples):
                    self._compare(interval, samples)
                    finished += interval.stop == waiting[finished].stop
                case Stepped(step=step):
                    case.progress("replaying", self._done + step, self._total)
                case Finished(undeclared=[module, *_]):
                    return (
                        finished - 1,
                        f"the recipe imports the local module {module}, which its digest does not cover",
                    )
                case Failed(message=message):
                    return finished, message
        return finished, None if finished == len(waiting) else "the replay ended early"

    def _compare(self, found: Interval, samples: list[str]) -> None:
        case = self._case
        index = found.start // case.genesis.spec.every
        recorded = case.log.intervals[index]
        if wrong := self._wrong_sample(found, samples):
            case.intervals.append(_result(case, index, "failed", wrong))
        elif msgspec.json.encode(found) == msgspec.json.encode(recorded):
            case.intervals.append(_result(case, index, "passed", ""))
        else:
            fields = [name for name in Interval.__struct_fields__ if getattr(found, name) != getattr(recorded, name)]
            names = {
                "root": "the end state",
                "batches": "the batches",
                "loss": "the loss",
                "learning_rates": "the learning rates",
            }
            what = " and ".join(names.get(name, name) for name in fields)
            check = self._platform.mismatch("replay", f"taking the steps again gives other values for {what}")
            case.intervals.append(_result(case, index, check.status, check.detail))

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
        epoch, within = divmod(step, declaration.steps_per_epoch(per_step))
        if epoch not in self._orders:
            self._orders = {epoch: epoch_order(self._case.seed, epoch, declaration.samples).tolist()}
        last = min((within + 1) * per_step, declaration.batches_per_epoch)
        return self._orders[epoch][within * per_step * declaration.batch_size : last * declaration.batch_size]
