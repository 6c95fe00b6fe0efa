"""Under what conditions the steps of a run are taken again: honest ones, and the smallest published cheats.

Other platforms are what this machine can give by flags: other numbers of threads, and libraries that are told to use
older instructions. The recipe is not told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from pol import canonical, seeds
from pol.auditor import Unlike
from pol.declaration import Declaration
from pol.order import epoch_order
from pol.profile import Profile
from pol.proof.genesis import Genesis
from pol.proof.noise import DECAY, EXCHANGE, FLOAT64, RATE, REDRAW, SPLIT, SWAP, changed

THREADS = (1, 2, 4)
"""Numbers of threads: sums are split otherwise for each. Most machines have four cores or more."""

FASTER = 1.01
"""A learning rate that is wrong by 1 % (attack study, section 1)."""

LOADER = "the recipe's own loader chooses the samples, and no other order can be given to it"


@dataclass(frozen=True)
class Condition:
    """What is different in a replay."""

    name: str
    profile: Profile
    honest: bool
    unlike: Unlike = field(default_factory=Unlike)
    order: Literal["recorded", "swapped", "exchanged"] | None = None
    """A file of indices is given; None: the order follows from the seed."""
    redrawn: bool = False
    """What the steps draw is drawn under another seed."""
    left_out: str | None = None
    """Why this recipe cannot be replayed so."""


def conditions(genesis: Genesis) -> list[Condition]:
    """All of them, honest ones first."""
    own, declaration = genesis.profile, genesis.spec.declaration
    honest = [Condition(changed(own, profile), profile, True) for profile in platforms(own)]
    honest += [
        Condition(FLOAT64, own, True, Unlike(perturbed="float64")),
        Condition(SPLIT, own, True, Unlike(perturbed="split")),
    ]
    given = LOADER if declaration.order != "derived" else None
    alone = "a batch is the whole dataset" if declaration.samples <= declaration.batch_size else None
    fixed = None if _decays(declaration) else "no optimizer has any"
    return [
        *honest,
        Condition(SWAP, own, False, order="swapped", left_out=given or alone),
        Condition(EXCHANGE, own, False, order="exchanged", left_out=given),
        Condition(REDRAW, own, False, order="recorded", redrawn=True, left_out=given),
        Condition(RATE, own, False, Unlike(factors={"lr": FASTER})),
        Condition(DECAY, own, False, Unlike(factors={"weight_decay": 0.0}), left_out=fixed),
    ]


def platforms(profile: Profile) -> list[Profile]:
    """Profiles that differ from one in a single flag each."""
    changes: list[dict[str, Any]] = [{"threads": threads} for threads in THREADS if threads != profile.threads]
    for name, old in (("aten", "default"), ("onednn", "sse41"), ("mkl", "compatible")):
        changes.append({name: old if getattr(profile, name) != old else "native"})
    return [msgspec.structs.replace(profile, **change) for change in changes]


def _decays(declaration: Declaration) -> bool:
    parts = [part for part in declaration.parts if part.kind == "optimizer"]
    if any("weight_decay" in part.dynamic for part in parts):
        return True
    given = [group.hyperparameters.get("weight_decay") for part in parts for group in part.groups]
    return any(canonical.untag(value, "weight_decay") for value in given if value is not None)


def other_seed(seed: bytes) -> bytes:
    """A seed under which steps draw other numbers."""
    return seeds.expand(seed, "redraw")


def write_order(
    path: Path, genesis: Genesis, seed: bytes, windows: Iterable[tuple[int, int]],
    change: Literal["recorded", "swapped", "exchanged"],
) -> None:  # fmt: skip
    """The recorded order as a file, changed where each window of steps begins; epochs outside of them are holes in it.

    *swapped*: the first sample of the first batch is the first one that is not in that step. *exchanged*: the first two
    steps have each other's samples.
    """
    order = _Order(genesis, seed)
    for start, stop in windows:
        following = start + 1 if start + 1 < genesis.spec.steps else start
        order.open(range(start, max(stop, following + 1)))
        first = order.places(start)
        if change == "swapped":
            epoch, place = first[0]
            taken = {order.epochs[at][index] for at, index in first}
            others = np.concatenate([order.epochs[epoch][first[-1][1] + 1 :], order.epochs[epoch]])
            order.changed[epoch][place] = next((one for one in others if one not in taken), order.epochs[epoch][place])
        elif change == "exchanged" and following > start:
            for one, other in zip(first, order.places(following), strict=False):  # the last step of an epoch is short
                order.exchange(one, other)
    order.write(path)


class _Order:
    """Dataset indices by epoch and position: as recorded, and as changed."""

    def __init__(self, genesis: Genesis, seed: bytes) -> None:
        self._declaration, self._seed = genesis.spec.declaration, seed
        self._step = self._declaration.batch_size * genesis.spec.batches_per_step
        self._steps = self._declaration.steps_per_epoch(genesis.spec.batches_per_step)
        self._used = min(self._declaration.samples, self._declaration.batches_per_epoch * self._declaration.batch_size)
        self.epochs: dict[int, Any] = {}
        self.changed: dict[int, Any] = {}

    def open(self, steps: range) -> None:
        for epoch in range(steps.start // self._steps, (steps.stop - 1) // self._steps + 1):
            if epoch not in self.epochs:
                self.epochs[epoch] = epoch_order(self._seed, epoch, self._declaration.samples)
                self.changed[epoch] = self.epochs[epoch].copy()

    def places(self, step: int) -> list[tuple[int, int]]:
        """Where the samples of a step stand: (epoch, position)."""
        epoch, number = divmod(step, self._steps)
        return [(epoch, place) for place in range(number * self._step, min((number + 1) * self._step, self._used))]

    def exchange(self, one: tuple[int, int], other: tuple[int, int]) -> None:
        (a, i), (b, j) = one, other
        self.changed[a][i], self.changed[b][j] = self.epochs[b][j], self.epochs[a][i]

    def write(self, path: Path) -> None:
        with path.open("wb") as file:
            for epoch, indices in sorted(self.changed.items()):
                file.seek(4 * self._declaration.samples * epoch)
                file.write(indices.astype("<u4").tobytes())
