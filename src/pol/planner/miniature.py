"""A proof of the measured steps, as if the training had no more: for its sizes, and for what reading it takes.

It is signed by a key that nobody keeps, and gone when the planner is done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import msgspec

from pol import canonical, seeds
from pol.auditor import LocalAuditor
from pol.checkpoint import Checkpoint, compare
from pol.declaration import Declaration
from pol.errors import ReplayError
from pol.interval import Interval, Origin, Rates
from pol.keys import SigningKey
from pol.merkle import tree
from pol.messages import Built, Controlled, Failed, Measured
from pol.profile import Profile
from pol.proof import genesis as genesis_format
from pol.proof.attestation import Sha256, Subject
from pol.proof.forecast import Sizes
from pol.proof.genesis import (
    CONTROL_STEPS,
    Control,
    Dataset,
    Genesis,
    Randomness,
    RecipeIdentity,
    Secret,
    Spec,
    genesis_digest,
    recipe_digest,
)  # fmt: skip
from pol.proof.log import encode_record
from pol.proof.policy import EXACT
from pol.proof.released import released_part
from pol.prover.beginning import open_unfinished
from pol.replay.recipe import split_reference
from pol.replay.sources import local_sources
from pol.statetree import StateRoot
from pol.store import CHECKPOINTS, DATASET, LOG, ProofDirectory
from pol.verifier import verify
from pol.verifier.moves import SIZED

SECRET = bytes(32)
"""The secret r of a proof that nobody gets to see."""

NEEDED = {1, 2, 3}
"""Steps of a verification that must pass before kept states are measured; what the policy says of such a short run is
of no interest."""


class Miniature:
    """The proof, while it is made and read. A context manager."""

    def __init__(self, path: Path, reference: str, profile: Profile) -> None:
        self.path, self._reference, self._profile = path, reference, profile
        self._key = SigningKey.generate()
        self._stack = contextlib.ExitStack()
        self.noted = self.hashed = 0.0
        """Seconds of writing a record, and of hashing a kept state."""
        self.kinds = 0
        """Of state whose updates a verifier measures."""

    def __enter__(self) -> Miniature:
        self._files = self._stack.enter_context(open_unfinished(self.path, self._key, resume=False))
        self._files.begin(Secret(r=SECRET.hex()))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def checkpoints(self) -> Path:
        """Where kept states are written."""
        return self._files.checkpoints

    def seal(
        self, built: Built, origin: StateRoot, intervals: Sequence[Interval], measured: Measured, every: int, keep: int
    ) -> None:  # fmt: skip
        """Write everything but the kept states, which are there; and note the sizes."""
        declaration = _shortened(measured.declaration, measured.steps, measured.batches_per_step)
        self._files.leaves_path.write_bytes(bytes(32) * declaration.samples)
        genesis = self._genesis(built, declaration, measured, origin, every, keep)
        signed = self._key.sign(canonical.encode(genesis), genesis_format.PAYLOAD_TYPE)
        self._files.write_genesis(genesis, signed)
        self._files.settle_beacon(None)
        self._files.append(Origin(genesis=genesis_digest(genesis), root=origin), kept=True)
        noted, hashed = list[float](), list[float]()
        for interval in intervals:
            kept, began = interval.stop in self._files.kept_steps(genesis), process_time()
            self._files.append(_renumbered(interval, measured.batches_per_step), kept=kept)
            (hashed if kept else noted).append(process_time() - began)
        self.noted = sum(noted) / len(noted)
        self.hashed = sum(hashed) / len(hashed) - self.noted
        self._files.attest(genesis, self._key)
        self._stack.close()
        self.sizes = self._sizes(genesis, intervals, measured)

    def _genesis(
        self, built: Built, declaration: Declaration, measured: Measured, root: StateRoot, every: int, keep: int
    ) -> Genesis:  # fmt: skip
        sources = local_sources(self._reference)
        order = declaration.order
        return Genesis(
            claimant=self._key.public_pem,
            recipe=RecipeIdentity(
                name=split_reference(self._reference)[1],
                digest=recipe_digest(sources),
                sources=dict(sources),
                configuration=built.configuration,
            ),
            spec=Spec(
                declaration=declaration,
                constants=[entry.key for entry in declaration.entries if entry.kind == "buffer"],  # as most are
                batches_per_step=measured.batches_per_step,
                steps=measured.steps,
                every=every,
                keep=keep,
                release=released_part(declaration),
            ),
            profile=self._profile,
            platform=built.platform,
            control=Control(steps=min(CONTROL_STEPS, measured.steps), root=root),
            dataset=Dataset(root=tree([bytes(32)] * declaration.samples)),
            randomness=Randomness(order=order, streams=declaration.streams),
            secret=seeds.commit(SECRET),
        )

    def _sizes(self, genesis: Genesis, intervals: Sequence[Interval], measured: Measured) -> Sizes:
        directory = ProofDirectory(self.path)
        found = directory.files()
        states = {name: count for name, count in found.items() if name.startswith(f"{CHECKPOINTS}/")}
        last, first = max(states), min(states)
        subject = Subject(name=last, digest=Sha256("0" * 64))
        entry = (len(canonical.encode(subject)) + 1) * 4 / 3  # a comma, and base64
        line, step = _line(intervals)
        others = sum(found.values()) - sum(states.values()) - found[LOG] - found[DATASET]
        return Sizes(
            built=states[first],
            kept=states[last],
            state=measured.timings.state_bytes,
            record=line,
            record_step=step,
            entry=entry,
            others=round(others + len(encode_record(Origin(genesis=genesis_digest(genesis), root=intervals[0].root)))
                         - entry * len(states)),
        )  # fmt: skip

    def read(self) -> tuple[float, float]:
        """Seconds in which a verifier reads one kept state, in its steps 1 to 4; and compares two, in step 7.

        Raises:
            ReplayError: it does not get so far.
        """
        states = sorted(name for name in ProofDirectory(self.path).files() if name.startswith(f"{CHECKPOINTS}/"))
        seconds = min(self._verified() for _ in range(2))  # the first one also loads what both need
        began = perf_counter()
        before, after = (Checkpoint.at(self.path / name) for name in states[-2:])
        shared = before.entries.keys() & after.entries.keys()  # the first has no moments yet
        compare(before, after, lambda entry: entry.key in shared)
        compared = perf_counter() - began
        self.kinds = len({SIZED[slot.entry.kind] for slot in after.entries.values() if slot.entry.kind in SIZED})
        return seconds / len(states), compared

    def _verified(self) -> float:
        """Seconds of a verification, until it would take steps."""
        began, until = perf_counter(), list[float]()
        with _Reader(self._reference, until) as auditor:
            report = verify(self.path, policy=EXACT, auditor=auditor)
        ended = until[0] if until else perf_counter()
        checks = {check.name for step in report.steps for check in step.checks}
        bad = [step for step in report.steps if step.number in NEEDED and step.status != "passed"]
        if bad or "values" not in checks:
            raise ReplayError(f"a proof of the first steps could not be read: {report.reason()}")
        return ended - began


class _Reader(LocalAuditor):
    """Ends a verification where steps would be taken."""

    def __init__(self, recipe: str, until: list[float]) -> None:
        super().__init__(recipe)
        self._until = until

    def control(self, *_: Any) -> Controlled | Failed:
        """See ``Auditor``."""
        self._until.append(perf_counter())
        return Failed(kind="UsageError", message="only the reading is measured")

    def build(self, *_: Any) -> Built | Failed:
        """See ``Auditor``."""
        return Failed(kind="UsageError", message="only the reading is measured")


def _shortened(declaration: Declaration, steps: int, per_step: int) -> Declaration:
    """What a training of so many steps would have declared."""
    batches = steps * per_step
    if declaration.order == "derived":
        changed: dict[str, Any] = {"samples": batches * declaration.batch_size}
    else:
        changed = {"samples": min(declaration.samples, 1), "batches": batches}
    return msgspec.structs.replace(declaration, epochs=1, **changed)


def _renumbered(interval: Interval, per_step: int) -> Interval:
    """The record with indices of the one sample that is left, of as many batches as every step of this proof has.

    The last step of an epoch may have fewer; and here all steps are of one epoch.
    """
    if interval.indices is None:
        return interval
    size = max(map(len, interval.indices))
    return msgspec.structs.replace(interval, indices=[[0] * size] * (per_step * (interval.stop - interval.start)))


def _line(intervals: Sequence[Interval]) -> tuple[float, float]:
    """Bytes of a record for no steps at all, and what each step adds: from two of them, and from both as one."""
    before, after = intervals[-2:]
    merged: list[Rates] = []
    for rate in [*before.learning_rates, *after.learning_rates]:
        if merged and merged[-1].values == rate.values:
            merged[-1] = Rates(steps=merged[-1].steps + rate.steps, values=rate.values)
        else:
            merged.append(rate)
    indices = None if after.indices is None else [*(before.indices or []), *after.indices]
    both = msgspec.structs.replace(after, start=before.start, learning_rates=merged, indices=indices)
    steps = after.stop - after.start
    one, two = len(encode_record(after)), len(encode_record(both))
    per_step = max(0.0, (two - one) / steps)  # a longer number may have more digits than a rate
    return one - steps * per_step, per_step
