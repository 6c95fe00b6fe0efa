"""First states: two builds compared (what is random, what is constant, what is neither), and weights put in."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pol.declaration import Declaration
from pol.errors import IntegrityError, UsageError
from pol.messages import Comparison, Weights
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


def dressed(built: State, weights: Weights, declaration: Declaration) -> State:
    """A built state with the parameters and persistent buffers of one part taken from a model file.

    Raises:
        UsageError: the file does not hold exactly that part, under the names of its ``state_dict``.
    """
    found = _model(Path(weights.path))
    tensors = dict(built.tensors)
    prefix = f"{weights.part}."
    wanted = {k for k in tensors if k.startswith((f"parameter/{prefix}", f"buffer/{prefix}"))}
    given: set[str] = set()
    for name, tensor in found.items():
        full = declaration.aliases.get(prefix + name, prefix + name)
        key = next((k for k in (f"parameter/{full}", f"buffer/{full}") if k in wanted), None)
        if key is None or tensor.shape != tensors[key].shape or tensor.dtype != tensors[key].dtype:
            raise UsageError(f"{weights.path}: {name} is no weight of {weights.part!r}, or has another dtype or shape")
        tensors[key] = tensor
        given.add(key)
    if missing := sorted(wanted - given):
        raise UsageError(f"{weights.path}: {missing[0].partition('/')[2].removeprefix(prefix)} is missing")
    return State(tensors)


def _model(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a model file, which may come from anywhere.

    Raises:
        IntegrityError: it is not one.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise IntegrityError(f"{path.name}: not a model file: {error}") from None
