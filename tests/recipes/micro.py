"""A training that takes a step for every two batches."""

from plain import Plain
from torch import nn


class Micro(Plain):
    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            losses = []
            for number, batch in enumerate(run.batches(self.data(), size=2, drop_last=True)):
                losses.append(nn.functional.cross_entropy(parts.model(batch["x"]), batch["y"]))
                if number % 2:
                    parts.optimizer.zero_grad()
                    sum(losses).backward()
                    parts.optimizer.step()
                    run.commit(loss=sum(losses))
                    losses = []
