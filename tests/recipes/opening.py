"""Trainings that note in a file whenever their dataset is opened, and do this or that with it."""

import os
import random
import signal
from pathlib import Path

import torch
from torch import nn

from pol.replay.recipe import Recipe


class Kept(Recipe):
    """The ordinary loop; the dataset is also kept in the recipe, where the step looks at it."""

    num_epochs = 2
    batch_size = 4

    def __init__(self, notes: str, odd: str = "") -> None:
        self.notes, self.odd = notes, odd

    def opened(self):
        with open(self.notes, "a") as file:
            file.write("opened\n")
        return Samples(self.odd)

    def data(self):
        self.samples = self.opened()
        return self.samples

    def build(self):
        model = nn.Linear(2, 2)
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)}

    def step(self, parts, batch):
        loss = nn.functional.cross_entropy(parts.model(batch["x"]) * self.samples.scale, batch["y"])
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        return loss


class Samples(list):
    """Sixteen samples. While there is a file ``odd``, one is another from the second time on that it is asked for."""

    scale = 1.0

    def __init__(self, odd):
        super().__init__({"x": torch.tensor([float(i), float(i % 5)]), "y": i % 2} for i in range(16))
        self.odd, self.asked = odd, 0

    def __getitem__(self, index):
        if index == 3 and self.odd and Path(self.odd).exists():
            self.asked += 1
            if self.asked > 1:
                return {"x": torch.tensor([9.0, 9.0]), "y": 1}
        return super().__getitem__(index)


class Plain(Kept):
    """Nothing is kept."""

    def data(self):
        return self.opened()

    def step(self, parts, batch):
        self.samples = Samples("")
        return super().step(parts, batch)


class Drawing(Kept):
    """Draws while it opens."""

    def data(self):
        torch.rand(1)
        return super().data()


class Telling(Kept):
    """Leaves something else in the recipe."""

    def data(self):
        self.count = 16
        return super().data()


class Built(Kept):
    """Opens it to build."""

    def build(self):
        self.data()
        return super().build()


class Shuffling(Kept):
    """A loop of its own, which changes the order of what it got."""

    def train(self, run):
        parts, data = run.attach(**self.build()), self.data()
        random.Random(1).shuffle(data)
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(data, size=self.batch_size):
                run.commit(loss=self.step(parts, batch))


class Ending(Kept):
    """Does what the file ``odd`` says when it meets sample 14: ends its process, or the one that began it, or nothing.

    That sample is not among the twelve of a control run.
    """

    def data(self):
        self.samples = Samples("")
        return self.samples

    def step(self, parts, batch):
        path = Path(self.odd)
        if path.exists() and 14.0 in batch["x"][:, 0]:
            act = path.read_text()
            if "once" in act:
                path.unlink()
            if "kill" in act:
                os.kill(os.getppid() if "parent" in act else os.getpid(), signal.SIGKILL)
            signal.pause()
        return super().step(parts, batch)
