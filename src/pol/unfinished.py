"""A proof directory that is being written: begun, taken up again, and finished."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from pol import canonical, seeds
from pol.committed import Start, check_states, committed, lacks_log, leftovers, names
from pol.digest import Digest
from pol.errors import FormatError, StoreError, UsageError
from pol.interval import Interval, Origin
from pol.keys import SigningKey, verify_envelope
from pol.merkle import tree
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
from pol.proof.log import MAX_LINE, Log, encode_record, parse_log
from pol.remote.mirror import Mirror
from pol.store import (
    ATTESTATION,
    CHECKPOINTS,
    DATASET,
    GENESIS,
    JOURNAL,
    LOG,
    MAX_LOG_FILE,
    ORDER,
    SECRET,
    ProofDirectory,
    checkpoint_path,
    sync,
    write_atomically,
)  # fmt: skip
from pol.version import __version__

Progress = Callable[[str, int, int | None], None]

NO_BEACON = Beacon(kind="none", value="00" * 32)


class Unfinished:
    """The files of a recording in progress."""

    def __init__(self, path: Path, key: SigningKey, mirror: Mirror | None = None) -> None:
        self.path = path.absolute()
        self._mirror = mirror
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
            if (self.path / LOG).exists():
                raise StoreError(f"{self.path / GENESIS} is not there, but a log is: restore it from a copy")
            return None
        with self._whole(GENESIS):
            data = ProofDirectory(self.path).read(GENESIS, 2 * MAX_GENESIS)
            envelope = parse_envelope(data, what=GENESIS, payload_type=genesis_format.PAYLOAD_TYPE, limit=MAX_GENESIS)
            genesis = canonical.decode(envelope.payload_bytes(GENESIS), Genesis, what=GENESIS, limit=MAX_GENESIS)
        verify_envelope(envelope, key.public_pem, GENESIS)
        if lacks_log(self.path):
            raise StoreError(
                f"{self.path / LOG} is not there, but states are: restore it from a copy. Without it they are worth "
                f"nothing: remove them from {self.checkpoints}, and resume, to begin with the first step"
            )
        return genesis

    @contextlib.contextmanager
    def _whole(self, name: str) -> Iterator[None]:
        """Says what to do where a file that nobody can make again turns out to be damaged.

        Raises:
            StoreError: it is.
        """
        try:
            yield
        except FormatError as error:
            raise StoreError(
                f"{self.path / name} is damaged: {error}. Restore it from a copy; without it nobody can go on with "
                "this recording: record anew in another directory"
            ) from None

    def _committed(self, *names: str, new: bool = True) -> None:
        """These files are written, to stay."""
        if self._mirror is not None:
            for name in names:
                if (self.path / name).exists():
                    self._mirror.committed(name, new=new)

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
        self._committed(DATASET, ORDER, SECRET, GENESIS)

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
        with self._whole(SECRET):
            data = ProofDirectory(self.path).read(SECRET, 1024)
            r = bytes.fromhex(canonical.decode(data, Secret, what=SECRET, limit=1024).r)
            if self.genesis is not None and seeds.commit(r) != self.genesis.secret:
                raise FormatError(f"not the secret that {GENESIS} commits to")
        return r

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

    def rewind(self, genesis: Genesis, progress: Progress) -> Start:
        """Cut the log back to what is committed, and remove what lies after it.

        Raises:
            StoreError: a state that is committed is damaged, or missing.
        """
        self.secret(), self._journal()  # nothing is given up if these are damaged
        for leftover in leftovers(self.path):
            leftover.unlink()
        names(self.path)
        found = committed(self.path, genesis)
        if found.begun:
            with self._whole(DATASET):
                if tree(self.leaves()) != genesis.dataset.root:
                    raise FormatError(f"not the leaves whose root {GENESIS} names")
        if found.gap is not None:
            raise StoreError(
                f"{found.gap} is not there, but later states are: restore it from a copy. Or remove all later ones, "
                "and resume: the steps after the one before it are taken again"
            )
        self._digests = check_states(
            self.path, found.states, lambda done, total: progress("checking what is there", done, total)
        )
        if found.begun:
            journal = self._journal()
            self._write_journal(_with(journal, resumes=[*journal.resumes, found.start.step]))
        write_atomically(self.path / LOG, b"".join(line + b"\n" for line in found.lines))
        for file in found.beyond:
            file.unlink()
        self._committed(DATASET, ORDER, SECRET, GENESIS, *map(checkpoint_path, found.states), new=False)
        self._committed(LOG)  # an empty one, too: where states are, there is always a log
        return found.start

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
            if kept:  # a crash of the machine never leaves a line without the checkpoint that it names
                sync(self.checkpoints)
            with (self.path / LOG).open("ab") as file:
                file.write(line)
                if kept:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(
                f"{self.path / LOG}: cannot write: {error.strerror}. What is written can be resumed"
            ) from None
        if kept:
            name = checkpoint_path(record.stop if isinstance(record, Interval) else 0)
            self._digests[name] = ProofDirectory(self.path).sha256(name)
            self._committed(name, LOG)

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
        digests = {name: self._digests.get(name) or directory.sha256(name) for name in names(self.path)}
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

    def _journal(self) -> Journal:
        with self._whole(JOURNAL):
            data = ProofDirectory(self.path).read(JOURNAL, MAX_JOURNAL)
            return canonical.decode(data, Journal, what=JOURNAL, limit=MAX_JOURNAL)

    def _write_journal(self, journal: Journal) -> None:
        write_atomically(self.path / JOURNAL, canonical.encode(journal))
        self._committed(JOURNAL)


def _with(journal: Journal, **changes: object) -> Journal:
    return Journal(**{name: changes.get(name, getattr(journal, name)) for name in journal.__struct_fields__})  # type: ignore[arg-type]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
