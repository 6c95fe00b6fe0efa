"""What of a proof no answer needs, and its removal (``pol gc``).

Nothing that an attestation lists is ever removed, since a proof without it is refused; nor a state that a log names;
nor anything that another process holds. So what could be answered before can be answered after.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pol.checkpoint import checkpoint_root, read_entries
from pol.committed import committed, lacks_log, leftovers
from pol.errors import FormatError, IntegrityError, StoreError, UsageError
from pol.exchange import SharedFolder
from pol.proof.attestation import MAX_ATTESTATION, read_attestation
from pol.proof.genesis import MAX_GENESIS, Genesis, boundaries, kept, read_genesis
from pol.proof.log import Log, parse_log, root_after
from pol.responder import UNDER_WAY
from pol.store import (
    ATTESTATION,
    CHECKPOINTS,
    DATASET,
    GENESIS,
    JOURNAL,
    LOCK,
    LOG,
    MAX_LOG_FILE,
    ORDER,
    SECRET,
    Lock,
    ProofDirectory,
    checkpoint_path,
    checkpoint_step,
    held,
)  # fmt: skip

Progress = Callable[[str, int, int | None], None]


@dataclass
class Cleaned:
    """What was removed, or would be, and what can still be answered."""

    removed: dict[Path, int] = field(default_factory=dict)
    """Bytes of each file and folder."""
    unknown: list[str] = field(default_factory=list)
    """Names in the proof that belong to none: a verifier refuses it while they are there, and gc leaves them."""
    complete: bool = False
    states: int = 0
    """States that can be given: kept, or to be taken again from a kept one before them."""
    kept: int = 0
    """Of these, the kept ones."""

    @property
    def bytes(self) -> int:
        """Of all that was removed."""
        return sum(self.removed.values())


def clean(
    proof: Path, *, openings: Path | None = None, dry_run: bool = False, progress: Progress | None = None
) -> Cleaned:
    """Remove what no answer needs from a proof, finished or not, and from ``openings`` what it can give again.

    Args:
        proof: The proof directory.
        openings: A folder of ``regenerate``: states in it that are recorded in this proof are removed.
        dry_run: Remove nothing.
        progress: Told how far it is.

    Raises:
        UsageError: that is no proof, it is being recorded, or openings were named of an unfinished one.
        IntegrityError: something that answers need is missing; nothing was removed.
        FormatError: a file that says what is needed is damaged; nothing was removed.
        StoreError: the disk refused.
    """
    store, found, tell = ProofDirectory(proof), Cleaned(), progress or (lambda *_: None)
    found.complete = store.has(ATTESTATION)
    if not {ATTESTATION, GENESIS, LOCK, LOG, SECRET} & store.sizes().keys():
        raise UsageError(f"{proof}: not a proof directory: there is neither {GENESIS} nor {LOG}")
    if openings is not None and not found.complete:
        raise UsageError(f"{proof}: the recording is not finished, so {openings} holds no openings of it")
    with _lock(proof, needed=not (found.complete or dry_run)):
        garbage = _of_complete(store, found) if found.complete else _of_unfinished(store, found)
        if openings is not None:
            garbage += _answers(store, openings, tell)
        for path in garbage:
            found.removed[path] = _bytes(path)
            if not dry_run:
                _remove(path)
    return found


@contextlib.contextmanager
def _lock(proof: Path, *, needed: bool) -> Iterator[None]:
    """Keeps recordings away; of a complete proof there is none, unless its lock says so."""
    there = (proof / LOCK).exists()
    if not needed and not there:
        yield
        return
    lock = Lock(proof)
    try:
        yield
    finally:
        lock.release(remove=not there)


def _of_complete(store: ProofDirectory, found: Cleaned) -> list[Path]:
    _there(store, {GENESIS, LOG, JOURNAL, SECRET, DATASET})
    statement = read_attestation(store.read(ATTESTATION, 2 * MAX_ATTESTATION))
    genesis = read_genesis(store.read(GENESIS, 2 * MAX_GENESIS))
    listed = {subject.name for subject in statement.subject}
    _there(store, listed | {checkpoint_path(step) for step in kept(genesis.spec)})
    found.states, found.kept = len(boundaries(genesis.spec)), len(kept(genesis.spec))
    garbage = [*leftovers(store.path), *([store.path / LOCK] if store.has(LOCK) else [])]
    known = {*listed, ATTESTATION, *(str(path.relative_to(store.path)) for path in garbage)}
    found.unknown = sorted(store.sizes().keys() - known)
    return garbage


def _there(store: ProofDirectory, needed: set[str]) -> None:
    if missing := sorted(needed - store.sizes().keys()):
        raise IntegrityError(
            f"{store.path / missing[0]}: needed for an answer, and not there: restore it from a copy. Nothing was "
            "removed"
        )


def _of_unfinished(store: ProofDirectory, found: Cleaned) -> list[Path]:
    sizes = store.sizes()
    if GENESIS in sizes:
        if lacks_log(store.path):
            _there(store, {LOG})
        genesis = read_genesis(store.read(GENESIS, 2 * MAX_GENESIS))
        recorded = committed(store.path, genesis)
        steps = [step for step in boundaries(genesis.spec) if step <= recorded.start.step]
        found.states, found.kept = len(steps) if recorded.lines else 0, len(recorded.states)
        return [*leftovers(store.path), *recorded.unnamed]
    if LOG in sizes or any(checkpoint_step(name) is not None for name in sizes):
        raise IntegrityError(f"{store.path / GENESIS}: not there: restore it from a copy. Nothing was removed")
    return [*leftovers(store.path), *(store.path / name for name in (SECRET, JOURNAL, DATASET, ORDER) if name in sizes)]


def _answers(store: ProofDirectory, openings: Path, tell: Progress) -> list[Path]:
    """States of the openings that the proof can give again, and what calls that were killed left there."""
    if openings.resolve() == store.path.resolve() or not openings.is_dir():
        raise UsageError(f"{openings}: no folder of openings")
    genesis = read_genesis(store.read(GENESIS, 2 * MAX_GENESIS))
    log, folder = parse_log(store.read(LOG, MAX_LOG_FILE)), SharedFolder(openings)
    garbage = [path for path in sorted(openings.glob(f"{UNDER_WAY}*")) if _abandoned(path)]
    inside = openings / CHECKPOINTS
    names = sorted(os.listdir(inside)) if inside.is_dir() and not inside.is_symlink() else []
    for number, name in enumerate(names):
        tell("comparing states", number, len(names))
        step = checkpoint_step(f"{CHECKPOINTS}/{name}")
        if step is not None and _is_recorded(folder, step, genesis, log):
            garbage.append(inside / name)
    return garbage


def _is_recorded(where: ProofDirectory, step: int, genesis: Genesis, log: Log) -> bool:
    if step not in set(boundaries(genesis.spec)):
        return False
    try:
        found = checkpoint_root(where, step, read_entries(where, checkpoint_path(step)))
    except FormatError:
        return False
    return found == root_after(log, genesis.spec, step)


def _abandoned(folder: Path) -> bool:
    """Whether no process works in a folder of ``regenerate`` any more."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    try:
        with held(folder):
            return True
    except UsageError:
        return False


def _bytes(path: Path) -> int:
    inside = [path] if not path.is_dir() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.lstat().st_size for file in inside)


def _remove(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise StoreError(f"{path}: cannot remove: {error.strerror}") from None
