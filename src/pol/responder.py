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
from pol.errors import IntegrityError, ReplayError, StoreError, UsageError
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
from pol.proof.log import Log, counts_after, parse_log
from pol.replay.recipe import Recipe
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

    Steps are taken again from the kept state before each, in the recorded profile. States that are there already, from
    an earlier call that was stopped, stay.

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
    missing = [step for step in sorted(set(steps)) if not (target / checkpoint_path(step)).exists()]
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
    segments = [_segment(store, genesis, log, step) for step in missing if step]
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
                    if interval.root != log.intervals[-(-interval.stop // genesis.spec.every) - 1].root:
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


def _segment(store: ProofDirectory, genesis: Genesis, log: Log, step: int) -> Segment:
    """From the kept state before ``step`` up to it."""
    start = max(at for at in kept(genesis.spec) if at < step)
    path = None if not start and genesis.randomness.built else str(store.path / checkpoint_path(start))
    return Segment(start=start, stop=step, checkpoint=path, counts=counts_after(log, genesis.spec, start))


def _copy(store: ProofDirectory, target: Path, step: int) -> None:
    name = checkpoint_path(step)
    (target / name).write_bytes(store.read_range(name, 0, store.size(name)))
