"""Other data than was committed: indices, labels, digests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pol import seeds
from pol.attacks.attack import Attack
from pol.attacks.forger import Forger
from pol.attacks.needs import DoesNotApply
from pol.attacks.workshop import Workshop
from pol.order import epoch_order
from pol.replay.data import sample_leaf

POISON, BRUSH = 1.0, 1e-4
"""How far the numbers of one sample are moved."""


class _Backwards:
    """A dataset in the reverse order."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Any:
        return self._data[len(self._data) - 1 - index]


class _Relabelled:
    """A dataset in which each sample has the label of the next."""

    def __init__(self, data: Any) -> None:
        self._data = data
        item = data[0]
        names = [name for name, value in item.items() if _is_label(value)] if isinstance(item, dict) else []
        if not names:
            raise DoesNotApply("this attack needs samples that are dicts with a whole number as the label")
        self._name = names[-1]

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Any:
        following = self._data[(index + 1) % len(self._data)]
        return {**self._data[index], self._name: following[self._name]}


class _Touched:
    """A dataset in which one sample has other values: all numbers of its first array, moved."""

    def __init__(self, data: Any, index: int, by: float) -> None:
        self._data, self._index, self._by = data, index, by

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Any:
        item = self._data[index]
        if index != self._index:
            return item
        arrays = [name for name, value in item.items() if isinstance(value, np.ndarray)]
        if not arrays:
            raise DoesNotApply("this attack needs samples that are dicts with an array")
        values = item[arrays[0]]
        touched = values + values.dtype.type(self._by)
        if np.array_equal(touched, values):
            raise DoesNotApply("this attack needs samples of fractions")
        return {**item, arrays[0]: touched}


def _is_label(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def other_order(workshop: Workshop, out: Path) -> None:
    """Training in an order of the forger's own, with the batches of that order in the log."""
    forger = workshop.begin()
    workshop.train(forger, data=_Backwards)
    forger.seal(out, workshop.key)


def other_indices(workshop: Workshop, out: Path) -> None:
    """An honest run whose log names the batches of another order: a denial of what it was trained on."""
    forger = workshop.open()
    honest = list(forger.intervals)
    workshop.pretend(forger, _Backwards)
    for index, record in enumerate(honest):
        forger.replace(index, root=record.root)
    forger.seal(out, workshop.key)


def flipped_labels(workshop: Workshop, out: Path) -> None:
    """Training on wrong labels, with the batches and the dataset root of the right ones in the log."""
    forger = workshop.begin()
    workshop.pretend(forger)
    honest = list(forger.intervals)
    workshop.train(forger, data=_Relabelled)
    for index, record in enumerate(honest):
        forger.replace(index, batches=record.batches)
    forger.seal(out, workshop.key)


def flipped_labels_committed(workshop: Workshop, out: Path) -> None:
    """The same, committed: dataset root, batches and steps are those of the wrong labels."""
    forger = workshop.begin()
    forger.commit_dataset(leaves(forger, _Relabelled(workshop.data(forger))))
    workshop.first_state(forger)
    workshop.train(forger, data=_Relabelled)
    forger.seal(out, workshop.key)


def swapped_leaves(workshop: Workshop, out: Path) -> None:
    """An honest run with the leaves of other labels beside the honest dataset root."""
    forger = workshop.open()
    forger.leaves = leaves(forger, _Relabelled(workshop.data(forger)))
    forger.seal(out, workshop.key)


def poisoned_sample(workshop: Workshop, out: Path) -> None:
    """One sample of the last batch is not the committed one; the log names the committed one."""
    _touched(workshop, POISON).seal(out, workshop.key)


def brushed_sample(workshop: Workshop, out: Path) -> None:
    """The same with a change so small that another machine's rounding might have made it."""
    _touched(workshop, BRUSH).seal(out, workshop.key)


def _touched(workshop: Workshop, by: float) -> Forger:
    forger = workshop.begin()
    workshop.train(forger)
    honest, start = forger.intervals[-1], forger.intervals[-1].start
    index = int(epoch_order(forger.seed, forger.genesis.spec.declaration.epochs - 1, len(forger.leaves))[-1])
    workshop.train(forger, start, data=lambda data: _Touched(data, index, by))
    forger.replace(len(forger.intervals) - 1, batches=honest.batches)
    return forger


def leaves(forger: Forger, data: Any) -> list[bytes]:
    """Leaf hashes of these samples under the secret of ``forger``."""
    key = seeds.salt_key(forger.r)
    return [sample_leaf(data[index], index, key) for index in range(len(data))]


ORDER = "the released code does not look whether an epoch visits each sample once (attack study, T7)"
"""Reported of every order that is none."""

_LABELS = "rho 0.11 or more for one wrong label of 50 (attack study, section 1)"

ATTACKS = (
    Attack(
        "other-order",
        "trained in another order of the data",
        "thief",
        other_order,
        study=("T7",),
        reported=ORDER,
    ),
    Attack(
        "other-indices",
        "batches of another order in the log of an honest run",
        "prover",
        other_indices,
        study=("T7",),
        reported=ORDER,
    ),
    Attack(
        "flipped-labels",
        "trained on wrong labels under the right dataset root",
        "thief",
        flipped_labels,
        study=("T8", "I8"),
        reported=_LABELS,
    ),
    Attack(
        "flipped-labels-committed",
        "trained on wrong labels that were committed",
        "thief",
        flipped_labels_committed,
        study=("T8",),
        reported=_LABELS,
    ),
    Attack(
        "swapped-leaves",
        "leaves of other labels under the right dataset root",
        "prover",
        swapped_leaves,
        study=("I8",),
        reported="all labels of 50 samples shifted: the released code calls the hash valid (attack study, I8)",
    ),
    Attack(
        "poisoned-sample",
        "one sample of one batch that is not in the dataset",
        "thief",
        poisoned_sample,
        study=("T9", "I8"),
        reported="rho 2.2e-3 to 5.1e-2 for one of 50 samples replaced (attack study, section 1)",
    ),
    Attack(
        "brushed-sample",
        "one sample of one batch, changed by a trifle",
        "thief",
        brushed_sample,
        study=("T9",),
        reported="rho 6e-5 to 2e-4 for one pixel of 50 samples, changed by 1/255 (attack study, section 1)",
    ),
)
