"""Honest trainings whose loop or data is unusual."""

import random

import numpy as np
import torch
from torch import nn
from zoo_base import Base, network, samples, sgd


class WholeBatches(Base):
    """Batches divide the data."""

    batch_size = 11


class DropLast(Base):
    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size, drop_last=True):
                run.commit(loss=self.step(parts, batch))


class OneStep(Base):
    """The whole training is one step."""

    num_epochs = 1
    batch_size = 100


class OneSample(Base):
    """One sample, batches of one, some epochs of one step."""

    num_epochs = 5
    batch_size = 1

    def data(self):
        return samples(1)

    def build(self):
        model = nn.Linear(4, 3)
        return {"model": model, "optimizer": sgd(model)}


class Accumulating(Base):
    """One update for every two batches; five batches an epoch, so the last is of one."""

    num_epochs = 3
    batch_size = 5
    every = 2

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            batches = run.batches(self.data(), size=self.batch_size)
            for number, batch in enumerate(batches, start=1):
                loss = self.loss(parts, batch) / self.every
                loss.backward()
                if number % self.every == 0 or number == len(batches):
                    parts.optimizer.step()
                    parts.optimizer.zero_grad()
                    run.commit(loss=loss)


class AccumulatingAll(Accumulating):
    """One update an epoch."""

    every = 5


class TwoBatchesAStep(Base):
    """A program that asks for two batches at once."""

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            batches = iter(run.batches(self.data(), size=self.batch_size))
            for first, second in zip(batches, batches, strict=True):
                both = {"x": torch.cat([first["x"], second["x"]]), "y": torch.cat([first["y"], second["y"]])}
                run.commit(loss=self.step(parts, both))


class GlobalRandomness(Base):
    """Augmentation with the three global generators instead of the one that is given."""

    def transform(self, item, rng):
        shift = random.random() + np.random.rand() + torch.rand(()).item()
        return {**item, "x": item["x"] * np.float32(1 + 0.1 * shift)}


class SometimesRandom(Base):
    """Augmentation that uses a global generator for a third of the samples."""

    def transform(self, item, rng):
        return item if item["y"] else {**item, "x": item["x"] + np.float32(np.random.rand())}


class Augmented(Base):
    def transform(self, item, rng):
        return {**item, "x": item["x"] + rng.normal(size=4).astype("float32") * np.float32(0.1)}


class Tuples(Base):
    """Samples are tuples of tensors and numbers."""

    def data(self):
        return [(torch.from_numpy(item["x"]), item["y"]) for item in samples()]

    def loss(self, parts, batch):
        x, y = batch
        return nn.functional.cross_entropy(parts.model(x), y)


class TensorData(Tuples):
    """torch's own dataset."""

    def data(self):
        items = samples()
        x = torch.tensor(np.stack([item["x"] for item in items]))
        return torch.utils.data.TensorDataset(x, torch.tensor([item["y"] for item in items]))


class Texts(Base):
    """Samples of text, bytes, nested lists and mappings."""

    def data(self):
        return [{"text": f"sample é {i}", "raw": bytes([i, 0, 255]), "deep": [{"b": i, "a": i / 7}, True]}
                for i in range(12)]  # fmt: skip

    def loss(self, parts, batch):
        deep = batch["deep"][0]
        rows = zip(batch["text"], batch["raw"], deep["b"], deep["a"], strict=True)
        x = torch.tensor([[len(text), raw[0], b, a] for text, raw, b, a in rows]).float()
        return nn.functional.cross_entropy(parts.model(x), torch.arange(len(x)) % 3)


class Arrays(Base):
    """Scalars, read-only, transposed and half-precision arrays of numpy."""

    def data(self):
        items = []
        for i, item in enumerate(samples()):
            half = item["x"].astype("float16").reshape(2, 2)
            half.flags.writeable = False
            items.append({"x": half.T, "y": np.int64(i % 3), "w": np.float32(1 / (i + 1)), "flag": np.bool_(i % 2)})
        return items

    def loss(self, parts, batch):
        logits = parts.model(batch["x"].reshape(-1, 4).float())
        losses = nn.functional.cross_entropy(logits, batch["y"], reduction="none")
        return (losses * batch["w"] * (1 + batch["flag"].float())).mean()


def padded(items):
    """A collation that pads to the longest, and draws."""
    width = max(len(item["x"]) for item in items)
    x = torch.zeros(len(items), width)
    for row, item in zip(x, items, strict=True):
        row[: len(item["x"])] = torch.from_numpy(item["x"])
    return {"x": x + 0.1 * torch.rand(width) + random.random(), "y": torch.tensor([item["y"] for item in items])}


class CustomCollate(Base):
    def data(self):
        return [{**item, "x": item["x"][: 1 + i % 4]} for i, item in enumerate(samples())]

    def build(self):
        model = nn.Linear(1, 3)
        return {"model": model, "optimizer": sgd(model)}

    def loss(self, parts, batch):
        return nn.functional.cross_entropy(parts.model(batch["x"].sum(dim=1, keepdim=True)), batch["y"])

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size, collate=padded):
                run.commit(loss=self.step(parts, batch))


class NewDataEachEpoch(Base):
    """The dataset object is made anew in every epoch."""

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(samples(), self.transform, size=self.batch_size):
                run.commit(loss=self.step(parts, batch))


class Evaluating(Base):
    """Evaluations everywhere, each of which uses randomness, modes and buffers."""

    def build(self):
        model = network()
        return {"model": model, "optimizer": sgd(model), "noise": torch.Generator()}

    def evaluate(self, run, parts):
        with run.aside(), torch.no_grad():
            for item in self.data():
                parts.model(torch.from_numpy(np.stack([item["x"]] * 2)))  # in training mode: moves BatchNorm
            torch.rand(3, generator=parts.noise)
            random.random()
            np.random.rand()
            parts.model.eval()

    def loss(self, parts, batch):
        noise = torch.rand((), generator=parts.noise) + random.random() + np.random.rand()
        return super().loss(parts, batch) * (1 + 0.1 * noise)

    def train(self, run):
        parts = run.attach(**self.build())
        self.evaluate(run, parts)
        for _ in run.epochs(self.num_epochs):
            self.evaluate(run, parts)
            for batch in run.batches(self.data(), size=self.batch_size):
                loss = self.loss(parts, batch)
                self.evaluate(run, parts)
                parts.optimizer.zero_grad()
                loss.backward()
                parts.optimizer.step()
                run.commit(loss=loss)
                self.evaluate(run, parts)
        self.evaluate(run, parts)


class Configured(Base):
    """Constructor arguments of every plain type."""

    def __init__(self, width=6, lr=0.1, name="n", bias=True, betas=(0.9, 0.99), extra=None, big=2**60):
        self.width, self.lr, self.bias, self.betas = width, lr, bias, betas
        self.extra = extra

    def build(self):
        model = nn.Sequential(nn.Linear(4, self.width, bias=self.bias), nn.ReLU(), nn.Linear(self.width, 3))
        return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=self.lr, betas=tuple(self.betas))}


class NumpyRates(Base):
    """Hyperparameters that are numpy's floats."""

    def train(self, run):
        parts = run.attach(**self.build(), dynamic=("lr",))
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                run.commit(loss=self.step(parts, batch))
                parts.optimizer.param_groups[0]["lr"] = np.float64(0.9) * parts.optimizer.param_groups[0]["lr"]


class LossesOfEveryKind(Base):
    """A loss that is a float, a numpy number, a one-element tensor."""

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for number, batch in enumerate(run.batches(self.data(), size=self.batch_size)):
                loss = self.step(parts, batch)
                kinds = [loss, loss.item(), np.float32(loss.item()), loss.reshape(1)]
                run.commit(loss=kinds[number % 4])


class Quiet(Evaluating):
    """The same without any evaluation."""

    def evaluate(self, run, parts):
        pass


class TopOfEpoch(Base):
    """Changes weights, statistics and optimizer at the top of every epoch, which belongs to the step before."""

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            with torch.no_grad():
                parts.model[0].weight *= 0.5
                parts.model(torch.ones(2, 4))
            parts.optimizer.state.clear()
            for batch in run.batches(self.data(), size=self.batch_size):
                run.commit(loss=self.step(parts, batch))


class WarmsUp(Base):
    """Makes the optimizer's state before the first batch, and throws it away after the fourth."""

    def build(self):
        model = network()
        return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.01)}

    def train(self, run):
        parts = run.attach(**self.build())
        for parameter in parts.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        parts.optimizer.step()
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                run.commit(loss=self.step(parts, batch))
                if run.step == 3:
                    parts.optimizer.state.clear()


class ZeroedInPlace(Base):
    """Gradients are zeroed in place, so the same tensors are there at every boundary, with what they held."""

    def step(self, parts, batch):
        parts.optimizer.zero_grad(set_to_none=False)
        loss = self.loss(parts, batch)
        loss.backward()
        parts.optimizer.step()
        return loss
