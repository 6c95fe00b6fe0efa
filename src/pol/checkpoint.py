"""A checkpoint file as named tensors that are read a chunk at a time, and the distances between two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pol import distance, values
from pol.digest import blake3_bytes, blake3_chunks
from pol.distance import Comparison
from pol.errors import IntegrityError
from pol.proof.container import Placed, header_length, parse_header
from pol.statetree import Entry, StateRoot, state_root
from pol.store import ProofDirectory, checkpoint_path
from pol.values import Values

CHUNK = 1 << 24
"""Bytes of a tensor that are hashed at a time: 16 MiB keeps all cores busy and memory far below one state."""


class Checkpoint:
    """A checkpoint file: its entries, and their values in the file's own element type (bfloat16 as float32)."""

    def __init__(self, store: ProofDirectory, name: str, placed: list[Placed] | None = None) -> None:
        """Open the file ``name``; ``placed`` where its header has been read before.

        Raises:
            FormatError: it is not a checkpoint.
        """
        self._store, self.name = store, name
        found = read_entries(store, name) if placed is None else placed
        self.entries = {slot.entry.key: slot for slot in found}

    @classmethod
    def at(cls, path: Path) -> Checkpoint:
        """The checkpoint file at a path.

        Raises:
            FormatError: it is not a checkpoint.
        """
        return cls(ProofDirectory(path.parent), path.name)

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._store.path / self.name

    def chunks(self, key: str) -> Iterator[Values]:
        """The values of an entry, a chunk at a time."""
        slot = self.entries[key]
        return values.chunks(
            lambda begin, end: self._store.read_range(self.name, begin, end), slot.begin, slot.end, slot.entry.dtype
        )


def read_entries(store: ProofDirectory, name: str) -> list[Placed]:
    """The entries of a checkpoint file, from its header.

    Raises:
        FormatError: it is not a checkpoint.
    """
    size = store.size(name)
    length = header_length(store.read_range(name, 0, min(8, size)), size, name)
    return parse_header(store.read_range(name, 8, 8 + length), size, name)


def compare(a: Checkpoint, b: Checkpoint, wanted: Callable[[Entry], bool] = lambda _: True) -> Comparison:
    """Distances between the ``wanted`` entries of two checkpoints, each and in total.

    Raises:
        IntegrityError: an entry is in one of them only, or of another dtype or shape; or none is wanted.
    """
    chosen = [
        {key: slot.entry for key, slot in checkpoint.entries.items() if wanted(slot.entry)} for checkpoint in (a, b)
    ]
    for key in sorted(chosen[0].keys() | chosen[1].keys()):
        if chosen[0].get(key) != chosen[1].get(key):
            raise IntegrityError(f"{a.name} and {b.name}: {key!r} is not in both with one dtype and shape")
    if not chosen[0]:
        raise IntegrityError(f"{a.name} and {b.name}: there is nothing to compare")
    return distance.compare((key, zip(a.chunks(key), b.chunks(key), strict=True)) for key in sorted(chosen[0]))


def checkpoint_root(store: ProofDirectory, step: int, placed: list[Placed]) -> StateRoot:
    """State roots of a checkpoint file, streamed entry by entry."""
    name = checkpoint_path(step)
    return state_root((slot.entry, content_of(store, name, slot)) for slot in placed)


def content_of(store: ProofDirectory, name: str, slot: Placed) -> bytes:
    """BLAKE3-256 of an entry, in chunks: a file may claim a tensor that is larger than memory."""
    if slot.end - slot.begin <= CHUNK:
        return blake3_bytes(store.read_range(name, slot.begin, slot.end))
    return blake3_chunks(
        store.read_range(name, begin, min(begin + CHUNK, slot.end)) for begin in range(slot.begin, slot.end, CHUNK)
    )
