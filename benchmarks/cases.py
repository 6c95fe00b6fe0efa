"""The trainings that are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """A shipped recipe in a given size."""

    name: str
    title: str
    recipe: str
    settings: dict[str, Any]
    every: int
    """k, the steps of an interval."""


FULL = (
    Case("digits", "digits CNN", "pol.recipes.digits:DigitsCNN", {"num_epochs": 40}, every=10),
    Case(
        "text",
        "CharGPT",
        "pol.recipes.text:CharGPT",
        {
            "layers": 6,
            "heads": 6,
            "width": 384,
            "context": 128,
            "batch_size": 8,
            "num_epochs": 1,
            "steps_per_epoch": 40,
        },
        every=10,
    ),
)

QUICK = (
    Case("digits", "digits CNN", "pol.recipes.digits:DigitsCNN", {"num_epochs": 1, "batch_size": 100}, every=5),
    Case(
        "text",
        "CharGPT",
        "pol.recipes.text:CharGPT",
        {"layers": 1, "heads": 2, "width": 32, "context": 16, "batch_size": 4, "num_epochs": 1, "steps_per_epoch": 6},
        every=2,
    ),
)
"""Sizes that only show that every measurement runs; their numbers mean nothing."""
