"""Writes checkpoint files, a block at a time: no content is in memory twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import BinaryIO, NamedTuple

from pol.container import Location, Note, Slot, encode_header
from pol.packing import LEAST, PAYS, filling, pack, table, table_bytes
from pol.statetree import DTYPES, Entry

_PART = 1 << 24
"""Bytes that are written at a time: 16 MiB."""


class Content(NamedTuple):
    """An entry, and how to get its content; ``held`` where an equal one stands already in the proof."""

    entry: Entry
    read: Callable[[], memoryview]
    held: Location | None = None


def write_checkpoint(file: BinaryIO, contents: Sequence[Content]) -> None:
    """Write a checkpoint file into the new, empty ``file``, which can be read and sought in.

    Content of 64 KiB and more is packed where that saves a twentieth. The header comes last and is filled up with
    spaces, because only then is known what packing gave.

    Raises:
        FormatError: packing does not give back what it was given.
    """
    ordered = sorted((one for one in contents if one.held is None), key=_order)
    notes = {one.entry.key: Note(one.entry.dtype, one.entry.shape, one.held) for one in contents if one.held}
    begin = 8 + _reserved(ordered, notes)
    file.seek(begin)
    slots, position = {}, 0
    for entry, read, _ in ordered:
        data = read()
        stored = _packed(file, data, DTYPES[entry.dtype]) if len(data) >= LEAST else None
        if stored is None:
            file.seek(begin + position)
            for start in range(0, len(data), _PART):
                file.write(data[start : start + _PART])
            slots[entry.key] = Slot(entry.dtype, entry.shape, (position, position + len(data)))
        else:
            notes[entry.key] = Note(entry.dtype, entry.shape)
            slots[entry.key] = Slot("U8", [stored], (position, position + stored))
        position = slots[entry.key].data_offsets[1]
    file.truncate(begin + position)
    header = encode_header(slots, dict(sorted(notes.items())))
    file.seek(0)
    file.write((begin - 8).to_bytes(8, "little") + header.ljust(begin - 8))


def _order(one: Content) -> tuple[int, tuple[str, str]]:
    """Large elements first: readers of safetensors want each tensor aligned to its own."""
    return -DTYPES[one.entry.dtype], one.entry.order()


def _packed(file: BinaryIO, data: memoryview, item: int) -> int | None:
    """Write packed content, and say how many bytes it has; None if that does not pay."""
    start, lengths = file.tell(), []
    file.seek(table_bytes(len(data)), 1)
    for block in pack(data, item):
        file.write(block)
        lengths.append(len(block))
    end = file.tell()
    file.write(filling(end - start))
    stored = file.tell() - start
    if stored > PAYS * len(data):
        return None
    file.seek(start)
    file.write(table(lengths))
    file.seek(start + stored)
    return stored


def _reserved(ordered: Sequence[Content], notes: dict[str, Note]) -> int:
    """Bytes that the header needs at most: its length if everything were packed, and nothing got smaller by it."""
    slots, position = {}, 0
    entries = [one.entry for one in ordered]
    for entry in entries:
        shape = max(([entry.num_bytes], entry.shape), key=lambda shape: len(str(shape)))
        slots[entry.key] = Slot(entry.dtype, shape, (position, position + entry.num_bytes))
        position += entry.num_bytes
    large = {entry.key: Note(entry.dtype, entry.shape) for entry in entries if entry.num_bytes >= LEAST}
    length = len(encode_header(slots, {**notes, **large}))
    return length + -length % 8
