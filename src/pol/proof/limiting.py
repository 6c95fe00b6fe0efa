"""What follows from measured noise: limits at each k, how often honest replays will be beyond them, and the k to use.

A limit has to lie between two things: what an honest replay is off by on other hardware, and what the cheapest forgery
leaves. Where nothing lies between, no limits are recommended. All of this follows from the measured numbers alone, so
whoever reads a calibration finds it again.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context

from pol.errors import FormatError
from pol.proof.noise import COUNTING, Noise, Recommended, Replays, Seen, at
from pol.proof.rates import Rate

MARGIN = 8.0
"""A limit is this multiple of the worst that was seen: a few platforms stand for all (attack study, section 8)."""

GAP = 4.0
"""The cheapest forgery must be this multiple of the limit. A forger picks the best of many: the nearest of all samples
left half of what a random one leaves (attack study, section 1). And the starts here are few: twice that."""

STILL = 1.0
"""What a state leaves that never moved, as a share of the replayed move: the cheapest forgery to make."""

OF_REFERENCE = 0.01
"""The paper's delta as a share of d_ref: with noise above it, no distance means anything."""

DRIFT = 0.01
"""All limits together, as a share of the way from the first to the last weights: more makes a verdict INCONCLUSIVE."""

FLOOR = 4.0
"""Rounding that is allowed on top of limits, as in a policy; what is below it is no noise."""

LOSS = 1e-3
"""Largest error of a recorded loss where no more was measured, as in a policy."""

UNSEEN = 1e-3, 3e-5
"""Limits where no noise was seen, relative and absolute: those of the preset ``tolerance``. Nor is a relative limit
ever smaller (attack study, section 8). The absolute one is what noise makes tight."""

OUTLIER = 30.0
"""An error this many times the median of the others is one that a limit need not pass: on the digits a unit that
changes sides is off a thousand times more than usual (docs/policies.md), and in its first step Adam divides some
gradients by rounding. Verifiers look for a branch there."""

OUTLIERS = 0.01
"""Largest share of starts whose replays may be outliers, or one: half of what a policy lets branches explain."""


BRANCHES = 0.02
"""Share of intervals, or one, that a verifier lets branches explain, as in a policy."""


@dataclass(frozen=True)
class Cheapest:
    """The forgery that leaves the least: the share of its own move by which a tensor of parameters is off."""

    share: float
    name: str
    start: int
    """Step before which it began."""


@dataclass(frozen=True)
class Outlier:
    """An honest replay that the limits do not pass."""

    share: float
    name: str
    start: int


@dataclass(frozen=True)
class Rung:
    """What follows at one k."""

    every: int
    limits: Recommended
    """Whether or not they are any good."""
    cheapest: Cheapest | None
    """None: no forgery could be measured."""
    gap: float
    """The cheapest forgery as a multiple of the relative limit."""
    outliers: list[Outlier]
    replays: Rate
    """Honest replays that ended in other bits. Limits were those that follow without the start of the replay."""
    intervals: Rate
    """The same by starts: how many had such a replay. Replays of one start are not independent."""
    error: float
    """Largest honest error of all parameters together, without outliers: Euclidean."""
    worst: tuple[str, str]
    """Which tensor is off by most, and with what; empty if none is beyond the floor."""
    refusals: list[str]
    """Why these limits are not recommended; empty if they may be."""


def rungs(noise: Noise, reference: float) -> list[Rung]:
    """What follows at each k.

    Args:
        noise: What was measured; its ``every`` and ``limits`` are not looked at.
        reference: d_ref, Euclidean, over all parameters.
    """
    return [_rung(noise, number, reference) for number in range(len(noise.rungs))]


def best(found: list[Rung]) -> Rung | None:
    """The largest k at which limits hold."""
    return next((rung for rung in reversed(found) if not rung.refusals), None)


def conclusion(noise: Noise, reference: float) -> tuple[int | None, Recommended | None]:
    """The k to use, and limits for it; None if there are none."""
    chosen = best(rungs(noise, reference))
    return (None, None) if chosen is None else (chosen.every, chosen.limits)


def outliers(noise: Noise, number: int) -> set[tuple[str, int]]:
    """Honest replays, as (condition, number of the start), that limits at a rung do not pass.

    Taken out only where limits that pass them would stop no forgery and the others would: else they are no matter.
    """
    seen = [(float(one.relative), condition.name, place) for condition, place, one in _differing(noise, number)]
    cheapest = _cheapest(noise, number)
    if cheapest is None or not seen or _is_open(max(seen)[0], cheapest):
        return set()
    seen.sort(reverse=True)
    most = max(1, math.floor(OUTLIERS * len(noise.starts)))
    for count in range(1, len(seen)):
        if len({place for _, _, place in seen[:count]}) > most:
            break
        rest = [share for share, *_ in seen[count:]]
        if seen[count - 1][0] > OUTLIER * statistics.median(rest) and _is_open(rest[0], cheapest):
            return {(name, place) for _, name, place in seen[:count]}
    return set()


def limits_at(noise: Noise, number: int) -> Recommended:
    """The limits that follow at a rung, whether or not they are any good."""
    apart = outliers(noise, number)
    counted = [
        seen for condition, place, seen in at(noise.honest, number) if (condition.name, place) not in apart
    ]  # fmt: skip
    own = {key: float(values[number]) for key, values in noise.tensors.items()}
    return _following(counted, own)


def check_conclusion(noise: Noise, reference: float, what: str) -> None:
    """Refuse a measurement that says of itself what does not follow from it.

    Raises:
        FormatError: names the field.
    """
    for number, every in enumerate(noise.rungs):
        apart = outliers(noise, number)
        largest = max(
            (float(seen.absolute) for c, place, seen in at(noise.honest, number) if (c.name, place) not in apart),
            default=0.0,
        )
        if max((float(values[number]) for values in noise.tensors.values()), default=0.0) != largest:
            raise FormatError(f"{what}: tensors: at k = {every} not the largest errors of the replays")
    if (noise.every, noise.limits) != conclusion(noise, reference):
        raise FormatError(f"{what}: limits: not what follows from the measured numbers")


# -- at one rung --------------------------------------------------------------------------------------------------


def _rung(noise: Noise, number: int, reference: float) -> Rung:
    limits, cheapest, apart = limits_at(noise, number), _cheapest(noise, number), outliers(noise, number)
    differing = list(_differing(noise, number))
    others = {start: _without(noise, number, start, apart) for start in {place for _, place, _ in differing}}
    beyond = {
        (condition.name, place)
        for condition, place, seen in differing
        if (condition.name, place) in apart or _is_beyond(seen, others[place])
    }
    listed = [
        Outlier(float(seen.relative), condition.name, noise.starts[place])
        for condition, place, seen in differing
        if (condition.name, place) in apart
    ]
    counted = [(c.name, seen) for c, place, seen in differing if (c.name, place) not in apart]
    off = max(((float(seen.relative), seen.relative_of, name) for name, seen in counted), default=(0.0, "", ""))
    found = Rung(
        every=noise.rungs[number],
        limits=limits,
        cheapest=cheapest,
        gap=0.0 if cheapest is None else min(STILL, cheapest.share) / float(limits.relative),
        outliers=listed,
        replays=Rate(len(beyond), len(differing)),
        intervals=Rate(len({place for _, place in beyond}), len({place for _, place, _ in differing})),
        error=max((float(seen.error) for _, seen in counted), default=0.0),
        worst=off[1:] if off[0] else ("", ""),
        refusals=[],
    )
    found.refusals.extend(_refusals(noise, found, float(noise.drift[number]), reference))
    return found


def _refusals(noise: Noise, found: Rung, drift: float, reference: float) -> list[str]:
    refused = []
    if noise.coarse is not None:
        refused.append(f"{noise.coarse} has fewer than 24 bits of mantissa: its rounding is as large as its steps")
    if found.cheapest is None:
        refused.append("no forgery could be measured, so nothing says what a limit has to stop")
    elif found.gap < GAP:
        name = found.cheapest.name if found.cheapest.share < STILL else "a state that never moved"
        refused.append(
            f"no gap: honest replays need a limit of {float(found.limits.relative):.2g} of a tensor's move "
            f"({' with '.join(found.worst)}), and the cheapest forgery ({name}) leaves "
            f"{min(STILL, found.cheapest.share):.2g}, not {GAP:g} times as much"
        )
    if found.intervals.beyond > max(1, math.floor(BRANCHES * found.intervals.of)):
        refused.append(
            f"{found.intervals.beyond} of {found.intervals.of} starts have honest replays beyond limits that follow "
            "from the others: more than a verifier takes for rare branches"
        )
    if (allowed := MARGIN * found.error) >= OF_REFERENCE * reference:
        refused.append(
            f"{MARGIN:g} times the worst honest error is {allowed / reference:.2%} of d_ref: beyond "
            f"{OF_REFERENCE:.0%} a replay may as well have led to another model"
        )
    if drift > DRIFT:
        refused.append(
            f"all limits together are {drift:.2%} of the way from the first to the last parameters, and a policy "
            f"allows {DRIFT:.0%}: a forger could drift that far unseen"
        )
    return refused


def _differing(noise: Noise, number: int) -> list[tuple[Replays, int, Seen]]:
    return [found for found in at(noise.honest, number) if not found[2].equal]


def _cheapest(noise: Noise, number: int) -> Cheapest | None:
    """Of the forgeries that count; where one changed no bit, or nothing beyond the floor, it was none."""
    found = [
        Cheapest(float(seen.relative), one.name, noise.starts[place])
        for one, place, seen in at(noise.cheats, number)
        if one.name in COUNTING and not seen.equal and not seen.floored
    ]
    return min(found, key=lambda one: one.share, default=None)


def _is_open(worst: float, cheapest: Cheapest) -> bool:
    """Whether a limit for this error leaves a gap to the cheapest forgery."""
    return min(STILL, cheapest.share) >= GAP * max(UNSEEN[0], above(MARGIN * worst))


def _without(noise: Noise, number: int, start: int, apart: set[tuple[str, int]]) -> Recommended:
    """The limits that follow from all starts but one."""
    rest = [
        seen
        for condition, place, seen in at(noise.honest, number)
        if place != start and (condition.name, place) not in apart
    ]
    return _following(rest, {})


def _is_beyond(seen: Seen, limits: Recommended) -> bool:
    return any(float(getattr(seen, name)) > float(getattr(limits, name)) for name in ("relative", "absolute", "loss"))


def _following(found: list[Seen], own: dict[str, float]) -> Recommended:
    relative, absolute, loss = (
        max((float(getattr(one, name)) for one in found), default=0.0) for name in ("relative", "absolute", "loss")
    )
    seen = relative > 0
    whole = above(MARGIN * absolute) if seen else UNSEEN[1]
    return Recommended(
        source="measured" if seen else "preset",
        relative=repr(max(UNSEEN[0], above(MARGIN * relative))),
        absolute=repr(whole),
        tensors=_own(own, whole) if seen else {},
        floor=repr(FLOOR),
        loss=repr(max(LOSS, above(MARGIN * loss))),
    )


def _own(noise: dict[str, float], whole: float) -> dict[str, str]:
    """Limits of the tensors that need less than the largest; without noise of its own, one has that of its kind.

    A kind that showed none has that of the preset: the noise of moments says nothing of weights.
    """
    kinds: dict[str, float] = {}
    for key, value in noise.items():
        kind = key.partition("/")[0]
        kinds[kind] = max(kinds.get(kind, 0.0), value)
    found = {
        key: above(MARGIN * shown) if (shown := value or kinds[key.partition("/")[0]]) else UNSEEN[1]
        for key, value in noise.items()
    }
    return {key: repr(limit) for key, limit in sorted(found.items()) if 0 < limit < whole}


def above(value: float) -> float:
    """The next number of two digits that is no smaller."""
    return float(Context(prec=2, rounding=ROUND_CEILING).create_decimal_from_float(value))
