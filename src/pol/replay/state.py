"""A state as tensors: its entries, its root, its file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pol.errors import IntegrityError, ReplayError
from pol.replay.tensors import content_digest, describe
from pol.statetree import Entry, StateRoot, state_root


class State:
    """Everything that evolves, by entry key (``kind/name``); the tensors may be the live ones."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def entries(self) -> Iterator[tuple[Entry, torch.Tensor]]:
        """Entries in the order of the state tree."""
        described = []
        for key, tensor in self.tensors.items():
            kind, _, name = key.partition("/")
            described.append((describe(kind, name, tensor), tensor))
        return iter(sorted(described, key=lambda pair: pair[0].order()))

    def digests(self) -> list[tuple[Entry, bytes]]:
        """Entries with the BLAKE3-256 of their content."""
        return [(entry, content_digest(tensor)) for entry, tensor in self.entries()]

    def root(self) -> StateRoot:
        """Roots of the state tree."""
        return state_root(self.digests())

    def check_finite(self, when: str) -> None:
        """Refuse what a proof never holds: NaN anywhere, infinities in trained tensors and optimizer moments.

        Raises:
            ReplayError: with the entry's name.
        """
        for key, tensor in self.tensors.items():
            # One sum is far cheaper than a map over all elements, and not finite whenever an element is not.
            if not tensor.is_floating_point() or math.isfinite(tensor.detach().sum()):
                continue
            kind, _, name = key.partition("/")
            if not _acceptable(kind, tensor):
                raise ReplayError(
                    f"{when}: {kind} {name} has become {'NaN' if tensor.isnan().any() else 'infinite'}; "
                    "the training diverged, and a proof never holds such values"
                )

    def save(self, path: Path) -> None:
        """Write a checkpoint file (safetensors)."""
        storages: set[int] = set()
        apart: dict[str, torch.Tensor] = {}
        for key, tensor in self.tensors.items():
            tensor = tensor.detach().contiguous()
            storage = tensor.untyped_storage().data_ptr()
            apart[key] = tensor.clone() if storage in storages else tensor  # the writer refuses views of one memory
            storages.add(storage)
        save_file(apart, path)
        path.chmod(0o644)  # the library writes 0600; a proof is for others to read

    @classmethod
    def load(cls, path: Path) -> State:
        """Read a checkpoint file.

        Raises:
            IntegrityError: it is not one.
        """
        try:
            return cls(load_file(path))
        except (SafetensorError, ValueError, KeyError) as error:
            raise IntegrityError(f"{path.name}: not a checkpoint file: {error}") from None


def _acceptable(kind: str, tensor: torch.Tensor) -> bool:
    if tensor.isnan().any():
        return False
    return kind in ("buffer", "transient", "object") or bool(torch.isfinite(tensor).all())
