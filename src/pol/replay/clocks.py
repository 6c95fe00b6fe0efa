"""Python's clocks, which can be put forward: a program whose steps depend on the time then takes others.

``datetime`` has a clock of its own, which is not put forward.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

SHIFT = 101 * 86400 + 7 * 3600 + 43 * 60 + 17
"""Seconds by which clocks are put forward: another month, weekday, hour and minute, and an odd number of seconds."""


@dataclass
class _Clock:
    offset: int = 0
    """Nanoseconds."""


_clock = _Clock()
COUNTING = [
    *("time", "monotonic", "perf_counter", "process_time", "thread_time", "clock_gettime"),
    *("time_ns", "monotonic_ns", "perf_counter_ns", "process_time_ns", "thread_time_ns", "clock_gettime_ns"),
]


def _forward(original: Callable[..., Any], *, whole: bool) -> Callable[..., Any]:
    """A clock that is ahead of ``original`` by the offset of the moment."""

    def clock(*arguments: Any) -> Any:
        return original(*arguments) + (_clock.offset if whole else _clock.offset / 1e9)

    return clock


def _telling(original: Callable[..., Any], fill: Callable[[], Any], given: int) -> Callable[..., Any]:
    """A function of the time that takes that of the shifted clock if it is given none."""

    def tell(*arguments: Any) -> Any:
        return original(*arguments) if len(arguments) > given else original(*arguments[:given], fill())

    return tell


def _clocks() -> dict[str, Callable[..., Any]]:
    found = {
        name: _forward(getattr(time, name), whole=name.endswith("_ns")) for name in COUNTING if hasattr(time, name)
    }
    now, local = found["time"], time.localtime
    found |= {name: _telling(getattr(time, name), now, 0) for name in ("localtime", "gmtime", "ctime")}
    found |= {"asctime": _telling(time.asctime, lambda: local(now()), 0)}
    found |= {"strftime": _telling(time.strftime, lambda: local(now()), 1)}
    return found


_CLOCKS = _clocks()


@contextlib.contextmanager
def shiftable_clocks() -> Iterator[None]:
    """Let Python's clocks be put forward: around everything, because a recipe keeps the functions that it imports."""
    originals = {name: getattr(time, name) for name in _CLOCKS}
    try:
        for name, clock in _CLOCKS.items():
            setattr(time, name, clock)
        yield
    finally:
        for name, original in originals.items():
            setattr(time, name, original)


def put_forward(seconds: int) -> None:
    """Set how far clocks are ahead, from now on."""
    _clock.offset = seconds * 10**9
