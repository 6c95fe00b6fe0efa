"""Checkpoint files (safetensors), read strictly and without torch."""

from __future__ import annotations

from typing import Annotated

import msgspec

from pol.errors import FormatError, Incomplete
from pol.statetree import DTYPES, MAX_ENTRIES, Entry

MAX_HEADER = 100_000_000
"""Largest header: the limit of the safetensors format itself (100 MB)."""


class _Slot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: list[Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]]
    data_offsets: tuple[
        Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)], Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    ]


class Placed(msgspec.Struct, frozen=True):
    """A state entry and where its bytes lie in the file."""

    entry: Entry
    begin: int
    end: int


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

    ``header_size`` is that of the header in the file, where ``header`` is not the same bytes.

    Raises:
        FormatError: names the file and the entry; ``Incomplete`` where nothing is wrong but that bytes are missing.
    """
    try:
        slots = msgspec.json.decode(header.rstrip(b" "), type=dict[str, _Slot], strict=True)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise FormatError(f"{what}: header: {error}") from None
    if header_size is None and msgspec.json.encode(slots) != header.rstrip(b" "):
        raise FormatError(f"{what}: header: duplicate keys, spaces or another order of fields than safetensors writes")
    if not 1 <= len(slots) <= MAX_ENTRIES:
        raise FormatError(f"{what}: {len(slots)} entries (1 to {MAX_ENTRIES} are allowed)")
    base = 8 + (len(header) if header_size is None else header_size)
    placed = []
    for key, slot in slots.items():
        kind, _, name = key.partition("/")
        if slot.dtype not in DTYPES:
            raise FormatError(f"{what}: {key[:80]!r} has dtype {slot.dtype[:20]!r}, which format v1 does not have")
        try:
            entry = msgspec.convert(
                {"kind": kind, "name": name, "dtype": slot.dtype, "shape": slot.shape}, type=Entry, strict=True
            )
        except (msgspec.ValidationError, ValueError) as error:
            raise FormatError(f"{what}: {key[:80]!r}: {error}") from None
        placed.append(Placed(entry, base + slot.data_offsets[0], base + slot.data_offsets[1]))
    placed.sort(key=lambda slot: (slot.begin, slot.end))
    position = base
    for slot_ in placed:
        if slot_.begin != position or slot_.end - slot_.begin != slot_.entry.num_bytes:
            raise FormatError(f"{what}: {slot_.entry.key!r} does not lie where its shape says")
        position = slot_.end
    if position != file_size:
        difference = file_size - position
        if difference < 0:
            raise Incomplete(f"{what}: {-difference} bytes are missing")
        raise FormatError(f"{what}: {difference} bytes belong to no entry")
    return placed
