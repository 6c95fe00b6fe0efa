"""The calibrator: trains one recipe several times and measures how far apart independent runs end (d_ref).

Of one run it takes steps again on other platforms, too, which is honest noise, and with small lies, which are
forgeries. For rule ``tolerance`` it recommends limits and a length of intervals, if there is room for any between the
two.

Each run is recorded like any other, under a fresh seed and a key that is thrown away, in a folder beside the result. So
an interrupted calibration goes on where it was, and what a run ended in can be checked before it is compared.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pol import canonical
from pol.calibrator.measure import measured
from pol.calibrator.noise import NoiseMeter
from pol.calibrator.summing import measured_noise
from pol.calibrator.trainer import Trainer
from pol.digest import Digest
from pol.errors import UsageError
from pol.executors.local import Executor
from pol.keys import SigningKey, fingerprint, verify_envelope
from pol.profile import Profile
from pol.proof.calibration import (
    MAX_CALIBRATION,
    MAX_RUNS,
    PAYLOAD_TYPE,
    Calibration,
    calibration_digest,
    check_calibration,
    parse_calibration,
)  # fmt: skip
from pol.prover import Progress
from pol.replay.recipe import Recipe, reference_of, split_reference
from pol.store import ProofDirectory, write_atomically

__all__ = ["MAX_EVERY", "RUNS", "SignedCalibration", "calibrate", "read_calibration"]

RUNS = 3
"""Runs where none are asked for: the fewest whose pairs show any spread."""

MAX_EVERY = 10
"""Longest interval that is measured where nothing else is asked for. The preset ``tolerance`` takes single steps; a
policy of one's own may take more, where a calibration finds a gap."""


@dataclass(frozen=True)
class SignedCalibration:
    """A calibration file whose signature and numbers hold."""

    calibration: Calibration
    digest: Digest
    """Names it in a policy."""
    fingerprint: str
    """Of the key that signed: the one in the calibration. Whether to trust it is for the reader to say."""


def calibrate(
    recipe: Recipe | str,
    out: Path | str,
    *,
    key: SigningKey | Path | str,
    runs: int = RUNS,
    max_every: int = MAX_EVERY,
    intervals: int | None = None,
    settings: dict[str, Any] | None = None,
    profile: Profile | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
    noise: bool = True,
) -> SignedCalibration:
    """Train a recipe ``runs`` times from seeds of their own, and sign how far apart the final states are.

    Then steps of the first run are taken again on other platforms, which this machine gives by flags, and with the
    smallest published lies. What either is off by after 1, 2, 5 … steps is signed, too, with the length of intervals
    and the limits that follow; or without, if honest and forged cannot be told apart at any length.

    The runs are in the folder ``<out>.runs`` until the file is written. When it was interrupted, the same call again
    keeps the finished runs and goes on with the unfinished one.

    Args:
        recipe: A recipe, or its reference.
        out: The file to write; new.
        key: Signs the calibration (a key, or its PEM file).
        runs: How many independent trainings, at least 2.
        max_every: The longest interval that is measured: noise grows with it.
        intervals: From how many states steps are taken again; by default as many as cost about half of a run, at least
            eight. More of them make the rate of false rejections that can be stated smaller.
        settings: Constructor arguments, for a recipe given by reference.
        profile: Flags of the training processes; by default one thread per core.
        progress: Told how far it is.
        executor: Where to train; by default processes on this machine.
        noise: Measure honest noise, too.

    Raises:
        UsageError: it cannot be measured as asked.
        ReplayError: the program failed, diverged, or cannot be entered again.
        StoreError: the disk refused; the same call goes on.
    """
    if not 2 <= runs <= MAX_RUNS:
        raise UsageError(
            f"runs={runs}: a distance between independent runs takes at least 2 of them (and at most {MAX_RUNS})"
        )
    if max_every < 1 or (intervals is not None and intervals < 1):
        raise UsageError(f"max_every={max_every}, intervals={intervals}: there is at least one, of at least one step")
    if not isinstance(key, SigningKey):
        key = SigningKey.load(Path(key))
    if isinstance(recipe, Recipe):
        if settings is not None:
            raise UsageError("settings go with a recipe given by reference; this recipe already has its arguments")
        settings, recipe = recipe.configuration, reference_of(recipe)
    split_reference(recipe)
    out = Path(out)
    if out.exists():
        raise UsageError(f"{out} exists already: a calibration is never overwritten")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.parent}")
    tell = progress or (lambda *_: None)
    work = out.with_name(out.name + ".runs")
    trainer = Trainer(recipe, settings, work, max_every, profile, executor, noise, intervals)
    finished = [trainer.run(number, _counted(tell, number, runs)) for number in range(runs)]
    calibration = measured(finished, key, tell)
    if noise:
        meter = NoiseMeter(recipe, settings, finished[0], max_every, executor, tell)
        found = measured_noise(meter, float(calibration.parameters.l2.mean))
        calibration = msgspec.structs.replace(calibration, noise=found)
    check_calibration(calibration, str(out))
    write_atomically(out, key.sign(canonical.encode(calibration), PAYLOAD_TYPE))
    shutil.rmtree(work)
    return SignedCalibration(calibration, calibration_digest(calibration), key.fingerprint)


def read_calibration(path: Path | str) -> SignedCalibration:
    """Read a calibration file and check its numbers, and its signature by the key that it names.

    Raises:
        FormatError: it is malformed, or its numbers contradict one another.
        AuthenticityError: the key in it did not sign it.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such calibration file")
    data = ProofDirectory(path.parent).read(path.name, 2 * MAX_CALIBRATION)
    calibration = parse_calibration(data, path.name, verify_envelope)
    return SignedCalibration(calibration, calibration_digest(calibration), fingerprint(calibration.signer))


def _counted(tell: Progress, number: int, runs: int) -> Progress:
    """The progress of one run as that of all runs, so that the estimate is for all."""

    def note(phase: str, done: int, total: int | None) -> None:
        if phase == "training" and total:
            tell(f"training {runs} runs", number * total + done, runs * total)
        elif not number:
            tell(phase, done, total)

    return note
