"""Turns the steps of a run into interval records, the same way for recorder and replayer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pol.interval import Interval, Momenta, Rates
from pol.order import sample_list_digest
from pol.replay.data import BatchHasher, sample_leaf
from pol.replay.digests import Digests
from pol.replay.state import State
from pol.statetree import state_root


class IntervalRecorder:
    """An observer that emits a record after every ``every``-th step and after the last."""

    def __init__(
        self,
        *,
        every: int,
        start: int,
        last: int,
        batch_key: bytes,
        emit: Callable[[Interval, State, list[str], Momenta], None],
        salt_key: bytes | None = None,
        on_step: Callable[[int], None] | None = None,
        digests: Digests | None = None,
        kept: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self._every = every
        self._last = last
        self._emit = emit
        self._on_step = on_step
        self._digests_of, self._kept = digests or Digests(trust=False), kept
        self._hasher = BatchHasher(batch_key)
        self._salt_key = salt_key
        self._samples: dict[int, bytes] = {}
        self._begin(start)

    def _begin(self, step: int) -> None:
        self._start = step
        self._losses: list[float] = []
        self._rates: list[Rates] = []
        self._skipped: list[int] = []
        self._digests: list[str] = []
        self._chosen: list[list[int]] = []
        self._hasher.reset()

    def item(self, index: int, item: Any) -> None:
        """Note a sample as the dataset returned it; only a replay asks for these."""
        if self._salt_key is not None:
            self._samples[index] = sample_leaf(item, index, self._salt_key)

    def batch(self, step: int, batch: Any, chosen: list[int] | None) -> None:
        """Hash a batch as it enters its step."""
        self._hasher.update(step, batch)
        if chosen is not None:
            self._chosen.append(chosen)

    def closed(
        self, step: int, loss: float | None, rates: list[float], take: Callable[[], State], counts: dict[str, int],
        momenta: Callable[[], Momenta],
    ) -> None:  # fmt: skip
        """Add a step; at a boundary, emit the interval with the state after it."""
        if loss is None:
            self._skipped.append(step)
        else:
            self._losses.append(loss)
        self._add_rates([repr(rate) for rate in rates])
        if self._salt_key is not None:
            self._digests.append(sample_list_digest(self._samples.items()))
            self._samples = {}
        if self._on_step:
            self._on_step(step + 1)
        if (step + 1) % self._every and step + 1 != self._last:
            return
        state = take()
        state.contents = self._digests_of.of(state, kept=self._kept(step + 1))
        state.check_finite(f"after step {step}", self._digests_of.settled)
        interval = Interval(
            start=self._start,
            stop=step + 1,
            root=state_root(state.contents),
            batches=self._hasher.digest(),
            loss=repr(sum(self._losses) / len(self._losses)) if self._losses else None,
            learning_rates=self._rates,
            skipped=self._skipped,
            schedules=counts,
            indices=self._chosen or None,
        )
        self._emit(interval, state, self._digests, momenta())
        self._begin(step + 1)

    def _add_rates(self, values: list[str]) -> None:
        if self._rates and self._rates[-1].values == values:
            self._rates[-1] = Rates(steps=self._rates[-1].steps + 1, values=values)
        else:
            self._rates.append(Rates(steps=1, values=values))
