"""A last look before the attestation: does a part of the recording replay?

The control run saw the first steps. A program that rarely does something else (a branch at the thousandth step, a
file that was changed meanwhile, a race) is met here, by its own prover, and not by a verifier.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from pol import seeds
from pol.errors import ReplayError, StoreError
from pol.interval import Interval
from pol.messages import EventType, Failed, Opened, Recorded, Segment
from pol.proof.genesis import Genesis, Spec, kept
from pol.proof.log import Log, counts_after, root_after
from pol.store import checkpoint_path

SHARE = 50
"""One step in 50 is taken again at most: 2 % is less than what a training's time varies by itself. One interval is
always taken, because a recording that was never replayed says nothing of whether it can be."""

MOST = 5
"""Most places that are looked at: each costs a build of the program, whatever the length of its steps."""

SHORT = 10
"""Steps of an interval that is looked at in the second epoch, whatever its share: the usual k."""

_WORDS = {"root": "the state after them", "batches": "the batches", "loss": "the loss", "schedules": "schedule steps"}


def places(spec: Spec, r: bytes) -> list[tuple[int, int]]:
    """From which kept state to which step.

    One interval at random; the first of the second epoch, if it has no more than ``SHORT`` steps, because what a
    program keeps beside its state shows there. Then, within ``SHARE``, the steps from the last kept state to the end,
    and further intervals at random. Random is what follows from the secret r: nobody can foresee it, and a recording
    that is resumed is looked at in the same places. The first state is a choice only if it is the one kept: a verifier
    enters in the middle, too.
    """
    *starts, _ = kept(spec)
    drawn = random.Random(seeds.expand(r, "self-check"))
    order = drawn.sample(starts[1:] or starts, min(len(starts[1:] or starts), MOST))
    intervals = [(start, min(start + spec.every, spec.steps)) for start in order]
    chosen = dict(intervals[:1])
    left = spec.steps // SHARE - sum(stop - start for start, stop in chosen.items())
    second = next((start for start in starts if start >= spec.steps // spec.declaration.epochs), spec.steps)
    if second < spec.steps and spec.every <= SHORT:
        chosen[second] = min(second + spec.every, spec.steps)
    for start, stop in [(starts[-1], spec.steps), *intervals[1:]]:
        further = stop - chosen.get(start, start)
        if 0 < further <= left:
            chosen[start] = stop
            left -= further
    return sorted(chosen.items())


def segments(genesis: Genesis, log: Log, r: bytes, folder: Path) -> list[Segment]:
    """What to replay, of the proof in ``folder``."""
    return [
        Segment(
            start=start,
            stop=stop,
            checkpoint=None if not start and genesis.randomness.built else str(folder / checkpoint_path(start)),
            counts=counts_after(log, genesis.spec, start),
        )
        for start, stop in places(genesis.spec, r)
    ]


def compare(events: Iterable[EventType], log: Log, spec: Spec, reference: str) -> Iterator[int]:
    """Compare a replay with the log; yields the steps as they are done.

    Raises:
        ReplayError: the replay failed, or gave another record: the recording cannot be sealed.
        StoreError: a kept state is not the one that the log records.
    """
    expected = {interval.start: interval for interval in log.intervals}
    done = 0
    for event in events:
        match event:
            case Opened(step=step, root=root):
                if root != root_after(log, spec, step):
                    raise StoreError(f"self-check: the kept state after {step} steps is damaged")
            case Recorded(interval=found):
                if differing := _differing(expected[found.start], found):
                    raise _lost(
                        f"taking steps {found.start} to {found.stop} again gave other values: {differing}", reference
                    )
                done += found.stop - found.start
                yield done
            case Failed(kind="Killed") | Failed(message="out of memory"):
                raise ReplayError(
                    f"the self-check could not be done: {event.message}. Resume the recording to try again"
                )
            case Failed():
                raise _lost(f"taking recorded steps again failed: {event.message}", reference)
    if not done:
        raise ReplayError("the self-check replayed no interval")


def _differing(recorded: Interval, found: Interval) -> str:
    names = [name for name in recorded.__struct_fields__ if getattr(recorded, name) != getattr(found, name)]
    return ", ".join(_WORDS.get(name, name.replace("_", " ")) for name in names)


def _lost(what: str, reference: str) -> ReplayError:
    return ReplayError(
        f"this recording does not replay, so it is not sealed: {what}. `pol doctor {reference}` tells why. What the "
        "genesis signed cannot be changed, so this recording is lost: correct the program, and record it anew in "
        "another directory"
    )
