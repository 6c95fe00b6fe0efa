"""Lines whose pieces the verification of 2021 takes for nothing: how many pieces its deltas ask for."""

from __future__ import annotations

import math

import torch

from pol.attacks.deltas import apart
from pol.replay.state import State

SHARE = 0.99
"""How much of a delta a piece uses: float32 rounds the points of the line."""

MOST = 10_000
"""Most pieces: T' of the published code of the infinitesimal update attack, whose every piece was ten steps."""


def pieces(first: State, last: State, limits: dict[str, float], share: float = SHARE) -> int:
    """Into how many pieces the line between the parameters of two states must be cut.

    Args:
        first: Where it begins.
        last: Where it ends.
        limits: None is longer than these, by metric.
        share: Of each limit that a piece may use.

    Returns:
        More than ``MOST`` where no number is enough.
    """
    whole = apart(first, last)
    parts = [_over(whole.metric(name), share * limit) for name, limit in limits.items() if name != "cos"]
    if "cos" in limits:  # 1 - cos(angle) <= limit
        parts.append(_over(_fastest_turn(first, last), 2 * math.asin(math.sqrt(min(2.0, share * limits["cos"]) / 2))))
    if not all(map(math.isfinite, parts)):  # NaN is no maximum
        return MOST + 1
    return math.ceil(max([1.0, *parts]))


def _over(size: float, limit: float) -> float:
    return size / limit if limit else math.inf


def _fastest_turn(first: State, last: State) -> float:
    """By which angle the line turns, seen from zero, where it turns fastest, if it were as fast all along."""
    keys = sorted(key for key in first.tensors if key.startswith("parameter/"))
    a, b = (torch.cat([state.tensors[key].detach().double().flatten() for key in keys]) for state in (first, last))
    way = b - a
    length, along = float(way.square().sum()), float(a @ way)
    if not length:
        return 0.0
    foot = a - way * (along / length)  # of the line, nearest to zero; not beside, where all may cancel out
    nearest = a + way * min(1.0, max(0.0, -along / length))
    return _over(float(foot.norm()) * math.sqrt(length), float(nearest.square().sum()))
