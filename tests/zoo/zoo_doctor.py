"""Programs that are not the same when they are taken again, or entered in the middle: one for each cause."""

import os
import time

import numpy as np
import torch
from torch import nn
from zoo_base import Base, network, samples, sgd

from pol.replay.data import default_collate


class Exact(Base):
    """Nothing is wrong."""


class UnseededTransform(Base):
    """Augmentation from a generator that nobody seeded."""

    def transform(self, item, rng):
        return {**item, "x": item["x"] + np.random.default_rng().normal(size=4).astype("float32")}


class OwnTransform(Base):
    """Augmentation from a seeded generator of its own, which goes on from sample to sample."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def transform(self, item, rng):
        return {**item, "x": item["x"] + self.rng.normal(size=4).astype("float32")}


class Counter(Base):
    """A number of its own that the loss depends on."""

    def __init__(self):
        self.seen = 0

    def loss(self, parts, batch):
        self.seen += 1
        return super().loss(parts, batch) * (1 + 0.1 * self.seen)


class Generator(Base):
    """A seeded generator of numpy's that is not attached."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def loss(self, parts, batch):
        return super().loss(parts, batch) * (1 + self.rng.random())


class UnseededGenerator(Base):
    """A generator that is made once, without a seed."""

    def __init__(self):
        self.rng = np.random.default_rng()

    def loss(self, parts, batch):
        return super().loss(parts, batch) * (1 + self.rng.random())


class Clock(Base):
    """The loss depends on the time."""

    def loss(self, parts, batch):
        return super().loss(parts, batch) * (1 + time.perf_counter() % 1)


class Entropy(Base):
    """Noise from the operating system."""

    def loss(self, parts, batch):
        noise = int.from_bytes(os.urandom(4), "big") / 2**32
        return super().loss(parts, batch) * (1 + noise)


class NoisyFunction(torch.autograd.Function):
    """The identity, whose gradient has noise of the operating system in it."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        noise = np.frombuffer(os.urandom(4), np.uint32)[0] / 2**32
        return gradient * (1 + float(noise))


class Backward(Base):
    """The forward pass is exact, the backward pass is not."""

    def loss(self, parts, batch):
        return NoisyFunction.apply(super().loss(parts, batch))


class Evaluating(Base):
    """Every fifth time it evaluates before the loss, with dropout, outside of aside()."""

    def __init__(self):
        self.calls = 0

    def loss(self, parts, batch):
        self.calls += 1
        if self.calls % 5 == 0:
            with torch.no_grad():
                parts.model[3](torch.ones(10))
        return super().loss(parts, batch)


@torch.library.custom_op("zoo::unsure", mutates_args=())
def unsure(x: torch.Tensor) -> torch.Tensor:
    """A sum whose last bits depend on chance, as those of some kernels do."""
    return x.clone() * (1 + (time.thread_time_ns() % 97) * 2**-20)


unsure.register_autograd(lambda ctx, gradient: gradient)


class Operation(Base):
    """An operation that gives another result each time."""

    def loss(self, parts, batch):
        return unsure(super().loss(parts, batch))


class Indexing(Base):
    """Gathers rows of a table many times: with several threads, their gradients are added up in any order."""

    num_epochs = 20

    def build(self):
        model = nn.Linear(4, 64)
        return {"model": model, "optimizer": sgd(model, lr=0.01)}

    def loss(self, parts, batch):
        rows = torch.arange(1_000_000) % 7
        weights = torch.linspace(0, 1, 1_000_000).unsqueeze(1)
        return (parts.model.weight[rows] * weights).sum() * 1e-3 + parts.model(batch["x"]).square().mean()


class Forgotten(Base):
    """A second optimizer with momentum that is not attached."""

    def build(self):
        model = network()
        self.second = sgd(model, lr=0.01)
        return {"model": model, "optimizer": sgd(model)}

    def step(self, parts, batch):
        loss = super().step(parts, batch)
        self.second.step()
        return loss


class Average(Base):
    """A moving average that is not attached, towards which the model is drawn."""

    def build(self):
        model = network()
        self.average = torch.optim.swa_utils.AveragedModel(model)
        return {"model": model, "optimizer": sgd(model)}

    def step(self, parts, batch):
        loss = super().step(parts, batch)
        self.average.update_parameters(parts.model)
        with torch.no_grad():
            for own, other in zip(parts.model.parameters(), self.average.module.parameters(), strict=True):
                own.lerp_(other, 0.01)
        return loss


class Threads(Base):
    """Takes as many threads as it likes."""

    def build(self):
        torch.set_num_threads(3)
        return super().build()


class Deterministic(Base):
    """Switches determinism on by itself, in the middle."""

    def loss(self, parts, batch):
        self.calls = getattr(self, "calls", 0) + 1
        torch.use_deterministic_algorithms(self.calls > 3)
        return super().loss(parts, batch)


class Extra(torch.utils.data.Dataset):
    """Further samples, each with noise."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return torch.full((4,), float(index)) + torch.rand(4)


class Workers(Base):
    """A second stream of data from a DataLoader of its own."""

    def __init__(self, workers=0):
        self.workers = workers

    def build(self):
        self.extra = iter(torch.utils.data.DataLoader(Extra(), batch_size=2, shuffle=True, num_workers=self.workers))
        return super().build()

    def loss(self, parts, batch):
        return super().loss(parts, batch) + 1e-3 * parts.model(next(self.extra)).square().mean()


class RandomSizes(Base):
    """A width that is drawn."""

    def build(self):
        width = 3 + int(torch.rand(()) * 1000)
        model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
        return {"model": model, "optimizer": sgd(model)}


class Broken(Base):
    """Fails by itself."""

    def step(self, parts, batch):
        raise RuntimeError("no such luck")


class WritesOnce(Base):
    """Fails when it is run again: it wants to make a file that is there by then."""

    def __init__(self, path):
        self.path = path

    def train(self, run):
        with open(self.path, "x") as file:
            file.write("begun")
        super().train(run)


class Collates(Base):
    """A collation with a memory."""

    def train(self, run):
        last = torch.zeros(4)

        def collate(items):
            nonlocal last
            batch = default_collate(items)
            batch["x"] = batch["x"] + 0.1 * last
            last = batch["x"][0]
            return batch

        parts = run.attach(**self.build())
        data = samples()
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(data, size=self.batch_size, collate=collate):
                run.commit(loss=self.step(parts, batch))
