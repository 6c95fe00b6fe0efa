"""The auditor: the one door between deciding and training.

It has processes of the recorded profile take steps again, and passes on what they yield. It judges nothing.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from pol import canonical
from pol.digest import Digest
from pol.errors import ReplayError, UsageError
from pol.executors.local import Executor, Processes
from pol.executors.sharing import deal, in_order
from pol.interval import Rates
from pol.messages import (
    Build,
    Built,
    Control,
    Controlled,
    EventType,
    Failed,
    Finished,
    JobType,
    Program,
    Recorded,
    Registered,
    Replay,
    Segment,
    Trial,
    Tried,
    TrustingReplay,
)  # fmt: skip
from pol.profile import Profile
from pol.replay.recipe import Recipe, reference_of, split_reference
from pol.replay.sources import local_sources


@dataclass(frozen=True)
class Unlike:
    """What is wanted otherwise of a replay (``messages.Replay``): a verifier redraws, the rest is for a calibration."""

    perturbed: Literal["float64", "split"] | None = None
    factors: dict[str, float] = field(default_factory=dict)
    redrawn: bytes | None = None


class Auditor(Protocol):
    """What a verification asks of whoever can train."""

    name: str
    """Class name of the verifier's recipe."""
    settings: dict[str, Any]
    """Constructor arguments that the verifier insists on, tagged; those it leaves out are the registered ones."""

    def sources(self) -> dict[str, Digest]:
        """The verifier's own recipe: module names to digests."""

    def prepare(self, profile: Profile) -> None:
        """Get ready for jobs of this profile, which may come; whatever goes wrong is said when they do."""

    def control(self, profile: Profile, configuration: dict[str, Any], seed: bytes, steps: int) -> Controlled | Failed:
        """The control run, here."""

    def trial(
        self, profile: Profile, configuration: dict[str, Any], seed: bytes, steps: int, counts: dict[str, int]
    ) -> Tried | Failed:
        """First steps under a seed of the auditor's own, for what they show; schedules stepped to ``counts``."""

    def build(
        self, profile: Profile, configuration: dict[str, Any], seed: bytes, declared: int | None = None
    ) -> Built | Failed:
        """The recipe built under a seed; its first weights under a declared one, if there is one."""

    def build_twice(
        self, profile: Profile, configuration: dict[str, Any], *, declared: bool = False, reseeded: bool = False
    ) -> Built | Failed:
        """The recipe built under two fresh seeds of the auditor's own, compared.

        Args:
            profile: Flags of the process.
            configuration: Constructor arguments, tagged.
            declared: Under seeds as a claimant may declare them.
            reseeded: With other numbers in place of those under which the recipe seeds its generators.
        """

    def own_builds(
        self, profile: Profile, configuration: dict[str, Any], count: int, folder: Path
    ) -> list[Path] | Failed:
        """The recipe built under ``count`` further fresh seeds of the auditor's own, as checkpoint files."""

    def replay(
        self,
        profile: Profile,
        configuration: dict[str, Any],
        seed: bytes,
        registered: Registered,
        segments: list[Segment],
        salt_key: bytes,
        *,
        declared: int | None = None,
        order: Path | None = None,
        save: Path | None = None,
        saved: list[int] | None = None,
        unlike: Unlike | None = None,
    ) -> Iterator[EventType]:
        """Take the steps of segments again, in the order of a file if there is one.

        The states after the steps ``saved``, or after every interval, are written into the folder ``save``.
        """

    def trusting_replay(
        self,
        profile: Profile,
        configuration: dict[str, Any],
        seed: bytes,
        segments: list[Segment],
        rates: list[list[Rates]],
        *,
        batches_per_step: int,
        order: Path | None,
        save: Path,
    ) -> Iterator[EventType]:
        """Take steps again and believe what states and ``rates`` say; for procedure ``paper-2021`` alone."""


class LocalAuditor:
    """Audits on this machine, with one process per profile, or several that share replays. A context manager.

    Args:
        recipe: What the processes run.
        settings: Constructor arguments that the verifier insists on.
        executor: What takes the place of the processes, for tests and debugging.
        jobs: How many processes share a replay; each holds up to two states. What stops a replay is looked into by one
            alone, and so is everything after it: several may have wanted more memory than there is.
        processes: Taken instead of its own, and left running: for auditors of recipes that are trusted alike, one at a
            time.

    Raises:
        UsageError: fewer than one job.
    """

    def __init__(
        self, recipe: Recipe | str, settings: dict[str, Any] | None = None, executor: Executor | None = None,
        *, jobs: int = 1, processes: Processes | None = None,
    ) -> None:  # fmt: skip
        if jobs < 1:
            raise UsageError(f"jobs={jobs}: at least one process takes the steps again")
        given = recipe.configuration if isinstance(recipe, Recipe) else settings or {}
        self._reference = reference_of(recipe) if isinstance(recipe, Recipe) else recipe
        self.name = split_reference(self._reference)[1]
        self.settings = {name: canonical.tag(value, name) for name, value in given.items()}
        self._executor = executor
        self._jobs = jobs
        self._processes, self._own = processes or Processes(), processes is None

    def __enter__(self) -> LocalAuditor:
        return self

    def __exit__(self, *_: object) -> None:
        if self._own:
            self._processes.close()

    def prepare(self, profile: Profile) -> None:
        """See ``Auditor``: processes start, which takes them seconds, and are waited for when they get a job."""
        if self._executor is None:
            for process in self._processes.some(profile, self._jobs):
                with contextlib.suppress(UsageError):
                    process.start()

    def _run(self, job: JobType) -> Iterator[EventType]:
        if self._executor is not None:
            return self._executor.run(job)
        return self._processes.of(job.program.profile).run(job)

    def _shared(self, job: Replay) -> Iterator[EventType]:
        """A replay by as many processes as there may be, as one of them would tell it."""
        shares, reached, whole = deal(job.segments, self._jobs), 0, False
        if len(shares) <= 1:
            yield from self._run(job)
            return
        given = self._executor or self._processes.some(job.program.profile, len(shares))
        try:
            for event in in_order(job, shares, given):
                reached = event.interval.stop if isinstance(event, Recorded) else reached
                whole = isinstance(event, Finished) and reached == job.segments[-1].stop
                yield event
        finally:
            self._jobs = self._jobs if whole else 1

    def _program(
        self, profile: Profile, configuration: dict[str, Any], seed: bytes, declared: int | None = None
    ) -> Program:
        return Program(
            reference=self._reference, configuration=configuration, seed=seed.hex(), profile=profile,
            declared_seed=declared,
        )  # fmt: skip

    def sources(self) -> dict[str, Digest]:
        """See ``Auditor``."""
        return local_sources(self._reference)

    def control(self, profile: Profile, configuration: dict[str, Any], seed: bytes, steps: int) -> Controlled | Failed:
        """See ``Auditor``."""
        job = Control(program=self._program(profile, configuration, seed), steps=steps)
        return next(event for event in self._run(job) if isinstance(event, Controlled | Failed))

    def trial(
        self, profile: Profile, configuration: dict[str, Any], seed: bytes, steps: int, counts: dict[str, int]
    ) -> Tried | Failed:
        """See ``Auditor``."""
        job = Trial(program=self._program(profile, configuration, seed), steps=steps, counts=counts)
        return next(event for event in self._run(job) if isinstance(event, Tried | Failed))

    def build(
        self, profile: Profile, configuration: dict[str, Any], seed: bytes, declared: int | None = None
    ) -> Built | Failed:
        """See ``Auditor``."""
        job = Build(program=self._program(profile, configuration, seed, declared))
        return next(event for event in self._run(job) if isinstance(event, Built | Failed))

    def build_twice(
        self, profile: Profile, configuration: dict[str, Any], *, declared: bool = False, reseeded: bool = False
    ) -> Built | Failed:
        """See ``Auditor``."""
        own = [secrets.randbelow(2**32) if declared else None for _ in range(2)]
        programs = [
            msgspec.structs.replace(
                self._program(profile, configuration, secrets.token_bytes(32), seed), reseeded=reseeded
            )
            for seed in own
        ]
        with tempfile.TemporaryDirectory(prefix="pol-") as folder:
            path = str(Path(folder) / "built.safetensors")
            first = Build(program=programs[0], save=path)
            second = Build(program=programs[1], compare=path)
            result: Built | Failed | None = None
            for job in (first, second):
                result = next(event for event in self._run(job) if isinstance(event, Built | Failed))
                if isinstance(result, Failed):
                    return result
        if result is None:
            raise ReplayError("the training process gave no answer")
        return result

    def own_builds(
        self, profile: Profile, configuration: dict[str, Any], count: int, folder: Path
    ) -> list[Path] | Failed:
        """See ``Auditor``."""
        begin = len(list(folder.glob("own-*")))
        paths = [folder / f"own-{number}.safetensors" for number in range(begin, begin + count)]
        for path in paths:
            program = self._program(profile, configuration, secrets.token_bytes(32))
            job = Build(program=program, save=str(path))
            result = next(event for event in self._run(job) if isinstance(event, Built | Failed))
            if isinstance(result, Failed):
                return result
        return paths

    def replay(
        self,
        profile: Profile,
        configuration: dict[str, Any],
        seed: bytes,
        registered: Registered,
        segments: list[Segment],
        salt_key: bytes,
        *,
        declared: int | None = None,
        order: Path | None = None,
        save: Path | None = None,
        saved: list[int] | None = None,
        unlike: Unlike | None = None,
    ) -> Iterator[EventType]:
        """See ``Auditor``."""
        program, other = self._program(profile, configuration, seed, declared), unlike or Unlike()
        job = Replay(
            program=msgspec.structs.replace(program, order=None if order is None else str(order)),
            registered=registered, segments=segments, salt_key=salt_key.hex(),
            save=None if save is None else str(save), saved=saved, perturbed=other.perturbed, factors=other.factors,
            redrawn=None if other.redrawn is None else other.redrawn.hex(),
        )  # fmt: skip
        with contextlib.closing(self._shared(job)) as events:  # type: ignore[type-var]
            yield from events

    def trusting_replay(
        self,
        profile: Profile,
        configuration: dict[str, Any],
        seed: bytes,
        segments: list[Segment],
        rates: list[list[Rates]],
        *,
        batches_per_step: int,
        order: Path | None,
        save: Path,
    ) -> Iterator[EventType]:
        """See ``Auditor``."""
        program = self._program(profile, configuration, seed)
        job = TrustingReplay(
            program=msgspec.structs.replace(program, order=None if order is None else str(order)),
            batches_per_step=batches_per_step, segments=segments, rates=rates, save=str(save),
        )  # fmt: skip
        with contextlib.closing(self._run(job)) as events:  # type: ignore[type-var]
            yield from events
