"""Checkpoint files (safetensors), read strictly and without torch.

An entry's content is in the file as it is, or packed, or it is that of an entry of this file or of an earlier one of
the same proof. Which of these stands in the file's ``__metadata__``; what is as it is needs no note.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from pol.errors import FormatError, Incomplete
from pol.packing import LEAST, Packed, Read, table_bytes
from pol.statetree import DTYPES, MAX_ENTRIES, Entry

MAX_HEADER = 100_000_000
"""Largest header: the limit of the safetensors format itself (100 MB)."""

METADATA = "__metadata__"
NOTES = "pol"
"""The one key of a checkpoint file's metadata."""

_Size = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
_Offset = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Slot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor of a safetensors file."""

    dtype: str
    shape: list[_Size]
    data_offsets: tuple[_Offset, _Offset]


class Location(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An entry that has the same content."""

    step: _Size
    """Of the kept state in whose file it is."""
    key: str


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an entry is whose content is packed, or in another place."""

    dtype: str
    shape: list[_Size]
    held: Location | None = None
    """None: it is packed, in the U8 tensor of the entry's key."""


class Placed(msgspec.Struct, frozen=True):
    """A state entry and where its content lies in the file: bytes ``[begin, end)``."""

    entry: Entry
    begin: int
    end: int
    packed: bool = False
    held: Location | None = None
    """Of what the file does not hold itself; ``resolve`` finds it."""
    file: str | None = None
    """The file that holds it, if it is another one."""

    def reader(self, read: Read) -> Read:
        """Reads ranges of the content, by way of ``read``, which reads ranges of the file.

        Raises:
            FormatError: it is not packed as it should be.
        """

        def stored(begin: int, end: int) -> bytes:
            return read(self.begin + begin, self.begin + end)

        if not self.packed:
            return stored
        item, size = DTYPES[self.entry.dtype], self.entry.num_bytes
        return Packed(stored, self.end - self.begin, size, item, self.entry.key).read


Slots = Callable[[int], Iterable[Placed] | Mapping[str, Placed]]


def read_whole(file: int, begin: int, end: int, name: str) -> bytes:
    """Bytes ``[begin, end)`` of an open file, by its descriptor.

    Raises:
        FormatError: there are no such bytes.
    """
    data = os.pread(file, max(0, end - begin), begin)
    while len(data) < end - begin:  # one call gives 2 GiB at most
        more = os.pread(file, end - begin - len(data), begin + len(data))
        if not more:
            raise FormatError(f"{name}: shorter than {end} bytes")
        data += more
    if end < begin:
        raise FormatError(f"{name}: bytes from {begin} to {end}")
    return data


def header_length(prefix: bytes, file_size: int, what: str) -> int:
    """Length of the JSON header, from the first 8 bytes.

    Raises:
        FormatError: the file is too short (``Incomplete``), or the header larger than the limit.
    """
    length = int.from_bytes(prefix[:8], "little")
    if len(prefix) < 8 or length > min(MAX_HEADER, file_size - 8):
        kind = Incomplete if len(prefix) < 8 or length <= MAX_HEADER else FormatError
        raise kind(f"{what}: a header of {length} bytes does not fit ({file_size} bytes, limit {MAX_HEADER})")
    return length


def parse_header(header: bytes, file_size: int, what: str, *, header_size: int | None = None) -> list[Placed]:
    """The entries of a checkpoint file, in file order; their bytes follow one another and fill the file.

    What is held in another place comes last, with ``held``.

    ``header_size`` is that of the header in the file, where ``header`` is not the same bytes.

    Raises:
        FormatError: names the file and the entry; ``Incomplete`` where nothing is wrong but that bytes are missing.
    """
    slots, notes = _decode(header, what, canonical=header_size is None)
    elsewhere = {key: note for key, note in notes.items() if note.held is not None}
    if not 1 <= len(slots) + len(elsewhere) <= MAX_ENTRIES:
        raise FormatError(f"{what}: {len(slots) + len(elsewhere)} entries (1 to {MAX_ENTRIES} are allowed)")
    base = 8 + (len(header) if header_size is None else header_size)
    if unknown := sorted(notes.keys() - slots.keys() - elsewhere.keys()):
        raise FormatError(f"{what}: {unknown[0][:80]!r} is said to be packed, and is not there")
    if twice := sorted(slots.keys() & elsewhere.keys()):
        raise FormatError(f"{what}: {twice[0][:80]!r} is in this file, and is said to be elsewhere")
    placed = [_placed(key, slot, notes.get(key), base, what) for key, slot in slots.items()]
    placed.sort(key=lambda slot: (slot.begin, slot.end))
    position = base
    for slot_ in placed:
        if slot_.begin != position:
            raise FormatError(f"{what}: {slot_.entry.key!r} does not lie where its shape says")
        position = slot_.end
    if position != file_size:
        difference = file_size - position
        if difference < 0:
            raise Incomplete(f"{what}: {-difference} bytes are missing")
        raise FormatError(f"{what}: {difference} bytes belong to no entry")
    held = [Placed(_large(key, note, what), 0, 0, held=note.held) for key, note in elsewhere.items()]
    return [*placed, *held]


def _decode(header: bytes, what: str, *, canonical: bool) -> tuple[dict[str, Slot], dict[str, Note]]:
    """Slots and notes of a header.

    Raises:
        FormatError: it is none, or not as this package writes it.
    """
    try:
        found = msgspec.json.decode(header.rstrip(b" "), type=dict[str, msgspec.Raw], strict=True)
        metadata = msgspec.json.decode(found.pop(METADATA, b"{}"), type=dict[str, str], strict=True)
        slots = {key: msgspec.json.decode(slot, type=Slot, strict=True) for key, slot in found.items()}
        notes = msgspec.json.decode(metadata.get(NOTES, "{}"), type=dict[str, Note], strict=True)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise FormatError(f"{what}: header: {error}") from None
    if canonical and encode_header(slots, notes) != header.rstrip(b" "):
        raise FormatError(f"{what}: header: duplicate keys, spaces or another order of fields than safetensors writes")
    return slots, notes


def encode_header(slots: dict[str, Slot], notes: dict[str, Note]) -> bytes:
    """The header of a checkpoint file, without what fills it up."""
    metadata = {METADATA: {NOTES: msgspec.json.encode(notes).decode()}} if notes else {}
    return msgspec.json.encode({**metadata, **slots})


def _placed(key: str, slot: Slot, note: Note | None, base: int, what: str) -> Placed:
    begin, end = base + slot.data_offsets[0], base + slot.data_offsets[1]
    if note is None:
        entry = _entry(key, slot, what)
        if end - begin != entry.num_bytes:
            raise FormatError(f"{what}: {entry.key!r} does not lie where its shape says")
        return Placed(entry, begin, end)
    entry = _large(key, note, what)
    if slot.dtype != "U8" or slot.shape != [end - begin]:
        raise FormatError(f"{what}: {entry.key!r} is packed, so it is a U8 tensor of as many elements as bytes")
    if not table_bytes(entry.num_bytes) < end - begin < entry.num_bytes:
        raise FormatError(f"{what}: {entry.key!r} is packed into {end - begin} bytes, it has {entry.num_bytes}")
    return Placed(entry, begin, end, packed=True)


def _large(key: str, note: Note, what: str) -> Entry:
    """The entry of a note.

    Raises:
        FormatError: so small a one is always as it is.
    """
    entry = _entry(key, note, what)
    if entry.num_bytes < LEAST:
        raise FormatError(f"{what}: {entry.key!r} is smaller than {LEAST} bytes, so it is in its file as it is")
    return entry


def _entry(key: str, described: Slot | Note, what: str) -> Entry:
    kind, _, name = key.partition("/")
    if described.dtype not in DTYPES:
        raise FormatError(f"{what}: {key[:80]!r} has dtype {described.dtype[:20]!r}, which format v1 does not have")
    plain: dict[str, Any] = {"kind": kind, "name": name, "dtype": described.dtype, "shape": described.shape}
    try:
        return msgspec.convert(plain, type=Entry, strict=True)
    except (msgspec.ValidationError, ValueError) as error:
        raise FormatError(f"{what}: {key[:80]!r}: {error}") from None


def resolve(placed: Sequence[Placed], step: int, what: str, slots: Slots, name: Callable[[int], str]) -> list[Placed]:
    """The entries of the state after ``step`` steps, each with the place of its content.

    Args:
        placed: Of its own file.
        step: Its own.
        what: Its file, for messages.
        slots: The entries of an earlier checkpoint file, perhaps by key.
        name: The name of a checkpoint file.

    Raises:
        FormatError: an entry is said to be where it is not.
    """
    return list(_resolved(placed, step, what, slots, name))


def _resolved(
    placed: Sequence[Placed], step: int, what: str, slots: Slots, name: Callable[[int], str]
) -> Iterator[Placed]:
    known: dict[int, Mapping[str, Placed]] = {}
    for slot in placed:
        if slot.held is None:
            yield slot
            continue
        at = slot.held.step
        if at > step:
            raise FormatError(f"{what}: {slot.entry.key!r} is said to be in a later file")
        if at not in known:
            there_all = placed if at == step else slots(at)
            known[at] = there_all if isinstance(there_all, Mapping) else {one.entry.key: one for one in there_all}
        there = known[at].get(slot.held.key)
        if there is None or there.held is not None or _of(there) != _of(slot):
            raise FormatError(f"{what}: {slot.entry.key!r} is not in the file that is said to hold it")
        yield Placed(slot.entry, there.begin, there.end, there.packed, file=None if at == step else name(at))


def _of(slot: Placed) -> tuple[str, list[int]]:
    return slot.entry.dtype, slot.entry.shape
