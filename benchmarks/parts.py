"""A clock around each part of the recorder, to say where its time goes.

What the recorder costs is not measured here but around everything for which the training waits (``alternating``).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from pol.replay import intervals, writer
from pol.replay.data import BatchHasher
from pol.replay.digests import Digests
from pol.replay.driver import Driver
from pol.replay.loader import Loader
from pol.replay.parts import Parts
from pol.replay.randomness import Streams
from pol.replay.state import State
from pol.replay.writer import Writer

HOOK = "before the optimizer's update"

PARTS: dict[str, tuple[Any, str]] = {
    "streams": (Streams, "step"),
    "fetch": (Loader, "fetch"),
    "batch digest": (BatchHasher, "update"),
    HOOK: (Driver, "_note_rates"),
    "take the state": (Parts, "capture"),
    "finite check": (State, "check_finite"),
    "digests": (Digests, "of"),
    "state tree": (intervals, "state_root"),
    "hand over to the writing thread": (Writer, "add"),
    "write and sync (other thread)": (writer, "save_atomically"),
}
"""Name of a part, and the function that does it."""

BESIDE = ("write and sync (other thread)",)
"""Parts that the training does not wait for, as long as they are faster than it."""


class Clocks:
    """Puts a clock around every part, for good: for a process that does one thing and ends."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        for name, (owner, function) in PARTS.items():
            setattr(owner, function, self._timed(name, getattr(owner, function)))

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - started

        return timed

    def reset(self) -> None:
        """Begin anew."""
        self.seconds.update(dict.fromkeys(PARTS, 0.0))
