"""A model, and adapters that are trained over it."""

import torch
from safetensors.torch import load_file
from torch import nn
from zoo_base import Base, sgd
from zoo_loaders import Adapter


def body():
    return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))


class Parent(Base):
    def build(self):
        model = body()
        return {"model": model, "optimizer": sgd(model)}


class Child(Base):
    """Rank-1 adapters over a base from a file; only these are in the proof."""

    def __init__(self, base: str) -> None:
        self.base = base

    def build(self):
        base = body()
        base.load_state_dict(load_file(self.base))
        base.requires_grad_(False)
        layers = [Adapter(layer, rank=1) if isinstance(layer, nn.Linear) else layer for layer in base]
        model = nn.Sequential(*layers)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return {"model": model, "frozen": base, "optimizer": torch.optim.AdamW(trained, lr=1e-2)}
