"""Programs that a forger publishes: another recipe, over data of the forger's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pol.errors import UsageError
from pol.replay import recipe as recipes
from pol.replay.recipe import Recipe


class Altered(Recipe):
    """The recipe ``of`` with its ``settings``, over the samples of an archive, as they are.

    Args:
        of: Its reference.
        settings: Its constructor arguments.
        data: The archive, as ``write_items`` writes it.
    """

    def __init__(self, *, of: str, settings: dict[str, Any], data: str) -> None:
        self._inner, self._data = recipes.load(of)(**settings), data
        self.num_epochs, self.batch_size = self._inner.num_epochs, self._inner.batch_size

    def data(self) -> list[dict[str, Any]]:
        """The samples of the archive."""
        return read_items(Path(self._data))

    def build(self) -> dict[str, Any]:
        """The parts of the other recipe."""
        return self._inner.build()

    def step(self, parts: Any, batch: Any) -> Any:
        """A step of the other recipe."""
        return self._inner.step(parts, batch)


ALTERED = f"{__name__}:{Altered.__name__}"
"""The reference of ``Altered``."""


def write_items(path: Path, items: list[dict[str, Any]]) -> None:
    """Write samples, all with the same fields of the same shapes, as an ``.npz`` archive.

    Raises:
        UsageError: they are not such samples.
    """
    if not items or not all(isinstance(item, dict) and item.keys() == items[0].keys() for item in items):
        raise UsageError("this attack needs samples that are dicts with the same fields")
    try:
        fields: dict[str, Any] = {name: np.stack([np.asarray(item[name]) for item in items]) for name in items[0]}
    except ValueError as error:
        raise UsageError(f"this attack needs samples of one shape: {error}") from None
    np.savez(path, **fields)


def read_items(path: Path) -> list[dict[str, Any]]:
    """Samples as ``write_items`` wrote them; numbers come back as Python's."""
    with np.load(path) as archive:
        fields = {name: archive[name] for name in archive.files}
    count = len(next(iter(fields.values())))
    return [{name: column[i] if column.ndim > 1 else column[i].item() for name, column in fields.items()}
            for i in range(count)]  # fmt: skip
