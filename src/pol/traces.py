"""What a probe of a training notes, step by step: digests of everything that a second run is to have again.

Plain values, no torch. Two probes of one program are compared by another process than those that made them.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One step as it was taken; digests are hexadecimal."""

    step: int
    loss: str | None
    seconds: float
    """From the step's first batch to its end, without what the probe itself did."""
    batch: dict[str, str]
    """Fields of the batches as they entered the step, to digests."""
    generators: dict[str, str]
    """Python's, numpy's and torch's generators and the attached ones, after the step, to digests of their states."""
    flags: dict[str, str]
    """Settings of torch during the step."""
    state: dict[str, str]
    """Entry keys to digests of the state after the step."""
    counts: dict[str, int]
    """Steps of each counted schedule."""


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of torch in a traced step."""

    name: str
    place: str
    """``file:line`` in the recipe from which it was called; empty if none of its lines did."""
    line: str
    """The source there."""
    backward: bool
    """It ran in the backward pass of what was called there, or in one that was called there."""
    inputs: list[str]
    """Per argument, what it is and a digest: ``f32[4,8] 0123abcd``, or a plain value."""
    outputs: list[str]


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """The recipe asked for something that a second run does not have again, or only by chance."""

    kind: Literal["clock", "entropy"]
    call: str
    """What was called: ``time.time``."""
    place: str
    """Name of the file and line: ``train.py:12``."""
    line: str
    """The source there."""
    step: int | None
    """None: before the first step."""
    fetching: bool = False
    """While a batch was being fetched."""

    def __str__(self) -> str:
        what = "reads the clock" if self.kind == "clock" else "draws fresh randomness"
        return f"{what} at {self.place} ({self.call})"


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """A setting that a program was seen to use in a step, and that is in no declaration."""

    name: str
    """The bound of a policy that it belongs to: ``dropout``, ``clip_norm``, …"""
    value: float
    place: str
    """Name of the file and line: ``train.py:12``, or the name of a module of the program."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the program holds besides what it attached."""

    name: str
    """``self.seen``, or ``module.name`` for a global of one of the recipe's modules, or the name of a local."""
    type: str
    kind: Literal["optimizer", "schedule", "module", "generator", "value"]
    digest: str


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that the parts of a recording took. Lists are in the order of the steps, without the first ones."""

    entered: float
    """From the program's start, with its imports, until its first batch."""
    bare: list[float]
    """Each step, in the program itself and in reading its batches."""
    added: list[float]
    """What recording adds to each."""
    refetched: list[float]
    """What it adds to the reading of the batches of a step, beyond ``added``."""
    closing: list[float]
    """After steps that end no interval,"""
    digests: list[float]
    """after those that end one: taking the state, and hashing what may have changed,"""
    whole: list[float]
    """and after those whose state is kept, all of which is hashed."""
    copies: list[float]
    """Each kept state: until the training may go on,"""
    written: list[float]
    """until it is on disk,"""
    cores: list[float]
    """and the seconds of all cores that the writing took."""
    samples: list[float]
    """Hashing one sample for the dataset root."""
    state_bytes: int
    """Of the tensors of the last state."""
