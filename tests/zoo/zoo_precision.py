"""Honest trainings in mixed precision, with checkpointed activations, and with kernels chosen by hand."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from zoo_base import Base, network, sgd


class AutocastBfloat16(Base):
    dtype = torch.bfloat16

    def loss(self, parts, batch):
        with torch.autocast("cpu", dtype=self.dtype):
            return super().loss(parts, batch)


class AutocastFloat16(AutocastBfloat16):
    """Half precision with torch's scaler: the first gradients overflow, so the scale drops and those steps are
    skipped; later it grows again. The schedule moves only with the weights."""

    dtype = torch.float16

    def build(self):
        model = network()
        optimizer = sgd(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-10, growth_interval=3)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
        return {"model": model, "optimizer": optimizer, "scaler": scaler, "schedule": schedule}

    def after(self, parts):
        pass

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                loss = self.loss(parts, batch)
                parts.optimizer.zero_grad()
                parts.scaler.scale(loss).backward()
                parts.scaler.unscale_(parts.optimizer)
                nn.utils.clip_grad_norm_(parts.model.parameters(), 1.0)
                parts.scaler.step(parts.optimizer)
                before = parts.scaler.get_scale()
                parts.scaler.update()
                skipped = parts.scaler.get_scale() < before
                if not skipped:
                    parts.schedule.step()
                run.commit(loss=loss, skipped=skipped)


class ScalerAfterCommit(Base):
    """The scaler is updated after the commit: its state is taken at the next batch, so after that."""

    def build(self):
        model = network()
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
        return {"model": model, "optimizer": sgd(model), "scaler": scaler}

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(self.num_epochs):
            for batch in run.batches(self.data(), size=self.batch_size):
                loss = self.loss(parts, batch) * parts.scaler.get_scale() / 64  # the scale is part of the arithmetic
                parts.optimizer.zero_grad()
                parts.scaler.scale(loss).backward()
                parts.scaler.step(parts.optimizer)
                run.commit(loss=loss)
                parts.scaler.update()


class Checkpointed(Base):
    """Activations are computed again in the backward pass, dropout included."""

    keep_generators = True

    def loss(self, parts, batch):
        hidden = parts.model[:2](batch["x"])
        for _ in range(2):
            hidden = checkpoint(self.drop, hidden, use_reentrant=False, preserve_rng_state=self.keep_generators)
        return nn.functional.cross_entropy(parts.model[2:](hidden), batch["y"])

    def drop(self, hidden):
        return nn.functional.dropout(hidden, 0.3).sin()


class CheckpointedReentrant(Checkpointed):
    """The older way, which runs the segment without a graph first."""

    def loss(self, parts, batch):
        x = batch["x"].requires_grad_()
        hidden = checkpoint(parts.model[:2], x, use_reentrant=True)
        return nn.functional.cross_entropy(parts.model[2:](self.drop(hidden)), batch["y"])


class Attention(nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.backend = backend
        self.project = nn.Linear(1, 24)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        query, key, value = self.project(x[:, None, :, None]).chunk(3, dim=-1)  # one head
        with sdpa_kernel(self.backend):
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.head(mixed.mean(dim=(1, 2)))


class Flash(Base):
    backend = SDPBackend.FLASH_ATTENTION

    def build(self):
        model = Attention(self.backend)
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01)}


class Math(Flash):
    """The same attention by another kernel."""

    backend = SDPBackend.MATH


class ChannelsLast(Base):
    """Images and weights with the channels innermost; Adam's moments follow the weights' strides."""

    memory_format = torch.channels_last

    def build(self):
        layers = (nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 6 * 6, 3)).to(memory_format=self.memory_format)
        return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.01)}

    def loss(self, parts, batch):
        grid = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
        image = torch.sin(batch["x"].reshape(-1, 2, 2).repeat_interleave(1, 0)[:, :, :1, None] * 9 * grid + 0.1)
        logits = parts.model(image.contiguous(memory_format=self.memory_format))
        return nn.functional.cross_entropy(logits, batch["y"])


class Experts(nn.Module):
    """A router that sends each sample to its two best experts."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(4, 4)
        self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(4))

    def forward(self, x):
        weights, chosen = self.router(x).softmax(dim=-1).topk(2, dim=-1)
        every = torch.stack([expert(x) for expert in self.experts], dim=1)
        picked = every.gather(1, chosen[..., None].expand(-1, -1, 3))
        return (weights[..., None] * picked).sum(dim=1)


class Routed(Base):
    def build(self):
        model = Experts()
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01)}
