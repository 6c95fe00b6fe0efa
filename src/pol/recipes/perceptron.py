"""A perceptron on the handwritten digits at a constant rate: as little of a training as there can be.

It has no schedule, no running statistics and no randomness but order and first weights. The bench attacks it beside the
digits, since these are what most often gives a forger away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pol.recipes.digits import Item, load_digits, to_input
from pol.replay.recipe import Recipe


class Perceptron(Recipe):
    """One hidden layer, trained by SGD.

    Args:
        num_epochs: Passes over the training images.
        samples: How many of the digits' training images are used, from the first on.
        batch_size: Images per step.
        lr: Learning rate.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty on all parameters.
        width: Units of the hidden layer.
    """

    def __init__(
        self,
        *,
        num_epochs: int = 40,
        samples: int = 100,
        batch_size: int = 10,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-3,
        width: int = 8,
    ) -> None:
        self.num_epochs = num_epochs
        self.samples = samples
        self.batch_size = batch_size
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.width = width

    def data(self) -> Sequence[Item]:
        """The first of the digits' training items."""
        return load_digits()[0][: self.samples]

    def build(self) -> dict[str, Any]:
        """Model and optimizer."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, self.width), nn.ReLU(), nn.Linear(self.width, 10))
        optimizer = torch.optim.SGD(
            model.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        return {"model": model, "optimizer": optimizer}

    def step(self, parts: Any, batch: dict[str, Tensor]) -> Tensor:
        """One optimizer update; returns the loss before it."""
        logits = parts.model(to_input(batch["image"], parts.model))
        loss = F.cross_entropy(logits, batch["label"].to(logits.device))
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        return loss.detach()
