"""CPU seconds of the other threads of this process: what they take from the cores on which it trains. Linux only."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

TASKS = Path("/proc/self/task")

THREAD_CLOCK = 6
"""Scheduled time of one thread: CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED of the kernel's posix-timers_types.h, where a
clock is the complement of the thread's number, shifted by three, and this."""

TRAINS_FROM = 0.02
"""Share of the time from which a thread is one of those that train: an idle one is at 0, a worker of two at 0.5."""


def check() -> None:
    """Refuse a machine on which threads cannot be told apart.

    Raises:
        SystemExit: it is not Linux.
    """
    if not TASKS.is_dir():
        raise SystemExit("the benchmarks tell threads apart by Linux's clocks: run them on Linux")


def seconds(thread: int) -> float:
    """CPU seconds of a thread of this process; 0 if it has ended."""
    try:
        return time.clock_gettime((~thread << 3) | THREAD_CLOCK)
    except OSError:
        return 0.0


def every() -> list[int]:
    """The numbers of all threads of this process."""
    return [int(name) for name in os.listdir(TASKS)]


class Beside:
    """The threads that do not train: those that were idle while ``trains`` ran, and all that begin later."""

    def __init__(self, trains: Callable[[], None]) -> None:
        before, started = {thread: seconds(thread) for thread in every()}, time.perf_counter()
        trains()
        elapsed = time.perf_counter() - started
        worked = {thread for thread in every() if seconds(thread) - before.get(thread, 0.0) > TRAINS_FROM * elapsed}
        self._training = worked | {threading.get_native_id()}
        self._ended = 0.0
        self._last: dict[int, float] = {}
        self.look()

    def look(self) -> None:
        """Notice threads that have begun, and those that have ended."""
        now = [thread for thread in every() if thread not in self._training]
        self._ended += sum(spent for thread, spent in self._last.items() if thread not in now)
        self._last = {thread: self._last.get(thread, 0.0) for thread in now}

    def spent(self) -> float:
        """CPU seconds of all of them until now."""
        for thread, before in self._last.items():
            self._last[thread] = max(before, seconds(thread))
        return self._ended + sum(self._last.values())

    def settle(self, pause: float = 0.02, most: float = 10.0) -> None:
        """Wait until they do nothing, looking every ``pause`` seconds, for ``most`` seconds."""
        until = time.perf_counter() + most
        before = self.spent()
        while time.perf_counter() < until:
            time.sleep(pause)
            self.look()
            if (now := self.spent()) == before:
                return
            before = now
