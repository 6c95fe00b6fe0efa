"""What errors of an optimizer's moments will do to its parameters in later steps.

A state may be off in what the optimizer keeps as well as in the parameters, and that shows only later: momentum that
is off by d moves the weights by lr * d in the next step, by lr * momentum * d in the one after it, and so on. A limit
of the parameters alone would leave a forger all of that. So an error of a moment counts as the way that it will move
its parameter in all of the steps that are left, to first order: with the recorded learning rates, and with gradients of
the size that the moments say.

Known are ``SGD``, ``Adam`` and ``AdamW`` of PyTorch, by their documented update rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pol import canonical
from pol.checkpoint import Checkpoint
from pol.declaration import Declaration, Group, Part
from pol.distance import Accumulator
from pol.errors import IntegrityError
from pol.interval import Interval, Momenta
from pol.values import floats

SGD = ("torch.optim.sgd.SGD",)
ADAM = ("torch.optim.adam.Adam", "torch.optim.adamw.AdamW")
KNOWN = (*SGD, *ADAM)

_NEGLIGIBLE = 1e-12
"""Steps whose weight in a geometric sum is below this are left out: far below the rounding of a float32."""

Reals = NDArray[np.float64]


def unbounded(part: Part) -> str:
    """Why it is not known what errors of an optimizer's moments will do; "" if it is."""
    if part.type not in KNOWN:
        return f"{part.name} is a {part.type}: what errors of its state will do to the weights later is not known"
    if any(_plain(group, "amsgrad") for group in part.groups):
        return f"{part.name} is Adam with amsgrad=True, whose maxima never forget an error"
    return ""


@dataclass(frozen=True)
class _Trained:
    """How one parameter is trained."""

    part: Part
    group: Group
    column: int
    """Of its group, in the recorded learning rates."""


class Carrying:
    """The optimizers of a run, and the learning rates that its log records."""

    def __init__(self, declaration: Declaration, intervals: Sequence[Interval]) -> None:
        self._trained: dict[str, list[_Trained]] = {}
        columns = 0
        # Rates are recorded by the name of the optimizer, and then in the order of its groups.
        for part in sorted((p for p in declaration.parts if p.kind == "optimizer"), key=lambda part: part.name):
            for group in part.groups:
                if not ("lr" in part.dynamic or "lr" in group.hyperparameters):
                    continue
                for name in group.parameters:
                    self._trained.setdefault(f"parameter/{name}", []).append(_Trained(part, group, columns))
                columns += 1
        self._rates = _expanded(intervals, columns)

    def length(self, key: str, step: int, momenta: Momenta, replayed: Checkpoint, recorded: Checkpoint) -> float:
        """How far the errors of the moments of one parameter will move it after ``step``: Euclidean, at most.

        0 where there are none; NaN if a moment is no finite number. A schedule may change momenta, and no record holds
        them, so ``momenta`` are those at the end of the replay.
        """
        each = (self._one(key, one, step, momenta, replayed, recorded) for one in self._trained.get(key, ()))
        return sum(each, 0.0)

    def _one(
        self, key: str, trained: _Trained, step: int, momenta: Momenta, replayed: Checkpoint, recorded: Checkpoint
    ) -> float:
        rates = self._rates[step:, trained.column]
        if not rates.size:
            return 0.0
        kept = f"optimizer/{trained.part.name}.{key.removeprefix('parameter/')}."
        if trained.part.type in SGD:
            return _sgd(kept + "momentum_buffer", momenta[trained.column], rates, replayed, recorded)
        if trained.part.type in ADAM:
            return _adam(kept, trained.group, momenta[trained.column], rates, replayed, recorded)
        return 0.0


def _sgd(key: str, momentum: list[float], rates: Reals, replayed: Checkpoint, recorded: Checkpoint) -> float:
    """Buffer = momentum * buffer + gradient; weights -= lr * buffer (with Nesterov's rule once momentum more)."""
    if key not in replayed.entries:
        return 0.0
    found = Accumulator()
    for here, there in zip(replayed.chunks(key), recorded.chunks(key), strict=True):
        found.add(here, there)
    return found.result().l2 * _geometric(rates, momentum[0])


def _adam(
    kept: str, group: Group, betas: list[float], rates: Reals, replayed: Checkpoint, recorded: Checkpoint
) -> float:
    """Weights -= lr * m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)  (Kingma and Ba 2015, algorithm 1)."""
    first, second = kept + "exp_avg", kept + "exp_avg_sq"
    if first not in replayed.entries or second not in replayed.entries:
        return 0.0
    (one, two), eps = betas, _number(group, "eps", 1e-8)
    taken = _taken(kept + "step", replayed)
    of_first, of_second = Accumulator(), Accumulator()
    states = (replayed.chunks(first), recorded.chunks(first), replayed.chunks(second), recorded.chunks(second))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for m, m_there, v, v_there in (tuple(map(floats, chunks)) for chunks in zip(*states, strict=True)):
            whole = 1 - two**taken
            size, size_there = np.sqrt(v / whole) + eps, np.sqrt(v_there / whole) + eps
            of_first.add(m / size, m_there / size)
            of_second.add(size / size_there, np.ones_like(size))
    after = np.arange(1, len(rates) + 1, dtype=np.float64)
    # What is left of v after j more gradients of the same size, as a share of what it is then.
    left = two**after * (1 - two**taken) / (1 - two ** (taken + after))
    # Without further gradients sizes shrink with v, and steps grow: at most by 1 / sqrt(left).
    along = float((rates * one**after / (1 - one ** (taken + after)) / np.sqrt(left))[_counting(one, len(rates))].sum())
    across = float((rates * left).sum()) * _largest_step(one, two)
    return of_first.result().l2 * along + of_second.result().l2 * across


def _largest_step(one: float, two: float) -> float:
    """The largest step of one element, in learning rates (Kingma and Ba 2015, section 2.1)."""
    return max(1.0, (1 - one) / math.sqrt(1 - two)) if two < 1 else math.inf


def _geometric(rates: Reals, factor: float) -> float:
    """The sum of lr_j * factor^j over the steps j = 1, 2, … that are left."""
    counting = _counting(factor, len(rates))
    return float((rates[counting] * factor ** np.arange(1, len(rates[counting]) + 1)).sum())


def _counting(factor: float, steps: int) -> slice:
    if not 0 < factor < 1:
        return slice(0, steps if factor else 0)
    return slice(0, min(steps, math.ceil(math.log(_NEGLIGIBLE) / math.log(factor))))


def _taken(key: str, state: Checkpoint) -> float:
    """Steps that an optimizer counts for a parameter; at least one."""
    if key not in state.entries:
        return 1.0
    return max(1.0, float(floats(next(iter(state.chunks(key)))).reshape(-1)[0]))


def _expanded(intervals: Sequence[Interval], columns: int) -> Reals:
    """Recorded learning rates, one row for each step."""
    rows: list[Reals] = []
    for interval in intervals:
        for rates in interval.learning_rates:
            if len(rates.values) != columns:
                raise IntegrityError(
                    f"steps {interval.start}–{interval.stop}: {len(rates.values)} learning rates are recorded for "
                    f"{columns} parameter groups"
                )
            values = [canonical.parse_float(text, "learning rate", finite=True) for text in rates.values]
            rows.append(np.broadcast_to(np.abs(np.array(values, dtype=np.float64)), (rates.steps, columns)))
    return np.concatenate(rows) if rows else np.zeros((0, columns))


def _number(group: Group, name: str, otherwise: float) -> float:
    value = _plain(group, name)
    return float(value) if isinstance(value, int | float) else otherwise


def _plain(group: Group, name: str) -> object:
    return canonical.untag(group.hyperparameters[name], name) if name in group.hyperparameters else None
