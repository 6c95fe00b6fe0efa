"""Replays in another arithmetic, or of steps that are not the registered ones: for calibrations, never for a verdict.

In *float64* the same steps are taken as nearly exactly as a machine can, which shows what rounding itself costs.
*Split* puts every batch through the attached modules in two halves, as another device would that has less memory. And
factors change what optimizers are told, as a cheat would, without the recipe knowing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from pol.errors import UsageError
from pol.interval import Momenta
from pol.replay import compiling
from pol.replay.attached import Attached
from pol.replay.driver import Driver
from pol.replay.frame import Frame, Position
from pol.replay.loader import Loader
from pol.replay.observer import Observer
from pol.replay.state import State

SAME = 1e-3
"""Largest difference between a batch put through whole and in halves, as a share of the output: float32 rounds at 1e-7,
and statistics of half a batch instead of a whole one differ by a tenth."""

Drive = Callable[[Frame, Position, int | None, Observer | None], Driver]


def driver(perturbed: Literal["float64", "split"] | None, factors: Mapping[str, float]) -> Drive:
    """The Run for a replay: the ordinary one, if nothing is to be different.

    Args:
        perturbed: Another arithmetic.
        factors: By name of a hyperparameter, what it is multiplied by in every group of every optimizer.
    """
    return partial(_Perturbed, perturbed, factors) if perturbed or factors else Driver


class _Perturbed(Driver):
    def __init__(
        self, kind: Literal["float64", "split"] | None, factors: Mapping[str, float],
        frame: Frame, start: Position, stop: int | None, observer: Observer | None,
    ) -> None:  # fmt: skip
        super().__init__(frame, start, stop, observer)
        self._kind, self._factors = kind, factors
        self._double: _Double | None = None
        self._halves: list[_Halves] = []

    def attach(self, *unnamed: Any, **given: Any) -> Any:
        """See ``Driver``."""
        namespace = super().attach(*unnamed, **given)
        if self._factors:
            for optimizer in self.attached.parts.optimizers.values():
                # Put in right before each step and taken out right after: schedules, checks and records see none of it.
                factored = _Factored(self._factors)
                optimizer.register_step_pre_hook(factored.put_in)
                optimizer.register_step_post_hook(factored.take_out)
        return namespace

    def next_batch(self, loader: Loader, batch: int) -> Any:
        """See ``Driver``; what is recorded of a batch is what it was before."""
        fetched = super().next_batch(loader, batch)
        return fetched if self._double is None else tree_map(_doubled, fetched)

    def _enter(self) -> None:
        super()._enter()
        if self._kind == "float64":
            self._double = _Double(self.attached)
            self._observer = _Rounded(self._observer, self._double) if self._observer else None
        elif self._kind == "split":
            self._halves = [_Halves(name, module) for name, module in self.attached.parts.modules.items()]

    def _close(self, *, final: bool = False) -> None:
        if self._halves and self._pending is not None and not any(half.used for half in self._halves):
            raise UsageError("no attached module was called with a batch of two or more")
        super()._close(final=final)


class _Factored:
    """Hyperparameters of one optimizer, multiplied for the length of a step."""

    def __init__(self, factors: Mapping[str, float]) -> None:
        self._factors = factors
        self._own: list[dict[str, Any]] = []

    def put_in(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._own = [{name: group[name] for name in self._factors if name in group} for group in optimizer.param_groups]
        for group, own in zip(optimizer.param_groups, self._own, strict=True):
            group.update({name: value * self._factors[name] for name, value in own.items()})

    def take_out(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group, own in zip(optimizer.param_groups, self._own, strict=True):
            group.update(own)


# -- float64 ------------------------------------------------------------------------------------------------------


class _Double:
    """All that trains, made float64; and states in the element types that they had.

    Raises:
        UsageError: it is float64 already.
    """

    def __init__(self, attached: Attached) -> None:
        parts = attached.parts
        self._types = {key: tensor.dtype for key, tensor in attached.state().tensors.items()}
        self._optimizers = sorted(parts.optimizers)
        if not any(key.startswith("parameter/") and _is_coarser(dtype) for key, dtype in self._types.items()):
            raise UsageError("its weights are float64 already")
        for module in parts.modules.values():
            module.double()
            for inner in module.modules():  # a recipe makes its inputs float32 by itself
                inner.register_forward_pre_hook(_hook, with_kwargs=True)
        for optimizer in parts.optimizers.values():
            for kept in optimizer.state.values():
                kept.update({name: _doubled(value) for name, value in kept.items()})

    def rounded(self, state: State) -> State:
        """A state in its recorded element types."""
        return State({key: tensor.to(self._type(key, tensor)) for key, tensor in state.tensors.items()})

    def _type(self, key: str, tensor: torch.Tensor) -> torch.dtype:
        if key in self._types or tensor.dtype is not torch.float64:
            return self._types.get(key, tensor.dtype)
        for part in self._optimizers:  # moments that the first step has made, of the type of their parameter
            name = key.removeprefix(f"optimizer/{part}.").rpartition(".")[0]
            if (dtype := self._types.get(f"parameter/{name}")) is not None:
                return dtype
        return tensor.dtype


class _Rounded:
    """An observer that is told of states in their recorded element types."""

    def __init__(self, observer: Observer, double: _Double) -> None:
        self._observer, self._double = observer, double
        self.batch, self.item = observer.batch, observer.item

    def closed(
        self, step: int, loss: float | None, rates: list[float], take: Callable[[], State], counts: dict[str, int],
        momenta: Callable[[], Momenta],
    ) -> None:  # fmt: skip
        """See ``Observer``."""
        self._observer.closed(step, loss, rates, lambda: self._double.rounded(take()), counts, momenta)


def _is_coarser(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype is not torch.float64


def _doubled(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and _is_coarser(value.dtype) else value


def _hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
    return tree_map(_doubled, args), tree_map(_doubled, kwargs)


# -- in two halves ------------------------------------------------------------------------------------------------


class _Halves:
    """The forward of one module, put through in two halves of the batch, if that is the same function.

    Whether it is, the first call shows: it may draw nothing, change no buffer, and give what the whole batch gives.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        if compiling.is_compiled(module):
            raise UsageError(f"{name} is compiled for its batches")
        self._name, self._module, self._whole = name, module, module.forward
        self.used = False
        module.forward = self._forward

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        leaves, tree = tree_flatten((args, kwargs))
        sizes = {leaf.shape[:1] for leaf in leaves if isinstance(leaf, torch.Tensor)}
        if len(sizes) != 1 or not next(iter(sizes)):
            raise UsageError(f"{self._name} takes other things than tensors whose first axis is the batch")
        (size,) = next(iter(sizes))
        if size < 2:
            return self._whole(*args, **kwargs)
        expected = None if self.used else self._probed(args, kwargs)
        halves = []
        for begin, end in ((0, size // 2), (size // 2, size)):
            part, named = tree_unflatten([_cut(leaf, begin, end) for leaf in leaves], tree)
            halves.append(self._whole(*part, **named))
        found = self._joined(halves, size)
        if expected is not None:
            self._compare(found, expected)
        self.used = True
        return found

    def _probed(self, args: Any, kwargs: Any) -> Any:
        """What the whole batch gives."""
        buffers = [(buffer, buffer._version) for buffer in self._module.buffers()]
        drawn = torch.get_rng_state()
        with torch.no_grad():
            found = self._whole(*args, **kwargs)
        if not torch.equal(drawn, torch.get_rng_state()):
            raise UsageError(f"{self._name} draws random numbers")
        if any(buffer._version != version for buffer, version in buffers):
            raise UsageError(f"{self._name} keeps statistics of its batches")
        return found

    def _joined(self, halves: list[Any], size: int) -> Any:
        (first, tree), (second, other) = map(tree_flatten, halves)
        if tree != other or not all(
            isinstance(a, torch.Tensor) and a.dim() and len(a) + len(b) == size
            for a, b in zip(first, second, strict=True)
        ):
            raise UsageError(f"{self._name} gives other things than tensors whose first axis is the batch")
        return tree_unflatten([torch.cat(pair) for pair in zip(first, second, strict=True)], tree)

    def _compare(self, found: Any, expected: Any) -> None:
        for a, b in zip(tree_flatten(found)[0], tree_flatten(expected)[0], strict=True):
            if a.shape != b.shape or not float((a.detach() - b).double().norm()) <= SAME * float(b.double().norm()):
                raise UsageError(f"{self._name} is another function of half a batch")


def _cut(leaf: Any, begin: int, end: int) -> Any:
    return leaf[begin:end] if isinstance(leaf, torch.Tensor) else leaf
