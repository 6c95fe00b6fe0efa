"""Honest noise in a calibration: what replays on other platforms gave, and the limits that follow, if any do.

A limit has to lie between two things: what an honest replay is off by on other hardware, and what a forgery leaves.
Where nothing lies between, no limits are recommended. That decision follows from the measured numbers alone, so
whoever reads a calibration takes it again.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Context
from typing import Annotated, Literal

import msgspec

from pol import canonical
from pol.declaration import Count, Name, Positive
from pol.errors import FormatError
from pol.interval import FloatText
from pol.profile import Profile

MARGIN = 8.0
"""A limit is this multiple of the worst that was seen: a few platforms stand for all (attack study, section 8)."""

FORGERY = 0.01
"""Share of an interval's move that the smallest published forgery leaves: in SGD, a learning rate wrong by 1 % (attack
study, section 1)."""

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
ever smaller (attack study, section 8): once in a thousand steps rounding decides on which side of zero a unit falls,
which a few replays hardly show. The absolute one is what noise makes tight."""

WORST = 1e9
"""Stands for every larger share, an error where nothing moved among them: a billion times too much is too much."""

PERTURBATIONS = 3
"""Fewest platforms from which anything is concluded (attack study, section 8)."""


class Perturbed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Replays under one other profile. Errors are Euclidean, of end states of intervals, in float64."""

    profile: Profile
    equal: Count
    """Intervals that ended in equal bits."""
    worst: FloatText
    """Largest error of all parameters together, as a share of the replayed move of the same interval."""
    median: FloatText
    error: FloatText
    """Largest error of all parameters together, as it is."""
    relative: FloatText
    """Largest error of one tensor beyond the floor, as a share of its own replayed move; any tensor of the state."""
    relative_of: str
    """That tensor; empty if no error is beyond the floor."""
    absolute: FloatText
    """Largest error of one tensor beyond the floor, root mean square over its elements."""
    absolute_of: str
    loss: FloatText
    """Largest error of a mean loss, as a share of it plus one."""


class Recommended(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits for a policy."""

    source: Literal["measured", "preset"]
    """``preset``: no error was beyond the floor here, so these are the numbers of the preset ``tolerance``."""
    relative: FloatText
    absolute: FloatText
    floor: FloatText
    loss: FloatText


class Noise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What replays of single intervals of one run gave on other platforms."""

    every: Positive
    """k, the steps of an interval: noise grows with it."""
    total: Positive
    """Intervals of the run."""
    intervals: Annotated[list[Count], msgspec.Meta(min_length=1)]
    """Those that were replayed, by number."""
    move: FloatText
    """Mean move of all parameters over these intervals."""
    drift: FloatText
    """All limits together (those that follow, recommended or not) over the run, as a share of the way from its first
    to its last parameters; extrapolated from these intervals."""
    coarse: Name | None
    """A trained tensor with fewer than 24 bits of mantissa, if there is one."""
    perturbed: Annotated[list[Perturbed], msgspec.Meta(min_length=PERTURBATIONS, max_length=64)]
    limits: Recommended | None
    """None: refused, because there is no gap between noise and forgery."""


def changed(profile: Profile, other: Profile) -> str:
    """What differs in another profile, in two words."""
    return ", ".join(
        f"{name} {getattr(other, name)}"
        for name in Profile.__struct_fields__
        if getattr(profile, name) != getattr(other, name)
    )


def worst(noise: Noise, name: str) -> float:
    """The largest of one number over all perturbations."""
    return max(float(getattr(one, name)) for one in noise.perturbed)


def following(relative: float, absolute: float, loss: float) -> Recommended:
    """The limits that follow from the worst that was seen, whether or not they are any good."""
    seen = relative > 0 and absolute > 0
    numbers = (max(UNSEEN[0], _above(MARGIN * relative)), _above(MARGIN * absolute)) if seen else UNSEEN
    return Recommended(
        source="measured" if seen else "preset",
        relative=repr(numbers[0]),
        absolute=repr(numbers[1]),
        floor=repr(FLOOR),
        loss=repr(max(LOSS, _above(MARGIN * loss))),
    )


def would_be(noise: Noise) -> Recommended:
    """The limits that follow from a measurement."""
    return following(worst(noise, "relative"), worst(noise, "absolute"), worst(noise, "loss"))


def refusals(noise: Noise, reference: float) -> list[str]:
    """Why no limits are recommended; empty if they are.

    Args:
        noise: What was measured.
        reference: d_ref, Euclidean, over all parameters.
    """
    found = []
    if noise.coarse is not None:
        found.append(f"{noise.coarse} has fewer than 24 bits of mantissa: its rounding is as large as its steps")
    share = MARGIN * max(worst(noise, "relative"), worst(noise, "worst"))
    if _above(share) >= FORGERY:
        found.append(
            f"{MARGIN:g} times the worst honest error is {share:.2%} of the interval's move, and a learning rate wrong "
            f"by 1 % leaves {FORGERY:.0%}: no limit passes the one and stops the other."
        )
    allowed = MARGIN * worst(noise, "error")
    if allowed >= float(noise.move):
        found.append(
            f"{MARGIN:g} times the worst honest error is {allowed:.3g}, and an interval moves the parameters by "
            f"{float(noise.move):.3g} on average: a state that never moved would pass."
        )
    if allowed >= OF_REFERENCE * reference:
        found.append(
            f"{MARGIN:g} times the worst honest error is {allowed / reference:.2%} of d_ref: beyond "
            f"{OF_REFERENCE:.0%} a replay may as well have led to another model."
        )
    if float(noise.drift) > DRIFT:
        found.append(
            f"all limits together would be {float(noise.drift):.2%} of the way from the first to the last parameters, "
            f"and a policy allows {DRIFT:.0%}: a forger could drift that far unseen."
        )
    return found


def instead(noise: Noise) -> str:
    """What to do where no limits are recommended."""
    precise = "train in float32" if noise.coarse is not None else "train without reduced precision, if there is any"
    if noise.every == 1:
        return f"intervals are as short as they can be, so {precise}, or record under rule exact"
    return (
        f"measure again with a smaller --every than {noise.every}, since noise grows with the interval; {precise}; or "
        "record under rule exact"
    )


def check_noise(noise: Noise, profile: Profile, steps: int, reference: float, what: str) -> None:
    """Refuse numbers that do not agree with one another, and limits that do not follow from them.

    Raises:
        FormatError: names the field.
    """
    if noise.total != -(-steps // noise.every):
        raise FormatError(f"{what}: {noise.total} intervals; {steps} steps make {-(-steps // noise.every)}")
    if noise.intervals != sorted(set(noise.intervals)) or noise.intervals[-1] >= noise.total:
        raise FormatError(f"{what}: intervals: not increasing, or beyond the run")
    profiles = {canonical.encode(one.profile) for one in noise.perturbed}
    if len(profiles) < len(noise.perturbed) or canonical.encode(profile) in profiles:
        raise FormatError(f"{what}: perturbed: a profile twice, or that of the run itself")
    for name in ("move", "drift"):
        _number(getattr(noise, name), f"{what}: {name}")
    for number, one in enumerate(noise.perturbed):
        _check_perturbed(one, len(noise.intervals), f"{what}: perturbed.{number}")
    expected = None if refusals(noise, reference) else would_be(noise)
    if noise.limits != expected:
        raise FormatError(f"{what}: limits: not what follows from the measured numbers")


def _check_perturbed(one: Perturbed, intervals: int, where: str) -> None:
    names = ("worst", "median", "error", "relative", "absolute", "loss")
    found = {name: _number(getattr(one, name), f"{where}.{name}") for name in names}
    if one.equal > intervals:
        raise FormatError(f"{where}.equal: {one.equal} of {intervals} intervals")
    if found["median"] > found["worst"]:
        raise FormatError(f"{where}: the median is above the worst")
    # A loss may differ all the same: gradients need not depend on its last bits.
    if one.equal == intervals and any(value for name, value in found.items() if name != "loss"):
        raise FormatError(f"{where}: an error, although all intervals ended in equal bits")
    for name in ("relative", "absolute"):
        if bool(getattr(one, f"{name}_of")) != (found[name] > 0):
            raise FormatError(f"{where}.{name}_of: an error without a tensor, or a tensor without an error")
    if (found["relative"] > 0) != (found["absolute"] > 0):
        raise FormatError(f"{where}: an error beyond the floor is both relative and absolute")
    if (found["worst"] > 0) != (found["error"] > 0):
        raise FormatError(f"{where}: an error of all parameters is both a share and a distance")


def _number(text: str, where: str) -> float:
    value = canonical.parse_float(text, where, finite=True)
    if math.copysign(1.0, value) < 0:
        raise FormatError(f"{where}: an error is never negative: {text}")
    return value


def _above(value: float) -> float:
    """The next number of two digits that is no smaller."""
    return float(Context(prec=2, rounding=ROUND_CEILING).create_decimal_from_float(value))
