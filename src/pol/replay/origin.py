"""Compares two builds of one recipe under different seeds: what is random, what is constant, what is neither."""

from __future__ import annotations

import torch

from pol.errors import IntegrityError
from pol.messages import Comparison
from pol.replay.state import State


def compare(first: State, second: State) -> list[Comparison]:
    """One comparison per state entry.

    Raises:
        IntegrityError: the two states do not have the same entries.
    """
    if first.tensors.keys() != second.tensors.keys():
        raise IntegrityError("the recipe builds other parts under another seed")
    return [_compare(key, first.tensors[key], second.tensors[key]) for key in sorted(first.tensors)]


def _compare(key: str, a: torch.Tensor, b: torch.Tensor) -> Comparison:
    if a.shape != b.shape or a.dtype != b.dtype:
        raise IntegrityError(f"{key} has another shape or dtype under another seed")
    equal = torch.equal(a, b)
    flat = a.detach().reshape(-1)
    repeated = flat.numel() <= 1 or bool((flat == flat[0]).all())
    return Comparison(
        key=key, equal=equal, repeated=repeated, correlation=0.0 if equal else _correlation(a, b), size=a.numel()
    )


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    x, y = (t.detach().reshape(-1).to(torch.float64) for t in (a, b))
    x, y = x - x.mean(), y - y.mean()
    norm = torch.linalg.vector_norm(x) * torch.linalg.vector_norm(y)
    return float(x @ y / norm) if norm > 0 else 0.0
