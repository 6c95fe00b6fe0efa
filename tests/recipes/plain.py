"""A training without any schedule, whose weight decay can be set, with tensors of a few hundred values."""

import numpy as np
import torch
from torch import nn

from pol.replay.recipe import Recipe

WIDTH = 64


class Plain(Recipe):
    batch_size = 4

    def __init__(self, num_epochs: int = 2, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 1e-3) -> None:
        self.num_epochs, self.lr, self.momentum, self.weight_decay = num_epochs, lr, momentum, weight_decay

    def data(self):
        rng = np.random.default_rng(0)
        return [{"x": rng.normal(size=4).astype("float32"), "y": i % 3} for i in range(28)]

    def build(self):
        model = nn.Sequential(nn.Linear(4, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3))
        options = {"lr": self.lr, "momentum": self.momentum, "weight_decay": self.weight_decay}
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), **options)}

    def step(self, parts, batch):
        loss = nn.functional.cross_entropy(parts.model(batch["x"]), batch["y"])
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        return loss


class Halved(Plain):
    """The same in half precision."""

    def build(self):
        parts = super().build()
        parts["model"].bfloat16()
        return parts

    def step(self, parts, batch):
        return super().step(parts, {**batch, "x": batch["x"].bfloat16()})


class Doubled(Plain):
    """The same in double precision."""

    def build(self):
        parts = super().build()
        parts["model"].double()
        return parts

    def step(self, parts, batch):
        return super().step(parts, {**batch, "x": batch["x"].double()})
