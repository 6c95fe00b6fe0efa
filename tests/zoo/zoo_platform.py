"""A training whose bits depend on the vector instructions of the machine."""

import torch
from torch import nn
from zoo_base import Base


class Vectors(Base):
    """Exponentials and long sums, which every instruction set rounds in its own way."""

    def build(self):
        model = nn.Sequential(nn.Linear(4, 257), nn.GELU(), nn.LayerNorm(257), nn.Linear(257, 3))
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01)}

    def loss(self, parts, batch):
        return super().loss(parts, batch) + parts.model[0].weight.exp().sum() * 1e-3
