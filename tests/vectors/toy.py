"""The recipe behind the golden proofs. Its bytes are part of them: never change this file or toy_data.py."""

import torch
import toy_data
from torch import nn

import pol


class Toy(pol.Recipe):
    """A small perceptron with batch normalisation, dropout, momentum, a schedule and augmentation."""

    num_epochs = 2
    batch_size = 8

    def __init__(self, lr: float = 0.1, width: int = 6) -> None:
        self.lr = lr
        self.width = width

    def data(self):
        return toy_data.samples()

    def transform(self, item, rng):
        return toy_data.shifted(item, rng)

    def build(self):
        model = nn.Sequential(
            nn.Linear(4, self.width),
            nn.BatchNorm1d(self.width),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(self.width, 3),
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
        return {"model": model, "optimizer": optimizer, "scheduler": scheduler}

    def step(self, parts, batch):
        logits = parts.model(batch["x"].float() / 13)
        loss = nn.functional.cross_entropy(logits, batch["y"])
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        parts.scheduler.step()
        return loss
