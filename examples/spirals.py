import numpy as np
import torch
from torch import nn

import pol


class Spirals(pol.Recipe):
    """Two spirals, a small network, and a loop of one's own."""

    def __init__(self, lr: float = 0.1) -> None:
        self.lr = lr

    def data(self):
        t = np.repeat(np.linspace(0.2, 1.5, 300), 2)
        turn = np.where(np.arange(600) % 2, np.pi, 0) + 2 * np.pi * t
        points = np.stack([t * np.cos(turn), t * np.sin(turn)], axis=1).astype(np.float32)
        return [{"point": point, "arm": i % 2} for i, point in enumerate(points)]

    def train(self, run):
        model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9)
        run.attach(model=model, optimizer=optimizer)  # 1. everything that evolves
        data = self.data()
        for _ in run.epochs(20):  # 2. instead of range(20)
            for batch in run.batches(data, size=50):  # 3. instead of a DataLoader
                loss = nn.functional.cross_entropy(model(batch["point"]), batch["arm"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.commit(loss=loss)  # 4. one optimizer step is done
