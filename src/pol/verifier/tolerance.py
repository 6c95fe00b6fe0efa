"""Rule tolerance: how far a replayed state may lie from the recorded one, and what all the limits leave a forger.

Every limit combines a relative and an absolute bound, since each alone is breakable (design section 3.5). What is not
floating point is exact under this rule, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from pol.checkpoint import Checkpoint, compare
from pol.distance import METRICS, Accumulator, Distances, ratio, within
from pol.errors import IntegrityError
from pol.proof.policy import Limits, Policy, Reference
from pol.proof.report import Deviation, Drift
from pol.statetree import FLOATING, Entry
from pol.store import checkpoint_path
from pol.values import Values, floats
from pol.verifier.case import Case, Checks, passed, unable

HALF_ULP = {"F64": 2.0**-53, "F32": 2.0**-24}
"""Half a unit in the last place of 1, by element type."""


def largest(limits: Limits, dtype: str, size: int, move: float, norm: float) -> float:
    """The limit of one tensor over one interval, as ``Limits`` defines it."""
    floor = limits.floor * HALF_ULP.get(dtype, HALF_ULP["F32"]) * norm
    return min(limits.relative * move, limits.absolute * math.sqrt(size)) + floor


def precise(case: Case) -> Checks:
    """Trained tensors have at least 24 bits of mantissa: with fewer, rounding alone moves as much as a step."""
    if case.policy.limits is None:
        yield passed("precision", "rule exact takes any precision")
        return
    # Of all kept states: optimizers make theirs in the first step, so the genesis does not declare it.
    declared = [*case.genesis.spec.declaration.entries, *(s.entry for kept in case.checkpoints.values() for s in kept)]
    for entry in declared:
        coarse = entry.dtype in FLOATING and entry.dtype not in HALF_ULP
        if entry.kind in ("parameter", "optimizer") and coarse:
            raise IntegrityError(
                f"{entry.key} is {entry.dtype}: rule tolerance refuses it, because honest noise and forgery cannot be "
                "told apart at that precision; record under rule exact"
            )
    yield passed("precision", "trained tensors have at least 24 bits")


def optimizers(case: Case) -> Checks:
    """Every optimizer is one whose drift ``drift`` bounds."""
    limits = case.policy.limits
    if limits is None:
        yield passed("optimizers", "rule exact takes any optimizer")
        return
    for part in case.genesis.spec.declaration.parts:
        if part.kind == "optimizer" and part.type not in limits.optimizers:
            yield unable(
                "optimizers",
                f"{part.name} is a {part.type}: an error of its moments, within the limits, can move weights anywhere "
                "in later steps, and the drift budget does not bound that. Record under rule exact, or name the type "
                "in limits.optimizers and take the risk",
            )
            return
    yield passed("optimizers", f"every optimizer is one of {', '.join(limits.optimizers)}")


def drift(case: Case) -> Checks:
    """All limits together leave less than the policy's share of the way from the first to the last parameters."""
    limits = case.policy.limits
    if limits is None:
        yield passed("drift", "rule exact leaves none")
        return
    steps = sorted(case.checkpoints)
    bound = 0.0
    for number, (before, after) in enumerate(pairwise(steps)):
        case.progress("summing limits", number, len(steps) - 1)
        start, end = _kept(case, before), _kept(case, after)
        moves = compare(start, end, _trained).tensors
        intervals = -(-(after - before) // case.genesis.spec.every)
        # Where states between are not kept, a forger may have moved there and back: only the absolute bound holds.
        each = (
            largest(
                limits, start.entries[key].entry.dtype, found.size, found.l2 if intervals == 1 else math.inf,
                norm(start, key),
            )
            for key, found in moves.items()
        )  # fmt: skip
        bound += intervals * math.hypot(*each)  # which does not overflow where squares would
    distance = compare(_kept(case, steps[0]), _kept(case, steps[-1]), _trained).total.l2
    case.drift = Drift(bound=bound, distance=distance, budget=limits.drift)
    share = ratio(bound, distance)
    found = f"all limits together are {share:.3g} times the way from the first to the last parameters"
    if within(share, limits.drift):
        yield passed("drift", found)
    else:
        # Nothing is wrong with the proof: these limits show nothing about it. Smaller ones may, so this is no rejection
        # (a tighter policy never turns a rejection into an acceptance).
        yield unable(
            "drift",
            f"{found}, the policy allows {limits.drift:.2%}: a forger could drift that far unseen. Keep every state, "
            "give smaller limits, or use rule exact",
        )


def _kept(case: Case, step: int) -> Checkpoint:
    return Checkpoint(case.store, checkpoint_path(step), case.checkpoints[step])


def _trained(entry: Entry) -> bool:
    return entry.kind == "parameter"


def norm(state: Checkpoint, key: str) -> float:
    """Euclidean norm of an entry."""
    return _distances((chunk, np.zeros_like(chunk)) for chunk in state.chunks(key)).result().l2


def _distances(pairs: Iterable[tuple[Values, Values]]) -> Accumulator:
    found = Accumulator()
    for a, b in pairs:
        found.add(a, b)
    return found


def _move(start: Checkpoint, end: Checkpoint, key: str) -> Accumulator:
    """How far an entry moved; one that is new (optimizer state after the first step) moved from zero."""
    if key not in start.entries:
        return _distances((chunk, np.zeros_like(chunk)) for chunk in end.chunks(key))
    return _distances(zip(end.chunks(key), start.chunks(key), strict=True))


def _moved_alone(start: Checkpoint, replayed: Checkpoint, recorded: Checkpoint, key: str) -> bool:
    """Whether an element that the replay leaves bit for bit moved in the record, by more than rounding of its own size.

    A norm of the whole tensor would hide it: inputs that are always zero in training are where a trigger goes. Of a
    tensor that stands still as a whole, the floor says how far it may be off.
    """
    if key not in start.entries:
        return False
    chunks = zip(start.chunks(key), replayed.chunks(key), recorded.chunks(key), strict=True)
    for before, here, there in chunks:
        values = floats(here)
        with np.errstate(invalid="ignore"):  # equal infinities
            off = np.abs(floats(there) - values) > _STILL * np.abs(values)
        if bool((off & (before == here)).any()):
            return True
    return False


_STILL = 2.0**-20
"""Sixteen times half a unit in the last place of a float32: two machines may round a tiny step down and up."""


def _named(state: Checkpoint) -> dict[str, Entry]:
    return {key: slot.entry for key, slot in state.entries.items()}


def _shares(found: Distances, reference: Reference) -> dict[str, float]:
    ratios = found.normalised({name: getattr(reference, name) for name in METRICS})
    return {name: getattr(ratios, name) for name in METRICS}


def deviation(
    policy: Policy, start: Checkpoint, replayed: Checkpoint, recorded: Checkpoint
) -> tuple[str, Deviation | None]:
    """What is wrong with a recorded end state ("" if nothing), and the tensor that is nearest to its limit.

    Args:
        policy: With limits.
        start: The recorded state before the interval.
        replayed: The state to which taking the steps again leads.
        recorded: The state that was recorded.
    """
    assert policy.limits is not None
    if _named(replayed) != _named(recorded):
        return "the recorded end state has other entries than the replay gives", None
    wrong, moved, beyond = Accumulator(), Accumulator(), 0
    nearest, whole, still = (-1.0, "", 0.0, 0.0), "", ""
    for key, slot in recorded.entries.items():
        error = _distances(zip(replayed.chunks(key), recorded.chunks(key), strict=True))
        if slot.entry.dtype not in FLOATING:
            if not error.result().equal and not whole:
                whole = f"{key} differs, and what is not floating point is exact under every rule"
            continue
        move = _move(start, replayed, key)
        if slot.entry.kind == "parameter":
            wrong.merge(error)
            moved.merge(move)
        if not still and move.result().l2 > 0 and _moved_alone(start, replayed, recorded, key):
            still = f"{key} has moved in elements that the replay leaves as they are"
        if error.result().equal:  # infinities too, as masks hold them
            continue
        before = norm(start if key in start.entries else replayed, key)
        limit = largest(policy.limits, slot.entry.dtype, error.result().size, move.result().l2, before)
        found = error.result().l2
        beyond += not within(found, limit)
        share = ratio(found, limit)
        nearest = max(nearest, (math.inf if math.isnan(share) else share, key, found, limit))
    if not moved.result().size:
        return whole or "there is no parameter to compare", None
    total, (_, tensor, found, limit) = wrong.result().l2, nearest
    distances = {name: wrong.result().metric(name) for name in METRICS}
    reference = policy.reference
    result = Deviation(
        tensor=tensor, error=found, limit=limit, relative=ratio(total, moved.result().l2), distances=distances,
        normalised=None if reference is None else _shares(wrong.result(), reference),
    )  # fmt: skip
    if whole:
        return whole, result  # which may be too far off for any machine, too
    if beyond:
        return (
            f"{beyond} tensors are beyond their limits; {tensor} by most: error {found:.3g}, limit {limit:.3g} "
            f"(all parameters: {result.relative:.2%} of the replayed move)"
        ), result
    if still:
        return still, result
    if policy.limits.reference is not None and policy.reference is not None:
        most = policy.limits.reference * policy.reference.l2
        if not within(total, most):
            return f"all parameters together are off by {total:.3g}, {most:.3g} is allowed", result
    return "", result
