"""Recipes with tensors that are large enough to be packed, stored once, and not hashed again."""

import torch
from torch import nn
from zoo_base import Base, sgd

WIDTH = 8192  # 4 × 8192 float32 are 128 KiB


class Backbone(Base):
    """A frozen layer, in the state because it is part of the model, and a large trained one."""

    def build(self):
        body = nn.Linear(4, WIDTH).requires_grad_(False)
        model = nn.Sequential(body, nn.ReLU(), nn.Linear(WIDTH, 3))
        return {"model": model, "optimizer": sgd(model[2], lr=1e-3)}

    def step(self, parts, batch):
        loss = self.loss(parts, batch)
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        return loss


class Averaged(Backbone):
    """A moving average that is written with ``.data``, which torch does not count."""

    def build(self):
        parts = super().build()
        return {**parts, "average": nn.Linear(WIDTH, 3).requires_grad_(False)}

    def step(self, parts, batch):
        loss = super().step(parts, batch)
        for mean, now in zip(parts.average.parameters(), parts.model[2].parameters(), strict=True):
            mean.data.mul_(0.5).add_(now.data, alpha=0.5)
        return loss


class Late(Averaged):
    """The same, but from the seventh step on, when the average has long been trusted to stay."""

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                late = run.step >= 6
                run.commit(loss=super().step(parts, batch) if late else Backbone.step(self, parts, batch))


class Thawed(Backbone):
    """A large tensor that stays for nine steps, and is then scaled in a way that torch counts."""

    def build(self):
        parts = super().build()
        return {**parts, "average": nn.Linear(WIDTH, 3).requires_grad_(False)}

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                step = run.step
                loss = super().step(parts, batch)
                self.between(step, parts.average.weight)
                run.commit(loss=loss)

    def between(self, step, weight):
        if step == 9:
            with torch.no_grad():
                weight.mul_(0.5)


class Both(Thawed):
    """The same, but three steps earlier it is scaled in a way that torch does not count."""

    def between(self, step, weight):
        if step == 6:
            weight.data.mul_(0.5)
        super().between(step, weight)


class Shuffled(Backbone):
    """A large buffer that is another tensor at each step, with the same numbers in another order."""

    def build(self):
        parts = super().build()
        parts["model"].register_buffer("places", torch.arange(WIDTH * 2))
        return parts

    def step(self, parts, batch):
        loss = super().step(parts, batch)
        parts.model.places = parts.model.places[torch.randperm(WIDTH * 2)]
        return loss
