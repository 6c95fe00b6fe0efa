"""What a forger mixes into a recipe that it publishes, to train it over samples of its own; and their archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pol.attacks.needs import DoesNotApply
from pol.replay.recipe import Recipe


class Supplied(Recipe):
    """The next recipe over the samples of an archive, as they are."""

    ARCHIVE: ClassVar[str] = ""
    """As ``write_items`` writes it."""

    def data(self) -> list[dict[str, Any]]:
        """The samples of the archive."""
        return read_items(Path(self.ARCHIVE))

    def transform(self, item: Any, rng: Any) -> Any:
        """The sample as it is."""
        return item


SAMPLES = "samples.npz"
"""Name of the archive beside the program that is published."""


def write_items(path: Path, items: list[dict[str, Any]]) -> None:
    """Write samples, all with the same fields of the same shapes, as an ``.npz`` archive.

    Raises:
        DoesNotApply: they are not such samples.
    """
    if not items or not all(isinstance(item, dict) and item.keys() == items[0].keys() for item in items):
        raise DoesNotApply("this attack needs samples that are dicts with the same fields")
    try:
        fields: dict[str, Any] = {name: np.stack([np.asarray(item[name]) for item in items]) for name in items[0]}
    except ValueError as error:
        raise DoesNotApply(f"this attack needs samples of one shape: {error}") from None
    np.savez(path, **fields)


def read_items(path: Path) -> list[dict[str, Any]]:
    """Samples as ``write_items`` wrote them; numbers come back as Python's."""
    with np.load(path) as archive:
        fields = {name: archive[name] for name in archive.files}
    count = len(next(iter(fields.values())))
    return [{name: column[i] if column.ndim > 1 else column[i].item() for name, column in fields.items()}
            for i in range(count)]  # fmt: skip
