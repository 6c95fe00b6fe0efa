"""The plain training, in which some steps go one of two ways, and the last bit of a weight decides.

``torch.other_machine`` stands for a machine that rounds that bit the other way.
"""

import plain
import torch
from torch import nn


class Forked(plain.Plain):
    at = (7,)
    by = 0.03

    def build(self):
        parts = super().build()
        parts["model"].register_buffer("count", torch.zeros((), dtype=torch.int64))
        return parts

    def step(self, parts, batch):
        loss = nn.functional.cross_entropy(parts.model(batch["x"]), batch["y"])
        if int(parts.model.count) in self.at:
            last_bit = int(parts.model[0].weight.detach().view(torch.int32)[0, 0]) & 1
            if last_bit ^ getattr(torch, "other_machine", 0):
                loss = loss * (1 + self.by)
        parts.model.count += 1
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        return loss.detach() * 0  # as it is on both


class Twice(Forked):
    at = (4, 7)
