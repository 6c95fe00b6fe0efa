"""Honest trainings in which something evolves that is easily forgotten."""

import random

import numpy as np
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn
from zoo_base import Base, network, samples, sgd


class SpectralNorm(Base):
    """A weight divided by its largest singular value, which a vector in a buffer follows."""

    def build(self):
        model = nn.Sequential(spectral_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))
        return {"model": model, "optimizer": sgd(model)}


class Scaled(nn.Linear):
    """Rounds its inputs to a grid that follows the largest values of the last steps, as FP8 layers do.

    The history is no buffer: the module tells it as extra state.
    """

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.history = []
        self.largest = torch.ones(3)

    def forward(self, x):
        if self.training:
            self.history = [*self.history[-3:], float(x.detach().abs().max())]
            self.largest = torch.cat([self.largest[1:], x.detach().abs().amax().reshape(1)])
        scale = 16 / (max(self.history, default=1.0) + self.largest.mean())
        return super().forward((x * scale).round().detach() / scale + (x - x.detach()))

    def get_extra_state(self):
        return {"history": self.history, "largest": self.largest, "version": (1, None)}

    def set_extra_state(self, state):
        self.history, self.largest = state["history"], state["largest"]


class ExtraState(Base):
    """Two such layers, one of them inside, and evaluations that move their histories."""

    def build(self):
        model = nn.Sequential(Scaled(4, 8), nn.ReLU(), nn.Sequential(Scaled(8, 3)))
        return {"model": model, "optimizer": sgd(model)}

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                run.commit(loss=self.step(parts, batch))
                with run.aside():
                    parts.model(100 * batch["x"]).sum().backward()


class Average:
    """A moving average by hand: tensors, and how often it was moved, as a plain int."""

    def __init__(self, model):
        self.updates = 0
        self.shadow = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def update(self, model):
        self.updates += 1
        rate = min(0.99, (1 + self.updates) / (10 + self.updates))  # warms up with the counter
        for name, parameter in model.named_parameters():
            self.shadow[name].lerp_(parameter.detach(), 1 - rate)

    def state_dict(self):
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state):
        self.updates, self.shadow = state["updates"], state["shadow"]


class EmaByHand(Base):
    def build(self):
        model = network()
        return {"model": model, "optimizer": sgd(model), "average": Average(model)}

    def step(self, parts, batch):
        loss = super().step(parts, batch)
        parts.average.update(parts.model)
        return loss


class Swa(Base):
    """Stochastic weight averaging from the third epoch on: a schedule of its own, and statistics at the end."""

    num_epochs = 5

    def build(self):
        model = network()
        optimizer = sgd(model)
        return {
            "model": model, "average": AveragedModel(model), "optimizer": optimizer,
            "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5),
            "swa_scheduler": SWALR(optimizer, swa_lr=0.05, anneal_epochs=3),
        }  # fmt: skip

    def statistics(self, parts):
        inputs = torch.from_numpy(np.stack([item["x"] for item in samples()]))
        update_bn(inputs.split(8), parts.average)

    def train(self, run):
        parts = run.attach(**self.build())
        for epoch in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                run.commit(loss=self.step(parts, batch))
            if epoch < 2:
                parts.scheduler.step()
            else:
                parts.average.update_parameters(parts.model)
                parts.swa_scheduler.step()
            self.end(run, parts, epoch)

    def end(self, run, parts, epoch):
        if epoch == self.num_epochs - 1:
            self.statistics(parts)


class SwaAside(Swa):
    """The statistics are made anew for every evaluation, and forgotten after it."""

    def end(self, run, parts, epoch):
        with run.aside(), torch.no_grad():
            self.statistics(parts)
            parts.average(torch.ones(2, 4))


class AttachedGenerators(Base):
    """Generators of numpy, of every algorithm, and of Python, held by the recipe."""

    algorithms = (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)

    def build(self):
        own = {f"numpy_{number}": np.random.Generator(kind(7)) for number, kind in enumerate(self.algorithms)}
        own |= {"legacy": np.random.RandomState(7), "python": random.Random(7), "noise": torch.Generator()}
        return {**super().build(), **own}

    def draw(self, parts):
        own = [parts[f"numpy_{number}"] for number in range(len(self.algorithms))]
        drawn = [generator.random() + int(generator.integers(5, dtype=np.uint32)) for generator in own]
        drawn += [parts.legacy.normal(), parts.python.gauss(), torch.rand((), generator=parts.noise).item()]
        return sum(drawn)

    def loss(self, parts, batch):
        noise = self.draw(parts)
        return super().loss(parts, batch) * (1 + 0.01 * noise)

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                run.commit(loss=self.step(parts, batch))
                with run.aside():
                    self.draw(parts)


class Meters:
    """What a loop counts: tokens seen, the best loss, how long nothing got better, and what follows from these."""

    def __init__(self):
        self.tokens, self.best, self.bad, self.calls = 0, float("inf"), 0, []

    def see(self, count, loss):
        self.tokens += count
        self.bad = 0 if loss < self.best else self.bad + 1
        self.best = min(self.best, loss)
        self.calls.append(count)

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)


class Counting(Base):
    """Losses are weighted by the tokens so far, samples get harder with them, and a bad streak halves the loss."""

    def build(self):
        return {**super().build(), "meters": Meters()}

    def loss(self, parts, batch):
        hardness = 1 + parts.meters.tokens / 40
        loss = super().loss(parts, {**batch, "x": batch["x"] * hardness})
        weighted = loss * len(batch["x"]) / (1 + parts.meters.tokens) / (2 if parts.meters.bad > 1 else 1)
        parts.meters.see(len(batch["x"]), loss.item())
        return weighted


class TensorRate(Base):
    """The learning rate is a tensor, as ``torch.compile`` wants it, moved in place by a schedule."""

    def build(self):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01), foreach=False)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"model": model, "optimizer": optimizer, "schedule": schedule}

    def step(self, parts, batch):
        loss = super().step(parts, batch)
        parts.schedule.step()
        return loss


class TensorRateByHand(TensorRate):
    """A tensor that the loop multiplies: it is state."""

    def build(self):
        parts = super().build()
        del parts["schedule"]
        return parts

    def train(self, run):
        parts = run.attach(**self.build(), dynamic=("lr",))
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                run.commit(loss=Base.step(self, parts, batch))
                parts.optimizer.param_groups[0]["lr"].mul_(0.9)


class Foreach(Base):
    """All tensors of a group at once."""

    flag = "foreach"

    def build(self):
        model = network()
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01, **{self.flag: True})}


class Fused(Foreach):
    """One kernel for the whole update."""

    flag = "fused"


class StateOfItsOwn(Base):
    """An optimizer that keeps numbers and tensors beside the state of its parameters."""

    class Damped(torch.optim.SGD):
        def step(self, closure=None):
            kept = self.state["total"] or {"steps": 0, "seen": torch.zeros(())}
            kept["steps"] += 1
            kept["seen"] = kept["seen"] + sum(p.grad.abs().sum() for g in self.param_groups for p in g["params"])
            self.state["total"] = kept
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad /= kept["steps"] + kept["seen"]
            return super().step(closure)

    def build(self):
        model = network()
        return {"model": model, "optimizer": self.Damped(model.parameters(), lr=0.5, momentum=0.9)}


class Clipped(Base):
    """Gradients clipped by their norm, no decay of biases, smoothed labels."""

    clip, smoothing, decay = 0.1, 0.1, 0.05

    def build(self):
        model = network()
        weights = [p for p in model.parameters() if p.dim() > 1]
        groups = [
            {"params": weights, "weight_decay": self.decay},
            {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ]
        return {"model": model, "optimizer": torch.optim.AdamW(groups, lr=0.01)}

    def step(self, parts, batch):
        loss = nn.functional.cross_entropy(parts.model(batch["x"]), batch["y"], label_smoothing=self.smoothing)
        parts.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parts.model.parameters(), self.clip)
        parts.optimizer.step()
        return loss


class Recurrent(nn.Module):
    """Words to a GRU over packed sequences of several lengths."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(12, 6, padding_idx=0)
        self.network = nn.GRU(6, 8, num_layers=2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, words, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(
            self.words(words), lengths, batch_first=True, enforce_sorted=False
        )  # fmt: skip
        return self.head(self.network(packed)[1][-1])


class Sequences(Base):
    """Text of several lengths, with weights and a flag for every sample beside input and target."""

    def data(self):
        rng = np.random.default_rng(0)
        return [
            {"words": rng.integers(1, 12, size=1 + i % 5), "y": i % 3, "weight": 1 / (1 + i), "noisy": i % 4 == 0}
            for i in range(22)
        ]

    def build(self):
        model = Recurrent()
        return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.01)}

    @staticmethod
    def collate(items):
        words = nn.utils.rnn.pad_sequence([torch.from_numpy(item["words"]) for item in items], batch_first=True)
        fields = {name: torch.tensor([item[name] for item in items]) for name in ("y", "weight", "noisy")}
        return {**fields, "words": words, "lengths": torch.tensor([len(item["words"]) for item in items])}

    def loss(self, parts, batch):
        logits = parts.model(batch["words"], batch["lengths"])
        losses = nn.functional.cross_entropy(logits, batch["y"], reduction="none")
        return (losses * batch["weight"] * (~batch["noisy"]).float()).sum() / batch["weight"].sum()

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size, collate=self.collate):
                run.commit(loss=self.step(parts, batch))


class Transformed(Base):
    """A transformer encoder under a padding mask, with dropout."""

    def build(self):
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        model = nn.ModuleDict({
            "embed": nn.Linear(1, 8), "encoder": nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
            "head": nn.Linear(8, 3),
        })  # fmt: skip
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01)}

    def loss(self, parts, batch):
        padding = batch["x"] < -0.5
        padding[:, 0] = False
        hidden = parts.model["encoder"](parts.model["embed"](batch["x"][..., None]), src_key_padding_mask=padding)
        return nn.functional.cross_entropy(parts.model["head"](hidden.mean(dim=1)), batch["y"])
