"""A proof taken apart: edit any piece, then seal it again so that only the lie remains."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pol import canonical, seeds
from pol.digest import Digest, sha256
from pol.errors import UsageError
from pol.interval import Interval, Origin
from pol.keys import SigningKey
from pol.merkle import Root, tree
from pol.proof import attestation
from pol.proof import genesis as genesis_format
from pol.proof.attestation import MAX_JOURNAL, Journal, Predicate, Sha256, Statement, Subject
from pol.proof.envelope import parse_envelope
from pol.proof.genesis import MAX_GENESIS, Genesis, Secret, genesis_digest, kept
from pol.proof.log import encode_record, log_root, parse_log
from pol.replay.state import State
from pol.statetree import StateRoot
from pol.store import (
    ATTESTATION,
    CHECKPOINTS,
    DATASET,
    GENESIS,
    JOURNAL,
    LOG,
    MAX_DATASET,
    MAX_LOG_FILE,
    ORDER,
    SECRET,
    ProofDirectory,
    checkpoint_path,
)  # fmt: skip

UNSET = StateRoot(state=Root(digest="sha256:" + "00" * 32, size=0), weights=Root(digest="sha256:" + "00" * 32, size=0))
"""The root of a state that the forger never had."""


class Forger:
    """The pieces of a proof, or of one that has only begun; all of them may be changed.

    Attributes:
        genesis: The commitment; sealing signs it anew if it was changed or is claimed by another key.
        intervals: The records of the log after the first.
        states: State by step, of kept checkpoints and any others; sealing writes their roots into the records.
        kept: Steps whose state is written as a file.
        leaves: Leaf hashes of the dataset.
        order: Content of the file of dataset indices; None where the order follows from the seed.
        files: Other bytes than the true ones, by file name.
        listed: Further names (with SHA-256) in the attestation's list of files.
        journal: Claims about the recording; it names the beacon.
    """

    def __init__(self, proof: Path) -> None:
        store = ProofDirectory(proof)
        self._envelope = store.read(GENESIS, 2 * MAX_GENESIS)
        envelope = parse_envelope(
            self._envelope, what=GENESIS, payload_type=genesis_format.PAYLOAD_TYPE, limit=MAX_GENESIS
        )
        self.genesis = canonical.decode(envelope.payload_bytes(GENESIS), Genesis, what=GENESIS, limit=MAX_GENESIS)
        self._opened = self.genesis
        self.r = bytes.fromhex(canonical.decode(store.read(SECRET, 1024), Secret, what=SECRET, limit=1024).r)
        self.journal = canonical.decode(store.read(JOURNAL, MAX_JOURNAL), Journal, what=JOURNAL, limit=MAX_JOURNAL)
        leaves = store.read(DATASET, MAX_DATASET)
        self.leaves = [leaves[i : i + 32] for i in range(0, len(leaves), 32)]
        self.order = (proof / ORDER).read_bytes() if (proof / ORDER).exists() else None
        self.files: dict[str, bytes] = {}
        self.listed: dict[str, str] = {}
        self.kept = kept(self.genesis.spec)
        self.intervals: list[Interval] = []
        self.states: dict[int, State] = {}
        if (proof / ATTESTATION).exists():
            self.intervals = parse_log(store.read(LOG, MAX_LOG_FILE)).intervals
            self.states = {step: State.load(proof / checkpoint_path(step)) for step in self.kept}

    @property
    def seed(self) -> bytes:
        """The seed that follows from the genesis as it is now."""
        beacon = bytes.fromhex(self.journal.beacon.value)
        return seeds.derive_seed(genesis_digest(self.genesis), beacon, self.r)

    @property
    def steps(self) -> int:
        """T, as the spec says."""
        return self.genesis.spec.steps

    def first_interval(self, step: int) -> int:
        """Index of the interval that starts at ``step``."""
        return step // self.genesis.spec.every

    def replace(self, index: int, **changes: object) -> None:
        """Change fields of interval record ``index``."""
        self.intervals[index] = msgspec.structs.replace(self.intervals[index], **changes)

    def seal(self, out: Path, key: SigningKey, *, claim: bool = True, roots: bool = True) -> None:
        """Write a proof directory in which everything cheap is consistent.

        Args:
            out: A new directory.
            key: Signs the attestation and, if need be, the genesis.
            claim: Put this key into the genesis; without it the genesis stays as it is.
            roots: Write the roots of the states into the records; without it only files are changed.
        """
        missing = [step for step in self.kept if step not in self.states]
        if missing or not self.states:
            raise UsageError(
                f"this forgery has no state after {missing[:1] or [0]} steps: take them, or set it in states"
            )
        (out / CHECKPOINTS).mkdir(parents=True)
        if claim:
            self.genesis = msgspec.structs.replace(self.genesis, claimant=key.public_pem)
        if self.genesis != self._opened:
            self._envelope = key.sign(canonical.encode(self.genesis), genesis_format.PAYLOAD_TYPE)
        digest = genesis_digest(self.genesis)
        origin = Origin(genesis=digest, root=self.states[0].root())
        records = [self._with_root(record) if roots else record for record in self.intervals]
        lines = [encode_record(origin), *map(encode_record, records)]
        (out / GENESIS).write_bytes(self._envelope)
        (out / SECRET).write_bytes(canonical.encode(Secret(r=self.r.hex())))
        (out / JOURNAL).write_bytes(canonical.encode(self.journal))
        (out / DATASET).write_bytes(b"".join(self.leaves))
        (out / LOG).write_bytes(b"".join(lines))
        for step in self.kept:
            self.states[step].save(out / checkpoint_path(step))
        if self.order is not None:
            (out / ORDER).write_bytes(self.order)
        for name, content in self.files.items():
            (out / name).write_bytes(content)
        final = records[-1].root if records else origin.root
        statement = self._statement(out, digest, [line[:-1] for line in lines], origin.root, final)
        envelope = key.sign(canonical.encode(statement), attestation.PAYLOAD_TYPE)
        (out / ATTESTATION).write_bytes(envelope)

    def _with_root(self, record: Interval) -> Interval:
        state = self.states.get(record.stop)
        return record if state is None else msgspec.structs.replace(record, root=state.root())

    def _statement(
        self, out: Path, genesis: Digest, lines: list[bytes], first: StateRoot, last: StateRoot
    ) -> Statement:
        store = ProofDirectory(out)
        digests = {name: store.sha256(name).partition(":")[2] for name in sorted(store.files())} | self.listed
        return Statement(
            subject=[Subject(name=name, digest=Sha256(digest)) for name, digest in digests.items()],
            predicate=Predicate(
                genesis=genesis,
                beacon=self.journal.beacon,
                log=log_root(lines),
                dataset=self.genesis.dataset.root,
                origin=first,
                final=last,
                journal=sha256((out / JOURNAL).read_bytes()),
            ),
        )

    def commit_dataset(self, leaves: list[bytes]) -> None:
        """Commit to other samples."""
        self.leaves = leaves
        dataset = msgspec.structs.replace(self.genesis.dataset, root=tree(leaves))
        self.genesis = msgspec.structs.replace(self.genesis, dataset=dataset)
