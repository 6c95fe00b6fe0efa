"""What of an unfinished recording is committed: log lines and the kept states that they name, without a gap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pol.checkpoint import Known, checkpoint_root, read_entries
from pol.digest import Digest
from pol.errors import FormatError, IntegrityError, StoreError, UsageError
from pol.interval import Interval, Origin
from pol.proof.attestation import MAX_ATTESTATION, attestation_digest, read_attestation
from pol.proof.genesis import Genesis, genesis_digest, kept
from pol.proof.log import decode_record, encode_record
from pol.statetree import StateRoot
from pol.store import (
    ATTESTATION,
    CHECKPOINTS,
    FILES,
    LOCK,
    LOG,
    MAX_LOG_FILE,
    ProofDirectory,
    checkpoint_path,
    checkpoint_step,
)


@dataclass(frozen=True)
class Start:
    """Where a recording goes on."""

    step: int
    checkpoint: Path | None
    counts: dict[str, int]
    root: StateRoot | None
    """What the log records there; None at the beginning."""


@dataclass(frozen=True)
class Committed:
    """The log as it counts, up to its last kept state before the first that is missing."""

    begun: bool
    """Whether there is a log at all."""
    lines: list[bytes]
    start: Start
    states: dict[int, StateRoot]
    """By step, the recorded roots of the kept states."""
    beyond: list[Path]
    """Checkpoint files after the start: what a crash left, or what comes after a gap."""
    unnamed: list[Path]
    """Of these, the ones that no line of the log names."""
    gap: Path | None
    """A state that is missing, while later ones are there that the log names."""


def committed(path: Path, genesis: Genesis) -> Committed:
    """What of the recording in a folder is committed.

    Raises:
        FormatError: a line of the log is damaged.
        IntegrityError: the log is of another recording.
    """
    lines, in_proof = _whole_lines(path), set(kept(genesis.spec))
    start, count, states, named = Start(0, None, {}, None), 0, dict[int, StateRoot](), set[int]()
    missing, gap = list[Path](), None
    if lines:
        origin = decode_record(lines[0], Origin, 1)
        if lines[0] + b"\n" != encode_record(Origin(genesis_digest(genesis), origin.root)):
            raise IntegrityError(f"{path / LOG}: belongs to another genesis; start anew in another directory")
        missing = [first] if not (first := path / checkpoint_path(0)).exists() else []
        found = {} if missing else {0: origin.root}
        named.add(0)
        for number, line in enumerate(lines[1:], start=2):
            record = decode_record(line, Interval, number)
            named.add(record.stop)
            if record.stop not in in_proof:
                continue
            checkpoint = path / checkpoint_path(record.stop)
            if not checkpoint.exists():
                missing.append(checkpoint)
            elif missing:
                gap = missing[0]
            else:
                start, count = Start(record.stop, checkpoint, record.schedules, record.root), number
                found[record.stop] = record.root
        states = found if count else {}
    files = (path / CHECKPOINTS).glob("*")
    steps = {file: checkpoint_step(f"{CHECKPOINTS}/{file.name}") for file in files}
    beyond = sorted(file for file, step in steps.items() if step is not None and (step > start.step or not count))
    return Committed(
        bool(lines), lines[:count], start, states, beyond, [file for file in beyond if steps[file] not in named],
        gap,
    )  # fmt: skip


def _whole_lines(path: Path) -> list[bytes]:
    if not (path / LOG).exists():
        return []
    return ProofDirectory(path).read(LOG, MAX_LOG_FILE).split(b"\n")[:-1]  # after the last newline is half a line


def lacks_log(path: Path) -> bool:
    """Whether states are there, and no log, which is written before the first of them."""
    return not (path / LOG).exists() and any(checkpoint_step(name) is not None for name in ProofDirectory(path).sizes())


def leftovers(path: Path) -> list[Path]:
    """What was being written when a recording in a folder was killed: by us, or an earlier version of us."""
    return sorted(file for folder in (path, path / CHECKPOINTS) for file in folder.glob("*") if _unfinished(file))


def _unfinished(file: Path) -> bool:
    return file.name.endswith(".tmp") or (file.name.startswith(".tmp") and file.parent.name == CHECKPOINTS)


def names(path: Path) -> list[str]:
    """Every file of a recording but its attestation.

    Raises:
        UsageError: something is there that belongs to no proof.
    """
    found = ProofDirectory(path).sizes().keys() - {LOCK, ATTESTATION}
    if strange := sorted(name for name in found if name not in FILES and checkpoint_step(name) is None):
        raise UsageError(
            f"{path / strange[0]} belongs to no proof, which would be refused: move it elsewhere, and resume"
        )
    return sorted(found)


def attested(path: Path) -> Digest:
    """Digest of the attestation of a complete recording.

    Raises:
        StoreError: it is damaged.
    """
    try:
        return attestation_digest(read_attestation(ProofDirectory(path).read(ATTESTATION, 2 * MAX_ATTESTATION)))
    except FormatError as error:
        raise StoreError(
            f"{path / ATTESTATION} is damaged: {error}. Remove it, and resume: it is written and signed again"
        ) from None


def check_states(path: Path, states: dict[int, StateRoot], tell: Callable[[int, int], None]) -> dict[str, Digest]:
    """Read kept states whole, before more is built on them; returns the digests of their files.

    Raises:
        StoreError: one is not the state that the log records.
    """
    store, digests, known = ProofDirectory(path), {}, Known()
    for number, (step, root) in enumerate(sorted(states.items())):
        tell(number, len(states))
        name = checkpoint_path(step)
        try:
            found = checkpoint_root(store, step, read_entries(store, name, known))
            what = f"it is not the state that the log records after {step} steps"
        except FormatError as error:
            found, what = None, f"not a checkpoint file: {error}"
        if found != root:
            raise StoreError(
                f"{path / name} is damaged: {what}. Remove it, and resume: the steps after the one before it are taken "
                "again. If it is not the last one, put a copy in its place, or remove all later ones as well"
            )
        digests[name] = store.sha256(name)  # while its pages are warm
    return digests
