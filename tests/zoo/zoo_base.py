"""What the recipes of the zoo share: a small dataset, a small network, the usual step."""

import numpy as np
import torch
from torch import nn

from pol import Recipe

SAMPLES = 22  # with batches of 4: six an epoch, the last of two samples


def samples(count=SAMPLES):
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=4).astype("float32"), "y": i % 3} for i in range(count)]


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})


class Base(Recipe):
    """Two epochs of six steps; overridden piece by piece."""

    num_epochs = 2
    batch_size = 4

    def data(self):
        return samples()

    def build(self):
        model = network()
        return {"model": model, "optimizer": sgd(model)}

    def loss(self, parts, batch):
        return nn.functional.cross_entropy(parts.model(batch["x"]), batch["y"])

    def step(self, parts, batch):
        loss = self.loss(parts, batch)
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        return loss


def update(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss
