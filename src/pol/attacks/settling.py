"""The last move of a run for which its steps, followed back, begin without momentum."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pol.attacks.backwards import Gradient, Window
from pol.attacks.ranges import Tensors

SETTLING = 4
"""Times that a trail is followed to find the last move with which it begins without momentum."""


def settled(windows: Sequence[Window], weights: Tensors) -> Tensors:
    """The last move, for each unit of rate, with which a trail through windows to ``weights`` begins without momentum.

    From gradients on the way follow all momenta, and from these the way: again and again, until neither changes. An
    error in it grows on the way back as momentum falls on the way forwards, so the longer, the more exactly.
    """
    steps = [(window, index) for window in windows for index in range(len(window.steps))]
    decay = math.prod(min(window.option(index, "momentum").values()) for window, index in steps)
    if not decay:
        return {}
    found, places = [window.first[index] for window, index in steps], [weights] * len(steps)
    last: Tensors = {}
    for _ in range(SETTLING):
        moves, before = _forwards(steps, places, found), last
        last, place = moves[-1], weights
        if before and all(bool((last[k] - before[k]).norm() <= decay * last[k].norm()) for k in last):
            break
        for at in reversed(range(len(steps))):
            rate = steps[at][0].option(steps[at][1], "lr")
            moved = {key: place[key].double() + rate[key] * move for key, move in moves[at].items()}
            place = {**place, **{key: tensor.to(weights[key].dtype) for key, tensor in moved.items()}}
            places[at] = place
        found = [window.gradient(index, place, {}) for (window, index), place in zip(steps, places, strict=True)]
    return last


def _forwards(
    steps: Sequence[tuple[Window, int]], places: Sequence[Tensors], found: Sequence[Gradient]
) -> list[Tensors]:
    """Moves of all steps for each unit of rate, if they begin without momentum."""
    held: Tensors = {}
    moves = []
    for (window, index), place, gradient in zip(steps, places, found, strict=True):
        slopes = window.slopes(index, place, gradient.values)
        decay, ahead = window.option(index, "momentum"), window.option(index, "nesterov")
        damping = window.option(index, "dampening")
        held = {k: decay[k] * held[k] + (1 - damping[k]) * s if k in held else s for k, s in slopes.items()}
        moves.append({k: s + decay[k] * held[k] if ahead[k] else held[k] for k, s in slopes.items()})
    return moves
