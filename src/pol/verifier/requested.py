"""The recorded states that rule tolerance compares by value: taken over, and asked for where the proof has them not.

A state is copied into a folder of the verifier's own, the copy is hashed, and from then on only the copy is used: who
can write to the proof or to the shared folder cannot put other bytes between the check and the use. The request is for
the prover to read, and is never read here: which states are needed stands in this process's memory, like the nonce.

A prover gains nothing by seeing the request: the attestation, and so every digest that counts, was fixed before.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from pol.checkpoint import CHUNK, checkpoint_root, gather, read_entries
from pol.digest import Digest
from pol.errors import Incomplete, IntegrityError, PolError, StoreError
from pol.exchange import REQUEST, SharedFolder
from pol.proof.request import MAX_REQUEST, make_request, read_request
from pol.store import ProofDirectory, checkpoint_path
from pol.verifier.case import Case, Checks, unable


class StoppedWaiting(KeyboardInterrupt):
    """A verification that was interrupted when its challenge was no secret any more: only the same one can go on."""

    def __init__(self, nonce: bytes, attestation: Digest) -> None:
        super().__init__("interrupted")
        self.nonce, self.attestation = nonce.hex(), attestation


class StoppedByError(PolError):
    """The same, where this machine failed (a full disk, no memory): an error ends no challenge. ``__cause__`` is it."""

    def __init__(self, nonce: bytes, attestation: Digest, error: Exception) -> None:
        kind = "" if isinstance(error, PolError) else f"{type(error).__name__}: "
        super().__init__(f"{kind}{error}".rstrip(": "))
        self.nonce, self.attestation = nonce.hex(), attestation


def needed(case: Case) -> list[int]:
    """Steps of the states that are compared: both ends of every challenged interval. Rule exact compares digests."""
    if case.genesis.spec.rule == "exact":
        return []
    assert case.draws is not None
    intervals = [case.log.intervals[index] for index in case.draws.all()]
    return sorted({at for interval in intervals for at in (interval.start, interval.stop)})


def states(case: Case) -> Checks:
    """Take over every state that is needed, and wait for those that are asked for.

    Raises:
        IntegrityError: one is not what the log records.
        FormatError: one is no state, or no file.
    """
    wanted = needed(case)
    if not wanted:
        return
    waiting, most = [], _most_bytes(case)
    for number, step in enumerate(wanted):
        case.progress("taking over states", number, len(wanted))
        waiting += [] if _take_over(case, step, most) else [step]
    if waiting and case.openings is not None and not case.named.repeated and _asked_before(case, case.openings):
        yield unable("openings", _AGAIN.format(request=case.openings.path / REQUEST))
        return
    if waiting and case.openings is not None:
        waiting = _await(case, case.openings, waiting, most)
    if not waiting and case.openings is not None and not case.checkpoints.keys() >= set(wanted):
        case.openings.remove(REQUEST)  # it is answered: the next one to be found there is another
        case.named.request = None
    if waiting:
        yield unable("openings", _how_to_go_on(case, waiting))


_AGAIN = (
    "{request} is of an earlier challenge of this proof, which nobody has answered. Go on with that one (--nonce and "
    "--attestation, which it printed): who may leave challenges unanswered until one suits gets past any. If you give "
    "that one up, count it against the prover, and remove the file. If it was this verifier that failed, before it "
    "could print them (no power, a killed process), the prover has not kept silent: remove the file and draw a new "
    "one, but count it against the prover if it happens again"
)


def _asked_before(case: Case, folder: SharedFolder) -> bool:
    """Whether a challenge of this proof lies in the folder unanswered.

    This catches a verifier's own slip. A prover could remove the file: only the verifier's memory says for certain.
    """
    try:
        return read_request(folder.read(REQUEST, MAX_REQUEST), what=REQUEST).attestation == case.attestation_digest
    except PolError:  # none, or nothing that this verifier wrote
        return False


def _await(case: Case, folder: SharedFolder, missing: list[int], most: int) -> list[int]:
    """Ask for states, and wait for them; those that do not come are returned."""
    _ask(case, folder, missing)
    waiting = missing
    for _ in case.patience.looks():
        if not (waiting := [step for step in waiting if not _take_over(case, step, most)]):
            break
        if case.patience.seconds > 0:
            phase = f"waiting for the prover, who is asked in {folder.path / REQUEST}"
            case.progress(phase, len(missing) - len(waiting), len(missing))
    return waiting


def _ask(case: Case, folder: SharedFolder, steps: list[int]) -> None:
    case.named.request = folder.path / REQUEST
    case.named.revealed = True  # from here on the prover may know which intervals are challenged
    folder.make()
    folder.put(REQUEST, make_request(case.attestation_digest, steps))


def _how_to_go_on(case: Case, missing: list[int]) -> str:
    what = f"{len(missing)} of the states that are compared {'is' if len(missing) == 1 else 'are'} not in the proof"
    if case.openings is None:
        return f"{what}: verify with --openings DIR, a folder in which the prover is asked for them (and --wait 10m)"
    named = case.named
    return (
        f"{what}. They are asked for in {case.openings.path / REQUEST} (prover: pol regenerate {case.store.path.name} "
        f"--recipe … --out {case.openings.path}). Then go on with --nonce {named.nonce.hex()} --attestation "
        f"{named.attestation_digest}: the prover may know this challenge, so no other proof will do"
    )


def _take_over(case: Case, step: int, most: int) -> bool:
    """Copy a state of at most so many bytes, kept or sent, and check the copy.

    False if it is not there, or not all of it yet.
    """
    name, kept = checkpoint_path(step), step in case.checkpoints
    source: ProofDirectory | None = case.store if kept else case.openings
    if source is None:
        return False
    where = name if kept else f"{name} in the openings"
    try:
        with os.fdopen(source.open(name), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise IntegrityError(f"{where}: larger than a state of this run could be ({most} bytes)")
            placed = read_entries(source, name)  # half a file is not even copied
            if not any(slot.file for slot in placed):
                _copy(file, size, case.own.path / name)
            elif kept:
                gather(source, name, placed, case.own.path / name)
            else:
                raise IntegrityError(f"{where}: not the whole state: it refers to another file")
        if not _is_recorded(case, step):
            raise IntegrityError(f"{where}: not the state that the log records after {step} steps")
    except Incomplete:
        if kept:
            raise
        return False
    return True


def _most_bytes(case: Case) -> int:
    """Of the file of a state of this run."""
    # Optimizer state comes after the first step, so kept states are a measure; an object's may still grow a little.
    contents = (sum(slot.entry.num_bytes for slot in placed) for placed in case.checkpoints.values())
    headers = max(case.files[checkpoint_path(step)] for step in case.checkpoints)
    return 2 * (max(contents) + headers) + 2**20


def _copy(file: BinaryIO, size: int, target: Path) -> None:
    """Copy as many bytes as a file had when it was opened; of one that shrinks, fewer."""
    try:
        with target.open("wb") as copy:
            left = size
            while left and (data := file.read(min(CHUNK, left))):
                copy.write(data)
                left -= len(data)
    except OSError as error:
        raise StoreError(f"this machine, not the proof: cannot take over a state: {error.strerror}") from None


def _is_recorded(case: Case, step: int) -> bool:
    """Whether the verifier's own copy of a state has the root that the log records."""
    return checkpoint_root(case.own, step, read_entries(case.own, checkpoint_path(step))) == case.root_after(step)
