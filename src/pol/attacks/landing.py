"""A state from which honest steps end at given weights, bit for bit, where each value goes its own way.

It does where gradients are nothing beside decay, or rates are 0, and running statistics do anywhere: then each value is
found alone, and one more attempt is made for all at once. Running statistics that are much smaller than what a batch
adds to them lie between the values that any start leads to, and so end a rounding off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pol.attacks.forger import Forger
from pol.attacks.workshop import Taken, Workshop
from pol.replay.state import State

MODEL = ("parameter/", "buffer/", "transient/")
"""Keys of what ends where it should; the rest of the state may end anywhere."""

PROBE = 2.0**-6
"""A change of each value, as a share of it, that shows how its end follows from it: well above rounding."""

STRAIGHT = 3
"""Attempts that follow that slope: each leaves a hundredth of the error of the one before, or its rounding."""

NEAR = 2
"""Units in the last place up to which another value is tried: a step turns one into about one."""

FAR = 128
"""The same of a value and its moment together, which a forger chooses so small that one unit takes some fifty."""

DRY = 400
"""Attempts that take no gradient: one in twenty hits even the most stubborn of values."""


@dataclass(frozen=True)
class Moments:
    """Moments of SGD that a forger sets, where gradients are nothing beside decay."""

    back: float
    """The moment that takes back in the next step what a weight is off by, as a multiple of that."""
    dry: Taken
    """A step without its gradient."""


def land(
    workshop: Workshop, forger: Forger, start: int, aim: State, attempts: int, moments: Moments | None = None
) -> bool:
    """Move the model's values at ``start`` until honest steps to the end of the run end in those of ``aim``.

    Args:
        workshop: Where steps are taken.
        forger: Whose; the state at ``start`` is where the search begins.
        start: A boundary.
        aim: Values to end at, of parameters, buffers and what is transient.
        attempts: How often the steps may be taken; at least once.
        moments: What makes the search one without gradients.

    Returns:
        Whether all values end where they should; what does not is as near as it came.
    """
    search = _Search(workshop, forger, start, aim)
    if moments is not None:
        search.look(DRY, moments)
        search.forget()
    search.look(attempts, None)
    return search.settle()


class _Search:
    def __init__(self, workshop: Workshop, forger: Forger, start: int, aim: State) -> None:
        self._workshop, self._forger, self._start = workshop, forger, start
        self._aim = {k: t for k, t in aim.tensors.items() if k.startswith(MODEL)}
        self._tried = dict(forger.states[start].tensors)
        self._moments = {key: self._moment(key) for key in self._aim}
        self._best = dict(self._tried)
        self.forget()
        self._slopes = {key: torch.ones(t.shape, dtype=torch.float64) for key, t in self._aim.items()}
        self._draws = torch.Generator().manual_seed(0)

    def forget(self) -> None:
        """Begin anew from the best values so far."""
        self._tried = dict(self._best)
        self._off = {key: torch.full(t.shape, torch.inf, dtype=torch.float64) for key, t in self._aim.items()}

    def look(self, attempts: int, moments: Moments | None) -> None:
        """Try values until each has been seen to end where it should; the last attempt is left to ``settle``."""
        step = None if moments is None else moments.dry
        self._attempt(step)
        for number in range(attempts - 2):
            if not any(bool(off.any()) for off in self._off.values()):
                return
            if number == 0:
                self._probe(step)
            elif number <= STRAIGHT:
                self._follow()
                self._attempt(step)
            else:
                self._scatter(moments)
                self._attempt(step)

    def _moment(self, key: str) -> str | None:
        kind, _, name = key.partition("/")
        return next((k for k in self._tried if kind == "parameter" and k.endswith(f".{name}.momentum_buffer")), None)

    def _ends(self, step: Taken | None = None) -> dict[str, torch.Tensor]:
        self._forger.states[self._start] = State(dict(self._tried))
        before = self._workshop.gradients
        self._workshop.train(self._forger, self._start, step=step)
        if step is not None:  # which takes no gradient
            self._workshop.gradients = before
        return self._forger.states[self._forger.steps].tensors

    def _attempt(self, step: Taken | None) -> None:
        """Take the steps from the values as they are now, and note those that ended nearer than before."""
        self._last = self._ends(step)
        for key, aim in self._aim.items():
            off = _missing(aim, self._last[key]).abs()
            better = off < self._off[key]
            self._off[key] = torch.where(better, off, self._off[key])
            for name in filter(None, (key, self._moments[key])):
                self._best[name] = torch.where(better, self._tried[name], self._best[name])

    def settle(self) -> bool:
        """End with the best value of each; whether that is where all should end."""
        if any(not torch.equal(self._tried[key], best) for key, best in self._best.items()):
            self._tried = dict(self._best)
            self._last = self._ends()
        return all(torch.equal(self._last[key], aim) for key, aim in self._aim.items())

    def _probe(self, step: Taken | None) -> None:
        """See how ends follow from values: whole numbers as they are."""
        first, before = self._last, dict(self._tried)
        for key in self._aim:
            tensor = self._tried[key]
            if tensor.is_floating_point():
                other = torch.where(tensor == 0, PROBE, tensor * (1 + PROBE)).to(tensor.dtype)
                self._tried[key] = torch.where(self._off[key] > 0, other, tensor)  # what is right moves nothing else
        ends = self._ends(step)
        for key in self._aim:
            change = self._tried[key].double() - before[key].double()
            slope = (ends[key].double() - first[key].double()) / change
            self._slopes[key] = torch.where(slope.isfinite() & (slope != 0), slope, 1.0)
        self._tried, self._last = before, first

    def _follow(self) -> None:
        """Move every value by what its slope says that is missing."""
        for key, aim in self._aim.items():
            missing = _missing(aim, self._last[key])
            moved = (self._tried[key].double() + missing / self._slopes[key]).to(aim.dtype)
            self._tried[key] = torch.where(missing == 0, self._tried[key], moved)

    def _scatter(self, moments: Moments | None) -> None:
        """Try others near the best of those that are still off, and other moments with them."""
        self._tried = dict(self._best)
        for key in self._aim:
            best, off = self._best[key], self._off[key] > 0
            if not best.is_floating_point():
                continue
            unit = torch.nextafter(best.abs(), torch.full_like(best, torch.inf)) - best.abs()
            moved = unit * torch.randint(-NEAR, NEAR + 1, best.shape, generator=self._draws)
            name = self._moments[key]
            if name is not None and moments is not None:
                # Further away, with a moment that takes it back at once: the step after that sees both.
                apart = unit * torch.randint(-FAR, FAR + 1, best.shape, generator=self._draws)
                held = self._best[name] - apart * moments.back
                self._tried[name] = torch.where(off, held, self._best[name])
                moved = moved + apart
            self._tried[key] = torch.where(off, best + moved, best)


def _missing(aim: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Differences; none between equal infinities."""
    return torch.where(aim == found, 0.0, aim.double() - found.double())
