"""Bases that a training uses and never changes: left out of every state, hashed once, bound by their root."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pol.declaration import Frozen
from pol.errors import ReplayError, UsageError
from pol.merkle import Root
from pol.replay.tensors import content_digest, dtype_name
from pol.statetree import base_root


class Bases:
    """The frozen modules of a program, by name.

    Their tensors are known by the memory that they occupy, so a base may at the same time be a part of an attached
    model (adapters inside of it). Only what the root binds is left out of states: a buffer that ``state_dict`` leaves
    out stays in that of the attached model.
    """

    def __init__(self, given: Any) -> None:
        modules = {"base": given} if isinstance(given, nn.Module) else dict(given or {})
        for name, module in modules.items():
            if not isinstance(module, nn.Module):
                raise UsageError(f"attach(frozen=...): {name} is a {type(module).__name__}, not a torch.nn.Module")
        self._modules: dict[str, nn.Module] = modules
        self._tensors = {
            f"{name}.{key}": tensor
            for name, module in modules.items()
            for key, tensor in [*module.named_parameters(), *module.named_buffers()]
        }
        bound = [tensor for module in modules.values() for tensor in _bound(module).values() if tensor.numel()]
        self._places = {_place(tensor) for tensor in bound}
        self._memory = {_memory(tensor) for tensor in bound}
        for key, tensor in self._tensors.items():
            if tensor.requires_grad:
                raise UsageError(
                    f"frozen tensor {key} still asks for gradients: call requires_grad_(False) on the base"
                )
        self.declared = [Frozen(name=name, root=_root(module)) for name, module in sorted(modules.items())]
        """Each with its root, as it was attached."""
        self._versions = self._versions_now()

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor of another module is one of a base.

        Raises:
            UsageError: it is none, but lies in the memory of one, so that a state with it would hold the base.
        """
        if not tensor.numel() or _memory(tensor) not in self._memory:
            return False
        if _place(tensor) not in self._places:
            raise UsageError(
                "a tensor of an attached module shares its memory with a frozen base, and is no tensor of it: copy it "
                "(clone()), so that it is part of the state"
            )
        return True

    def restored(self) -> None:
        """A state was put back, with the buffers of a base that no root binds: writes count from here."""
        self._versions = self._versions_now()

    def glance(self) -> None:
        """See, at no cost, that nothing was written into a base: torch counts writes in place.

        Raises:
            ReplayError: names the tensor.
        """
        now = self._versions_now()
        if now != self._versions:
            key = next(key for key in now if now[key] != self._versions[key])
            raise ReplayError(
                f"frozen tensor {key} was changed: a base must stay as it was attached (its normalisation layers in "
                "eval(), its parameters in no optimizer); what is trained is attached as a part"
            )

    def check(self) -> None:
        """Hash again: some ways of writing are not counted.

        Raises:
            ReplayError: names the base.
        """
        for known in self.declared:
            if _root(self._modules[known.name]) != known.root:
                raise ReplayError(f"frozen base {known.name!r} is not what it was when it was attached")

    def _versions_now(self) -> dict[str, int]:
        return {key: tensor._version for key, tensor in self._tensors.items()}


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _bound(module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that the root of a base binds: its ``state_dict``, which must be what the module works with."""
    found: dict[str, Any] = module.state_dict()
    if odd := [name for name, value in found.items() if not isinstance(value, torch.Tensor)]:
        raise UsageError(f"the state_dict of a frozen base holds {odd[0]}, which is no tensor: this version takes none")
    own: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    own |= {name: tensor for name, tensor in module.named_buffers(remove_duplicate=False) if name in found}
    for name in sorted({*own, *found}):
        if name not in own or name not in found or _place(own[name]) != _place(found[name]):
            raise UsageError(f"the state_dict of a frozen base does not tell of {name} as the module has it")
    return found


def _root(module: nn.Module) -> Root:
    found = _bound(module)
    return base_root((name, dtype_name(t, name), list(t.shape), content_digest(t)) for name, t in found.items())
