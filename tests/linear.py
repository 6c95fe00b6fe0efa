"""A recipe that takes many steps in no time."""

import numpy as np
import torch
from torch import nn

from pol.replay.recipe import Recipe


class Linear(Recipe):
    batch_size = 4

    def __init__(self, num_epochs: int = 20, lr: float = 0.1) -> None:
        self.num_epochs = num_epochs
        self.lr = lr

    def data(self):
        rng = np.random.default_rng(0)
        return [{"x": rng.normal(size=3).astype("float32"), "y": int(i % 2)} for i in range(40)]

    def build(self):
        model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9)}

    def step(self, parts, batch):
        loss = nn.functional.cross_entropy(parts.model(batch["x"]), batch["y"])
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        return loss
