"""Measured noise in a calibration: what honest replays are off by, and what small forgeries leave, at several k.

A run is recorded step by step. From some of its states, the *starts*, its steps are taken again: honestly, with other
threads, kernels and arithmetic, and dishonestly, with the smallest changes that are published. At each *rung*, a
number k of steps, both are compared with what was recorded, as rule ``tolerance`` compares an interval of k steps. What
follows from these numbers is in ``pol.proof.limiting``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from pol import canonical
from pol.declaration import Count, Name, Positive
from pol.errors import FormatError
from pol.interval import FloatText
from pol.profile import Profile

FLOAT64 = "float64"
SPLIT = "batch in two halves"
"""Honest replays that are no other profile: see ``replay.perturbing``."""

SWAP, EXCHANGE, REDRAW = "one sample swapped", "two steps exchanged", "other random draws"
RATE, DECAY = "learning rate +1 %", "no weight decay"
COUNTING = (SWAP, EXCHANGE, REDRAW, RATE)
"""Forgeries that limits must stop: only a replay shows them, since record and spec read like those of an honest run."""

CHEATS = (*COUNTING, DECAY)
"""All that are measured. A decay that was left out is shown and does not count: over some steps it may do less than
rounding (attack study, section 8), so no audit of any rule but ``exact`` can promise to see it."""

WORST = 1e9
"""Stands for every larger share, an error where nothing moved among them: a billion times too much is too much."""

PERTURBATIONS = 3
"""Fewest honest replays of a start from which anything is concluded (attack study, section 8)."""


class Seen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The error of one replay at one rung: of its end state, Euclidean, in float64.

    Of an honest replay every floating-point tensor of the state counts, as the verifier judges it: with what errors of
    moments will add to a parameter in later steps. Of a cheat the parameters themselves count alone, since a forger can
    make up moments and buffers as a replay gives them.
    """

    equal: bool
    """Whether it ended in equal bits."""
    share: FloatText
    """Error of all parameters together, as a share of their replayed move."""
    error: FloatText
    """The same as it is."""
    relative: FloatText
    """Largest error of one tensor beyond the floor, as a share of its own replayed move."""
    relative_of: str
    """That tensor; empty if no error is beyond the floor."""
    absolute: FloatText
    """Largest error of one tensor beyond the floor, root mean square over its elements."""
    absolute_of: str
    loss: FloatText
    """Error of the mean loss over these steps, as a share of it plus one."""
    floored: bool = False
    """Of a cheat: it leaves no tensor of parameters off by more than twice the floor. No limit decides there: what that
    is worth to a forger, the drift budget counts."""


class Replays(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The replays of all starts under one condition."""

    name: Name
    """What was different."""
    profile: Profile
    left_out: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)] | None
    """Why it could not be measured for this recipe; None: it was."""
    found: list[list[Seen]]
    """For each start, at each rung that the run reaches from there; empty if it was left out."""


class Recommended(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits for a policy."""

    source: Literal["measured", "preset"]
    """``preset``: no error was beyond the floor here, so these are the numbers of the preset ``tolerance``."""
    relative: FloatText
    absolute: FloatText
    tensors: dict[Name, FloatText]
    """In place of ``absolute``, by entry key: of those that need less."""
    floor: FloatText
    loss: FloatText


class Noise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What replays of one run gave."""

    rungs: Annotated[list[Positive], msgspec.Meta(min_length=1, max_length=64)]
    """Numbers of steps after which was compared, from 1."""
    starts: Annotated[list[Count], msgspec.Meta(min_length=1)]
    """Steps before which replays began."""
    optimizers: list[Name]
    """Their types."""
    unbounded: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)] | None
    """Why it is not known what errors of an optimizer's moments will do later; None: it is."""
    coarse: Name | None
    """A trained tensor with fewer than 24 bits of mantissa, if there is one."""
    honest: Annotated[list[Replays], msgspec.Meta(max_length=64)]
    cheats: Annotated[list[Replays], msgspec.Meta(max_length=64)]
    tensors: dict[Name, list[FloatText]]
    """For each floating-point entry of the state, at each rung: the largest ``absolute`` of the honest replays that are
    no outliers."""
    drift: list[FloatText]
    """At each rung: all limits that follow, over the whole run, as a share of the way from its first to its last
    parameters; extrapolated from these starts."""
    every: Positive | None
    """The largest rung at which limits hold: the k to record with. None: refused at each of them."""
    limits: Recommended | None
    """For that k."""


def changed(profile: Profile, other: Profile) -> str:
    """What differs in another profile, in two words."""
    return ", ".join(
        f"{name} {getattr(other, name)}"
        for name in Profile.__struct_fields__
        if getattr(profile, name) != getattr(other, name)
    )


def reached(noise: Noise, steps: int, start: int) -> int:
    """How many rungs a run of ``steps`` steps reaches from a start."""
    return sum(start + rung <= steps for rung in noise.rungs)


def at(replays: list[Replays], number: int) -> Iterator[tuple[Replays, int, Seen]]:
    """What was found at one rung: (condition, number of the start, error)."""
    for one in replays:
        for place, found in enumerate(one.found):
            if number < len(found):
                yield one, place, found[number]


def check_noise(noise: Noise, profile: Profile, steps: int, what: str) -> None:
    """Refuse numbers that do not agree with one another.

    Raises:
        FormatError: names the field.
    """
    if noise.rungs != sorted(set(noise.rungs)) or noise.rungs[0] != 1 or noise.rungs[-1] > steps:
        raise FormatError(f"{what}: rungs: not increasing from 1, or beyond the run")
    if noise.starts != sorted(set(noise.starts)) or noise.starts[-1] >= steps:
        raise FormatError(f"{what}: starts: not increasing, or beyond the run")
    if not any(reached(noise, steps, start) == len(noise.rungs) for start in noise.starts):
        raise FormatError(f"{what}: rungs: no start reaches the last one")
    _check_conditions(noise, profile, what)
    for part, replays in (("honest", noise.honest), ("cheats", noise.cheats)):
        for number, one in enumerate(replays):
            _check_replays(noise, one, steps, f"{what}: {part}.{number}")
    if any(seen.floored for one in noise.honest for found in one.found for seen in found):
        raise FormatError(f"{what}: honest: what is below the floor is no error of an honest replay")
    for name, values in (*noise.tensors.items(), ("drift", noise.drift)):
        if len(values) != len(noise.rungs):
            raise FormatError(f"{what}: {name}: {len(values)} numbers for {len(noise.rungs)} rungs")
        for text in values:
            number_of(text, f"{what}: {name}")


def _check_conditions(noise: Noise, profile: Profile, what: str) -> None:
    if tuple(one.name for one in noise.cheats) != CHEATS:
        raise FormatError(f"{what}: cheats: not {', '.join(CHEATS)}")
    others = noise.honest[:-2]
    if tuple(one.name for one in noise.honest[-2:]) != (FLOAT64, SPLIT):
        raise FormatError(f"{what}: honest: {FLOAT64} and {SPLIT} are not the last two")
    if any(one.profile != profile for one in (*noise.honest[-2:], *noise.cheats)):
        raise FormatError(f"{what}: another arithmetic or a cheat under another profile than the run's")
    profiles = {canonical.encode(one.profile) for one in others}
    if len(profiles) < len(others) or canonical.encode(profile) in profiles:
        raise FormatError(f"{what}: honest: a profile twice, or that of the run itself")
    if any(one.name != changed(profile, one.profile) for one in others):
        raise FormatError(f"{what}: honest: a name that does not say how its profile differs")
    if sum(one.left_out is None for one in noise.honest) < PERTURBATIONS:
        raise FormatError(f"{what}: honest: fewer than {PERTURBATIONS} conditions were measured")


def _check_replays(noise: Noise, one: Replays, steps: int, where: str) -> None:
    if (one.left_out is None) != bool(one.found):
        raise FormatError(f"{where}: left out and measured, or neither")
    if not one.found:
        return
    if [len(found) for found in one.found] != [reached(noise, steps, start) for start in noise.starts]:
        raise FormatError(f"{where}: found: not one error for each start and rung")
    for place, found in enumerate(one.found):
        for number, seen in enumerate(found):
            _check_seen(seen, f"{where}.found.{place}.{number}")


def _check_seen(seen: Seen, where: str) -> None:
    names = ("share", "error", "relative", "absolute", "loss")
    found = {name: number_of(getattr(seen, name), f"{where}.{name}") for name in names}
    # A loss may differ all the same: gradients need not depend on its last bits.
    if seen.floored and (found["relative"] > 0 or seen.equal):
        raise FormatError(f"{where}: below the floor, and an error beyond it, or none at all")
    if seen.equal and any(value for name, value in found.items() if name != "loss"):
        raise FormatError(f"{where}: an error, although it ended in equal bits")
    for name in ("relative", "absolute"):
        if bool(getattr(seen, f"{name}_of")) != (found[name] > 0):
            raise FormatError(f"{where}.{name}_of: an error without a tensor, or a tensor without an error")
    if (found["relative"] > 0) != (found["absolute"] > 0):
        raise FormatError(f"{where}: an error beyond the floor is both relative and absolute")
    if (found["share"] > 0) != (found["error"] > 0):
        raise FormatError(f"{where}: an error of all parameters is both a share and a distance")


def number_of(text: str, where: str) -> float:
    """A finite number that is not negative.

    Raises:
        FormatError: it is not one.
    """
    value = canonical.parse_float(text, where, finite=True)
    if math.copysign(1.0, value) < 0:
        raise FormatError(f"{where}: an error is never negative: {text}")
    return value
