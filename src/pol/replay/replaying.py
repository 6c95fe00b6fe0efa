"""Replays: the steps of some segments taken again, for their records and, where asked for, their states."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pol.interval import Interval, Momenta
from pol.messages import Finished, Opened, Recorded, Replay, Segment
from pol.replay import perturbing
from pol.replay.engine import Frame, Position, advance
from pol.replay.entry import Entry
from pol.replay.files import save_atomically
from pol.replay.intervals import IntervalRecorder
from pol.replay.opened import Dataset
from pol.replay.state import State
from pol.replay.telling import Emit, Progress
from pol.replay.tensors import content_digest
from pol.replay.writer import checkpoint_name
from pol.statetree import StateRoot


def replay(job: Replay, emit: Emit) -> None:
    """Take the steps of every segment again, and tell the record of each interval.

    At most two large states are in memory: the program's own, and the one from which it will be entered next.
    """
    entry = Entry(job.program, Dataset(), None if job.redrawn is None else bytes.fromhex(job.redrawn))
    registered = job.registered
    declared = registered.declaration
    frame = Frame(entry.streams, declared, registered.batches_per_step, entry.external, entry.order)
    last = declared.epochs * declared.steps_per_epoch(registered.batches_per_step)
    progress = Progress(emit)
    saved = None if job.saved is None else frozenset(job.saved)
    done = 0
    with _Ahead(job.segments) as ahead:
        for segment in job.segments:
            position, root = ahead.take()
            if root is not None:
                emit(Opened(step=segment.start, root=root))
            observer = Entering(
                every=registered.every,
                start=segment.start,
                last=last,
                batch_key=bytes.fromhex(registered.batch_key),
                emit=partial(_replayed, emit, job, saved),
                salt_key=bytes.fromhex(job.salt_key),
                on_step=partial(_shifted, progress, done - segment.start),
            )
            observer.entered = partial(ahead.begin, position)
            stop, drive = None if segment.stop == last else segment.stop, perturbing.driver(job.perturbed, job.factors)
            advance(entry.make, frame, position, stop, observer, drive)
            done += segment.stop - segment.start
            ahead.left()
    emit(Finished(undeclared=entry.undeclared()))


class Entering(IntervalRecorder):
    """Says once when the program has been put where its segment starts."""

    entered: Callable[[], None] | None = None

    def batch(self, step: int, batch: Any, chosen: list[int] | None) -> None:
        """See ``IntervalRecorder``."""
        if self.entered is not None:
            self.entered()
            self.entered = None
        super().batch(step, batch, chosen)


class _Ahead:
    """Loads the state from which each segment starts, while the steps of the one before are taken. A context manager.

    Not sooner: files that are opened while a program is entered are taken for its own.
    """

    def __init__(self, segments: list[Segment]) -> None:
        self._segments = iter(segments)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
        self._loading: Future[tuple[Position, StateRoot | None]] | None = None
        self._large = True

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self) -> tuple[Position, StateRoot | None]:
        """Where the next segment starts, and the root of the state there, if it is not as built.

        Raises:
            IntegrityError: it starts from a file that is no checkpoint.
        """
        loading, self._loading = self._loading, None
        return _loaded(next(self._segments)) if loading is None else loading.result()

    def begin(self, entered: Position) -> None:
        """The program has been put where it was to start: let go of that, and load where the next one starts."""
        if entered.state is not None:
            self._large = sum(tensor.nbytes for tensor in entered.state.tensors.values()) >= _LARGE
        let_go(entered)
        if (segment := next(self._segments, None)) is not None:
            self._loading = self._thread.submit(_loaded, segment)

    def left(self) -> None:
        """The program was left. Its parts know one another, so a large one would stay beside the next."""
        if self._large:
            gc.collect()


_LARGE = 1 << 26
"""Bytes of a state from which a program is worth looking for when it was left: 64 MiB. Looking takes 5 to 40 ms; Python
does it by itself now and then."""


def _loaded(segment: Segment) -> tuple[Position, StateRoot | None]:
    position = position_of(segment)
    return position, None if position.state is None else position.state.root()


def _replayed(
    emit: Emit, job: Replay, saved: Collection[int] | None, interval: Interval, state: State, samples: list[str],
    momenta: Momenta,
) -> None:  # fmt: skip
    drawn = ""
    if job.save is not None:
        if saved is None or interval.stop in saved:
            # Not lasting: whatever comes of it is compared with a digest before anybody uses it.
            save_atomically(state, Path(job.save) / checkpoint_name(interval.stop), lasting=False)
        drawn = content_digest(torch.get_rng_state()).hex()
    emit(Recorded(interval=interval, samples=samples, momenta=momenta, drawn=drawn))


def _shifted(progress: Progress, by: int, step: int) -> None:
    progress(by + step)


def let_go(entered: Position) -> None:
    """The program has been put where it was to start: its state has no further use."""
    if entered.state is not None:
        entered.state.tensors.clear()


def position_of(segment: Segment) -> Position:
    """Where a segment begins: in a state from a file, or as built."""
    if segment.checkpoint is None:
        return Position()
    return Position(segment.start, State.load(Path(segment.checkpoint)), segment.counts)
