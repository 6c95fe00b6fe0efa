"""Rule tolerance: how far a replayed state may lie from the recorded one, and what all the limits leave a forger.

Every limit combines a relative and an absolute bound, since each alone is breakable (design section 3.5). What is not
floating point is exact under this rule, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pol.checkpoint import Checkpoint
from pol.distance import METRICS, Accumulator, Distances, ratio, within
from pol.errors import IntegrityError
from pol.interval import Momenta
from pol.proof.policy import Limits, Policy, Reference
from pol.proof.report import Deviation
from pol.statetree import FLOATING, Entry
from pol.values import floats
from pol.verifier.carrying import Carrying, unbounded
from pol.verifier.case import Case, Checks, passed, unable
from pol.verifier.reproduction import Reproduced, accumulated, move, norm, reproduction

HALF_ULP = {"F64": 2.0**-53, "F32": 2.0**-24}
"""Half a unit in the last place of 1, by element type."""


def largest(limits: Limits, entry: Entry, move: float, norm: float) -> float:
    """The limit of one tensor over one interval, as ``Limits`` defines it."""
    absolute = limits.tensors.get(entry.key, limits.absolute) * math.sqrt(math.prod(entry.shape))
    return min(limits.relative * move, absolute) + limits.floor * HALF_ULP.get(entry.dtype, HALF_ULP["F32"]) * norm


def allowed(limits: Limits, start: Checkpoint, end: Checkpoint) -> float:
    """How far a forger may move all parameters in an interval unseen: Euclidean, of their limits."""
    each = (
        largest(limits, slot.entry, move(start, end, key).result().l2, norm(start, key))
        for key, slot in start.entries.items()
        if slot.entry.kind == "parameter" and slot.entry.dtype in FLOATING
    )
    return math.hypot(*each)  # which does not overflow where squares would


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
    """Of every optimizer it is known what errors of its moments will do, or the policy takes the risk."""
    limits = case.policy.limits
    if limits is None:
        yield passed("optimizers", "rule exact takes any optimizer")
        return
    for part in case.genesis.spec.declaration.parts:
        if part.kind != "optimizer" or part.type in limits.optimizers:
            continue
        if why := unbounded(part):
            yield unable(
                "optimizers",
                f"{why}, and so the drift budget does not bound it: record under rule exact, or name {part.type} in "
                "limits.optimizers and take the risk",
            )
            return
    yield passed("optimizers", "what errors of the optimizers' moments will do later counts as an error now")


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
    policy: Policy,
    start: Checkpoint,
    replayed: Checkpoint,
    recorded: Checkpoint,
    carrying: Carrying,
    step: int,
    momenta: Momenta,
    noise: Mapping[str, float] | None = None,
) -> tuple[str, Deviation | None]:
    """What is wrong with a recorded end state ("" if nothing), and the tensor that is nearest to its limit.

    Args:
        policy: With limits.
        start: The recorded state before the interval.
        replayed: The state to which taking the steps again leads.
        recorded: The state that was recorded.
        carrying: The optimizers and learning rates of the run.
        step: Steps of the run before the end of the interval.
        momenta: Of the parameter groups at the end of the replay.
        noise: By parameter, how much of what is carried on is noise, measured for this interval, and so no error.
    """
    assert policy.limits is not None
    if _named(replayed) != _named(recorded):
        return "the recorded end state has other entries than the replay gives", None
    whole = _exact(replayed, recorded)
    wrong, moved, beyond = Accumulator(), Accumulator(), 0
    nearest, still = _Nearest(-1.0, "", 0.0, 0.0), ""
    for key, found in reproduction(start, replayed, recorded, carrying, step, momenta):
        if found.entry.kind == "parameter":
            wrong.merge(found.error)
            moved.merge(found.move)
        if not still and found.move.result().l2 > 0 and _moved_alone(start, replayed, recorded, key):
            still = f"{key} has moved in elements that the replay leaves as they are"
        if found.equal:
            continue
        one = _nearest(policy.limits, key, found, (noise or {}).get(key, 0.0))
        beyond += not within(one.error, one.limit)
        nearest = max(nearest, one)
    if not moved.result().size:
        return whole or "there is no parameter to compare", None
    total, reference = wrong.result().l2, policy.reference
    result = Deviation(
        tensor=nearest.tensor, error=nearest.error, limit=nearest.limit, relative=ratio(total, moved.result().l2),
        distances={name: wrong.result().metric(name) for name in METRICS},
        normalised=None if reference is None else _shares(wrong.result(), reference),
    )  # fmt: skip
    if whole:
        return whole, result  # which may be too far off for any machine, too
    if beyond:
        return (
            f"{beyond} tensors are beyond their limits; {nearest.tensor} by most: error {nearest.error:.3g}, limit "
            f"{nearest.limit:.3g} (all parameters: {result.relative:.2%} of the replayed move)"
        ), result
    if still:
        return still, result
    if policy.limits.reference is not None and reference is not None:
        most = policy.limits.reference * reference.l2
        if not within(total, most):
            return f"all parameters together are off by {total:.3g}, {most:.3g} is allowed", result
    return "", result


class _Nearest(NamedTuple):
    share: float
    tensor: str
    error: float
    limit: float


def _nearest(limits: Limits, key: str, found: Reproduced, noise: float) -> _Nearest:
    limit = largest(limits, found.entry, found.move.result().l2, found.norm)
    error = found.total - min(found.carried, noise)
    share = ratio(error, limit)
    return _Nearest(math.inf if math.isnan(share) else share, key, error, limit)


def _exact(replayed: Checkpoint, recorded: Checkpoint) -> str:
    """Which entry differs of those that are exact under every rule; "" if none does."""
    for key, slot in recorded.entries.items():
        if slot.entry.dtype not in FLOATING:
            pairs = zip(replayed.chunks(key), recorded.chunks(key), strict=True)
            if not accumulated(pairs).result().equal:
                return f"{key} differs, and what is not floating point is exact under every rule"
    return ""
