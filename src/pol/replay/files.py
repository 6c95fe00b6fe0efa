"""Writing to our own disk, so that a full one is told apart from a failing program."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from pol.container import Location
from pol.errors import StoreError
from pol.replay.state import State


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the errors of the disk into a ``StoreError``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"{path}: cannot write: {reason}. What is written can be resumed") from None


def save_atomically(
    state: State, path: Path, *, lasting: bool = True, held: Mapping[str, Location] | None = None
) -> None:
    """Write a checkpoint so that its name never holds half of one.

    Args:
        state: What to write.
        path: Where to.
        held: Entries that another checkpoint of the folder holds.
        lasting: It must survive a crash of the machine. Else that is not waited for.

    Raises:
        StoreError: the disk refused.
    """
    temporary = path.with_suffix(".tmp")
    with writing(path):
        state.save(temporary, held)
        if lasting:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
