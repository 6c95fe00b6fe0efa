"""A state as tensors: its entries, its root, its file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pol.container import Location, Placed, header_length, parse_header, read_whole, resolve
from pol.errors import FormatError, IntegrityError, ReplayError
from pol.layout import Content, write_checkpoint
from pol.replay.tensors import TYPES, content, content_digest, describe, device_digests, device_finite, is_finite
from pol.statetree import Entry, StateRoot, state_root

_PART = 1 << 24
"""Bytes that are read at a time: 16 MiB, whole blocks of packed content."""


class State:
    """Everything that evolves, by entry key (``kind/name``); the tensors may be the live ones."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.contents: list[tuple[Entry, bytes]] = []
        """Entries with their digests, of a state that was hashed when it was taken. Its tensors may have moved on."""

    def entries(self) -> Iterator[tuple[Entry, torch.Tensor]]:
        """Entries in the order of the state tree."""
        described = []
        for key, tensor in self.tensors.items():
            kind, _, name = key.partition("/")
            described.append((describe(kind, name, tensor), tensor))
        return iter(sorted(described, key=lambda pair: pair[0].order()))

    def digests(self) -> list[tuple[Entry, bytes]]:
        """Entries with the BLAKE3-256 of their content."""
        known = device_digests(self.tensors)
        return [(entry, known.get(entry.key) or content_digest(tensor)) for entry, tensor in self.entries()]

    def root(self) -> StateRoot:
        """Roots of the state tree."""
        return state_root(self.digests())

    def check_finite(self, when: str, settled: Collection[str] = ()) -> None:
        """Refuse what a proof never holds: NaN anywhere, infinities in trained tensors and optimizer moments.

        ``settled`` entries were looked at before.

        Raises:
            ReplayError: with the entry's name.
        """
        looked_at = {*settled, *device_finite({key: t for key, t in self.tensors.items() if key not in settled})}
        for key, tensor in self.tensors.items():
            if key in looked_at or not tensor.is_floating_point() or is_finite(tensor):
                continue
            kind, _, name = key.partition("/")
            if not _acceptable(kind, tensor):
                raise ReplayError(
                    f"{when}: {kind} {name} has become {'NaN' if tensor.isnan().any() else 'infinite'}; "
                    "the training diverged, and a proof never holds such values"
                )

    def save(self, path: Path, held: Mapping[str, Location] | None = None) -> None:
        """Write a checkpoint file; entries that are ``held`` in another one are only named."""
        held = held or {}
        contents = [Content(entry, partial(content, tensor), held.get(entry.key)) for entry, tensor in self.entries()]
        with path.open("w+b") as file:
            write_checkpoint(file, contents)

    @classmethod
    def load(cls, path: Path) -> State:
        """Read a checkpoint file, and what earlier ones of its folder hold for it.

        Raises:
            IntegrityError: it is not one.
        """
        with contextlib.ExitStack() as stack:
            files = _Files(path.parent, stack)
            try:
                step = int(path.stem) if path.stem.isdecimal() else -1  # of another name: it holds everything itself
                placed = resolve(files.entries(path.name), step, path.name, lambda at: files.entries(_of(at)), _of)
                return cls({slot.entry.key: files.tensor(slot, path.name) for slot in placed})
            except FormatError as error:
                raise IntegrityError(f"{path.name}: not a checkpoint file: {error}") from None


class _Files:
    """Checkpoint files of a folder, open for reading."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._open: dict[str, int] = {}

    def entries(self, name: str) -> list[Placed]:
        """What a file itself says of its entries."""
        file = self._file(name)
        size = os.fstat(file).st_size
        length = header_length(os.pread(file, 8, 0), size, name)
        return parse_header(os.pread(file, length, 8), size, name)

    def tensor(self, slot: Placed, name: str) -> torch.Tensor:
        """The content of an entry of the file ``name``, in memory of its own."""
        file = self._file(slot.file or name)
        size = slot.entry.num_bytes
        memory = torch.empty(size, dtype=torch.uint8)
        array, read = memory.numpy(), slot.reader(partial(read_whole, file, name=slot.file or name))
        for begin in range(0, size, _PART):
            end = min(begin + _PART, size)
            array[begin:end] = np.frombuffer(read(begin, end), dtype=np.uint8)
        return memory.view(TYPES[slot.entry.dtype]).reshape(slot.entry.shape)

    def _file(self, name: str) -> int:
        if name not in self._open:
            try:
                self._open[name] = os.open(self._folder / name, os.O_RDONLY)
            except OSError as error:
                raise FormatError(f"{name}: {error.strerror}") from None
            self._stack.callback(os.close, self._open[name])
        return self._open[name]


def _of(step: int) -> str:
    return f"{step:012d}.safetensors"


def _acceptable(kind: str, tensor: torch.Tensor) -> bool:
    if tensor.isnan().any():
        return False
    return kind in ("buffer", "transient", "object") or bool(torch.isfinite(tensor).all())
