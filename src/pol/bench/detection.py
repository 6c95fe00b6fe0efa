"""How often challenges meet a forgery: every interval is replayed once, and many draws are looked up."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec
from scipy import stats

from pol.bench.result import Detection
from pol.proof.challenge import Draws, draw, miss, spans
from pol.proof.plan import detection
from pol.proof.policy import Policy
from pol.proof.report import Report
from pol.proof.screens import suspects
from pol.store import ProofDirectory
from pol.verifier import authenticate, bind, screening, shape
from pol.verifier.case import Case

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
        self._challenge, self._each = policy.challenge, policy.rule == "tolerance"
        self.intervals = replayed.draws.intervals
        self.forged = {result.index for result in replayed.intervals if result.status == "failed"}
        self._case = case = examined(proof, policy)
        spec = case.genesis.spec
        self._resumed = [step // spec.every for step in case.journal.resumes if 0 < step < spec.steps]
        self._suspects = suspects(case.screens)

    def draws(self, nonce: bytes) -> Draws:
        """The challenge of one nonce."""
        case = self._case
        return draw(self._challenge, case.attestation_digest, nonce, case.windows, self._resumed, self._suspects)

    def meets(self, chosen: Iterable[int]) -> bool:
        """Whether the replay for these intervals reaches a forged one."""
        found = spans(self._case.windows, chosen, each=self._each)
        return any(self.forged & set(range(first, last + 1)) for first, last in found)

    def predicted(self) -> float:
        """Probability that a challenge meets one."""
        screened = self._suspects[: self._challenge.screened] if self._challenge.strategy == "mix" else []
        if self.meets(screened):
            return 1.0
        return detection(self._challenge, self._case.windows, self._resumed, self.forged, each=self._each)

    def measure(self, draws: int) -> Detection | None:
        """How often so many challenges meet one; None where nothing is forged."""
        if not self.forged:
            return None
        met = uniform = 0
        for number in range(draws):
            drawn = self.draws(hashlib.sha256(b"pol bench" + number.to_bytes(8, "big")).digest())
            met += self.meets(drawn.all())
            uniform += bool(self.forged & set(drawn.uniform))
        predicted, by_uniform = self.predicted(), 1 - miss(self.intervals, len(self.forged), len(drawn.uniform))
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


def examined(proof: Path, policy: Policy) -> Case:
    """A proof that passed the first four steps, read once more as far as the draws need it."""
    unscreened = msgspec.structs.replace(policy, procedure="eight-steps")
    case = Case(ProofDirectory(proof), unscreened, None, bytes(32), lambda *_: None)
    for checks in (authenticate.envelopes, authenticate.contents, bind.files, shape.measured, screening.look):
        for _ in checks(case):
            pass
    return case
