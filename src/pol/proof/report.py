"""The report: a verdict with one entry per numbered step, and what was not shown."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, NoReturn

import msgspec

from pol.errors import RejectedProof
from pol.proof.challenge import Draws, largest_forged_share
from pol.proof.screens import Screen


class Verdict(StrEnum):
    """The three answers."""

    ACCEPT = "ACCEPT"
    REJECT = "REJECT"
    INCONCLUSIVE = "INCONCLUSIVE"


Status = Literal["passed", "failed", "unable", "not run"]
"""``unable``: the verifier itself lacks something. ``not run``: an earlier step had failed."""

STEPS = ("Authenticate", "Parse", "Bind", "Shape", "Origin", "Challenge", "Audit", "Decide")
"""Names of the eight steps of design section 3.4, in order."""


class Check(msgspec.Struct, frozen=True):
    """One check of a step."""

    name: str
    status: Status
    detail: str


class Step(msgspec.Struct, frozen=True):
    """One of the eight steps."""

    number: int
    name: str
    status: Status
    checks: list[Check]


class Deviation(msgspec.Struct, frozen=True, kw_only=True):
    """The tensor that came nearest to its limit, or farthest beyond it (rule tolerance)."""

    tensor: str
    error: float
    """Euclidean distance of replayed and recorded values, and what errors of moments will add to a parameter in later
    steps; NaN if either is not finite."""
    limit: float
    relative: float
    """Error of all parameters together, as a share of how far the replay moved them (l2)."""
    distances: dict[str, float]
    """Errors of all parameters together, by metric."""
    normalised: dict[str, float] | None
    """These as shares of the reference distances, if the policy has a calibration."""


class IntervalResult(msgspec.Struct, frozen=True):
    """What the replay of one interval gave."""

    index: int
    start: int
    stop: int
    status: Status
    detail: str
    deviation: Deviation | None = None
    allowed: float | None = None
    """Rule tolerance: how far all limits together would have let the parameters be moved unseen in this interval."""
    branch: bool = False
    """The error is beyond the limits, and explained by a branch (``limits.branches``)."""


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """What the limits of rule tolerance would let a forger move the parameters in all (design section 3.5)."""

    bound: float
    """Sum over all intervals of what their limits allow, and of errors that a branch explains."""
    distance: float
    """From the first parameters to the last."""
    budget: float
    """Largest share of the distance that the policy allows."""
    measured: int
    """Intervals whose limits are known, since the states at both ends are; the largest that a uniform draw met stands
    for each of the others."""


class Assurance(msgspec.Struct, frozen=True, kw_only=True):
    """How far the result reaches: who chose the randomness, whose key, what time evidence."""

    level: Literal["verifier-seeded", "self-seeded", "seed-declared", "observed", "broken", "none"]
    statements: list[str]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one verification."""

    schema: str = "pol/report/v3"
    verdict: Verdict
    procedure: str
    rule: str
    assurance: Assurance
    policy: str
    policy_digest: str
    genesis: str | None
    attestation: str | None
    claimant: str | None
    """Fingerprint of the prover's key."""
    weights: str | None
    """Root of the last checkpoint's weights."""
    nonce: str
    request: str | None = None
    """The file in which the prover is asked for states, and which is not answered yet. When it is, verify again with
    this nonce and this attestation."""
    steps: list[Step]
    screens: list[Screen]
    """What stands out without a replay; empty before the end of step 4. They steer the challenge and decide nothing."""
    intervals: list[IntervalResult]
    draws: Draws | None
    drift: Drift | None
    confidence: str
    not_shown: list[str]
    seconds: float
    """Wall time of the verification."""

    def __bool__(self) -> NoReturn:
        raise TypeError("a report has three outcomes, not two: compare report.verdict, or call raise_for_verdict()")

    def raise_for_verdict(self) -> None:
        """Raise unless the verdict is ACCEPT.

        Raises:
            RejectedProof: with the report, for REJECT and INCONCLUSIVE.
        """
        if self.verdict is not Verdict.ACCEPT:
            raise RejectedProof(f"{self.verdict}: {self.reason()}", self)

    def reason(self) -> str:
        """The first check that decided against the proof, with its step; empty for ACCEPT."""
        for status in ("failed", "unable"):
            for step in self.steps[:-1]:
                for check in step.checks:
                    if check.status == status:
                        return f"step {step.number} {step.name}: {check.detail}"
        return ""

    @property
    def caught_by(self) -> int | None:
        """Number of the first failed step; None if none failed."""
        return next((step.number for step in self.steps[:-1] if step.status == "failed"), None)


def step_status(checks: list[Check]) -> Status:
    """Status of a step; one without checks is not run, never passed."""
    found = {check.status for check in checks}
    for status in ("failed", "unable", "passed"):
        if status in found:
            return status
    return "not run"


ALL = frozenset(range(1, len(STEPS)))
"""Numbers of the steps before the decision."""


def decide(steps: list[Step], needed: frozenset[int] = ALL) -> Verdict:
    """REJECT if any check failed; else INCONCLUSIVE if any could not be run; else ACCEPT.

    Args:
        steps: Those before the decision.
        needed: Numbers of the steps that must have passed; at least one.
    """
    if any(step.status == "failed" for step in steps):
        return Verdict.REJECT
    passed = {step.number for step in steps if step.status == "passed"}
    if needed and needed <= passed and not any(step.status == "unable" for step in steps):
        return Verdict.ACCEPT
    return Verdict.INCONCLUSIVE


NOT_SHOWN = [
    "that the data are lawful, unpoisoned or rightly labelled, or that the recipe is benign: read both",
    "that no other run was made, or that this one was not picked from several",
    "that the model was not distilled from another, or that nobody else has trained a like one",
    "that the prover computed it rather than someone it hired",
    "when the training took place: no time evidence is part of this format version",
    "anything about a served model whose file was not given to this verification",
]


def confidence_sentence(draws: Draws, *, exact: bool = True) -> str:
    """What the draws say in numbers, for an audit that found nothing wrong."""
    total, uniform, met = draws.intervals, len(draws.uniform), len(draws.all())
    what, are_not = "an exact execution", "are not exact executions"
    if not exact:
        what, are_not = "reproduced within the limits", "were not reproduced within the limits"
    if met == total:
        return f"All {total} intervals were replayed: every one is {what}, and none could be forged unseen."
    if not uniform:
        return (
            f"{met} of {total} intervals were replayed, none drawn uniformly: the share that is forged is not bounded."
        )
    share = largest_forged_share(total, uniform)
    single = uniform / total
    return (
        f"With 95 % confidence at most {100 * share:.2g} % of the {total} intervals {are_not} (from "
        f"{uniform} uniform draws alone). One single forged interval, placed where nothing else would look, would have "
        f"been met with probability {single:.2g}; that is all that a splice needs."
    )
