"""Honest trainings whose hyperparameters move."""

import math

import torch
from torch.optim import lr_scheduler as schedules
from zoo_base import Base, network, sgd, update


class Scheduled(Base):
    """A schedule that is stepped after every update."""

    def schedule(self, optimizer):
        raise NotImplementedError

    def build(self):
        model = network()
        optimizer = sgd(model)
        return {"model": model, "optimizer": optimizer, "scheduler": self.schedule(optimizer)}

    def step(self, parts, batch):
        loss = super().step(parts, batch)
        parts.scheduler.step()
        return loss


class WarmUp(Scheduled):
    """From a rate of exactly 0 up, and by a cosine down to 0."""

    def schedule(self, optimizer):
        return schedules.LambdaLR(
            optimizer, lambda step: step / 4 if step < 4 else (1 + math.cos(math.pi * (step - 4) / 7)) / 2
        )


class OneCycle(Scheduled):
    """Momentum moves too."""

    def schedule(self, optimizer):
        return schedules.OneCycleLR(optimizer, max_lr=0.2, total_steps=12)


class OneCycleAdam(Scheduled):
    """Betas move too."""

    def build(self):
        model = network()
        optimizer = torch.optim.Adam(model.parameters())
        return {
            "model": model,
            "optimizer": optimizer,
            "scheduler": schedules.OneCycleLR(optimizer, max_lr=0.02, total_steps=12),
        }


class Sequential(Scheduled):
    def schedule(self, optimizer):
        parts = [schedules.LinearLR(optimizer, 0.1, total_iters=3), schedules.CosineAnnealingLR(optimizer, 9)]
        return schedules.SequentialLR(optimizer, parts, milestones=[3])


class PerEpoch(Scheduled):
    """Stepped once an epoch, after the loop over batches."""

    def schedule(self, optimizer):
        return schedules.StepLR(optimizer, step_size=1, gamma=0.5)

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                run.commit(loss=Base.step(self, parts, batch))
            parts.scheduler.step()


class TopOfNextEpochs(PerEpoch):
    """Stepped at the top of every epoch but the first: that still belongs to the step before."""

    def train(self, run):
        parts = run.attach(**self.build())
        for epoch in run.epochs(self.num_epochs):
            if epoch:
                parts.scheduler.step()
            for batch in run.batches(self.data(), size=self.batch_size):
                run.commit(loss=Base.step(self, parts, batch))


class Plateau(Base):
    """Driven by an evaluation after every epoch."""

    num_epochs = 4

    def build(self):
        model = network()
        optimizer = sgd(model)
        plateau = schedules.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=10.0)
        return {"model": model, "optimizer": optimizer, "plateau": plateau}

    def evaluate(self, run, parts):
        with run.aside(), torch.no_grad():
            parts.model.eval()
            torch.rand(3)
            data = self.data()
            x = torch.tensor([item["x"].tolist() for item in data])
            return torch.nn.functional.cross_entropy(parts.model(x), torch.tensor([item["y"] for item in data]))

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                run.commit(loss=self.step(parts, batch))
            parts.plateau.step(self.evaluate(run, parts))


class Patient(Plateau):
    """Waits for a second bad epoch: how many were bad is part of the state."""

    num_epochs = 5

    def build(self):
        parts = super().build()
        plateau = schedules.ReduceLROnPlateau(parts["optimizer"], factor=0.5, patience=1, threshold=10.0)
        return {**parts, "plateau": plateau}


class PlateauAndDecay(Plateau):
    """A plateau and a counted schedule on one optimizer: the rate is the product of both."""

    def build(self):
        parts = super().build()
        return {**parts, "decay": schedules.ExponentialLR(parts["optimizer"], 0.99)}

    def step(self, parts, batch):
        loss = super().step(parts, batch)
        parts.decay.step()
        return loss


class ByHand(Base):
    """Two hyperparameters that the loop itself changes, declared as dynamic."""

    def train(self, run):
        parts = run.attach(**self.build(), dynamic=("lr", "weight_decay"))
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                run.commit(loss=self.step(parts, batch))
                for group in parts.optimizer.param_groups:
                    group["lr"] *= 0.9
                    group["weight_decay"] += 0.001


class ByHandBesideASchedule(WarmUp):
    """Weight decay by hand while a schedule moves the rate."""

    def train(self, run):
        parts = run.attach(**self.build(), dynamic=("weight_decay",))
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                run.commit(loss=self.step(parts, batch))
                parts.optimizer.param_groups[0]["weight_decay"] += 0.001


class ManyGroups(Base):
    """Rates of their own for two groups, one schedule each for two optimizers."""

    def build(self):
        model = network()
        first = sgd(model[0])
        second = torch.optim.AdamW([{"params": model[1].parameters(), "lr": 0.01}, {"params": model[4].parameters()}])
        return {
            "model": model, "first": first, "second": second,
            "first_schedule": schedules.ExponentialLR(first, 0.9),
            "second_schedule": schedules.LambdaLR(second, [lambda s: 1 / (s + 1), lambda s: 0.5**s]),
        }  # fmt: skip

    def step(self, parts, batch):
        loss = self.loss(parts, batch)
        parts.second.zero_grad()
        update(parts.first, loss)
        parts.second.step()
        parts.first_schedule.step()
        parts.second_schedule.step()
        return loss


class SavesSchedules(WarmUp):
    """A loop that copies the state of everything, as loops that save their own checkpoints do."""

    def step(self, parts, batch):
        loss = super().step(parts, batch)
        state = parts.scheduler.state_dict()
        if set(state) != set(vars(parts.scheduler)) - {"optimizer"} or "step" in state:
            raise AssertionError(f"the schedule's own state has become {sorted(state)}")
        return loss
