"""A training whose bits depend on the vector instructions of the machine."""

import numpy as np
import torch
from torch import nn
from zoo_base import Base, sgd


class Vectors(Base):
    """Exponentials and long sums, which every instruction set rounds in its own way."""

    def build(self):
        model = nn.Sequential(nn.Linear(4, 257), nn.GELU(), nn.LayerNorm(257), nn.Linear(257, 3))
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01)}

    def loss(self, parts, batch):
        return super().loss(parts, batch) + parts.model[0].weight.exp().sum() * 1e-3


class Drowned(Vectors):
    """Trains nothing but what a normalisation takes out again: its gradients are rounding, and Adam divides them by
    their own size, so that steps of full length go where the rounding points."""

    def build(self):
        model = nn.Sequential(nn.Linear(4, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(64, 3))
        for parameter in model[1:].parameters():
            parameter.requires_grad_(False)
        model[0].weight.requires_grad_(False)
        return {"model": model, "optimizer": torch.optim.Adam([model[0].bias], lr=0.01)}


class Chaotic(Base):
    """A deep network with normalisation at a high rate: small differences grow a hundredfold in a few steps."""

    num_epochs = 3

    def build(self):
        inner = [layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())]
        model = nn.Sequential(nn.Linear(4, 64), *inner, nn.Linear(64, 3))
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)}


class Positions(Vectors):
    """Constants that are computed in floating point, and kept with the weights."""

    def build(self):
        parts = super().build()
        waves = torch.linspace(-3.0, 3.0, 512)
        parts["model"].register_buffer("positions", waves.exp() + (100 * waves).sin())
        return parts


class Zero(Base):
    """Weights that begin as zeros, and samples whose means are alike in every class: at the first step all gradients
    are rounding, and Adam takes full steps where it points."""

    batch_size = 500

    def data(self):
        means = (30 * np.random.default_rng(0).normal(size=(50, 64))).astype("float32")
        return [{"x": means[i // 10], "y": i % 10} for i in range(500)]

    def build(self):
        model = nn.Linear(64, 10)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.01)}


class Computed(Base):
    """A dataset that is computed in floating point, as normalised pictures are."""

    def data(self):
        found = super().data()
        waves = torch.linspace(0.1, 3.0, 4 * len(found)).exp().sin().reshape(-1, 4)
        return [{**item, "x": wave.numpy()} for item, wave in zip(found, waves, strict=True)]

    def build(self):
        model = nn.Sequential(nn.Linear(4, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(64, 3))
        return {"model": model, "optimizer": sgd(model)}
