"""The prover's answer to a challenge: states that are not in the proof, taken again on the run's own platform.

Rule ``tolerance`` compares values, so a verifier on another machine needs both ends of a challenged interval.
What is kept seldom is regenerated here, and has to match its recorded digest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pol import canonical, seeds
from pol.auditor import Auditor, LocalAuditor
from pol.checkpoint import checkpoint_root, gather, read_entries
from pol.errors import FormatError, Incomplete, IntegrityError, ReplayError, StoreError, UsageError
from pol.exchange import REQUEST, Patience, SharedFolder
from pol.messages import Failed, Recorded, Segment, Stepped
from pol.proof.attestation import MAX_ATTESTATION, MAX_JOURNAL, Journal, attestation_digest, read_attestation
from pol.proof.genesis import (
    MAX_GENESIS,
    Genesis,
    Secret,
    boundaries,
    genesis_digest,
    kept,
    read_genesis,
    registered,
)  # fmt: skip
from pol.proof.log import Log, counts_after, parse_log, root_after
from pol.proof.request import MAX_REQUEST, read_request
from pol.remote.fetched import opened
from pol.replay.recipe import Recipe
from pol.store import (
    ATTESTATION,
    CHECKPOINTS,
    GENESIS,
    JOURNAL,
    LOG,
    MAX_LOG_FILE,
    ORDER,
    SECRET,
    ProofDirectory,
    checkpoint_path,
    held,
)  # fmt: skip

Progress = Callable[[str, int, int | None], None]

UNDER_WAY = ".regenerate-"
"""How folders begin in which states are taken again: one of each process."""


def regenerate(
    proof: Path | str,
    out: Path | str,
    *,
    recipe: Recipe | str,
    steps: Sequence[int] | None = None,
    wait: float | Patience = 0.0,
    auditor: Auditor | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write the states after ``steps`` into the folder ``out``, for ``verify(openings=out)``.

    Without ``steps``, those for which the verifier asks there (``request.json``), after waiting up to ``wait`` seconds
    for it to ask. Steps are taken again from the kept states before them, in the recorded profile. Recorded states that
    are there already, from an earlier call that was stopped, stay; what else is there under their names is written
    over. Each state appears whole, as soon as it is taken.

    Raises:
        UsageError: a step is no boundary of an interval, or not in the run; nobody asks, or about another proof.
        FormatError: the request is none.
        ReplayError: the steps cannot be taken here.
        IntegrityError: they lead elsewhere than recorded: this is not the run's own platform, recipe or data.
        StoreError: the disk refused.
    """
    tell = progress or (lambda *_: None)
    with opened(proof, progress=tell) as store:
        return _regenerate(store, SharedFolder(Path(out)), recipe, steps, wait, auditor, tell)


def _regenerate(
    store: ProofDirectory,
    target: SharedFolder,
    recipe: Recipe | str,
    steps: Sequence[int] | None,
    wait: float | Patience,
    auditor: Auditor | None,
    tell: Progress,
) -> list[Path]:
    genesis = read_genesis(store.read(GENESIS, 2 * MAX_GENESIS))
    run = _Run(store, genesis, parse_log(store.read(LOG, MAX_LOG_FILE)))
    target.make(CHECKPOINTS)
    if steps is None:
        steps = _asked(store, target, wait if isinstance(wait, Patience) else Patience(wait), tell)
    if not steps:
        raise UsageError("no step was named: the verifier's report says which states it needs")
    if odd := sorted(set(steps) - set(boundaries(genesis.spec))):
        raise UsageError(f"{odd[0]} is no boundary of this run: states are recorded every {genesis.spec.every} steps")
    wanted, in_proof = sorted(set(steps)), set(kept(genesis.spec))
    missing = [step for step in wanted if not run.is_state(target, step)]
    with contextlib.ExitStack() as stack:
        if auditor is None:
            auditor = stack.enter_context(LocalAuditor(recipe))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=UNDER_WAY, dir=target.path)))
        stack.enter_context(held(folder))
        for step in missing:
            if step in in_proof:
                run.copy(step, folder, target)
        if left := [step for step in missing if step not in in_proof]:
            store.bring()
            run.take_again(left, auditor, folder, target, tell)
    return [target.path / checkpoint_path(step) for step in wanted]


def _asked(store: ProofDirectory, folder: SharedFolder, patience: Patience, progress: Progress) -> list[int]:
    """The states for which a verifier asks in a folder."""
    where = folder.path / REQUEST
    for _ in patience.looks():
        try:
            data = folder.read(REQUEST, MAX_REQUEST)
        except Incomplete:
            progress(f"waiting for a verifier to ask in {where}", 0, None)
            continue
        request = read_request(data, what=str(where))
        own = attestation_digest(read_attestation(store.read(ATTESTATION, 2 * MAX_ATTESTATION)))
        if request.attestation != own:
            raise UsageError(f"{where} asks about another proof ({request.attestation}); this one is {own}")
        return request.steps
    raise UsageError(f"{where}: nobody asks there. Name the --steps, or --wait for a verifier")


@dataclass(frozen=True)
class _Run:
    """A recorded run whose states are taken again."""

    store: ProofDirectory
    genesis: Genesis
    log: Log

    def is_state(self, where: ProofDirectory, step: int) -> bool:
        """Whether the recorded state after ``step`` steps is in a folder."""
        try:
            found = checkpoint_root(where, step, read_entries(where, checkpoint_path(step)))
        except FormatError:
            return False
        return found == root_after(self.log, self.genesis.spec, step)

    def copy(self, step: int, folder: Path, target: SharedFolder) -> None:
        """A state that is in the proof, by way of ``folder``."""
        name = checkpoint_path(step)
        if not self.is_state(self.store, step):
            raise IntegrityError(f"{name}: not the state that the log records after {step} steps")
        made = folder / Path(name).name
        placed = read_entries(self.store, name)
        if any(slot.file for slot in placed):
            gather(self.store, name, placed, made)
            target.take_in(made, name)
            return
        try:
            with os.fdopen(self.store.open(name), "rb") as file, made.open("wb") as copy:
                shutil.copyfileobj(file, copy)
        except OSError as error:
            raise StoreError(f"{made}: cannot write: {error.strerror}") from None
        target.take_in(made, name)

    def take_again(
        self, missing: list[int], auditor: Auditor, folder: Path, target: SharedFolder, progress: Progress
    ) -> None:
        """States that are not in the proof, by way of ``folder``; only they are written."""
        store, genesis = self.store, self.genesis
        secret = bytes.fromhex(canonical.decode(store.read(SECRET, 1024), Secret, what=SECRET, limit=1024).r)
        journal = canonical.decode(store.read(JOURNAL, MAX_JOURNAL), Journal, what=JOURNAL, limit=MAX_JOURNAL)
        seed = seeds.derive_seed(genesis_digest(genesis), bytes.fromhex(journal.beacon.value), secret)
        segments = self._segments(missing)
        total, waiting = sum(segment.stop - segment.start for segment in segments), set(missing)
        for event in auditor.replay(
            genesis.profile, genesis.recipe.configuration, seed, registered(genesis, secret), segments,
            seeds.salt_key(secret), declared=genesis.randomness.declared_seed,
            order=store.path / ORDER if genesis.randomness.order == "observed" else None, save=folder, saved=missing,
        ):  # fmt: skip
            match event:
                case Recorded(interval=interval) if interval.stop in waiting:
                    if interval.root != root_after(self.log, genesis.spec, interval.stop):
                        raise IntegrityError(
                            f"taking the steps again leads to another state after step {interval.stop} than the log "
                            "records: regenerate on the machine, and with the versions, that recorded the run"
                        )
                    name = checkpoint_path(interval.stop)
                    target.take_in(folder / Path(name).name, name)
                    waiting.remove(interval.stop)
                case Stepped(step=step):
                    progress("taking steps again", step, total)
                case Failed(message=message):
                    raise ReplayError(message)
        if waiting:
            raise ReplayError(f"the program ended before step {min(waiting)}")

    def _segments(self, steps: list[int]) -> list[Segment]:
        """From each kept state up to the last of the wanted ones before the next: every window once."""
        spec, last = self.genesis.spec, dict[int, int]()
        in_proof = kept(spec)
        for step in steps:  # in order
            last[in_proof[bisect_left(in_proof, step) - 1]] = step
        return [
            Segment(
                start=start,
                stop=stop,
                checkpoint=None
                if not start and self.genesis.randomness.built
                else str(self.store.path / checkpoint_path(start)),
                counts=counts_after(self.log, spec, start),
            )
            for start, stop in last.items()
        ]
