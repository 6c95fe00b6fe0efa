"""Tensor content packed without loss: bytes sorted by their place in the element, and compressed.

Trained floating point numbers are noise but for their exponents. Sorted apart, the exponents shrink to a third; what
is noise is stored as it is. Content is packed in blocks, so a part of it can be read alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import zstandard

from pol.errors import FormatError

BLOCK = 1 << 20
"""Bytes of content that are packed together: 1 MiB, so that the 256 KiB of one byte of a float32 fill whole blocks of
zstd (128 KiB), which then hold one kind of bytes each. Fixed by the format."""

LEAST = 1 << 16
"""Bytes from which content is packed: below 64 KiB there is nothing to save that a file system would notice."""

PAYS = 0.95
"""Share of the bytes that packing must get below: unpacking costs more time than reading the rest would."""

_ALIGNED = 8
"""Packed content is filled up to a multiple of 8 bytes, so that what follows it is aligned."""

_LENGTH = 4

_PARAMETERS = zstandard.ZstdCompressionParameters.from_level(1, min_match=7, hash_log=6, write_content_size=True)
"""Exponents do not repeat in sequences, they are of few values: so as little as possible is spent on finding matches.
On a transformer's AdamW state that leaves 84 % of the bytes (`python -m benchmarks --only text`, k = 100, K = 1)."""

Read = Callable[[int, int], bytes]
"""Reads bytes ``[begin, end)`` of something."""


def pack(content: memoryview, item: int) -> Iterator[bytes]:
    """Blocks of content, packed; one that would not get smaller stays as it is. ``item``: bytes of an element."""
    compressor = zstandard.ZstdCompressor(compression_params=_PARAMETERS)
    for begin in range(0, len(content), BLOCK):
        block = bytes(content[begin : begin + BLOCK])
        packed = compressor.compress(_apart(block, item))
        if len(packed) < len(block) and unpack_block(packed, len(block), item) != block:
            raise FormatError("packing lost something: this machine's memory or zstd is broken")
        yield packed if len(packed) < len(block) else block


def table(blocks: list[int]) -> bytes:
    """What stands before the blocks: the length of each, u32 little-endian."""
    return np.array(blocks, dtype="<u4").tobytes()


def table_bytes(size: int) -> int:
    """Bytes of the table of content of ``size`` bytes."""
    return _LENGTH * -(-size // BLOCK)


def filling(size: int) -> bytes:
    """Zeros after ``size`` bytes of table and blocks."""
    return bytes(-size % _ALIGNED)


class Packed:
    """Packed content whose parts can be read alone."""

    def __init__(self, read: Read, stored: int, size: int, item: int, what: str) -> None:
        """Content of ``size`` bytes in elements of ``item``, packed into ``stored`` bytes that ``read`` reads.

        Raises:
            FormatError: the table of lengths does not describe such content.
        """
        self._read, self._size, self._item, self._what = read, size, item, what
        begin = table_bytes(size)
        if begin > stored:
            raise FormatError(f"{what}: packed into {stored} bytes, fewer than its table of lengths has")
        lengths = np.frombuffer(read(0, begin), dtype="<u4").tolist()
        ends = list(itertools.accumulate(lengths, initial=begin))
        if (
            ends[-1] > stored  # blocks of another entry
            or filling(ends[-1]) != read(ends[-1], stored)
            or min(lengths, default=0) < 1
        ):
            raise FormatError(f"{what}: its packed blocks do not fill {stored} bytes")
        self._ends = ends

    def read(self, begin: int, end: int) -> bytes:
        """Bytes ``[begin, end)`` of the content.

        Raises:
            FormatError: a block is not what packing gives.
        """
        first = begin // BLOCK
        blocks = [self._block(number) for number in range(first, -(-end // BLOCK))]
        return b"".join(blocks)[begin - first * BLOCK : end - first * BLOCK]

    def _block(self, number: int) -> bytes:
        length = min(BLOCK, self._size - number * BLOCK)
        stored = self._ends[number + 1] - self._ends[number]
        if stored > length:  # before it is read: a length is the other party's word
            raise FormatError(f"{self._what}: block {number} is longer than its content")
        data = self._read(self._ends[number], self._ends[number + 1])
        try:
            return unpack_block(data, length, self._item)
        except FormatError as error:
            raise FormatError(f"{self._what}: block {number}: {error}") from None


def unpack_block(data: bytes, length: int, item: int) -> bytes:
    """The ``length`` bytes of content that were packed into ``data``.

    Raises:
        FormatError: ``data`` is not one zstd frame of as many bytes, or its window is larger than a block.
    """
    if len(data) == length:
        return data
    try:
        frame = zstandard.get_frame_parameters(data)
        if frame.content_size != length or frame.dict_id:  # looked at first: memory is asked for by this number
            raise FormatError(f"a frame of {frame.content_size} bytes instead of {length}")
        if frame.window_size > BLOCK:  # the library lets it pass where all of a frame is given at once
            raise FormatError(f"a window of {frame.window_size} bytes, more than {BLOCK}")
        found = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except (zstandard.ZstdError, ValueError) as error:
        raise FormatError(f"not packed content: {error}") from None
    if len(found) != length:
        raise FormatError(f"{len(found)} bytes instead of {length}")
    return _together(found, item)


def _apart(block: bytes, item: int) -> bytes:
    """The first bytes of all elements, then all second ones, and so on."""
    elements = np.frombuffer(block, dtype=np.uint8).reshape(-1, item)
    sorted_ = np.empty(elements.shape[::-1], dtype=np.uint8)
    for place in range(item):  # one strided pass for each is twice as fast as a transposition
        sorted_[place] = elements[:, place]
    return sorted_.tobytes()


def _together(block: bytes, item: int) -> bytes:
    sorted_ = np.frombuffer(block, dtype=np.uint8).reshape(item, -1)
    elements = np.empty(sorted_.shape[::-1], dtype=np.uint8)
    for place in range(item):
        elements[:, place] = sorted_[place]
    return elements.tobytes()
