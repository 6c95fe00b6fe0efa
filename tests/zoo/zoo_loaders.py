"""Honest trainings whose batches come from a loader of their own, under the run's randomness or their own."""

import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, WeightedRandomSampler
from zoo_base import Base, samples, sgd


class Loading(Base):
    """The usual loop over a DataLoader: the run's randomness."""

    options = {"shuffle": True}  # noqa: RUF012
    attached = {}  # noqa: RUF012

    def loader(self):
        return DataLoader(self.data(), batch_size=self.batch_size, **self.options)

    def seed(self):
        pass

    def train(self, run):
        self.seed()
        parts = run.attach(**self.build(), **self.attached)
        loader = self.loader()
        for _ in run.epochs(self.num_epochs):
            for batch in run.loader(loader):
                run.commit(loss=self.step(parts, batch))


class Shuffled(Loading):
    pass


class Sequential(Loading):
    options = {"shuffle": False, "drop_last": True}  # noqa: RUF012


class Working(Loading):
    """Worker processes that read and augment."""

    options = {"shuffle": True, "num_workers": 2}  # noqa: RUF012

    def data(self):
        return Noisy(samples())


class WorkingBuckets(Loading):
    """Workers, batches of different sizes, and a collation that draws."""

    def data(self):
        return Noisy(samples())

    def loader(self):
        return DataLoader(self.data(), batch_sampler=Buckets(), num_workers=1, collate_fn=shaken)


class Weighted(Loading):
    """Drawn with replacement."""

    def loader(self):
        sampler = WeightedRandomSampler([1.0, 2.0] * 11, num_samples=18)
        return DataLoader(self.data(), batch_size=4, sampler=sampler)


class Buckets(Sampler):
    """Batches of different sizes, in random order."""

    def __iter__(self):
        ends = [0, 3, 5, 9, 15, 22]
        for i in torch.randperm(5).tolist():
            yield list(range(ends[i], ends[i + 1]))

    def __len__(self):
        return 5


def shaken(items):
    """A collation that draws."""
    x = torch.from_numpy(np.stack([item["x"] for item in items]))
    return {"x": x + 0.1 * torch.rand(4), "y": torch.tensor([item["y"] for item in items])}


class Bucketed(Loading):
    def loader(self):
        return DataLoader(self.data(), batch_sampler=Buckets())


class Noisy(list):
    """A dataset that augments while it is read, with all three generators."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        noise = np.random.normal(size=4) + random.random() + torch.rand(4).numpy()
        return {**item, "x": item["x"] + noise.astype("float32")}


class Augmenting(Loading):
    def data(self):
        return Noisy(samples())


class AugmentingSequential(Augmenting):
    options = {"shuffle": False}  # noqa: RUF012


class AugmentingBatches(Base):
    """The same through run.batches."""

    def data(self):
        return Noisy(samples())


class Batched(Base):
    """A list of batches that was made beforehand."""

    def train(self, run):
        batches = list(DataLoader(self.data(), batch_size=5))
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.loader(batches):
                run.commit(loss=self.step(parts, batch))


class Stream(IterableDataset):
    """Samples in a shuffled order, augmented, without a number."""

    def __init__(self, noise=True):
        self.noise = noise

    def __iter__(self):
        items = samples(20)
        random.shuffle(items)
        for item in items:
            shift = np.random.normal(size=4).astype("float32") if self.noise else np.float32(0)
            yield {**item, "x": item["x"] + shift}


class Streaming(Loading):
    def train(self, run):
        self.seed()
        parts = run.attach(**self.build(), **self.attached)
        loader = self.loader()
        for _ in run.epochs(self.num_epochs):
            for batch in run.loader(loader, batches=5):
                run.commit(loss=self.step(parts, batch))

    def loader(self):
        return DataLoader(Stream(), batch_size=4)


class Generated(Streaming):
    """A plain object that can be iterated again and again, without an end."""

    class Endless:
        def __iter__(self):
            while True:
                yield {"x": torch.randn(4, 4), "y": torch.randint(3, (4,))}

    def loader(self):
        return self.Endless()


# --- the program's own randomness


class Own(Loading):
    """Seeded by hand, with dropout, shuffling and augmentation from the global generators."""

    attached = {"randomness": "observed"}  # noqa: RUF012

    def seed(self):
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)

    def data(self):
        return Noisy(samples())


class OwnUnseeded(Own):
    """Keeps its randomness, and does not seed it."""

    def seed(self):
        pass


class OwnSequential(Own):
    options = {"shuffle": False}  # noqa: RUF012


class OwnGenerator(Own):
    """The loader shuffles with a generator of its own."""

    def train(self, run):
        self.seed()
        shuffling = torch.Generator().manual_seed(5)
        parts = run.attach(**self.build(), randomness="observed", shuffling=shuffling)
        loader = DataLoader(self.data(), batch_size=4, shuffle=True, generator=shuffling)
        for _ in run.epochs(self.num_epochs):
            for batch in run.loader(loader):
                run.commit(loss=self.step(parts, batch))


class OwnWeighted(Own):
    loader = Weighted.loader


class OwnBucketed(Own):
    loader = Bucketed.loader


class OwnBatches(Own):
    """Its own randomness, but the batches of the run."""

    def train(self, run):
        self.seed()
        parts = run.attach(**self.build(), **self.attached)
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=4):
                run.commit(loss=self.step(parts, batch))


class OwnStream(Streaming):
    """A stream that draws when it begins; in the middle of an epoch it is led there again."""

    attached = {"randomness": "observed"}  # noqa: RUF012
    seed = Own.seed

    def loader(self):
        return DataLoader(Stream(noise=False), batch_size=4)


class OwnWorkers(Own):
    """Worker processes that augment with their own generators."""

    options = {"shuffle": True, "num_workers": 2}  # noqa: RUF012


class OwnAccumulating(Own):
    """Two batches to a step; the loader has four and an odd one."""

    def train(self, run):
        self.seed()
        parts = run.attach(**self.build(), **self.attached)
        loader = DataLoader(self.data(), batch_size=5, shuffle=True)
        for _ in run.epochs(self.num_epochs):
            batches = run.loader(loader)
            for number, batch in enumerate(batches, start=1):
                loss = self.loss(parts, batch)
                loss.backward()
                if number % 2 == 0 or number == len(batches):
                    parts.optimizer.step()
                    parts.optimizer.zero_grad()
                    run.commit(loss=loss)


class OwnEvaluating(Own):
    """Evaluates after each epoch with a loader, which draws from the same generators."""

    def train(self, run):
        self.seed()
        parts = run.attach(**self.build(), **self.attached)
        loader, held_out = self.loader(), DataLoader(samples(6), batch_size=4, shuffle=True)
        for _ in run.epochs(self.num_epochs):
            for batch in run.loader(loader):
                run.commit(loss=self.step(parts, batch))
            with run.aside():
                parts.model.eval()
                for batch in held_out:
                    self.loss(parts, batch)
                parts.model.train()


class Carrying(Base):
    """A recurrent network whose hidden state goes on from batch to batch."""

    def build(self):
        model = nn.ModuleDict({"cell": nn.GRUCell(4, 5), "out": nn.Linear(5, 3)})
        return {"model": model, "optimizer": sgd(model), "carried": {}}

    def loss(self, parts, batch):
        hidden = parts.carried.get("hidden")
        hidden = parts.model["cell"](batch["x"], hidden if hidden is None else hidden[: len(batch["x"])])
        parts.carried["hidden"] = hidden.detach()
        return nn.functional.cross_entropy(parts.model["out"](hidden), batch["y"])

    def train(self, run):
        parts = run.attach(**self.build())
        loader = DataLoader(self.data(), batch_size=4, drop_last=True)
        for _ in run.epochs(self.num_epochs):
            parts.carried.clear()
            for batch in run.loader(loader):
                run.commit(loss=self.step(parts, batch))


# --- frozen bases


class Adapter(nn.Module):
    """A linear layer with a trained low-rank addition."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Frozen(Base):
    """Adapters over a frozen base whose weights stand in the code."""

    def build(self):
        base = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).requires_grad_(False)
        with torch.no_grad():
            for number, parameter in enumerate(base.parameters(), start=1):
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape) / number)
        model = nn.Sequential(Adapter(base[0]), nn.ReLU(), Adapter(base[2]))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return {"model": model, "frozen": base, "optimizer": torch.optim.Adam(trained, lr=0.01)}


class FrozenInPlace(Base):
    """Adapters that take the place of layers inside of the model; the base is what it held before."""

    def build(self):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).requires_grad_(False)
        for number, parameter in enumerate(model.parameters(), start=1):
            nn.init.constant_(parameter, 1 / number)
        base = model.state_dict()
        model[0], model[2] = Adapter(model[0]), Adapter(model[2])
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return {"model": model, "frozen": base, "optimizer": torch.optim.Adam(trained, lr=0.01)}
