"""Small tensors of a training as entries and bytes, from one boundary to the next.

Finding a tensor's bytes takes several times as long as hashing a few KiB, and an optimizer writes into the same memory
step after step. So what was found is found again where tensor, memory and layout are the same.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from pol.replay.state import State
from pol.replay.tensors import content, describe
from pol.statetree import Entry

LARGE = 1 << 16
"""Bytes from which a tensor is not small: finding them is less than half of what hashing 64 KiB takes, and a view keeps
alive, until the next boundary, what the program has let go of."""


class Seen(NamedTuple):
    """A tensor as it lies in memory."""

    tensor: torch.Tensor
    mark: tuple[Any, ...]
    entry: Entry
    view: memoryview | None
    """Its bytes, now and later; None where they can only be copied, and of large ones."""
    values: np.ndarray[Any, Any] | None
    """The same as numbers, where numpy has them."""

    def is_finite(self) -> bool:
        """Whether a sum over all values was looked at and is finite; see ``tensors.is_finite``."""
        return self.values is not None and math.isfinite(
            np.vdot(self.values, self.values)
        )  # dot() warns of an overflow


class Views:
    """Entries of a training's states in the order of the state tree, with the bytes of the small ones."""

    def __init__(self) -> None:
        self._small: dict[str, Seen] = {}
        self._keys: list[str] = []
        self._order: list[str] = []

    def of(self, state: State) -> list[Seen]:
        """Those of a state."""
        now = {}
        for key, tensor in state.tensors.items():
            known = self._small.get(key)
            if known is None or known.mark != layout(tensor):  # the view holds its memory: nothing else gets there
                kind, _, name = key.partition("/")
                entry = describe(kind, name, tensor)  # refuses what lies nowhere
                view = _view(tensor)
                known = Seen(tensor, layout(tensor), entry, view, _values(tensor, view))
            now[key] = known
        self._small = {key: seen for key, seen in now.items() if seen.view is not None}
        if (keys := list(now)) != self._keys:
            self._keys, self._order = keys, sorted(keys, key=lambda key: now[key].entry.order())
        return [now[key] for key in self._order]


def layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Where in memory each element is: equal where a view shows the same elements."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _view(tensor: torch.Tensor) -> memoryview | None:
    if tensor.nbytes >= LARGE or tensor.is_cuda or not tensor.is_contiguous():
        return None
    return content(tensor)


def _values(tensor: torch.Tensor, view: memoryview | None) -> np.ndarray[Any, Any] | None:
    kind = {torch.float32: np.float32, torch.float64: np.float64}.get(tensor.dtype)
    return np.frombuffer(view, dtype=kind) if view and kind is not None else None
