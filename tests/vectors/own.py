"""The recipes behind two golden proofs: their bytes are part of them, so never change this file or toy_data.py."""

import random

import numpy as np
import torch
import toy_data
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import pol


def fields(items):
    """A batch of samples of the toy data."""
    return {
        "x": torch.from_numpy(np.stack([item["x"] for item in items])),
        "y": torch.tensor([item["y"] for item in items]),
    }


class Adapted(nn.Module):
    """A frozen layer and what is trained beside it."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.beside = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Dropout(0.1), nn.Linear(2, 3))

    def forward(self, x):
        return self.base(x) + self.beside(x)


class Own(pol.Recipe):
    """Its own seeds and its own shuffling, over a frozen base."""

    def data(self):
        return toy_data.samples()

    def loader(self):
        return DataLoader(self.data(), batch_size=8, shuffle=True, collate_fn=fields)

    def attach(self, run, **parts):
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)
        base = nn.Linear(4, 3)
        with torch.no_grad():
            base.weight.copy_(torch.arange(12).reshape(3, 4) / 8)
            base.bias.fill_(0.5)
        base.requires_grad_(False)
        model = Adapted(base)
        optimizer = torch.optim.SGD(model.beside.parameters(), lr=0.1, momentum=0.9)
        return run.attach(model=model, optimizer=optimizer, frozen=base, **parts)

    def train(self, run):
        parts = self.attach(run, randomness="observed")
        loader = self.loader()
        for _ in run.epochs(2):
            for batch in run.loader(loader):
                loss = nn.functional.cross_entropy(parts.model(batch["x"].float() / 13), batch["y"])
                parts.optimizer.zero_grad()
                loss.backward()
                parts.optimizer.step()
                run.commit(loss=loss)


class Passing(IterableDataset):
    """The toy data as they pass by."""

    def __iter__(self):
        return iter(toy_data.samples())

    def __len__(self):
        return 30


class Stream(Own):
    """A stream under the randomness of the run."""

    def loader(self):
        return DataLoader(Passing(), batch_size=8, collate_fn=fields)

    def attach(self, run, **parts):
        model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.1), nn.Linear(6, 3))
        return run.attach(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
