"""Plain training loops around a recipe's own ``build`` and ``step``, in a process of their own.

``bare`` is the loop that a user would write: shuffled batches, the same transform and collation, nothing recorded.
``save2021`` is that loop with the method of Jia et al. (IEEE S&P 2021): every k steps the state dicts of model,
optimizer and schedule go through ``torch.save``, and the order of the samples is kept. ``audit2021`` takes the
steps of every interval again from those files and measures the four distances to the next one. ``sha256`` is the loop
with what libraries nearby do: every k steps SHA-256 of the whole state on one thread, and nothing stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch._dynamo  # what the first optimizer imports: a training process has it before it forks, too

from pol.replay import jobs  # noqa: F401  # with the same
from pol.replay.data import default_collate
from pol.replay.recipe import Recipe, load
from pol.replay.tensors import content


def main() -> None:
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    recipe = load(request["recipe"])(**request["settings"])
    folder = Path(request["folder"])
    if request["loop"] == "audit2021":
        answer = audit2021(recipe, request["every"], folder)
    else:
        after: dict[str, Callable[[Any, int], object] | None] = {
            "bare": None,
            "save2021": lambda parts, step: save(parts, folder / f"model_step_{step}"),
            "sha256": lambda parts, _: hash_all(parts),
        }
        answer = train(recipe, request["every"], after[request["loop"]], folder)
    answer["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(answer), flush=True)


def forked() -> None:
    """Do it in a fork, as a training process is one: what torch itself takes is then not counted in either."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            main()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the loop failed")


def train(recipe: Recipe, every: int, after: Callable[[Any, int], object] | None, folder: Path) -> dict[str, Any]:
    """Train to the end, with ``after(parts, step)`` at the beginning and after each interval.

    Returns the seconds of each interval without that, and in it.
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    parts, data = SimpleNamespace(**recipe.build()), recipe.data()
    order = [torch.randperm(len(data)).tolist() for _ in range(recipe.num_epochs)]
    steps = list(batches(order, recipe.batch_size))
    np.save(folder / "indices.npy", np.concatenate(order))
    if after:
        after(parts, 0)
    intervals: list[float] = []
    spent, started = 0.0, time.perf_counter()
    for step, indices in enumerate(steps, start=1):
        loss = recipe.step(parts, fetch(recipe, data, indices, rng))
        if not np.isfinite(float(loss)):
            raise SystemExit(f"step {step}: the loss is {float(loss)}")
        if step % every == 0 or step == len(steps):
            intervals.append(time.perf_counter() - started)
            asked = time.perf_counter()
            if after:
                after(parts, step)
            spent += time.perf_counter() - asked
            started = time.perf_counter()
    return {"steps": len(steps), "intervals": intervals, "after": spent}


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


def tensors(parts: Any) -> Iterator[torch.Tensor]:
    """Every tensor in the state dicts of model, optimizer and schedule."""
    waiting = [part.state_dict() for part in vars(parts).values()]
    while waiting:
        found = waiting.pop()
        if isinstance(found, torch.Tensor):
            yield found
        elif isinstance(found, dict):
            waiting += found.values()
        elif isinstance(found, list | tuple):
            waiting += found


def hash_all(parts: Any) -> bytes:
    """SHA-256 of all these tensors on this thread; nothing is copied."""
    hasher = hashlib.sha256()
    for tensor in tensors(parts):
        hasher.update(content(tensor))
    return hasher.digest()


def between(model: torch.nn.Module, claimed: dict[str, torch.Tensor]) -> list[float]:
    """The four distances of the 2021 code (l1, l2, largest, cosine) over all parameters."""
    here = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    there = torch.cat([claimed[name].flatten() for name, _ in model.named_parameters()])
    cosine = 1 - torch.nn.functional.cosine_similarity(here, there, dim=0)
    return [float((here - there).norm(p)) for p in (1, 2, torch.inf)] + [float(cosine)]


if __name__ == "__main__":
    forked()
