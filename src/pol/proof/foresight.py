"""What a recording will cost, and its audit, for choices of k and K: arithmetic on what a few steps have shown."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from pol.errors import UsageError
from pol.proof.expected import draws_needed, expected
from pol.proof.forecast import Audit, Choice, Recommendation, Run
from pol.proof.genesis import CONTROL_STEPS
from pol.proof.log import MAX_LINE
from pol.proof.policy import Policy

MAX_OVERHEAD = 0.02
"""Largest overhead that is recommended if nobody says otherwise: less than what the speed of a training loop varies by
itself (3.5 and 7.1 % between repetitions on a quiet machine: measured baseline, F), so nobody will notice it."""

CONFIDENCES = (0.95, 0.99)
"""For which audits are planned; the first decides. 95 % is what reports state (attack study, section 8)."""

LEAST_SHARE = 1e-4
"""Least share of forged intervals that can be asked about: it takes 30,000 draws, and more would take longer to plan
than anyone replays."""

ALIKE = 0.1
"""Audits that differ by less count as equally cheap: a plan is no better than that."""


def stated_share(policy: Policy) -> float:
    """The share of forged intervals that the policy's own draws exclude with 95 % confidence, in a run of any length.

    In whole per cent upwards, so that a policy with 100 draws says 3 %; 1 % where it draws none or all.
    """
    draws = policy.challenge.uniform
    if policy.challenge.strategy not in ("mix", "uniform") or draws < 1:
        return 0.01
    exact: float = 1 - 0.05 ** (1 / draws)  # (1 - share) to the power of draws is 5 %
    return math.ceil(100 * exact) / 100


def lengths_to_try(
    steps: int, every: int | None, keep: int | None, longest: int | None = None
) -> list[tuple[int, int]]:
    """Pairs (k, K) of powers of ten that fit a run of ``steps``; only the given k or K where there is one.

    ``longest`` bounds k where none is given: the longest interval that the policy takes.

    Raises:
        UsageError: an interval would be longer than the run.
    """
    if every is not None and every > steps:
        raise UsageError(f"an interval of {every} steps is longer than the training, which has {steps}")
    return [
        (k, big)
        for k in ([every] if every else _powers(min(steps, longest or steps)))
        for big in ([keep] if keep else _powers(steps // k))
    ]


def _powers(most: int) -> list[int]:
    return [10**n for n in range(len(str(max(most, 1))))]


def choice(
    run: Run, policy: Policy, every: int, keep: int, share: float, confidences: Sequence[float] = CONFIDENCES
) -> Choice:
    """What one choice of k and K costs.

    Args:
        run: The training, and what was measured of it.
        policy: What a verifier will demand; its uniform draws are as many as ``confidences`` need.
        every: k.
        keep: K.
        share: Largest share of forged intervals that an audit leaves open.
        confidences: At which.

    Raises:
        UsageError: the policy, share or confidences are such that nothing can be said.
    """
    check(policy, share, confidences)
    count = -(-run.steps // every)
    kept = -(-count // keep) + 1
    total = _bytes(run, count, kept)
    audits = [_audit(run, policy, every, keep, kept, draws_needed(count, share, c), c) for c in confidences]
    return Choice(
        every=every,
        keep=keep,
        intervals=count,
        kept=kept,
        overhead=_overhead(run, every, keep),
        bytes=total,
        bytes_per_interval=total / count,
        audits=audits,
        refused=_refused(run, policy, every, kept, total, audits[0].replayed_steps),
    )


def check(policy: Policy, share: float, confidences: Sequence[float]) -> None:
    """Refuse what cannot be planned.

    Raises:
        UsageError: says what, and what to give instead.
    """
    if policy.procedure != "eight-steps":
        raise UsageError(f"policy {policy.name!r}: only procedure eight-steps draws a challenge that can be planned")
    if policy.challenge.strategy not in ("mix", "uniform", "all"):
        raise UsageError(
            f"policy {policy.name!r}: strategy {policy.challenge.strategy!r} draws nothing uniformly, so there is no "
            "confidence: take mix, uniform or all"
        )
    if not LEAST_SHARE <= share < 1:
        raise UsageError(f"a share of forged intervals of {share:g}: from {LEAST_SHARE:.2%} to less than all")
    if not confidences or not all(0 < confidence <= 0.9999 for confidence in confidences):
        raise UsageError(f"confidence {', '.join(f'{c:g}' for c in confidences)}: more than 0, and up to 99.99 %")


def _overhead(run: Run, every: int, keep: int) -> float:
    """Mean over the steps of a window: what each adds, each interval, and the one state that is kept."""
    found = run.costs
    beside = 1.0 if found.busy else 0.0
    length = min(every * keep, run.steps)
    count = math.ceil(length / every)
    window = length * found.added + (count - 1) * found.digest + found.whole + count * beside * found.noted
    waits = max(0.0, found.written - length * (found.bare_step + found.added))  # for the state before it
    window += found.copied + max(beside * found.stored, waits)
    return window / (length * found.bare_step)


def _bytes(run: Run, count: int, kept: int) -> int:
    found = run.sizes
    states = found.built + (kept - 1) * found.kept
    log = count * found.record + run.steps * found.record_step
    return round(found.others + states + log + kept * found.entry + 32 * run.samples)


def _audit(run: Run, policy: Policy, every: int, keep: int, kept: int, draws: int, confidence: float) -> Audit:
    found, single = run.costs, policy.rule == "tolerance"
    challenge = msgspec.structs.replace(policy.challenge, uniform=draws)
    cost = expected(challenge, run.steps, every, keep, kinds=run.kinds, each=single)
    # Steps 5 and 7: a build from the seed, two from seeds of the verifier's own, the control run, trials.
    own = min(CONTROL_STEPS, run.steps) + run.trials * every
    builds = (4 + run.trials) * found.enter + own * (found.bare_step + found.added)
    return Audit(
        confidence=confidence,
        draws=draws,
        replayed_steps=cost.steps,
        replayed_share=cost.steps / run.steps,
        seconds=found.start + builds + kept * found.read + cost.replays * found.replay_enter
        + cost.steps * found.replay_step + cost.intervals * (found.whole + single * found.compared),
        openings=cost.openings,
        answered_steps=cost.answered_steps,
        opening_bytes=cost.openings * run.sizes.kept,
    )  # fmt: skip


def _refused(run: Run, policy: Policy, every: int, kept: int, total: int, replayed: float) -> str:
    found, count = run.sizes, -(-run.steps // every)
    longest = policy.bounds.max_every
    if longest is not None and every > longest:
        return f"policy {policy.name} takes intervals of {longest} steps at most"
    if found.record + every * found.record_step > MAX_LINE:
        return "the record of an interval would be longer than the format allows"
    if count * found.record + run.steps * found.record_step > run.most_log:
        return "the log would be larger than a verifier reads"
    if kept + 6 > run.most_files:  # beside the states: genesis, attestation, log, journal, secret, dataset
        return "there would be more files than a verifier reads"
    if total > policy.max_bytes:
        return f"policy {policy.name} reads {policy.max_bytes} bytes at most"
    if policy.max_steps is not None and replayed > policy.max_steps:
        return f"policy {policy.name} replays {policy.max_steps} steps at most"
    return ""


def recommend(choices: Sequence[Choice], max_overhead: float = MAX_OVERHEAD, max_bytes: int | None = None) -> (
    Recommendation
):  # fmt: skip
    """The cheapest audit among the choices that meet the bounds; of equally cheap ones that with the smallest proof.

    Audits are compared by their seconds at the first confidence.

    Raises:
        UsageError: a bound is no share or size, or there is no choice.
    """
    check_bounds(max_overhead, max_bytes)
    if not choices:
        raise UsageError("there is no choice of k and K to recommend one of")
    possible = [one for one in choices if not one.refused]
    small = [one for one in possible if max_bytes is None or one.bytes <= max_bytes]
    fit = [one for one in small if one.overhead <= max_overhead]
    if fit:
        cheapest = min(one.audits[0].seconds for one in fit)
        alike = [one for one in fit if one.audits[0].seconds <= cheapest * (1 + ALIKE)]
        best = min(alike, key=lambda one: (one.bytes, one.overhead))
        return Recommendation(choice=best, why=_why(fit, alike, max_overhead))
    return Recommendation(choice=None, why=_instead(possible, small, choices, max_overhead))


def check_bounds(max_overhead: float, max_bytes: int | None) -> None:
    """Refuse bounds that are none.

    Raises:
        UsageError: says what to give instead.
    """
    if not 0 <= max_overhead < math.inf:
        raise UsageError(f"an overhead of at most {max_overhead:g}: give a share that is not negative, like 2 %")
    if max_bytes is not None and max_bytes < 1:
        raise UsageError(f"a proof of at most {max_bytes} bytes: give a size that something fits in")


def _why(fit: Sequence[Choice], alike: Sequence[Choice], max_overhead: float) -> str:
    among = f"of {len(fit)} that cost at most {100 * max_overhead:.4g} % of the training's time"
    if len(alike) == 1:
        return f"the cheapest audit {among}"
    return f"the smallest proof of {len(alike)} whose audits are equally cheap, the cheapest {among}"


def _instead(
    possible: Sequence[Choice], small: Sequence[Choice], choices: Sequence[Choice], max_overhead: float
) -> str:
    if not possible:
        return f"none can be recorded and verified: {choices[0].refused}"
    if not small:
        least = min(possible, key=lambda one: one.bytes)
        return f"no proof is so small: the smallest has {least.bytes:,} bytes (k = {least.every}, K = {least.keep})"
    least = min(small, key=lambda one: one.overhead)
    return (
        f"none costs at most {100 * max_overhead:.4g} % of the training's time. The least is "
        f"{100 * least.overhead:.4g} % (k = {least.every}, K = {least.keep}), which "
        f"--max-overhead {math.ceil(1000 * least.overhead) / 10}% allows"
    )
