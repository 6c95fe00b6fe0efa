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
    model (adapters inside of it).
    """

    def __init__(self, given: Any) -> None:
        self._given = _named(given)
        self._tensors = {
            f"{name}.{key}": tensor for name, base in self._given.items() for key, tensor in _all_tensors(base).items()
        }
        self._memory = {_memory(tensor) for tensor in self._tensors.values()}
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
        """Whether a tensor of another module is one of a base."""
        return tensor.numel() > 0 and _memory(tensor) in self._memory

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


def _root(base: nn.Module | dict[str, torch.Tensor]) -> Root:
    found = base.state_dict() if isinstance(base, nn.Module) else base
    if odd := [name for name, value in found.items() if not isinstance(value, torch.Tensor)]:
        raise UsageError(f"the state_dict of a frozen base holds {odd[0]}, which is no tensor: this version takes none")
    return base_root((name, dtype_name(t, name), list(t.shape), content_digest(t)) for name, t in found.items())
