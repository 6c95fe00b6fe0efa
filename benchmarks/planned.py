"""What ``pol plan`` says of a training beforehand, to be held against what is measured of it."""

from __future__ import annotations

from typing import Any

from benchmarks.cases import Case
from benchmarks.result import Planned
from pol.planner import plan
from pol.profile import Profile
from pol.proof.forecast import Forecast
from pol.proof.foresight import choice, stated_share
from pol.proof.policy import EXACT

QUICK = 0.0
"""Seconds for which steps are taken beyond the fewest, where the numbers need not mean anything."""


def planned(
    case: Case, settings: dict[str, Any], threads: int, audited: dict[str, Any] | None, every: int, *, quick: bool
) -> Planned:
    """The overhead of every recording of the case, and its audit as ``measure`` does it: k = ``every``, K = 1.

    Args:
        case: What is trained.
        settings: Of a training as long as the longest recording.
        threads: Of the recordings.
        audited: Settings of the training that is audited, if one is.
        every: k of that.
        quick: Whether the numbers need mean nothing.
    """
    run, share = _plan(case, settings, threads, 1, quick=quick).run, stated_share(EXACT)
    seconds = None
    if audited is not None:
        costs = _plan(case, audited, 1, every, quick=quick).choices[0].audits[0]
        if costs.replayed_share < 1:
            raise SystemExit(f"policy {EXACT.name} does not replay all of {case.title}: fewer intervals are needed")
        seconds = costs.seconds
    overheads = {one.key: choice(run, EXACT, one.every, one.keep, share).overhead for one in case.schedules}
    return Planned(overheads=overheads, audit=seconds)


def _plan(case: Case, settings: dict[str, Any], threads: int, every: int, *, quick: bool) -> Forecast:
    return plan(
        case.recipe, settings=settings, profile=Profile(threads=threads), every=every, keep=1,
        seconds=QUICK if quick else None,
    )  # fmt: skip
