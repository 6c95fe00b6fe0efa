"""Replays: the steps of some segments taken again, for their records and, where asked for, their states."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

import torch

from pol.interval import Interval, Momenta
from pol.messages import Finished, Opened, Recorded, Replay, Segment
from pol.replay import perturbing
from pol.replay.engine import Frame, Position, advance
from pol.replay.entry import Entry
from pol.replay.files import save_atomically
from pol.replay.intervals import IntervalRecorder
from pol.replay.state import State
from pol.replay.telling import Emit, Progress
from pol.replay.tensors import content_digest
from pol.replay.writer import checkpoint_name


def replay(job: Replay, emit: Emit) -> None:
    """Take the steps of every segment again, and tell the record of each interval."""
    entry = Entry(job.program)
    registered = job.registered
    declared = registered.declaration
    frame = Frame(entry.streams, declared, registered.batches_per_step, entry.external, entry.order)
    last = declared.epochs * declared.steps_per_epoch(registered.batches_per_step)
    progress = Progress(emit)
    saved = None if job.saved is None else frozenset(job.saved)
    done = 0
    for segment in job.segments:
        position = position_of(segment)
        if position.state is not None:
            emit(Opened(step=segment.start, root=position.state.root()))
        observer = IntervalRecorder(
            every=registered.every,
            start=segment.start,
            last=last,
            batch_key=bytes.fromhex(registered.batch_key),
            emit=partial(_replayed, emit, job, saved),
            salt_key=bytes.fromhex(job.salt_key),
            on_step=partial(_shifted, progress, done - segment.start),
        )
        stop, drive = None if segment.stop == last else segment.stop, perturbing.driver(job.perturbed, job.factors)
        advance(entry.make, frame, position, stop, observer, drive)
        done += segment.stop - segment.start
    emit(Finished(undeclared=entry.undeclared()))


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


def position_of(segment: Segment) -> Position:
    """Where a segment begins: in a state from a file, or as built."""
    if segment.checkpoint is None:
        return Position()
    return Position(segment.start, State.load(Path(segment.checkpoint)), segment.counts)
