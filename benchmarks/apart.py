"""How far one end of some steps is off, as rule ``tolerance`` counts it."""

from __future__ import annotations

import functools
import math

import msgspec

from pol import policies
from pol.checkpoint import Checkpoint
from pol.distance import Accumulator, ratio
from pol.interval import Momenta
from pol.proof.policy import Limits
from pol.verifier.carrying import Carrying
from pol.verifier.reproduction import reproduction
from pol.verifier.tolerance import largest

ENDLESS = 1e300
"""Stands for a share that is not finite: JSON has no infinity."""


class Apart(msgspec.Struct, frozen=True, kw_only=True):
    """An end that was replayed against one that was recorded."""

    whole: float
    """Error of all parameters together, as a share of their replayed move."""
    worst: float
    """Largest error of a parameter as a share of its own move; what errors of its moments will do later counts."""
    tensor: str
    """Which parameter that is."""
    own: float
    """The same without the moments."""
    limit: float
    """Largest error of an entry as a share of its limit under the preset ``tolerance``."""


def apart(
    start: Checkpoint, replayed: Checkpoint, recorded: Checkpoint, carrying: Carrying, step: int, momenta: Momenta
) -> Apart:
    """Compare two ends of the same steps.

    Args:
        start: The recorded state before them.
        replayed: Where the verifier ends.
        recorded: Where the prover says that it ended.
        carrying: The optimizers and learning rates of the run.
        step: Steps of the run before the end.
        momenta: Of the parameter groups there.
    """
    limits, error, moved = preset(), Accumulator(), Accumulator()
    worst, own, limit = (-1.0, ""), 0.0, 0.0
    for key, one in reproduction(start, replayed, recorded, carrying, step, momenta):
        move = one.move.result().l2
        if not one.equal:  # infinities too, as masks hold them
            limit = max(limit, _share(one.total, largest(limits, one.entry, move, one.norm)))
        if one.entry.kind == "parameter":
            error.merge(one.error)
            moved.merge(one.move)
            worst = max(worst, (_share(one.total, move), key))
            own = max(own, _share(one.error.result().l2, move))
    whole = _share(error.result().l2, moved.result().l2)
    return Apart(whole=whole, worst=worst[0], tensor=worst[1], own=own, limit=limit)


@functools.cache
def preset() -> Limits:
    """The limits of the preset ``tolerance``."""
    limits = policies.load("tolerance").limits
    assert limits is not None
    return limits


def _share(error: float, of: float) -> float:
    share = ratio(error, of)
    return share if math.isfinite(share) else ENDLESS
