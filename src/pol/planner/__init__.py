"""The planner: what recording a training will cost, and its audit, before anybody records it.

It takes the first few steps in a fresh process of the profile, with the recorder's own code and a clock on each part;
makes a proof of these steps and reads it as a verifier does; and takes some of them again as an auditor does. What
follows from that is arithmetic (``pol.proof.foresight``). Nothing stays on disk.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from pol.errors import UsageError
from pol.executors.local import Executor
from pol.planner.measuring import watch
from pol.profile import Profile
from pol.proof.forecast import Forecast
from pol.proof.foresight import (
    CONFIDENCES,
    MAX_OVERHEAD,
    check,
    check_bounds,
    choice,
    lengths_to_try,
    recommend,
    stated_share,
)  # fmt: skip
from pol.proof.policy import EXACT, Policy, check_policy
from pol.prover import Progress, available_cores
from pol.replay.recipe import Recipe, referred

SECONDS = 10.0
"""For how long steps are taken, if the least number of them is done: enough for forty steps of a small network on two
cores, and nobody waits for it."""


def plan(
    recipe: Recipe | str,
    *,
    settings: dict[str, Any] | None = None,
    profile: Profile | None = None,
    policy: Policy = EXACT,
    every: int | None = None,
    keep: int | None = None,
    max_overhead: float = MAX_OVERHEAD,
    max_bytes: int | None = None,
    share: float | None = None,
    confidences: Sequence[float] = CONFIDENCES,
    progress: Progress | None = None,
    executor: Executor | None = None,
    seconds: float | None = None,
) -> Forecast:
    """Measure a few steps of a training, and say what recording it will cost for choices of k and K.

    Args:
        recipe: A recipe, or its reference (``path/to/file.py:Name`` or ``package.module:Name``).
        settings: Constructor arguments, for a recipe given by reference.
        profile: Flags of the training process; by default one thread per core.
        policy: What verifiers will demand. Its rule is that of the recording.
        every: k, where it is fixed; else powers of ten.
        keep: K, likewise.
        max_overhead: Largest share by which recording may lengthen the steps, of what is recommended.
        max_bytes: Largest proof of what is recommended.
        share: Largest share of forged intervals that an audit leaves open; by default what the policy's own draws do.
        confidences: At which; audits are compared at the first.
        progress: Told how far it is.
        executor: Where to train; by default a process on this machine.
        seconds: For how long steps are taken, beyond the fewest that show anything; by default ten.

    Raises:
        UsageError: it cannot be recorded or planned as asked.
        ReplayError: the program failed.
    """
    check_policy(policy)
    left_open = stated_share(policy) if share is None else share
    check(policy, left_open, confidences)
    check_bounds(max_overhead, max_bytes)
    if any(number is not None and number < 1 for number in (every, keep)):
        raise UsageError(f"every={every} and keep={keep} must be at least 1")
    reference, tagged = referred(recipe, settings)
    chosen = profile or Profile(threads=available_cores())
    load = _load()
    budget = SECONDS if seconds is None else seconds
    found = watch(reference, tagged, chosen, policy, progress or (lambda *_: None), executor, budget)
    choices = [
        choice(found.run, policy, k, big, left_open, confidences)
        for k, big in lengths_to_try(found.run.steps, every, keep, policy.bounds.max_every)
    ]
    return Forecast(
        recipe=reference,
        policy=f"{policy.name}/{policy.version}",
        profile=chosen,
        measured_steps=found.steps,
        load=load,
        run=found.run,
        share=left_open,
        max_overhead=max_overhead,
        max_bytes=max_bytes,
        choices=choices,
        recommended=recommend(choices, max_overhead, max_bytes),
    )


def _load() -> float:
    """How many processes each core was wanted by in the last minute; 0 where the system does not say."""
    return os.getloadavg()[0] / available_cores() if hasattr(os, "getloadavg") else 0.0
