"""Programs in which something evolves, or comes from outside, that no state and no record has."""

import datetime
import os
import random
import secrets
import time
import uuid
from time import perf_counter

import numpy as np
import torch
import torch.utils.checkpoint
from torch import nn
from torch.utils.data import DataLoader
from zoo_base import Base, network, samples, sgd, update
from zoo_refused import Looping


class Counting(nn.Sequential):
    """Counts its calls in an attribute."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


# --- attributes


class HiddenCounter(Base):
    """A counter without influence until the tenth call."""

    ignored: tuple[str, ...] = ()

    def build(self):
        model = nn.ModuleDict({"encoder": Counting(*network())})
        return {"model": model, "optimizer": sgd(model)}

    def loss(self, parts, batch):
        scale = 1.0 if parts.model["encoder"].calls < 9 else 2.0
        return nn.functional.cross_entropy(parts.model["encoder"](batch["x"]), batch["y"]) * scale

    def train(self, run):
        parts = run.attach(**self.build(), ignored=self.ignored)
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                run.commit(loss=self.step(parts, batch))


class HiddenCounterNamed(HiddenCounter):
    """The same, said to have no influence although it has."""

    ignored = ("model.encoder.calls",)


class Meter:
    """A mean of the losses, in no state_dict that is attached."""

    def __init__(self):
        self.sums = {"loss": [0.0, 0]}
        self.best = torch.tensor(float("inf"))


class Hung(Base):
    """Something is changed after every step that hangs on an attached thing."""

    ignored: tuple[str, ...] = ()

    def hang(self, parts):
        raise NotImplementedError

    def change(self, parts):
        raise NotImplementedError

    def train(self, run):
        built = self.build()
        self.hang(built)
        parts = run.attach(**built, ignored=self.ignored)
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                run.commit(loss=self.step(parts, batch))
                self.change(parts)


class HiddenMeter(Hung):
    def hang(self, built):
        built["model"][0].meter = Meter()

    def change(self, parts):
        parts.model[0].meter.sums["loss"][1] += 1


class NamedMeter(HiddenMeter):
    """Two statistics, said to be without influence by the names of what holds them."""

    ignored = ("model.0.meter", "model.calls")

    def hang(self, built):
        super().hang(built)
        built["model"].calls = {"train": [0]}

    def change(self, parts):
        super().change(parts)
        parts.model.calls["train"][0] += 1


class HiddenTensor(Hung):
    """A tensor that is not registered."""

    def hang(self, built):
        built["model"].ema = [torch.zeros(3)]

    def change(self, parts):
        parts.model.ema[0] += 1


class HiddenArray(Hung):
    def hang(self, built):
        built["model"].history = np.zeros(3)

    def change(self, parts):
        parts.model.history += 1


class HiddenGenerator(Hung):
    """A generator that the run does not know, which is only drawn from."""

    def hang(self, built):
        built["model"].rng = np.random.default_rng(0)

    def change(self, parts):
        parts.model.rng.random()


class HiddenPythonGenerator(Hung):
    def hang(self, built):
        built["model"].rng = random.Random(0)

    def change(self, parts):
        parts.model.rng.random()


class HiddenTorchGenerator(Hung):
    def hang(self, built):
        built["model"].rng = torch.Generator()

    def change(self, parts):
        torch.rand(1, generator=parts.model.rng)


class HiddenModule(Hung):
    """A module in a list, which torch does not see."""

    def hang(self, built):
        built["model"].teachers = [nn.Linear(2, 2)]

    def change(self, parts):
        with torch.no_grad():
            parts.model.teachers[0].weight *= 0.5


class HiddenOptimizer(Hung):
    """An optimizer with momentum that hangs on the model."""

    def hang(self, built):
        self.other = nn.Linear(2, 2)
        built["model"].second = sgd(self.other)

    def change(self, parts):
        update(parts.model.second, self.other(torch.ones(1, 2)).sum())


class HiddenObjects(Hung):
    """An array of Python's objects, whose addresses are no difference."""

    def hang(self, built):
        built["model"].rows = np.array([Meter(), Meter()], dtype=object)

    def change(self, parts):
        parts.model.rows[1].sums["loss"][1] += 1


class HiddenIterator(Hung):
    """A position in a list."""

    def hang(self, built):
        built["model"].names = iter(["a"] * 100)

    def change(self, parts):
        next(parts.model.names)


class HiddenInOptimizer(Hung):
    def hang(self, built):
        built["optimizer"].updates = 0

    def change(self, parts):
        parts.optimizer.updates += 1


class HalfSaved(Hung):
    """An attached object whose state_dict has forgotten something."""

    class Average:
        def __init__(self):
            self.mean, self.count = 0.0, 0

        def state_dict(self):
            return {"mean": self.mean}

        def load_state_dict(self, state):
            self.mean = state["mean"]

    def hang(self, built):
        built["average"] = self.Average()

    def change(self, parts):
        parts.average.count += 1


class IgnoresNothing(Base):
    """Names an attribute that is not there."""

    def train(self, run):
        parts = run.attach(**self.build(), ignored=("model.callz",))
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                run.commit(loss=self.step(parts, batch))


# --- clocks and entropy


class ByTheClock(Base):
    """The loss depends on the day."""

    def loss(self, parts, batch):
        return super().loss(parts, batch) * (1.0 + (time.time() // 86400) % 31)


class ByTheDate(Base):
    """The loss depends on the day of the year, as told without an argument."""

    def loss(self, parts, batch):
        return super().loss(parts, batch) * float(time.strftime("%j"))


class ByElapsedTime(Base):
    """The loss depends on how many hours the program has been running."""

    def build(self):
        self.begun = perf_counter()
        return super().build()

    def loss(self, parts, batch):
        return super().loss(parts, batch) * (1.0 + (perf_counter() - self.begun) // 3600)


class OutOfTime(Base):
    """Gives up after a day."""

    def train(self, run):
        begun = time.monotonic()
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                if time.monotonic() - begun > 86400:
                    return
                run.commit(loss=self.step(parts, batch))


class ByTheCalendar(Base):
    """The loss depends on the fraction of the second, by a clock that cannot be put forward."""

    def loss(self, parts, batch):
        return super().loss(parts, batch) * (1.0 + datetime.datetime.now().microsecond)


class Fresh(Base):
    """Noise that nobody can give again, in as many ways as there are."""

    def __init__(self, how="urandom"):
        self.how = how

    def noise(self):
        match self.how:
            case "urandom":
                return os.urandom(1)[0]
            case "getrandom":
                return os.getrandom(1)[0]
            case "system":
                return random.SystemRandom().random()
            case "secrets":
                return secrets.randbelow(2**20)
            case "uuid1":
                return uuid.uuid1().time % 2**20
            case "uuid4":
                return uuid.uuid4().int % 2**20
            case "python":
                return random.Random().random()
            case "reseeded":
                random.seed()
                return random.random()
            case "numpy":
                return np.random.default_rng().random()
            case "state":
                return np.random.RandomState().rand()
            case "sequence":
                return int(np.random.SeedSequence().entropy) % 2**20
            case "numpy-seed":
                np.random.seed()
                return np.random.rand()
            case "torch":
                torch.seed()
                return float(torch.rand(()))
            case "generator":
                generator = torch.Generator()
                generator.seed()
                return float(torch.rand((), generator=generator))

    def loss(self, parts, batch):
        return super().loss(parts, batch) * (1.0 + 1e-3 * self.noise())


class Unused(Fresh):
    """The same noise, which has no influence in the first steps."""

    def loss(self, parts, batch):
        self.noise()
        return Base.loss(self, parts, batch)


class Throughput(Looping):
    """Measures its speed, as every training script does; reads clocks while it builds and in an aside, too."""

    def build(self):
        time.time(), secrets.token_bytes(4)
        return super().build()

    def before(self, run, parts):
        self.last = time.time()

    def after(self, run, parts):
        now = perf_counter()
        print(f"{4 / max(now - self.last, 1e-9):.1f} samples/s")
        self.last = now
        with run.aside():
            time.monotonic(), os.urandom(4)


class Seeded(Looping):
    """Generators and names that look like fresh randomness and are none."""

    def after(self, run, parts):
        random.Random(run.step).random()
        np.random.default_rng(run.step).random()
        np.random.RandomState(run.step).rand()
        torch.Generator().manual_seed(run.step)
        torch.initial_seed()
        time.strftime("%Y", time.gmtime(0))
        uuid.uuid5(uuid.NAMESPACE_URL, "name")


# --- loaders


class OwnLoader(Base):
    """Trains on the batches of a DataLoader; those of the run only count the steps."""

    def train(self, run):
        parts = run.attach(**self.build())
        loader = DataLoader(samples(9), batch_size=9)
        for _ in run.epochs(self.num_epochs):
            for _ in run.batches(self.data(), size=self.batch_size):
                for batch in loader:
                    loss = self.step(parts, batch)
                run.commit(loss=loss)


class EarlyLoader(Base):
    """The same, with an iterator that was made before attach."""

    def train(self, run):
        extra = iter(DataLoader(samples() * 9, batch_size=4, shuffle=True))
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                run.commit(loss=self.step(parts, batch) + 0 * self.loss(parts, next(extra)))


class EvaluationLoader(Looping):
    """A DataLoader where it may be: before attach, and in an aside."""

    def build(self):
        self.mean = torch.cat([batch["x"] for batch in DataLoader(samples(), batch_size=4)]).mean()
        return super().build()

    def after(self, run, parts):
        with run.aside(), torch.no_grad():
            for batch in DataLoader(samples(), batch_size=8, shuffle=True):
                parts.model(batch["x"])


# --- rarely


class Rarely(Base):
    """Does otherwise in the ninth step, each time that the program is run."""

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                loss = self.loss(parts, batch)
                if run.step == 8:
                    loss = loss * (1 + secrets.randbelow(2**20))
                parts.optimizer.zero_grad()
                loss.backward()
                parts.optimizer.step()
                run.commit(loss=loss)


# --- nothing of all this


class Bookkeeping(Looping):
    """Modules whose attributes torch and compilers write, and attributes that are made anew in every step."""

    def build(self):
        norm = nn.utils.parametrizations
        model = nn.ModuleDict(
            {
                "first": norm.spectral_norm(nn.Linear(4, 4)),
                "second": norm.weight_norm(nn.Linear(4, 4)),
                "cell": nn.GRU(4, 8, batch_first=True),
                "body": torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), backend="eager", fullgraph=True),
                "attention": nn.TransformerEncoderLayer(8, 2, 8),
                "head": nn.Linear(8, 3),
            }
        )
        model["head"].register_forward_hook(self.keep)
        model.mask, model.names, model.layers = torch.ones(4), {"a": [1, 2]}, list(model.children())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=40)
        return {"model": model, "optimizer": optimizer, "schedule": schedule}

    def keep(self, module, inputs, output):
        module.last, module.shape = output, {"of": tuple(output.shape)}

    def loss(self, parts, batch):
        model = parts.model
        x = model["second"](model["first"](model["body"](batch["x"] * model.mask)))
        x = model["cell"](x[:, None])[0][:, 0]
        x = torch.utils.checkpoint.checkpoint(model["attention"], x[:, None], use_reentrant=False)[:, 0]
        return nn.functional.cross_entropy(model["head"](x), batch["y"])

    def after(self, run, parts):
        parts.schedule.step()
