"""The prover: records a training as a proof directory.

Everything that trains happens in fresh processes of the recorded profile; this module holds the key, signs,
and writes what they report. The attestation is written last, so a crash leaves no half proof.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pol import canonical, messages, seeds
from pol.declaration import difference
from pol.digest import Digest
from pol.errors import IntegrityError, PolError, ReplayError, StoreError, UsageError
from pol.executors.local import Executor, LocalProcess
from pol.interval import Origin
from pol.keys import SigningKey
from pol.merkle import tree
from pol.profile import Profile
from pol.proof import genesis as genesis_format
from pol.proof.attestation import Beacon
from pol.proof.genesis import (
    Control,
    Dataset,
    Genesis,
    RecipeIdentity,
    Release,
    Secret,
    Spec,
    genesis_digest,
    recipe_digest,
)  # fmt: skip
from pol.replay.recipe import Recipe, reference_of, split_reference
from pol.replay.sources import local_sources
from pol.unfinished import Unfinished, open_unfinished

Progress = Callable[[str, int, int | None], None]
"""Called with (phase, done, total or None)."""

CONTROL_STEPS = 3
"""Steps of the control run (design section 3.1): the third uses optimizer state and moved buffers."""

E = TypeVar("E", bound=messages.Event)


@dataclass(frozen=True)
class Proof:
    """A proof directory that this process has written. ``attestation`` is None before the training is done."""

    path: Path
    genesis: Digest
    attestation: Digest | None


def record(
    recipe: Recipe | str,
    out: Path | str,
    *,
    key: SigningKey | Path | str,
    every: int,
    keep: int = 1,
    beacon: bytes | None = None,
    resume: bool = False,
    settings: dict[str, Any] | None = None,
    profile: Profile | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
    until_genesis: bool = False,
) -> Proof:
    """Record a training.

    Args:
        recipe: A recipe, or its reference (``path/to/file.py:Name`` or ``package.module:Name``).
        out: The proof directory to write; new, unless ``resume``.
        key: Signs genesis and attestation (a key, or its PEM file); another key makes another run.
        every: k, the steps of an interval.
        keep: K, every how many intervals the state is kept in the proof.
        beacon: 32 bytes that a verifier gave for this genesis; None: the claimant chose the randomness.
        resume: Go on with an unfinished recording.
        settings: Constructor arguments, for a recipe given by reference.
        profile: Flags of the training process; by default one thread per core.
        progress: Told how far it is.
        executor: Where to train; by default a process on this machine.
        until_genesis: Stop when the genesis is signed, so that a verifier can answer it with a nonce.

    Raises:
        UsageError: it cannot be recorded as asked.
        ReplayError: the program failed, diverged, or cannot be entered again.
        StoreError: the disk refused; what is written can be resumed.
    """
    if every < 1 or keep < 1:
        raise UsageError(f"every={every} and keep={keep} must be at least 1")
    if beacon is not None and len(beacon) != 32:
        raise UsageError(f"a beacon has 32 bytes (64 hexadecimal digits), not {len(beacon)}")
    if not isinstance(key, SigningKey):
        key = SigningKey.load(Path(key))
    if isinstance(recipe, Recipe):
        if settings is not None:
            raise UsageError("settings go with a recipe given by reference; this recipe already has its arguments")
        reference, settings = reference_of(recipe), recipe.configuration
    else:
        reference = recipe
    split_reference(reference)
    tagged = {name: canonical.tag(value, name) for name, value in (settings or {}).items()}
    chosen = profile or Profile(threads=available_cores())
    with open_unfinished(Path(out), key, resume=resume) as files:
        if files.complete:
            raise UsageError(f"{out} holds a complete proof already: there is nothing to resume")
        with _Executing(executor, files.genesis.profile if files.genesis else chosen) as running:
            job = _Recorder(files, running, reference, tagged, key, progress or (lambda *_: None))
            genesis = job.genesis(chosen, every, keep)
            if until_genesis:
                return Proof(files.path, genesis_digest(genesis), None)
            job.train(genesis, files.settle_beacon(beacon))
            return Proof(files.path, genesis_digest(genesis), files.attest(genesis, key))


def available_cores() -> int:
    """Cores that this process may use: what torch would use by itself."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Executing:
    """The caller's executor, or a process of our own that is closed at the end."""

    def __init__(self, given: Executor | None, profile: Profile) -> None:
        self._given, self._own = given, None if given else LocalProcess(profile)

    def __enter__(self) -> Executor:
        return self._given or self._own  # type: ignore[return-value]

    def __exit__(self, *_: object) -> None:
        if self._own:
            self._own.close()


class _Recorder:
    """One recording: its files, its process, its program."""

    def __init__(
        self,
        files: Unfinished,
        executor: Executor,
        reference: str,
        tagged: dict[str, Any],
        key: SigningKey,
        progress: Progress,
    ) -> None:
        self._files, self._executor, self._reference = files, executor, reference
        self._tagged, self._key, self._progress = tagged, key, progress

    def genesis(self, profile: Profile, every: int, keep: int) -> Genesis:
        """The signed genesis: that of the unfinished recording, or a new one."""
        if self._files.genesis is not None:
            return self._check_same(self._files.genesis, every, keep)
        r = secrets.token_bytes(32)
        self._files.begin(Secret(r=r.hex()))
        first, second = self._build_twice(profile, r)
        declaration = first.declaration
        control = self._control(profile, first)
        modules = [part.name for part in declaration.parts if part.kind == "module"]
        release = "model" if "model" in modules else modules[0] if len(modules) == 1 else None
        sources = local_sources(self._reference)
        genesis = Genesis(
            claimant=self._key.public_pem,
            recipe=RecipeIdentity(
                name=split_reference(self._reference)[1],
                digest=recipe_digest(sources),
                sources=dict(sources),
                configuration=first.configuration,
            ),
            spec=Spec(
                declaration=declaration,
                constants=[k for k in sorted(first.contents) if first.contents[k] == second.contents[k]],
                batches_per_step=control.batches_per_step,
                steps=declaration.epochs * declaration.steps_per_epoch(control.batches_per_step),
                every=every,
                keep=keep,
                release=Release(part=release) if release else None,
            ),
            profile=profile,
            platform=first.platform,
            control=Control(steps=control.steps, root=control.root),
            dataset=Dataset(root=tree(self._files.leaves())),
            secret=seeds.commit(r),
        )
        self._files.write_genesis(genesis, self._key.sign(canonical.encode(genesis), genesis_format.PAYLOAD_TYPE))
        return genesis

    def _check_same(self, genesis: Genesis, every: int, keep: int) -> Genesis:
        name = split_reference(self._reference)[1]
        if name != genesis.recipe.name:
            raise UsageError(
                f"the unfinished recording is of the recipe {genesis.recipe.name}, not {name}: its genesis is signed"
            )
        if (every, keep) != (genesis.spec.every, genesis.spec.keep):
            raise UsageError(
                f"the unfinished recording has every={genesis.spec.every} and keep={genesis.spec.keep}, "
                f"not {every} and {keep}: its genesis is signed and cannot change"
            )
        for module, digest in local_sources(self._reference).items():
            if genesis.recipe.sources.get(module) != digest:
                raise UsageError(
                    f"module {module} of the recipe has changed since the genesis was signed; restore it to resume"
                )
        changed = [k for k, v in self._tagged.items() if genesis.recipe.configuration.get(k) != v]
        if changed:
            raise UsageError(f"--set {changed[0]} differs from the signed genesis; it cannot change on resume")
        return genesis

    def _program(self, profile: Profile, seed: bytes, configuration: dict[str, Any]) -> messages.Program:
        return messages.Program(
            reference=self._reference, configuration=configuration, seed=seed.hex(), profile=profile
        )

    def _build_twice(self, profile: Profile, r: bytes) -> tuple[messages.Built, messages.Built]:
        """Two dry builds under throwaway seeds: what they share does not depend on the seed."""
        self._progress("dry build", 0, None)
        built = []
        path = str(self._files.leaves_path)
        for leaves, check_leaves in ((path, None), (None, path)):
            program = self._program(profile, secrets.token_bytes(32), self._tagged)
            job = messages.Build(
                program=program, leaves=leaves, check_leaves=check_leaves, salt_key=seeds.salt_key(r).hex()
            )
            built.append(self._ask(job, messages.Built, "dataset"))
        first, second = built
        if first.undeclared:
            raise UsageError(_undeclared(first.undeclared))
        if changed := difference(first.declaration, second.declaration):
            raise ReplayError(f"the program declares something else each time it is entered: {changed}")
        return first, second

    def _control(self, profile: Profile, built: messages.Built) -> messages.Controlled:
        self._progress("control run", 0, None)
        program = self._program(profile, seeds.CONTROL_SEED, built.configuration)
        control = self._ask(
            messages.Control(program=program, steps=CONTROL_STEPS, reenter=True), messages.Controlled, ""
        )
        if control.undeclared:
            raise UsageError(_undeclared(control.undeclared))
        if control.reentry:
            raise ReplayError(
                f"this program cannot be entered again: after step {control.steps}, {control.reentry} differs when "
                "that step is taken from the saved state. Something that evolves is not attached, or draws randomness "
                "of its own"
            )
        return control

    def _ask(self, job: messages.JobType, kind: type[E], phase: str) -> E:
        for event in self._executor.run(job):
            if isinstance(event, messages.Stepped):
                self._progress(phase, event.step, event.total)
            elif isinstance(event, messages.Failed):
                raise failure(event)
            elif isinstance(event, kind):
                return event
        raise ReplayError("the training process gave no answer")

    def train(self, genesis: Genesis, beacon: Beacon) -> None:
        """Take the steps that are left, writing the log as they come."""
        start = self._files.rewind(genesis)
        if start.step == genesis.spec.steps:
            return
        secret = self._files.secret()
        seed = seeds.derive_seed(genesis_digest(genesis), bytes.fromhex(beacon.value), secret)
        path = None if start.checkpoint is None else str(start.checkpoint)
        job = messages.Train(
            program=self._program(genesis.profile, seed, genesis.recipe.configuration),
            registered=registered(genesis, secret),
            keep=genesis.spec.keep,
            directory=str(self._files.checkpoints),
            start=messages.Segment(start=start.step, stop=genesis.spec.steps, checkpoint=path, counts=start.counts),
        )
        for event in self._executor.run(job):
            match event:
                case messages.Opened(root=root) if start.root is not None:
                    if root != start.root:
                        raise StoreError(
                            f"{start.checkpoint} is damaged: it is not the state that the log records after "
                            f"{start.step} steps. Remove it, and resume from the one before"
                        )
                case messages.Opened(root=root):
                    self._files.append(Origin(genesis=genesis_digest(genesis), root=root), kept=True)
                case messages.Recorded(interval=interval):
                    self._files.append(interval, kept=interval.stop in self._files.kept_steps(genesis))
                    self._progress("training", interval.stop, genesis.spec.steps)
                case messages.Stepped(step=step, total=total):
                    self._progress("training", step, total)
                case messages.Failed():
                    raise failure(event)
                case messages.Finished(asides=asides, undeclared=undeclared):
                    if undeclared:
                        raise UsageError(_undeclared(undeclared))
                    self._files.note_asides(asides)


def registered(genesis: Genesis, secret: bytes) -> messages.Registered:
    """What a training process is told of a genesis."""
    return messages.Registered(
        declaration=genesis.spec.declaration,
        batches_per_step=genesis.spec.batches_per_step,
        every=genesis.spec.every,
        batch_key=seeds.batch_key(secret).hex(),
    )


def failure(event: messages.Failed) -> PolError:
    """The exception of a failed job."""
    kinds: dict[str, type[PolError]] = {
        "IntegrityError": IntegrityError, "StoreError": StoreError, "UsageError": UsageError,
    }  # fmt: skip
    return kinds.get(event.kind, ReplayError)(event.message)


def _undeclared(modules: list[str]) -> str:
    return (
        f"the recipe imports the local module {modules[0]} in a way that its source does not show, so its digest would "
        "not cover it: use a plain import statement"
    )
