"""How well a replay reproduces a recorded state: entry by entry, with what errors of moments will still do.

Both rule ``tolerance`` and a calibration of it measure with this, so a limit means the same in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pol.checkpoint import Checkpoint
from pol.distance import Accumulator
from pol.interval import Momenta
from pol.statetree import FLOATING, Entry
from pol.values import Values
from pol.verifier.carrying import Carrying


@dataclass(frozen=True)
class Reproduced:
    """One entry of a state, as replayed and as recorded. Lengths are Euclidean, in float64."""

    entry: Entry
    error: Accumulator
    """Replayed against recorded."""
    move: Accumulator
    """Replayed against the start of the interval; what is new there moved from zero."""
    carried: float
    """How far errors of its moments will move a parameter in later steps, at most (``pol.verifier.carrying``)."""
    norm: float
    """Of the start; of what is new, of the replayed value."""

    @property
    def equal(self) -> bool:
        """Whether it was reproduced bit for bit, moments included; infinities too, as masks hold them."""
        return self.error.result().equal and self.carried == 0

    @property
    def total(self) -> float:
        """The reproduction error: of the entry itself, and of what its moments carry on; NaN if not finite."""
        own = 0.0 if self.error.result().equal else self.error.result().l2
        return own + self.carried


def reproduction(
    start: Checkpoint, replayed: Checkpoint, recorded: Checkpoint, carrying: Carrying, step: int, momenta: Momenta
) -> Iterator[tuple[str, Reproduced]]:
    """Every floating-point entry of a recorded state, compared with the replayed one.

    Args:
        start: The recorded state before the interval.
        replayed: The state to which taking its steps again leads; of the same entries as ``recorded``.
        recorded: The state that was recorded.
        carrying: The optimizers and learning rates of the run.
        step: Steps of the run before the end of the interval.
        momenta: Of the parameter groups at the end of the replay.
    """
    for key, slot in recorded.entries.items():
        if slot.entry.dtype not in FLOATING:
            continue
        error = accumulated(zip(replayed.chunks(key), recorded.chunks(key), strict=True))
        carried = carrying.length(key, step, momenta, replayed, recorded) if slot.entry.kind == "parameter" else 0.0
        known = key in start.entries
        yield (
            key,
            Reproduced(slot.entry, error, move(start, replayed, key), carried, norm(start if known else replayed, key)),
        )


def move(start: Checkpoint, end: Checkpoint, key: str) -> Accumulator:
    """How far an entry moved; one that is new (optimizer state after the first step) moved from zero."""
    if key not in start.entries:
        return accumulated((chunk, np.zeros_like(chunk)) for chunk in end.chunks(key))
    return accumulated(zip(end.chunks(key), start.chunks(key), strict=True))


def norm(state: Checkpoint, key: str) -> float:
    """Euclidean norm of an entry."""
    return accumulated((chunk, np.zeros_like(chunk)) for chunk in state.chunks(key)).result().l2


def accumulated(pairs: Iterable[tuple[Values, Values]]) -> Accumulator:
    """Two entries compared, a chunk at a time."""
    found = Accumulator()
    for a, b in pairs:
        found.add(a, b)
    return found
