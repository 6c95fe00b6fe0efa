"""The dataset of a recipe, opened once and used again when the same job enters the program anew.

Only where that cannot make a difference: ``train`` is the ordinary loop, so nothing but the steps comes between
``data()`` and the samples, and a training that can be entered at every boundary has steps that change no later sample;
``data()`` is called after ``attach``, draws nothing, and leaves nothing in the recipe but what it returns. Every sample
is fetched and hashed each time as before. A ``train`` of one's own may shuffle or change what ``data()`` gave it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pol.replay import openings, randomness
from pol.replay.recipe import Recipe


class Dataset:
    """What ``data()`` has returned in this job."""

    def __init__(self) -> None:
        self._kept: tuple[Any, list[str]] | None = None

    def lend(self, recipe: Recipe) -> None:
        """Have this recipe, newly made, open its dataset only if no earlier one has."""
        if type(recipe).train is Recipe.train:
            recipe.data = partial(self._data, recipe, recipe.data)  # type: ignore[method-assign]

    def _data(self, recipe: Recipe, opening: Callable[[], Any]) -> Any:
        if openings.watching():  # a build that opens it reads files, which the declaration names
            return opening()
        if self._kept is not None:
            data, names = self._kept
            vars(recipe).update(dict.fromkeys(names, data))
            return data
        before, own = randomness.save(), dict(vars(recipe))
        data = opening()
        now = vars(recipe)
        changed = [name for name in own.keys() | now.keys() if name not in own or own[name] is not now.get(name)]
        if randomness.unchanged(before) and all(now.get(name) is data for name in changed):
            self._kept = data, changed
        return data
