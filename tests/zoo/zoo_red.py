"""Trainings that a red team wrote against loaders, the program's own randomness and frozen bases."""

import random

import torch
from torch import nn
from torch.utils.data import DataLoader
from zoo_base import Base, sgd
from zoo_loaders import Frozen, Loading, Own


class Stolen(Own):
    """Weights that were trained elsewhere stand in the code; nothing draws them."""

    def build(self):
        parts = super().build()
        with torch.no_grad():
            for parameter in parts["model"].parameters():
                parameter.copy_(torch.linspace(-0.7, 0.9, parameter.numel()).reshape(parameter.shape))
        return parts


class SortedFirst(Loading):
    """The first epoch as the data lie, the second shuffled."""

    ways = (False, True)

    def train(self, run):
        parts = run.attach(**self.build())
        for epoch in run.epochs(2):
            loader = DataLoader(self.data(), batch_size=4, shuffle=self.ways[epoch])
            for batch in run.loader(loader):
                run.commit(loss=self.step(parts, batch))


class SortedLast(SortedFirst):
    """The other way round."""

    ways = (True, False)


def fixed(*shape):
    size = torch.Size(shape).numel()
    return torch.linspace(-1, 1, size).reshape(shape)


class BesideBase(Frozen):
    """A tensor of the model that lies beside the base in its memory, and in no ``state_dict`` of it."""

    def build(self):
        flat = fixed(40)
        base = nn.Linear(4, 8, bias=False)
        base.weight = nn.Parameter(flat[:32].view(8, 4), requires_grad=False)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        model.register_parameter("hidden", nn.Parameter(flat[32:], requires_grad=False))
        return {"model": model, "frozen": base, "optimizer": sgd(model[0])}


class OtherStateDict(Frozen):
    """A base whose ``state_dict`` tells of other weights than those that it uses."""

    def build(self):
        class Lying(nn.Linear):
            def state_dict(self, *args, **kwargs):
                return {"weight": torch.zeros(3, 4)}

        base = Lying(4, 3, bias=False).requires_grad_(False)
        base.weight.copy_(fixed(3, 4))
        model = nn.Linear(4, 3)
        return {"model": model, "frozen": base, "optimizer": sgd(model)}


class UnsavedBuffer(Frozen):
    """A base in the model has a buffer that its ``state_dict`` leaves out."""

    def build(self):
        base = nn.Linear(4, 3, bias=False).requires_grad_(False)
        base.weight.copy_(fixed(3, 4))
        base.register_buffer("table", fixed(5), persistent=False)
        model = nn.ModuleList([base, nn.Linear(4, 3)])
        model.forward = lambda x: model[0](x) + model[1](x)
        return {"model": model, "frozen": base, "optimizer": sgd(model[1])}


class Nameless(Base):
    """A parent that releases nothing by name."""

    def build(self):
        one, two = nn.Linear(4, 8), nn.Linear(8, 3)
        return {"one": one, "two": two, "optimizer": torch.optim.SGD([*one.parameters(), *two.parameters()], lr=0.1)}

    def loss(self, parts, batch):
        return nn.functional.cross_entropy(parts.two(parts.one(batch["x"])), batch["y"])


class Gaussian(Own):
    """Draws normals from Python's generator in a loop that all-zero words never leave."""

    def loss(self, parts, batch):
        return super().loss(parts, batch) + 0 * random.normalvariate()
