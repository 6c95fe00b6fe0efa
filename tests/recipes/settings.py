"""One step that uses every setting which a verifier sees, each with a value of its own."""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import alpha_dropout, cross_entropy, scaled_dot_product_attention
from torch.nn.utils import clip_grad_norm_ as clip_them
from torch.nn.utils import clip_grad_value_

from pol.replay.recipe import Recipe


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.compiled = torch.compile(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.11)))
        self.heads = nn.MultiheadAttention(8, 2, dropout=0.12, batch_first=True)
        self.recurrent = nn.GRU(8, 8, num_layers=2, dropout=0.13, batch_first=True)
        self.norm = nn.BatchNorm1d(8, momentum=0.3)
        self.cumulative = nn.BatchNorm1d(8, momentum=None)
        self.off = nn.Dropout(0.99)
        self.off.eval()
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        x = alpha_dropout(self.compiled(x), 0.14, training=True)
        x = torch.dropout(x, 0.15, True)
        x = nn.functional.dropout1d(x, p=0.16)
        x = self.heads(x, x, x)[0]
        x = scaled_dot_product_attention(x, x, x, dropout_p=0.17)
        x = self.recurrent(x)[0][:, -1]
        x = self.cumulative(self.norm(self.off(x)))
        return self.last(torch.feature_dropout(x, train=True, p=0.18))


class Settings(Recipe):
    num_epochs = 1
    batch_size = 4

    def data(self):
        return [{"x": row} for row in np.random.default_rng(0).normal(size=(8, 3, 4)).astype("float32")]

    def build(self):
        model = Model()
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}

    def step(self, parts, batch):
        labels = torch.tensor([0, 1, 0, 1])
        logits = parts.model(batch["x"])
        loss = cross_entropy(logits, labels, label_smoothing=0.2)
        loss = loss + nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.0]))(logits, labels)
        parts.optimizer.zero_grad()
        loss.backward()
        clip_them(parts.model.parameters(), max_norm=2.0)
        clip_grad_value_(parts.model.parameters(), 3.0)
        parts.optimizer.step()
        return loss
