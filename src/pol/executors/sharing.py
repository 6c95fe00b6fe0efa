"""One replay shared out over several processes, and told as if one had taken it.

Every segment is entered anew from a state of its own, so it makes no difference who replays it. Whoever asked gets the
events in the order of the segments, however fast each process was: a replay that is shared out finds what one process
would have found, in the same order, and stops where that would have stopped.
"""

from __future__ import annotations

import fcntl
import selectors
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from pol.executors.local import Executor, LocalProcess
from pol.messages import LAST, EventType, Failed, Finished, JobType, Recorded, Replay, Segment, Stepped


class Answers(Protocol):
    """What several jobs that are done at the same time yield."""

    def of(self, number: int) -> Iterator[tuple[int, EventType]]:
        """The events of a job from where they were left, and between them how far the others are; by job."""


class Beside:
    """What several processes answer that do one job each at the same time. A context manager: leaving it ends those
    that have not answered.

    Args:
        processes: Which are idle.
        jobs: As many.
        ahead: Records of one job that are received before their turn; None: all. More wait in the pipe, and when that
            is full, their process waits.
    """

    def __init__(self, processes: Sequence[LocalProcess], jobs: Sequence[JobType], ahead: int | None = None) -> None:
        self._processes, self._ahead = processes, ahead
        self._waiting: list[deque[EventType]] = [deque() for _ in jobs]
        self._running: set[int] = set()
        try:
            for process in processes:
                process.start()  # all of them, before the first has to be ready
                if ahead is not None and hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux
                    fcntl.fcntl(process.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)
            for number, job in enumerate(jobs):
                self._running.add(number)
                processes[number].send(job)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._running:
            self._processes[number].close()

    def of(self, number: int) -> Iterator[tuple[int, EventType]]:
        """The events of a job from where they were left, and between them how far the others are; by job."""
        while True:
            while self._waiting[number]:
                yield number, self._waiting[number].popleft()
            yield from self._received(number)

    def _received(self, wanted: int) -> Iterator[tuple[int, EventType]]:
        """Receive what has come; progress is told at once, everything else in its turn."""
        progress: list[tuple[int, Stepped]] = []
        for number in self._ready(wanted):
            for event in self._processes[number].receive():
                if isinstance(event, LAST):
                    self._running.discard(number)
                if isinstance(event, Stepped):
                    progress.append((number, event))
                else:
                    self._waiting[number].append(event)
        yield from progress

    def _ready(self, wanted: int) -> list[int]:
        with selectors.DefaultSelector() as selector:
            for number in self._running:
                held = sum(isinstance(event, Recorded) for event in self._waiting[number])
                if number == wanted or self._ahead is None or held < self._ahead:
                    selector.register(self._processes[number], selectors.EVENT_READ, number)
            return [key.data for key, _ in selector.select()]


_PIPE = 1 << 12
"""Bytes of records that may wait to be read: one page, the least that there is, and a record or two."""


class InTurn:
    """The same of an executor that does one job after the other."""

    def __init__(self, executor: Executor, jobs: Sequence[JobType]) -> None:
        self._executor, self._jobs = executor, jobs
        self._events: dict[int, Iterator[EventType]] = {}

    def of(self, number: int) -> Iterator[tuple[int, EventType]]:
        """See ``Answers``."""
        if number not in self._events:
            self._events[number] = iter(list(self._executor.run(self._jobs[number])))
        for event in self._events[number]:
            yield number, event


def deal(segments: Sequence[Segment], count: int) -> list[list[int]]:
    """Which segments each of ``count`` processes takes, by number and in order; none has nothing to do.

    The longest first, each to whoever has the fewest steps so far: nobody has more than the fewest by more than one
    segment. Of equal ones every process takes each ``count``-th, so that all of them are about equally far.
    """
    shares: list[list[int]] = [[] for _ in range(min(count, len(segments)))]
    steps = [0] * len(shares)
    lengths = [segment.stop - segment.start for segment in segments]
    for number in sorted(range(len(segments)), key=lambda number: -lengths[number]):
        least = steps.index(min(steps))
        shares[least].append(number)
        steps[least] += lengths[number]
    return [sorted(share) for share in shares]


def in_order(
    job: Replay, shares: Sequence[Sequence[int]], workers: Sequence[LocalProcess] | Executor
) -> Iterator[EventType]:
    """The events of a replay whose segments are shared out, as one process would yield them.

    ``Stepped`` events count the steps of all shares together. After a ``Failed`` nothing follows.

    Args:
        job: The whole replay.
        shares: Numbers of its segments, for each worker; every number once.
        workers: Idle processes, one for each share; or an executor that does one share after the other.
    """
    parts = [msgspec.structs.replace(job, segments=[job.segments[number] for number in share]) for share in shares]
    if isinstance(workers, Sequence):
        # States that are saved wait on the disk for whoever asked, so nobody runs far ahead.
        with Beside(workers, parts, ahead=None if job.save is None else 1) as beside:
            yield from merged(job, shares, beside)
    else:
        yield from merged(job, shares, InTurn(workers, parts))


def merged(job: Replay, shares: Sequence[Sequence[int]], answers: Answers) -> Iterator[EventType]:
    """The events of all shares in the order of the segments."""
    owner = {number: share for share, numbers in enumerate(shares) for number in numbers}
    done = [0] * len(shares)
    for number, segment in enumerate(job.segments):
        for share, event in answers.of(owner[number]):
            if isinstance(event, Stepped):
                done[share] = event.step
                event = Stepped(step=sum(done))
            yield event
            if isinstance(event, Failed | Finished):  # it has stopped, or ended too early
                return
            if isinstance(event, Recorded) and event.interval.stop == segment.stop:
                break
        else:  # it has ended without a word
            return
    ends: list[Finished] = []
    for share in range(len(shares)):
        for _, event in answers.of(share):
            if isinstance(event, Finished):
                ends.append(event)
                break
            if not isinstance(event, Stepped):  # all steps have been taken: it is told as it is
                yield event
            if isinstance(event, Failed):
                return
    undeclared = sorted({name for end in ends for name in end.undeclared})
    yield Finished(asides=sum(end.asides for end in ends), undeclared=undeclared)
