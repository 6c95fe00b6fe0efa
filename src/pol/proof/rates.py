"""How often something happens, by how often it was seen; and how fast errors grow."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from pol.proof.noise import Noise

CONFIDENCE = 0.95
DRAWS = 100
"""Of an audit, for which the chance of an honest interval beyond the limits is told: the uniform draws of a policy."""


@dataclass(frozen=True)
class Rate:
    """How many honest ones were beyond limits, of how many."""

    beyond: int
    of: int

    @property
    def most(self) -> float:
        """Largest share of all honest ones that are beyond, with 95 % confidence (Clopper and Pearson 1934)."""
        if self.beyond >= self.of:
            return 1.0
        from scipy.special import betaincinv

        return float(betaincinv(self.beyond + 1, self.of - self.beyond, CONFIDENCE))


def audit(rate: float, draws: int = DRAWS) -> float:
    """The chance that an audit meets an honest interval beyond the limits, where that share of them is."""
    return -math.expm1(draws * math.log1p(-rate)) if rate < 1 else 1.0


def growth(noise: Noise) -> float | None:
    """The exponent p of honest errors, as k^p, fitted to their medians; None: fewer than two rungs have one."""
    whole = [
        [float(seen.error) for seen in found]
        for one in noise.honest
        for found in one.found
        if len(found) == len(noise.rungs) and not found[-1].equal
    ]
    medians = [statistics.median(values) for values in zip(*whole, strict=True)]
    points = [(math.log(rung), math.log(value)) for rung, value in zip(noise.rungs, medians, strict=False) if value > 0]
    return statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else None
