"""The toy, trained by an optimizer that divides by moments that it keeps."""

import torch
import toy


class Adam(toy.Toy):
    def build(self):
        parts = super().build()
        return {"model": parts["model"], "optimizer": torch.optim.Adam(parts["model"].parameters(), lr=0.01)}

    def step(self, parts, batch):
        loss = torch.nn.functional.cross_entropy(parts.model(batch["x"]), batch["y"])
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        return loss


class Adagrad(Adam):
    def build(self):
        parts = super().build()
        return {"model": parts["model"], "optimizer": torch.optim.Adagrad(parts["model"].parameters(), lr=0.01)}


class Amsgrad(Adam):
    def build(self):
        model = super().build()["model"]
        return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True)}
