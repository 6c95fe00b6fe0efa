"""What a forger knows of the verification of 2021: how far off a replay may be, and where it looks."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from pol import distance
from pol.distance import METRICS, Accumulator, Distances, within
from pol.proof.policy import Policy
from pol.replay.state import State
from pol.verifier.paper_audit import CODE, limits

SHARE = 0.95
"""How much of a delta is used."""

LEAST = 2.0**-24
"""Least share of a way: below half a unit in the last place nothing is moved."""

TOP = 2
"""Q of that code, unless told otherwise."""


def deltas(policy: Policy | None) -> dict[str, float]:
    """The delta of each metric that judges: what the policy says, or the constants of the code where it says nothing.

    A policy of another procedure says nothing, and neither does None: there the forger assumes the published one.
    """
    return dict(CODE) if policy is None or policy.paper is None else limits(policy)


def nearer(
    allowed: dict[str, float], end: dict[str, torch.Tensor], aim: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:  # fmt: skip
    """All parameters of ``end``, moved together towards ``aim`` as far as no metric is above its delta."""
    ways = torch.cat([(aim[key].double() - tensor.double()).flatten() for key, tensor in end.items()])
    whole = {"l1": float(ways.abs().sum()), "l2": float(ways.norm()), "linf": float(ways.abs().max())}
    share = min([1.0, *(SHARE * allowed[name] / size for name, size in whole.items() if name in allowed and size)])
    while share > LEAST:
        moved = {key: torch.lerp(t.double(), aim[key].double(), share).to(t.dtype) for key, t in end.items()}
        found = Accumulator()
        for key, tensor in end.items():
            found.add(moved[key].numpy(), tensor.numpy())
        if all(within(found.result().metric(name), allowed[name]) for name in METRICS if name in allowed):
            return moved
        share /= 2
    return end


def top(policy: Policy | None) -> int:
    """Q: how many of the largest updates of an epoch are taken again, by each metric; 0: all are."""
    return policy.paper.top if policy is not None and policy.paper is not None else TOP


def choosing(policy: Policy | None) -> tuple[str, ...]:
    """The metrics by which the largest updates are chosen."""
    named = policy.paper.choose if policy is not None and policy.paper is not None else ()
    return named or tuple(deltas(policy))


def apart(a: State, b: State) -> Distances:
    """How far apart two states are there: by all of their parameters together, and by nothing else."""
    keys = sorted(key for key in a.tensors if key.startswith("parameter/"))
    return distance.compare((key, [(_values(a, key), _values(b, key))]) for key in keys).total


def _values(state: State, key: str) -> NDArray[Any]:
    found: NDArray[Any] = state.tensors[key].detach().cpu().double().numpy()
    return found
