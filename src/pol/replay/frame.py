"""Where a program is entered, what stays the same over its run, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pol.declaration import Declaration, External
from pol.replay.loader import Loader
from pol.replay.parts import Parts
from pol.replay.randomness import Streams
from pol.replay.state import State
from pol.statetree import StateRoot


@dataclass(frozen=True)
class Position:
    """Where a program is entered: before step ``step``, in ``state``; ``state`` None means as it is built."""

    step: int = 0
    state: State | None = None
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Frame:
    """What stays the same over a run: its randomness, and what the program is expected to declare."""

    streams: Streams
    declaration: Declaration | None = None
    batches_per_step: int | None = None
    external: Callable[[], list[External]] = list
    """Files that were read until now; asked at ``attach``."""
    order: Path | None = None
    """A file of dataset indices (u32le, epochs × samples) instead of the order that the seed gives."""


@dataclass(frozen=True)
class Arrival:
    """What ``advance`` leaves: the step reached, the state there, and what the program declared."""

    step: int
    state: State
    counts: dict[str, int]
    declaration: Declaration
    batches_per_step: int | None
    loader: Loader
    parts: Parts
    asides: int
    finished: bool

    def root_now(self) -> StateRoot:
        """Roots of the state."""
        return self.state.root()

    def digests_now(self) -> dict[str, bytes]:
        """Content digests of the state, by entry key."""
        return {entry.key: content for entry, content in self.state.digests()}
