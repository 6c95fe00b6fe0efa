"""The auditor: the one door between deciding and training.

It has processes of the recorded profile take steps again, and passes on what they yield. It judges nothing.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from pol import canonical
from pol.digest import Digest
from pol.errors import ReplayError
from pol.executors.local import Executor, LocalProcess
from pol.messages import Build, Built, Control, Controlled, EventType, Failed, Program, Registered, Replay, Segment
from pol.profile import Profile
from pol.replay.recipe import Recipe, reference_of, split_reference
from pol.replay.sources import local_sources


class Auditor(Protocol):
    """What a verification asks of whoever can train."""

    name: str
    """Class name of the verifier's recipe."""
    settings: dict[str, Any]
    """Constructor arguments that the verifier insists on, tagged; those it leaves out are the registered ones."""

    def sources(self) -> dict[str, Digest]:
        """The verifier's own recipe: module names to digests."""

    def control(self, profile: Profile, configuration: dict[str, Any], seed: bytes, steps: int) -> Controlled | Failed:
        """The control run, here."""

    def build(self, profile: Profile, configuration: dict[str, Any], seed: bytes) -> Built | Failed:
        """The recipe built under a seed."""

    def build_twice(self, profile: Profile, configuration: dict[str, Any]) -> Built | Failed:
        """The recipe built under two fresh seeds of the auditor's own, compared."""

    def replay(
        self,
        profile: Profile,
        configuration: dict[str, Any],
        seed: bytes,
        registered: Registered,
        segments: list[Segment],
        salt_key: bytes,
    ) -> Iterator[EventType]:
        """Take the steps of segments again."""


class LocalAuditor:
    """Audits on this machine, with one process per profile. A context manager."""

    def __init__(
        self, recipe: Recipe | str, settings: dict[str, Any] | None = None, executor: Executor | None = None
    ) -> None:
        given = recipe.configuration if isinstance(recipe, Recipe) else settings or {}
        self._reference = reference_of(recipe) if isinstance(recipe, Recipe) else recipe
        self.name = split_reference(self._reference)[1]
        self.settings = {name: canonical.tag(value, name) for name, value in given.items()}
        self._executor = executor
        self._processes: dict[Profile, LocalProcess] = {}

    def __enter__(self) -> LocalAuditor:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.close()
        self._processes.clear()

    def _run(self, job: Build | Control | Replay) -> Iterator[EventType]:
        profile = job.program.profile
        if self._executor is not None:
            return self._executor.run(job)
        if profile not in self._processes:
            self._processes[profile] = LocalProcess(profile, isolated=True)
        return self._processes[profile].run(job)

    def _program(self, profile: Profile, configuration: dict[str, Any], seed: bytes) -> Program:
        return Program(reference=self._reference, configuration=configuration, seed=seed.hex(), profile=profile)

    def sources(self) -> dict[str, Digest]:
        """See ``Auditor``."""
        return local_sources(self._reference)

    def control(self, profile: Profile, configuration: dict[str, Any], seed: bytes, steps: int) -> Controlled | Failed:
        """See ``Auditor``."""
        job = Control(program=self._program(profile, configuration, seed), steps=steps)
        return next(event for event in self._run(job) if isinstance(event, Controlled | Failed))

    def build(self, profile: Profile, configuration: dict[str, Any], seed: bytes) -> Built | Failed:
        """See ``Auditor``."""
        job = Build(program=self._program(profile, configuration, seed))
        return next(event for event in self._run(job) if isinstance(event, Built | Failed))

    def build_twice(self, profile: Profile, configuration: dict[str, Any]) -> Built | Failed:
        """See ``Auditor``."""
        with tempfile.TemporaryDirectory(prefix="pol-") as folder:
            path = str(Path(folder) / "built.safetensors")
            first = Build(program=self._program(profile, configuration, secrets.token_bytes(32)), save=path)
            second = Build(program=self._program(profile, configuration, secrets.token_bytes(32)), compare=path)
            result: Built | Failed | None = None
            for job in (first, second):
                result = next(event for event in self._run(job) if isinstance(event, Built | Failed))
                if isinstance(result, Failed):
                    return result
        if result is None:
            raise ReplayError("the training process gave no answer")
        return result

    def replay(
        self,
        profile: Profile,
        configuration: dict[str, Any],
        seed: bytes,
        registered: Registered,
        segments: list[Segment],
        salt_key: bytes,
    ) -> Iterator[EventType]:
        """See ``Auditor``."""
        job = Replay(
            program=self._program(profile, configuration, seed), registered=registered, segments=segments,
            salt_key=salt_key.hex(),
        )  # fmt: skip
        with contextlib.closing(self._run(job)) as events:  # type: ignore[type-var]
            yield from events
