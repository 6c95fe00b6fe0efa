"""The drift budget: how far the limits of rule tolerance would let a forger move the parameters, over the whole run.

Each interval that passes may be off by its limits, and a forger is off by all of them, always in the same direction.
Where that adds up to more than a small share of the way from the first parameters to the last, the limits show nothing
about a run, however well it is reproduced (design section 3.5).
"""

from __future__ import annotations

import math
from itertools import pairwise

from pol.checkpoint import Checkpoint, compare
from pol.distance import ratio, within
from pol.proof.genesis import boundaries
from pol.proof.report import Drift
from pol.statetree import FLOATING, Entry
from pol.store import checkpoint_path
from pol.verifier.case import Case, Checks, passed, unable
from pol.verifier.tolerance import allowed, largest

ENOUGH = 59
"""Uniform draws from which on their largest stands for the others: with 95 % confidence at most one interval in twenty
is beyond it (attack study, section 8)."""


def beforehand(case: Case) -> Checks:
    """Step 4: all limits together are within the budget, if every state is in the proof; else see ``afterwards``."""
    limits = case.policy.limits
    if limits is None:
        yield passed("drift", "rule exact leaves none")
        return
    steps = sorted(case.checkpoints)
    if steps != sorted(set(boundaries(case.genesis.spec))):
        yield passed("drift", "not every state is in the proof, so the budget is looked at after the audit")
        return
    for number, (before, after) in enumerate(pairwise(steps)):
        case.progress("summing limits", number, len(steps) - 1)
        case.allowed[number] = allowed(limits, _kept(case, before), _kept(case, after))
    yield from _judged(case)


def afterwards(case: Case) -> Checks:
    """Step 7: the same, with the states that the audit opened, and with what branches explain."""
    if case.policy.limits is not None:
        yield from _judged(case)


def _judged(case: Case) -> Checks:
    limits = case.policy.limits
    assert limits is not None
    first, last = (_kept(case, step) for step in (0, case.genesis.spec.steps))
    distance = compare(first, last, _trained).total.l2
    total = len(case.log.intervals)
    bound = math.fsum(case.allowed.values()) + _explained(case)
    if rest := total - len(case.allowed):
        bound += rest * _unknown(case)
    case.drift = Drift(bound=bound, distance=distance, budget=limits.drift, measured=len(case.allowed))
    share = ratio(bound, distance)
    found = f"all limits together are {share:.3g} times the way from the first to the last parameters"
    if rest:
        found += f" (of {len(case.allowed)} intervals measured, of the others at most what uniform draws met)"
    if within(share, limits.drift):
        yield passed("drift", found)
    else:
        # Nothing is wrong with the proof: these limits show nothing about it. Smaller ones may, so this is no rejection
        # (a tighter policy never turns a rejection into an acceptance).
        yield unable(
            "drift",
            f"{found}, the policy allows {limits.drift:.2%}: a forger could drift that far unseen. Give smaller limits "
            "(pol calibrate measures them), or use rule exact",
        )


def _unknown(case: Case) -> float:
    """What stands for the limits of an interval whose states are not known.

    The largest of the uniform draws: more than a small share of the intervals cannot be beyond it, and of that share
    the report says that it may be forged altogether. Without such draws nothing but the absolute bound holds.
    """
    assert case.policy.limits is not None
    drawn = case.draws.uniform if case.draws is not None else []
    met = [case.allowed[index] for index in drawn if index in case.allowed]
    if len(met) >= ENOUGH:
        return max(met)
    first = _kept(case, 0)
    each = (
        largest(case.policy.limits, slot.entry, math.inf, 0.0)
        for slot in first.entries.values()
        if _trained(slot.entry) and slot.entry.dtype in FLOATING
    )
    return math.hypot(*each)


def _explained(case: Case) -> float:
    """Errors that a branch explains; of intervals that were not replayed, as many as draws let one fear."""
    branches = case.explained
    if not branches or case.draws is None:
        return 0.0
    rest = len(case.log.intervals) - len(case.intervals)
    from scipy.special import betaincinv  # half a second, and most audits have no branches

    replayed = {result.index for result in case.intervals}
    drawn = [index for index in case.draws.uniform if index in replayed]
    met = sum(index in branches for index in drawn)
    share = float(betaincinv(met + 1, max(len(drawn) - met, 1), 0.95)) if drawn else 1.0  # Clopper and Pearson
    return math.fsum(branches.values()) + (rest * share * max(branches.values()) if rest else 0.0)


def _kept(case: Case, step: int) -> Checkpoint:
    return Checkpoint(case.store, checkpoint_path(step), case.checkpoints[step])


def _trained(entry: Entry) -> bool:
    return entry.kind == "parameter"
