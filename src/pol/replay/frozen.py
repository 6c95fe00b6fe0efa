"""Bases that a training uses and never changes: left out of every state, hashed once, bound by their root."""

from __future__ import annotations

from collections.abc import Mapping
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
        self._given = _named(given)
        self._tensors = {
            f"{name}.{key}": tensor for name, base in self._given.items() for key, tensor in _all_tensors(base).items()
        }
        bound = [tensor for base in self._given.values() for tensor in _bound(base).values() if tensor.numel()]
        self._places = {_place(tensor) for tensor in bound}
        self._memory = {_memory(tensor) for tensor in bound}
        for key, tensor in self._tensors.items():
            if tensor.requires_grad:
                raise UsageError(
                    f"frozen tensor {key} still asks for gradients: call requires_grad_(False) on the base. If "
                    "adapters are inside of it, give what is frozen alone: frozen=model.state_dict(), taken before "
                    "they were put in"
                )
        self.declared = [Frozen(name=name, root=_root(base)) for name, base in sorted(self._given.items())]
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
            if _root(self._given[known.name]) != known.root:
                raise ReplayError(f"frozen base {known.name!r} is not what it was when it was attached")

    def _versions_now(self) -> dict[str, int]:
        return {key: tensor._version for key, tensor in self._tensors.items()}


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _named(given: Any) -> dict[str, nn.Module | dict[str, torch.Tensor]]:
    """The bases by name: of one module or ``state_dict``, or of several in a dict."""
    if given is None:
        return {}
    if isinstance(given, nn.Module) or (
        isinstance(given, Mapping) and given and all(isinstance(value, torch.Tensor) for value in given.values())
    ):
        given = {"base": given}
    found = {}
    for name, base in dict(given).items():
        if isinstance(base, Mapping) and all(isinstance(value, torch.Tensor) for value in base.values()):
            base = dict(base)
        elif not isinstance(base, nn.Module):
            raise UsageError(
                f"attach(frozen=...): {name} is a {type(base).__name__}, neither a torch.nn.Module nor a state_dict"
            )
        found[name] = base
    return found


def _all_tensors(base: nn.Module | dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if isinstance(base, nn.Module):
        return dict([*base.named_parameters(), *base.named_buffers()])
    return base


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _bound(base: nn.Module | dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors that the root of a base binds: its ``state_dict``, which must be what the module works with."""
    found: dict[str, Any] = base.state_dict() if isinstance(base, nn.Module) else base
    if odd := [name for name, value in found.items() if not isinstance(value, torch.Tensor)]:
        raise UsageError(f"the state_dict of a frozen base holds {odd[0]}, which is no tensor: this version takes none")
    if isinstance(base, nn.Module):
        own: dict[str, torch.Tensor] = dict(base.named_parameters(remove_duplicate=False))
        own |= {name: tensor for name, tensor in base.named_buffers(remove_duplicate=False) if name in found}
        for name in sorted({*own, *found}):
            if name not in own or name not in found or _place(own[name]) != _place(found[name]):
                raise UsageError(f"the state_dict of a frozen base does not tell of {name} as the module has it")
    return found


def _root(base: nn.Module | dict[str, torch.Tensor]) -> Root:
    found = _bound(base)
    return base_root((name, dtype_name(t, name), list(t.shape), content_digest(t)) for name, t in found.items())
