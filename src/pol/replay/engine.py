"""The engine: the only place that drives a user's training program.

Prover, auditor, attacker and tests all call ``advance``. The program is entered from its start, builds its
parts, and is put at the wanted step when it asks for the next batch; it cannot tell recording from replaying.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from pol.replay import watch
from pol.replay.driver import Arrived, Driver
from pol.replay.frame import Arrival, Frame, Position
from pol.replay.observer import Observer
from pol.replay.recipe import Recipe

__all__ = ["Arrival", "Frame", "Position", "advance"]


def advance(
    make: Callable[[], Recipe], frame: Frame, start: Position, stop: int | None = None,
    observer: Observer | None = None, drive: Callable[[Frame, Position, int | None, Observer | None], Driver] = Driver,
) -> Arrival:  # fmt: skip
    """Enter the program at ``start`` and take its steps until ``stop`` (None: until it returns).

    ``make`` makes the recipe; generators already carry the init stream. With ``stop`` 0 the program is left at
    its first request for a batch: a dry build. ``drive`` makes the Run.

    Raises:
        ReplayError: the program declared something else than expected, or cannot be entered there.
        UsageError: it uses the run in a way that this version does not support.
    """
    driver = drive(frame, start, stop, observer)
    finished = False
    with warnings.catch_warnings(), watch.driving():
        # A schedule that is stepped from 0 before the first optimizer step is our doing, not the user's.
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*optimizer.step")
        try:
            make().train(driver)
            driver.finish()
            finished = True
        except Arrived:
            pass
    return driver.arrival(finished)
