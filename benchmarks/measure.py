"""Takes the measurements: each in a fresh process, one kind after the other, then all of them again."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.cases import Case
from pol.auditor import LocalAuditor
from pol.keys import SigningKey
from pol.messages import EventType, Segment
from pol.profile import Profile, environment
from pol.proof.policy import Challenge, Policy
from pol.proof.report import Verdict
from pol.prover import record
from pol.verifier import verify

ROOT = Path(__file__).parent.parent

FETCH = "fetch in the bare loop"

Say = Callable[[str], None]


class Ratio(msgspec.Struct, frozen=True):
    """A figure of several repetitions."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Ratio:
        """Median and range."""
        return cls(statistics.median(values), min(values), max(values))


class Recording(msgspec.Struct, frozen=True):
    """What one way of recording costs."""

    overhead: Ratio
    """Seconds of a step over those of the bare loop in the same repetition, minus 1."""
    checkpoint_bytes: int
    """Of the last checkpoint's file."""
    audit: Ratio
    """Seconds of replaying all intervals over the bare seconds of their steps."""


class Result(msgspec.Struct, frozen=True):
    """The measurements of one case."""

    case: str
    title: str
    parameters: int
    steps: int
    every: int
    state_bytes: int
    """Content of the last state, without any file format."""
    bare_step: Ratio
    """Seconds of a step of the bare loop."""
    recorder: Recording
    method2021: Recording
    one_off: Ratio
    """Seconds of a recording that do not grow with its steps: dry builds, control run, dataset root, attestation."""
    verify: Ratio
    """Seconds of a whole verification over the bare seconds of the steps that it replays."""
    verify_rest: Ratio
    """Seconds of a verification outside of the replay."""
    parts: dict[str, float]
    """Seconds per interval in each part of the recorder, and in the bare loop's fetching."""


def measure(case: Case, threads: int, repetitions: int, say: Say) -> Result:
    """All measurements of a case."""
    kinds: dict[str, list[dict[str, Any]]] = {"bare": [], "recorder": [], "method2021": []}
    for repetition in range(repetitions):
        with tempfile.TemporaryDirectory(prefix="pol-bench-") as folder:
            once = {
                "bare": lambda: bare(case, threads),
                "recorder": lambda where=Path(folder): recorder(case, threads, where / "proof"),
                "method2021": lambda where=Path(folder): method2021(case, threads, where),
            }
            for kind in _rotated(list(once), repetition):
                say(f"{case.title}: repetition {repetition + 1} of {repetitions}, {kind}")
                kinds[kind].append(once[kind]())
    say(f"{case.title}: parts of the recorder")
    with tempfile.TemporaryDirectory(prefix="pol-bench-") as folder:
        parts = _child("benchmarks.parts", case, threads, folder=folder)
    parts[FETCH] = statistics.median(run["fetching"] for run in kinds["bare"])
    last = max(kinds["bare"][0]["marks"])
    intervals = -(-last // case.every)
    return Result(
        case=case.name,
        title=case.title,
        parameters=kinds["bare"][0]["parameters"],
        steps=last,
        every=case.every,
        state_bytes=kinds["recorder"][0]["state_bytes"],
        bare_step=Ratio.of([per_step(run["marks"]) for run in kinds["bare"]]),
        recorder=_recording(kinds["bare"], kinds["recorder"]),
        method2021=_recording(kinds["bare"], kinds["method2021"]),
        one_off=Ratio.of([run["record"] - last * per_step(run["marks"]) for run in kinds["recorder"]]),
        verify=Ratio.of(
            [
                run["verify"] / (run["audited"] * per_step(plain["marks"]))
                for plain, run in zip(kinds["bare"], kinds["recorder"], strict=True)
            ]
        ),
        verify_rest=Ratio.of([run["verify"] - run["audit"] for run in kinds["recorder"]]),
        parts={name: seconds / intervals for name, seconds in parts.items()},
    )


def _rotated(names: list[str], by: int) -> list[str]:
    return names[by % len(names) :] + names[: by % len(names)]  # so that a drift of the machine favours none


def _recording(plain: list[dict[str, Any]], runs: list[dict[str, Any]]) -> Recording:
    pairs = [(run, per_step(base["marks"])) for base, run in zip(plain, runs, strict=True)]
    return Recording(
        overhead=Ratio.of([per_step(run["marks"]) / step - 1 for run, step in pairs]),
        checkpoint_bytes=runs[0]["checkpoint_bytes"],
        audit=Ratio.of([run["audit"] / (run["audited"] * step) for run, step in pairs]),
    )


def per_step(marks: dict[int, float]) -> float:
    """Seconds per step: the median over the intervals after the first, which bursts of other load hardly move."""
    ordered = sorted(marks.items())
    return statistics.median(
        (later - earlier) / (stop - start) for (start, earlier), (stop, later) in pairwise(ordered)
    )


# -- one run of each kind ---------------------------------------------------------------------------------------


def bare(case: Case, threads: int) -> dict[str, Any]:
    """The plain loop."""
    return _loop("bare", case, threads, "")


def method2021(case: Case, threads: int, folder: Path) -> dict[str, Any]:
    """The plain loop with ``torch.save``, and the replay of all its intervals."""
    run = _loop("save2021", case, threads, str(folder))
    last = max(run["marks"])
    audit = _loop("audit2021", case, threads, str(folder))
    size = (folder / f"model_step_{last}").stat().st_size
    return {**run, "checkpoint_bytes": size, "audit": audit["seconds"], "audited": last}


def recorder(case: Case, threads: int, out: Path) -> dict[str, Any]:
    """A recording as any user makes it, and its verification with all intervals challenged."""
    marks: dict[int, float] = {}

    def progress(phase: str, done: int, _: int | None) -> None:
        if phase == "training" and done:
            marks[done] = time.perf_counter()  # of a boundary's two calls, that of its record comes last

    started = time.perf_counter()
    record(
        case.recipe, out, key=SigningKey.generate(), every=case.every, settings=case.settings,
        profile=Profile(threads=threads), progress=progress,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    last = max(marks)
    checkpoint = max((out / "checkpoints").iterdir())
    with Auditor(case.recipe) as auditor:
        report = verify(out, policy=Policy(challenge=Challenge(strategy="all")), auditor=auditor)
    if report.verdict is not Verdict.ACCEPT:
        raise SystemExit(f"{case.title}: {report.verdict}: {report.reason()}")
    return {
        "marks": {step: when for step, when in marks.items() if step % case.every == 0 or step == last},
        "record": seconds,
        "checkpoint_bytes": checkpoint.stat().st_size,
        "state_bytes": _content_bytes(checkpoint),
        "audit": auditor.seconds,
        "audited": auditor.steps,
        "verify": report.seconds,
    }


class Auditor(LocalAuditor):
    """Notes how long the replay takes, the comparison of what it yields included."""

    seconds = 0.0
    steps = 0

    def replay(self, *args: Any, **options: Any) -> Iterator[EventType]:
        segments: list[Segment] = args[4]
        self.steps += sum(segment.stop - segment.start for segment in segments)
        started = time.perf_counter()
        yield from super().replay(*args, **options)
        self.seconds += time.perf_counter() - started


def _content_bytes(checkpoint: Path) -> int:
    with checkpoint.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return checkpoint.stat().st_size - 8 - header


def _loop(loop: str, case: Case, threads: int, folder: str) -> dict[str, Any]:
    answer = _child("benchmarks.loops", case, threads, folder=folder, loop=loop)
    if "marks" in answer:
        answer["marks"] = {int(step): when for step, when in answer["marks"].items()}
    return answer


def _child(module: str, case: Case, threads: int, **request: str) -> dict[str, Any]:
    """Run a module of this package in a process that gets the environment of a training process."""
    request = {
        "recipe": case.recipe, "settings": case.settings, "every": case.every, "threads": threads, **request
    }  # fmt: skip
    command = [sys.executable, "-m", module, json.dumps(request)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(Profile(threads=threads)), stdout=subprocess.PIPE, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
