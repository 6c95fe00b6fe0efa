"""Copies of a state's tensors in host memory, which is filled anew for each state.

From a GPU they come through pinned memory while it trains on: a copy on the device, which takes some milliseconds, is
what travels. So a state on its way is in memory twice more, there and here. Where the device has no room for that, its
next kernels wait until the state is out: those of the stream on which the training works.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import torch

ROOM = 1.25
"""Free memory that a copy on the device asks for, in sizes of that copy: the allocator rounds up, and the next steps
want some as well."""


class Copies:
    """The memory of one recording's copies: of one state, whatever becomes of it."""

    def __init__(self) -> None:
        self._memory: dict[str, torch.Tensor] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def of(self, tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Callable[[], None]]:
        """Copies of tensors that may be written as soon as this returns, and what to call before the copies are read.

        They are good until the next call.
        """
        self._memory = {key: self._room(key, tensor) for key, tensor in tensors.items()}
        devices: dict[torch.device, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for key, tensor in tensors.items():
            if tensor.is_cuda:
                devices.setdefault(tensor.device, []).append((self._memory[key], tensor.detach()))
            else:
                self._memory[key].copy_(tensor.detach())
        events = [self._fetch(device, pairs) for device, pairs in devices.items()]

        def arrived() -> None:
            for event in events:
                event.synchronize()

        return dict(self._memory), arrived

    def _room(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        memory = self._memory.get(key)
        if memory is None or memory.shape != tensor.shape or memory.dtype != tensor.dtype:
            return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda, device="cpu")
        return memory

    def _fetch(self, device: torch.device, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.cuda.Event:
        """Have tensors copied from their device; an event of when they are there."""
        now, event = torch.cuda.current_stream(device), torch.cuda.Event()
        beside = now  # whatever comes next writes only when this is done
        if _has_room(device, sum(tensor.nbytes for _, tensor in pairs)):
            with contextlib.suppress(torch.cuda.OutOfMemoryError):  # there was room, but in pieces
                pairs = [(memory, tensor.clone(memory_format=torch.contiguous_format)) for memory, tensor in pairs]
                beside = self._streams.setdefault(device, torch.cuda.Stream(device))
                beside.wait_stream(now)
        with torch.cuda.stream(beside):
            for memory, tensor in pairs:
                memory.copy_(tensor, non_blocking=True)
                tensor.record_stream(beside)
            event.record()
        return event


def _has_room(device: torch.device, size: int) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + cached >= ROOM * size
