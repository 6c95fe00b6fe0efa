"""One recording: builds, the control run, the genesis, and the training that follows it."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from pol import canonical, messages, seeds
from pol.committed import Start
from pol.declaration import difference
from pol.errors import IntegrityError, PolError, ReplayError, StoreError, Unsure, UsageError
from pol.executors.local import Executor
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
    Secret,
    Spec,
    genesis_digest,
    recipe_digest,
    registered,
)  # fmt: skip
from pol.proof.released import released_part
from pol.prover import selfcheck
from pol.prover.origins import Origins
from pol.prover.refusals import check_reentry, check_seeds, control_of, said
from pol.replay.recipe import split_reference
from pol.replay.sources import local_sources
from pol.unfinished import Unfinished

Progress = Callable[[str, int, int | None], None]
"""Called with (phase, done, total or None)."""

E = TypeVar("E", bound=messages.Event)


class Recorder:
    """One recording: its files, its process, its program."""

    def __init__(
        self,
        files: Unfinished,
        executor: Executor,
        reference: str,
        tagged: dict[str, Any],
        key: SigningKey,
        progress: Progress,
        origins: Origins,
    ) -> None:
        self._origins = origins
        self._files, self._executor, self._reference = files, executor, reference
        self._tagged, self._key, self._progress = tagged, key, progress

    def genesis(self, profile: Profile, every: int, keep: int, rule: Literal["exact", "tolerance"]) -> Genesis:
        """The signed genesis: that of the unfinished recording, or a new one."""
        if self._files.genesis is not None:
            return self._check_same(self._files.genesis, every, keep, rule)
        r = secrets.token_bytes(32)
        self._files.begin(Secret(r=r.hex()))
        first, second = self._build_twice(profile, r)
        declaration = first.declaration
        release = released_part(declaration)
        self._origins.check(declaration, release)
        if self._origins.drawn:
            check_seeds(first, second)
        control = self._control(profile, first)
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
                rule=rule,
                release=release,
            ),
            profile=profile,
            platform=first.platform,
            control=Control(steps=control.steps, root=control.root),
            dataset=Dataset(root=tree(self._files.leaves())),
            randomness=self._origins.randomness(declaration, seeded=_seeds_itself(first, second)),
            secret=seeds.commit(r),
        )
        self._files.write_order(self._origins.order_bytes())
        self._files.write_genesis(genesis, self._key.sign(canonical.encode(genesis), genesis_format.PAYLOAD_TYPE))
        return genesis

    def _check_same(self, genesis: Genesis, every: int, keep: int, rule: str) -> Genesis:
        written = self._origins.order_bytes()
        if written is not None and self._files.order() not in (written, None):
            raise UsageError("the unfinished recording was begun with another order: give the same one to resume")
        name = split_reference(self._reference)[1]
        if name != genesis.recipe.name:
            raise UsageError(
                f"the unfinished recording is of the recipe {genesis.recipe.name}, not {name}: its genesis is signed"
            )
        spec = genesis.spec
        if (every, keep, rule) != (spec.every, spec.keep, spec.rule):
            raise UsageError(
                f"the unfinished recording has every={spec.every}, keep={spec.keep} and rule={spec.rule}, "
                f"not {every}, {keep} and {rule}: its genesis is signed and cannot change"
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

    def _program(
        self, profile: Profile, seed: bytes, configuration: dict[str, Any], *, order: str | None = None,
        declared_seed: int | None = None,
    ) -> messages.Program:  # fmt: skip
        return messages.Program(
            reference=self._reference, configuration=configuration, seed=seed.hex(), profile=profile, order=order,
            declared_seed=declared_seed,
        )  # fmt: skip

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
        if first.declaration.frozen != second.declaration.frozen:
            raise UsageError(
                "a frozen base depends on the seed, or differs each time: a base comes from a file or is fixed; frozen "
                "layers that are drawn belong into an attached module"
            )
        if changed := difference(first.declaration, second.declaration):
            raise ReplayError(f"the program declares something else each time it is entered: {changed}. {self._hint()}")
        return first, second

    def _control(self, profile: Profile, built: messages.Built) -> messages.Controlled:
        self._progress("control run", 0, None)
        program = self._program(profile, seeds.CONTROL_SEED, built.configuration)
        control = self._ask(control_of(program), messages.Controlled, "")
        if control.undeclared:
            raise UsageError(_undeclared(control.undeclared))
        check_reentry(control, self._hint())
        self._files.note_read(said(control))
        return control

    def _hint(self) -> str:
        return f"To see which, and where: pol doctor {shlex.quote(self._reference)}"

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
        start = self._files.rewind(genesis, self._progress)
        try:
            self._train(genesis, beacon, start, trust=start.root is None)
        except Unsure:  # as if it had been stopped and resumed, which needs nobody to do it
            start = self._files.rewind(genesis, self._progress)
            self._train(genesis, beacon, start, trust=False)

    def _train(self, genesis: Genesis, beacon: Beacon, start: Start, *, trust: bool) -> None:
        """Take the steps from ``start``. What was counted on wrongly is why some recordings are taken up again: so only
        one that was not may ``trust``.

        Raises:
            Unsure: the steps since the last kept state are to be taken again.
        """
        if start.step == genesis.spec.steps:
            return
        path = None if start.checkpoint is None else str(start.checkpoint)
        job = messages.Train(
            program=self._run(genesis, beacon),
            weights=self._origins.weights(genesis),
            registered=registered(genesis, self._files.secret()),
            keep=genesis.spec.keep,
            directory=str(self._files.checkpoints),
            start=messages.Segment(start=start.step, stop=genesis.spec.steps, checkpoint=path, counts=start.counts),
            trust=trust,
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
                case messages.Finished(undeclared=undeclared):
                    if undeclared:
                        raise UsageError(_undeclared(undeclared))
                    self._files.note_course(event.asides, event.waits, event.waited)

    def self_check(self, genesis: Genesis, beacon: Beacon) -> int:
        """Take a part of the recorded steps again, in a fresh job; returns how many.

        Raises:
            ReplayError: they do not come out as they were recorded.
        """
        r, log = self._files.secret(), self._files.log()
        job = messages.Replay(
            program=self._run(genesis, beacon),
            registered=registered(genesis, r),
            segments=selfcheck.segments(genesis, log, r, self._files.path),
            salt_key=seeds.salt_key(r).hex(),
        )
        total = sum(segment.stop - segment.start for segment in job.segments)
        self._progress("self-check", 0, total)
        for done in selfcheck.compare(self._executor.run(job), log, genesis.spec, self._reference):
            self._progress("self-check", done, total)
        return total

    def _run(self, genesis: Genesis, beacon: Beacon) -> messages.Program:
        """The program under the seed of this run."""
        seed = seeds.derive_seed(genesis_digest(genesis), bytes.fromhex(beacon.value), self._files.secret())
        return self._program(
            genesis.profile, seed, genesis.recipe.configuration,
            declared_seed=self._origins.init_seed,
            order=None if self._origins.order is None else str(self._files.order_path),
        )  # fmt: skip


def _seeds_itself(first: messages.Built, second: messages.Built) -> bool:
    """Whether a recipe that keeps its own randomness draws the same parameters under every seed."""
    parameters = [key for key in first.contents if key.startswith("parameter/")]
    same = all(first.contents[key] == second.contents[key] for key in parameters)
    return first.declaration.streams == "observed" and same


def failure(event: messages.Failed) -> PolError:
    """The exception of a failed job."""
    kinds: dict[str, type[PolError]] = {
        "IntegrityError": IntegrityError, "StoreError": StoreError, "Unsure": Unsure,
        "UsageError": UsageError,
    }  # fmt: skip
    return kinds.get(event.kind, ReplayError)(event.message)


def _undeclared(modules: list[str]) -> str:
    return (
        f"the recipe imports the local module {modules[0]} in a way that its source does not show, so its digest would "
        "not cover it: use a plain import statement"
    )
