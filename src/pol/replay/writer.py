"""Writes checkpoints while the training goes on.

One thread, one file at a time, from one copy of the state that is kept and filled anew: filling memory that is
there already costs a tenth of asking for new memory. So beside the training's own there is never more than one
further state in memory. A record is told only when its checkpoint is complete and synced, in the order of the
intervals, and always by the thread that trains.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pol.container import Location, Placed, header_length, parse_header
from pol.errors import FormatError, IntegrityError
from pol.messages import EventType
from pol.packing import LEAST
from pol.replay.copies import Copies
from pol.replay.files import save_atomically
from pol.replay.state import State
from pol.statetree import Entry


class Writer:
    """Checkpoint files of one recording, and the events that wait for them. A context manager."""

    def __init__(self, directory: Path, emit: Callable[[EventType], None]) -> None:
        self._directory, self._emit = directory, emit
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._copies = Copies()
        self._holders = Holders()
        self._waiting: deque[tuple[Future[None] | None, EventType]] = deque()
        self.waits, self.waited = 0, 0.0
        """How often, and for how many seconds, the training had to wait for the disk."""

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
            self._drain()  # the copy is in use until then
            held = self._holders.of(step, state.contents)
            copies, arrived = self._copies.of({k: t for k, t in state.tensors.items() if k not in held})
            # of those that are held only dtype and shape are written
            copy, path = State({**state.tensors, **copies}), self._directory / checkpoint_name(step)
            written = self._thread.submit(_write, copy, path, held, arrived)
        self._waiting.append((written, event))
        self.tell()

    def goes_on(self, step: int, contents: list[tuple[Entry, bytes]]) -> None:
        """The recording is taken up at a state that is written: from here on files name what they would have named.

        Raises:
            IntegrityError: its file is no checkpoint.
        """
        path = self._directory / checkpoint_name(step)
        try:
            self._holders.goes_on(step, contents, header_of(path))
        except FormatError as error:
            raise IntegrityError(f"{path.name}: not a checkpoint file: {error}") from None

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

    def _drain(self) -> None:
        begin, behind = time.monotonic(), any(written and not written.done() for written, _ in self._waiting)
        self.tell(wait=True)
        if behind:
            self.waits, self.waited = self.waits + 1, self.waited + time.monotonic() - begin


def _write(copy: State, path: Path, held: dict[str, Location], arrived: Callable[[], None]) -> None:
    arrived()
    save_atomically(copy, path, held=held)


class Holders:
    """Where equal tensors are stored already: in the last kept state of this recording, or in one that it names."""

    def __init__(self) -> None:
        self._last: dict[tuple[Any, ...], Location] = {}

    def of(self, step: int, contents: list[tuple[Entry, bytes]]) -> dict[str, Location]:
        """Entries of the state after ``step`` steps whose content need not be written again."""
        held, now = {}, dict[tuple[Any, ...], Location]()
        for entry, content in contents:
            if entry.num_bytes < LEAST:
                continue
            same = entry.dtype, *entry.shape, content
            if (place := now.get(same) or self._last.get(same)) is not None:
                held[entry.key] = place
            now[same] = place or Location(step, entry.key)
        self._last = now
        return held

    def goes_on(self, step: int, contents: list[tuple[Entry, bytes]], placed: list[Placed]) -> None:
        """As if the state after ``step`` steps, which is ``placed`` in its file, had been the last one.

        Whoever takes a recording up then names the same holders, so its states can stand beside another process's.
        """
        held = {slot.entry.key: slot.held for slot in placed}
        self._last = {
            (entry.dtype, *entry.shape, content): held.get(entry.key) or Location(step, entry.key)
            for entry, content in reversed(contents)  # of equal ones in one file the first counts
            if entry.num_bytes >= LEAST
        }


def header_of(path: Path) -> list[Placed]:
    """The entries of a checkpoint file as its own header tells.

    Raises:
        FormatError: it is no checkpoint.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = header_length(file.read(8), size, path.name)
            return parse_header(file.read(length), size, path.name)
    except OSError as error:
        raise FormatError(f"{path.name}: {error.strerror}") from None


def checkpoint_name(step: int) -> str:
    """File name of the checkpoint after ``step`` steps; twelve digits sort as numbers do."""
    return f"{step:012d}.safetensors"
