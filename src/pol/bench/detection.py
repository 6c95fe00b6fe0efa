"""How often challenges meet a forgery: every interval is replayed once, and many draws are looked up."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
from scipy import stats

from pol.bench.result import Detection
from pol.proof.challenge import draw, miss, spans
from pol.proof.plan import detection
from pol.proof.policy import Policy
from pol.proof.report import Report
from pol.proof.screens import suspects
from pol.store import ProofDirectory
from pol.verifier import authenticate, bind, screening, shape
from pol.verifier.case import Case

SURE = 0.99999
"""Probability of the interval: in a thousand benches of a hundred attacks, one right prediction is called wrong."""


def measure(proof: Path, policy: Policy, replayed: Report, draws: int) -> Detection | None:
    """How often challenges of ``policy`` meet what a replay of all intervals found.

    Args:
        proof: The forgery.
        policy: The policy that samples.
        replayed: The report of a verification that replayed every interval once; None is returned if it did not get
            so far, or found nothing.
        draws: How many challenges are looked up.
    """
    forged = {result.index for result in replayed.intervals if result.status == "failed"}
    if not forged or replayed.draws is None or len(replayed.intervals) < replayed.draws.intervals:
        return None
    case = examined(proof, policy)
    each, count = policy.rule == "tolerance", replayed.draws.intervals
    resumed = [step // case.genesis.spec.every for step in case.journal.resumes]
    suspicious = suspects(case.screens)
    met = uniform = 0
    for number in range(draws):
        nonce = hashlib.sha256(b"pol bench" + number.to_bytes(8, "big")).digest()
        drawn = draw(policy.challenge, case.attestation_digest, nonce, case.windows, resumed, suspicious)
        met += any(forged & set(range(a, b + 1)) for a, b in spans(case.windows, drawn.all(), each=each))
        uniform += bool(forged & set(drawn.uniform))
    screened = set(suspicious[: policy.challenge.screened]) if policy.challenge.strategy == "mix" else set()
    certain = any(forged & set(range(a, b + 1)) for a, b in spans(case.windows, screened, each=each))
    predicted = 1.0 if certain else detection(policy.challenge, case.windows, resumed, forged, each=each)
    low, high = (float(end) / draws for end in stats.binom.interval(SURE, draws, predicted))
    return Detection(
        forged=len(forged),
        intervals=count,
        draws=draws,
        met=met / draws,
        predicted=predicted,
        # A probability of 0 or 1 has no spread, and scipy puts the lower end of that one below it.
        low=predicted if predicted in (0, 1) else low,
        high=predicted if predicted in (0, 1) else high,
        uniform=uniform / draws,
        uniform_predicted=1 - miss(count, len(forged), len(drawn.uniform)),
    )


def examined(proof: Path, policy: Policy) -> Case:
    """A proof that passed the first four steps, read once more as far as the draws need it."""
    unscreened = msgspec.structs.replace(policy, procedure="eight-steps")
    case = Case(ProofDirectory(proof), unscreened, None, bytes(32), lambda *_: None)
    for checks in (authenticate.envelopes, authenticate.contents, bind.files, shape.measured, screening.look):
        for _ in checks(case):
            pass
    return case
