"""Takes the measurements, one unit after the other, each in processes of its own; what is done is kept in a file.

A unit is one recording with its blocks, the memory of one training, its audit, or the rates of hashing. A run that is
interrupted goes on with the first unit that is missing.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import audits, planned
from benchmarks.cases import BARE, METHOD2021, RECORDER, SHA256, Case, Schedule
from benchmarks.result import Audit, Hashing, Measured, Memory, Planned, Recording, Spread, convert
from pol.keys import SigningKey
from pol.profile import Profile, environment
from pol.prover import record
from pol.render.text import duration

ROOT = Path(__file__).parent.parent
ALTERNATING = Path(__file__).with_name("alternating.py")

AUDITED_EVERY = 10
"""k of the audited recordings: that of the target, and the default of ``pol record``."""

MEMORY_STEPS = 13
"""Steps of the trainings whose memory is measured: three times four of one state each, and the one that closes them."""
MEMORY_KEEP = 4

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What all measurements share."""

    threads: int
    data: Path | None
    quick: bool
    say: Say


@dataclass(frozen=True)
class Unit:
    """One measurement."""

    key: str
    title: str
    seconds: float
    """About how long it takes on two quiet cores."""
    take: Callable[[], Any]


START = 10.0
"""Seconds of builds, control run and start-up of a recording, about."""


def units(case: Case, options: Options) -> list[Unit]:
    """All that is measured of a training."""
    found = [
        Unit("hashing", f"{case.title}: hashing", 12.0, lambda: _hashing(options)),
        *(_recorded(case, schedule, options) for schedule in case.schedules),
        Unit("memory", f"{case.title}: memory", 40 + 40 * case.step, lambda: _memory(case, options)),
    ]
    found.append(Unit("planned", f"{case.title}: what pol plan says", 60.0, lambda: _planned(case, options)))
    if case.audit:
        seconds = START + 4.5 * case.audit * AUDITED_EVERY * case.step * 1.6  # one thread instead of two
        title = f"{case.title}: audit of {case.audit} intervals"
        found.append(Unit("audit", title, seconds, lambda: _audit(case, options)))
    return found


def _recorded(case: Case, schedule: Schedule, options: Options) -> Unit:
    title = f"{case.title}: k = {schedule.every}, {schedule.kept}"
    steps = schedule.warm + schedule.cycles * sum(steps for _, steps in schedule.cycle)
    return Unit(schedule.key, title, START + 1.15 * steps * case.step, lambda: _recording(case, schedule, options))


class Kept:
    """What was measured until now, in a file; ``path`` None: nowhere."""

    def __init__(self, path: Path | None, begun: dict[str, Any], say: Say) -> None:
        self._path, self._begun = path, begun
        self._found: dict[str, Any] = {}
        if path is None or not path.exists():
            return
        saved = json.loads(path.read_text())
        if saved["begun"] != begun:
            say(f"{path} was begun with other options, code or data: measuring everything anew")
            return
        self._found = saved["found"]
        say(f"going on: {len(self._found)} measurements are in {path}")

    def get(self, key: str) -> Any:
        """A measurement, if there is one."""
        return self._found.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep one."""
        self._found[key] = value
        if self._path is not None:
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps({"begun": self._begun, "found": self._found}))
            temporary.replace(self._path)

    def done(self) -> None:
        """All is measured: the file is not needed any more."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def code() -> str:
    """Digest of this package and of the benchmarks: with other code, what was measured is of something else."""
    hasher = hashlib.sha256()
    for file in sorted([*(ROOT / "src").rglob("*.py"), *ALTERNATING.parent.glob("*.py")]):
        hasher.update(file.read_bytes())
    return hasher.hexdigest()


class Pace:
    """How long the rest will take, from how long the units before took."""

    def __init__(self, left: float) -> None:
        self._left, self._expected, self._taken = left, 0.0, 0.0

    def took(self, unit: Unit, seconds: float) -> None:
        """A unit is done."""
        self._left -= unit.seconds
        self._expected += unit.seconds
        self._taken += seconds

    def left(self) -> str:
        """In words."""
        factor = self._taken / self._expected if self._expected else 1.0
        return f"about {duration(self._left * factor)} left"


def measure(cases: list[Case], options: Options, kept: Kept) -> dict[str, dict[str, Any]]:
    """All units of the cases: for each of these, what was measured by key."""
    todo = [(case, unit) for case in cases for unit in units(case, options)]
    pace = Pace(sum(unit.seconds for case, unit in todo if kept.get(f"{case.name} {unit.key}") is None))
    found: dict[str, dict[str, Any]] = {case.name: {} for case in cases}
    for number, (case, unit) in enumerate(todo, start=1):
        key = f"{case.name} {unit.key}"
        if (value := kept.get(key)) is None:
            options.say(f"{number} of {len(todo)}: {unit.title} ({pace.left()})")
            started = time.monotonic()
            value = msgspec.to_builtins(unit.take())
            pace.took(unit, time.monotonic() - started)
            kept.put(key, value)
        found[case.name][unit.key] = value
    return found


def measured(case: Case, made: Any, found: dict[str, Any]) -> Measured:
    """The measurements of a case as one value."""
    recordings = [value for key, value in found.items() if key.startswith("k=")]
    audit = found.get("audit")
    return Measured(
        case=case.name, title=case.title, made=made, recordings=msgspec.convert(recordings, list[Recording]),
        memory=msgspec.convert(found["memory"], Memory), audit=None if audit is None else msgspec.convert(audit, Audit),
        hashing=msgspec.convert(found["hashing"], Hashing), planned=msgspec.convert(found["planned"], Planned),
    )  # fmt: skip


# -- one unit of each kind ----------------------------------------------------------------------------------------


def _settings(case: Case, steps: int, options: Options) -> dict[str, Any]:
    settings = case.lasting(steps)
    return {**settings, "path": str(options.data)} if case.needs_data else settings


def _recording(case: Case, schedule: Schedule, options: Options) -> Recording:
    found = _blocks(case, schedule, schedule.steps + 1, options)
    return convert({**found, "every": schedule.every, "keep": schedule.keep}, Recording)


def _blocks(case: Case, schedule: Schedule, steps: int, options: Options) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="pol-bench-") as folder:
        return _child(
            "recorded", options.threads, recipe=f"{ALTERNATING}:{case.alternating}", folder=folder,
            settings=_settings(case, steps, options), schedule=msgspec.to_builtins(schedule), every=schedule.every,
            keep=schedule.keep,
        )  # fmt: skip


def _planned(case: Case, options: Options) -> Planned:
    longest = max(schedule.steps for schedule in case.schedules) + 1
    audited = _settings(case, case.audit * AUDITED_EVERY, options) if case.audit else None
    return planned.planned(
        case, _settings(case, longest, options), options.threads, audited, AUDITED_EVERY, quick=options.quick
    )


def _memory(case: Case, options: Options) -> Memory:
    alone = Schedule(1, MEMORY_KEEP, [], cycles=0, warm=MEMORY_STEPS - 1)  # a recording that nothing interrupts
    found = _blocks(case, alone, MEMORY_STEPS, options)
    peak = {RECORDER: found["memory"]}
    for arm, loop in ((BARE, "bare"), (METHOD2021, "save2021"), (SHA256, "sha256")):
        with tempfile.TemporaryDirectory(prefix="pol-bench-") as folder:
            peak[arm] = _loop(loop, case, MEMORY_STEPS, 1, options.threads, options, folder)["memory"]
    return Memory(peak=peak, recording=found["recording_memory"])


def _hashing(options: Options) -> Hashing:
    size, repetitions = (2**22, 2) if options.quick else (2**29, 7)
    found = _child("hashing", options.threads, size=size, repetitions=repetitions)
    return convert(found, Hashing)


def _audit(case: Case, options: Options) -> Audit:
    """The same steps in the bare loop with the checkpoints of 2021, recorded, and both audited; bare once more."""
    steps = case.audit * AUDITED_EVERY
    profile = Profile(threads=1)  # two cores are then for two processes
    with tempfile.TemporaryDirectory(prefix="pol-bench-") as name:
        folder = Path(name)
        plain = _loop("save2021", case, steps, AUDITED_EVERY, 1, options, name)
        times: list[float] = []
        began = time.perf_counter()
        record(
            case.recipe, folder / "proof", key=SigningKey.generate(), every=AUDITED_EVERY, profile=profile,
            settings=_settings(case, steps, options),
            progress=lambda phase, *_: times.append(time.perf_counter()) if phase == "training" else None,
        )  # fmt: skip
        one_off = (times[0] - began) + (time.perf_counter() - times[-1])
        verify, inner = {}, {}
        for jobs in (1, 2) if audits.several() else (1,):
            started = time.perf_counter()
            inner[str(jobs)] = _child("audits", 1, proof=str(folder / "proof"), recipe=case.recipe, jobs=jobs)
            verify[str(jobs)] = time.perf_counter() - started
        started = time.perf_counter()
        _loop("audit2021", case, steps, AUDITED_EVERY, 1, options, name)
        method2021 = time.perf_counter() - started
        again = _loop("bare", case, -(-steps // 4), AUDITED_EVERY, 1, options, name)
    intervals = [*plain["intervals"][1:], *again["intervals"][1:]]  # the first of each asks for memory
    return Audit(
        every=AUDITED_EVERY, intervals=-(-plain["steps"] // AUDITED_EVERY), steps=plain["steps"],
        bare=Spread.of(intervals), verify=verify, inner=inner, method2021=method2021, one_off=one_off,
    )  # fmt: skip


def _loop(
    loop: str, case: Case, steps: int, every: int, threads: int, options: Options, folder: str
) -> dict[str, Any]:  # fmt: skip
    settings = _settings(case, steps, options)
    return _child("loops", threads, loop=loop, recipe=case.recipe, settings=settings, every=every, folder=folder)


def _child(module: str, threads: int, **request: Any) -> dict[str, Any]:
    """Run a module of this package in a process that gets the environment of a training process."""
    command = [sys.executable, "-m", f"benchmarks.{module}", json.dumps({**request, "threads": threads})]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(Profile(threads=threads)), stdout=subprocess.PIPE, text=True,
        start_new_session=True,  # an interrupt comes to us alone, and we end it
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"benchmarks.{module} failed (exit code {done.returncode}); what it said stands above")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
