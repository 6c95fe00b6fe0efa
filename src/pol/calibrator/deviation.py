"""The error of one replay over some steps, measured as rule ``tolerance`` judges an interval of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pol.checkpoint import Checkpoint
from pol.distance import Accumulator, ratio
from pol.errors import UsageError
from pol.interval import Interval, Momenta
from pol.proof.limiting import MARGIN
from pol.proof.noise import WORST, Seen
from pol.proof.policy import Limits
from pol.statetree import FLOATING
from pol.verifier.carrying import Carrying
from pol.verifier.reproduction import Reproduced, accumulated, reproduction
from pol.verifier.tolerance import largest

SKIP = "With --runs-only (noise=False) the runs, which are kept, are compared all the same"

_NOTHING = Limits(relative=0.0, absolute=0.0)
"""Limits that allow no more than their floor."""


class Uncovered(UsageError):
    """Two replays differ in what no tolerance covers."""


class Error(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The error of one replay, and its ``absolute`` by tensor, where there is any beyond the floor."""

    seen: Seen
    tensors: dict[str, float] = {}


@dataclass(frozen=True)
class Ends:
    """The states around some steps, recorded and taken again, and the mean losses over them."""

    start: Checkpoint
    recorded: Checkpoint
    replayed: Checkpoint
    step: int
    """Steps of the run before the end."""
    losses: tuple[float | None, float | None]
    """Recorded and taken again; None: all steps were skipped."""
    momenta: Momenta
    """Of the parameter groups at the end of the replay."""
    equal: bool
    """Whether the roots are."""
    name: str
    """What was different, for messages."""


def uncovered(found: Interval, recorded: Interval) -> str:
    """Which field of a record differs of those that are exact under every rule; "" if none does."""
    for name in ("batches", "learning_rates", "skipped", "schedules"):
        if getattr(found, name) != getattr(recorded, name):
            return name.replace("_", " ")
    return ""


def honest_error(ends: Ends, carrying: Carrying) -> Error:
    """The error of an honest replay, over every floating-point tensor of the state.

    Raises:
        Uncovered: something differs that no tolerance covers.
    """
    loss = _loss(*ends.losses)
    if ends.equal:
        return Error(_seen(True, _Total(), {}, {}, loss))
    if differs := _not_covered(ends):
        raise Uncovered(f"steps up to {ends.step} with {ends.name}: {differs}. {SKIP}")
    total, relative, absolute = _Total(), {}, {}
    for key, found in _reproduction(ends, carrying):
        total.add(found)
        if not found.equal and (excess := _excess(found.total, found)) > 0:
            relative[key] = capped(ratio(excess, found.move.result().l2))
            # So that a limit is at least one more floor: an error that is beyond it by a hair says little of the next.
            absolute[key] = capped((excess + _floor(found) / MARGIN) / math.sqrt(found.error.result().size))
    if not total.moved.result().size:
        raise Uncovered(f"this recipe has no floating-point parameters to compare. {SKIP}")
    return Error(_seen(False, total, relative, absolute, loss), absolute)


def forged_error(ends: Ends, carrying: Carrying) -> Error:
    """What a cheat leaves: of parameters alone, each by itself. What else is in a state a forger can make up."""
    loss = _loss(*ends.losses)
    if ends.equal:
        return Error(_seen(True, _Total(), {}, {}, loss))
    if differs := _not_covered(ends):
        return Error(Seen(
            equal=False, share=repr(WORST), error=repr(WORST), relative=repr(WORST), relative_of=differs,
            absolute=repr(WORST), absolute_of=differs, loss=repr(loss),
        ))  # fmt: skip
    total, relative, absolute, floored = _Total(), {}, {}, True
    for key, found in _reproduction(ends, carrying):
        total.add(found)
        error = found.error.result()
        if found.entry.kind == "parameter" and not error.equal:
            excess = _excess(error.l2, found)
            floored = floored and excess <= _floor(found)  # so an error up to twice the floor
            if excess > 0:
                relative[key] = capped(ratio(excess, found.move.result().l2))
                absolute[key] = capped(excess / math.sqrt(error.size))
    if floored:
        relative, absolute = {}, {}
    return Error(_seen(False, total, relative, absolute, loss, floored))


def _reproduction(ends: Ends, carrying: Carrying) -> Iterator[tuple[str, Reproduced]]:
    return reproduction(ends.start, ends.replayed, ends.recorded, carrying, ends.step, ends.momenta)


@dataclass
class _Total:
    """All parameters together."""

    wrong: Accumulator = field(default_factory=Accumulator)
    moved: Accumulator = field(default_factory=Accumulator)

    def add(self, found: Reproduced) -> None:
        if found.entry.kind == "parameter":
            self.wrong.merge(found.error)
            self.moved.merge(found.move)


def _seen(
    equal: bool, total: _Total, relative: dict[str, float], absolute: dict[str, float], loss: float,
    floored: bool = False,
) -> Seen:  # fmt: skip
    worst = max(((value, key) for key, value in relative.items()), default=(0.0, ""))
    widest = max(((value, key) for key, value in absolute.items()), default=(0.0, ""))
    error = total.wrong.result().l2
    return Seen(
        equal=equal, share=repr(capped(ratio(error, total.moved.result().l2))), error=repr(capped(error)),
        relative=repr(worst[0]), relative_of=worst[1], absolute=repr(widest[0]), absolute_of=widest[1],
        loss=repr(loss), floored=floored,
    )  # fmt: skip


def capped(value: float) -> float:
    """A number, or what stands for one that is too large, or none."""
    return value if value < WORST else WORST  # what is not a number is not below it


def _named(state: Checkpoint) -> dict[str, Any]:
    return {key: slot.entry for key, slot in state.entries.items()}


def _not_covered(ends: Ends) -> str:
    if _named(ends.replayed) != _named(ends.recorded):
        return "a state with other entries than recorded"
    for key, slot in ends.recorded.entries.items():
        pairs = zip(ends.replayed.chunks(key), ends.recorded.chunks(key), strict=True)
        if slot.entry.dtype not in FLOATING and not accumulated(pairs).result().equal:
            return f"{key} differs, and what is not floating point is exact under every rule; use rule exact"
    return ""


def _floor(found: Reproduced) -> float:
    return largest(_NOTHING, found.entry, 0.0, found.norm)


def _excess(error: float, found: Reproduced) -> float:
    """How much of an error is beyond the floor that every limit allows."""
    return max(0.0, error - _floor(found)) if math.isfinite(error) else WORST


def _loss(recorded: float | None, found: float | None) -> float:
    if found is None or recorded is None:
        return 0.0 if found == recorded else WORST
    return capped(abs(found - recorded) / (1 + abs(found)))
