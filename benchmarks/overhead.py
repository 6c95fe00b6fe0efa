"""From blocks to what each arm costs: two estimates, of which the tables name the one that counts.

- **whole blocks**: seconds of a step over those of the bare blocks before and after it, minus 1. It holds everything,
  and the noise of the machine as well. Blocks of the recorder are taken K intervals at a time where a state is kept
  after each of these, so that every value has its share of the writing.
- **by clocks**: seconds outside of the recipe's own step, less those of the bare blocks, and the CPU seconds that other
  threads and the signing process took meanwhile, divided among the cores; over the bare step. What it cannot see: that
  steps themselves become slower, and what the kernel does on its own to write files.

The whole blocks count where they agree: where their quartiles are closer together than the median is large.
"""

from __future__ import annotations

import statistics
from itertools import pairwise

import msgspec

from benchmarks.cases import BARE, LAST, RECORDER
from benchmarks.parts import HOOK
from benchmarks.result import Block, Recording, Spread


class Overhead(msgspec.Struct, frozen=True):
    """What one arm adds to the time of a bare step, as a share of it."""

    arm: str
    every: int
    keep: int | None
    """K; None for other arms."""
    whole: Spread | None
    """From whole blocks; None where none was taken at this k."""
    clocked: Spread
    waiting: float
    """Seconds per step for which the training thread waits; of ``clocked``."""
    beside: float
    """CPU seconds per step of other threads and processes; of ``clocked``."""

    @property
    def resolved(self) -> bool:
        """Whether whole blocks tell; fewer than three values may agree by chance."""
        whole = self.whole
        return whole is not None and whole.count > 2 and whole.high - whole.low < whole.median

    @property
    def counts(self) -> Spread:
        """The estimate that counts."""
        return self.whole if self.whole is not None and self.resolved else self.clocked


def overheads(recording: Recording, cores: int) -> list[Overhead]:
    """Of every arm of a recording but the bare loop, in the order in which they first come."""
    arms = dict.fromkeys(block.arm for block in recording.blocks if block.arm != BARE)
    return [_overhead(recording, arm, cores) for arm in arms]


def at(found: Overhead, every: int) -> Overhead:
    """The same at another k: what is done once an interval, and all at once, is done as much more seldom."""
    factor = found.every / every
    clocked = Spread(
        median=found.clocked.median * factor, low=found.clocked.low * factor, high=found.clocked.high * factor,
        count=found.clocked.count,
    )  # fmt: skip
    return Overhead(found.arm, every, None, None, clocked, found.waiting * factor, found.beside * factor)


def bare_step(recording: Recording) -> Spread:
    """Seconds of a bare step."""
    return Spread.of([block.step for block in recording.of(BARE)])


def _overhead(recording: Recording, arm: str, cores: int) -> Overhead:
    pairs = list(_paired(recording, arm))
    own, signing = (recording.parts.get(HOOK, 0.0), recording.recording_cpu) if arm == RECORDER else (0.0, 0.0)
    waiting = [_waiting(block, near) + own for block, near in pairs]
    beside = [block.beside / block.steps + signing for block, _ in pairs]
    steps = [_step(near) for _, near in pairs]
    clocked = [(w + b / cores) / step for w, b, step in zip(waiting, beside, steps, strict=True)]
    whole = [block.step / step - 1 for (block, _), step in zip(pairs, steps, strict=True)]
    size = _together(recording) if arm == RECORDER else 1
    return Overhead(
        arm, recording.every, recording.keep if arm == RECORDER else None, Spread.of(_means(whole, size)),
        Spread.of(_means(clocked, size)), statistics.median(_means(waiting, size)),
        statistics.median(_means(beside, size)),
    )  # fmt: skip


def _paired(recording: Recording, arm: str) -> list[tuple[Block, list[Block]]]:
    """Blocks of an arm, each with the bare ones beside it."""
    blocks: list[Block | None] = [None, *recording.blocks, None]
    found = []
    for (before, block), (_, after) in pairwise(pairwise(blocks)):
        if block is not None and block.arm == arm:
            near = [other for other in (before, after) if other is not None and other.arm == BARE]
            if near:
                found.append((block, near))
    return found


def _step(blocks: list[Block]) -> float:
    return statistics.mean(block.step for block in blocks)


def _waiting(block: Block, near: list[Block]) -> float:
    return block.outside / block.steps - statistics.mean(other.outside / other.steps for other in near)


def _together(recording: Recording) -> int:
    """Blocks of the recorder that come to K intervals."""
    steps = recording.of(RECORDER)[0].steps
    return 1 if recording.keep == LAST else max(1, recording.keep * recording.every // steps)


def _means(values: list[float], size: int) -> list[float]:
    """Means of so many values at a time; all of them if they are fewer."""
    size = min(size, len(values))
    return [statistics.mean(values[i : i + size]) for i in range(0, len(values) - size + 1, size)]


def interval_bytes(recording: Recording) -> float:
    """Bytes that a proof grows by with every interval: its share of a kept state, and its record in the log."""
    last = max(_kept(recording))
    regular = [size for step, size in _kept(recording).items() if 0 < step < last and _is_regular(recording, step)]
    records = (last + recording.every - 1) // recording.every
    log = recording.files.get("log.jsonl", 0) / max(1, records)
    return log + (statistics.mean(regular) / recording.keep if regular else 0.0)


def _is_regular(recording: Recording, step: int) -> bool:
    return step % (recording.every * recording.keep) == 0


def _kept(recording: Recording) -> dict[int, int]:
    """Step to bytes of the kept states."""
    names = {name: size for name, size in recording.files.items() if name.startswith("checkpoints/")}
    return {int(name.removeprefix("checkpoints/").partition(".")[0]): size for name, size in names.items()}
