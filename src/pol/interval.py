"""The records of a log: only what a replay reproduces."""

from __future__ import annotations

from typing import Annotated

import msgspec

from pol.declaration import Count, DigestField, Positive
from pol.statetree import StateRoot

FloatText = Annotated[str, msgspec.Meta(max_length=32)]
"""A float64 in its shortest decimal form; 24 characters are the longest."""


Momenta = list[list[float]]
"""Per parameter group its momentum, or its betas: what a schedule may change, and no record holds."""


class Rates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Learning rates in force over some consecutive steps: one value per parameter group."""

    steps: Positive
    values: list[FloatText]


class Interval(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The steps ``[start, stop)`` between two consecutive checkpoints, and the state after them."""

    start: Count
    stop: Positive
    root: StateRoot
    batches: DigestField
    """Keyed BLAKE3 of the batches as they entered the steps."""
    loss: FloatText | None
    """Mean over the steps that were not skipped; None if all were."""
    learning_rates: list[Rates]
    skipped: list[Count]
    """Steps that changed nothing by design (a gradient scaler's)."""
    schedules: dict[str, Count]
    """Argument-free steps of each counted schedule since step 0."""
    indices: list[list[Count]] | None = None
    """Dataset indices of each batch, where a sampler of the program's own chose them."""


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Leaf 0 of the log: which genesis, and the state before step 0."""

    genesis: DigestField
    root: StateRoot
