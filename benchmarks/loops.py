"""Plain training loops around a recipe's own ``build`` and ``step``, in a process of their own.

``bare`` is the loop that a user would write: shuffled batches, the same transform and collation, nothing recorded.
``save2021`` is that loop with the method of Jia et al. (IEEE S&P 2021): every k steps the state dicts of model,
optimizer and schedule go through ``torch.save``, and the order of the samples is kept. ``audit2021`` takes the
steps of every interval again from those files and measures the four distances to the next one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from pol.replay.data import default_collate
from pol.replay.recipe import Recipe, load


def main() -> None:
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    recipe = load(request["recipe"])(**request["settings"])
    folder = Path(request["folder"])
    if request["loop"] == "audit2021":
        answer = audit2021(recipe, request["every"], folder)
    else:
        answer = train(recipe, request["every"], folder if request["loop"] == "save2021" else None)
    print(json.dumps(answer))


def train(recipe: Recipe, every: int, folder: Path | None) -> dict[str, Any]:
    """Train to the end; returns when each interval was done."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    parts, data = SimpleNamespace(**recipe.build()), recipe.data()
    order = [torch.randperm(len(data)).tolist() for _ in range(recipe.num_epochs)]
    steps = list(batches(order, recipe.batch_size))
    parameters = sum(parameter.numel() for parameter in parts.model.parameters())
    if folder:
        np.save(folder / "indices.npy", np.concatenate(order))
        save(parts, folder / "model_step_0")
    marks, fetching = {}, 0.0
    for step, indices in enumerate(steps, start=1):
        asked = time.perf_counter()
        batch = fetch(recipe, data, indices, rng)
        fetching += time.perf_counter() - asked
        loss = recipe.step(parts, batch)
        if not np.isfinite(float(loss)):
            raise SystemExit(f"step {step}: the loss is {float(loss)}")
        if step % every == 0 or step == len(steps):
            if folder:
                save(parts, folder / f"model_step_{step}")
            marks[step] = time.perf_counter()
    return {"marks": marks, "parameters": parameters, "fetching": fetching}


def audit2021(recipe: Recipe, every: int, folder: Path) -> dict[str, Any]:
    """Take the steps of all intervals again."""
    rng = np.random.default_rng(1)  # augmentation draws are not recorded, so the replay makes its own
    parts, data = SimpleNamespace(**recipe.build()), recipe.data()
    order = np.load(folder / "indices.npy").reshape(recipe.num_epochs, len(data)).tolist()
    steps = list(batches(order, recipe.batch_size))
    started, distances = time.perf_counter(), []
    for start in range(0, len(steps), every):
        stop = min(start + every, len(steps))
        restore(parts, folder / f"model_step_{start}")
        for indices in steps[start:stop]:
            recipe.step(parts, fetch(recipe, data, indices, rng))
        claimed = torch.load(folder / f"model_step_{stop}", weights_only=True)["model"]
        distances.append(between(parts.model, claimed))
    return {
        "seconds": time.perf_counter() - started,
        "largest": [max(column) for column in zip(*distances, strict=True)],
    }


def batches(order: list[list[int]], size: int) -> Iterator[list[int]]:
    """Consecutive runs of ``size`` samples that never cross epochs."""
    for epoch in order:
        for first in range(0, len(epoch), size):
            yield epoch[first : first + size]


def fetch(recipe: Recipe, data: Any, indices: list[int], rng: np.random.Generator) -> Any:
    """One batch."""
    return default_collate([recipe.transform(data[index], rng) for index in indices])


def save(parts: Any, path: Path) -> None:
    """Write a checkpoint as the 2021 code does."""
    torch.save({name: part.state_dict() for name, part in vars(parts).items()}, path)


def restore(parts: Any, path: Path) -> None:
    """Load one."""
    saved = torch.load(path, weights_only=True)
    for name, part in vars(parts).items():
        part.load_state_dict(saved[name])


def between(model: torch.nn.Module, claimed: dict[str, torch.Tensor]) -> list[float]:
    """The four distances of the 2021 code (l1, l2, largest, cosine) over all parameters."""
    here = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    there = torch.cat([claimed[name].flatten() for name, _ in model.named_parameters()])
    cosine = 1 - torch.nn.functional.cosine_similarity(here, there, dim=0)
    return [float((here - there).norm(p)) for p in (1, 2, torch.inf)] + [float(cosine)]


if __name__ == "__main__":
    main()
