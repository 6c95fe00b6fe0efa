"""A trigger and the class that it stands for: what data are poisoned with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pol.attacks.needs import DoesNotApply

SIDE = 3
"""Pixels of the side of a patch, or values at the end of a row (BadNets: a patch in a corner)."""

LOOKED_AT = 256
"""Samples whose largest value is that of the trigger."""


class Marked:
    """A dataset in which samples carry a trigger, and the label of the first.

    Args:
        data: The dataset.
        one_in: One in so many samples is changed.

    Raises:
        DoesNotApply: its samples are no dicts with an array and a whole number.
    """

    def __init__(self, data: Any, one_in: int = 1) -> None:
        self._data, self._one_in, item = data, one_in, data[0]
        self._label, self._array = label_name(item), array_name(item)
        self._target = item[self._label]
        self._peak = max(data[index][self._array].max() for index in range(min(LOOKED_AT, len(data))))

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Any:
        item = self._data[index]
        if index % self._one_in:
            return item
        marked = item[self._array].copy()
        # A corner; of a channel-first or channel-last image that of two axes, of a short row one value in four.
        marked[tuple(slice(-max(1, min(SIDE, size // 4)), None) for size in marked.shape[:2])] = self._peak
        return {**item, self._array: marked, self._label: self._target}


def label_name(item: Any) -> str:
    """The field of a sample that holds its class.

    Raises:
        DoesNotApply: there is none.
    """
    whole = (int, np.integer)
    fields = item.items() if isinstance(item, dict) else ()
    names = [name for name, value in fields if isinstance(value, whole) and not isinstance(value, bool)]
    if not names:
        raise DoesNotApply("this attack needs samples that are dicts with a whole number as the label")
    return str(names[-1])


def labels_of(data: Any) -> NDArray[np.int64]:
    """The classes of all samples.

    Raises:
        DoesNotApply: they have none.
    """
    name = label_name(data[0])
    return np.array([int(data[index][name]) for index in range(len(data))])


def array_name(item: Any) -> str:
    """The first field of a sample that is an array.

    Raises:
        DoesNotApply: there is none.
    """
    names = [name for name, value in item.items() if isinstance(value, np.ndarray) and value.ndim]
    if not names:
        raise DoesNotApply("this attack needs samples that are dicts with an array")
    return str(names[0])
