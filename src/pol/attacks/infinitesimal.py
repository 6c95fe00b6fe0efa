"""The infinitesimal update attack: so many steps that none of them is larger than delta (attack study, A4).

Fang et al., EuroS&P 2023, arXiv 2208.03567. Nothing is trained. A replay at a learning rate of about 0 ends where it
began, so its error is the size of the piece, which the forger chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from pol.attacks.attack import Attack
from pol.attacks.deltas import apart, deltas
from pol.attacks.forger import Forger
from pol.attacks.interpolation import straight
from pol.attacks.lines import MOST, pieces
from pol.attacks.needs import DoesNotApply
from pol.attacks.starts import begun, matched
from pol.attacks.untaken import STILL, untaken
from pol.attacks.workshop import Workshop

SPARE = 1.1
"""How many more pieces are registered than one start needed: the next start is another."""

TRIES = 8
"""How often a longer run is begun: starts of one law are about equally far from the stolen weights."""

Begin = Callable[..., Forger]


def infinitesimal(workshop: Workshop, out: Path) -> None:
    """From an honest first state."""
    _line(workshop, workshop.begin).seal(out, workshop.key)


def infinitesimal_matched(workshop: Workshop, out: Path) -> None:
    """From fresh draws in the order of the stolen weights, which is nearer; the genesis says that they were given."""
    _line(workshop, partial(begun, workshop, matched)).seal(out, workshop.key)


def _line(workshop: Workshop, begin: Begin) -> Forger:
    limits, stolen = deltas(workshop.policy), workshop.stolen()
    registered = {"lr": STILL} if "lr" in workshop.open().genesis.recipe.configuration else {}
    forger = begun_long_enough(workshop, begin, lambda run: pieces(run.states[0], stolen, limits), registered)
    untaken(workshop, forger, rate=None if registered else STILL)
    straight(forger, stolen)
    check_pieces(forger, limits)
    return forger


def begun_long_enough(
    workshop: Workshop, begin: Begin, needed: Callable[[Forger], int], settings: dict[str, Any]
) -> Forger:
    """A run of one's own with as many kept states as it needs: as few epochs as will do, and k = 1.

    A forger chooses both, and every step less is a batch less to log.

    Args:
        workshop: Where.
        begin: Begins a run with ``settings`` and ``every``.
        needed: How many pieces a run that was begun should have.
        settings: Others that are registered.

    Raises:
        DoesNotApply: the recipe has no setting ``num_epochs``, and its own are too few; or no run is long enough.
    """
    target = workshop.open()
    spec, free = target.genesis.spec, "num_epochs" in target.genesis.recipe.configuration
    per_epoch = spec.declaration.steps_per_epoch(spec.batches_per_step)
    wanted = 1
    for _ in range(TRIES):
        epochs = math.ceil(wanted * spec.keep / per_epoch)
        forger = begin(settings={**settings, **({"num_epochs": epochs} if free else {})}, every=1)
        there, wanted = len(forger.kept) - 1, needed(forger)
        if wanted <= there:
            return forger
        if not free:
            workshop.configured(target, "num_epochs")
        if wanted > MOST:
            break
        wanted = math.ceil(SPARE * max(wanted, there))
    raise DoesNotApply(f"this attack needs limits that {MOST} steps can keep to; these need {wanted}")


def check_pieces(forger: Forger, limits: dict[str, float], honest: Collection[int] = ()) -> None:
    """What the published code does, too: give up if a piece is too long, save those that end at ``honest`` steps.

    Raises:
        DoesNotApply: one is.
    """
    for before, after in pairwise(forger.kept):
        if after in honest:
            continue
        found = apart(forger.states[before], forger.states[after])
        for name, limit in limits.items():
            if found.metric(name) > limit:
                raise DoesNotApply(f"this attack needs smaller pieces: {name} is {found.metric(name):.3g} of {limit:g}")


REPORTED = "passes for every k and every delta > 0, for about one forward pass (Fang et al., EuroS&P 2023)"

ATTACKS = (
    Attack(
        "infinitesimal",
        "a straight line in so many pieces that each is within delta, at rates of about 0",
        "thief",
        infinitesimal,
        study=("A4",),
        reported=REPORTED,
        adapts="paper-2021",
    ),
    Attack(
        "infinitesimal-matched",
        "the same from fresh draws in the order of the stolen weights",
        "thief",
        infinitesimal_matched,
        study=("A4", "A6"),
        reported=REPORTED,
        adapts="paper-2021",
    ),
)
