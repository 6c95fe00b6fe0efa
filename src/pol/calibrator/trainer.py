"""The runs of a calibration: trained, taken up again, or found trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pol import canonical
from pol.checkpoint import Checkpoint
from pol.errors import FormatError, IntegrityError, UsageError
from pol.executors.local import Executor
from pol.keys import SigningKey
from pol.profile import Profile
from pol.proof.attestation import MAX_ATTESTATION, Statement
from pol.proof.attestation import PAYLOAD_TYPE as ATTESTATION_TYPE
from pol.proof.envelope import parse_envelope
from pol.proof.genesis import MAX_GENESIS, Genesis, recipe_digest
from pol.proof.genesis import PAYLOAD_TYPE as GENESIS_TYPE
from pol.prover import Progress, available_cores, record
from pol.replay.recipe import split_reference
from pol.replay.sources import local_sources
from pol.store import ATTESTATION, CHECKPOINTS, GENESIS, ProofDirectory, checkpoint_path

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A finished run: what it was, and its last state."""

    folder: Path
    genesis: Genesis
    statement: Statement

    @property
    def last(self) -> Checkpoint:
        """The state after the last step."""
        return Checkpoint(ProofDirectory(self.folder), checkpoint_path(self.genesis.spec.steps))


class Trainer:
    """Trains the runs of one calibration, or finds them trained."""

    def __init__(
        self, reference: str, settings: dict[str, Any] | None, work: Path, every: int, profile: Profile | None,
        executor: Executor | None,
    ) -> None:  # fmt: skip
        self._reference, self._settings, self._work, self._every = reference, settings, work, every
        self._wanted, self._executor = profile, executor
        self._key: SigningKey | None = None

    def run(self, number: int, progress: Progress) -> Run:
        """A finished run, trained as far as it is not."""
        folder = self._work / f"run-{number}"
        if (folder / GENESIS).exists():
            self._check_same(folder)
        if not (folder / ATTESTATION).exists():
            record(
                self._reference,
                folder,
                key=self._throwaway(),
                every=self._every,
                resume=(folder / GENESIS).exists(),
                settings=self._settings,
                profile=self._profile(),
                progress=progress,
                executor=self._executor,
            )
        found = _finished(folder)
        for file in (folder / CHECKPOINTS).iterdir():  # several trainings take room
            if f"{CHECKPOINTS}/{file.name}" != checkpoint_path(found.genesis.spec.steps):
                file.unlink()
        return found

    def _throwaway(self) -> SigningKey:
        """The key of the runs: nothing that they claim is to be used, so nobody's own key signs it."""
        path = self._work / "key.pem"
        if self._key is None and not path.exists():
            SigningKey.generate().save(path)
        self._key = self._key or SigningKey.load(path)
        return self._key

    def _profile(self) -> Profile:
        """The profile of all runs: the one asked for, else that of the first run."""
        if self._wanted is None:
            first = self._work / "run-0"
            begun = (first / GENESIS).exists()
            self._wanted = _genesis(first).profile if begun else Profile(threads=available_cores())
        return self._wanted

    def _check_same(self, folder: Path) -> None:
        """Refuse a run that an earlier call began and that is not of this calibration."""
        genesis = _genesis(folder)
        again = f"remove {self._work} to begin anew"
        if genesis.recipe.name != split_reference(self._reference)[1]:
            raise UsageError(f"{folder} is of the recipe {genesis.recipe.name}: {again}")
        if genesis.recipe.digest != recipe_digest(local_sources(self._reference)):
            raise UsageError(f"the recipe has changed since {folder} was begun: {again}")
        for name, value in (self._settings or {}).items():
            if genesis.recipe.configuration.get(name) != canonical.tag(value, name):
                raise UsageError(f"{folder} was begun with another {name}: {again}")
        if genesis.profile != self._profile():
            raise UsageError(f"{folder} was begun with another profile ({genesis.profile.threads} threads): {again}")


def _genesis(folder: Path) -> Genesis:
    return _payload(folder, GENESIS, Genesis, GENESIS_TYPE, MAX_GENESIS)


def _payload(folder: Path, name: str, kind: type[T], payload_type: str, limit: int) -> T:
    data = ProofDirectory(folder).read(name, 2 * limit)
    envelope = parse_envelope(data, what=name, payload_type=payload_type, limit=limit)
    return canonical.decode(envelope.payload_bytes(name), kind, what=name, limit=limit)


def _finished(folder: Path) -> Run:
    """A finished run, its last state compared with what was attested: a disk may fail between two calls."""
    genesis = _genesis(folder)
    statement = _payload(folder, ATTESTATION, Statement, ATTESTATION_TYPE, MAX_ATTESTATION)
    name = checkpoint_path(genesis.spec.steps)
    attested = {subject.name: f"sha256:{subject.digest.sha256}" for subject in statement.subject}
    try:
        whole = ProofDirectory(folder).sha256(name) == attested.get(name)
    except FormatError:
        whole = False
    if not whole:
        raise IntegrityError(f"{folder / name} is not what the run ended in: remove {folder} to train it anew")
    return Run(folder, genesis, statement)
