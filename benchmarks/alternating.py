"""The measured recipes with blocks: recorded steps take turns with others that are not, in one process.

The recording is as any user makes it, of a program with a loop of its own (``train``). Between two recorded steps that
loop takes steps of a second model, built by the same recipe: bare ones, or with the checkpoints of 2021, or with one
hash of everything. So all arms share one process, one memory and the same minute, and what drifts, drifts for all. The
recording itself stays what it would be without: its generators are set before each step, and its parts are its own.

Only a run from the beginning has blocks: builds and the control run are left within ``warm`` steps, and a replay enters
later.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # a training process knows no folder but the recipe's

from benchmarks import loops
from benchmarks.cases import BARE, METHOD2021, RECORDER, SHA256
from benchmarks.parts import Clocks
from benchmarks.resnet import ResNet20
from benchmarks.threads import Beside
from pol.errors import ReplayError
from pol.recipes.digits import DigitsCNN
from pol.recipes.text import CharGPT
from pol.replay.recipe import Recipe

MEASURING_STEPS = 3
"""Bare steps in which threads that train are told from others: as many as show each of them several times."""


class Alternating(Recipe):
    """A recipe whose recording is interrupted by blocks of other arms.

    Args:
        settings: Of the recipe itself.
        schedule: ``Schedule`` as plain values.
        out: Where to write what was measured, as JSON.
    """

    def __init__(self, *, settings: dict[str, Any], schedule: dict[str, Any], out: str) -> None:
        super().__init__(**settings)
        self.schedule, self.out = schedule, Path(out)

    def train(self, run: Any) -> None:
        """The loop."""
        blocks = Blocks(self) if run.step == 0 else None
        outside = blocks.outside if blocks else contextlib.nullcontext
        inside = blocks.inside if blocks else contextlib.nullcontext
        parts = run.attach(**self.build())
        transform = None if type(self).transform is Recipe.transform else self.transform
        for _ in run.epochs(self.num_epochs):
            batches = iter(run.batches(self.data(), transform, size=self.batch_size))
            while True:
                if blocks:
                    blocks.between()
                with outside():
                    batch = next(batches, None)
                if batch is None:
                    break
                with inside():
                    loss = self.step(parts, batch)
                with outside():
                    run.commit(loss=loss)


class Text(Alternating, CharGPT):
    """CharGPT."""


class ResNet(Alternating, ResNet20):
    """ResNet-20."""


class Digits(Alternating, DigitsCNN):
    """The digits."""


class Blocks:
    """What takes turns, and what it takes."""

    def __init__(self, recipe: Alternating) -> None:
        self._recipe, self._clocks = recipe, Clocks()
        schedule = recipe.schedule
        self._every = schedule["every"]
        cycle = [tuple(block) for block in schedule["cycle"]]
        # One more of the bare loop, so that the first one of the recorder stands between two as well.
        self._waiting = [block for block in cycle if block[0] == BARE][:1] + cycle * schedule["cycles"]
        self._left: int = schedule["warm"]
        self._found: list[dict[str, Any]] = []
        self._beside: Beside | None = None
        self._active = True
        self._begin()

    def _begin(self) -> None:
        self._steps, self._outside, self._inside, self._overlapping = 0, 0.0, 0.0, 0.0
        if self._beside:
            self._beside.look()
            self._spent = self._beside.spent()

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """Around all that is not the step itself: the training waits for it."""
        if self._beside is None:  # nothing is measured yet: in builds and control runs no clock is read
            yield
            return
        spent, started = self._beside.spent(), time.perf_counter()
        yield
        self._outside += time.perf_counter() - started
        self._overlapping += self._beside.spent() - spent

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Around a step."""
        if self._beside is None:
            yield
        else:
            started = time.perf_counter()
            yield
            self._inside += time.perf_counter() - started
        self._steps += 1
        self._left -= 1

    def between(self) -> None:
        """Before the next recorded step: take the blocks of other arms, if it is their turn."""
        if self._left or not self._active:
            return
        if self._beside is not None:
            self._end(RECORDER)
        elif self._waiting:
            self._prepare()
        while self._waiting and self._waiting[0][0] != RECORDER:
            self._other(*self._waiting.pop(0))
        if self._waiting:
            _, self._left = self._waiting.pop(0)
            self._begin()
        else:
            self._finish()

    def _prepare(self) -> None:
        """After the warm steps: the second model, and which threads train."""
        recipe = self._recipe
        self._parts, self._data = SimpleNamespace(**recipe.build()), recipe.data()
        self._rng = np.random.default_rng(0)
        self._batches = self._shuffled()
        self._bare(MEASURING_STEPS)  # until its memory is there
        self._beside = Beside(lambda: self._bare(MEASURING_STEPS))
        self._beside.settle()
        self._clocks.reset()

    def _shuffled(self) -> Iterator[list[int]]:
        while True:
            yield from loops.batches([torch.randperm(len(self._data)).tolist()], self._recipe.batch_size)

    def _bare(self, steps: int, after: Callable[[int], object] | None = None) -> None:
        for number in range(1, steps + 1):
            with self.outside():
                batch = loops.fetch(self._recipe, self._data, next(self._batches), self._rng)
            with self.inside():
                loss = self._recipe.step(self._parts, batch)
            with self.outside():
                if not math.isfinite(float(loss)):
                    raise ReplayError(f"a bare step: the loss is {float(loss)}")
                if after and number % self._every == 0:
                    after(number)

    def _other(self, arm: str, steps: int) -> None:
        self._begin()
        with tempfile.TemporaryDirectory(prefix="pol-bench-", dir=self._recipe.out.parent) as folder:
            after: dict[str, Callable[[int], object] | None] = {
                BARE: None,
                METHOD2021: lambda number: loops.save(self._parts, Path(folder) / f"model_step_{number}"),
                SHA256: lambda _: loops.hash_all(self._parts),
            }
            self._bare(steps, after[arm])
            self._end(arm)

    def _end(self, arm: str) -> None:
        """Note a block; what it left other threads to do belongs to it."""
        assert self._beside is not None
        self._beside.settle()
        beside = self._beside.spent() - self._spent - self._overlapping
        self._found.append(
            {"arm": arm, "steps": self._steps, "inside": self._inside, "outside": self._outside, "beside": beside}
        )

    def _finish(self) -> None:
        self._active = False
        measured: dict[str, Any] = {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        if self._found:
            recorded = sum(block["steps"] for block in self._found if block["arm"] == RECORDER)
            measured |= {
                "blocks": self._found,
                "parts": {name: seconds / recorded for name, seconds in self._clocks.seconds.items()},
                "parameters": sum(parameter.numel() for parameter in self._parts.model.parameters()),
                "state_bytes": sum(tensor.nbytes for tensor in loops.tensors(self._parts)),
            }
        self._recipe.out.write_text(json.dumps(measured))
