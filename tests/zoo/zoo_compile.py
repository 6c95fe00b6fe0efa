"""Honest trainings whose model or step is compiled: slow, because a C++ compiler is called."""

import torch
from torch import nn
from zoo_base import Base, network, sgd


class Compiled(Base):
    """The model itself is compiled, with batch normalisation and dropout in it."""

    num_epochs = 1
    batch_size = 5

    def build(self):
        model = torch.compile(network())
        return {"model": model, "optimizer": sgd(model)}


class CompiledStep(Base):
    """A function inside of the step is compiled; the model is not."""

    num_epochs = 1
    batch_size = 5

    def build(self):
        parts = super().build()
        self.smoothed = torch.compile(lambda logits, y: nn.functional.cross_entropy(logits, y, label_smoothing=0.1))
        return parts

    def loss(self, parts, batch):
        return self.smoothed(parts.model(batch["x"]), batch["y"])
