"""How far a run moved between kept checkpoints, measured here: by kind of state, and by parameter group."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pol.checkpoint import Checkpoint
from pol.container import Placed
from pol.declaration import Declaration, Group, Part
from pol.store import checkpoint_path
from pol.values import floats
from pol.verifier.case import Case, Moved

SIZED = {
    "parameter": "weights",
    "buffer": "buffers",
    "transient": "buffers",
    "optimizer": "optimizer",
    "object": "objects",
}
"""Kinds of state whose movement is measured for the challenge."""

MOST = 1e308
"""Distances that float64 cannot hold count as this one, which no bound allows."""


def rated_groups(declaration: Declaration) -> list[tuple[Part, Group]]:
    """The parameter groups that have a learning rate, in the order in which rates are recorded."""
    parts = sorted(declaration.parts, key=lambda part: part.name)
    return [(part, g) for part in parts for g in part.groups if "lr" in part.dynamic or "lr" in g.hyperparameters]


@dataclass
class _Squares:
    """Sums of squares: of how far one tensor moved, of its values before, and after."""

    moved: float = 0.0
    before: float = 0.0
    after: float = 0.0


def between(case: Case, before: int, after: int) -> tuple[dict[str, float], Moved]:
    """Euclidean distances between two kept checkpoints, in float64, per kind of state and per rated group.

    What only one of them has counts whole.
    """
    kinds: dict[str, float] = {}
    parameters: dict[str, _Squares] = {}
    old = {slot.entry.key: slot for slot in case.checkpoints[before]}
    for slot in case.checkpoints[after]:
        kind = SIZED.get(slot.entry.kind)
        if kind is None:
            continue
        previous = old.get(slot.entry.key)
        new = values(case, after, slot)
        if previous is not None and previous.entry == slot.entry:
            pairs: Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]] = zip(
                new, values(case, before, previous), strict=True
            )
        else:
            pairs = ((found, np.zeros(1)) for found in new)
        squares = _squares(pairs, whole=slot.entry.kind == "parameter")
        kinds[kind] = kinds.get(kind, 0.0) + squares.moved
        if slot.entry.kind == "parameter":
            parameters[slot.entry.name] = squares
    return {kind: _root(total) for kind, total in kinds.items()}, _by_group(case, before, after, parameters)


def _squares(pairs: Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]], *, whole: bool) -> _Squares:
    found = _Squares()
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf where both hold the same infinity
        for a, b in pairs:
            found.moved += float(np.nansum(np.square(a - b)))
            if whole:
                found.after += float(np.nansum(np.square(a)))
                found.before += float(np.nansum(np.square(b)))
    return found


def _by_group(case: Case, before: int, after: int, parameters: dict[str, _Squares]) -> Moved:
    distances, norms = [], []
    for _, group in rated_groups(case.genesis.spec.declaration):
        held = [parameters[name] for name in group.parameters if name in parameters]
        distances.append(_root(sum(one.moved for one in held)))
        norms.append(_root(max(sum(one.before for one in held), sum(one.after for one in held))))
    return Moved(start=before, stop=after, distances=distances, norms=norms)


def _root(total: float) -> float:
    return min(math.sqrt(total), MOST)


def values(case: Case, step: int, slot: Placed) -> Iterator[NDArray[np.float64]]:
    """The values of an entry as float64, in chunks."""
    file = Checkpoint(case.store, checkpoint_path(step), [slot])
    return map(floats, file.chunks(slot.entry.key))
