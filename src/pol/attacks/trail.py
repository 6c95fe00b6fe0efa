"""A trail: where a run must have been so that its steps end at given weights, followed back from its end.

A step leaves little choice: the weights before it are those after it and the step's own move, which the momentum says.
At the end of a run the momentum is free, because nobody claims it, and with it the last move: it decides how the whole
trail goes. It is chosen so that the trail begins with next to no momentum, as if the steps had really been taken from
there; else momentum grows backwards, by 1/0.9 a step. Where no number leads exactly to the next one, another last move
of the same number is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from pol.attacks.backwards import Gradient, Window
from pol.attacks.ranges import Range, Tensors, exactly, number, position
from pol.replay.state import State

ROUNDS = 24
"""Gradients that one step may take. With momentum nearly all numbers are in place after one or two; without, and with
Nesterov's, each brings the rest closer by a factor of rate times curvature, from 1 to 2**-24."""

SHIFTS = (0, 1, -1)
"""Neighbours of a weight that are tried, in last places."""

NEIGHBOURS = 2
"""Momenta on each side that are tried for each weight."""

TRIES = 8
"""Last moves that are tried for each gradient."""

STUCK = 3
"""Rounds without progress after which a step is left as it is: then what is missing is a number that there is not."""

ATTEMPTS, FEWEST = 24, 6
"""Times that a window of one step is followed, with other last moves of those numbers that found no exact way; longer
ones less often, since each step of them costs as much, but so often at least."""

PATIENCE = 6
"""Attempts without progress after which it is left as it is."""

SPREAD = 2.0**-8
"""By how much the last move of a number is changed at first where it leads nowhere: so little does not show, and leaves
2**16 others to try. Each further time it is twice as much, since a weight that is next to zero somewhere on its way,
finely spaced among coarse moves, has to go another way."""

FELT = 2.0**-4
"""By how much, beside that, the weights are changed that make a running statistic, as a share of them: so much that its
last bits change even where the last step is next to nothing. Not in longer windows, where momentum carries it on."""

FINE = 2.0**-20
"""By how much where another one has led somewhere but for its gradient, which such a change leaves nearly the same."""

WIDEST = 2.0
"""By how much at most: then a move may as well go the other way."""


@dataclass
class Point:
    """Before a step: weights, and what momentum and running statistics may be if the rest is to end where it should."""

    weights: Tensors
    momenta: Range | None
    """None: anything."""
    statistics: Range
    others: Tensors
    """Counters and other buffers."""
    missed: Tensors = field(default_factory=dict)
    """Numbers that a step from here on has no exact way back for."""

    def lost(self) -> int:
        """How many these are."""
        return _count(self.missed)

    def held(self) -> Tensors:
        """One momentum of each parameter that will do."""
        return {} if self.momenta is None else self.momenta.middle(self.weights)

    def buffers(self, like: Tensors) -> Tensors:
        """All buffers, with statistics that will do."""
        return {**self.statistics.middle(like), **self.others}


@dataclass(frozen=True)
class _Wish:
    """What a step should be: its move for each unit of rate, or the momentum after it; empty if it has no choice."""

    moves: Tensors = field(default_factory=dict)
    momenta: Tensors = field(default_factory=dict)


def end(state: State) -> Point:
    """Where a run should end: parameters and buffers of a state, under any momentum."""
    weights = {key: tensor for key, tensor in state.tensors.items() if key.startswith("parameter/")}
    buffers = {key: tensor for key, tensor in state.tensors.items() if key.startswith("buffer/")}
    moving = {key: tensor for key, tensor in buffers.items() if tensor.is_floating_point()}
    return Point(weights, None, exactly(moving), {k: t for k, t in buffers.items() if k not in moving})


def put(state: State, window: Window, point: Point) -> State:
    """A state with the weights, buffers and momentum of a point; all else stays."""
    held = {window.slot(key): tensor for key, tensor in point.held().items()}
    tensors = {**state.tensors, **point.weights, **point.buffers(state.tensors)}
    return State({**tensors, **{key: tensor for key, tensor in held.items() if key in tensors}})


def follow(window: Window, after: Point, last: Tensors, *, once: bool = False) -> Point:
    """Back through a window to the last bit.

    Args:
        window: The steps.
        after: Where they should end.
        last: The move of the last step for each unit of rate, if momentum is free there.
        once: Leave it as it is where the first way that is tried is not exact.
    """
    stuck = 1 if once else STUCK
    best = _all_back(window, after, last, stuck)
    draws, improved = torch.Generator().manual_seed(window.start), 0
    attempts = max(ATTEMPTS // len(window.steps), FEWEST) if after.momenta is None and last and not once else 0
    for attempt in range(attempts):
        if not best.lost() or attempt - improved > PATIENCE:
            break
        tried = _others(window, after, last, best.missed, draws, min(SPREAD * 2**attempt, WIDEST))
        found = _all_back(window, after, tried, stuck)
        improved = attempt if found.lost() < best.lost() else improved
        if found.lost() <= best.lost():
            best, last = found, tried
    return best


def _all_back(window: Window, after: Point, last: Tensors, stuck: int) -> Point:
    for index in reversed(range(len(window.steps))):
        after = back(window, index, after, last, stuck)
    return after


def _others(
    window: Window, after: Point, last: Tensors, missed: Tensors, draws: torch.Generator, spread: float
) -> Tensors:
    """Other last moves of the numbers that found no exact way, and of those that make such a running statistic."""
    which = {key: missed.get(key, torch.zeros_like(t, dtype=torch.bool)) for key, t in last.items()}
    found = {key: torch.where(which[key], _shaken(tensor, draws, spread), tensor) for key, tensor in last.items()}
    rate = window.option(-1, "lr")
    for key, parameter in window.fed.items():
        if key in missed and parameter in found and rate[parameter]:
            rows = missed[key].reshape(-1, *[1] * (found[parameter].dim() - 1))
            size = spread * last[parameter].abs()
            if len(window.steps) == 1:
                size += FELT * spread * after.weights[parameter].abs().double() / rate[parameter]
            drawn = 2 * torch.rand(size.shape, generator=draws, dtype=size.dtype) - 1
            found[parameter] = torch.where(rows, found[parameter] + size * drawn, found[parameter])
    return found


def back(window: Window, index: int, after: Point, last: Tensors, stuck: int = STUCK) -> Point:
    """The point before a step; ``last`` is its move for each unit of rate, if momentum is free after it."""
    found, draws = window.first[index], torch.Generator().manual_seed(index)
    wish = _Wish(moves=last) if after.momenta is None else _Wish(momenta=after.held())
    buffers, weights = after.buffers(found.buffers), after.weights
    weights = {**weights, **_before(window, index, after, found, weights, wish)}
    left: list[int] = []
    for _ in range(ROUNDS):
        found = window.gradient(index, weights, buffers)
        ways = window.momenta(index, weights, found.values, after.weights, after.momenta)
        empty = ways.empty()
        if not _count(empty):
            break
        base = _before(window, index, after, found, weights, wish)
        if _near(base, weights, empty) or left:
            if len(left) >= stuck and _count(empty) >= left[-stuck]:
                break
            left.append(_count(empty))
            if after.momenta is None:
                wishes = _moved(window, index, after, weights, last, draws, FINE if len(left) > 1 else SPREAD)
            else:
                wishes = _kept(after, after.momenta)
            base = _searched(window, index, after, found, weights, wishes)
        weights = {**weights, **{key: torch.where(empty[key], t, weights[key]) for key, t in base.items()}}
    missed = {**after.missed, **empty}
    for key in sorted(empty.keys() & after.missed.keys()):
        missed[key] = empty[key] | after.missed[key]
    counters = {key: tensor - (found.buffers[key] - buffers[key]) for key, tensor in after.others.items()}
    statistics = window.statistics(found, after.statistics, counters)
    for key, tensor in statistics.empty().items():
        missed[key] = tensor | missed.get(key, torch.zeros_like(tensor))
    return Point(weights, ways.closed(), statistics.closed(), counters, missed)


def _count(where: Tensors) -> int:
    return sum(int(tensor.sum()) for tensor in where.values())


def _near(base: Tensors, weights: Tensors, where: Tensors) -> bool:
    """Whether two weights are neighbours, in all places that matter."""
    off = ((position(tensor) - position(weights[key])).abs()[where[key]] for key, tensor in base.items())
    return not any(bool((places > NEIGHBOURS).any()) for places in off)


def _before(window: Window, index: int, after: Point, found: Gradient, weights: Tensors, wish: _Wish) -> Tensors:
    """Weights before a step, as near as double precision tells, from its gradient at nearly the same weights."""
    rate, slopes = window.option(index, "lr"), window.slopes(index, weights, found.values)
    decay, ahead = window.option(index, "momentum"), window.option(index, "nesterov")
    before = {}
    for key, slope in slopes.items():
        move = slope
        if key in wish.moves:
            move = wish.moves[key].double()
        elif decay[key]:
            move = decay[key] * wish.momenta[key].double() + slope if ahead[key] else wish.momenta[key].double()
        before[key] = (after.weights[key].double() + rate[key] * move).to(after.weights[key].dtype)
    return before


def _moved(
    window: Window, index: int, after: Point, weights: Tensors, last: Tensors, draws: torch.Generator, spread: float
) -> list[_Wish]:
    """Other moves than to these weights, where the move is free."""
    rate = window.option(index, "lr")
    moves = {k: (weights[k].double() - after.weights[k].double()) / rate[k] if rate[k] else t for k, t in last.items()}
    spreads = [min(spread * 2**n, WIDEST) for n in range(TRIES)]
    return [_Wish(moves={key: _shaken(t, draws, wide) for key, t in moves.items()}) for wide in spreads]


def _kept(after: Point, momenta: Range) -> list[_Wish]:
    """Momenta that will do: the middle ones, and the ends."""
    like = after.weights
    ends = [{k: number(t, like[k].dtype) for k, t in some.items()} for some in (momenta.low, momenta.high)]
    return [_Wish(momenta=some) for some in (after.held(), *ends)]


def _searched(
    window: Window, index: int, after: Point, found: Gradient, weights: Tensors, wishes: Sequence[_Wish]
) -> Tensors:
    """Weights from which as many momenta as possible lead exactly where they should, were the gradient the same."""
    best: Tensors = {}
    most: Tensors = {}
    for wish in wishes:
        base = _before(window, index, after, found, weights, wish)
        for shift in SHIFTS:
            tried = {key: number(position(tensor) + shift, tensor.dtype) for key, tensor in base.items()}
            hits = _hits(window, index, after, found, {**weights, **tried}, wish)
            for key, tensor in tried.items():
                if key in best:
                    tensor = torch.where(hits[key] > most[key], tensor, best[key])
                    hits[key] = torch.maximum(hits[key], most[key])
                best[key], most[key] = tensor, hits[key]
    return best


def _hits(window: Window, index: int, after: Point, found: Gradient, weights: Tensors, wish: _Wish) -> Tensors:
    """How many momenta around the one that a wish asks for lead exactly where they should."""
    decay, ahead = window.option(index, "momentum"), window.option(index, "nesterov")
    damping, rate = window.option(index, "dampening"), window.option(index, "lr")
    around: Tensors = {}
    for key, slope in window.slopes(index, weights, found.values).items():
        if not decay[key]:
            continue
        if key in wish.momenta:
            then = wish.momenta[key].double()
        else:
            move = (weights[key].double() - after.weights[key].double()) / rate[key] if rate[key] else slope
            then = (move - slope) / decay[key] if ahead[key] else move
        around[key] = ((then - (1 - damping[key]) * slope) / decay[key]).to(weights[key].dtype)
    hits = {key: torch.zeros_like(weights[key], dtype=torch.long) for key in found.values}
    for place in range(-NEIGHBOURS, NEIGHBOURS + 1):
        beside = {key: number(position(tensor) + place, tensor.dtype) for key, tensor in around.items()}
        low, high = window.off(index, weights, found.values, after.weights, after.momenta, beside)
        for key, tensor in hits.items():
            tensor += ~(low[key] | high[key])
    return hits


def _shaken(tensor: torch.Tensor, draws: torch.Generator, spread: float) -> torch.Tensor:
    return tensor * (1 + spread * (2 * torch.rand(tensor.shape, generator=draws, dtype=tensor.dtype) - 1))
