"""Content digests of tensors where they lie: BLAKE3 on the device that trains.

A state that is read back to be hashed comes over the bus at 40 to 50 GB/s; the device hashes its own memory thirty
times as fast. Where Triton cannot be used, the bytes come over in pieces, one copied while the other is hashed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from pol.digest import blake3_chunks

CHUNK = 1024
"""Bytes of a leaf of BLAKE3's tree."""

LANES = 128
"""Chunks of one program: four warps, one chunk for each thread."""

GROUP = 1 << 30
"""Bytes after which a launch is full: a chunk leaves 32 bytes and two chunks 32 more, so what is needed besides the
state is 48 MiB, or a twentieth of the largest tensor; and copies of a group's tensors that are not contiguous."""

LARGEST = 1 << 42
"""Bytes of the largest tensor: the counter of its chunks has 32 bits here."""

PIECE = 1 << 25
"""Bytes of one of two buffers for what is on its way: 32 MiB take half a millisecond, far more than a copy's start."""


_failed: str | None = None
"""Why the kernels cannot be built, once that was tried."""


def available() -> bool:
    """Whether the kernels can be built here, as far as is known: their compiler is there, and has not failed."""
    return _failed is None and importlib.util.find_spec("triton") is not None


def digests(tensors: Sequence[torch.Tensor]) -> list[bytes]:
    """BLAKE3-256 of the row-major bytes of tensors on one device, 32 raw bytes each.

    Made by kernels of this package where Triton builds them, and else by the CPU, which is said once.
    """
    global _failed
    if tensors and available() and all(tensor.nbytes < LARGEST for tensor in tensors):
        try:
            return _by_kernels([tensor.detach() for tensor in tensors])
        except torch.cuda.OutOfMemoryError:
            pass  # this time
        except Exception as error:  # of what Triton needs: a compiler, headers, a folder, a newer device
            _failed = f"{type(error).__name__}: {error}"
            warnings.warn(f"the GPU does not hash its tensors, the CPU does: {_failed}", stacklevel=2)
    return [blake3_chunks(pieces(tensor.detach().contiguous())) for tensor in tensors]


def _by_kernels(tensors: list[torch.Tensor]) -> list[bytes]:
    device, begin = tensors[0].device, 0
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():  # kernels run on the current
        found = torch.empty((len(tensors), 8), dtype=torch.int32, device=device)
        for sizes in _groups([tensor.nbytes for tensor in tensors]):
            end = begin + len(sizes)
            flat = [tensor.contiguous() for tensor in tensors[begin:end]]  # copies of some, until they are hashed
            addresses = [tensor.data_ptr() for tensor in flat]
            plan = _plan(sizes, tuple(address % 16 == 0 for address in addresses), device)
            _hash(plan, _to(np.array(addresses), device), found[begin:end])
            begin = end
        rows = found.cpu().numpy().astype("<i4")
    return [row.tobytes() for row in rows]


def pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a contiguous tensor from its device, in pieces that are good until the next one is asked for."""
    raw = tensor.reshape(-1).view(torch.uint8)
    if not raw.is_cuda:
        yield memoryview(raw.numpy())  # type: ignore[arg-type]  # numpy's stubs do not say that arrays are buffers
        return
    copies = torch.cuda.Stream(raw.device)
    copies.wait_stream(torch.cuda.current_stream(raw.device))
    parts = raw.split(PIECE)
    buffers = [torch.empty(min(PIECE, len(raw)), dtype=torch.uint8, pin_memory=True, device="cpu") for _ in parts[:2]]
    arrived = [torch.cuda.Event() for _ in buffers]

    def fetch(number: int) -> None:
        with torch.cuda.stream(copies):
            buffers[number % 2][: len(parts[number])].copy_(parts[number], non_blocking=True)
            arrived[number % 2].record()

    for number in range(min(1, len(parts))):
        fetch(number)
    for number, part in enumerate(parts):
        arrived[number % 2].synchronize()
        if number + 1 < len(parts):
            fetch(number + 1)  # into the buffer that the caller is done with
        yield memoryview(buffers[number % 2][: len(part)].numpy())  # type: ignore[arg-type]


class _Tiles(NamedTuple):
    """Which nodes each program works on."""

    messages: torch.Tensor
    firsts: torch.Tensor


class _Plan(NamedTuple):
    """What follows from the sizes of some tensors alone, on their device."""

    lengths: torch.Tensor
    whole: _Tiles
    ragged: _Tiles
    node_from: tuple[torch.Tensor, torch.Tensor]
    """Where the nodes of each tensor begin, on even levels and on odd ones."""
    nodes: tuple[int, int]
    """How many there are at most."""
    levels: list[tuple[torch.Tensor, _Tiles]]
    """Nodes of each tensor below every level of parents, and the pairs of these."""


@functools.lru_cache(maxsize=256)  # of a tensor of GROUP bytes 260 KB, and a state is many groups
def _plan(sizes: tuple[int, ...], aligned: tuple[bool, ...], device: torch.device) -> _Plan:
    lengths = np.array(sizes, dtype=np.int64)
    chunks = np.maximum(1, -(-lengths // CHUNK))
    whole = np.where(np.array(aligned), lengths // (CHUNK * LANES), 0)
    halves = -(-chunks // 2)
    levels, count = [], chunks
    while (count > 1).any():
        pairs = np.where(count > 1, -(-count // 2), 0)
        levels.append((_to(count, device), _tiles(np.zeros_like(pairs), -(-pairs // LANES), device)))
        count = -(-count // 2)
    return _Plan(
        lengths=_to(lengths, device),
        whole=_tiles(np.zeros_like(whole), whole, device),
        ragged=_tiles(whole, -(-chunks // LANES) - whole, device),
        node_from=(_to(_before(chunks), device), _to(_before(halves), device)),
        nodes=(int(chunks.sum()), int(halves.sum())),
        levels=levels,
    )


def _hash(plan: _Plan, addresses: torch.Tensor, found: torch.Tensor) -> None:
    from pol.replay import kernels  # Triton is loaded when the first tensor is hashed with it

    nodes = [torch.empty((count, 8), dtype=torch.int32, device=found.device) for count in plan.nodes]
    if tiles := len(plan.whole.firsts):
        kernels.whole_chunks[(tiles,)](addresses, plan.node_from[0], *plan.whole, nodes[0], LANES)
    if tiles := len(plan.ragged.firsts):
        kernels.ragged_chunks[(tiles,)](
            addresses, plan.lengths, plan.node_from[0], *plan.ragged, nodes[0], found, LANES
        )
    for level, (counts, pairs) in enumerate(plan.levels):
        a, b = level % 2, 1 - level % 2
        kernels.parents[(len(pairs.firsts),)](
            counts, plan.node_from[a], plan.node_from[b], *pairs, nodes[a], nodes[b], found, LANES
        )


def _groups(sizes: list[int]) -> Iterator[tuple[int, ...]]:
    """Sizes of neighbours that are hashed together."""
    ends = [0]
    total = 0
    for number, size in enumerate(sizes):
        if total and total + size > GROUP:
            ends.append(number)
            total = 0
        total += size
    for begin, end in pairwise([*ends, len(sizes)]):
        yield tuple(sizes[begin:end])


def _tiles(first: np.ndarray[Any, Any], count: np.ndarray[Any, Any], device: torch.device) -> _Tiles:
    """Of each tensor ``count`` tiles from tile ``first`` on."""
    messages = np.repeat(np.arange(len(count)), count)
    numbers = np.arange(len(messages)) - np.repeat(_before(count) - first, count)
    return _Tiles(_to(messages, device), _to(numbers * LANES, device))


def _before(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Sum of all counts before each."""
    before: np.ndarray[Any, Any] = np.cumsum(counts) - counts
    return before


def _to(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)
