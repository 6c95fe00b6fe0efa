"""What a forger knows of the verification of 2021: how far off a replay may be, and where it looks."""

from __future__ import annotations

from itertools import pairwise
from math import inf
from typing import Any

from numpy.typing import NDArray

from pol import distance
from pol.distance import METRICS, Distances
from pol.proof.policy import Policy
from pol.replay.state import State

CODE = {"l1": 1000.0, "l2": 10.0, "linf": 0.1, "cos": 0.01}
"""Limits of the code released in 2021, whatever the model (attack study, section 2)."""

TOP = 2
"""Q of that code, unless told otherwise."""


def deltas(policy: Policy | None) -> dict[str, float]:
    """The delta of each metric that judges: what the policy says, or the constants of the code where it says nothing.

    A policy of another procedure says nothing, and neither does None: there the forger assumes the published one.
    """
    paper = policy.paper if policy is not None else None
    if policy is None or paper is None:
        return dict(CODE)
    found: dict[str, float] = {str(name): delta for name, delta in (paper.delta or {}).items()}
    if paper.fraction is not None and policy.reference is not None:
        for name in METRICS:
            found[name] = min(found.get(name, inf), paper.fraction * float(getattr(policy.reference, name)))
    return {name: found[name] for name in METRICS if name in found} or dict(CODE)


def top(policy: Policy | None) -> int:
    """Q: how many of the largest updates of an epoch are taken again, by each metric; 0: all are."""
    return policy.paper.top if policy is not None and policy.paper is not None else TOP


def choosing(policy: Policy | None) -> tuple[str, ...]:
    """The metrics by which the largest updates are chosen."""
    named = policy.paper.choose if policy is not None and policy.paper is not None else ()
    return named or tuple(deltas(policy))


def windows(steps: int, epochs: int, every: int) -> list[range]:
    """The intervals of each epoch as that code finds them, between two states that are kept ``every`` steps.

    Ends are rounded: the last interval may be in none.
    """
    ends = [round(steps / epochs / every * epoch) for epoch in range(epochs + 1)]
    return [range(first, last) for first, last in pairwise(ends)]


def apart(a: State, b: State) -> Distances:
    """How far apart two states are there: by all of their parameters together, and by nothing else."""
    keys = sorted(key for key in a.tensors if key.startswith("parameter/"))
    return distance.compare((key, [(_values(a, key), _values(b, key))]) for key in keys).total


def _values(state: State, key: str) -> NDArray[Any]:
    found: NDArray[Any] = state.tensors[key].detach().cpu().double().numpy()
    return found
