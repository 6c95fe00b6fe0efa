"""What the attacks are made on: honest proofs for each rule, two keys, and the distance of independent runs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pol.bench.arena import RULES, Progress, Rule, Setting, honest_proof
from pol.bench.suite import FRACTION
from pol.calibrator import calibrate, read_calibration
from pol.executors.local import Executor
from pol.keys import SigningKey
from pol.profile import Profile
from pol.proof.calibration import reference_of
from pol.proof.policy import Metric
from pol.prover import record
from pol.store import CHECKPOINTS
from pol.version import __version__

EVERY = 1
"""k. Each step stands alone: a forger finds least to hide in, and rule tolerance asks for it (docs/which-rule.md)."""

RUNS = 3
"""Runs from which d_ref is measured: the fewest whose pairs show any spread."""

METRICS: tuple[Metric, ...] = ("l1", "l2", "linf", "cos")


@dataclass(frozen=True)
class Training:
    """What is to be attacked, before it was trained."""

    folder: Path
    """Will hold the honest proofs, by rule, and holds the keys."""
    reference: Path
    """The calibration file: made if it is not there."""
    recipe: str
    settings: dict[str, Any]
    """Constructor arguments of the recipe."""
    budget: float
    draws: int


@dataclass(frozen=True)
class Prepared:
    """A setting, and what the honest training took."""

    setting: Setting
    steps: int
    seconds: float
    bytes: int


Part = Literal["calibration", Rule]
PARTS: tuple[Part, ...] = ("calibration", *RULES)
"""What is prepared, each by itself: the distance of independent runs, and an honest proof for each rule."""

FORGERS = ("prover", "thief")


def begin(training: Training) -> None:
    """Make the folder of a training, which is new, and the keys in it."""
    training.folder.mkdir(parents=True)
    for name in FORGERS:
        SigningKey.generate().save(training.folder / f"{name}.pem")


def prepare(training: Training, part: Part, executor: Executor, profile: Profile, tell: Progress) -> float:
    """Make one of ``PARTS``, perhaps not for the first time; the seconds that it took.

    Raises:
        PolError: it cannot be recorded.
    """
    started = time.monotonic()
    key = SigningKey.load(training.folder / f"{FORGERS[0]}.pem")
    if part != "calibration":
        out = honest_proof(training.folder, part)
        shutil.rmtree(out, ignore_errors=True)  # half a proof, if the process that made it was killed
        record(
            training.recipe, out, key=key, every=EVERY, keep=1,
            settings=training.settings, profile=profile, executor=executor, rule=part, progress=tell,
        )  # fmt: skip
    elif not training.reference.exists():
        calibrate(
            training.recipe, training.reference, key=key, runs=RUNS, settings=training.settings, profile=profile,
            executor=executor, noise=False, progress=tell,
        )  # fmt: skip
    return time.monotonic() - started


def prepared(training: Training, profile: Profile, seconds: dict[Part, float]) -> Prepared:
    """What has become of all ``PARTS``, which took so many seconds.

    Raises:
        PolError: the calibration cannot be read.
    """
    measured = reference_of(read_calibration(training.reference).calibration)
    delta = {metric: FRACTION * float(measured[metric]) for metric in METRICS}
    out = honest_proof(training.folder, "exact")
    steps = max(int(file.stem) for file in (out / CHECKPOINTS).iterdir())
    gradients = _gradients(out, steps)
    setting = Setting(training.folder, training.recipe, profile, delta, gradients, training.budget, training.draws)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    took = min(seconds[rule] for rule in RULES)  # the other may have waited until its process was ready
    return Prepared(setting, steps, took, size)


def _gradients(proof: Path, steps: int) -> int:
    from pol.attacks.forger import Forger

    return steps * Forger(proof).genesis.spec.batches_per_step


def environment(jobs: int) -> dict[str, str]:
    """Where a bench ran."""
    return {
        "pol": __version__,
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "processes": str(jobs),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
