"""Beginning to record to a URL, or going on there: from the working folder, or from what is at the URL."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pol.errors import UsageError
from pol.remote.fetched import Fetched, Progress
from pol.remote.mirror import Mirror
from pol.store import (
    ATTESTATION,
    DATASET,
    GENESIS,
    JOURNAL,
    LOCK,
    LOG,
    MAX_LOG_FILE,
    ORDER,
    SECRET,
    ProofDirectory,
    checkpoint_step,
)  # fmt: skip


def working_folder(url: str) -> Path:
    """Where a recording to a URL works when nobody says: the same folder for the same URL, kept over a restart.

    It is in the user's folder for state (XDG Base Directory Specification 0.8: ``$XDG_STATE_HOME``).
    """
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    url = url.rstrip("/")
    return state / "pol/recordings" / f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"


def take_up(mirror: Mirror, progress: Progress, *, resume: bool) -> None:
    """Make the working folder hold the newer of what is there and what is at the URL, and take the URL over.

    The claimant holds the lock of the working folder.

    Raises:
        UsageError: the URL is not what ``resume`` says, or holds another recording than the working folder.
        StoreError: the URL cannot be reached, or a disk refused.
    """
    folder, url = mirror.folder, mirror.place.url
    fetched = Fetched(mirror.place, folder, progress=progress)
    there = fetched.sizes()
    if not resume and there.keys() - {LOCK, JOURNAL, SECRET, DATASET, ORDER}:
        raise UsageError(f"{url} is not empty: give a new URL, or --resume to go on with an unfinished recording")
    if ATTESTATION in there and LOCK not in there:
        raise UsageError(f"{url} holds a complete proof already: there is nothing to resume")
    begun, brought = (folder / GENESIS).exists(), set[str]()
    if resume and not begun and GENESIS not in there and not there:
        raise UsageError(f"{url}: there is no recording to resume")
    if GENESIS in there:
        if begun and fetched.place.read(GENESIS, 0, there[GENESIS]) != (folder / GENESIS).read_bytes():
            raise UsageError(
                f"{folder} holds another recording than {url}: name another folder with --work, or remove this one"
            )
        before, behind = ProofDirectory(folder).sizes().keys(), _is_behind(fetched)
        fetched.bring()
        brought = ProofDirectory(folder).sizes().keys() - before
        if behind:
            differing = sorted(name for name in before if checkpoint_step(name) is not None and _differs(fetched, name))
            for name in (*differing, JOURNAL, LOG):  # the log last: what is here can be resumed until then
                fetched.renew(name)
                brought.add(name)
    mirror.begin(there, brought)


def _differs(fetched: Fetched, name: str) -> bool:
    """Whether a checkpoint that is here is laid out otherwise than the one at the URL."""
    if not fetched.has(name):
        return False
    size = fetched.size(name)
    with (fetched.path / name).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(0)
        begin = file.read(min(8 + length, size))
    return (fetched.path / name).stat().st_size != size or begin != fetched.place.read(name, 0, len(begin))


def _is_behind(fetched: Fetched) -> bool:
    """Whether a log is here, and the one at the URL has more lines."""
    if not (fetched.path / LOG).exists() or not fetched.has(LOG):
        return False
    here = ProofDirectory(fetched.path).read(LOG, MAX_LOG_FILE)
    return here.count(b"\n") < fetched.place.read(LOG, 0, fetched.size(LOG)).count(b"\n")
