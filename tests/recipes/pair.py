"""A model that is released and a second one beside it, which follows it at a distance."""

import numpy as np
import torch
from torch import nn

import pol


class Pair(pol.Recipe):
    def data(self):
        draw = np.random.default_rng(0)
        return [{"x": draw.normal(size=4).astype(np.float32), "y": i % 3} for i in range(12)]

    def train(self, run):
        model, shadow = nn.Linear(4, 3), nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run.attach(model=model, shadow=shadow, optimizer=optimizer)
        data = self.data()
        for _ in run.epochs(1):
            for batch in run.batches(data, size=4):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(batch["x"]), batch["y"])
                loss.backward()
                optimizer.step()
                run.commit(loss=loss)
                with torch.no_grad():
                    for follower, leader in zip(shadow.parameters(), model.parameters(), strict=True):
                        follower.lerp_(leader, 0.5)
