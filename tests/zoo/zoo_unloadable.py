"""Loaders and bases that cannot be recorded."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler
from zoo_base import Base, samples
from zoo_loaders import Adapter, Loading, Noisy, Own, Streaming


class Endless:
    def __iter__(self):
        while True:
            yield {"x": torch.randn(4, 4), "y": torch.randint(3, (4,))}


class OwnDataGenerator(Loading):
    """Augmentation from a generator of the dataset's own, which nobody can set."""

    def data(self):
        class Drawing(Noisy):
            rng = np.random.default_rng(0)

            def __getitem__(self, index):
                return {**super().__getitem__(index), "extra": self.rng.random()}

        return Drawing(samples())


class Unattached(Own):
    def loader(self):
        return DataLoader(self.data(), batch_size=4, shuffle=True, generator=torch.Generator())


class Persistent(Own):
    options = {"num_workers": 1, "persistent_workers": True}  # noqa: RUF012


class Iterator(Loading):
    def loader(self):
        return iter(self.data())


class NoLength(Loading):
    def loader(self):
        return Endless()


class WrongLength(Loading):
    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(1):
            for batch in run.loader(self.loader(), batches=5):
                run.commit(loss=self.step(parts, batch))


class Short(IterableDataset):
    def __iter__(self):
        return iter(samples(20))


class ShortStream(Loading):
    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(1):
            for batch in run.loader(DataLoader(Short(), batch_size=4), batches=7):
                run.commit(loss=self.step(parts, batch))


class FreshStream(Streaming):
    """A stream that draws from a generator that nobody seeded."""

    class Fresh(Short):
        def __iter__(self):
            rng = np.random.default_rng()
            for item in samples(20):
                yield {**item, "x": item["x"] + rng.normal(size=4).astype("float32")}

    def loader(self):
        return DataLoader(self.Fresh(), batch_size=4)


class DrawingStream(Loading):
    """A stream in an order of a seeded generator that goes on from epoch to epoch, and is in no state."""

    def train(self, run):
        shuffling = np.random.default_rng(0)

        class Drawing(Short):
            def __iter__(self):
                return iter([samples(20)[i] for i in shuffling.permutation(20)])

        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.loader(DataLoader(Drawing(), batch_size=4), batches=5):
                run.commit(loss=self.step(parts, batch))


class OwnDrawing(Own):
    """The same as OwnDataGenerator, in a program that keeps its own randomness."""

    data = OwnDataGenerator.data


class Named(Sampler):
    def __iter__(self):
        return iter(["a", "b"])

    def __len__(self):
        return 2


class OddSampler(Loading):
    def loader(self):
        return DataLoader(self.data(), batch_size=4, sampler=Named())


class Outside(Loading):
    def train(self, run):
        run.attach(**self.build())
        run.loader(self.loader())


class OtherLoader(Loading):
    """Another batch size in the second epoch."""

    def train(self, run):
        parts = run.attach(**self.build())
        for epoch in run.epochs(self.num_epochs):
            for batch in run.loader(DataLoader(self.data(), batch_size=4 + epoch)):
                run.commit(loss=self.step(parts, batch))


class Lying(Sampler):
    def __iter__(self):
        return iter([[0, 1]] * 5)

    def __len__(self):
        return 4


class LyingSampler(Loading):
    def loader(self):
        return DataLoader(self.data(), batch_sampler=Lying())


class LyingOwnSampler(Own):
    loader = LyingSampler.loader


class Randomness(Own):
    attached = {"randomness": "mine"}  # noqa: RUF012


class Counting(Sampler):
    """Remembers how often it was asked, in an attribute that no state holds."""

    asked = 0

    def __iter__(self):
        for _ in range(4):
            Counting.asked += 1
            yield [Counting.asked % 22, (Counting.asked + 1) % 22]

    def __len__(self):
        return 4


class HiddenSampler(Own):
    def loader(self):
        return DataLoader(self.data(), batch_sampler=Counting())


# --- frozen bases


class Based(Base):
    """Adapters over a base with a normalisation."""

    def base(self):
        base = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).requires_grad_(False)
        nn.init.constant_(base[0].weight, 0.5)
        nn.init.constant_(base[0].bias, 0.5)
        return base

    def trained(self, model):
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def build(self):
        base = self.base().eval()
        model = nn.Sequential(Adapter(base[0]), base[1], nn.Linear(8, 3))
        return {"model": model, "frozen": base, "optimizer": torch.optim.SGD(self.trained(model), lr=0.1)}


class ChangesBase(Based):
    """The normalisation of the base stays in training mode."""

    def build(self):
        parts = super().build()
        parts["frozen"].train()
        return parts


class ChangesBaseSecretly(Based):
    """Writes into the base, late, and in a way that torch does not count."""

    seen = 0

    def step(self, parts, batch):
        loss = super().step(parts, batch)
        self.seen += 1
        if self.seen == 9:
            parts.model[0].base.weight.data.add_(1e-3)
        return loss


class TrainsBase(Based):
    def trained(self, model):
        return list(model.parameters())


class DrawsBase(Based):
    """A base that depends on the seed."""

    def base(self):
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).requires_grad_(False)


class WantsGradients(Based):
    def base(self):
        return super().base().requires_grad_(True)


class NoModule(Based):
    def build(self):
        return {**super().build(), "frozen": {"base": "weights.pt"}}
