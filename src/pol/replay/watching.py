"""Notes where a recipe reads a clock, the system's randomness, or a loader of its own, while it is probed.

The functions of Python's modules are replaced by ones that note the caller and do the same. What native code asks the
system for is not seen, nor ``datetime``.
"""

from __future__ import annotations

import functools
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch.utils.data import DataLoader

from pol.replay.places import Places
from pol.traces import Note

CLOCKS = ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time")

NOT_THE_RECIPE = ("tempfile", "multiprocessing", "torch", "importlib", "concurrent", "logging", "pol")
"""Packages that draw from the system for purposes of their own (names of temporary files, keys of workers)."""

MOST = 1000
"""Most notes that are kept."""


class Watch:
    """What was noted, and when."""

    def __init__(self, places: Places) -> None:
        self.notes: list[Note] = []
        self.step: int | None = None
        self.fetching = False
        self._places = places
        self._seen: set[tuple[Any, ...]] = set()

    def note(self, kind: Literal["clock", "entropy", "workers", "loader"], call: str, *, direct: bool) -> None:
        """Note a call that the recipe makes; ``direct``: not through other packages."""
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename == __file__:
            frame = frame.f_back
        place, line, passed = self._places.find(frame)
        between = {str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame in passed}
        if not place or (between if direct else between & set(NOT_THE_RECIPE)):
            return
        key = (kind, call, place, self.step, self.fetching)
        if key in self._seen or len(self.notes) >= MOST:
            return
        self._seen.add(key)
        self.notes.append(
            Note(kind=kind, call=call, place=place, line=line, step=self.step, fetching=self.fetching)
        )  # fmt: skip


@contextmanager
def watching(places: Places) -> Iterator[Watch]:
    """Replace the functions while the context lasts."""
    watch = Watch(places)
    replaced: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, new: Any) -> None:
        replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, new)

    for name in CLOCKS:
        replace(time, name, _noting(getattr(time, name), lambda call: watch.note("clock", call, direct=True), name))
    replace(os, "urandom", _noting(os.urandom, lambda _: watch.note("entropy", "os.urandom", direct=False), ""))
    replace(random, "_urandom", _noting(os.urandom, lambda _: None, ""))  # through os.urandom: SystemRandom, secrets
    replace(random.Random, "seed", _seeding(random.Random.seed, watch))
    replace(DataLoader, "__iter__", _iterating(DataLoader.__iter__, watch))
    try:
        yield watch
    finally:
        for owner, name, old in reversed(replaced):
            setattr(owner, name, old)


def _noting(original: Callable[..., Any], note: Callable[[str], None], name: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def noting(*args: Any, **kwargs: Any) -> Any:
        note(f"time.{name}")
        return original(*args, **kwargs)

    return noting


def _seeding(original: Any, watch: Watch) -> Any:
    @functools.wraps(original)
    def seed(self: Any, a: Any = None, version: int = 2) -> None:
        if a is None:
            watch.note("entropy", "random.Random()", direct=False)
        original(self, a, version)

    return seed


def _iterating(original: Any, watch: Watch) -> Any:
    @functools.wraps(original)
    def iterate(self: DataLoader[Any]) -> Any:
        kind: Literal["workers", "loader"] = "workers" if self.num_workers else "loader"
        watch.note(kind, f"DataLoader(num_workers={self.num_workers})", direct=True)
        return original(self)

    return iterate
