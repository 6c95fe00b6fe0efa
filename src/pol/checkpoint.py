"""A checkpoint file as named tensors that are read a chunk at a time, and the distances between two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pol import distance, values
from pol.container import Placed, header_length, parse_header, resolve
from pol.digest import blake3_bytes, blake3_chunks
from pol.distance import Comparison
from pol.errors import FormatError, IntegrityError, StoreError
from pol.layout import Content, write_checkpoint
from pol.packing import LEAST, Read
from pol.statetree import Entry, StateRoot, state_root
from pol.store import CHECKPOINTS, ProofDirectory, checkpoint_path, checkpoint_step
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
        return values.chunks(reader(self._store, self.name, slot), 0, slot.entry.num_bytes, slot.entry.dtype)


Known = dict[str, dict[str, Placed]]
"""What each checkpoint file that was read holds itself for other ones, by key."""


def read_entries(store: ProofDirectory, name: str, known: Known | None = None) -> list[Placed]:
    """The entries of a checkpoint file, and where each one's content is: perhaps in an earlier one of its folder.

    Args:
        store: Where it is.
        name: Its name there.
        known: Of the files that were read before, where all of a folder are: no header is parsed twice then.

    Raises:
        FormatError: it is not a checkpoint.
    """
    placed, step = read_header(store, name), checkpoint_step(f"{CHECKPOINTS}/{Path(name).name}")
    if step is None:
        if held := [slot.entry.key for slot in placed if slot.held is not None]:
            raise FormatError(f"{name}: {held[0]!r} is said to be in another file")
        return placed
    folder, seen = name.rpartition("/")[0], {} if known is None else known
    seen[name] = _large(placed)

    def slots(at: int) -> dict[str, Placed]:
        other = _beside(folder, at)
        if other not in seen:
            seen[other] = _large(read_header(store, other))
        return seen[other]

    return resolve(placed, step, name, slots, lambda at: _beside(folder, at))


def _large(placed: list[Placed]) -> dict[str, Placed]:
    """What other files may name."""
    return {slot.entry.key: slot for slot in placed if slot.held is None and slot.entry.num_bytes >= LEAST}


def _beside(folder: str, step: int) -> str:
    return f"{folder}/{Path(checkpoint_path(step)).name}" if folder else Path(checkpoint_path(step)).name


def read_header(store: ProofDirectory, name: str) -> list[Placed]:
    """The entries of a checkpoint file as its own header tells.

    Raises:
        FormatError: it is not a checkpoint.
    """
    size = store.size(name)
    length = header_length(store.read_range(name, 0, min(8, size)), size, name)
    return parse_header(store.read_range(name, 8, 8 + length), size, name)


def reader(store: ProofDirectory, name: str, slot: Placed) -> Read:
    """Reads ranges of an entry's content, of the checkpoint file ``name``.

    Raises:
        FormatError: it is not packed as it should be.
    """
    holder = slot.file or name
    return slot.reader(lambda begin, end: store.read_range(holder, begin, end))


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
    read, size = reader(store, name, slot), slot.entry.num_bytes
    if size <= CHUNK:
        return blake3_bytes(read(0, size))
    return blake3_chunks(read(begin, min(begin + CHUNK, size)) for begin in range(0, size, CHUNK))


def gather(store: ProofDirectory, name: str, placed: Sequence[Placed], target: Path) -> None:
    """Write a checkpoint file with the content of another one, in which nothing is held by a third.

    Raises:
        FormatError: content is not packed as it should be.
        StoreError: the disk refused.
    """

    def content(slot: Placed) -> Content:
        return Content(slot.entry, lambda: memoryview(reader(store, name, slot)(0, slot.entry.num_bytes)))

    try:
        with target.open("w+b") as file:
            write_checkpoint(file, [content(slot) for slot in placed])
    except OSError as error:
        raise StoreError(f"{target}: cannot write: {error.strerror}") from None
