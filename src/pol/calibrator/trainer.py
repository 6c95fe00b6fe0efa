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

BETWEEN = 1000
"""Steps, about, between two states from which an interrupted run goes on: they cost a second look, and room."""

FEWEST, MOST, PART = 8, 32, 28
"""How many windows are replayed where no number is asked for: one of ``PART``, since 14 replays of these (once as it
was, eight honest and five cheats at most) are half a run; at least ``FEWEST``, of which half are the chaotic first
ones; and at most ``MOST``, since their states take room."""


def ladder(most: int, steps: int) -> list[int]:
    """The rungs: 1, 2, 5, 10, 20, 50, … and ``most`` itself, as far as a run has steps."""
    usual = (digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5))
    return sorted({rung for rung in usual if rung < min(most, steps)} | {min(most, steps)})


def chosen(count: int, wanted: int | None = None) -> list[int]:
    """Which of ``count`` windows are replayed: half of them the first, the others spread evenly to the last.

    Early training is the chaotic part (attack study, section 1).
    """
    size = min(count, wanted or min(MOST, max(FEWEST, count // PART)))
    first = leading(size)
    rest = size - first
    return [*range(first), *(first + (count - first) * place // rest - 1 for place in range(1, rest + 1))]


def leading(size: int) -> int:
    """How many of ``size`` chosen windows are the first of the run."""
    return size - size // 2


@dataclass(frozen=True)
class Run:
    """A finished run: what it was, its last state, and those from which it is to be replayed."""

    folder: Path
    genesis: Genesis
    statement: Statement
    starts: list[int]
    """Steps before which replays begin; none where the run is compared only."""

    @property
    def last(self) -> Checkpoint:
        """The state after the last step."""
        return self.state(self.genesis.spec.steps)

    def state(self, step: int) -> Checkpoint:
        """The state after a step, one of ``steps``."""
        return Checkpoint(ProofDirectory(self.folder), checkpoint_path(step))

    @property
    def steps(self) -> set[int]:
        """The steps whose states are kept."""
        return {self.genesis.spec.steps, *self.starts}


class Trainer:
    """Trains the runs of one calibration, or finds them trained."""

    def __init__(
        self, reference: str, settings: dict[str, Any] | None, work: Path, most: int, profile: Profile | None,
        executor: Executor | None, noise: bool, intervals: int | None = None,
    ) -> None:  # fmt: skip
        self._reference, self._settings, self._work, self._most = reference, settings, work, most
        self._noise, self._intervals = noise, intervals
        self._wanted, self._executor = profile, executor
        self._key: SigningKey | None = None

    def run(self, number: int, progress: Progress) -> Run:
        """A finished run, trained as far as it is not. The first is recorded step by step: of it, noise is measured."""
        folder, measured = self._work / f"run-{number}", self._noise and not number
        every, keep = (1, self._most) if measured else (self._most, max(1, BETWEEN // self._most))
        if (folder / GENESIS).exists():
            self._check_same(folder, every, keep, measured)
            spec = _genesis(folder).spec
            every, keep = spec.every, spec.keep
        if not (folder / ATTESTATION).exists():
            record(
                self._reference,
                folder,
                key=self._throwaway(),
                every=every,
                keep=keep,
                resume=(folder / GENESIS).exists(),
                settings=self._settings,
                profile=self._profile(),
                progress=progress,
                executor=self._executor,
            )
        found = _finished(folder, self._most if measured else None, self._intervals)
        needed = {checkpoint_path(step) for step in found.steps}
        for file in (folder / CHECKPOINTS).iterdir():  # several trainings take room
            if f"{CHECKPOINTS}/{file.name}" not in needed:
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

    def _check_same(self, folder: Path, every: int, keep: int, measured: bool) -> None:
        """Refuse a run that an earlier call began and that is not of this calibration."""
        genesis = _genesis(folder)
        again = f"remove {self._work} to begin anew"
        if genesis.recipe.name != split_reference(self._reference)[1]:
            raise UsageError(f"{folder} is of the recipe {genesis.recipe.name}: {again}")
        if genesis.recipe.digest != recipe_digest(local_sources(self._reference)):
            raise UsageError(f"the recipe has changed since {folder} was begun: {again}")
        spec = genesis.spec
        # A run that was recorded for measuring can be compared all the same, but not the other way round.
        if spec.every != every and (measured or spec.every != 1):
            raise UsageError(
                f"{folder} was trained to be compared only (--runs-only): remove {folder} to train it anew"
                if measured
                else f"{folder} was begun with max_every={spec.every}: {again}"
            )
        if measured and spec.keep != keep:
            raise UsageError(f"{folder} was begun with max_every={spec.keep}: {again}")
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


def _finished(folder: Path, most: int | None, intervals: int | None) -> Run:
    """A finished run, its states compared with what was attested: a disk may fail between two calls."""
    genesis = _genesis(folder)
    statement = _payload(folder, ATTESTATION, Statement, ATTESTATION_TYPE, MAX_ATTESTATION)
    steps = genesis.spec.steps
    starts = [] if most is None else [window * most for window in chosen(-(-steps // most), intervals)]
    run = Run(folder, genesis, statement, starts)
    attested = {subject.name: f"sha256:{subject.digest.sha256}" for subject in statement.subject}
    for step in sorted(run.steps):
        name = checkpoint_path(step)
        try:
            whole = ProofDirectory(folder).sha256(name) == attested.get(name)
        except FormatError:
            whole = False
        if not whole:
            at = "the run ended in" if step == steps else f"the run held after {step} steps"
            hint = " (with fewer intervals its states were not needed)" if most is not None else ""
            raise IntegrityError(f"{folder / name} is not what {at}{hint}: remove {folder} to train it anew")
    return run
