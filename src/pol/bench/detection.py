"""How often challenges meet a forgery: every interval is replayed once, and many draws are looked up."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from scipy import stats

from pol.attacks.foresight import Foresight, seen
from pol.bench.result import Detection
from pol.proof.challenge import Draws, miss
from pol.proof.policy import Policy
from pol.proof.report import Report

SURE = 1 - 5e-6
"""Probability of an interval: of a thousand benches with a hundred attacks, and two intervals for each, one calls a
right prediction wrong."""


class Lookup:
    """What challenges meet of a forgery all of whose intervals were replayed once.

    Args:
        proof: The forgery.
        policy: The policy that samples.
        replayed: The report of a verification that replayed everything, under the same rule.
    """

    def __init__(self, proof: Path, policy: Policy, replayed: Report) -> None:
        assert replayed.draws is not None
        self.intervals = replayed.draws.intervals
        self.forged = {result.index for result in replayed.intervals if result.status == "failed"}
        self._known = Foresight(seen(proof, policy))

    def draws(self, nonce: bytes) -> Draws:
        """The challenge of one nonce."""
        return self._known.draws(nonce)

    def meets(self, chosen: Iterable[int]) -> bool:
        """Whether the replay for these intervals reaches a forged one."""
        return self._known.meets(chosen, self.forged)

    def measure(self, draws: int) -> Detection | None:
        """How often so many challenges meet one; None where nothing is forged."""
        if not self.forged:
            return None
        met = uniform = 0
        for number in range(draws):
            drawn = self.draws(hashlib.sha256(b"pol bench" + number.to_bytes(8, "big")).digest())
            met += self.meets(drawn.all())
            uniform += bool(self.forged & set(drawn.uniform))
        predicted, by_uniform = (
            self._known.probability(self.forged),
            1 - miss(self.intervals, len(self.forged), len(drawn.uniform)),
        )
        (low, high), (uniform_low, uniform_high) = (_interval(draws, p) for p in (predicted, by_uniform))
        return Detection(
            forged=len(self.forged),
            intervals=self.intervals,
            draws=draws,
            met=met / draws,
            predicted=predicted,
            low=low,
            high=high,
            uniform=uniform / draws,
            uniform_predicted=by_uniform,
            uniform_low=uniform_low,
            uniform_high=uniform_high,
        )


def _interval(draws: int, predicted: float) -> tuple[float, float]:
    """Where a measured share is, if the predicted one is right."""
    if predicted in (0, 1):  # which has no spread, and scipy puts the lower end of 1 below it
        return predicted, predicted
    low, high = stats.binom.interval(SURE, draws, predicted)
    return float(low) / draws, float(high) / draws


def is_complete(report: Report) -> bool:
    """Whether a verification got to the replay of every interval, each with a clear answer."""
    return (
        report.draws is not None
        and len(report.intervals) == report.draws.intervals
        and all(result.status in ("passed", "failed") for result in report.intervals)
    )
