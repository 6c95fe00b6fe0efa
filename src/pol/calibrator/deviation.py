"""One interval, taken again on another platform, compared as rule ``tolerance`` compares it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from pol.calibrator.trainer import Run
from pol.checkpoint import Checkpoint
from pol.distance import Accumulator, Distances, ratio
from pol.errors import UsageError
from pol.interval import Interval
from pol.proof.noise import WORST
from pol.proof.policy import Limits
from pol.statetree import FLOATING, Entry
from pol.verifier.reproduction import norm
from pol.verifier.tolerance import largest

SKIP = "With --runs-only (noise=False) the runs, which are kept, are compared all the same"

_NOTHING = Limits(relative=0.0, absolute=0.0)
"""Limits that allow no more than their floor."""


class Error(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The error of one interval; see ``pol.proof.noise.Perturbed``, of which these are the parts."""

    interval: int
    equal: bool = True
    share: float = 0.0
    error: float = 0.0
    relative: float = 0.0
    relative_of: str = ""
    absolute: float = 0.0
    absolute_of: str = ""
    loss: float = 0.0


def error_of(run: Run, recorded: Interval, found: Interval, replayed: Checkpoint, name: str) -> Error:
    """The error of an interval of a run.

    Args:
        run: What was recorded.
        recorded: The interval, as it is in the log of the run.
        found: The interval as it was taken again.
        replayed: The state in which that ended.
        name: What was different, for messages.

    Raises:
        UsageError: something differs that no tolerance covers.
    """
    where = f"steps {found.start}–{found.stop} with {name}"
    for field in ("batches", "learning_rates", "skipped", "schedules"):
        if getattr(found, field) != getattr(recorded, field):
            raise UsageError(
                f"{where}: other {field.replace('_', ' ')} than recorded. What a step is given depends on the "
                f"platform, and no tolerance covers that; use rule exact. {SKIP}"
            )
    index, loss = found.start // run.genesis.spec.every, _loss(found.loss, recorded.loss)
    if found.root == recorded.root:
        return Error(index, loss=loss)
    start, end = run.state(found.start), run.state(found.stop)
    if _named(replayed) != _named(end):
        raise UsageError(f"{where}: a state with other entries than recorded. {SKIP}")
    wrong, moved = Accumulator(), Accumulator()
    relative, absolute = (0.0, ""), (0.0, "")
    for key, slot in end.entries.items():
        error = _accumulated(replayed, end, key)
        if slot.entry.dtype not in FLOATING:
            if not error.result().equal:
                raise UsageError(
                    f"{where}: {key} differs, and what is not floating point is exact under every rule; use rule "
                    f"exact. {SKIP}"
                )
            continue
        before = start if key in start.entries else None
        move = _accumulated(replayed, before, key)
        if slot.entry.kind == "parameter":
            wrong.merge(error)
            moved.merge(move)
        if error.result().equal:  # infinities too, as masks hold them
            continue
        excess = _excess(error.result(), slot.entry, norm(before or replayed, key))
        if excess > 0:
            relative = max(relative, (capped(ratio(excess, move.result().l2)), key))
            absolute = max(absolute, (capped(excess / math.sqrt(error.result().size)), key))
    if not moved.result().size:
        raise UsageError(f"this recipe has no floating-point parameters to compare. {SKIP}")
    total = wrong.result().l2
    return Error(index, False, capped(ratio(total, moved.result().l2)), capped(total), *relative, *absolute, loss)


def capped(value: float) -> float:
    """A number, or what stands for one that is too large, or none."""
    return value if value < WORST else WORST  # what is not a number is not below it


def _named(state: Checkpoint) -> dict[str, Any]:
    return {key: slot.entry for key, slot in state.entries.items()}


def _accumulated(a: Checkpoint, b: Checkpoint | None, key: str) -> Accumulator:
    """An entry compared in two states, or with zero."""
    found = Accumulator()
    chunks: Iterator[Any] = a.chunks(key)
    for one, other in zip(chunks, b.chunks(key), strict=True) if b else ((c, np.zeros_like(c)) for c in chunks):
        found.add(one, other)
    return found


def _excess(error: Distances, entry: Entry, before: float) -> float:
    """How much of an error is beyond the floor that every limit allows."""
    if not math.isfinite(error.l2):
        return WORST
    return max(0.0, error.l2 - largest(_NOTHING, entry, 0.0, before))


def _loss(found: str | None, recorded: str | None) -> float:
    if found is None or recorded is None:
        return 0.0 if found == recorded else WORST
    a, b = float(found), float(recorded)
    return capped(abs(a - b) / (1 + abs(a)))
