"""Opens the folder of a recording for this process alone: a new one, or one to go on with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pol.errors import StoreError, UsageError
from pol.keys import SigningKey
from pol.remote.fetched import Progress
from pol.remote.mirror import Mirror
from pol.remote.taking import take_up
from pol.store import ATTESTATION, CHECKPOINTS, DATASET, JOURNAL, LOCK, ORDER, SECRET, Lock
from pol.unfinished import Unfinished


@contextlib.contextmanager
def open_unfinished(
    path: Path,
    key: SigningKey,
    *,
    resume: bool,
    mirror: Mirror | None = None,
    progress: Progress = lambda *_: None,
) -> Iterator[Unfinished]:
    """Open a new or, with ``resume``, an unfinished recording for this process alone.

    Args:
        path: The directory; with ``mirror``, the working folder.
        key: Signs.
        resume: Go on with an unfinished recording.
        mirror: Copies what is committed to a URL, from which a recording can be taken up as well.
        progress: Told what is fetched from there.

    Raises:
        UsageError: the directory, or the URL, is not what ``resume`` says, or another process writes it.
        StoreError: the disk refused, or the URL cannot be reached.
    """
    if resume and mirror is None and not path.is_dir():
        raise UsageError(f"{path}: there is no recording to resume")
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file: give a directory")
    if not resume and path.exists() and not _never_begun(path):
        if mirror is not None:
            raise UsageError(
                f"{path} is not empty: it holds a recording to {mirror.place.url}. Go on with it by --resume, or name "
                "another folder with --work"
            )
        raise UsageError(
            f"{path} is not empty: give a new directory, or --resume to go on with an unfinished recording"
        )
    try:
        (path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: cannot make the proof directory: {error.strerror}") from None
    lock = Lock(path)
    try:
        if mirror is not None:
            take_up(mirror, progress, resume=resume)
        files = Unfinished(path, key, mirror)
        yield files
    finally:
        lock.release(remove=(path / ATTESTATION).exists())


def _never_begun(path: Path) -> bool:
    """Whether nothing is in a directory but what an attempt leaves that failed before its genesis was signed."""
    leftovers = {LOCK, JOURNAL, SECRET, DATASET, ORDER, CHECKPOINTS}
    folder = path / CHECKPOINTS
    return {file.name for file in path.iterdir()} <= leftovers and not (folder.is_dir() and any(folder.iterdir()))
