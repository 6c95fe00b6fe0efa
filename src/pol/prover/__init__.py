"""The prover: records a training as a proof directory.

Everything that trains happens in fresh processes of the recorded profile; this package holds the key, signs,
and writes what they report. The attestation is written last, so a crash leaves no half proof.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pol.committed import attested
from pol.digest import Digest
from pol.errors import UsageError
from pol.executors.local import Executor, LocalProcess
from pol.keys import SigningKey
from pol.profile import MAX_THREADS, Profile
from pol.proof.attestation import MAX_ATTESTATION, attestation_digest, read_attestation
from pol.proof.genesis import genesis_digest, lengths
from pol.prover.beginning import open_unfinished
from pol.prover.origins import Origins
from pol.prover.recorder import Progress, Recorder
from pol.release import write_model
from pol.remote.fetched import opened
from pol.remote.mirror import Mirror
from pol.remote.place import is_url
from pol.remote.taking import working_folder
from pol.replay.recipe import Recipe, referred
from pol.store import ATTESTATION

__all__ = ["Progress", "Proof", "available_cores", "folder_of", "record"]


@dataclass(frozen=True)
class Proof:
    """A proof directory that this process has written. ``attestation`` is None before the training is done."""

    path: Path
    genesis: Digest
    attestation: Digest | None
    checked: int = 0
    """Steps that were taken again, and came out the same, before it was sealed."""
    url: str | None = None
    """Where it is, if it was recorded to a URL. ``path`` is then the working folder, which stays if it was named."""


def record(
    recipe: Recipe | str,
    out: Path | str,
    *,
    key: SigningKey | Path | str,
    every: int | None = None,
    keep: int | None = None,
    beacon: bytes | None = None,
    resume: bool = False,
    settings: dict[str, Any] | None = None,
    profile: Profile | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
    until_genesis: bool = False,
    rule: Literal["exact", "tolerance"] = "exact",
    init_seed: int | None = None,
    start: Path | str | None = None,
    start_kind: Literal["given", "observed"] = "observed",
    parent: Path | str | None = None,
    order: NDArray[np.integer[Any]] | None = None,
    work: Path | str | None = None,
    warn: Callable[[str], None] | None = None,
) -> Proof:
    """Record a training.

    Args:
        recipe: A recipe, or its reference (``path/to/file.py:Name`` or ``package.module:Name``).
        out: The proof directory to write, or its URL (of any file system of fsspec); new, unless ``resume``. At a URL
            there is at any time what can be resumed there, and the attestation last.
        key: Signs genesis and attestation (a key, or its PEM file); another key makes another run.
        every: k, the steps of an interval; by default 10, and 1 with rule tolerance.
        keep: K, every how many intervals the state is kept in the proof; by default 1, and 10 where rule tolerance has
            intervals of one step.
        beacon: 32 bytes that a verifier gave for this genesis; None: the claimant chose the randomness.
        resume: Go on with an unfinished recording.
        settings: Constructor arguments, for a recipe given by reference.
        profile: Flags of the training process; by default one thread per core.
        progress: Told how far it is.
        executor: Where to train; by default a process on this machine.
        until_genesis: Stop when the genesis is signed, so that a verifier can answer it with a nonce.
        rule: How a verifier compares: equal bits, or within limits of its own (for other hardware).
        init_seed: Draw the first weights under this number, as ``torch.manual_seed`` takes it, instead of the seed
            of the run: a lower assurance.
        start: First weights from a model file (safetensors, names of the ``state_dict``) instead of drawn ones.
        start_kind: ``given``: the verifier gave them out and will compare; ``observed``: they come from elsewhere,
            and a verifier can only test whether they look freshly drawn.
        parent: A complete proof whose weights are the first ones of this run (fine-tuning); a verifier needs it, too.
        order: Dataset indices (epochs × samples) instead of the order that the seed gives: a lower assurance.
        work: With a URL, the folder in which the recording is made before it is copied. By default one for each URL
            (``pol.remote.taking.working_folder``), removed when the complete proof is at the URL.
        warn: With a URL, told when it cannot be reached, which stops nothing before the end. By default a Python
            warning.

    Raises:
        UsageError: it cannot be recorded as asked.
        ReplayError: the program failed, diverged, cannot be entered again, or its recording does not replay.
        StoreError: the disk refused, or the URL cannot be reached; what is written can be resumed.
    """
    folder = folder_of(out, work)
    if any(number is not None and number < 1 for number in (every, keep)):
        raise UsageError(f"every={every} and keep={keep} must be at least 1")
    if beacon is not None and len(beacon) != 32:
        raise UsageError(f"a beacon has 32 bytes (64 hexadecimal digits), not {len(beacon)}")
    if not isinstance(key, SigningKey):
        key = SigningKey.load(Path(key))
    reference, tagged = referred(recipe, settings)
    if parent is not None and start is not None:
        raise UsageError("the first weights are those of start or of parent: give one of the two")
    chosen = profile or Profile(threads=available_cores())
    tell = progress or (lambda *_: None)
    with contextlib.ExitStack() as stack:
        start, attestation = (start, None) if parent is None else _weights_of(parent, stack)
        origin = Origins(init_seed, None if start is None else Path(start), start_kind, order, attestation)
        mirror = None
        if is_url(out):
            mirror = stack.enter_context(Mirror(str(out), folder, warn=warn or warnings.warn))
        files = stack.enter_context(open_unfinished(folder, key, resume=resume, mirror=mirror, progress=tell))
        checked = 0
        if files.complete:
            digest: Digest | None = attested(folder)
            if mirror is None:
                raise UsageError(f"{out} holds a complete proof already: there is nothing to resume")
            assert files.genesis is not None
            genesis = files.genesis
        else:
            with _Executing(executor, files.genesis.profile if files.genesis else chosen) as running:
                if files.genesis is not None:  # what is signed need not be said again
                    every, keep = every or files.genesis.spec.every, keep or files.genesis.spec.keep
                every, keep = lengths(rule, every, keep)
                job = Recorder(files, running, reference, tagged, key, tell, origin)
                genesis = job.genesis(chosen, every, keep, rule)
                digest = None
                if not until_genesis:
                    settled = files.settle_beacon(beacon)
                    job.train(genesis, settled)
                    checked = job.self_check(genesis, settled)
                    digest = files.attest(genesis, key)
        if mirror is not None:
            mirror.flush(tell) if digest is None else mirror.finish(tell)
    if mirror is not None and work is None and digest is not None:
        shutil.rmtree(folder)
    return Proof(files.path, genesis_digest(genesis), digest, checked, str(out) if mirror else None)


def folder_of(out: Path | str, work: Path | str | None) -> Path:
    """Where to write: the proof directory, or the folder to work in for a URL.

    Raises:
        UsageError: a folder to work in for what is no URL.
    """
    if is_url(out):
        return Path(work) if work is not None else working_folder(str(out))
    if work is not None:
        raise UsageError(f"{out} is a folder: only a recording to a URL has another one to work in")
    return Path(out)


def _weights_of(parent: Path | str, stack: contextlib.ExitStack) -> tuple[Path, Digest]:
    """The weights of a complete proof as a file, and the digest of its attestation."""
    path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pol-parent-"))) / "model.safetensors"
    write_model(parent, path)
    with opened(parent) as store:
        return path, attestation_digest(read_attestation(store.read(ATTESTATION, 2 * MAX_ATTESTATION)))


def available_cores() -> int:
    """Cores that this process may use, as torch counts them; no more than a verifier gives without being asked."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_THREADS)


class _Executing:
    """The caller's executor, or a process of our own that is closed at the end."""

    def __init__(self, given: Executor | None, profile: Profile) -> None:
        self._given, self._own = given, None if given else LocalProcess(profile)

    def __enter__(self) -> Executor:
        return self._given or self._own  # type: ignore[return-value]

    def __exit__(self, *_: object) -> None:
        if self._own:
            self._own.close()
