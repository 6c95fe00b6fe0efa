"""Honest trainings whose model or step is compiled: slow, because a C++ compiler is called."""

import torch
from torch import nn
from zoo_base import Base, network, sgd


class Compiled(Base):
    """The model itself is compiled, with batch normalisation and dropout in it; the last batch of an epoch, also of
    the first, is smaller."""

    batch_size = 8

    def build(self):
        model = torch.compile(network())
        return {"model": model, "optimizer": sgd(model)}


class CompiledDynamic(Compiled):
    """One kernel for all shapes, from the first on."""

    def build(self):
        model = torch.compile(network(), dynamic=True)
        return {"model": model, "optimizer": sgd(model)}


class Eager(Compiled):
    """The same, uncompiled."""

    def build(self):
        model = network()
        return {"model": model, "optimizer": sgd(model)}


class CompiledFunction(Base):
    """A function that is called in the step is compiled; the model is not."""

    batch_size = 8

    def build(self):
        self.smoothed = torch.compile(self.plain)
        return super().build()

    @staticmethod
    def plain(logits, y):
        return nn.functional.cross_entropy(nn.functional.dropout(logits, 0.1), y, label_smoothing=0.1)

    def loss(self, parts, batch):
        return self.smoothed(parts.model(batch["x"]), batch["y"])


class CompiledStep(Base):
    """Forward pass, loss and update are compiled, with the rate in a tensor, in the reduced-overhead mode."""

    batch_size = 8

    def build(self):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01))
        self.forward = torch.compile(super().loss, mode="reduce-overhead")
        self.update = torch.compile(optimizer.step)
        return {"model": model, "optimizer": optimizer}

    def step(self, parts, batch):
        loss = self.forward(parts, batch)
        parts.optimizer.zero_grad()
        loss.backward()
        self.update()
        return loss


class Shapes(Base):
    """More shapes than are compiled."""

    num_epochs = 40
    batch_size = 22

    def build(self):
        model = nn.Linear(4, 3)
        self.scaled = torch.compile(lambda x, number: x * number, backend="eager")
        return {"model": model, "optimizer": sgd(model)}

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                for number in range(70):
                    self.scaled(batch["x"], 1.0 + number)
                run.commit(loss=self.step(parts, batch))
