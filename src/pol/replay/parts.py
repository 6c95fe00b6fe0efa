"""The parts that a program attached: what each holds, how it is taken down, and how it is put back.

Restoring copies into the tensors that the recipe built and sets optimizer state directly, because
``load_state_dict`` casts optimizer state to the parameter's dtype. Hyperparameters are never restored.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pol import canonical
from pol.declaration import Group, Part
from pol.errors import FormatError, IntegrityError, ReplayError, UsageError
from pol.replay.state import State
from pol.replay.tree import flatten, unflatten

SCHEDULED = ("lr", "momentum", "betas")
"""Group entries that torch's schedules write."""


def _clean(name: str) -> str:
    return name.replace("_orig_mod.", "")  # the wrapper of a compiled module


class Parts:
    """The attached parts, sorted by what they are."""

    def __init__(self, parts: dict[str, Any], dynamic: tuple[str, ...]) -> None:
        self.namespace = SimpleNamespace(**parts)
        self.modules = {k: v for k, v in parts.items() if isinstance(v, nn.Module)}
        self.optimizers = {k: v for k, v in parts.items() if isinstance(v, torch.optim.Optimizer)}
        self.schedules = {k: v for k, v in parts.items() if isinstance(v, LRScheduler)}
        self.generators = {k: v for k, v in parts.items() if isinstance(v, torch.Generator)}
        known = {*self.modules, *self.optimizers, *self.schedules, *self.generators}
        self.objects = {k: v for k, v in parts.items() if k not in known}
        self.counts: dict[str, int] = {}
        for name, part in self.objects.items():
            if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
                raise UsageError(
                    f"attach({name}=...): a {type(part).__name__} has no state_dict and load_state_dict, so its state "
                    "cannot be recorded; attach modules, optimizers, schedules, torch.Generators, and objects with both"
                )
        if not self.modules:
            raise UsageError("attach() was given no torch.nn.Module: there is nothing to prove")
        self._dynamic = {name: self._dynamic_names(optimizer, dynamic) for name, optimizer in self.optimizers.items()}
        self._name_parameters()
        self._count_schedules()
        self._groups = {name: self._group_values(name) for name in self.optimizers}

    # -- what the parts are -------------------------------------------------------------------------------------

    def _dynamic_names(self, optimizer: torch.optim.Optimizer, dynamic: tuple[str, ...]) -> list[str]:
        names = set(dynamic)
        if any(schedule.optimizer is optimizer for schedule in self.schedules.values()):
            names.update(SCHEDULED)
        return sorted(names & {key for group in optimizer.param_groups for key in group})

    def _name_parameters(self) -> None:
        self._names: dict[int, str] = {}
        self.aliases: dict[str, str] = {}
        owned: dict[tuple[Any, ...], str] = {}
        for part, module in self.modules.items():
            for name, tensor in (
                *module.named_parameters(remove_duplicate=False),
                *module.named_buffers(remove_duplicate=False),
            ):
                full = f"{part}.{_clean(name)}"
                identity = (
                    (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
                    if tensor.numel()
                    else (id(tensor),)
                )
                first = owned.setdefault(identity, full)
                if first != full:
                    self.aliases[full] = first
                self._names.setdefault(id(tensor), first)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                if any(id(parameter) not in self._names for parameter in group["params"]):
                    raise UsageError(
                        f"optimizer {name!r} trains a tensor of no attached module: attach the module that holds it"
                    )

    def _count_schedules(self) -> None:
        for name, schedule in self.schedules.items():
            if isinstance(schedule, ReduceLROnPlateau):  # called with a metric: its state is part of the state
                continue
            self.counts[name] = 0
            schedule.step = self._counting(name, schedule.step)  # type: ignore[method-assign]

    def _counting(self, name: str, step: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> None:
            if args or kwargs:
                raise ReplayError(
                    f"schedule {name!r}: step() was called with arguments; only step() can be counted and repeated"
                )
            step()
            self.counts[name] += 1

        return counted

    def _group_values(self, name: str) -> list[Group]:
        groups = []
        for group in self.optimizers[name].param_groups:
            values = {k: v for k, v in group.items() if k not in ("params", "param_names", *self._dynamic[name])}
            parameters = [self._names[id(parameter)] for parameter in group["params"]]
            tagged = {k: canonical.tag(v, f"{name}: hyperparameter {k}") for k, v in values.items()}
            groups.append(Group(parameters=parameters, hyperparameters=dict(sorted(tagged.items()))))
        return groups

    def describe(self) -> list[Part]:
        """The parts, for the declaration."""
        kinds: dict[str, Any] = {
            "module": self.modules, "optimizer": self.optimizers, "schedule": self.schedules,
            "object": self.objects, "generator": self.generators,
        }  # fmt: skip
        found = [
            Part(
                name=name,
                kind=kind,  # type: ignore[arg-type]
                type=f"{type(part).__module__}.{type(part).__qualname__}",
                groups=self._groups.get(name, []),
                dynamic=self._dynamic.get(name, []),
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

    # -- take down ----------------------------------------------------------------------------------------------

    def capture(self) -> State:
        """The whole state, sharing memory with the live tensors.

        Raises:
            ReplayError: a hyperparameter that was declared static has changed.
        """
        self._check_static()
        tensors = self._module_tensors()
        for part in self.optimizers:
            self._capture_optimizer(part, tensors)
        for part, thing in (*self.objects.items(), *self._stateful_schedules()):
            state = thing.state_dict()
            self._add_value(part, flatten(state, f"object/{part}", tensors), tensors)
        return State(tensors)

    def _module_tensors(self) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        tensor: torch.Tensor
        for part, module in self.modules.items():
            persistent = {_clean(name) for name in module.state_dict(keep_vars=True)}
            for name, tensor in module.named_parameters(remove_duplicate=False):
                self._add(tensors, "parameter", f"{part}.{_clean(name)}", tensor)
            for name, tensor in module.named_buffers(remove_duplicate=False):
                kind = "buffer" if _clean(name) in persistent else "transient"
                self._add(tensors, kind, f"{part}.{_clean(name)}", tensor)
        return tensors

    def _add(self, tensors: dict[str, torch.Tensor], kind: str, name: str, tensor: torch.Tensor) -> None:
        if name not in self.aliases:
            tensors[f"{kind}/{name}"] = tensor

    def _stateful_schedules(self) -> list[tuple[str, Any]]:
        return [(name, schedule) for name, schedule in self.schedules.items() if name not in self.counts]

    def _capture_optimizer(self, part: str, tensors: dict[str, torch.Tensor]) -> None:
        optimizer = self.optimizers[part]
        values: list[Any] = []
        for parameter, state in optimizer.state.items():
            name = self._names[id(parameter)]
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer/{part}.{name}.{key}"] = value
                else:
                    values.append([name, key, flatten(value, f"object/{part}.{name}.{key}", tensors)])
        groups = [
            {k: canonical.tag(group[k], k) for k in self._restored_rates(part)} for group in optimizer.param_groups
        ]
        if values or any(groups):
            self._add_value(part, {"state": values, "groups": groups}, tensors)

    def _restored_rates(self, part: str) -> list[str]:
        """Dynamic hyperparameters that no counted schedule recomputes: these alone are state."""
        optimizer = self.optimizers[part]
        recomputed = any(self.schedules[name].optimizer is optimizer for name in self.counts)
        return [] if recomputed else self._dynamic[part]

    @staticmethod
    def _add_value(part: str, value: Any, tensors: dict[str, torch.Tensor]) -> None:
        data = bytearray(canonical.encode(value))
        tensors[f"value/{part}"] = torch.frombuffer(data, dtype=torch.uint8)

    def _check_static(self) -> None:
        for name, declared in self._groups.items():
            found = self._group_values(name)
            if found == declared:
                continue
            changed = [
                f"{key} from {old.hyperparameters.get(key)} to {new.hyperparameters.get(key)}"
                for old, new in zip(declared, found, strict=False)
                for key in {*old.hyperparameters, *new.hyperparameters}
                if old.hyperparameters.get(key) != new.hyperparameters.get(key)
            ]
            raise ReplayError(
                f"optimizer {name!r}: static hyperparameters changed during the run "
                f"({', '.join(sorted(changed)) or 'groups'}); "
                "attach the schedule that changes them, or name them in attach(dynamic=(...))"
            )

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
                tensor.copy_(saved)
        for part, optimizer in self.optimizers.items():
            self._restore_optimizer(part, optimizer, remaining)
        for part, thing in (*self.objects.items(), *self._stateful_schedules()):
            skeleton = self._pop_value(part, remaining)
            prefix = f"object/{part}"
            mine = {k: remaining.pop(k) for k in list(remaining) if k == prefix or k.startswith(prefix + ".")}
            thing.load_state_dict(unflatten(skeleton, mine))
        if remaining:
            raise IntegrityError(f"state entry {next(iter(remaining))}: the recipe has no such thing")

    def _restore_optimizer(
        self, part: str, optimizer: torch.optim.Optimizer, remaining: dict[str, torch.Tensor]
    ) -> None:
        by_name = {self._names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
        optimizer.state.clear()
        prefix = f"optimizer/{part}."
        for key in [key for key in remaining if key.startswith(prefix)]:
            name, _, slot = key[len(prefix) :].rpartition(".")
            if name not in by_name:
                raise IntegrityError(f"state entry {key}: optimizer {part!r} has no parameter {name!r}")
            optimizer.state[by_name[name]][slot] = _like(by_name[name], remaining.pop(key))
        if f"value/{part}" in remaining:
            value = self._pop_value(part, remaining)
            self._restore_values(part, optimizer, by_name, value, remaining)

    def _restore_values(
        self, part: str, optimizer: torch.optim.Optimizer, by_name: Any, value: Any, remaining: Any
    ) -> None:
        prefix = f"object/{part}."
        mine = {k: remaining.pop(k) for k in list(remaining) if k.startswith(prefix)}
        try:
            for name, key, skeleton in value["state"]:
                optimizer.state[by_name[name]][key] = unflatten(skeleton, mine)
            names = self._restored_rates(part)
            for group, saved in zip(optimizer.param_groups, value["groups"], strict=True):
                if sorted(saved) != names:
                    raise IntegrityError(
                        f"optimizer {part!r}: the state holds hyperparameters that were declared static"
                    )
                for key in names:
                    restored = canonical.untag(saved[key], key)
                    group[key] = tuple(restored) if isinstance(restored, list) else restored
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"state entry value/{part}: not what this optimizer writes: {error}") from None

    @staticmethod
    def _pop_value(part: str, remaining: dict[str, torch.Tensor]) -> Any:
        data = remaining.pop(f"value/{part}", None)
        if data is None or data.dtype is not torch.uint8:
            raise IntegrityError(f"state entry value/{part} is missing")
        try:
            return canonical.decode(bytes(data.numpy()), object, what=f"state entry value/{part}", limit=MAX_VALUE)
        except FormatError as error:
            raise IntegrityError(str(error)) from None

    def replay_schedules(self, counts: dict[str, int]) -> None:
        """Step each counted schedule from 0 as often as the record says; it is never loaded."""
        if counts.keys() != self.counts.keys():
            raise IntegrityError(f"schedules {sorted(counts)} in the record, {sorted(self.counts)} in the program")
        for name in sorted(counts):
            for _ in range(counts[name] - self.counts[name]):
                self.schedules[name].step()


MAX_VALUE = 64 * 2**20
"""Largest canonical-JSON entry of a state: 64 MiB, room for 10^5 parameters with some scalars each."""


def _like(parameter: torch.Tensor, saved: torch.Tensor) -> torch.Tensor:
    """A copy of ``saved`` with the strides that optimizer state for this parameter has."""
    if saved.shape != parameter.shape:
        return saved.clone()
    return torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False).copy_(saved)
