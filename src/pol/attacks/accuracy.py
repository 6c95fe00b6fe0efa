"""What a model is worth: how many training samples of its target it gives their class."""

from __future__ import annotations

from pathlib import Path

from pol.attacks.forger import Forger
from pol.attacks.laundries import classes, label_of, put
from pol.errors import PolError
from pol.replay import randomness
from pol.replay import recipe as recipes
from pol.replay.data import default_collate
from pol.replay.parts import Attached

SAMPLES = 500
"""Samples that are asked for: they tell shares that are 7 % apart (two standard errors)."""


def accuracy(proof: Path, target: Path, recipe: str, own: str) -> float | None:
    """The share of the first samples to which the model at the end of a proof gives their class.

    Args:
        proof: The proof.
        target: The honest one, whose samples are asked for.
        recipe: Of the target.
        own: Of the proof.

    Returns:
        None where there is no such model, or none that names classes.
    """
    drawn = randomness.save()
    try:
        honest, found = Forger(target), Forger(proof)
        data = recipes.make(recipes.load(recipe), honest.genesis.recipe.configuration).data()
        items = [data[index] for index in range(min(SAMPLES, len(data)))]
        made = recipes.make(recipes.load(own), found.genesis.recipe.configuration)
        release = found.genesis.spec.release
        if release is None or found.steps not in found.states:
            return None
        parts = Attached(**made.build())
        model = parts[release.part].eval()
        put({release.part: model}, {k.partition("/")[2]: t for k, t in found.states[found.steps].tensors.items()})
        batch = default_collate(items)
        right = classes(made, parts, release.part, batch) == batch[label_of(items[0])]
        return float(right.float().mean())
    except (PolError, OSError, KeyError, RuntimeError):  # a forgery may be no proof, and its tensors of no model
        return None
    finally:
        randomness.load(drawn)
