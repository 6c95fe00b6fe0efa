"""An attached optimizer: its hyperparameters, its state, and how that is put back.

State is set directly, because ``load_state_dict`` casts it to the parameter's dtype. Static hyperparameters come
from the build and are never restored.
"""

from __future__ import annotations

from typing import Any

import torch

from pol import canonical
from pol.declaration import Group
from pol.errors import IntegrityError, ReplayError, UsageError
from pol.replay.schedules import MOVED, Schedules
from pol.replay.tree import add_value, flatten, pop_value, unflatten


class AttachedOptimizer:
    """One optimizer under its part name; ``names`` gives the name under which a tensor (by id) is stored."""

    def __init__(
        self,
        part: str,
        optimizer: torch.optim.Optimizer,
        names: dict[int, str],
        dynamic: tuple[str, ...],
        schedules: Schedules,
    ) -> None:
        self._part, self._optimizer, self._names = part, optimizer, names
        present = {key for group in optimizer.param_groups for key in group}
        moved = set(MOVED if schedules.moves(optimizer) else ())
        self.dynamic = sorted({*dynamic, *moved} & present)
        """Hyperparameters that may change during the run."""
        restored = {*dynamic, *(moved if schedules.are_state(optimizer) else ())}
        self._restored = sorted(restored & present)  # what no counted schedule gives again: this alone is state
        if any(id(parameter) not in names for group in optimizer.param_groups for parameter in group["params"]):
            raise UsageError(
                f"optimizer {part!r} trains a tensor of no attached module, or of a frozen base: attach the module "
                "that holds it, and give the optimizer nothing that is frozen"
            )
        self.groups = self._describe()
        """The groups as they were built."""

    def _describe(self) -> list[Group]:
        groups = []
        for group in self._optimizer.param_groups:
            values = {k: v for k, v in group.items() if k not in ("params", "param_names", *self.dynamic)}
            parameters = [self._names[id(parameter)] for parameter in group["params"]]
            tagged = {k: _tag(v, f"{self._part}: hyperparameter {k}") for k, v in values.items()}
            groups.append(Group(parameters=parameters, hyperparameters=dict(sorted(tagged.items()))))
        return groups

    def check_static(self) -> None:
        """Compare static hyperparameters with those that were built.

        Raises:
            ReplayError: one has changed.
        """
        found = self._describe()
        if found == self.groups:
            return
        changed = [
            f"{key} from {_plain(old.hyperparameters.get(key))} to {_plain(new.hyperparameters.get(key))}"
            for old, new in zip(self.groups, found, strict=False)
            for key in sorted({*old.hyperparameters, *new.hyperparameters})
            if old.hyperparameters.get(key) != new.hyperparameters.get(key)
        ]
        raise ReplayError(
            f"optimizer {self._part!r}: static hyperparameters changed during the run "
            f"({', '.join(changed) or 'parameters of its groups'}); attach the schedule that changes them, or name "
            "them in attach(dynamic=(...))"
        )

    def capture(self, tensors: dict[str, torch.Tensor]) -> None:
        """Add the state to ``tensors``.

        Raises:
            ReplayError: the optimizer keeps state that is not of one parameter.
        """
        part, values = self._part, []
        kept: dict[Any, Any] = self._optimizer.state  # an optimizer may keep something under a name, too
        for parameter, state in kept.items():
            name = self._names.get(id(parameter))
            if isinstance(parameter, str):
                values.append([None, parameter, flatten(state, f"object/{part}.[{parameter}]", tensors)])
                continue
            if name is None:
                raise ReplayError(
                    f"optimizer {part!r} keeps state under {str(parameter)[:40]!r}, which is none of its parameters: "
                    "this version records state per parameter, or under a name"
                )
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer/{part}.{name}.{key}"] = value
                else:
                    values.append([name, key, flatten(value, f"object/{part}.{name}.{key}", tensors)])
        groups = [
            {k: _tag(group[k], k) for k in self._restored if k in group} for group in self._optimizer.param_groups
        ]
        if values or any(groups):
            add_value(part, {"state": values, "groups": groups}, tensors)

    def restore(self, remaining: dict[str, torch.Tensor]) -> None:
        """Take this optimizer's entries out of ``remaining`` and set its state from them.

        Raises:
            IntegrityError: they are not what this optimizer writes.
        """
        by_name = {self._names[id(p)]: p for group in self._optimizer.param_groups for p in group["params"]}
        self._optimizer.state.clear()
        prefix = f"optimizer/{self._part}."
        for key in [key for key in remaining if key.startswith(prefix)]:
            name, _, slot = key[len(prefix) :].rpartition(".")
            if name not in by_name:
                raise IntegrityError(f"state entry {key}: optimizer {self._part!r} has no parameter {name!r}")
            self._optimizer.state[by_name[name]][slot] = _like(by_name[name], remaining.pop(key))
        if self._restored or f"value/{self._part}" in remaining:
            self._restore_values(by_name, pop_value(self._part, remaining), remaining)

    def _restore_values(self, by_name: dict[str, Any], value: Any, remaining: dict[str, torch.Tensor]) -> None:
        prefix = f"object/{self._part}."
        mine = {k: remaining.pop(k) for k in list(remaining) if k.startswith(prefix)}
        try:
            for name, key, skeleton in value["state"]:
                kept = self._optimizer.state if name is None else self._optimizer.state[by_name[name]]
                kept[key] = unflatten(skeleton, mine)
            for group, saved in zip(self._optimizer.param_groups, value["groups"], strict=True):
                if sorted(saved) != sorted(set(self._restored) & group.keys()):
                    raise IntegrityError(
                        f"optimizer {self._part!r}: the state holds hyperparameters that were declared static"
                    )
                for key in saved:
                    group[key] = _put(group[key], canonical.untag(saved[key], key))
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"state entry value/{self._part}: not what this optimizer writes: {error}") from None


def _tag(value: Any, where: str) -> Any:
    """A hyperparameter as a tagged value: a rate that is held in a tensor is a number like any other.

    Raises:
        FormatError: it is no plain value.
    """
    return canonical.tag(_number(value), where)


def _number(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    return tuple(map(_number, value)) if isinstance(value, tuple) else value


def _put(old: Any, saved: Any) -> Any:
    """A hyperparameter put back: into the tensor that holds it, if one does, because that is another arithmetic."""
    if isinstance(old, torch.Tensor):
        return old.fill_(saved)
    if isinstance(saved, list):
        return tuple(map(_put, old, saved))
    return saved


def _plain(value: Any) -> str:
    return str(next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else value)


def _like(parameter: torch.Tensor, saved: torch.Tensor) -> torch.Tensor:
    """A copy of ``saved`` with the strides that optimizer state for this parameter has."""
    if saved.shape != parameter.shape:
        return saved.clone()
    return torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False).copy_(saved)
