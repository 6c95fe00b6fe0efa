"""A proof directory that is being written: begun, taken up again, and finished."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pol import canonical
from pol.digest import Digest
from pol.errors import IntegrityError, StoreError, UsageError
from pol.interval import Interval, Origin
from pol.keys import SigningKey, verify_envelope
from pol.proof import genesis as genesis_format
from pol.proof.attestation import (
    MAX_JOURNAL,
    MAX_NOTICE,
    MAX_NOTICES,
    PAYLOAD_TYPE,
    Beacon,
    Journal,
    Predicate,
    Sha256,
    Statement,
    Subject,
    Waited,
    attestation_digest,
)  # fmt: skip
from pol.proof.envelope import parse_envelope
from pol.proof.genesis import MAX_GENESIS, Genesis, Secret, genesis_digest, kept
from pol.proof.log import MAX_LINE, Log, decode_record, encode_record, parse_log
from pol.statetree import StateRoot
from pol.store import (
    ATTESTATION,
    CHECKPOINTS,
    DATASET,
    FILES,
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
    write_atomically,
)  # fmt: skip
from pol.version import __version__

NO_BEACON = Beacon(kind="none", value="00" * 32)


@dataclass(frozen=True)
class Start:
    """Where a recording goes on."""

    step: int
    checkpoint: Path | None
    counts: dict[str, int]
    root: StateRoot | None
    """What the log records there; None at the beginning."""


@contextlib.contextmanager
def open_unfinished(path: Path, key: SigningKey, *, resume: bool) -> Iterator[Unfinished]:
    """Open a new or, with ``resume``, an unfinished recording for this process alone.

    Raises:
        UsageError: the directory is not what ``resume`` says, or another process writes it.
    """
    if resume and not path.is_dir():
        raise UsageError(f"{path}: there is no recording to resume")
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file: give a directory")
    if not resume and path.exists() and not _never_begun(path):
        raise UsageError(
            f"{path} is not empty: give a new directory, or --resume to go on with an unfinished recording"
        )
    try:
        (path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: cannot make the proof directory: {error.strerror}") from None
    lock = Lock(path)
    files = Unfinished(path, key)
    try:
        yield files
    finally:
        lock.release(remove=files.complete)


def _never_begun(path: Path) -> bool:
    """Whether nothing is in a directory but what an attempt leaves that failed before its genesis was signed."""
    leftovers = {LOCK, JOURNAL, SECRET, DATASET, ORDER, CHECKPOINTS}
    folder = path / CHECKPOINTS
    return {file.name for file in path.iterdir()} <= leftovers and not (folder.is_dir() and any(folder.iterdir()))


class Unfinished:
    """The files of a recording in progress."""

    def __init__(self, path: Path, key: SigningKey) -> None:
        self.path = path.absolute()
        self.checkpoints = self.path / CHECKPOINTS
        self.leaves_path = self.path / DATASET
        self.order_path = self.path / ORDER
        self.genesis = self._read_genesis(key)
        self._digests: dict[str, Digest] = {}
        self._asides = 0
        self._waited: Waited | None = None

    @property
    def complete(self) -> bool:
        """Whether the attestation is there."""
        return (self.path / ATTESTATION).exists()

    def _read_genesis(self, key: SigningKey) -> Genesis | None:
        if not (self.path / GENESIS).exists():
            return None
        data = ProofDirectory(self.path).read(GENESIS, 2 * MAX_GENESIS)
        envelope = parse_envelope(data, what=GENESIS, payload_type=genesis_format.PAYLOAD_TYPE, limit=MAX_GENESIS)
        genesis = canonical.decode(envelope.payload_bytes(GENESIS), Genesis, what=GENESIS, limit=MAX_GENESIS)
        verify_envelope(envelope, key.public_pem, GENESIS)
        return genesis

    # -- begin --------------------------------------------------------------------------------------------------

    def begin(self, secret: Secret) -> None:
        """Begin a recording that has no genesis yet; what an earlier attempt left is written over."""
        write_atomically(self.path / SECRET, canonical.encode(secret))
        self._write_journal(
            Journal(tool=f"pol {__version__}", started=_now(), finished=None, resumes=[], asides=0, beacon=NO_BEACON)
        )

    def write_genesis(self, genesis: Genesis, envelope: bytes) -> None:
        """Write the signed genesis: from now on nothing about the run can change."""
        write_atomically(self.path / GENESIS, envelope)
        self.genesis = genesis

    def write_order(self, order: bytes | None) -> None:
        """Write the claimant's own order, or remove what an earlier attempt left."""
        if order is None:
            self.order_path.unlink(missing_ok=True)
        else:
            write_atomically(self.order_path, order)

    def order(self) -> bytes | None:
        """The claimant's own order, if it was written."""
        return self.order_path.read_bytes() if self.order_path.exists() else None

    def leaves(self) -> list[bytes]:
        """Leaf hashes of the dataset tree."""
        data = self.leaves_path.read_bytes()
        return [data[i : i + 32] for i in range(0, len(data), 32)]

    def secret(self) -> bytes:
        """The secret r."""
        data = ProofDirectory(self.path).read(SECRET, 1024)
        return bytes.fromhex(canonical.decode(data, Secret, what=SECRET, limit=1024).r)

    def settle_beacon(self, given: bytes | None) -> Beacon:
        """The beacon of this run: the first one that training began with stays.

        Raises:
            UsageError: training has begun under another.
        """
        journal = self._journal()
        begun = (self.path / LOG).exists()
        beacon = NO_BEACON if given is None else Beacon(kind="nonce", value=given.hex())
        if begun and given is not None and beacon != journal.beacon:
            raise UsageError("training has begun under another beacon, or none: it cannot be given now")
        if not begun and beacon != journal.beacon:
            self._write_journal(_with(journal, beacon=beacon))
        return journal.beacon if begun else beacon

    def kept_steps(self, genesis: Genesis) -> set[int]:
        """Steps whose checkpoint is kept."""
        return set(kept(genesis.spec))

    # -- the log ------------------------------------------------------------------------------------------------

    def rewind(self, genesis: Genesis) -> Start:
        """Cut the log back to the last kept checkpoint that is on disk, and remove what lies after it."""
        for leftover in (*self.checkpoints.glob("*.tmp"), *self.path.glob("*.tmp")):
            leftover.unlink()
        lines, kept_steps = self._whole_lines(), self.kept_steps(genesis)
        start, keep_lines = Start(0, None, {}, None), 0
        for number, line in enumerate(lines[1:], start=2):
            record = decode_record(line, Interval, number)
            path = self.path / checkpoint_path(record.stop)
            if record.stop in kept_steps and path.exists():
                start, keep_lines = Start(record.stop, path, record.schedules, record.root), number
        if lines:
            if lines[0] + b"\n" != encode_record(
                Origin(genesis_digest(genesis), decode_record(lines[0], Origin, 1).root)
            ):
                raise IntegrityError(f"{self.path / LOG}: belongs to another genesis; start anew in another directory")
            journal = self._journal()
            self._write_journal(_with(journal, resumes=[*journal.resumes, start.step]))
        write_atomically(self.path / LOG, b"".join(line + b"\n" for line in lines[:keep_lines]))
        for file in self.checkpoints.iterdir():
            step = checkpoint_step(f"{CHECKPOINTS}/{file.name}")
            if step is not None and (step > start.step or not keep_lines):
                file.unlink()
        return start

    def _whole_lines(self) -> list[bytes]:
        path = self.path / LOG
        if not path.exists():
            return []
        return path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is half a line

    def append(self, record: Origin | Interval, *, kept: bool) -> None:
        """Add a record to the log; hash the checkpoint while its pages are warm.

        Raises:
            UsageError: the record is longer than any reader takes.
        """
        line = encode_record(record)
        if len(line) > MAX_LINE:
            raise UsageError(
                f"the record of an interval has {len(line)} bytes, more than {MAX_LINE}: its learning rates or indices "
                "are too many; record with a smaller --every"
            )
        try:
            with (self.path / LOG).open("ab") as file:
                file.write(line)
        except OSError as error:
            raise StoreError(f"{self.path / LOG}: cannot write: {error.strerror}") from None
        if kept:
            name = checkpoint_path(record.stop if isinstance(record, Interval) else 0)
            self._digests[name] = ProofDirectory(self.path).sha256(name)

    # -- finish -------------------------------------------------------------------------------------------------

    def note_course(self, asides: int, waits: int, seconds: float) -> None:
        """How often the program evaluated; how often, and how long, it waited for the disk."""
        self._asides = asides
        self._waited = Waited(times=waits, seconds=repr(round(seconds, 3))) if waits else None

    def note_read(self, read: list[str]) -> None:
        """What the program reads that no replay can give again, as the control run noticed it."""
        self._write_journal(_with(self._journal(), noticed=[text[:MAX_NOTICE] for text in read[:MAX_NOTICES]]))

    def log(self) -> Log:
        """The log as it is."""
        return parse_log(ProofDirectory(self.path).read(LOG, MAX_LOG_FILE))

    def attest(self, genesis: Genesis, key: SigningKey) -> Digest:
        """Write the attestation: the proof is complete. Returns its digest."""
        journal = self._journal()
        self._write_journal(_with(journal, finished=_now(), asides=self._asides, waited=self._waited))
        directory, log = ProofDirectory(self.path), self.log()
        digests = {name: self._digests.get(name) or directory.sha256(name) for name in self._names()}
        statement = Statement(
            subject=[Subject(name=n, digest=Sha256(d.partition(":")[2])) for n, d in digests.items()],
            predicate=Predicate(
                genesis=genesis_digest(genesis),
                beacon=journal.beacon,
                log=log.root,
                dataset=genesis.dataset.root,
                origin=log.origin.root,
                final=log.intervals[-1].root,
                journal=digests[JOURNAL],
            ),
        )
        write_atomically(self.path / ATTESTATION, key.sign(canonical.encode(statement), PAYLOAD_TYPE))
        return attestation_digest(statement)

    def _names(self) -> list[str]:
        """Every file of the proof but the attestation."""
        files = [name for name in FILES if name != ATTESTATION and (self.path / name).exists()]
        return sorted([*files, *(f"{CHECKPOINTS}/{file.name}" for file in self.checkpoints.iterdir())])

    def _journal(self) -> Journal:
        return canonical.decode(
            ProofDirectory(self.path).read(JOURNAL, MAX_JOURNAL), Journal, what=JOURNAL, limit=MAX_JOURNAL
        )

    def _write_journal(self, journal: Journal) -> None:
        write_atomically(self.path / JOURNAL, canonical.encode(journal))


def _with(journal: Journal, **changes: object) -> Journal:
    return Journal(**{name: changes.get(name, getattr(journal, name)) for name in journal.__struct_fields__})  # type: ignore[arg-type]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
