"""The dataset as a whole: its leaves on disk, and whether it stays what it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pol.errors import UsageError
from pol.interval import Momenta
from pol.replay.data import encode_field, fields, sample_leaf
from pol.replay.files import writing
from pol.replay.frame import Arrival
from pol.replay.loader import Committed
from pol.replay.state import State

CHECKED = 64
"""Samples that are compared between two builds. One that differs is found if every sample does, which is what
randomness in a dataset looks like; 64 cost nothing."""


def write_leaves(arrival: Arrival, path: Path, salt_key: bytes, on_sample: Callable[[int], None]) -> None:
    """Write the leaf hashes of all samples.

    Raises:
        StoreError: the disk refused.
    """
    data, count = Committed(arrival.loader.data), arrival.loader.samples
    with writing(path):
        file = path.open("wb")
    try:
        for index in range(count):
            leaf = sample_leaf(data[index], index, salt_key)
            with writing(path):
                file.write(leaf)
            on_sample(index + 1)
        with writing(path):
            file.flush()
            os.fsync(file.fileno())
    finally:
        with writing(path):
            file.close()


def check_leaves(arrival: Arrival, path: Path, salt_key: bytes) -> None:
    """Compare some samples with the leaves that an earlier build under another seed wrote.

    Raises:
        UsageError: the dataset is not the same every time.
    """
    data, count = Committed(arrival.loader.data), arrival.loader.samples
    leaves = path.read_bytes()
    chosen = {(count - 1) * i // (CHECKED - 1) for i in range(CHECKED)} if count else set()
    for index in sorted(chosen, reverse=True):  # backwards: a generator of the dataset's own would give others
        if sample_leaf(data[index], index, salt_key) != leaves[32 * index : 32 * index + 32]:
            raise UsageError(
                f"data() is not deterministic: sample {index} is another one each time it is asked for, although the "
                "global generators are set before. Draw from torch, numpy or random, or in transform(); never from the "
                "clock, the system's entropy or a generator of the dataset's own"
            )


class Untouched:
    """An observer that notes the samples of a run, to see afterwards whether the program changed them."""

    def __init__(self) -> None:
        self._leaves: dict[int, bytes] = {}

    def item(self, index: int, item: Any) -> None:
        """Note a sample."""
        self._leaves.setdefault(index, sample_leaf(item, index, b""))

    def batch(self, step: int, batch: Any, chosen: list[int] | None) -> None:
        """See that the batch has canonical bytes."""
        for where, value in fields(batch):
            encode_field(value, where)

    def closed(
        self, step: int, loss: float | None, rates: list[float], take: Callable[[], State], counts: dict[str, int],
        momenta: Callable[[], Momenta],
    ) -> None:  # fmt: skip
        """Nothing to note."""

    def check(self, data: Any) -> None:
        """Look at the noted samples again.

        Raises:
            UsageError: one has changed.
        """
        committed = Committed(data)
        for index, leaf in self._leaves.items():
            if sample_leaf(committed[index], index, b"") != leaf:
                raise UsageError(
                    f"the program changes sample {index} of data() in place, so it would be another one in the next "
                    "epoch; let transform() and collate return new arrays"
                )
