"""What a module keeps outside of its parameters and buffers, and tells by ``get_extra_state``.

An FP8 layer's history of largest values is of this kind. It is recorded as an attached object's state is, and given
back by ``set_extra_state``, after the module's tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from pol.errors import UsageError
from pol.replay.tree import add_value, flatten, pop_value, unflatten

NAME = "_extra_state"
"""What ``state_dict`` calls it."""


def extras(modules: dict[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Modules, at any depth, that have such state, each once, with the name under which it is recorded.

    Raises:
        UsageError: one tells its extra state but does not take it back.
    """
    seen: set[int] = set()
    for part, module in modules.items():
        for name, inner in module.named_modules():
            if id(inner) in seen or not _overrides(inner, "get_extra_state"):
                continue
            seen.add(id(inner))
            full = f"{part}.{name}.{NAME}" if name else f"{part}.{NAME}"
            if not _overrides(inner, "set_extra_state"):
                raise UsageError(
                    f"attach({part}=...): {type(inner).__name__} has get_extra_state and no set_extra_state, so its "
                    "state could not be put back"
                )
            yield full.replace("_orig_mod.", ""), inner


def _overrides(module: nn.Module, method: str) -> bool:
    return getattr(type(module), method, None) is not getattr(nn.Module, method)


def capture(modules: list[tuple[str, nn.Module]], tensors: dict[str, torch.Tensor]) -> None:
    """Add the extra states to ``tensors``.

    Raises:
        FormatError: one holds something that is neither plain nor a tensor.
    """
    for name, module in modules:
        add_value(name, flatten(module.get_extra_state(), f"object/{name}", tensors), tensors)


def restore(modules: list[tuple[str, nn.Module]], remaining: dict[str, torch.Tensor]) -> None:
    """Take the extra states out of ``remaining`` and give them back to the modules.

    Raises:
        IntegrityError: one is missing, or not what ``capture`` writes.
    """
    for name, module in modules:
        skeleton, prefix = pop_value(name, remaining), f"object/{name}"
        mine = {k: remaining.pop(k) for k in list(remaining) if k == prefix or k.startswith(prefix + ".")}
        module.set_extra_state(unflatten(skeleton, mine))


def copies(modules: list[tuple[str, nn.Module]]) -> list[tuple[nn.Module, Any]]:
    """Copies of the extra states, to be given back by ``set_extra_state``."""
    return [(module, copy.deepcopy(module.get_extra_state())) for _, module in modules]
