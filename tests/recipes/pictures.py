"""A training on images that are too large for numpy to print whole."""

import numpy as np
import torch
from torch import nn

from pol.replay.recipe import Recipe

SIDE = 20


class Pictures(Recipe):
    batch_size = 4

    def __init__(self, num_epochs: int = 2, lr: float = 0.02) -> None:
        self.num_epochs, self.lr = num_epochs, lr

    def data(self):
        rng = np.random.default_rng(0)
        return [{"x": rng.normal(size=(SIDE, SIDE, 3)).astype("float32"), "y": i % 3} for i in range(28)]

    def build(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 3))
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9)}

    def step(self, parts, batch):
        loss = nn.functional.cross_entropy(parts.model(batch["x"]), batch["y"])
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        return loss
