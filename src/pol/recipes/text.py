"""A causal transformer on bytes of text: from a toy to tens of millions of parameters, by its arguments.

It uses what language models use (tied weights, a mask of minus infinities, AdamW with two parameter groups,
warm-up and cosine, gradient clipping) on text that needs no download: Python's own help topics, or a file.
"""

from __future__ import annotations

import hashlib
import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pol.errors import IntegrityError, UsageError
from pol.replay.recipe import Recipe

VOCABULARY = 256

Item = dict[str, NDArray[np.uint8]]

TOPICS_SHA256 = {
    "3.11.2": "1d498c0f59ce1f957fe19dfb974e9e74f4519b03669b5b272d59a9def154b965",
    "3.11.7": "da260dc0e423b56b38404db1fb0852cc55f76d78b1d86d614f98e6d5661f3fdf",
    "3.12.1": "bbd09d9d81035630f0785372aef685e36f98fc5c98f03a16118de7596eeec1a1",
    "3.13.0": "a9dab2bfa233efdeb087030b855317d425a83439fd885cc6d042d02c3f8942e9",
}
"""SHA-256 of ``topics_text()`` by Python version: the help topics are written anew for every release."""


def topics_text() -> bytes:
    """The help topics of this Python (half a megabyte of English), each under its name, sorted by name."""
    from pydoc_data.topics import topics

    return "\n\n".join(name + "\n\n" + topics[name].strip("\n") for name in sorted(topics)).encode()


def load_text(path: str | None, sha256: str | None) -> bytes:
    """The bytes of the file, or of Python's help topics if ``path`` is None, checked against their digest."""
    if path is None:
        version = platform.python_version()
        text, name = topics_text(), f"help topics of Python {version}"
        sha256 = sha256 or TOPICS_SHA256.get(version)
        if sha256 is None:
            raise UsageError(
                f"the text recipe knows the help topics of Python {', '.join(TOPICS_SHA256)}, "
                f"not of {version}: pass path=... and sha256=... of a text of your own"
            )
    else:
        try:
            text, name = Path(path).read_bytes(), path
        except OSError as error:
            raise UsageError(f"the text recipe cannot read its text: {error}") from error
    found = hashlib.sha256(text).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise IntegrityError(f"{name}: the text has sha256 {found}, expected {sha256}")
    return text


def windows(text: bytes, count: int, length: int) -> list[Item]:
    """``count`` windows of ``length`` bytes, spread evenly: window i begins at byte ``i * stride``."""
    stride = (len(text) - length) // max(1, count - 1)
    if stride < 1:
        raise UsageError(f"{len(text)} bytes of text are too few for {count} windows of {length} bytes")
    array = np.frombuffer(bytearray(text), dtype=np.uint8)  # a bytearray, as torch wants writable memory
    return [{"tokens": array[start : start + length]} for start in range(0, count * stride, stride)]


class Block(nn.Module):
    """Pre-norm attention and feed-forward layer."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2, self.dropout = nn.LayerNorm(width), nn.LayerNorm(width), nn.Dropout(dropout)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Add attention, then the feed-forward layer, to ``x`` (batch, time, width)."""
        b, t, w = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        # Written out: the fused kernels have backward passes that are not deterministic on some devices.
        scores = q @ k.transpose(-2, -1) / math.sqrt(w // self.heads) + mask[:t, :t]
        attended = self.dropout(scores.softmax(dim=-1)) @ v
        x = x + self.dropout(self.out(attended.transpose(1, 2).reshape(b, t, w)))
        forward: Tensor = self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))
        return x + forward


class Transformer(nn.Module):
    """Bytes (batch, time) to logits of the next byte (batch, time, 256)."""

    mask: Tensor

    def __init__(self, layers: int, heads: int, width: int, context: int, dropout: float, tied: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
        self.register_buffer("mask", torch.full((context, context), -math.inf).triu(1))
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if into_residual else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the byte after each one."""
        x = self.dropout(self.tokens(tokens) + self.positions.weight[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x, self.mask)
        logits: Tensor = self.head(self.norm(x))
        return logits


class CharGPT(Recipe):
    """Next-byte prediction; the defaults train in well under a minute on two cores.

    The learning rate rises linearly over ``warmup`` steps, from above zero, then falls along a cosine to zero
    after the last step. ``layers=6, heads=6, width=384, context=256`` has 10.8 million parameters.

    Args:
        num_epochs: Passes over the windows.
        steps_per_epoch: An epoch is ``steps_per_epoch * batch_size`` windows, spread evenly over the text.
        batch_size: Windows per step.
        layers, heads, width, context, dropout: The transformer; ``context`` in bytes.
        tied: Whether the embedding and the head are one matrix.
        lr, weight_decay: AdamW's; the decay acts on matrices only.
        warmup: Steps in which the learning rate rises.
        clip: Largest norm of the gradient; None leaves it as it is.
        path: A text file; None is this Python's help topics, which other releases have in other words.
        sha256: What the text must hash to, in hex; None leaves a file unchecked (topics are always checked).
    """

    def __init__(
        self, *, num_epochs: int = 3, steps_per_epoch: int = 100, batch_size: int = 16,
        layers: int = 4, heads: int = 4, width: int = 128, context: int = 64, dropout: float = 0.1,
        tied: bool = True, lr: float = 2e-3, weight_decay: float = 0.1, warmup: int = 20,
        clip: float | None = 1.0, path: str | None = None, sha256: str | None = None,
    ) -> None:  # fmt: skip
        if width % heads:
            raise UsageError(f"width {width} is not a multiple of {heads} heads")
        self.num_epochs, self.steps_per_epoch, self.batch_size = num_epochs, steps_per_epoch, batch_size
        self.layers, self.heads, self.width, self.context = layers, heads, width, context
        self.dropout, self.tied = dropout, tied
        self.lr, self.weight_decay, self.warmup, self.clip = lr, weight_decay, warmup, clip
        self.path, self.sha256 = path, sha256
        self._windows: list[Item] | None = None

    def data(self) -> list[Item]:
        """Windows of ``context + 1`` bytes as ``{"tokens": uint8 array}``; the text is read only once."""
        if self._windows is None:
            text = load_text(self.path, self.sha256)
            self._windows = windows(text, self.steps_per_epoch * self.batch_size, self.context + 1)
        return self._windows

    def build(self) -> dict[str, Any]:
        """Model, optimizer and schedule."""
        model = Transformer(self.layers, self.heads, self.width, self.context, self.dropout, self.tied)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in model.parameters() if p.dim() >= 2]},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.95), weight_decay=self.weight_decay)
        total, rising = self.num_epochs * self.steps_per_epoch, self.warmup

        def factor(step: int) -> float:
            if step < rising:
                return (step + 1) / rising
            return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (step - rising) / max(1, total - rising)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"model": model, "optimizer": optimizer, "scheduler": scheduler}

    def step(self, parts: Any, batch: dict[str, Tensor]) -> Tensor:
        """One optimizer update; returns the loss before it, in nats per byte."""
        tokens = batch["tokens"].long()
        logits = parts.model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        parts.optimizer.zero_grad()
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(parts.model.parameters(), self.clip)
        parts.optimizer.step()
        parts.scheduler.step()
        return loss.detach()
