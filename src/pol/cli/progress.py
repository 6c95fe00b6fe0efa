"""Progress on standard error: a bar with an estimate on a terminal, otherwise a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from pol.render.text import duration

Tell = Callable[[str, int, int | None], None]

QUIET_SECONDS = 10.0
"""Longest silence in a log file, where a bar cannot be drawn."""


@contextlib.contextmanager
def progress() -> Iterator[Tell]:
    """A function that shows (phase, done, total or None)."""
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with _bar(console) as tell:
            yield tell
    else:
        yield _lines()


class _Left(ProgressColumn):
    """How far, and how long it will take; where that is not known, how long it has taken."""

    def render(self, task: Task) -> Text:
        """The text after the bar."""
        if task.total is None:
            return Text(duration(task.elapsed or 0.0), "dim")
        left = "" if task.time_remaining is None else f", {duration(task.time_remaining)} left"
        return Text(f"{task.completed:.0f}/{task.total:.0f}{left}")


@contextlib.contextmanager
def _bar(console: Console) -> Iterator[Tell]:
    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), _Left(), console=console, transient=True
    ) as shown:
        current, task = "", shown.add_task("starting", total=None)

        def tell(phase: str, done: int, total: int | None) -> None:
            nonlocal current, task
            if phase and phase != current:
                shown.remove_task(task)
                current, task = phase, shown.add_task(phase, total=total)
            shown.update(task, completed=done, total=total)

        yield tell


def _lines() -> Tell:
    current, quiet_until = "", 0.0

    def tell(phase: str, done: int, total: int | None) -> None:
        nonlocal current, quiet_until
        new = bool(phase) and phase != current
        if new or time.monotonic() >= quiet_until:
            current, quiet_until = phase or current, time.monotonic() + QUIET_SECONDS
            amount = "" if total is None or (new and not done) else f" {done}/{total}"
            print(f"pol: {current}{amount}", file=sys.stderr, flush=True)

    return tell
