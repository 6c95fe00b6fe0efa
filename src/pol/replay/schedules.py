"""The attached schedules: the ones whose steps are counted, and the ones that are state.

A schedule that is alone on its optimizer and only ever stepped without arguments is a function of how often it
was stepped: it is stepped that often again, and never loaded. A plateau schedule, and schedules that share an
optimizer, depend on what else was done to the rates: they are state, and so are the rates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pol.errors import IntegrityError, ReplayError

MOVED = ("lr", "momentum", "betas")
"""Group entries that torch's schedules write."""


class Schedules:
    """The schedules of a program, by part name."""

    def __init__(self, schedules: dict[str, LRScheduler]) -> None:
        self._all = schedules
        shared = Counter(id(schedule.optimizer) for schedule in schedules.values())
        self.stateful = {
            name: schedule
            for name, schedule in schedules.items()
            if isinstance(schedule, ReduceLROnPlateau) or shared[id(schedule.optimizer)] > 1
        }
        self.counts = {name: 0 for name in schedules if name not in self.stateful}
        self.held = False
        """Steps are ignored: the program runs code that belongs to a step before the one it is entered at."""
        for name in self.counts:
            self._count(name, schedules[name])

    def moves(self, optimizer: Optimizer) -> bool:
        """Whether a schedule moves the rates of ``optimizer``."""
        return any(schedule.optimizer is optimizer for schedule in self._all.values())

    def are_state(self, optimizer: Optimizer) -> bool:
        """Whether the rates of ``optimizer`` are not a function of counted steps alone."""
        return any(schedule.optimizer is optimizer for schedule in self.stateful.values())

    def check_rates(self) -> None:
        """Refuse rates that a counted schedule did not set: a replay steps it from 0, and would not have them.

        Raises:
            ReplayError: names the schedule.
        """
        for name in self.counts:
            self._check_rate(name)

    def _check_rate(self, name: str) -> None:
        schedule = self._all[name]
        found = [float(group["lr"]) for group in schedule.optimizer.param_groups]
        if [float(rate) for rate in getattr(schedule, "_last_lr", found)] != found:
            raise ReplayError(
                f"schedule {name!r}: the learning rate was also changed by hand; change it by the schedule alone, "
                "or leave the schedule unattached and name lr in attach(dynamic=(...))"
            )

    def repeat(self, counts: dict[str, int]) -> None:
        """Step each counted schedule from 0 as often as the record says.

        Raises:
            IntegrityError: the record names other schedules than the program.
        """
        if counts.keys() != self.counts.keys():
            raise IntegrityError(f"schedules {sorted(counts)} in the record, {sorted(self.counts)} in the program")
        for name in sorted(counts):
            for _ in range(counts[name] - self.counts[name]):
                self._all[name].step()

    def walk(self, name: str, count: int) -> Iterator[list[float]]:
        """The rates of a counted schedule's own optimizer now, and after every further step of it, up to ``count``."""
        schedule = self._all[name]
        yield [float(group["lr"]) for group in schedule.optimizer.param_groups]
        while self.counts[name] < count:
            try:
                schedule.step()
            except ValueError:  # it has an end, as OneCycleLR has
                return
            yield [float(group["lr"]) for group in schedule.optimizer.param_groups]

    def optimizer_of(self, name: str) -> Optimizer:
        """The optimizer whose rates a schedule moves."""
        return self._all[name].optimizer

    def _count(self, name: str, schedule: LRScheduler) -> None:
        # In a class of its own and not as an attribute, because a schedule's state_dict is all of its attributes.
        original = type(schedule)

        def step(this: LRScheduler, *args: Any, **kwargs: Any) -> None:
            if args or kwargs:
                raise ReplayError(
                    f"schedule {name!r}: step() was called with arguments; only step() can be counted and repeated"
                )
            if not self.held:
                self._check_rate(name)  # many schedules go on from whatever rate they find
                original.step(this)
                self.counts[name] += 1

        body = {"step": step, "__module__": original.__module__, "__qualname__": original.__qualname__}
        schedule.__class__ = type(original.__name__, (original,), body)
