"""Asks training processes to probe a recipe, and gathers what they noted."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pol.declaration import Declaration
from pol.errors import ReplayError
from pol.executors.local import Executor, LocalProcess
from pol.messages import Build, Built, Controlled, Failed, Observed, Probe, Probed, Program, Stepped, Traced
from pol.profile import Profile
from pol.prover import Progress
from pol.prover.refusals import control_of
from pol.traces import Observation

SEED = hashlib.sha256(b"pol/doctor/seed").hexdigest()
"""Of all runs that are compared: the same every time, so that an examination can be repeated."""

OTHER_SEED = hashlib.sha256(b"pol/doctor/other seed").hexdigest()


class ProgramFailed(Exception):
    """A training process could not do its job; ``event`` says why."""

    def __init__(self, event: Failed) -> None:
        super().__init__(event.message)
        self.event = event

    @property
    def foreign(self) -> bool:
        """Whether the error is the program's own, or the end of its process."""
        return self.event.foreign or self.event.kind == "Killed"


@dataclass(frozen=True)
class Start:
    """Where a run is entered in the middle."""

    step: int
    checkpoint: Path
    counts: dict[str, int]
    declaration: Declaration
    batches_per_step: int | None


@dataclass
class Run:
    """What one probe noted."""

    probed: Probed
    observations: list[Observation] = field(default_factory=list)
    traced: Traced | None = None

    @property
    def last(self) -> int:
        """The step that was reached."""
        return self.observations[-1].step + 1

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return self.probed.declaration.steps_per_epoch(self.probed.batches_per_step or 1)

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return self.probed.declaration.epochs * self.per_epoch


class Prober:
    """Probes of one recipe."""

    def __init__(
        self, reference: str, settings: dict[str, Any], executor: Executor | None, progress: Progress
    ) -> None:  # fmt: skip
        self._reference, self._settings = reference, settings
        self._executor = executor
        self._progress = progress
        self._phase, self._done, self._total = "", 0, 0

    @contextlib.contextmanager
    def process(self, profile: Profile, *, isolated: bool = False) -> Iterator[Executor]:
        """A fresh process; ``isolated`` like that of a verifier, without a network."""
        if self._executor is not None:
            yield self._executor
        else:
            with LocalProcess(profile, isolated=isolated) as process:
                yield process

    def phase(self, name: str, steps: int) -> None:
        """What follows takes about so many steps."""
        self._phase, self._done, self._total = name, 0, steps
        self._progress(name, 0, steps or None)

    def build(self, process: Executor, profile: Profile, *, again: bool, leaves: Path, salt_key: str = "") -> Built:
        """A dry build; the second is under another seed, and compares samples with those of the first.

        Raises:
            ProgramFailed: it cannot be built.
        """
        job = Build(
            program=self._program(profile, OTHER_SEED if again else SEED), salt_key=salt_key,
            leaves=None if again else str(leaves), check_leaves=str(leaves) if again else None,
        )  # fmt: skip
        for event in process.run(job):
            if isinstance(event, Stepped):
                self._progress("dataset", event.step, event.total)
            elif isinstance(event, Failed):
                raise ProgramFailed(event)
            elif isinstance(event, Built):
                return event
        raise ReplayError("the training process gave no answer")

    def control(self, process: Executor, profile: Profile) -> Controlled:
        """The recorder's control run.

        Raises:
            ProgramFailed: it cannot be made.
        """
        for event in process.run(control_of(self._program(profile, SEED))):
            if isinstance(event, Failed):
                raise ProgramFailed(event)
            if isinstance(event, Controlled):
                return event
        raise ReplayError("the training process gave no answer")

    def run(
        self, process: Executor, profile: Profile, stop: int, *, start: Start | None = None,
        keep: list[int] | None = None, directory: Path | None = None, trace: int | None = None, measure: bool = False,
    ) -> Run:  # fmt: skip
        """Take steps, and gather what is noted.

        Raises:
            ProgramFailed: it cannot take them.
        """
        job = Probe(
            program=self._program(profile, SEED), stop=stop, keep=keep or [], trace=trace, measure=measure,
            directory=None if directory is None else str(directory),
            start=start.step if start else 0,
            checkpoint=str(start.checkpoint) if start else None,
            counts=start.counts if start else {},
            declaration=start.declaration if start else None,
            batches_per_step=start.batches_per_step if start else None,
        )  # fmt: skip
        observations: list[Observation] = []
        traced = probed = None
        for event in process.run(job):
            match event:
                case Observed(observation=observation):
                    observations.append(observation)
                    self._step()
                case Traced():
                    traced = event
                case Probed():
                    probed = event
                case Failed():
                    raise ProgramFailed(event)
        if probed is None or not observations:
            raise ReplayError("the training process gave no answer")
        return Run(probed, observations, traced)

    def _step(self) -> None:
        self._done += 1
        self._progress(self._phase, min(self._done, self._total), self._total or None)

    def _program(self, profile: Profile, seed: str) -> Program:
        return Program(reference=self._reference, configuration=self._settings, seed=seed, profile=profile)
