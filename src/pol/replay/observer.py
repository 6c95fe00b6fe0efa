"""Who watches a program train: the recorder, the replayer, a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pol.interval import Momenta
from pol.replay.state import State


class Observer(Protocol):
    """Told about every step as it closes."""

    def batch(self, step: int, batch: Any, chosen: list[int] | None) -> None:
        """A batch is about to enter step ``step``; ``chosen``: its indices, if the program's own sampler chose them."""

    def item(self, index: int, item: Any) -> None:
        """The dataset returned sample ``index`` (before its transform); told again, the last time holds."""

    def closed(
        self, step: int, loss: float | None, rates: list[float], take: Callable[[], State], counts: dict[str, int],
        momenta: Callable[[], Momenta],
    ) -> None:  # fmt: skip
        """Step ``step`` is done; ``loss`` is None if it was skipped; ``take()`` gives the state after it."""
