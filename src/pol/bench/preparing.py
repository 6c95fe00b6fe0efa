"""What the attacks are made on: honest proofs for each rule, two keys, and the distance of independent runs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pol.bench.arena import Progress, Setting
from pol.bench.suite import FRACTION
from pol.calibrator import calibrate, read_calibration
from pol.executors.local import LocalProcess
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

RULES: tuple[Literal["exact", "tolerance"], ...] = ("exact", "tolerance")
METRICS: tuple[Metric, ...] = ("l1", "l2", "linf", "cos")


@dataclass(frozen=True)
class Prepared:
    """A setting, and what the honest training took."""

    setting: Setting
    steps: int
    seconds: float
    bytes: int


def prepare(
    folder: Path, recipe: str, settings: dict[str, Any], budget: float, draws: int, reference: Path, tell: Progress
) -> Prepared:
    """Train what is to be attacked; ``reference`` is the calibration file, which is made if it is not there."""
    profile = Profile(threads=1)
    keys = {name: SigningKey.generate() for name in ("prover", "thief")}
    for name, key in keys.items():
        key.save(folder / f"{name}.pem")
    honest = {rule: folder / f"honest-{rule}" for rule in RULES}
    with LocalProcess(profile) as process:
        if not reference.exists():
            calibrate(
                recipe, reference, key=keys["prover"], runs=RUNS, settings=settings, profile=profile,
                executor=process, noise=False, progress=tell,
            )  # fmt: skip
        seconds = {}
        for rule, out in honest.items():
            started = time.monotonic()
            record(
                recipe, out, key=keys["prover"], every=EVERY, keep=1, settings=settings, profile=profile,
                executor=process, rule=rule, progress=tell,
            )  # fmt: skip
            seconds[rule] = time.monotonic() - started
    measured = reference_of(read_calibration(reference).calibration)
    delta = {metric: FRACTION * float(measured[metric]) for metric in METRICS}
    out = honest["exact"]
    steps = max(int(file.stem) for file in (out / CHECKPOINTS).iterdir())
    setting = Setting(folder, recipe, profile, delta, _gradients(out, steps), budget, draws)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return Prepared(setting, steps, seconds["exact"], size)


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
