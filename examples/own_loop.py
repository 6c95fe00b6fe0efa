"""A loop with what longer trainings have: accumulation, clipping, a moving average, evaluation, a plateau schedule."""

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import pol


class OwnLoop(pol.Recipe):
    """Regression on a noisy sine; 25 batches an epoch, two to a step, so the last step of an epoch has one."""

    def __init__(self, epochs: int = 4, lr: float = 1e-2, accumulate: int = 2) -> None:
        self.epochs = epochs
        self.lr = lr
        self.accumulate = accumulate

    def data(self):
        rng = np.random.default_rng(7)  # fixed: the data are the same whenever the program is entered
        x = rng.uniform(-3, 3, size=(250, 1)).astype(np.float32)
        y = np.sin(x) + rng.normal(scale=0.1, size=x.shape).astype(np.float32)
        return [{"x": a, "y": b} for a, b in zip(x[:200], y[:200], strict=True)]

    def transform(self, item, rng):
        return {**item, "x": item["x"] + rng.normal(scale=0.01, size=1).astype(np.float32)}

    def train(self, run):
        model = nn.Sequential(nn.Linear(1, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 1))
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95))
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr)
        schedule = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        run.attach(model=model, average=average, optimizer=optimizer, schedule=schedule)
        data = self.data()
        held_out = torch.linspace(-3, 3, 50).unsqueeze(1)
        for _ in run.epochs(self.epochs):
            waiting = 0
            for batch in run.batches(data, self.transform, size=8):
                loss = nn.functional.mse_loss(model(batch["x"]), batch["y"])
                (loss / self.accumulate).backward()
                waiting += 1
                if waiting == self.accumulate:
                    self.update(run, model, average, optimizer, loss)
                    waiting = 0
            if waiting:  # what is left of the epoch
                self.update(run, model, average, optimizer, loss)
            with run.aside():  # evaluation: generators, modes and buffers are afterwards as they were
                model.eval()
                error = nn.functional.mse_loss(model(held_out), held_out.sin()).item()
            schedule.step(error)  # belongs to the step before: the next one begins with the next batch

    def update(self, run, model, average, optimizer, loss):
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        run.commit(loss=loss)
        average.update_parameters(model)  # after the commit, and still part of this step
