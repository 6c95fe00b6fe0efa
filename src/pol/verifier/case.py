"""What a verification knows: the proof as read so far, the policy, and the way to read more."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pol import seeds
from pol.container import Placed
from pol.digest import Digest
from pol.exchange import Patience, SharedFolder
from pol.interval import Momenta
from pol.proof.attestation import Journal, Statement, attestation_digest
from pol.proof.challenge import Draws, Window
from pol.proof.envelope import Envelope
from pol.proof.genesis import Genesis, Secret, genesis_digest
from pol.proof.log import Log, root_after
from pol.proof.policy import Policy
from pol.proof.report import Check, Drift, IntervalResult, Report
from pol.proof.screens import Screen
from pol.statetree import StateRoot
from pol.store import ProofDirectory
from pol.verifier.carrying import Carrying

Checks = Iterator[Check]


@dataclass(frozen=True)
class Moved:
    """How far parameters moved between two kept checkpoints: per parameter group, in the order of recorded rates."""

    start: int
    stop: int
    distances: list[float]
    """Euclidean."""
    norms: list[float]
    """Euclidean norms of these parameters: the larger of before and after."""


@dataclass
class Case:
    """One verification. Fields after ``progress`` are filled by the steps, in order."""

    store: ProofDirectory
    policy: Policy
    model: Path | None
    nonce: bytes
    progress: Callable[[str, int, int | None], None]
    start: Path | None = None
    openings: SharedFolder | None = None
    patience: Patience = field(default_factory=Patience)
    """How long to wait for states that are asked for."""
    child: Case | None = None
    """The proof that starts from this one; None for the one that was named."""
    elements: frozenset[str] = frozenset()
    """Further files that the procedure's proofs may hold."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Constructor arguments that the verifier insists on, tagged."""
    parent: Callable[[], Report] | None = None
    """Verifies the proof that the verifier names as the parent."""
    parent_path: Path | None = None
    parent_report: Report | None = None
    """What came of it."""
    request: Path | None = None
    """Of the named proof: the request for states that is not answered yet."""
    repeated: bool = False
    """Of the named proof: whether the nonce is that of an earlier verification."""
    revealed: bool = False
    """Of the named proof: whether somebody else may know the challenge by now."""

    own: ProofDirectory = field(init=False)
    """A folder of the verifier's own, for the states that it has taken over."""
    genesis_envelope: Envelope = field(init=False)
    genesis: Genesis = field(init=False)
    attestation_envelope: Envelope = field(init=False)
    statement: Statement = field(init=False)
    files: dict[str, int] = field(init=False)
    log: Log = field(init=False)
    journal: Journal = field(init=False)
    secret: Secret = field(init=False)
    leaves: bytes = field(init=False)
    checkpoints: dict[int, list[Placed]] = field(init=False)
    windows: list[Window] = field(init=False)
    screens: list[Screen] = field(default_factory=list)
    moves: list[Moved] = field(default_factory=list)
    """Of each window."""
    draws: Draws | None = None
    allowed: dict[int, float] = field(default_factory=dict)
    """Rule tolerance: by interval, how far its limits let all parameters be moved unseen."""
    momenta: dict[int, Momenta] = field(default_factory=dict)
    """Of the parameter groups at the end of each replayed interval."""
    explained: dict[int, float] = field(default_factory=dict)
    """By interval that a branch explains: the error of all parameters, with what their moments carry on."""
    otherwise: set[int] = field(default_factory=set)
    """Intervals of which a replay gave other values than recorded for more than the state."""
    drift: Drift | None = None
    intervals: list[IntervalResult] = field(default_factory=list)

    @property
    def named(self) -> Case:
        """The verification of the proof that was named, of which this may be one of a parent."""
        return self if self.child is None else self.child.named

    @property
    def genesis_digest(self) -> Digest:
        """Digest of the genesis."""
        return genesis_digest(self.genesis)

    @property
    def attestation_digest(self) -> Digest:
        """Digest of the attestation."""
        return attestation_digest(self.statement)

    def root_after(self, step: int) -> StateRoot:
        """The recorded roots of the state after ``step`` steps, a boundary."""
        return root_after(self.log, self.genesis.spec, step)

    @functools.cached_property
    def carrying(self) -> Carrying:
        """What errors of optimizers' moments will do, by the declaration and the log.

        Raises:
            IntegrityError: the log records learning rates of other groups than are declared.
        """
        return Carrying(self.genesis.spec.declaration, self.log.intervals)

    @property
    def r(self) -> bytes:
        """The opened secret."""
        return bytes.fromhex(self.secret.r)

    @property
    def seed(self) -> bytes:
        """The seed of the run, derived again."""
        beacon = bytes.fromhex(self.statement.predicate.beacon.value)
        return seeds.derive_seed(self.genesis_digest, beacon, self.r)


def passed(name: str, detail: str) -> Check:
    """A check that passed."""
    return Check(name, "passed", detail)


def failed(name: str, detail: str) -> Check:
    """A check that failed."""
    return Check(name, "failed", detail)


def unable(name: str, detail: str) -> Check:
    """A check that the verifier could not run."""
    return Check(name, "unable", detail)


def require(holds: bool, name: str, detail: str, otherwise: str) -> Check:
    """Passed with ``detail`` if it holds, failed with ``otherwise`` if not."""
    return passed(name, detail) if holds else failed(name, otherwise)
