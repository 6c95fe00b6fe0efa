"""The blindfold top-Q attack: a few honest updates, larger than all forged ones, draw every challenge (study, A5).

Fang et al., EuroS&P 2023, arXiv 2208.03567. A verifier that takes the Q largest updates of each epoch again takes
honest ones again, and finds nothing. The rest is on straight lines, in pieces within delta.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

from pol.attacks.attack import Attack
from pol.attacks.deltas import apart, choosing, deltas, top
from pol.attacks.forger import Forger
from pol.attacks.infinitesimal import begun_long_enough, check_pieces
from pol.attacks.interpolation import between
from pol.attacks.lines import pieces
from pol.attacks.needs import DoesNotApply
from pol.attacks.untaken import lengthened, untaken
from pol.attacks.workshop import Workshop
from pol.distance import Distances
from pol.replay.state import State
from pol.verifier.paper_audit import windows

LARGER = 1.5
"""How much longer an honest update is than a forged one, by every metric: enough for the cosine to follow."""

TRIES, GROWTH = 8, 1.25
"""How often the honest updates of an epoch are made longer, and by how much, until they are the largest."""


def blindfold(workshop: Workshop, out: Path) -> None:
    """Per epoch Q honest intervals at rates that make them the largest; then a straight line, at rates of about 0.

    The published attack has 200 epochs, Q = 5, k = 10 and steps of d0 / 200; here epochs, k and lengths follow from
    delta, and k = 1 costs the fewest gradients.
    """
    limits, count, stolen = deltas(workshop.policy), top(workshop.policy), workshop.stolen()
    forger = begun_long_enough(workshop, workshop.begin, lambda run: _needed(run, stolen, limits, count), {})
    first, intervals = forger.states[0], len(forger.kept) - 1
    for window in covered(forger):
        if window:
            aim = _on_the_way(first, stolen, window.stop / intervals)
            if not any(hidden(workshop, forger, window, aim, count, GROWTH**number) for number in range(TRIES)):
                raise DoesNotApply(f"this attack needs honest updates that are the largest: not so those of {window}")
    reached = covered(forger)[-1].stop
    if reached < intervals:  # the last is in no window
        bridge(workshop, forger, range(reached, intervals), stolen)
    forger.states[forger.steps] = workshop.dressed(forger.states[forger.steps])
    _check(forger, limits, count)
    forger.seal(out, workshop.key)


def covered(forger: Forger) -> list[range]:
    """The intervals that a look at each epoch takes in."""
    spec = forger.genesis.spec
    return windows(spec.steps, spec.declaration.epochs, spec.every * spec.keep)


def least(count: int) -> int:
    """Of how many intervals a window is, if ``count`` of them stray and the others make up for that."""
    return math.floor(count * (1 + LARGER)) + 1


def _worth(window: range, count: int) -> float:
    """How many pieces' worth of way a window makes."""
    if len(window) < least(count):
        raise DoesNotApply(f"this attack needs epochs of {least(count)} kept states; these have {len(window)}")
    return len(window) - count * (1 + LARGER)


def _needed(forger: Forger, stolen: State, limits: dict[str, float], count: int) -> int:
    """Intervals of a run whose forged pieces are within the limits."""
    share = min(_worth(window, count) / len(window) for window in covered(forger) if window)
    return math.ceil(pieces(forger.states[0], stolen, limits) / share)


def hidden(
    workshop: Workshop, forger: Forger, window: range, aim: State, count: int, longer: float = 1.0
) -> bool:  # fmt: skip
    """Honest updates, then a straight line to ``aim``; whether the honest ones are the largest, by every metric.

    Args:
        workshop: Where.
        forger: Whose intervals; the state before them is there.
        window: These intervals, between states that are kept.
        aim: The state after them, as far as weights and buffers go.
        count: How many are honest.
        longer: How many times longer than should do.

    Raises:
        DoesNotApply: there are too few.
    """
    metrics, worth = choosing(workshop.policy), _worth(window, count)
    start, turn = forger.kept[window.start], forger.kept[window.start + count]
    whole = apart(forger.states[start], aim)
    if count:
        names = {*metrics, "l2"} - {"cos"}
        lengths = {name: longer * LARGER * whole.metric(name) / worth for name in names}
        lengthened(workshop, forger, start, turn, lengths)
    bridge(workshop, forger, range(window.start + count, window.stop), aim)
    return _masked(_sizes(forger, window), count, metrics)


def bridge(workshop: Workshop, forger: Forger, indices: range, aim: State) -> None:
    """Intervals whose steps are not taken: points of the straight line from the state before them to ``aim``.

    ``indices`` count intervals between states that are kept, as all windows do.
    """
    steps = forger.kept[indices.start : indices.stop + 1]
    untaken(workshop, forger, steps[0], steps[-1])
    first = forger.states[steps[0]]
    for number, step in enumerate(steps[1:], 1):
        forger.states[step] = _on_the_way(first, aim, number / len(indices))


def _on_the_way(first: State, aim: State, share: float) -> State:
    """A point of the straight line; of what only one of them has, that of the first."""
    return State({
        key: between(tensor, aim.tensors[key], share) if key in aim.tensors and _is_weight(key) else tensor.clone()
        for key, tensor in first.tensors.items()
    })  # fmt: skip


def _is_weight(key: str) -> bool:
    return key.startswith(("parameter/", "buffer/", "transient/"))


def _sizes(forger: Forger, window: range) -> list[Distances]:
    steps = forger.kept[window.start : window.stop + 1]
    return [apart(forger.states[a], forger.states[b]) for a, b in pairwise(steps)]


def _masked(sizes: list[Distances], count: int, metrics: tuple[str, ...]) -> bool:
    """Whether the first ``count`` updates are larger than all others, by every metric."""
    return all(
        min((size.metric(name) for size in sizes[:count]), default=math.inf)
        > max((size.metric(name) for size in sizes[count:]), default=0.0)
        for name in metrics
    )


def _check(forger: Forger, limits: dict[str, float], count: int) -> None:
    """Every forged piece is within the limits."""
    honest = {forger.kept[index + 1] for window in covered(forger) for index in window[:count]}
    check_pieces(forger, limits, honest)


ATTACKS = (
    Attack(
        "blindfold",
        "a few honest updates per epoch, larger than the forged rest",
        "thief",
        blindfold,
        study=("A5",),
        reported="passes Q = 5 in all 200 epochs, for 13 % of the gradients (Fang et al., EuroS&P 2023)",
        adapts="paper-2021",
    ),
)
