"""Progress of a job, told now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

from pol.messages import EventType, Stepped

Emit = Callable[[EventType], None]

PROGRESS_SECONDS = 0.25
"""How often progress is told: four times a second looks alive and costs nothing."""


class Progress:
    """Tells the step that was reached, not too often."""

    def __init__(self, emit: Emit, total: int | None = None) -> None:
        self._emit, self._total, self._next = emit, total, time.monotonic() + PROGRESS_SECONDS

    def __call__(self, step: int) -> None:
        """Tell it, if it is time."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PROGRESS_SECONDS
            self._emit(Stepped(step=step, total=self._total))
