"""Honest trainings whose state is unusual."""

import copy
import math

import torch
from torch import nn
from zoo_base import Base, network, sgd, update


class Plain(Base):
    """SGD without momentum: the optimizer has no state at all."""

    def build(self):
        model = network()
        return {"model": model, "optimizer": sgd(model, momentum=0.0)}


class Momentum(Base):
    pass


class Nesterov(Base):
    def build(self):
        model = network()
        return {"model": model, "optimizer": sgd(model, nesterov=True, weight_decay=0.01)}


class Adam(Base):
    def build(self):
        model = network()
        return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True)}


class AdamW(Base):
    """Two groups with hyperparameters of their own, as is usual."""

    def build(self):
        model = network()
        groups = [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ]
        return {"model": model, "optimizer": torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95))}


class Adafactor(Base):
    def build(self):
        model = network()
        return {"model": model, "optimizer": torch.optim.Adafactor(model.parameters(), lr=0.01)}


class Lbfgs(Base):
    """Optimizer state that is lists of tensors, numbers and None."""

    def build(self):
        model = nn.Linear(4, 3)
        return {"model": model, "optimizer": torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)}

    def step(self, parts, batch):
        def closure():
            parts.optimizer.zero_grad()
            loss = self.loss(parts, batch)
            loss.backward()
            return loss

        return parts.optimizer.step(closure)


class Frozen(Base):
    """The first layer is not trained; Adam has no state for it."""

    def build(self):
        model = network()
        model[0].requires_grad_(False)
        return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.01)}


class FrozenOutside(Base):
    """The first layer is not even given to the optimizer."""

    def build(self):
        model = network()
        model[0].requires_grad_(False)
        return {"model": model, "optimizer": torch.optim.Adam([p for p in model.parameters() if p.requires_grad])}


class ZeroGradient(Base):
    """One layer gets a gradient of zeros, one gets none."""

    def build(self):
        model = nn.ModuleDict({"used": nn.Linear(4, 3), "silent": nn.Linear(4, 3), "unused": nn.Linear(4, 3)})
        return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.01)}

    def loss(self, parts, batch):
        logits = parts.model["used"](batch["x"]) + 0.0 * parts.model["silent"](batch["x"])
        return nn.functional.cross_entropy(logits, batch["y"])


class LateGradient(Base):
    """A layer that is trained from the ninth step on: optimizer state appears in the middle."""

    def build(self):
        model = nn.ModuleDict({"early": nn.Linear(4, 3), "late": nn.Linear(4, 3)})
        model.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.01)}

    def loss(self, parts, batch):
        logits = parts.model["early"](batch["x"])
        parts.model.steps += 1
        if parts.model.steps > 8:
            logits = logits + parts.model["late"](batch["x"])
        return nn.functional.cross_entropy(logits, batch["y"])


class Tied(Base):
    """An autoencoder whose two layers share one matrix, and one that shares it transposed."""

    def build(self):
        model = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in ("down", "up", "back")})
        model["up"].weight = model["down"].weight
        model["head"] = nn.Linear(4, 3)
        return {"model": model, "optimizer": sgd(model)}

    def loss(self, parts, batch):
        hidden = parts.model["up"](parts.model["down"](batch["x"]))
        return nn.functional.cross_entropy(parts.model["head"](parts.model["back"](hidden)), batch["y"])


class SharedMemory(Base):
    """A buffer that is a view into a parameter, and one that is expanded."""

    def build(self):
        model = nn.Linear(4, 3)
        model.register_buffer("first_row", model.weight.data[0])
        model.register_buffer("wide", torch.ones(1, 3).expand(4, 3))
        return {"model": model, "optimizer": sgd(model)}


class Strided(Base):
    """A parameter that is not contiguous, whose optimizer state follows its strides."""

    def build(self):
        model = nn.Linear(4, 3)
        model.weight = nn.Parameter(torch.randn(4, 3).t() * 0.3)
        return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.01)}


class Counters(nn.Module):
    """Integer and boolean buffers that the forward pass moves, one of them by assignment."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("parity", torch.tensor(False))
        self.register_buffer("bytes", torch.zeros(2, dtype=torch.uint8))
        self.register_buffer("average", torch.zeros(4))

    def forward(self, x):
        self.seen += len(x)
        self.parity.logical_not_()
        self.bytes += 200  # wraps around
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(dim=0)  # a new tensor each time
        return self.linear(x - self.average)


class IntegerBuffers(Base):
    def build(self):
        model = Counters()
        return {"model": model, "optimizer": sgd(model)}


class Masked(nn.Module):
    """Attention under a causal mask of minus infinities; a second mask is not persistent."""

    def __init__(self, persistent):
        super().__init__()
        self.project = nn.Linear(1, 6)
        self.head = nn.Linear(2, 3)
        mask = torch.full((4, 4), -math.inf).triu(1)
        self.register_buffer("mask", mask, persistent=persistent)
        self.register_buffer("scale", torch.tensor(2.0), persistent=not persistent)

    def forward(self, x):
        query, key, value = self.project(x[..., None]).chunk(3, dim=-1)
        weights = torch.softmax(query @ key.transpose(-1, -2) / self.scale + self.mask, dim=-1)
        return self.head((weights @ value).mean(dim=1))


class CausalMask(Base):
    def build(self):
        model = Masked(persistent=True)
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01)}


class NonPersistent(Base):
    """The mask is left out of state_dict."""

    def build(self):
        model = Masked(persistent=False)
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01)}


class EvolvingTransient(Base):
    """A buffer that state_dict leaves out and that moves."""

    def build(self):
        model = network()
        model.register_buffer("level", torch.zeros(()), persistent=False)
        return {"model": model, "optimizer": sgd(model)}

    def loss(self, parts, batch):
        parts.model.level += 1
        return super().loss(parts, batch) * (1 + 0.01 * parts.model.level.item())


class Typed(Base):
    dtype = torch.float32

    def build(self):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).to(self.dtype)
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01)}

    def loss(self, parts, batch):
        return nn.functional.cross_entropy(parts.model(batch["x"].to(self.dtype)).float(), batch["y"])


class Bfloat16(Typed):
    dtype = torch.bfloat16


class Float64(Typed):
    dtype = torch.float64


class Odd(Base):
    """Tensors of no elements, of no dimension, and a frozen half of large values whose sum overflows."""

    def build(self):
        model = nn.Linear(4, 3)
        model.register_parameter("scale", nn.Parameter(torch.ones(())))
        model.register_parameter("none", None)
        model.register_buffer("empty", torch.empty(0, 3))
        model.register_buffer("absent", None)
        model.register_buffer("large", torch.full((4,), 60000.0, dtype=torch.float16))
        return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.01)}

    def loss(self, parts, batch):
        return super().loss(parts, batch) * parts.model.scale


class Ema(Base):
    """An exponential moving average in a part of its own, moved after the commit."""

    def build(self):
        model = network()
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
        )
        return {"model": model, "average": average, "optimizer": sgd(model)}

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                run.commit(loss=self.step(parts, batch))
                parts.average.update_parameters(parts.model)


class Generators(Base):
    """Two generators of the recipe's own, and all global ones, in every step."""

    def build(self):
        model = network()
        return {
            "model": model, "optimizer": sgd(model), "noise": torch.Generator(), "other": torch.Generator(),
        }  # fmt: skip

    def loss(self, parts, batch):
        noise = torch.randn(batch["x"].shape, generator=parts.noise) + torch.rand((), generator=parts.other)
        return super().loss(parts, {**batch, "x": batch["x"] + 0.1 * noise + 0.1 * torch.randn(4)})


class Scaler:
    """Like a gradient scaler: scales the loss, skips every fifth step, and changes its scale."""

    def __init__(self):
        self.scale = 4.0
        self.seen = torch.zeros((), dtype=torch.int32)
        self.history = {"skips": [], 7: (None, True)}

    def state_dict(self):
        return {"scale": self.scale, "seen": self.seen, "history": self.history}

    def load_state_dict(self, state):
        self.scale, self.seen, self.history = state["scale"], state["seen"], copy.deepcopy(state["history"])

    def step(self, optimizer):
        self.seen += 1
        if self.seen % 5 == 0:
            self.scale /= 2
            self.history["skips"].append(int(self.seen))
            return True
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad /= self.scale
        optimizer.step()
        self.scale *= 1.1
        return False


class Skipping(Base):
    def build(self):
        model = network()
        return {"model": model, "optimizer": sgd(model), "scaler": Scaler()}

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                loss = self.loss(parts, batch)
                parts.optimizer.zero_grad()
                (loss * parts.scaler.scale).backward()
                run.commit(loss=loss, skipped=parts.scaler.step(parts.optimizer))


class AmpScaler(Base):
    """torch's own scaler."""

    def build(self):
        model = network()
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
        return {"model": model, "optimizer": sgd(model), "scaler": scaler}

    def step(self, parts, batch):
        loss = self.loss(parts, batch)
        parts.optimizer.zero_grad()
        parts.scaler.scale(loss).backward()
        parts.scaler.step(parts.optimizer)
        parts.scaler.update()
        return loss


class Gan(Base):
    """Two models, two optimizers, two updates a step."""

    def build(self):
        maker, judge = nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        return {
            "maker": maker, "judge": judge,
            "maker_optimizer": torch.optim.Adam(maker.parameters(), lr=0.01, betas=(0.5, 0.9)),
            "judge_optimizer": sgd(judge),
        }  # fmt: skip

    def step(self, parts, batch):
        real, fake = batch["x"], parts.maker(torch.randn(len(batch["x"]), 2))
        judged = nn.functional.softplus(-parts.judge(real)) + nn.functional.softplus(parts.judge(fake.detach()))
        update(parts.judge_optimizer, judged.mean())
        return update(parts.maker_optimizer, nn.functional.softplus(-parts.judge(fake)).mean())
