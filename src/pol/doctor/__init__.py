"""The doctor: takes the first intervals of a training twice, and once more from the middle, and compares every step.

It says whether a training is exact, and where it is not: the first step, the state entry, as far as can be told the
operation and the line, the likely cause, and what to do. Nothing is signed or kept.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pol.doctor.diagnosis import Answer, Check, Diagnosis, Finding, Site, Suspect
from pol.doctor.examining import Examination
from pol.errors import UsageError
from pol.executors.local import Executor
from pol.profile import Profile
from pol.prover import Progress, available_cores
from pol.replay.recipe import Recipe, referred, split_reference

__all__ = ["EVERY", "INTERVALS", "Answer", "Check", "Diagnosis", "Finding", "Site", "Suspect", "examine"]

EVERY = 10
"""Steps of an interval where none are asked for, as in recording."""

INTERVALS = 3
"""Intervals where none are asked for: before, around and after the point where the program is entered again."""


def examine(
    recipe: Recipe | str,
    *,
    settings: dict[str, Any] | None = None,
    profile: Profile | None = None,
    every: int = EVERY,
    intervals: int = INTERVALS,
    quick: bool = False,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> Diagnosis:
    """Say whether a training is the same, bit for bit, when it is taken again and when it is entered in the middle.

    Args:
        recipe: A recipe, or its reference.
        settings: Constructor arguments, for a recipe given by reference.
        profile: Flags of the training processes; by default one thread per core.
        every: k, the steps of an interval.
        intervals: How many intervals are taken.
        quick: Leave out what other flags change and cost.
        progress: Told how far it is.
        executor: Where to train; by default in fresh processes on this machine.

    Raises:
        UsageError: there is no such recipe, or it takes other arguments.
    """
    if every < 1 or intervals < 1:
        raise UsageError(f"every={every} and intervals={intervals} must be at least 1")
    reference, tagged = referred(recipe, settings)
    where, _ = split_reference(reference)
    if where.endswith(".py"):
        reference = f"{Path(where).resolve()}:{split_reference(reference)[1]}"
    chosen = profile or Profile(threads=available_cores())
    began = time.monotonic()
    found = Examination(
        reference, tagged, chosen, every, every * intervals, executor, progress or (lambda *_: None)
    ).diagnose(quick=quick)  # fmt: skip
    return found(recipe=recipe if isinstance(recipe, str) else reference, seconds=time.monotonic() - began)
