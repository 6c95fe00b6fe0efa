"""A training that has a function made faster, and does not say so in so many words; and the same without."""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from pol.replay.recipe import Recipe

CALLS = []
"""Graphs that were given to the backend."""


def backend(graph, _):
    CALLS.append(graph)
    return graph.forward


class Plain(Recipe):
    """Notes in a file after each step whether the process has the real ``torch._dynamo``, and its graphs."""

    num_epochs = 2
    batch_size = 2

    def __init__(self, notes: str = "", strict: bool = False) -> None:
        self.notes, self.strict = notes, strict

    def data(self):
        return [{"x": torch.full((4,), float(i)), "y": i % 3} for i in range(6)]

    def build(self):
        model = nn.Linear(4, 3)
        if self.strict:
            torch.use_deterministic_algorithms(True)
            torch.use_deterministic_algorithms(False)
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01)}

    def loss(self, logits, y):
        return nn.functional.cross_entropy(logits, y)

    def step(self, parts, batch):
        loss = self.loss(parts.model(batch["x"]), batch["y"])
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        if self.notes:
            real = type(sys.modules.get("torch._dynamo")).__name__ == "module"
            Path(self.notes).write_text(json.dumps({"real": real, "graphs": len(CALLS)}))
        return loss


class Late(Plain):
    """An optimizer is made and used before that."""

    def build(self):
        self.number = 0
        return super().build()

    def loss(self, logits, y):
        self.number += 1
        if self.number == 2:
            self.made = getattr(torch, "com" + "pile")(super().loss, backend=backend)
        return self.made(logits, y) if self.number > 1 else super().loss(logits, y)
