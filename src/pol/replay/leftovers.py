"""Gradients that one step leaves to the next: no state holds them, so a replay would not have them.

Whether they are used cannot be seen from outside: ``zero_grad(set_to_none=False)`` and an accumulation over the
boundary both go on with the same tensor. So when an update has used a gradient that was there at the boundary, the
next one that is left is filled with NaN. Zeroing removes that; an accumulation does not, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from pol.errors import ReplayError


class Leftovers:
    """Watches one gradient of each optimizer, the last one, which is seldom large."""

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        self._optimizers = list(optimizers)
        self._left: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._suspected: set[int] = set()

    def step_ends(self) -> None:
        """Note what is left at a boundary."""
        self._left.clear()
        for optimizer in self._optimizers:
            parameters = (p for group in reversed(optimizer.param_groups) for p in reversed(group["params"]))
            parameter = next((p for p in parameters if p.grad is not None), None)
            if parameter is None or parameter.grad is None:
                continue
            self._left[id(optimizer)] = parameter, parameter.grad
            if id(optimizer) in self._suspected:
                parameter.grad.detach().fill_(torch.nan)

    def updates(self, optimizer: torch.optim.Optimizer, step: int, *, closure: bool) -> None:
        """Before an update; with a ``closure`` the gradients are not there yet.

        Raises:
            ReplayError: it uses a gradient that an earlier step has left.
        """
        parameter, gradient = self._left.pop(id(optimizer), (None, None))
        if closure or parameter is None or gradient is None or parameter.grad is not gradient:
            return
        if id(optimizer) in self._suspected and bool(gradient.isnan().any()):
            raise ReplayError(
                f"step {step} uses gradients that an earlier step has left, which no state holds: commit() once per "
                "optimizer update, after all of its batches, and clear gradients before a step or after its update"
            )
        self._suspected.add(id(optimizer))
