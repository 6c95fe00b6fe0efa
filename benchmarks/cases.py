"""The trainings that are measured, and in which blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

HERE = Path(__file__).parent

RECORDER, BARE, METHOD2021, SHA256 = "recorder", "bare", "2021", "sha256"
ARMS = {
    BARE: "bare loop",
    RECORDER: "this package",
    METHOD2021: "2021",
    SHA256: "one-thread SHA-256",
}
"""What takes turns; the titles are those of the tables."""

LAST = 10**6
"""K with which no recording here keeps a state but the first and the last: more intervals than any has."""

Blocks = list[tuple[str, int]]


class Schedule(msgspec.Struct, frozen=True):
    """One recording, and what takes turns with it in its process."""

    every: int
    """k, the steps of an interval."""
    keep: int
    """K, every how many intervals the state is kept."""
    cycle: Blocks
    """Arm and steps of each block; the steps of the recorder come to K intervals, or less where K is ``LAST``."""
    cycles: int
    warm: int = 6
    """Recorded steps before the first block: allocators, caches and threads are then as they stay."""

    @property
    def steps(self) -> int:
        """Recorded steps until the last block is over; one more closes it."""
        return self.warm + self.cycles * sum(steps for arm, steps in self.cycle if arm == RECORDER)

    @property
    def key(self) -> str:
        """Names it among those of a case."""
        return f"k={self.every},K={self.keep}"

    @property
    def kept(self) -> str:
        """K in words."""
        return "first and last" if self.keep == LAST else f"K = {self.keep}"


class Case(msgspec.Struct, frozen=True):
    """A shipped recipe in a given size."""

    name: str
    title: str
    recipe: str
    settings: dict[str, Any]
    alternating: str
    """The same recipe with blocks, in ``benchmarks/alternating.py``."""
    schedules: list[Schedule]
    steps_per_epoch: int
    step: float
    """Seconds of a step on two quiet cores: for estimates of the time that is left, until some are measured."""
    audit: int
    """Intervals of k = 10 that are audited; 0: none."""
    epochs_as: str = "num_epochs"
    """The setting that makes the training longer."""
    needs_data: bool = False

    def lasting(self, steps: int) -> dict[str, Any]:
        """Settings with which a training has at least so many steps, in whole epochs."""
        unit = 1 if self.epochs_as == "steps_per_epoch" else self.steps_per_epoch
        return {**self.settings, self.epochs_as: -(-steps // unit)}


def rounds(steps: int, others: int, each: int, *arms: str) -> Blocks:
    """``each`` times a block of the recorder and a shorter one of the bare loop; then one of each other arm.

    Every block so stands between two of the bare loop, with which it is compared.
    """
    blocks = [(RECORDER, steps), (BARE, others)] * each
    for arm in arms:
        blocks += [(arm, steps), (BARE, others)]
    return blocks


DIGITS, TEXT, RESNET = "digits", "text", "resnet"

FULL = (
    Case(
        TEXT, "CharGPT, AdamW", "pol.recipes.text:CharGPT",
        {"layers": 6, "heads": 6, "width": 384, "context": 128, "batch_size": 8, "num_epochs": 1},
        "Text",
        [
            Schedule(1, LAST, rounds(6, 6, 1, METHOD2021, SHA256), cycles=8),
            Schedule(1, 100, rounds(10, 5, 10), cycles=2),
            Schedule(10, 10, rounds(10, 5, 10, METHOD2021, SHA256), cycles=3),
            Schedule(100, 1, rounds(10, 5, 10), cycles=2),
        ],
        steps_per_epoch=1, step=0.35, audit=0, epochs_as="steps_per_epoch",
    ),
    Case(
        RESNET, "ResNet-20 on CIFAR-10, SGD", f"{HERE / 'resnet.py'}:ResNet20",
        {"samples": 5120}, "ResNet",
        [
            Schedule(1, LAST, rounds(8, 8, 1, METHOD2021, SHA256), cycles=6),
            Schedule(10, 10, rounds(10, 5, 10, METHOD2021, SHA256), cycles=2),
            Schedule(100, 1, rounds(10, 5, 10), cycles=2),
        ],
        steps_per_epoch=40, step=0.26, audit=20, needs_data=True,
    ),
    Case(
        DIGITS, "digits CNN, SGD", "pol.recipes.digits:DigitsCNN", {}, "Digits",
        [
            Schedule(1, LAST, rounds(50, 50, 1, METHOD2021, SHA256), cycles=12, warm=30),
            Schedule(1, 100, rounds(50, 25, 2), cycles=12, warm=30),
            Schedule(10, 10, rounds(100, 100, 1, METHOD2021, SHA256), cycles=12, warm=30),
            Schedule(100, 1, rounds(100, 100, 1, METHOD2021, SHA256), cycles=12, warm=30),
        ],
        steps_per_epoch=30, step=0.005, audit=60,
    ),
)  # fmt: skip

QUICK = (
    Case(
        TEXT, "CharGPT, AdamW", "pol.recipes.text:CharGPT",
        {"layers": 1, "heads": 2, "width": 32, "context": 16, "batch_size": 4, "num_epochs": 1},
        "Text",
        [
            Schedule(1, LAST, rounds(2, 2, 1, METHOD2021, SHA256), cycles=3),
            Schedule(10, 10, rounds(10, 2, 10, METHOD2021, SHA256), cycles=1),
        ],
        steps_per_epoch=1, step=0.01, audit=0, epochs_as="steps_per_epoch",
    ),
    Case(
        RESNET, "ResNet-20 on CIFAR-10, SGD", f"{HERE / 'resnet.py'}:ResNet20",
        {"samples": 16, "batch_size": 8}, "ResNet",
        [Schedule(1, LAST, rounds(2, 2, 1, METHOD2021, SHA256), cycles=1)],
        steps_per_epoch=2, step=0.05, audit=2, needs_data=True,
    ),
    Case(
        DIGITS, "digits CNN, SGD", "pol.recipes.digits:DigitsCNN", {"batch_size": 100}, "Digits",
        [Schedule(1, LAST, rounds(3, 3, 1, METHOD2021, SHA256), cycles=2)],
        steps_per_epoch=15, step=0.01, audit=3,
    ),
)  # fmt: skip
"""Sizes that only show that every measurement runs; their numbers mean nothing."""
