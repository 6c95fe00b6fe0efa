"""What a challenge asks for on average, in closed form.

``pol.proof.plan`` draws challenges and counts; that takes seconds for a run of a million intervals, and here many runs
are compared. Updates are taken to be of about one size, and the largest of each kind of state to be anywhere: those
of weights, of moments and of running statistics mostly are in other windows, and each is replayed.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from pol.proof.challenge import STRATA
from pol.proof.policy import Challenge


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """Means over nonces."""

    replays: float
    """How often the program is entered: once for each stretch of steps that follow one another."""
    intervals: float
    """That are taken again, so that a digest is taken at the end of each."""
    steps: float
    """Of these."""
    openings: float = 0.0
    """States that the prover must take again (rule tolerance)."""
    answered_steps: float = 0.0
    """That the prover takes again for them: each from the kept state before it, each window once."""


def expected(challenge: Challenge, steps: int, every: int, keep: int, *, kinds: int, each: bool) -> Expected:
    """The mean cost of a challenge; resumes are left out, and the screens find as many intervals as they may.

    Args:
        challenge: What the policy asks for.
        steps: T.
        every: k.
        keep: K.
        kinds: Of state whose updates have a size: weights, moments, running statistics.
        each: Intervals are replayed one by one (rule tolerance), and not from the kept state before them (rule exact).
    """
    count = -(-steps // every)
    windows = -(-count // keep)
    mixed = challenge.strategy == "mix"
    uniform = min(challenge.uniform, count) if challenge.strategy in ("mix", "uniform") else 0
    if challenge.strategy == "all" or (mixed and count <= challenge.all_up_to) or uniform == count or windows == 1:
        inner = (count - windows) if each else 0  # boundaries whose state is not kept
        return Expected(
            replays=count if each else windows, intervals=count, steps=steps, openings=inner,
            answered_steps=inner * every,
        )  # fmt: skip
    weighted = challenge.weighted if challenge.strategy in ("mix", "size-weighted") else 0
    top = challenge.top if challenge.strategy in ("mix", "top-q") else 0
    run = _Run(steps, every, keep, count, windows, uniform, weighted, top, kinds, challenge.screened if mixed else 0)
    return run.singly({0, windows - 1}) if each else run.in_windows({0, windows - 1})


@dataclass(frozen=True)
class _Run:
    """A run of at least two windows, of which the last alone may be shorter, and what is drawn of it."""

    steps: int
    every: int
    keep: int
    count: int
    windows: int
    uniform: int
    weighted: int
    top: int
    kinds: int
    screened: int

    def _unmet(self) -> NDArray[np.float64]:
        """Probability that no uniform draw meets any of r given intervals, for r from 0 to ``keep``."""
        r = np.arange(1, self.keep + 1)
        factors = np.maximum(self.count - self.uniform - r + 1, 0) / (self.count - r + 1)
        return np.concatenate([[1.0], np.cumprod(factors)])

    def _unpicked(self, number: int) -> float:
        """Probability that none of so many given windows is picked by its size: in a draw, or as the largest."""
        stratum = self.windows / min(STRATA, self.windows)
        largest = max(0.0, 1 - number * self.top / stratum)
        return float((1 - number / self.windows) ** self.weighted * largest**self.kinds)

    def _length(self, window: int) -> int:
        """Intervals of a window."""
        return min((window + 1) * self.keep, self.count) - window * self.keep

    def _steps(self, window: int) -> int:
        return min((window + 1) * self.keep * self.every, self.steps) - window * self.keep * self.every

    def in_windows(self, certain: set[int]) -> Expected:
        """Rule exact: from the kept state before an interval; that before a picked window is met at its end."""
        whole = certain | {window - 1 for window in certain if window}
        unmet, unpicked = self._unmet(), self._unpicked(2)  # neither it nor the one behind it
        rest = self.windows - len(whole)
        mean = (1 - unpicked) * self.keep + unpicked * float(np.sum(1 - unmet[1:]))  # of intervals, up to the last met
        missed = unpicked * float(unmet[-1])
        further = min(float(self.screened), rest * missed)
        return Expected(
            replays=len(whole) + rest * (1 - missed) + further,
            intervals=sum(map(self._length, whole)) + rest * mean + further * self.keep,
            steps=sum(map(self._steps, whole)) + (rest * mean + further * self.keep) * self.every,
        )

    def singly(self, certain: set[int]) -> Expected:
        """Rule tolerance: each from its own state, which the prover has to take again unless it is kept."""
        before = {window - 1 for window in certain if window} - certain  # met at their last interval alone
        others = self.windows - len(certain) - len(before)
        unmet, alone, both = self._unmet(), self._unpicked(1), self._unpicked(2)
        inner = self.keep - 1  # boundaries in a window
        met = 1 - alone * unmet[1]  # each interval but the last of a window
        at_end = 1 - both * unmet[1]  # the last
        opened = (1 - alone * unmet[2]) * max(inner - 1, 0) + (1 - both * unmet[2]) if inner else 0.0
        answered = float(np.sum(1 - both * unmet[2:]))  # from its start to the last boundary that is asked for
        opened_before = (1 - alone * unmet[2]) * max(inner - 1, 0) + 1 if inner else 0.0
        further = min(float(self.screened), others * both * float(unmet[-1]))
        single = others * (met * inner + at_end) + len(before) * (met * inner + 1) + further
        held = sum(self._length(window) - 1 for window in certain)
        return Expected(
            replays=sum(map(self._length, certain)) + single,
            intervals=sum(map(self._length, certain)) + single,
            steps=sum(map(self._steps, certain)) + single * self.every,
            openings=held + others * opened + len(before) * opened_before + further * bool(inner),
            answered_steps=(held + others * answered + (len(before) + further) * inner) * self.every,
        )


def draws_needed(intervals: int, share: float, confidence: float) -> int:
    """Fewest uniform draws that, if all pass, say with ``confidence`` that at most ``share`` of intervals is forged.

    Hypergeometric, as ``challenge.largest_forged_share`` says of a number of draws; at least one.
    """
    forged, missed, drawn = int(share * intervals) + 1, 1.0, 0
    while missed > 1 - confidence and drawn < intervals:
        missed *= max(intervals - forged - drawn, 0) / (intervals - drawn)
        drawn += 1
    return max(drawn, 1)
