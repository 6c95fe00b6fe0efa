"""A clock on each part of a recording: the first steps, taken with the recorder's own observer and writer.

What is measured is the code that records, so it changes with it. Every second step ends an interval and every second
interval keeps its state, so that all kinds of steps take turns. A kept state is waited for: what its writing takes is
seen alone, and does not slow the steps that follow.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from pol.errors import Unsure, UsageError
from pol.interval import Interval, Momenta
from pol.messages import Measure, Measured, Opened, Recorded
from pol.replay import randomness
from pol.replay.data import sample_leaf
from pol.replay.digests import Digests
from pol.replay.driver import Arrived, Batches, Driver
from pol.replay.engine import Arrival, Frame, Position, advance
from pol.replay.entry import Entry
from pol.replay.intervals import IntervalRecorder
from pol.replay.loader import Committed, Loader
from pol.replay.observer import Observer
from pol.replay.state import State
from pol.replay.telling import Emit, Progress
from pol.replay.tensors import content
from pol.replay.writer import Writer
from pol.statetree import Entry as StateEntry
from pol.statetree import state_root
from pol.traces import Timings

WARM = 2
"""First steps whose times are left out: they make the optimizer's state and compile or choose kernels."""

NEVER = 2**53
"""A last step that no training reaches: measuring ends before."""

SAMPLED, LOOKING_SECONDS = 64, 1.0
"""Samples that are hashed, and how long that may take: enough for a median, and a second is short."""


def measure(job: Measure, emit: Emit) -> None:
    """Take the steps that ``job`` names, and tell what each part took."""
    entry, directory = Entry(job.program), Path(job.directory)
    frame = Frame(entry.streams, external=entry.external)
    with Writer(directory, emit) as writer:
        began = perf_counter()
        state = advance(entry.make, frame, Position(), stop=0).state
        entered = perf_counter() - began
        state.contents = state.digests()
        writer.add(Opened(step=0, root=state_root(state.contents)), 0, state)
        writer.tell(wait=True)
        del state
        clocks = Clocks(job, writer, Progress(emit, job.most))
        end = advance(entry.make, frame, Position(), None, clocks, clocks.drive)
    assert end.batches_per_step is not None
    emit(
        Measured(
            declaration=end.declaration,
            batches_per_step=end.batches_per_step,
            steps=end.step,
            timings=Timings(
                entered=entered,
                bare=clocks.bare,
                added=clocks.added,
                refetched=clocks.refetched(end.batches_per_step),
                closing=clocks.closing,
                digests=clocks.digests,
                whole=clocks.whole,
                copies=clocks.copies,
                written=clocks.written,
                cores=clocks.cores,
                samples=_samples(end),
                state_bytes=sum(content(tensor).nbytes for tensor in end.state.tensors.values()),
            ),
        )
    )


class Clocks:
    """The observer of a measurement: the recorder's, with a clock around it."""

    def __init__(self, job: Measure, writer: Writer, progress: Progress) -> None:
        self._job, self._writer, self._progress = job, writer, progress
        self._recorder = IntervalRecorder(
            every=job.every, start=0, last=NEVER, batch_key=bytes.fromhex(job.batch_key), emit=self._record,
            on_step=self._stepped, digests=_Digests(trust=True), kept=self._kept,
        )  # fmt: skip
        self._began = perf_counter()
        self.bare: list[float] = []
        self.added: list[float] = []
        self.closing: list[float] = []
        self.digests: list[float] = []
        self.whole: list[float] = []
        self.copies: list[float] = []
        self.written: list[float] = []
        self.cores: list[float] = []

    def drive(self, frame: Frame, start: Position, stop: int | None, observer: Observer | None) -> Driver:
        """The Run of a measurement."""
        self._driver = ClockedDriver(frame, start, stop, observer)
        return self._driver

    def refetched(self, per_step: int) -> list[float]:
        """Seconds by which reading the batches of a step takes longer than in a loop without a Run."""
        ours, bare = self._driver.fetched, self._driver.fetched_bare
        return [per_step * (a - b) for a, b in zip(ours[per_step * WARM :], bare[per_step * WARM :], strict=False)]

    def item(self, index: int, item: Any) -> None:
        """A recording does not ask for samples."""

    def batch(self, step: int, batch: Any, chosen: list[int] | None) -> None:
        """See ``IntervalRecorder``."""
        self._recorder.batch(step, batch, chosen)

    def closed(
        self, step: int, loss: float | None, rates: list[float], take: Callable[[], State], counts: dict[str, int],
        momenta: Callable[[], Momenta],
    ) -> None:  # fmt: skip
        """See ``IntervalRecorder``; note what the step took, and what this takes."""
        bare, added = self._driver.step_ends()
        kept, began = len(self.copies), perf_counter()
        self._recorder.closed(step, loss, rates, take, counts, momenta)
        seconds = perf_counter() - began - sum(self.copies[kept:])
        if step >= WARM:
            self.bare.append(bare)
            self.added.append(added)
            ends = (self.whole if kept < len(self.copies) else self.digests) if self._ends(step + 1) else self.closing
            ends.append(seconds)
        if kept < len(self.copies):
            self._wait()
        self._leave(step + 1)
        self._driver.step_begins()

    def _record(self, interval: Interval, state: State, *_: object) -> None:
        kept, began = self._kept(interval.stop), perf_counter()
        self._writer.add(Recorded(interval=interval, samples=[], kept=kept), interval.stop, state if kept else None)
        if kept:
            self.copies.append(perf_counter() - began)

    def _ends(self, step: int) -> bool:
        return step % self._job.every == 0

    def _kept(self, step: int) -> bool:
        return step % (self._job.keep * self._job.every) == 0

    def _stepped(self, step: int) -> None:
        self._writer.tell()
        self._progress(step)

    def _wait(self) -> None:
        began, cores = perf_counter(), process_time()
        self._writer.tell(wait=True)
        self.written.append(perf_counter() - began)
        self.cores.append(process_time() - cores)

    def _leave(self, step: int) -> None:
        """End the program after a kept state, if it is time, or if no further one is to be reached."""
        length, job = self._job.every * self._job.keep, self._job
        total = self._driver.total
        if total < length:
            raise UsageError(f"the training has {total} steps: with fewer than {length} there is nothing to measure")
        if step % length:
            return
        late = perf_counter() - self._began > job.seconds and step >= job.least
        if late or step + length > min(job.most, total):
            raise Arrived


class _Digests(Digests):
    """A recording that becomes unsure goes back, and counts on nothing from then on; here it need not go back."""

    def of(self, state: State, *, kept: bool) -> list[tuple[StateEntry, bytes]]:
        """See ``Digests``."""
        try:
            return super().of(state, kept=kept)
        except Unsure:
            self.count_on_nothing()
            return super().of(state, kept=kept)


class ClockedDriver(Driver):
    """A Run that notes how long the program itself takes for a step, and how long the Run does."""

    def __init__(self, frame: Frame, start: Position, stop: int | None, observer: Observer | None) -> None:
        super().__init__(frame, start, stop, observer)
        self._since: float | None = None  # when the program was handed a batch; None while the Run works
        self._ours_since = 0.0
        self._own = self._reading = self._fetching = self._ours = 0.0
        self.fetched: list[float] = []
        """Seconds in which a batch was read that had not been looked at,"""
        self.fetched_bare: list[float] = []
        """and those of the batches between, as a loop without a Run reads them."""

    @property
    def total(self) -> int:
        """Steps of the training; known when one is done."""
        return (self._declaration.epochs if self._declaration else 0) * (self._steps_per_epoch() or 0)

    def step_ends(self) -> tuple[float, float]:
        """Seconds of the step that closes now: of the program, if it read its batches itself, and of the Run."""
        now = perf_counter()
        if self._since is not None:  # the program has returned
            self._own += now - self._since
        else:
            self._ours += now - self._ours_since
        self._since = None
        found = self._own + self._reading, self._ours - self._fetching
        self._own = self._reading = self._fetching = self._ours = 0.0
        return found

    def step_begins(self) -> None:
        """From now on time counts for the next step."""
        self._ours_since = perf_counter()

    def next_batch(self, loader: Loader, batch: int) -> Any:
        """See ``Driver``."""
        now = perf_counter()
        if self._since is not None:
            self._own += now - self._since
        self._since, self._ours_since = None, now
        fetched = super().next_batch(loader, batch)
        self._since = perf_counter()
        self._ours += self._since - self._ours_since
        return fetched

    def commit(self, *, loss: Any, skipped: bool = False) -> None:
        """See ``Driver``."""
        began = perf_counter()
        super().commit(loss=loss, skipped=skipped)
        self._count(began)

    def _note_rates(self, *given: Any) -> None:
        began = perf_counter()
        super()._note_rates(*given)
        self._count(began)

    def _count(self, began: float) -> None:
        """What the program waited for counts for the Run."""
        seconds = perf_counter() - began
        self._own, self._ours = self._own - seconds, self._ours + seconds

    def _batches_of(self, loader: Loader) -> Batches:
        fetch = loader.fetch

        def clocked(epoch: int, batch: int, *given: Any) -> Any:
            looked = len(self.fetched_bare) < len(self.fetched) and self._look(loader, epoch, batch)
            began = perf_counter()
            found = fetch(epoch, batch, *given)
            seconds = perf_counter() - began
            self._fetching += seconds
            if not looked:
                self.fetched.append(seconds)
            self._reading += self.fetched_bare[-1] if self.fetched_bare else seconds
            return found

        loader.fetch = clocked  # type: ignore[assignment]
        return super()._batches_of(loader)

    def _look(self, loader: Loader, epoch: int, batch: int) -> bool:
        """Read a batch as a loop without a Run would, if there is a difference.

        In its place and not afterwards: caches are as cold as they are for the recorder.
        """
        saved, began = randomness.save(), perf_counter()
        there = loader.bare(epoch, batch) is not None
        seconds = perf_counter() - began
        randomness.load(saved)
        if there:
            self.fetched_bare.append(seconds)
        self._ours -= perf_counter() - began  # nobody's
        return there


def _samples(end: Arrival) -> list[float]:
    """Seconds that each of some samples takes to be read and hashed for the dataset root."""
    data, found = Committed(end.loader.data), list[float]()
    began = perf_counter()
    for index in range(min(SAMPLED, end.loader.samples)):
        at = perf_counter()
        if at - began > LOOKING_SECONDS:
            break
        sample_leaf(data[index], index, b"")
        found.append(perf_counter() - at)
    return found
