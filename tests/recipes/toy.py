"""A small training with everything that evolves: batch normalisation, dropout, momentum, schedule, augmentation."""

import numpy as np
import torch
from torch import nn

from pol.replay.recipe import Recipe

SAMPLES = 50
WARMUP = 3


class Toy(Recipe):
    num_epochs = 2
    batch_size = 8  # the last batch of an epoch has two samples: 7 steps each, 14 in all

    def __init__(self, lr: float = 0.1):
        self.lr = lr

    def data(self):
        rng = np.random.default_rng(0)
        return [{"x": rng.normal(size=4).astype("float32"), "y": i % 3} for i in range(SAMPLES)]

    def transform(self, item, rng):
        return {**item, "x": item["x"] + 0.01 * rng.normal(size=4).astype("float32")}

    def build(self):
        model = nn.Sequential(
            nn.Linear(4, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3)
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9)
        # Up from above zero, then slowly down: no two neighbouring steps have the same rate.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / WARMUP, 1 - 0.02 * step))
        return {"model": model, "optimizer": optimizer, "scheduler": schedule}

    def step(self, parts, batch):
        loss = nn.functional.cross_entropy(parts.model(batch["x"]), batch["y"])
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        parts.scheduler.step()
        return loss
