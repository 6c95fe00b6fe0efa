"""Random numbers that are chosen where they should follow from the seed, with the excuse that they are random."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from pol.attacks.attack import Attack
from pol.attacks.needs import DoesNotApply
from pol.attacks.rehearsal import Before, Rehearsal, apart, numbered, taken
from pol.attacks.workshop import Workshop
from pol.order import epoch_order
from pol.replay import randomness
from pol.replay.randomness import Streams
from pol.replay.recipe import Recipe

MASKS = 4
"""Masks and augmentations of which each step has those that suit: each costs a gradient, as much as the step itself."""


def chosen_masks(workshop: Workshop, out: Path) -> None:
    """Each step has those of a few masks and augmentations that lead nearest to the stolen weights (T24)."""
    forger, stolen = workshop.begin(), workshop.stolen().tensors
    tries = []
    for number in range(MASKS):
        other = copy.copy(forger)
        other.r = bytes([forger.r[0] ^ (number + 1), *forger.r[1:]])  # another seed, for what is drawn in steps
        tries.append((Streams(other.seed), Rehearsal(workshop, other)))
    size, differ = forger.genesis.spec.declaration.samples, False

    def step(at: int, recipe: Recipe, parts: Any, batch: Any) -> Any:
        nonlocal differ
        epoch, places = tries[0][1].place(at)
        indices = epoch_order(forger.seed, epoch, size)[places].tolist()
        before, own, found = Before(parts), randomness.save(), []
        for streams, rehearsal in tries:
            batch = rehearsal.batch(at, indices)
            drawn = streams.step(at, {})
            end, _ = before.after(recipe, batch, drawn)
            found.append((apart(end, stolen), batch, drawn))
        workshop.gradients += MASKS
        randomness.load(own)
        differ = differ or len({away for away, *_ in found}) > 1
        _, batch, drawn = min(found, key=lambda one: one[0])
        randomness.load(drawn)
        return taken(recipe, parts, batch)

    workshop.train(forger, step=numbered(step))
    if not differ:
        raise DoesNotApply("this attack needs a training with dropout or augmentation")
    forger.seal(out, workshop.key)


ATTACKS = (
    Attack(
        "chosen-masks",
        "masks and augmentations chosen at every step, as if they were random",
        "thief",
        chosen_masks,
        study=("T24",),
        reported="augmentation has no seed in replays of the released code, so they are never exact (attack study, "
        "section 5)",
    ),
)
