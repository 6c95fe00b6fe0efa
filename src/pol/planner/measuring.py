"""From a few real steps to what a run costs: asks a fresh process, and looks at what it wrote."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

from pol import messages, seeds
from pol.errors import ReplayError
from pol.executors.local import Executor, LocalProcess
from pol.interval import Interval
from pol.planner.miniature import Miniature
from pol.profile import Profile
from pol.proof.bounds import OF_TRIAL, Bounds
from pol.proof.forecast import Costs, Run
from pol.proof.policy import Policy
from pol.prover import Progress, available_cores
from pol.prover.recorder import failure
from pol.statetree import StateRoot
from pol.store import MAX_FILES, MAX_LOG_FILE, checkpoint_path
from pol.verifier.trying import STARTS

EVERY, KEEP = 2, 2
"""Steps of a measured interval, and every how many of them the state is kept: the least at which all kinds of steps
take turns, so that the state is first kept when optimizers have filled theirs."""

LEAST, MOST = 12, 64
"""Steps that are taken: three kept states at least, since the first fills the buffers that later ones use; and no more
than a median needs."""

REPLAYS, LONG = 5, 24
"""Stretches that are taken again, as many as a median needs: each from one kept state to the next, but the first. That
is longer, because steps get faster when caches have filled after an entry."""

SEED = hashlib.sha256(b"pol/plan/seed").digest()
"""Of the steps that are measured: the same every time."""


@dataclass(frozen=True)
class Watched:
    """What was seen."""

    run: Run
    steps: int
    """That were taken."""


@dataclass
class _Recorded:
    """What the recording process told."""

    origin: StateRoot | None = None
    intervals: list[Interval] = field(default_factory=list)
    measured: messages.Measured | None = None
    noted: float = 0.0
    """Seconds of this process, to read all of that."""


def watch(
    reference: str, tagged: dict[str, Any], profile: Profile, policy: Policy, progress: Progress,
    executor: Executor | None, seconds: float,
) -> Watched:  # fmt: skip
    """Take and look at some steps; nothing is left behind.

    Raises:
        UsageError: the training is too short, or refused by the recorder.
        ReplayError: the program failed.
    """
    program = messages.Program(reference=reference, configuration=tagged, seed=SEED.hex(), profile=profile)
    with tempfile.TemporaryDirectory(prefix="pol-plan-") as folder:
        with Miniature(Path(folder) / "proof", reference, profile) as miniature:
            with _process(executor, profile, isolated=False) as process:
                told = _Asking(process, program, progress).record(miniature.checkpoints, seconds)
            assert told.measured is not None and told.origin is not None
            with _process(executor, profile, isolated=True) as process:  # a fresh one, as a verifier has
                asking = _Asking(process, program, progress)
                building, built = asking.build()
                miniature.seal(built, told.origin, told.intervals, told.measured, EVERY, KEEP)
                progress("reading as a verifier", 0, None)
                read, compared = miniature.read()
                again = asking.replay(told.measured, told.intervals, miniature.path)
        found, timings = told.measured, told.measured.timings
        whole = _middle(timings.whole)
        costs = Costs(
            bare_step=_middle(timings.bare),
            added=max(0.0, _middle(timings.added) + _middle(timings.closing) + _middle(timings.refetched)),
            digest=_middle(timings.digests[len(timings.digests) // 2 :]),  # later ones leave out what stays as it is
            whole=whole,
            noted=told.noted / len(told.intervals) + miniature.noted,
            copied=_middle(timings.copies[1:] or timings.copies),
            stored=_middle(timings.cores[1:] or timings.cores) + miniature.hashed,
            written=_middle(timings.written[1:] or timings.written),
            busy=profile.threads >= available_cores(),
            start=max(0.0, building - timings.entered - whole),
            enter=timings.entered + whole,
            replay_enter=max(0.0, again.enter),
            replay_step=max(0.0, again.step - whole / EVERY),
            read=read,
            compared=compared if policy.rule == "tolerance" else 0.0,
            sample=_middle(timings.samples),
        )  # fmt: skip
        run = Run(
            steps=found.declaration.epochs * found.declaration.steps_per_epoch(found.batches_per_step),
            samples=found.declaration.samples, costs=costs, sizes=miniature.sizes, kinds=miniature.kinds,
            trials=_trials(policy.bounds),
            most_files=MAX_FILES, most_log=MAX_LOG_FILE,
        )  # fmt: skip
        return Watched(run=run, steps=found.steps)


def _middle(values: Sequence[float]) -> float:
    """The median; 0 of nothing."""
    return statistics.median(values) if values else 0.0


def _trials(bounds: Bounds) -> int:
    """How often a verifier takes first steps of its own."""
    if bounds.start_loss is not None:
        return STARTS
    return int(any(getattr(bounds, name) != getattr(Bounds(), name) for name in OF_TRIAL))


@dataclass(frozen=True)
class _Again:
    """A replay."""

    enter: float
    step: float
    """With its share of a digest."""


@contextlib.contextmanager
def _process(executor: Executor | None, profile: Profile, *, isolated: bool) -> Iterator[Executor]:
    """The given executor, or a process of its own."""
    if executor is not None:
        yield executor
    else:
        with LocalProcess(profile, isolated=isolated) as process:
            yield process


class _Asking:
    """Asks one process."""

    def __init__(self, process: Executor, program: messages.Program, progress: Progress) -> None:
        self._process, self._program, self._progress = process, program, progress

    def build(self) -> tuple[float, messages.Built]:
        """A dry build, and its seconds."""
        self._progress("dry build", 0, None)
        began = perf_counter()
        for event in self._process.run(messages.Build(program=self._program)):
            if isinstance(event, messages.Failed):
                raise failure(event)
            if isinstance(event, messages.Built):
                return perf_counter() - began, event
        raise ReplayError("the training process gave no answer")

    def record(self, checkpoints: Path, seconds: float) -> _Recorded:
        """The first steps, recorded."""
        self._progress("measuring steps", 0, MOST)
        job = messages.Measure(
            program=self._program, every=EVERY, keep=KEEP, directory=str(checkpoints), seconds=seconds, least=LEAST,
            most=MOST, batch_key=seeds.batch_key(SEED).hex(),
        )  # fmt: skip
        told, began = _Recorded(), thread_time()
        for event in self._process.run(job):
            match event:
                case messages.Failed():
                    raise failure(event)
                case messages.Opened(root=root):
                    told.origin = root
                case messages.Recorded(interval=interval):
                    told.intervals.append(interval)
                case messages.Stepped(step=step, total=total):
                    self._progress("measuring steps", step, total)
                case messages.Measured():
                    told.measured = event
        if told.measured is None:
            raise ReplayError("the training process gave no answer")
        told.noted = thread_time() - began
        return told

    def replay(self, found: messages.Measured, intervals: Sequence[Interval], proof: Path) -> _Again:
        """Some of these steps, taken again from kept states."""
        length = EVERY * KEEP
        states = range(length, found.steps, length) or [0]
        long = max(states[0], found.steps - LONG)
        starts = itertools.islice(itertools.cycle(states), REPLAYS - 1)
        stretches = [(long, found.steps), *((start, start + length) for start in starts)]
        segments = [self._segment(start, stop, intervals, proof) for start, stop in stretches]
        job = messages.Replay(
            program=self._program, segments=segments, salt_key=seeds.salt_key(SEED).hex(),
            registered=messages.Registered(
                declaration=found.declaration, batches_per_step=found.batches_per_step, every=EVERY,
                batch_key=seeds.batch_key(SEED).hex(),
            ),
        )  # fmt: skip
        total, done = sum(segment.stop - segment.start for segment in segments), 0
        self._progress("measuring a replay", 0, total)
        times: list[float] = []
        for event in self._process.run(job):
            if isinstance(event, messages.Failed):
                raise failure(event)
            if isinstance(event, messages.Recorded):
                done += event.interval.stop - event.interval.start
                times.append(perf_counter())
                self._progress("measuring a replay", done, total)
        between = [after - before for before, after in pairwise(times)]
        count = (found.steps - long) // EVERY  # intervals of the long one
        step = _middle(between[: count - 1]) / EVERY
        enters = [seconds - EVERY * step for seconds in between[count - 1 :: KEEP]]
        return _Again(enter=_middle(enters), step=step)

    def _segment(self, start: int, stop: int, intervals: Sequence[Interval], proof: Path) -> messages.Segment:
        counts = intervals[start // EVERY - 1].schedules if start else {}
        checkpoint = str(proof / checkpoint_path(start)) if start else None
        return messages.Segment(start=start, stop=stop, checkpoint=checkpoint, counts=counts)
