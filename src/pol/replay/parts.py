"""The parts that a program attached: what each holds, how it is taken down, and how it is put back.

Restoring copies into the tensors that the recipe built. Hyperparameters are restored only where they are dynamic.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from pol.declaration import Part
from pol.errors import IntegrityError, ReplayError, UsageError
from pol.interval import Momenta
from pol.replay import extra, generators
from pol.replay.frozen import Bases
from pol.replay.optimizers import AttachedOptimizer
from pol.replay.schedules import Schedules
from pol.replay.state import State
from pol.replay.tree import add_value, flatten, pop_value, unflatten


def _clean(name: str) -> str:
    return name.replace("_orig_mod.", "")  # the wrapper of a compiled module


def _check_alone() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        ranks = torch.distributed.get_world_size()
        if ranks > 1:
            raise UsageError(f"the training runs in {ranks} processes: this version records the training of one")


class Attached(SimpleNamespace):
    """The parts as the program gets them back: ``parts.model``, or ``parts["model"]``."""

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class Carried:
    """A dict that a program attached (what a loop carries from step to step), as an object with a state."""

    def __init__(self, values: dict[Any, Any]) -> None:
        self._values = values

    def state_dict(self) -> dict[Any, Any]:
        """The dict itself."""
        return self._values

    def load_state_dict(self, values: dict[Any, Any]) -> None:
        """Fill the program's own dict."""
        self._values.clear()
        self._values.update(values)


class Parts:
    """The attached parts, sorted by what they are; tensors of ``bases`` are in none of them."""

    def __init__(self, parts: dict[str, Any], dynamic: tuple[str, ...], bases: Bases) -> None:
        _check_alone()
        self.namespace = Attached(**parts)
        self._bases = bases
        self.modules = {k: v for k, v in parts.items() if isinstance(v, nn.Module)}
        self.optimizers = {k: v for k, v in parts.items() if isinstance(v, torch.optim.Optimizer)}
        self.generators = {k: v for k, v in parts.items() if isinstance(v, generators.KINDS)}
        self._schedules = {k: v for k, v in parts.items() if isinstance(v, LRScheduler)}
        known = {*self.modules, *self.optimizers, *self.generators, *self._schedules}
        self._objects = {k: Carried(v) if type(v) is dict else v for k, v in parts.items() if k not in known}
        for name, part in self._objects.items():
            if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
                raise UsageError(
                    f"attach({name}=...): a {type(part).__name__} has no state_dict and load_state_dict, so its state "
                    "cannot be recorded; attach modules, optimizers, schedules, generators of torch, numpy and Python, "
                    "dicts, and objects with both"
                )
        for name, generator in self.generators.items():
            try:
                generators.algorithm(generator)
            except UsageError as error:
                raise UsageError(f"attach({name}=...): {error}") from None
        if not self.modules:
            raise UsageError("attach() was given no torch.nn.Module: there is nothing to prove")
        self.extras = list(extra.extras(self.modules))
        """Modules with state outside of parameters and buffers, by the name under which it is recorded."""
        self._persistent: dict[str, tuple[frozenset[str], set[str]]] = {}
        self._name_tensors()
        self.schedules = Schedules(self._schedules)
        self._attached = {
            name: AttachedOptimizer(name, optimizer, self._names, dynamic, self.schedules)
            for name, optimizer in self.optimizers.items()
        }
        known_entries = {key for o in self.optimizers.values() for group in o.param_groups for key in group}
        if unknown := sorted(set(dynamic) - known_entries):
            raise UsageError(f"attach(dynamic=...): no optimizer has a hyperparameter {unknown[0]!r}")
        self._described = self._describe()

    # -- what the parts are -------------------------------------------------------------------------------------

    @property
    def counts(self) -> dict[str, int]:
        """Steps of each counted schedule."""
        return self.schedules.counts

    @property
    def all_schedules(self) -> dict[str, LRScheduler]:
        """Every schedule, counted or not."""
        return self._schedules

    @property
    def objects(self) -> dict[str, Any]:
        """What was attached for its ``state_dict`` alone."""
        return self._objects

    def _name_tensors(self) -> None:
        self._names: dict[int, str] = {}
        self.aliases: dict[str, str] = {}
        owned: dict[tuple[Any, ...], str] = {}
        for part, module in self.modules.items():
            for name, tensor in (
                *module.named_parameters(remove_duplicate=False),
                *module.named_buffers(remove_duplicate=False),
            ):
                full = f"{part}.{_clean(name)}"
                if self._bases.holds(tensor):
                    if tensor.requires_grad:
                        raise UsageError(f"{full} is trained, but shares its memory with a frozen base")
                    continue
                identity = (
                    (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
                    if tensor.numel()
                    else (id(tensor),)
                )
                first = owned.setdefault(identity, full)
                if first != full:
                    self.aliases[full] = first
                self._names.setdefault(id(tensor), first)

    def describe(self) -> list[Part]:
        """The parts as they were attached, for the declaration."""
        return self._described

    def _describe(self) -> list[Part]:
        kinds: dict[str, Any] = {
            "module": self.modules, "optimizer": self.optimizers, "schedule": self._schedules,
            "object": self._objects, "generator": self.generators,
        }  # fmt: skip
        found = [
            Part(
                name=name,
                kind=kind,  # type: ignore[arg-type]
                type=f"{type(part).__module__}.{type(part).__qualname__}",
                groups=self._attached[name].groups if name in self._attached else [],
                dynamic=self._attached[name].dynamic if name in self._attached else [],
                counted=name in self.counts,
            )
            for kind, parts in kinds.items()
            for name, part in parts.items()
        ]
        return sorted(found, key=lambda part: part.name)

    def rates(self) -> list[float]:
        """The learning rate of every parameter group, optimizers in order of name."""
        return [
            float(group["lr"]) for _, o in sorted(self.optimizers.items()) for group in o.param_groups if "lr" in group
        ]

    def momenta(self) -> Momenta:
        """What every parameter group with a learning rate keeps of the past now, in the same order."""
        return [
            [float(value) for name in MOMENTA for value in _several(group.get(name))]
            for _, o in sorted(self.optimizers.items())
            for group in o.param_groups
            if "lr" in group
        ]

    # -- take down ----------------------------------------------------------------------------------------------

    def capture(self) -> State:
        """The whole state, sharing memory with the live tensors.

        Raises:
            ReplayError: a hyperparameter that was declared static has changed.
        """
        tensors = self._module_tensors()
        extra.capture(self.extras, tensors)
        self.schedules.check_rates()
        for optimizer in self._attached.values():
            optimizer.check_static()
            optimizer.capture(tensors)
        for part, thing in self._with_state_dict():
            add_value(part, flatten(thing.state_dict(), f"object/{part}", tensors), tensors)
        return State(tensors)

    def flags(self) -> dict[str, bool]:
        """What is trained and which modules are in training mode: fixed for a run, because no state holds it."""
        found = {
            f"{part}.{name}.requires_grad": p.requires_grad
            for part, m in self.modules.items()
            for name, p in m.named_parameters()
        }
        found |= {
            f"{part}.{name}.training": inner.training
            for part, m in self.modules.items()
            for name, inner in m.named_modules()
        }
        return found

    def _with_state_dict(self) -> list[tuple[str, Any]]:
        # The order in which they are put back: schedules, gradient scalers, and then averages and whatever else.
        objects = sorted(self._objects.items(), key=lambda pair: not isinstance(pair[1], torch.amp.GradScaler))
        return [*self.schedules.stateful.items(), *objects]

    def _module_tensors(self) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        found: dict[str, torch.Tensor] = {}
        for part, module in self.modules.items():
            named: list[tuple[str, str, torch.Tensor]] = [
                ("parameter", *pair) for pair in module.named_parameters(remove_duplicate=False)
            ]
            buffers = dict(module.named_buffers(remove_duplicate=False))
            persistent = self._persistent_of(part, module, frozenset(buffers))
            for name, buffer in buffers.items():
                named.append(("buffer" if _clean(name) in persistent else "transient", name, buffer))
            for kind, name, tensor in named:
                if self._bases.holds(tensor):
                    continue
                full = f"{part}.{_clean(name)}"
                found[full] = tensor
                if full not in self.aliases:
                    tensors[f"{kind}/{full}"] = tensor
        for alias, owner in self.aliases.items():
            if alias in found and found[alias].data_ptr() != found[owner].data_ptr():
                raise ReplayError(f"{alias} and {owner} were one tensor when they were attached, and are two now")
        return tensors

    def _persistent_of(self, part: str, module: nn.Module, buffers: frozenset[str]) -> set[str]:
        """Names that ``state_dict`` has; asked again only when there are other buffers: a name stays what it was."""
        if part not in self._persistent or self._persistent[part][0] != buffers:
            self._persistent[part] = buffers, {_clean(name) for name in module.state_dict(keep_vars=True)}
        return self._persistent[part][1]

    # -- put back -----------------------------------------------------------------------------------------------

    def restore(self, state: State) -> None:
        """Copy a state into the attached parts.

        Raises:
            IntegrityError: an entry is missing, unknown, or of another dtype or shape.
        """
        remaining = dict(state.tensors)
        with torch.no_grad():
            for key, tensor in self._module_tensors().items():
                saved = remaining.pop(key, None)
                if saved is None or saved.shape != tensor.shape or saved.dtype != tensor.dtype:
                    raise IntegrityError(
                        f"state entry {key}: missing, or of another dtype or shape than the recipe built"
                    )
                _copy(saved, tensor)
        extra.restore(self.extras, remaining)
        for optimizer in self._attached.values():
            optimizer.restore(remaining)
        for part, thing in self._with_state_dict():
            skeleton = pop_value(part, remaining)
            prefix = f"object/{part}"
            mine = {k: remaining.pop(k) for k in list(remaining) if k == prefix or k.startswith(prefix + ".")}
            thing.load_state_dict(unflatten(skeleton, mine))
        if remaining:
            raise IntegrityError(f"state entry {next(iter(remaining))}: the recipe has no such thing")


def _copy(saved: torch.Tensor, tensor: torch.Tensor) -> None:
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0:  # an expanded tensor: all of its elements here are one, which is written once
            saved, tensor = saved.narrow(dim, 0, 1), tensor.narrow(dim, 0, 1)
    tensor.copy_(saved)


MOMENTA = ("momentum", "betas")
"""Hyperparameters that say how much an optimizer keeps of what it has."""


def _several(value: Any) -> Sequence[Any]:
    return () if value is None else value if isinstance(value, tuple | list) else (value,)
