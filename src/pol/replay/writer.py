"""Writes checkpoints while the training goes on.

One thread, one file at a time, from one copy of the state that is kept and filled anew: filling memory that is
there already costs a tenth of asking for new memory. A record is told only when its checkpoint is complete and
synced, in the order of the intervals, and always by the thread that trains.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from pol.messages import EventType
from pol.replay.files import save_atomically
from pol.replay.state import State


class Writer:
    """Checkpoint files of one recording, and the events that wait for them. A context manager."""

    def __init__(self, directory: Path, emit: Callable[[EventType], None]) -> None:
        self._directory, self._emit = directory, emit
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._copy: dict[str, torch.Tensor] = {}
        self._waiting: deque[tuple[Future[None] | None, EventType]] = deque()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        """Finish what was begun, also when the program has failed: it lies before the failure."""
        try:
            self.tell(wait=True)
        finally:
            self._thread.shutdown()

    def add(self, event: EventType, step: int, state: State | None) -> None:
        """Tell ``event`` as soon as the checkpoint of ``state`` is on disk; None: there is none to write."""
        written = None
        if state is not None:
            self.tell(wait=True)  # the copy is in use until then
            written = self._thread.submit(save_atomically, self._copied(state), self._directory / checkpoint_name(step))
        self._waiting.append((written, event))
        self.tell()

    def tell(self, *, wait: bool = False) -> None:
        """Tell what is due; what went wrong in writing is raised here.

        Raises:
            StoreError: the disk refused.
        """
        while self._waiting and (wait or self._waiting[0][0] is None or self._waiting[0][0].done()):
            written, event = self._waiting.popleft()
            try:
                if written is not None:
                    written.result()
                self._emit(event)
            except BaseException:
                self._waiting.clear()  # a later record never stands without an earlier one
                raise

    def _copied(self, state: State) -> State:
        copy = {}
        for key, tensor in state.tensors.items():
            memory = self._copy.get(key)
            if memory is None or memory.shape != tensor.shape or memory.dtype != tensor.dtype:
                memory = torch.empty(tensor.shape, dtype=tensor.dtype)
            copy[key] = memory.copy_(tensor.detach())
        self._copy = copy
        return State(copy)


def checkpoint_name(step: int) -> str:
    """File name of the checkpoint after ``step`` steps; twelve digits sort as numbers do."""
    return f"{step:012d}.safetensors"
