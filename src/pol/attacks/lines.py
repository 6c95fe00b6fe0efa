"""Lines whose pieces the verification of 2021 takes for nothing: how many pieces its deltas ask for."""

from __future__ import annotations

import math

import numpy as np
import torch

from pol.attacks.needs import DoesNotApply
from pol.replay.state import State

MOST_PIECES = 10_000
"""Of a line: ten times as many as the infinitesimal update attack takes in its code (attack study, A4)."""


def pieces(first: State, last: State, limits: dict[str, float]) -> int:
    """Into how many equal pieces the line between the parameters of two states falls, if each is to be within limits.

    Raises:
        DoesNotApply: too many.
    """
    names = [key for key in last.tensors if key.startswith("parameter/")]
    start, end = (torch.cat([state.tensors[key].double().flatten() for key in names]) for state in (first, last))
    way = end - start
    lengths = {"l1": float(way.abs().sum()), "l2": float(way.norm()), "linf": float(way.abs().max())}
    needed = [lengths[name] / limit if limit else math.inf for name, limit in limits.items() if name in lengths]
    least, sharpest = max([1.0, *needed]), limits.get("cos", math.inf)
    aa, ad, dd = (float(torch.dot(a, b)) for a, b in ((start, start), (start, way), (way, way)))

    def turn(count: int) -> float:
        """The largest cosine distance between neighbours."""
        share = np.linspace(0.0, 1.0, count + 1)
        squares = aa + 2 * share * ad + share**2 * dd
        products = aa + (share[:-1] + share[1:]) * ad + share[:-1] * share[1:] * dd
        return float((1 - products / np.sqrt(squares[:-1] * squares[1:])).max())

    counts = range(math.ceil(least), MOST_PIECES + 1) if least <= MOST_PIECES else ()
    for count in counts:
        if turn(count) <= sharpest:
            return count
    raise DoesNotApply(f"this attack needs deltas that a line of {MOST_PIECES} pieces keeps")
