"""Ranges of floating-point numbers, bound by what a computation does with them, for many numbers at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Tensors = dict[str, torch.Tensor]

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of the size of a floating-point number."""


@dataclass
class Range:
    """For each number of some tensors, the first and the last of the floating-point numbers that will do.

    They are kept as their places in the order of all numbers, as 64-bit integers; the first is behind the last where
    none will do.
    """

    low: Tensors = field(default_factory=dict)
    high: Tensors = field(default_factory=dict)

    def middle(self, like: Tensors) -> Tensors:
        """The one halfway between them: rounding elsewhere has most room there."""
        found = {}
        for key, low in self.low.items():
            ends = [number(places, like[key].dtype) for places in (low, self.high[key])]
            between = position(((ends[0].double() + ends[1].double()) / 2).to(like[key].dtype))
            found[key] = number(torch.minimum(torch.maximum(between, low), self.high[key]), like[key].dtype)
        return found

    def empty(self) -> Tensors:
        """Where there is none."""
        return {key: low > self.high[key] for key, low in self.low.items()}

    def closed(self) -> Range:
        """The same, with a number next to the right ones where none is right."""
        return Range({key: torch.minimum(low, self.high[key]) for key, low in self.low.items()}, dict(self.high))


def exactly(tensors: Tensors) -> Range:
    """Only these numbers."""
    found = {key: position(tensor) for key, tensor in tensors.items()}
    return Range(found, dict(found))


def position(tensor: torch.Tensor) -> torch.Tensor:
    """The place of each number in the order of all floating-point numbers of its type; that of zero is 0."""
    bits = tensor.contiguous().view(INTEGERS[tensor.element_size()]).long()
    sign = -(1 << (8 * tensor.element_size() - 1))
    return torch.where(bits < 0, sign - bits, bits)


def number(places: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The number at each place."""
    sign = -(1 << (8 * dtype.itemsize - 1))
    return torch.where(places < 0, sign - places, places).to(INTEGERS[dtype.itemsize]).view(dtype)


Off = Callable[[Tensors], tuple[Tensors, Tensors]]
"""For values, which of them are too low and which too high."""


def halved(off: Off, like: Tensors, near: int | None = None) -> Range:
    """The range of numbers that are neither too low nor too high.

    With ``near`` they are looked for only so many places around ``like``, if its ends are too low and too high.
    """
    if near is not None:
        ends = [{k: number(position(t) + side * near, t.dtype) for k, t in like.items()} for side in (-1, 1)]
        if not all(bool(t.all()) for t in (*off(ends[0])[0].values(), *off(ends[1])[1].values())):
            near = None
    found = Range()
    for side in (0, 1):
        low, high = {}, {}
        for key, tensor in like.items():
            infinite = int(position(torch.tensor(torch.inf, dtype=tensor.dtype)))
            middle = position(tensor)
            low[key] = torch.full_like(middle, -infinite) if near is None else middle - near
            high[key] = torch.full_like(middle, infinite) if near is None else middle + near
        # The first that is not too low lies in (low, high], the last that is not too high in [low, high).
        while any(bool((high[key] - low[key] > 1).any()) for key in like):
            places = {key: low[key] + (high[key] - low[key]) // 2 for key in like}
            beyond = off({key: number(middle, like[key].dtype) for key, middle in places.items()})[side]
            for key, middle in places.items():
                up = beyond[key] if side == 0 else ~beyond[key]
                low[key], high[key] = torch.where(up, middle, low[key]), torch.where(up, high[key], middle)
        if side == 0:
            found.low = high
        else:
            found.high = low
    return found
