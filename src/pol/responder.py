"""The prover's answer to a challenge: states that are not in the proof, taken again on the run's own platform.

Rule ``tolerance`` compares values, so a verifier on another machine needs both ends of a challenged interval.
What is kept seldom is regenerated here, and has to match its recorded digest.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pol import canonical, seeds
from pol.auditor import Auditor, LocalAuditor
from pol.checkpoint import checkpoint_root, read_entries
from pol.errors import FormatError, IntegrityError, ReplayError, StoreError, UsageError
from pol.messages import Failed, Recorded, Segment, Stepped
from pol.proof.attestation import MAX_JOURNAL, Journal
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
from pol.replay.recipe import Recipe
from pol.statetree import StateRoot
from pol.store import (
    CHECKPOINTS,
    GENESIS,
    JOURNAL,
    LOG,
    MAX_LOG_FILE,
    ORDER,
    SECRET,
    ProofDirectory,
    checkpoint_path,
)  # fmt: skip

Progress = Callable[[str, int, int | None], None]


def regenerate(
    proof: Path | str,
    out: Path | str,
    *,
    recipe: Recipe | str,
    steps: Sequence[int],
    auditor: Auditor | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write the states after ``steps`` into the folder ``out``, for ``verify(openings=out)``.

    Steps are taken again from the kept states before them, in the recorded profile. Recorded states that are there
    already, from an earlier call that was stopped, stay; what else is there under their names is written over.

    Raises:
        UsageError: a step is no boundary of an interval, or not in the run.
        ReplayError: the steps cannot be taken here.
        IntegrityError: they lead elsewhere than recorded: this is not the run's own platform, recipe or data.
        StoreError: the disk refused.
    """
    store = ProofDirectory(Path(proof))
    genesis = read_genesis(store.read(GENESIS, 2 * MAX_GENESIS))
    log = parse_log(store.read(LOG, MAX_LOG_FILE))
    if odd := sorted(set(steps) - set(boundaries(genesis.spec))):
        raise UsageError(f"{odd[0]} is no boundary of this run: states are recorded every {genesis.spec.every} steps")
    if not steps:
        raise UsageError("no step was named: the verifier's report says which states it needs")
    target = Path(out)
    try:
        (target / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{target}: cannot make the folder: {error.strerror}") from None
    there = ProofDirectory(target)
    missing = [step for step in sorted(set(steps)) if not _is_there(there, step, root_after(log, genesis.spec, step))]
    with contextlib.ExitStack() as stack:
        if auditor is None:
            auditor = stack.enter_context(LocalAuditor(recipe))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".regenerate-", dir=target)))
        _take(store, genesis, log, auditor, missing, folder, target, progress or (lambda *_: None))
    return [target / checkpoint_path(step) for step in sorted(set(steps))]


def _take(
    store: ProofDirectory, genesis: Genesis, log: Log, auditor: Auditor, missing: list[int], folder: Path,
    target: Path, progress: Progress,
) -> None:  # fmt: skip
    secret = bytes.fromhex(canonical.decode(store.read(SECRET, 1024), Secret, what=SECRET, limit=1024).r)
    journal = canonical.decode(store.read(JOURNAL, MAX_JOURNAL), Journal, what=JOURNAL, limit=MAX_JOURNAL)
    seed = seeds.derive_seed(genesis_digest(genesis), bytes.fromhex(journal.beacon.value), secret)
    segments = _segments(store, genesis, log, [step for step in missing if step])
    total = sum(segment.stop - segment.start for segment in segments)
    if 0 in missing:  # the first state is always kept
        _copy(store, target, 0)
    if not segments:
        return
    for event in auditor.replay(
        genesis.profile, genesis.recipe.configuration, seed, registered(genesis, secret), segments,
        seeds.salt_key(secret), declared=genesis.randomness.declared_seed,
        order=store.path / ORDER if genesis.randomness.order == "observed" else None, save=folder,
    ):  # fmt: skip
        match event:
            case Recorded(interval=interval):
                made = folder / f"{interval.stop:012d}.safetensors"
                if interval.stop in missing:
                    if interval.root != root_after(log, genesis.spec, interval.stop):
                        raise IntegrityError(
                            f"taking the steps again leads to another state after step {interval.stop} than the log "
                            "records: regenerate on the machine, and with the versions, that recorded the run"
                        )
                    made.replace(target / checkpoint_path(interval.stop))
                else:
                    made.unlink()
            case Stepped(step=step):
                progress("taking steps again", step, total)
            case Failed(message=message):
                raise ReplayError(message)


def _is_there(target: ProofDirectory, step: int, recorded: StateRoot) -> bool:
    """Whether the recorded state is in the folder."""
    try:
        return checkpoint_root(target, step, read_entries(target, checkpoint_path(step))) == recorded
    except FormatError:
        return False


def _segments(store: ProofDirectory, genesis: Genesis, log: Log, steps: list[int]) -> list[Segment]:
    """From each kept state up to the last of the wanted ones before the next."""
    last: dict[int, int] = {}
    for step in steps:
        last[max(at for at in kept(genesis.spec) if at < step)] = step  # steps are in order
    return [
        Segment(
            start=start,
            stop=stop,
            checkpoint=None if not start and genesis.randomness.built else str(store.path / checkpoint_path(start)),
            counts=counts_after(log, genesis.spec, start),
        )
        for start, stop in last.items()
    ]


def _copy(store: ProofDirectory, target: Path, step: int) -> None:
    name = checkpoint_path(step)
    (target / name).write_bytes(store.read_range(name, 0, store.size(name)))
