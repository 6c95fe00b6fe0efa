"""Recipes that are changed: the digits CNN without normalisation or with AdamW, and what a cheat or a wider type does.

The file stands alone, so that a training process can load it by its path. A ``Changed`` recipe wraps another one; it is
only ever replayed from a recorded state, never recorded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pol.recipes.digits import DigitsCNN
from pol.replay import recipe as recipes
from pol.replay.recipe import Recipe


class Digits(DigitsCNN):
    """The digits CNN with or without batch normalisation, trained by SGD (Nesterov's momentum) or AdamW.

    Args:
        num_epochs, batch_size, lr, weight_decay: As in ``DigitsCNN``, of either optimizer.
        norm: Whether there is batch normalisation; without it the convolutions stay as they are.
        adamw: Whether AdamW takes the place of SGD.
    """

    def __init__(
        self, *, num_epochs: int = 12, batch_size: int = 50, lr: float = 0.1, weight_decay: float = 5e-4,
        norm: bool = True, adamw: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(num_epochs=num_epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay)
        self.norm, self.adamw = norm, adamw

    def build(self) -> dict[str, Any]:
        """Model, optimizer and schedule; the first weights are the same for all four."""
        made = super().build()
        model, (factor,) = made["model"], made["scheduler"].lr_lambdas
        if not self.norm:
            layers = [layer for layer in model if not isinstance(layer, nn.BatchNorm2d)]
            model = nn.Sequential(*layers)
        optimizer: torch.optim.Optimizer
        if self.adamw:
            optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        else:
            optimizer = torch.optim.SGD(
                model.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=True
            )
        return {
            "model": model,
            "optimizer": optimizer,
            "scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor),
        }


class Changed(Recipe):
    """Another recipe with a change; see its subclasses.

    Args:
        reference: Of the other recipe.
        settings: Its constructor arguments.
    """

    def __init__(self, *, reference: str, settings: dict[str, Any]) -> None:
        self.reference, self.settings = reference, settings

    def train(self, run: Any) -> None:
        """The loop of the other recipe, changed."""
        recipe = recipes.load(self.reference)(**self.settings)
        self.change(recipe)
        recipe.train(run)

    def change(self, recipe: Any) -> None:
        """Change the other recipe before it trains."""
        raise NotImplementedError


class Relabelled(Changed):
    """With another label at one sample; of a text, the last character of one window, which is nothing but a label.

    Args:
        reference, settings: See ``Changed``.
        index: Of the sample.
    """

    def __init__(self, *, reference: str, settings: dict[str, Any], index: int) -> None:
        super().__init__(reference=reference, settings=settings)
        self.index = index

    def change(self, recipe: Any) -> None:
        """Wrap the dataset."""
        data = recipe.data
        recipe.data = lambda: Edited(data(), self.index)


class Edited:
    """A dataset in which one label is another."""

    def __init__(self, data: Any, index: int) -> None:
        self.data, self.index = data, index

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        item = self.data[index]
        return relabelled(item) if index == self.index else item


def relabelled(item: dict[str, Any]) -> dict[str, Any]:
    """An item with the next label of ten, or with another last byte."""
    if "label" in item:
        return {**item, "label": (item["label"] + 1) % 10}
    tokens = item["tokens"].copy()
    tokens[-1] ^= 1
    return {**item, "tokens": tokens}


class Wide(Changed):
    """Computed in float64: what its steps lead to without the rounding of float32."""

    def change(self, recipe: Any) -> None:
        """Widen the model after it is built, and what it is given."""
        build = recipe.build

        def built() -> dict[str, Any]:
            parts: dict[str, Any] = build()
            parts["model"].double()  # in place: the optimizer holds the same parameters
            parts["model"].register_forward_pre_hook(_widen)
            return parts

        recipe.build = built


def _widen(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.double() if torch.is_floating_point(value) else value for value in given)
