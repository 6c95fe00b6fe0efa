"""Ordinary trainings by their settings, some hundred steps in a second; and trainings that are not ordinary."""

import math

import numpy as np
import torch
from torch import nn, optim
from torch.nn import functional as F
from torch.optim import lr_scheduler as schedules

from pol.replay.recipe import Recipe

OPTIMIZERS = {
    "sgd": lambda groups, lr, decay: optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=decay),
    "plain sgd": lambda groups, lr, decay: optim.SGD(groups, lr=lr, weight_decay=decay),
    "nesterov": lambda groups, lr, decay: optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, weight_decay=decay),
    "adam": lambda groups, lr, decay: optim.Adam(groups, lr=lr, weight_decay=decay),
    "amsgrad": lambda groups, lr, decay: optim.Adam(groups, lr=lr, weight_decay=decay, amsgrad=True),
    "adamw": lambda groups, lr, decay: optim.AdamW(groups, lr=lr, weight_decay=decay),
    "adamw of language models": lambda groups, lr, decay: optim.AdamW(
        groups, lr=lr, weight_decay=decay, betas=(0.9, 0.95), eps=1e-6
    ),
    "nadam": lambda groups, lr, decay: optim.NAdam(groups, lr=lr, weight_decay=decay),
    "radam": lambda groups, lr, decay: optim.RAdam(groups, lr=lr, weight_decay=decay),
    "adamax": lambda groups, lr, decay: optim.Adamax(groups, lr=lr, weight_decay=decay),
    "rmsprop": lambda groups, lr, decay: optim.RMSprop(groups, lr=lr, weight_decay=decay),
    "rmsprop of mobile networks": lambda groups, lr, decay: optim.RMSprop(
        groups, lr=lr, weight_decay=decay, alpha=0.9, momentum=0.9, eps=0.0316
    ),
    "adagrad": lambda groups, lr, decay: optim.Adagrad(groups, lr=lr, weight_decay=decay),
    "adadelta": lambda groups, lr, decay: optim.Adadelta(groups, lr=lr, weight_decay=decay),
    "large eps": lambda groups, lr, decay: optim.Adam(groups, lr=lr, eps=1e6),
    "no new gradient": lambda groups, lr, decay: optim.SGD(groups, lr=lr, momentum=0.9, dampening=1.0),
}

SCHEDULES = {
    "cosine": lambda optimizer, lr, steps: schedules.CosineAnnealingLR(optimizer, steps),
    "steps": lambda optimizer, lr, steps: schedules.StepLR(optimizer, max(1, steps // 3)),
    "milestones": lambda optimizer, lr, steps: schedules.MultiStepLR(optimizer, [steps // 2, 3 * steps // 4]),
    "exponential": lambda optimizer, lr, steps: schedules.ExponentialLR(optimizer, 0.95),
    "polynomial": lambda optimizer, lr, steps: schedules.PolynomialLR(optimizer, steps, power=2.0),
    "one cycle": lambda optimizer, lr, steps: schedules.OneCycleLR(optimizer, max_lr=lr, total_steps=steps),
    "cyclic": lambda optimizer, lr, steps: schedules.CyclicLR(optimizer, lr / 10, lr, step_size_up=max(1, steps // 8)),
    "warm restarts": lambda optimizer, lr, steps: schedules.CosineAnnealingWarmRestarts(optimizer, max(1, steps // 4)),
    "warm-up, then cosine": lambda optimizer, lr, steps: schedules.SequentialLR(
        optimizer,
        [schedules.LinearLR(optimizer, 1e-3, total_iters=steps // 10), schedules.CosineAnnealingLR(optimizer, steps)],
        [steps // 10],
    ),
    "lambda from 0 to 0": lambda optimizer, lr, steps: schedules.LambdaLR(
        optimizer, lambda step: math.sin(math.pi * step / steps)
    ),
    "plateau": lambda optimizer, lr, steps: schedules.ReduceLROnPlateau(optimizer, patience=2),
    "to and fro": lambda optimizer, lr, steps: schedules.LambdaLR(optimizer, lambda step: 1.0 if step % 2 else 0.25),
}


class Own(schedules.LRScheduler):
    """A schedule of the recipe's own."""

    def get_lr(self):
        return [base / (1 + self.last_epoch) ** 0.5 for base in self.base_lrs]


class Ordinary(Recipe):
    batch_size = 8

    def __init__(
        self, optimizer: str = "sgd", lr: float = 0.05, schedule: str | None = None, weight_decay: float = 0.0,
        dropout: float = 0.1, smoothing: float = 0.0, clip: float | None = None, clip_value: float | None = None,
        num_epochs: int = 5, weights: list[float] | None = None, scale: float = 1.0, norm: float = 0.1,
        multiplier: float = 1.0, trained: bool = True, loss: str = "classes",
    ) -> None:  # fmt: skip
        self.optimizer, self.lr, self.schedule, self.weight_decay = optimizer, lr, schedule, weight_decay
        self.dropout, self.smoothing, self.clip, self.clip_value = dropout, smoothing, clip, clip_value
        self.num_epochs, self.weights, self.scale, self.norm = num_epochs, weights, scale, norm
        self.multiplier, self.trained, self.loss = multiplier, trained, loss

    def data(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(64, 8)).astype("float32")
        return [{"x": row, "y": int(row[0] + row[1] > 0) + int(row[2] > 1)} for row in x]

    def build(self):
        body = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32, momentum=self.norm), nn.ReLU(), nn.Linear(32, 32))
        head = nn.Sequential(nn.ReLU(), nn.Dropout(self.dropout), nn.Linear(32, 3))
        model = nn.Sequential(body, head)
        if not self.trained:
            body.requires_grad_(False)
        groups = [{"params": body.parameters(), "lr": self.lr * self.multiplier}, {"params": head.parameters()}]
        optimizer = OPTIMIZERS[self.optimizer](groups, self.lr, self.weight_decay)
        parts = {"model": model, "optimizer": optimizer}
        if self.schedule == "own":
            parts["schedule"] = Own(optimizer)
        elif self.schedule is not None:
            parts["schedule"] = SCHEDULES[self.schedule](optimizer, self.lr, 8 * self.num_epochs)
        return parts

    def step(self, parts, batch):
        logits = parts.model(batch["x"])
        if self.loss == "squares":
            loss = F.mse_loss(logits[:, 0], batch["x"][:, 0])
        else:
            weight = None if self.weights is None else torch.tensor(self.weights)
            loss = F.cross_entropy(logits, batch["y"], weight=weight, label_smoothing=self.smoothing)
        parts.optimizer.zero_grad()
        (self.scale * loss).backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(parts.model.parameters(), self.clip)
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(parts.model.parameters(), self.clip_value)
        parts.optimizer.step()
        if self.schedule == "plateau":
            parts.schedule.step(float(loss.detach()))
        elif self.schedule is not None:
            parts.schedule.step()
        return loss


class ByHand(Ordinary):
    """Rates that the loop sets: down along a line, or fitted to the gradients."""

    def train(self, run):
        parts = run.attach(**self.build(), dynamic=("lr",))
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                loss = self.step(parts, batch)
                if self.loss == "fitted":  # the next step is as long as the attacker wants it (attack study, A5)
                    size = math.sqrt(sum(float(p.grad.square().sum()) for p in parts.model.parameters()))
                    rate = 0.01 / max(size, 1e-3)
                else:
                    rate = parts.optimizer.param_groups[0]["lr"] * 0.99
                for group in parts.optimizer.param_groups:
                    group["lr"] = rate
                run.commit(loss=loss)


class Skipping(Ordinary):
    """Most steps are skipped, as by a gradient scaler that overflows."""

    def train(self, run):
        parts, step = run.attach(**self.build()), 0
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                skipped = int(batch["x"][0, 0] * 1e6) % 4 != 0  # a function of the batch, as an overflow is
                if skipped:
                    run.commit(loss=0.0, skipped=True)
                else:
                    run.commit(loss=self.step(parts, batch))
                step += 1
