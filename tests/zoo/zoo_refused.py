"""Programs that cannot be recorded, or not be accepted."""

import importlib
import os
import random
from pathlib import Path

import numpy as np
import torch
from torch import nn
from zoo_base import Base, network, samples, sgd


class Looping(Base):
    """A loop with room for a mistake."""

    def before(self, run, parts):
        pass

    def after(self, run, parts):
        pass

    def train(self, run):
        parts = run.attach(**self.build())
        self.before(run, parts)
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), self.transform, size=self.batch_size):
                run.commit(loss=self.step(parts, batch))
                self.after(run, parts)


class RateBesideSchedule(Looping):
    """A schedule, and the rate changed by hand as well."""

    def build(self):
        parts = super().build()
        schedule = torch.optim.lr_scheduler.StepLR(parts["optimizer"], 1000)
        return {**parts, "scheduler": schedule}

    def after(self, run, parts):
        if run.step == 4:
            parts.optimizer.param_groups[0]["lr"] *= 0.1
        parts.scheduler.step()


class Unfreezes(Looping):
    """Freezes a layer in the middle of the run."""

    def after(self, run, parts):
        if run.step == 4:
            next(parts.model.parameters()).requires_grad_(False)


class StaysInEval(Looping):
    """Evaluates without aside, and does not go back to training mode."""

    def after(self, run, parts):
        if run.step == 4:
            parts.model.eval()


class CountsSteps(Base):
    """A counter of the recipe's own that the loss depends on."""

    seen = 0

    def loss(self, parts, batch):
        self.seen += 1
        return super().loss(parts, batch) * self.seen


class OwnGenerator(Base):
    """Randomness of the recipe's own, which nobody can set."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def loss(self, parts, batch):
        return super().loss(parts, batch) * (1 + self.rng.random())


class SystemRandomness(Base):
    def loss(self, parts, batch):
        return super().loss(parts, batch) * (1 + random.SystemRandom().random())


class Forgotten(Base):
    """An optimizer with momentum that is not attached."""

    def build(self):
        self.second = sgd(model := network())
        return {"model": model, "optimizer": sgd(model)}

    def step(self, parts, batch):
        loss = super().step(parts, batch)
        self.second.step()
        return loss


class RateByHand(Looping):
    def after(self, run, parts):
        parts.optimizer.param_groups[0]["lr"] *= 0.9


class Unscheduled(Looping):
    """A schedule that is not attached."""

    def build(self):
        parts = super().build()
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(parts["optimizer"], 0.9)
        return parts

    def after(self, run, parts):
        self.schedule.step()


class StepsFirst(Looping):
    def build(self):
        parts = super().build()
        return {**parts, "schedule": torch.optim.lr_scheduler.ExponentialLR(parts["optimizer"], 0.9)}

    def before(self, run, parts):
        parts.schedule.step()


class StepsWithArguments(StepsFirst):
    def before(self, run, parts):
        pass

    def after(self, run, parts):
        parts.schedule.step(3)


class UnknownDynamic(Base):
    def train(self, run):
        run.attach(**self.build(), dynamic=("learning_rate",))


class NotANumber(Base):
    def loss(self, parts, batch):
        return super().loss(parts, batch) * float("nan")


class Diverging(Base):
    """The loss stays finite, a weight does not."""

    def step(self, parts, batch):
        loss = super().step(parts, batch)
        with torch.no_grad():
            parts.model[4].bias[0] = float("inf")
        return loss.detach().nan_to_num(0.0)


class Nan(Base):
    def build(self):
        model = network()
        model.register_buffer("odd", torch.tensor([1.0, float("nan")]))
        return {"model": model, "optimizer": sgd(model)}


class UnstableData(Base):
    """Samples that are new ones every time, without any generator."""

    def data(self):
        return [{**item, "id": os.urandom(4)} for item in samples()]

    def loss(self, parts, batch):
        return nn.functional.cross_entropy(parts.model(batch["x"]), batch["y"])


class RandomLength(Base):
    """A split that is drawn without a seed."""

    def data(self):
        return [item for item in samples(60) if random.random() < 0.5]


class InPlace(Base):
    """A transform that changes the sample itself."""

    def transform(self, item, rng):
        item["x"] += rng.normal(size=4).astype("float32")
        return item


class Stopping(Base):
    """Gives up after the first epoch."""

    def train(self, run):
        parts = run.attach(**self.build())
        for epoch in run.epochs(self.num_epochs):
            if epoch == 1:
                return
            for batch in run.batches(self.data(), size=self.batch_size):
                run.commit(loss=self.step(parts, batch))


class ShortEpochs(Looping):
    """Leaves every epoch after five of six batches."""

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for number, batch in enumerate(run.batches(self.data(), size=self.batch_size)):
                run.commit(loss=self.step(parts, batch))
                if number == 4:
                    break


class TwoLoops(Looping):
    """Goes through the data twice an epoch."""

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for _ in range(2):
                for batch in run.batches(self.data(), size=self.batch_size):
                    run.commit(loss=self.step(parts, batch))


class OddBatchLost(Base):
    """Accumulates two batches, and drops the odd one at the end of the epoch."""

    batch_size = 5  # five batches

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for number, batch in enumerate(run.batches(self.data(), size=self.batch_size), start=1):
                loss = self.step(parts, batch)
                if number % 2 == 0:
                    run.commit(loss=loss)


class Uneven(Base):
    """Commits after one batch, then after two."""

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for number, batch in enumerate(run.batches(self.data(), size=self.batch_size)):
                loss = self.step(parts, batch)
                if number != 1:
                    run.commit(loss=loss)


class NeverCommits(Base):
    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                self.step(parts, batch)


class CommitsTwice(Looping):
    def after(self, run, parts):
        run.commit(loss=0.0)


class CommitsFirst(Looping):
    def before(self, run, parts):
        run.commit(loss=0.0)


class AttachesTwice(Looping):
    def before(self, run, parts):
        run.attach(**self.build())


class NeverAttaches(Base):
    def train(self, run):
        for _ in run.epochs(self.num_epochs):
            pass


class AsksForNothing(Base):
    def train(self, run):
        run.attach(**self.build())


class EpochsTwice(Base):
    def train(self, run):
        run.attach(**self.build())
        for _ in run.epochs(1):
            for _ in run.epochs(1):
                pass


class NoEpochs(Base):
    num_epochs = 0


class BatchesOutside(Base):
    def train(self, run):
        run.attach(**self.build())
        run.batches(self.data(), size=4)


class OtherBatches(Base):
    """Another batch size in the second epoch."""

    def train(self, run):
        parts = run.attach(**self.build())
        for epoch in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=4 + epoch):
                run.commit(loss=self.step(parts, batch))


class NoData(Base):
    def data(self):
        return []


class EmptyBatches(Base):
    batch_size = 0


class Unattached(Base):
    """The optimizer trains a model that is not attached."""

    def build(self):
        return {"model": network(), "optimizer": sgd(network())}


class Stateless(Base):
    """Attaches something that cannot say what its state is."""

    def build(self):
        return {**super().build(), "seeds": np.random.SeedSequence(0)}


class SystemGenerator(Base):
    """Attaches a generator whose state nobody can set."""

    def build(self):
        return {**super().build(), "rng": random.SystemRandom()}


class OtherGenerator(Base):
    """Attaches a generator of numpy's old kind, with an algorithm that it does not usually have."""

    def build(self):
        return {**super().build(), "rng": np.random.RandomState(np.random.PCG64(0))}


class ExtraState(Base):
    """Extra state that is neither plain nor a tensor."""

    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"secret": {1}}

        def set_extra_state(self, state):
            pass

    def build(self):
        model = self.Extra(4, 3)
        return {"model": model, "optimizer": sgd(model)}


class ToldButNotTaken(Base):
    """A layer that tells its extra state and cannot take it back."""

    class Extra(nn.Linear):
        def get_extra_state(self):
            return 1

    def build(self):
        model = nn.Sequential(self.Extra(4, 3))
        return {"model": model, "optimizer": sgd(model)}


class OddState(Base):
    """An attached object whose state is neither plain nor a tensor."""

    class Thing:
        def state_dict(self):
            return {"when": {1, 2}}

        def load_state_dict(self, state):
            pass

    def build(self):
        return {**super().build(), "thing": self.Thing()}


class Untied(Base):
    """Two names of one tensor when attached, two tensors later."""

    def build(self):
        model = network()
        level = torch.zeros(2)
        model.register_buffer("first", level)
        model.register_buffer("second", level)
        return {"model": model, "optimizer": sgd(model)}

    def loss(self, parts, batch):
        parts.model.second = parts.model.second + 1
        return super().loss(parts, batch)


class StateOfItsOwn(Base):
    """An optimizer that keeps a number beside the state of its parameters, and not under a name."""

    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            self.state[0] = {"steps": 1}
            return super().step(closure)

    def build(self):
        model = network()
        return {"model": model, "optimizer": self.Counting(model.parameters(), lr=0.1)}


class NoModule(Base):
    def build(self):
        return {"noise": torch.Generator()}


class Complex(Base):
    def build(self):
        model = nn.Linear(4, 3, dtype=torch.complex64)
        return {"model": model, "optimizer": sgd(model)}


class Changing(Base):
    """Declares something else when it is entered again."""

    def build(self):
        model = nn.Linear(4, 3 + int(torch.rand(()) * 1000))
        return {"model": model, "optimizer": sgd(model)}


class Odd(Base):
    """Samples of types that have no canonical bytes."""

    def __init__(self, what):
        self.what = what

    def data(self):
        value = {
            "set": {1}, "none": None, "object": object(), "complex": np.complex64(1), "objects": np.array([object()]),
            "key": {1: 2}, "keys": {1: 2, "a": 3}, "unsigned": np.uint32([1]), "date": np.datetime64("2020-01-01"),
        }[self.what]  # fmt: skip
        return [{"x": np.zeros(4, "float32"), "y": 0, "odd": value}] * 4


class OddBatch(Base):
    """A collation that returns what has no canonical bytes."""

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=4, collate=lambda items: {"x": {1, 2}}):
                loss = parts.model(torch.ones(2, 4) * len(batch)).sum()
                run.commit(loss=loss)


class Dynamic(Base):
    """Imports a local module in a way that its source does not show."""

    def build(self):
        importlib.import_module("zoo_hidden")
        return super().build()


class Raising(Base):
    """Raises after some steps."""

    def step(self, parts, batch):
        if not hasattr(self, "steps"):
            self.steps = 0
        self.steps += 1
        if self.steps == 5:
            raise FileNotFoundError("no such luck")
        return super().step(parts, batch)


class Constant(Base):
    """Weights that are the same under every seed."""

    def build(self):
        parts, fixed = super().build(), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in parts["model"].parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=fixed))
        return parts


class SeedsItself(Base):
    """The usual seed of a script, which does not go with the randomness of the run."""

    def build(self):
        torch.manual_seed(0)
        return super().build()


class SetsThreads(Base):
    """Sets what the profile says."""

    def build(self):
        torch.set_num_threads(3)
        return super().build()


class AttachesUnnamed(Base):
    def train(self, run):
        run.attach(*self.build().values())


class FromFile(Base):
    """Weights that are read from a file."""

    def __init__(self, path):
        self.path = path

    def build(self):
        model = network()
        with torch.no_grad():
            model[0].weight.copy_(torch.from_numpy(np.load(self.path)))
        return {"model": model, "optimizer": sgd(model)}


class FromSource(Base):
    """Weights that are read from a file that is named like code."""

    def __init__(self, path):
        self.path = path

    def build(self):
        model = network()
        with torch.no_grad():
            model[0].bias.fill_(float(Path(self.path).read_text()))
        return {"model": model, "optimizer": sgd(model)}


class Accumulates(Looping):
    """Commits each batch and updates every second time, so that a gradient crosses the boundary."""

    every = 2

    def step(self, parts, batch):
        loss = self.loss(parts, batch)
        loss.backward()
        return loss

    def after(self, run, parts):
        if run.step % self.every == self.every - 1:
            parts.optimizer.step()
            parts.optimizer.zero_grad()


class AccumulatesInPlace(Accumulates):
    """The same, with gradients that are zeroed and never replaced."""

    every = 4

    def after(self, run, parts):
        if run.step % self.every == self.every - 1:
            parts.optimizer.step()
            parts.optimizer.zero_grad(set_to_none=False)


class Capturable(Base):
    """A flag of torch's that asks for another device."""

    def build(self):
        model = network()
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01, capturable=True)}
