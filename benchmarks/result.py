"""What the benchmarks measure, as values; the JSON that is checked in holds these and nothing else."""

from __future__ import annotations

import statistics
from typing import Any, TypeVar

import msgspec

SCHEMA = "pol/benchmarks/v1"


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of all."""


class Spread(Value, frozen=True):
    """A median, and how far the middle half of the values reaches; the whole range where there are fewer than four."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """That of some values.

        Raises:
            ValueError: there is none.
        """
        if not values:
            raise ValueError("nothing was measured")
        low, high = min(values), max(values)
        if len(values) >= 4:
            low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=statistics.median(values), low=low, high=high, count=len(values))


class Block(Value, frozen=True):
    """Steps of one arm, one after the other; all in seconds."""

    arm: str
    steps: int
    inside: float
    """In the recipe's own ``step``."""
    outside: float
    """In all else that the training waits for: batches, and what is recorded."""
    beside: float
    """CPU time of threads that do not train, while the training did not wait."""

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return (self.inside + self.outside) / self.steps


class Recording(Value, frozen=True):
    """One recording with the blocks that took turns in its process."""

    every: int
    keep: int
    blocks: list[Block]
    parts: dict[str, float]
    """Seconds of a recorded step in each part of the recorder."""
    recording_cpu: float
    """CPU seconds of a recorded step in the process that signs and writes the log."""
    files: dict[str, int]
    """Bytes of each file of the proof, before its attestation."""
    parameters: int
    state_bytes: int
    """All tensors of the state dicts of model, optimizer and schedule."""
    memory: int
    """Largest resident memory of the training process (two models), in bytes."""
    recording_memory: int
    """The same of the process that signs."""

    def of(self, arm: str) -> list[Block]:
        """The blocks of an arm."""
        return [block for block in self.blocks if block.arm == arm]


class Memory(Value, frozen=True):
    """Largest resident memory of a training process of each arm that does nothing else, in bytes."""

    peak: dict[str, int]
    recording: int
    """Of the process that signs, beside it."""


class Audit(Value, frozen=True):
    """One proof verified, all intervals, on one-thread processes."""

    every: int
    intervals: int
    steps: int
    bare: Spread
    """Seconds of the bare steps of one interval."""
    verify: dict[str, float]
    """Wall seconds of a verification with so many processes at a time, start of the interpreter included."""
    inner: dict[str, dict[str, float]]
    """Of it: seconds by the report, and of the replay alone."""
    method2021: float
    """Wall seconds of the audit of 2021 of the same steps, in a process of its own."""
    one_off: float
    """Wall seconds of the recording that do not grow with its steps."""

    @property
    def compute(self) -> float:
        """Seconds of all steps in the bare loop."""
        return self.bare.median * self.intervals


class Planned(Value, frozen=True):
    """What ``pol plan`` said of the same training in the same minutes."""

    overheads: dict[str, float]
    """By k and K, as shares."""
    audit: float | None
    """Seconds of the verification of ``Audit`` with one process."""


class Hashing(Value, frozen=True):
    """Rates in bytes per second, of one large float32 tensor."""

    size: int
    threads: int
    rates: dict[str, Spread]


class Made(Value, frozen=True):
    """With what, when and where."""

    command: str
    started: str
    pol: str
    python: str
    torch: str
    processor: str
    system: str
    cores: int
    threads: int
    load_before: float
    load_after: float
    quick: bool
    code: str = ""
    """Digest of the code that was measured; "" where none was noted."""


class Measured(Value, frozen=True):
    """All measurements of one training."""

    case: str
    title: str
    made: Made
    recordings: list[Recording]
    memory: Memory
    audit: Audit | None
    hashing: Hashing
    """Taken in the same minutes: the limit of what must touch every byte."""
    planned: Planned | None = None
    """None: measured before predictions were."""


class Results(Value, frozen=True):
    """The content of the JSON file."""

    measured: list[Measured]
    left_out: dict[str, str] = {}
    """Trainings that were not measured, and why."""
    schema: str = SCHEMA


T = TypeVar("T", bound=Value)


def convert(found: dict[str, Any], kind: type[T]) -> T:
    """Plain values of another process as a value of a kind."""
    return msgspec.convert({key: found[key] for key in kind.__struct_fields__ if key in found}, kind)
