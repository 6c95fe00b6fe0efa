"""What is attacked, by what, and under which policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from pol import policies
from pol.bench.result import FULL, PAPER, RELATIVE, SAMPLED, TOLERANCE
from pol.errors import UsageError
from pol.proof.bounds import Bounds
from pol.proof.policy import Limits, Metric, Paper, Policy

DIGITS = "pol.recipes.digits:DigitsCNN"

FRACTION = 0.01
"""δ of policy paper-2021 as a share of d_ref: the value of the paper's text (section VI)."""

LOOSE = 0.01
"""Limit of policy ``relative only``: a hundredth of each move, which sounds strict (attack study, section 0)."""

NO_LIMIT = 1e300
"""More than any distance of states in float32."""


@dataclass(frozen=True)
class Suite:
    """One training to attack, and the attacks on it."""

    name: str
    recipe: str
    settings: dict[str, Any]
    """Constructor arguments of the recipe."""
    draws: int
    """Challenges that are looked up for each forgery that a sample may miss."""
    attacks: tuple[str, ...] = ()
    """Names; empty: all."""
    beside: Suite | None = None
    """Further attacks, on another training."""


PLAIN = Suite(
    "plain",
    # Here a forger finds all that it asks for: no schedule, and no running statistics that give a jump away. Of 400
    # steps half pay for 180 intervals, more than the 150 up to which policy ``exact`` replays all, and for the some
    # 140 turns of attack A19.
    "pol.recipes.perceptron:Perceptron",
    {"num_epochs": 40},
    1000,
    # Where augmentation or dropout follow from the thief's seed, a stolen tail is replayed under other masks, and
    # constants of 2021 sit near what that moves: its verdict on the first three would say more of draws than of them.
    ("glued-masked", "bridged", "pulled", "huge-decay", "ground-challenge", "adaptive"),
)  # fmt: skip

QUICK = Suite(
    "quick",
    DIGITS,
    # 156 steps of a millisecond or two: as few as a policy that replays all of up to 150 intervals still samples.
    {"num_epochs": 3, "width": 4, "batch_size": 29},
    1000,
    # One or two for each published attack but A1, A3 and A11, whose forgeries take some trainings' worth of
    # gradients, and some of the trivial ones; the tests make all of them, on smaller models. The adaptive forger is met
    # for certain here, and shows more beside.
    ("suppressed-steps", "infinitesimal-matched", "blindfold", "repudiation",
     "skipped-intervals", "data-addition", "chosen-order", "ground-start", "distilled", "drifting", "amplified",
     "spliced", "nan-bridge", "signed-again", "edited-checkpoint-sealed"),
    PLAIN,
)  # fmt: skip
FULL_SUITE = Suite("full", DIGITS, {"num_epochs": 6}, 10_000, beside=PLAIN)
"""The recipe as it is, half as long: 180 steps."""

SUITES = {suite.name: suite for suite in (QUICK, FULL_SUITE)}


def columns(delta: dict[Metric, float]) -> dict[str, Policy]:
    """The policies of the bench by name.

    Args:
        delta: Of policy paper-2021, by metric.
    """
    exact, tolerance = policies.load("exact"), policies.load("tolerance")
    paper = policies.load("paper-2021")
    # Of tolerance, so that the columns show what the rule lets pass, and not what a sample missed.
    everything = policies.load("exact-full").challenge
    relative = msgspec.structs.replace(
        tolerance,
        name="relative-only",
        limits=Limits(relative=LOOSE, absolute=NO_LIMIT, loss=NO_LIMIT, drift=NO_LIMIT),
        bounds=Bounds(),
        challenge=everything,
    )
    return {
        PAPER: msgspec.structs.replace(paper, paper=msgspec.structs.replace(paper.paper or Paper(), delta=delta)),
        RELATIVE: relative,
        TOLERANCE: msgspec.structs.replace(tolerance, challenge=everything),
        SAMPLED: exact,
        FULL: policies.load("exact-full"),
    }


def named(name: str) -> Suite:
    """A suite by its name.

    Raises:
        UsageError: there is none.
    """
    if name not in SUITES:
        raise UsageError(f"no suite is called {name!r}: there is {', '.join(SUITES)}")
    return SUITES[name]
